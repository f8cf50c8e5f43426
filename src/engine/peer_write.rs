//! Replicated writes as they come: what is checked before one is accepted (wire.md 5, 10).
//!
//! Takes in the data packets of the peer and the data of a resync. Gives out accepted peer requests, or refuses: a packet that
//! is not legal ends the connection, one that finds no disk is answered with `P_NEG_ACK`. Invariant: nothing reaches beyond
//! the end of the device.

use bytes::Bytes;

use crate::engine::Engine;
use crate::engine::fault::Fault;
use crate::engine::peer_request::{PeerKind, WriteIo};
use crate::units::{BlockId, SectorRange, VolumeNr};
use crate::wire::data::{Data, DpFlags, Trim};
use crate::wire::feature::FeatureFlags;
use crate::wire::packet::Packet;
use crate::wire::state::{ConnState, DiskState, Role};

impl Engine {
    pub(crate) fn checked_range(
        &mut self,
        v: VolumeNr,
        name: &'static str,
        range: Option<SectorRange>,
    ) -> Option<SectorRange> {
        let size = self.volumes.get(&v).map_or(0, |vol| vol.size.0);
        match range {
            Some(range) if !range.is_empty() && range.end().0 <= size => Some(range),
            _ => {
                self.peer_error(name, format!("range {range:?} is not inside the device of {size} sectors"));
                None
            }
        }
    }

    /// A replicated write with data.
    pub(crate) fn on_data(&mut self, v: VolumeNr, p: Data) {
        let bytes = p.payload.len();
        if bytes == 0 {
            // An empty write is a flush request of old peers; acknowledged like a write of size 0.
            return self.on_empty_write(v, &p);
        }
        let Some(range) = self.checked_range(v, "P_DATA", SectorRange::from_bytes(p.sector, bytes as u64)) else {
            return;
        };
        if let Some(vol) = self.volumes.get_mut(&v) {
            vol.counters.received += range.count.0;
        }
        self.accept_write(v, range, p.block_id, p.flags, WriteIo::Data(p.payload));
    }

    /// A replicated discard or write-zeroes.
    pub(crate) fn on_trim(&mut self, v: VolumeNr, p: &Trim, zeroes: bool) {
        let name = if zeroes { "P_ZEROES" } else { "P_TRIM" };
        let Some(range) = self.checked_range(v, name, SectorRange::from_bytes(p.sector, u64::from(p.size))) else {
            return;
        };
        let wzeroes = FeatureFlags(self.conn.features).has(FeatureFlags::WZEROES);
        // Without P_ZEROES a sender may mean either; zeroes are right for both.
        let io = if zeroes {
            WriteIo::Zeroes { may_unmap: p.flags.has(DpFlags::DISCARD) }
        } else if wzeroes {
            WriteIo::Discard
        } else {
            WriteIo::Zeroes { may_unmap: true }
        };
        // The disk knows no durable form of these: a flush behind it makes it so.
        let flags = p.flags.with_if(DpFlags::FLUSH, p.flags.has(DpFlags::FUA));
        self.accept_write(v, range, p.block_id, flags, io);
    }

    pub(crate) fn on_empty_write(&mut self, v: VolumeNr, p: &Data) {
        if !p.flags.has(DpFlags::FLUSH) {
            return self.peer_error("P_DATA", String::from("carries no data and no flush flag"));
        }
        self.rx.open().writes += 1;
        if self.wants_ack(p.flags, DpFlags::SEND_WRITE_ACK) {
            self.send_ack(v, p.sector, p.block_id, 0, Packet::WriteAck);
        }
    }

    pub(crate) fn accept_write(
        &mut self,
        v: VolumeNr,
        range: SectorRange,
        block_id: BlockId,
        mut flags: DpFlags,
        io: WriteIo,
    ) {
        let miscounts = self.faulty(Fault::BarrierMiscounted) && !matches!(io, WriteIo::Data(_));
        let two_primaries = self.two_primaries();
        let uncounted = self.faulty(Fault::UndecidedEpochAcked) && self.state(v).role == Role::Primary;
        let Some(vol) = self.volumes.get_mut(&v) else { return };
        if vol.state.role == Role::Primary && !two_primaries {
            return self
                .peer_error("P_DATA", String::from("a write arrived while this node is the only Primary allowed"));
        }
        if vol.state.conn < ConnState::Connected && !vol.peer.decided {
            let conn = vol.state.conn;
            return self.peer_error("P_DATA", format!("not expected in state {conn}"));
        }
        let epoch = self.rx.open();
        epoch.writes += u32::from(!miscounts);
        let (id, only_copy) = (epoch.id, vol.state.pdsk < DiskState::Inconsistent);
        if !vol.disk_usable() {
            let size = if let WriteIo::Data(data) = &io { u32::try_from(data.len()).unwrap_or(0) } else { 0 };
            self.send_ack(v, range.start, block_id, size, Packet::NegAck);
            return self.conflicts_over(v, range);
        }
        epoch.active += u32::from(!uncounted);
        vol.counters.unacked += 1;
        if self.faulty(Fault::WriteAckAtReceipt) && self.conn.version >= 100 && flags.has(DpFlags::SEND_WRITE_ACK) {
            let size = u32::try_from(range.bytes()).unwrap_or(u32::MAX);
            self.send_ack(v, range.start, block_id, size, Packet::WriteAck);
            flags = flags.with_if(DpFlags::SEND_WRITE_ACK, false);
        }
        if only_copy {
            // Now, not when its turn comes: the sender may attach a disk meanwhile, and the bitmap go to it.
            self.set_bits(v, range);
        }
        self.accept(v, PeerKind::Write { flags }, range, block_id, Some(io), Some(id));
    }

    /// Resync data that this node asked for goes to the disk like a write of the peer.
    pub(crate) fn accept_resync_write(&mut self, v: VolumeNr, range: SectorRange, data: Option<Bytes>) {
        let io = data.map_or(WriteIo::Zeroes { may_unmap: true }, WriteIo::Data);
        self.accept(v, PeerKind::ResyncWrite, range, BlockId::SYNCER, Some(io), None);
    }
}
