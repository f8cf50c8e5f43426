//! The packet table: one row per command of protocols 86 to 101 (wire.md 3).

use crate::limits::PROTOCOL_VERSION_MAX;

use super::feature::{FeatureFlags, Version};

/// Which of the two TCP connections of a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Socket {
    /// Handshake, data, requests, barriers, bitmaps, state.
    Data,
    /// Acknowledgements, negative replies, pings, answers to state changes.
    Meta,
}

impl Socket {
    /// The word for logs.
    #[must_use]
    pub const fn text(self) -> &'static str {
        match self {
            Self::Data => "data",
            Self::Meta => "meta",
        }
    }
}

/// The sockets that may carry a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sockets {
    /// The data socket only.
    Data,
    /// The meta socket only.
    Meta,
    /// Either.
    Both,
}

impl Sockets {
    /// Whether `socket` is among them.
    #[must_use]
    pub const fn contains(self, socket: Socket) -> bool {
        matches!((self, socket), (Self::Both, _) | (Self::Data, Socket::Data) | (Self::Meta, Socket::Meta))
    }
}

/// Whom a packet is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// The connection: the volume in the header is 0 and ignored.
    Connection,
    /// The volume in the header.
    Volume,
}

/// When a packet may come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// As the first packet of a TCP connection.
    First,
    /// As the first packet of the data socket after that.
    Features,
    /// While both sides authenticate: challenge.
    AuthChallenge,
    /// While both sides authenticate: response.
    AuthResponse,
    /// From the parameters on.
    Params,
    /// After the peer's first `P_STATE`. (The meta socket is not ordered against it: anything may come there earlier.)
    Connected,
}

/// How a receiver bounds the length of a packet, before it reads the body. All numbers in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LenRule {
    /// Exactly so many.
    Exact(u32),
    /// From so many to so many.
    Between(u32, u32),
    /// `p_data`: 24, the integrity digest, and data up to the largest request.
    Payload {
        /// No data at all is legal.
        empty_ok: bool,
    },
    /// `P_WSAME`: 28, the integrity digest and one logical block.
    WriteSame,
    /// `block_req` and the digest of the checksum based resync.
    CsumDigest,
    /// `block_req` and the digest of online verify.
    VerifyDigest,
    /// `P_PROTOCOL`: 24, and a string from version 87 on.
    Protocol,
    /// `P_SYNC_PARAM`: 4, and a string in version 88.
    SyncParam,
    /// `P_SYNC_PARAM89`: 132 up to version 94, else 148.
    SyncParam89,
    /// `P_SIZES`: 32, or 56 with queue limits.
    Sizes,
    /// `P_BITMAP`: whole words, as many as fit into 4096 bytes with the header.
    Bitmap,
    /// `P_COMPRESSED_BITMAP`: 2 bytes up to what fits into 4096 bytes with the header.
    CompressedBitmap,
}

/// One row of the packet table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// The packet.
    pub kind: Kind,
    /// Command number in the header.
    pub command: u16,
    /// DRBD's name.
    pub name: &'static str,
    /// Where it travels.
    pub sockets: Sockets,
    /// First version that may use it.
    pub since: u32,
    /// Last version that may use it.
    pub until: u32,
    /// Feature that must be agreed.
    pub feature: FeatureFlags,
    /// Whom it is about.
    pub scope: Scope,
    /// When it may come.
    pub phase: Phase,
    /// Bounds of its length.
    pub len: LenRule,
}

macro_rules! packets {
    ($($variant:ident = $command:literal, $name:literal, $sock:ident, $since:literal..=$until:expr, $feature:ident,
       $scope:ident, $phase:ident, $len:expr;)+) => {
        /// The packets, by DRBD's names.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u16)]
        pub enum Kind {
            $(#[doc = $name] $variant = $command,)+
        }

        /// All packets, in the order of the table.
        pub const KINDS: &[Kind] = &[$(Kind::$variant,)+];

        impl Kind {
            /// The packet with this command number.
            #[must_use]
            pub const fn from_command(command: u16) -> Option<Self> {
                match command {
                    $($command => Some(Self::$variant),)+
                    _ => None,
                }
            }

            /// Its row.
            #[must_use]
            pub fn row(self) -> &'static Row {
                match self { $(Self::$variant => const { &Row {
                    kind: Kind::$variant,
                    command: $command,
                    name: $name,
                    sockets: Sockets::$sock,
                    since: $since,
                    until: $until,
                    feature: FeatureFlags::$feature,
                    scope: Scope::$scope,
                    phase: Phase::$phase,
                    len: $len,
                } },)+ }
            }

            /// DRBD's name.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }
        }
    };
}

