//! Bitmap exchange before a resync (wire.md 8): sending in slices, one volume at a time, and merging what arrives.
//!
//! While a bitmap is being sent the data socket carries nothing else; other packets wait. The future source sends first,
//! the future target merges, answers with the union and waits for `P_SYNC_UUID`; the source merges that and starts.
//!
//! A target whose disk goes and comes back meanwhile may answer the bitmap of the first attach when the source has
//! begun a second exchange: that answer then counts, the source still sends its second bitmap before it starts, and the
//! target merges it while it waits.

use bytes::Bytes;

use crate::engine::Engine;
use crate::engine::action::{Action, Level};
use crate::engine::dirty::Bitmap;
use crate::engine::event::Socket;
use crate::engine::fault::Fault;
use crate::units::VolumeNr;
use crate::wire::bitmap::{BitSink, BitSource, BitmapReceiver, BitmapSender, Progress, SendStep};
use crate::wire::error::BitmapFault;
use crate::wire::feature::Version;
use crate::wire::kind::Kind;
use crate::wire::packet::Packet;
use crate::wire::state::{ConnState, DiskState};

/// Words scanned in one slice: well under a millisecond. In tests so few that small devices have several slices.
const SLICE_WORDS: u64 = if cfg!(test) { 8 } else { 1 << 16 };

/// A bitmap that arrives.
pub(crate) type Incoming = BitmapReceiver;

/// A bitmap that is being sent.
#[derive(Debug)]
pub(crate) struct Outgoing {
    volume: VolumeNr,
    sender: BitmapSender,
}

impl BitSource for Bitmap {
    fn bits(&self) -> u64 {
        self.bits()
    }
    fn word(&self, index: u64) -> u64 {
        usize::try_from(index).ok().and_then(|i| self.words().get(i)).copied().unwrap_or(0)
    }
}

struct Merge<'a>(&'a mut Bitmap);

impl BitSink for Merge<'_> {
    fn set_range(&mut self, first: u64, end: u64) {
        self.0.set_range(first..end);
    }
    fn or_word(&mut self, index: u64, word: u64) {
        self.0.or_words(index, &[word]);
    }
}

impl Engine {
    /// The bitmap of this volume is to be sent as soon as the packets before it are queued.
    pub(crate) fn start_bitmap(&mut self, v: VolumeNr) {
        // What the peer made of writes sent before is in the bitmap, or nowhere: wait for their barrier.
        self.epochs.close();
        self.send_due_barrier();
        let after = self.epochs.last();
        if let Some(vol) = self.volumes.get_mut(&v) {
            vol.send_bitmap = true;
            vol.bitmap_after = after;
        }
        if self.conn.relaxed_epochs && self.epochs.last().is_some() {
            self.send_data(v, Packet::UnplugRemote);
        }
    }

    /// Sends a slice of the bitmap that is due, if one is.
    pub(crate) fn pump_bitmap(&mut self) {
        if self.bitmap_tx.is_none() {
            let due = |vol: &&super::volume::Volume| {
                vol.send_bitmap
                    && !Self::undo_not_ready(vol)
                    // What is frozen may wait for the end of this exchange.
                    && vol.bitmap_after.is_none_or(|nr| self.epochs.is_answered(nr))
            };
            let Some(v) = self.volumes.values().find(due).map(|vol| vol.nr) else { return };
            if self.conn.link.is_none() || self.data_held() {
                return;
            }
            let version = Version::new(self.conn.version).unwrap_or(Version::MAX);
            let use_rle = self.conn.opts.as_ref().is_none_or(|o| o.use_rle);
            let Some(vol) = self.volumes.get_mut(&v) else { return };
            vol.send_bitmap = false;
            let Some(disk) = vol.disk.as_ref() else { return };
            let sender = BitmapSender::new(disk.bitmap.bits(), version, use_rle);
            self.bitmap_tx = Some(Outgoing { volume: v, sender });
            self.hold_data();
        }
        let mut packets = Vec::new();
        let mut words = SLICE_WORDS;
        let Some(tx) = self.bitmap_tx.as_mut() else { return };
        let v = tx.volume;
        let Some(disk) = self.volumes.get(&v).and_then(|vol| vol.disk.as_ref()) else {
            self.log(Level::Warn, Some(v), "the disk went away during the bitmap exchange");
            self.bitmap_tx = None;
            self.release_data();
            return self.drop_link(ConnState::NetworkFailure);
        };
        let done = loop {
            match tx.sender.step(&disk.bitmap, words) {
                SendStep::Packet(packet) => packets.push(packet),
                SendStep::Again => break false,
                SendStep::Done => break true,
            }
            words = words.saturating_sub(512);
            if words == 0 {
                break false;
            }
        };
        for packet in packets {
            self.send_data_now(v, packet);
        }
        if !done {
            self.out.push(Action::Continue);
            return;
        }
        self.bitmap_tx = None;
        self.send_urgent();
        self.release_data();
        match self.state(v).conn {
            ConnState::WfBitMapT => self.wait_sync_uuid(v),
            ConnState::WfBitMapS if self.volumes.get(&v).is_some_and(|vol| vol.bitmap_answered && !vol.send_bitmap) => {
                self.start_source(v);
            }
            _ => {}
        }
    }

