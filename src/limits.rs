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
/// Largest resync request of our own, in bytes.
pub const RESYNC_REQUEST_BYTES: u64 = 512 << 10;
/// Resync data asked for and not yet on disk, in bytes.
pub const RESYNC_IN_FLIGHT_BYTES: u64 = 8 << 20;
/// Delay between cleared bits and the write-out of their pages, in milliseconds. DRBD 8.4: 2 s.
pub const LAZY_BITMAP_DELAY_MS: u64 = 2000;

const _: () = assert!(RESYNC_REQUEST_BYTES <= REQUEST_BYTES_MAX_V100 as u64);
const _: () = assert!(RESYNC_IN_FLIGHT_BYTES >= RESYNC_REQUEST_BYTES);
