//! Every bound and default of the house, unit last in the name, with its origin. Relations are asserted at compile time.

/// Bytes of a sector. Linux block layer and DRBD.
pub const SECTOR_SIZE: u64 = 512;
/// Sectors under one bitmap bit (4 KiB). DRBD v08 metadata.
pub const BM_BLOCK_SECTORS: u64 = 8;
/// Bytes under one bitmap bit.
pub const BM_BLOCK_BYTES: u64 = BM_BLOCK_SECTORS * SECTOR_SIZE;
/// Sectors of one activity-log extent (4 MiB). DRBD v08 metadata.
pub const AL_EXTENT_SECTORS: u64 = 8192;
/// Sectors of one resync extent (16 MiB). DRBD 8.4.
pub const RESYNC_EXTENT_SECTORS: u64 = 32768;

/// Oldest protocol version that this node speaks. DRBD 8.4.
pub const PROTOCOL_VERSION_MIN: u32 = 86;
/// Newest protocol version that this node speaks. DRBD 8.4.2 and later.
pub const PROTOCOL_VERSION_MAX: u32 = 101;

/// Largest read or write request from version 100 on, in bytes.
pub const REQUEST_BYTES_MAX_V100: u32 = 1 << 20;
/// Largest read or write request of versions 95 to 99, in bytes.
pub const REQUEST_BYTES_MAX_V95: u32 = 128 << 10;
/// Largest read or write request up to version 94, in bytes.
pub const REQUEST_BYTES_MAX_V86: u32 = 32 << 10;
/// Largest discard or write-zeroes with the write-same feature, in bytes.
pub const DISCARD_BYTES_MAX_WSAME: u32 = 128 << 20;
/// Largest discard or write-zeroes without it, in bytes.
pub const DISCARD_BYTES_MAX: u32 = 4 << 20;

/// Largest device, in sectors: DRBD's configured maximum of 1 PiB.
pub const DEVICE_SECTORS_MAX: u64 = 1 << 41;

const _: () = assert!(AL_EXTENT_SECTORS.is_multiple_of(BM_BLOCK_SECTORS));
const _: () = assert!(RESYNC_EXTENT_SECTORS.is_multiple_of(AL_EXTENT_SECTORS));
const _: () = assert!(
    REQUEST_BYTES_MAX_V100 as u64 <= AL_EXTENT_SECTORS * SECTOR_SIZE,
    "a request touches at most two AL extents"
);

/// Largest single client request, in bytes; larger ones are refused by the frontends. NBD: 32 MiB is what clients expect.
pub const CLIENT_REQUEST_BYTES_MAX: u64 = 32 << 20;

/// Most requests of a peer that are accepted and not answered; beyond it the data socket is not read. Twice what a kernel
/// peer with default `max-buffers` keeps in flight.
pub const PEER_REQUESTS_MAX: usize = 4096;
/// Writes after which received epochs are flushed at the latest, under relaxed epochs. Measured: a flush per write
/// at queue depth 1 halves the rate.
pub const EPOCH_FLUSH_WRITES: u32 = 256;
/// Delay after which they are flushed at the latest, in milliseconds.
pub const EPOCH_FLUSH_DELAY_MS: u64 = 10;
/// How long a disk operation that exceeded the disk-timeout is waited for once more, in milliseconds.
pub const DISK_TIMEOUT_CONFIRM_MS: u64 = 100;
/// How long a forced detach waits for a disk that hangs, in milliseconds.
pub const FORCED_DETACH_MS: u64 = 1000;
/// Within so many seconds of the last time Ahead, the next one lasts twice as long (our rule).
pub const CONGESTION_CALM_S: u64 = 60;
/// Longest time Ahead once nothing is under way, in seconds (our rule).
pub const CONGESTION_DWELL_MAX_S: u64 = 64;
/// How often a volume goes Ahead in any minute at most: 1, 2, 4, 8, 16 and 32 s lie between the entries (our rule).
pub const CONGESTION_PHASES_MAX: usize = 6;
/// How long the resync after Ahead is put off at a time, in milliseconds.
pub const CONGESTION_POSTPONE_MS: u64 = 100;
/// How long a closed epoch's barrier waits for a write to travel with, to a peer with relaxed epochs, in milliseconds; half
/// of the peer's flush delay.
pub const BARRIER_DELAY_MS: u64 = 5;
/// How long a resync that resolves a split brain waits for its undo file, in milliseconds; our choice, long for any disk.
pub const UNDO_FILE_MS: u64 = 30_000;
/// Most runs of blocks that may fail between an exchange of bitmaps and the resync that follows; a peer that names more has
/// no disk to speak of. Arbitrary: far more than writes are under way.
pub const FAILED_EARLY_MAX: usize = 65_536;
/// How long an own write that a kernel refused for a write of its own waits for that one before it is sent again, in
/// milliseconds; our choice, far longer than what is already on its way takes.
pub const CONFLICT_RESEND_MS: u64 = 100;
/// Most resync answers that a target may leave unacknowledged; twice what the largest `max-buffers` of a kernel allows.
pub const RESYNC_UNACKED_MAX: usize = 131_072;
/// Largest resync request of our own, in bytes.
pub const RESYNC_REQUEST_BYTES: u64 = 512 << 10;
/// Resync data asked for and not yet on disk, in bytes.
pub const RESYNC_IN_FLIGHT_BYTES: u64 = 8 << 20;
/// Delay between cleared bits and the write-out of their pages, in milliseconds. DRBD 8.4: 2 s.
pub const LAZY_BITMAP_DELAY_MS: u64 = 2000;

