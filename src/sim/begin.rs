//! How a run begins: fresh metadata, and what the plan wants to have happened before.

use super::node::{DeviceIo, Reason};
use super::plan::{Order, Start};
use super::world::{A, B, Checker, World};
use crate::engine::event::Command;
use crate::meta::MdFlags;
use crate::wire::state::DiskState;

impl World {
    /// Writes fresh metadata everywhere and brings the nodes up as the plan begins.
    pub(super) fn begin(&mut self) {
        for node in [A, B] {
            for volume in 0..self.differs.len() {
                let label = self.dice.engine.next_u64() | 1;
                if let Err(error) = self.nodes[node].create_md(volume, label) {
                    self.fail(Checker::Metadata, format!("create-md: {error}"));
                }
            }
            self.restart(node, None, false);
        }
        self.settle_down(3);
        self.skipping = true;
        for volume in 0..self.differs.len() {
            if self.params.start == Start::FullSync {
                self.order(A, volume, Order::Primary { force: true });
            } else if self.nodes[A].volumes[volume].seen.disk == DiskState::Inconsistent {
                // Unless a hasty operator was first: there are data by now, and bits that must not be cleared.
                self.command(A, volume, Order::NewUuid, Command::NewCurrentUuid { clear_bitmap: true });
            }
        }
        self.settle_down(2);
        self.skipping = false;
        self.skipped_on = self.links.len();
        match self.params.start {
            Start::Skipped | Start::FullSync => {}
            Start::SplitBrain => self.begin_split(),
            Start::Recreated => self.begin_odd(true),
            Start::OddFlags => self.begin_odd(false),
        }
    }

    fn begin_split(&mut self) {
        for node in [A, B] {
            self.order(node, 0, Order::Disconnect { force: false });
        }
        self.settle_down(2);
        for node in [A, B] {
            for volume in 0..self.differs.len() {
                self.order(node, volume, Order::Primary { force: false });
                self.client(super::plan::ClientOp::Write { fua: false }, volume, 64 * (node as u64), 8, node);
            }
        }
        self.settle_down(2);
        for node in [A, B] {
            for volume in 0..self.differs.len() {
                self.order(node, volume, Order::Secondary { close: true });
            }
        }
    }

    /// Node B comes back with metadata that do not fit its past.
    fn begin_odd(&mut self, recreate: bool) {
        self.crash(B, false);
        for volume in 0..self.differs.len() {
            if recreate {
                self.nodes[B].volumes[volume].named.insert(Reason::Metadata);
                let label = self.dice.engine.next_u64() | 1;
                if let Err(error) = self.nodes[B].create_md(volume, label) {
                    self.fail(Checker::Metadata, format!("create-md: {error}"));
                }
            } else {
                let bits = u32::try_from(self.dice.engine.below(64)).unwrap_or(0);
                self.odd_flags(volume, bits);
            }
        }
        self.restart(B, None, false);
    }

    fn odd_flags(&mut self, volume: usize, bits: u32) {
        let vol = &mut self.nodes[B].volumes[volume];
        let place = vol.place();
        let mut io = DeviceIo { device: vol.meta_device(), fuse: None };
        let Ok(open) = crate::meta::offline::open(&mut io, place) else { return };
        let mut superblock = open.superblock;
        // A disk that is said to be good stays one that is not: the other way round would be a lie of the medium, and so
        // would it be to forget that bits are not all in the bitmap (a schedule may begin before this).
        let good = MdFlags::CONSISTENT.with(MdFlags::WAS_UP_TO_DATE).bits();
        let unwritten = MdFlags::PRIMARY_IND.with(MdFlags::CRASHED_PRIMARY).with(MdFlags::FULL_SYNC).bits();
        let old = superblock.flags.bits();
        let kept = (old & good & bits) | (old & unwritten) | (old & !0x3f);
        superblock.flags = MdFlags::from_bits(kept | (bits & !good));
        let bytes = superblock.encode();
        let offset = open.layout.superblock_byte();
        use crate::meta::MetaIo as _;
        let _ = io.write_at(offset, &bytes);
        let _ = io.flush();
        vol.named.insert(Reason::Metadata);
    }
}
