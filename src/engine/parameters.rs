//! What this node tells the peer about itself: settings, sizes, identifiers, state.

use crate::engine::Engine;
use crate::engine::md::MdDone;
use crate::units::{Sectors, VolumeNr};
use crate::wire::feature::{FeatureFlags, Version};
use crate::wire::packet::Packet;
use crate::wire::params::{ConnFlags, Controller, Protocol, SyncParam};
use crate::wire::sizes::{DdsFlags, QueueLimits, Sizes};
use crate::wire::state::{ConnState, DiskState};
use crate::wire::uuids::{UuidFlags, Uuids};

impl Engine {
    /// Largest read or write request now, in bytes.
    pub(crate) fn request_bytes_max(&self) -> u32 {
        let by_version = Version::new(self.conn.version).unwrap_or(Version::MAX).request_bytes_max();
        if self.conn.version >= 94 {
            return by_version;
        }
        let announced = self.volumes.values().map(|vol| vol.peer.max_bio_bytes).filter(|b| *b >= 4096).min();
        announced.map_or(by_version, |b| by_version.min(b / 4096 * 4096))
    }

    pub(crate) fn protocol_packet(&self, discard_my_data: bool) -> Option<Protocol> {
        let opts = self.conn.opts.as_ref()?;
        Some(Protocol {
            protocol: opts.protocol,
            after_sb_0p: opts.after_sb_0p,
            after_sb_1p: opts.after_sb_1p,
            after_sb_2p: opts.after_sb_2p,
            conn_flags: ConnFlags::NONE
                .with_if(ConnFlags::DISCARD_MY_DATA, discard_my_data)
                .with_if(ConnFlags::DRY_RUN, opts.tentative && self.conn.version >= 92),
            two_primaries: opts.two_primaries,
            integrity_alg: opts.integrity_alg.clone(),
        })
    }

    /// Announces changed settings while connected.
    pub(crate) fn send_protocol_update(&mut self) {
        if let Some(protocol) = self.protocol_packet(false) {
            self.send_data(VolumeNr(0), Packet::ProtocolUpdate(protocol));
        }
    }

    /// What introduces a volume to the peer (wire.md 4.1 step 5).
    pub(crate) fn send_volume_parameters(&mut self, v: VolumeNr) {
        // Identifiers that a crash could take back are not shown to the peer: everything waits for them, in its order.
        let settled = |disk: &super::volume::LocalDisk| !disk.sb_dirty;
        if self.volumes.get(&v).is_some_and(|vol| !vol.md.is_idle() || !vol.disk.as_ref().is_none_or(settled)) {
            self.hold_data();
            self.md_superblock(v, Some(MdDone::Release(self.conn.link)));
        }
        self.send_sync_param(v);
        self.send_sizes(v);
        if self.volumes.get(&v).is_some_and(|vol| vol.state.disk >= DiskState::Negotiating)
            && let Some(packet) = self.uuids_packet(v, UuidFlags::NONE)
        {
            self.send_data(v, packet);
        }
        self.send_state(v);
    }

    pub(crate) fn send_sync_param(&mut self, v: VolumeNr) {
        let version = self.conn.version;
        let (Some(vol), Some(opts)) = (self.volumes.get(&v), self.conn.opts.as_ref()) else { return };
        let rates = if vol.disk.is_some() { vol.opts.announced } else { super::options::AnnouncedRates::default() };
        let packet = SyncParam {
            resync_rate_kib: rates.resync_rate,
            verify_alg: (version >= 88).then(|| opts.verify_alg.clone()),
            csums_alg: (version >= 89).then(|| opts.csums_alg.clone()),
            controller: (version >= 95).then_some(Controller {
                plan_ahead_ds: rates.c_plan_ahead,
                delay_target_ds: rates.c_delay_target,
                fill_target_sectors: rates.c_fill_target,
                max_rate_kib: rates.c_max_rate,
            }),
        };
        self.send_data(v, Packet::SyncParam(packet));
    }

    /// Sends `P_SIZES`.
    pub(crate) fn send_sizes(&mut self, v: VolumeNr) {
        self.send_sizes_with(v, false, DdsFlags::NONE);
    }