const _: () = assert!(RESYNC_REQUEST_BYTES <= REQUEST_BYTES_MAX_V100 as u64);
const _: () = assert!(RESYNC_IN_FLIGHT_BYTES >= RESYNC_REQUEST_BYTES);
/// Smallest addressable unit of an NBD export, in bytes: the logical block size.
pub const NBD_BLOCK_BYTES_MIN: u32 = 512;
/// Alignment that an NBD client should prefer, in bytes: one bitmap bit.
pub const NBD_BLOCK_BYTES_PREFERRED: u32 = 4096;
/// Largest NBD read or write, in bytes: what every client may use without asking (proto.md, "Size constraints").
pub const NBD_PAYLOAD_BYTES_MAX: u32 = 32 << 20;
/// Largest payload of a refused NBD write that is read and thrown away to keep the connection, in bytes; a larger one ends
/// it. Arbitrary: twice the legal maximum, as nbdkit does.
pub const NBD_DRAIN_BYTES_MAX: u32 = 2 * NBD_PAYLOAD_BYTES_MAX;
/// Longest string in the NBD protocol, in bytes (proto.md, "Conventions").
pub const NBD_STRING_BYTES_MAX: usize = 4096;
/// Longest data of one negotiation option, in bytes: an export name and a handful of queries or information requests.
pub const NBD_OPTION_BYTES_MAX: u32 = 16 << 10;
/// Options that one client may send. Arbitrary: enough to list and describe a thousand exports over one connection.
pub const NBD_OPTION_COUNT_MAX: u32 = 4096;
/// Bytes that one client may send before the transmission phase; bounds the work, not the memory.
pub const NBD_NEGOTIATION_BYTES_MAX: u32 = 256 << 10;
/// Time from accepting a connection to the transmission phase, in milliseconds.
pub const NBD_NEGOTIATION_MS_MAX: u64 = 5000;
/// Connections that negotiate at the same time; more wait in the kernel's backlog.
pub const NBD_NEGOTIATIONS_MAX: usize = 64;
/// Requests in flight on one NBD connection. Clients: fio 32 and more, nbdcopy 64, qemu 16, the kernel 128.
pub const NBD_REQUESTS_IN_FLIGHT_MAX: usize = 128;
/// Payload bytes in flight on one NBD connection, requests and unsent replies together; one request is always admitted.
/// nbdcopy keeps 64 requests of 256 KiB.
pub const NBD_BYTES_IN_FLIGHT_MAX: usize = 16 << 20;
/// Bytes of reply headers and error texts that wait for a client that does not read; arbitrary, far more than the requests in
/// flight need.
pub const NBD_REPLY_HEAD_BYTES_MAX: usize = 64 << 10;
/// Payload up to this length is received together with what follows it and copied once, in bytes. Origin: measured with
/// straw servers, a batch with one copy costs a third of a receive per request.
pub const NBD_COPY_BYTES_MAX: usize = 32 << 10;
/// Bytes that are received at once from an NBD client: 32 requests of 4 KiB.
pub const NBD_STAGING_BYTES: usize = 136 << 10;

const _: () = assert!(NBD_BLOCK_BYTES_MIN as u64 == SECTOR_SIZE);
const _: () = assert!(NBD_BLOCK_BYTES_PREFERRED as u64 == BM_BLOCK_BYTES);
const _: () = assert!(NBD_COPY_BYTES_MAX <= REQUEST_BYTES_MAX_V100 as usize);
const _: () =
    assert!(NBD_STAGING_BYTES > 2 * (NBD_COPY_BYTES_MAX + 28), "a request with a copied payload fits behind any other");
const _: () = assert!(
    NBD_OPTION_BYTES_MAX as usize >= 2 * NBD_STRING_BYTES_MAX,
    "an export name and a query of full length fit into one option"
);