const MAX: u32 = PROTOCOL_VERSION_MAX;

use LenRule as Len;

packets! {
    // packet = command, name, socket, versions, feature, scope, phase, length;
    InitialData = 0xfff2, "P_INITIAL_DATA", Data, 86..=MAX, NONE, Connection, First, Len::Exact(0);
    InitialMeta = 0xfff1, "P_INITIAL_META", Meta, 86..=MAX, NONE, Connection, First, Len::Exact(0);
    ConnectionFeatures = 0xfffe, "P_CONNECTION_FEATURES", Data, 86..=MAX, NONE, Connection, Features, Len::Exact(72);
    AuthChallenge = 0x10, "P_AUTH_CHALLENGE", Data, 86..=MAX, NONE, Connection, AuthChallenge, Len::Between(64, 128);
    AuthResponse = 0x11, "P_AUTH_RESPONSE", Data, 86..=MAX, NONE, Connection, AuthResponse, Len::Between(1, 64);
    Protocol = 0x0b, "P_PROTOCOL", Data, 86..=MAX, NONE, Connection, Params, Len::Protocol;
    ProtocolUpdate = 0x2d, "P_PROTOCOL_UPDATE", Data, 100..=MAX, NONE, Connection, Connected, Len::Protocol;
    SyncParam = 0x0a, "P_SYNC_PARAM", Data, 86..=88, NONE, Volume, Params, Len::SyncParam;
    SyncParam89 = 0x23, "P_SYNC_PARAM89", Data, 89..=MAX, NONE, Volume, Params, Len::SyncParam89;
    Sizes = 0x0d, "P_SIZES", Data, 86..=MAX, NONE, Volume, Params, Len::Sizes;
    Uuids = 0x0c, "P_UUIDS", Data, 86..=MAX, NONE, Volume, Params, Len::Exact(48);
    State = 0x0e, "P_STATE", Data, 86..=MAX, NONE, Volume, Params, Len::Exact(4);
    SyncUuid = 0x0f, "P_SYNC_UUID", Data, 86..=MAX, NONE, Volume, Connected, Len::Exact(8);
    StateChgReq = 0x12, "P_STATE_CHG_REQ", Data, 86..=MAX, NONE, Volume, Connected, Len::Exact(8);
    StateChgReply = 0x1d, "P_STATE_CHG_REPLY", Meta, 86..=MAX, NONE, Volume, Connected, Len::Exact(4);
    ConnStChgReq = 0x2a, "P_CONN_ST_CHG_REQ", Data, 100..=MAX, NONE, Connection, Connected, Len::Exact(8);
    ConnStChgReply = 0x2b, "P_CONN_ST_CHG_REPLY", Meta, 100..=MAX, NONE, Connection, Connected, Len::Exact(4);
    Data = 0x00, "P_DATA", Data, 86..=MAX, NONE, Volume, Connected, Len::Payload { empty_ok: true };
    Trim = 0x31, "P_TRIM", Data, 86..=MAX, TRIM, Volume, Connected, Len::Exact(28);
    Zeroes = 0x36, "P_ZEROES", Data, 86..=MAX, WZEROES, Volume, Connected, Len::Exact(28);
    WriteSame = 0x34, "P_WSAME", Data, 86..=MAX, WSAME, Volume, Connected, Len::WriteSame;
    Barrier = 0x03, "P_BARRIER", Data, 86..=MAX, NONE, Connection, Connected, Len::Exact(8);
    BarrierAck = 0x1c, "P_BARRIER_ACK", Meta, 86..=MAX, NONE, Connection, Connected, Len::Exact(8);
    UnplugRemote = 0x07, "P_UNPLUG_REMOTE", Data, 86..=MAX, NONE, Volume, Connected, Len::Exact(0);
    RecvAck = 0x15, "P_RECV_ACK", Meta, 86..=MAX, NONE, Volume, Connected, Len::Exact(24);
    WriteAck = 0x16, "P_WRITE_ACK", Meta, 86..=MAX, NONE, Volume, Connected, Len::Exact(24);
    RsWriteAck = 0x17, "P_RS_WRITE_ACK", Meta, 86..=MAX, NONE, Volume, Connected, Len::Exact(24);
    Superseded = 0x18, "P_SUPERSEDED", Meta, 86..=MAX, NONE, Volume, Connected, Len::Exact(24);
    RetryWrite = 0x2c, "P_RETRY_WRITE", Meta, 100..=MAX, NONE, Volume, Connected, Len::Exact(24);
    NegAck = 0x19, "P_NEG_ACK", Meta, 86..=MAX, NONE, Volume, Connected, Len::Exact(24);
    DataRequest = 0x08, "P_DATA_REQUEST", Data, 86..=MAX, NONE, Volume, Connected, Len::Exact(24);
    DataReply = 0x01, "P_DATA_REPLY", Data, 86..=MAX, NONE, Volume, Connected, Len::Payload { empty_ok: false };
    NegDreply = 0x1a, "P_NEG_DREPLY", Meta, 86..=MAX, NONE, Volume, Connected, Len::Exact(24);
    RsDataRequest = 0x09, "P_RS_DATA_REQUEST", Data, 86..=MAX, NONE, Volume, Connected, Len::Exact(24);
    RsThinReq = 0x32, "P_RS_THIN_REQ", Data, 86..=MAX, THIN_RESYNC, Volume, Connected, Len::Exact(24);
    CsumRsRequest = 0x21, "P_CSUM_RS_REQUEST", Data, 89..=MAX, NONE, Volume, Connected, Len::CsumDigest;
    RsDataReply = 0x02, "P_RS_DATA_REPLY", Data, 86..=MAX, NONE, Volume, Connected, Len::Payload { empty_ok: false };
    RsDeallocated = 0x33, "P_RS_DEALLOCATED", Data, 86..=MAX, THIN_RESYNC, Volume, Connected, Len::Exact(16);
    RsIsInSync = 0x22, "P_RS_IS_IN_SYNC", Meta, 89..=MAX, NONE, Volume, Connected, Len::Exact(24);
    NegRsDreply = 0x1b, "P_NEG_RS_DREPLY", Meta, 86..=MAX, NONE, Volume, Connected, Len::Exact(24);
    RsCancel = 0x29, "P_RS_CANCEL", Meta, 96..=MAX, NONE, Volume, Connected, Len::Exact(24);
    OutOfSync = 0x28, "P_OUT_OF_SYNC", Data, 96..=MAX, NONE, Volume, Connected, Len::Exact(16);
    Bitmap = 0x04, "P_BITMAP", Data, 86..=MAX, NONE, Volume, Connected, Len::Bitmap;
    CompressedBitmap = 0x24, "P_COMPRESSED_BITMAP", Data, 90..=MAX, NONE, Volume, Connected, Len::CompressedBitmap;
    OvRequest = 0x1e, "P_OV_REQUEST", Data, 88..=MAX, NONE, Volume, Connected, Len::Exact(24);
    OvReply = 0x1f, "P_OV_REPLY", Data, 88..=MAX, NONE, Volume, Connected, Len::VerifyDigest;
    OvResult = 0x20, "P_OV_RESULT", Meta, 88..=MAX, NONE, Volume, Connected, Len::Exact(24);
    Ping = 0x13, "P_PING", Meta, 86..=MAX, NONE, Connection, Params, Len::Exact(0);
    PingAck = 0x14, "P_PING_ACK", Meta, 86..=MAX, NONE, Connection, Params, Len::Exact(0);
    DelayProbe = 0x27, "P_DELAY_PROBE", Both, 93..=MAX, NONE, Volume, Params, Len::Exact(8);
}

impl Kind {
    /// The command number in the header.
    #[must_use]
    pub const fn command(self) -> u16 {
        self as u16
    }

    /// The command that carries resync settings in this version.
    #[must_use]
    pub const fn sync_param(version: Version) -> Self {
        if version.nr() >= 89 { Self::SyncParam89 } else { Self::SyncParam }
    }
}