    /// Sends `P_SIZES`; `ask` sends a current size of 0, which makes the peer answer.
    pub(crate) fn send_sizes_with(&mut self, v: VolumeNr, ask: bool, dds_flags: DdsFlags) {
        let max_bio_size = Version::new(self.conn.version).unwrap_or(Version::MAX).request_bytes_max();
        let wsame = FeatureFlags(self.conn.features).has(FeatureFlags::WSAME);
        let Some(vol) = self.volumes.get_mut(&v) else { return };
        let usable = vol.disk.as_ref().filter(|_| vol.state.disk >= DiskState::Negotiating);
        vol.told_capacity = usable.map_or(Sectors(0), |d| d.capacity);
        let geometry = usable.map(|d| d.geometry);
        let packet = Sizes {
            d_size: vol.told_capacity,
            u_size: if usable.is_some() { vol.opts.size } else { Sectors(0) },
            c_size: if ask { Sectors(0) } else { vol.size },
            max_bio_size,
            queue_order_type: 0,
            dds_flags,
            limits: wsame.then(|| QueueLimits {
                physical_block_size: geometry.map_or(512, |g| g.physical_block_size),
                logical_block_size: geometry.map_or(512, |g| g.logical_block_size),
                alignment_offset: 0,
                io_min: geometry.map_or(512, |g| g.logical_block_size),
                io_opt: 0,
                discard_enabled: geometry.is_some_and(|g| g.discard),
                discard_zeroes_data: geometry.is_some_and(|g| g.discard_zeroes),
                write_same_capable: false,
            }),
        };
        self.send_data(v, Packet::Sizes(packet));
    }

    pub(crate) fn uuids_packet(&mut self, v: VolumeNr, flags: UuidFlags) -> Option<Packet> {
        let vol = self.volumes.get_mut(&v)?;
        let disk = vol.disk.as_ref()?;
        vol.bits_sent = disk.bitmap.count();
        let flags = flags
            .with_if(UuidFlags::DISCARD_MY_DATA, vol.discard_my_data)
            .with_if(UuidFlags::CRASHED_PRIMARY, vol.crashed_primary)
            .with_if(
                UuidFlags::INCONSISTENT,
                vol.attach_disk == DiskState::Inconsistent && vol.state.disk == DiskState::Negotiating,
            );
        Some(Packet::Uuids(Uuids {
            current: disk.sb.current,
            bitmap: disk.sb.bitmap,
            history: disk.sb.history,
            bits_set: vol.bits_sent,
            flags,
        }))
    }

    /// Sends the identifiers as they are.
    pub(crate) fn send_uuids_now(&mut self, v: VolumeNr) {
        if let Some(packet) = self.uuids_packet(v, UuidFlags::NONE) {
            self.send_data_first(v, packet);
        }
    }

    /// Sends the identifiers with "skip the first sync".
    pub(crate) fn send_uuids_skip_sync(&mut self, v: VolumeNr) {
        if let Some(packet) = self.uuids_packet(v, UuidFlags::SKIP_INITIAL_SYNC) {
            self.send_data(v, packet);
        }
    }

    /// Sends the identifiers as soon as they are on stable storage; packets after them wait.
    pub(crate) fn send_uuids_durably(&mut self, v: VolumeNr) {
        if self.conn.link.is_none() || self.conn.state < ConnState::WfReportParams {
            return;
        }
        let settled =
            self.volumes.get(&v).is_some_and(|vol| vol.md.is_idle() && vol.disk.as_ref().is_some_and(|d| !d.sb_dirty));
        if settled && self.conn.hold == 0 {
            self.send_uuids_now(v);
        } else {
            self.hold_data();
            self.md_superblock(v, Some(MdDone::SendUuids(self.conn.link)));
        }
    }

    /// Sends this volume's present state.
    pub(crate) fn send_state(&mut self, v: VolumeNr) {
        if let Some(state) = self.volumes.get(&v).map(|vol| vol.state) {
            self.send_data(v, Packet::State(state.word()));
        }
    }
}