    /// Whether packets that begin a resync cross the loss of a disk, own or the peer's, for which it was given up: they
    /// mean nothing any more, and there will be others when both have a disk again.
    pub(crate) fn resync_given_up(&self, v: VolumeNr) -> bool {
        let state = self.state(v);
        state.conn == ConnState::Connected
            && (state.disk <= DiskState::Negotiating || state.pdsk <= DiskState::Negotiating)
    }

    /// Whether `packet` must not come now: nothing but its other packets comes between those of a bitmap (wire.md 8.4).
    pub(crate) fn interrupts_bitmap(&self, socket: Socket, v: VolumeNr, packet: &Packet) -> bool {
        let part = |vol: &super::volume::Volume| {
            vol.nr == v && matches!(packet, Packet::Bitmap(_) | Packet::CompressedBitmap(_))
        };
        socket == Socket::Data && self.volumes.values().any(|vol| vol.bitmap_rx.is_some() && !part(vol))
    }

    /// A chunk of the peer's bitmap.
    pub(crate) fn on_bitmap(&mut self, v: VolumeNr, body: Bytes, compressed: bool) {
        let name = if compressed { "P_COMPRESSED_BITMAP" } else { "P_BITMAP" };
        let version = Version::new(self.conn.version).unwrap_or(Version::MAX);
        let conn = self.state(v).conn;
        if self.resync_given_up(v) {
            return;
        }
        if !matches!(conn, ConnState::WfBitMapS | ConnState::WfBitMapT | ConnState::WfSyncUuid) {
            return self.unexpected(if compressed { Kind::CompressedBitmap } else { Kind::Bitmap }, conn);
        }
        let replaces = self.faulty(Fault::BitmapReplaced);
        let Some(vol) = self.volumes.get_mut(&v) else { return };
        let Some(disk) = vol.disk.as_mut() else { return };
        let bits = disk.bitmap.bits();
        if replaces && vol.bitmap_rx.is_none() {
            disk.bitmap.clear_all();
        }
        let rx = vol.bitmap_rx.get_or_insert_with(|| BitmapReceiver::new(bits, version));
        let sink = &mut Merge(&mut disk.bitmap);
        let result: Result<Progress, BitmapFault> =
            if compressed { rx.compressed(body, sink, u64::MAX / 64) } else { rx.plain(&body, sink) };
        match result {
            Ok(Progress::Complete) => {
                vol.bitmap_rx = None;
                let unsent = vol.send_bitmap || self.bitmap_tx.as_ref().is_some_and(|tx| tx.volume == v);
                match conn {
                    ConnState::WfBitMapT => self.start_answer(v),
                    // The source has begun anew meanwhile, and takes the answer to its first bitmap for both.
                    ConnState::WfSyncUuid => {}
                    _ if unsent => vol.bitmap_answered = true,
                    _ => self.start_source(v),
                }
            }
            Ok(Progress::More | Progress::Again) => {}
            Err(fault) => self.peer_error(name, fault.to_string()),
        }
    }
}
