//! The checkers that look at the whole world, between events and at the end.
//!
//! * P1 ([`World::check_promises`]): every good disk holds what its node promised. Not checked on a disk that is not UpToDate, nor
//!   while operations are in flight on it.
//! * P3, P4 ([`World::check_replicas`]): replicas are equal where both nodes call them equal, and differ only where a bit says so.
//!   Looked at only when nothing is under way, and P4 only while both nodes have their disks and agree on whether they are
//!   connected (a difference that only a hot activity-log extent covers is seen after the crash that makes it matter).
//! * Memory: collections of the engine against their limits, at every look.
//! * Status: the snapshot says what was announced. Not checked: speeds, texts.
//! * P6, requests: at the end of a run ([`World::check_settled`]).
//!
//! P2 is in [`super::model`], P5 in [`super::act`], metadata in [`super::operator`] (every restart reads them).

use std::collections::BTreeMap;

use super::device::PAGE;
use super::stamp::{self, Content, SECTOR};
use super::world::{A, B, Checker, World};
use crate::limits::{CONGESTION_PHASES_MAX, PEER_REQUESTS_MAX, RESYNC_UNACKED_MAX};
use crate::wire::state::{ConnState, DiskState, Role};

impl World {
    /// Nothing is under way on the network or on the disks, and no engine has work to do.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        let gone = |link: &super::net::Link| link.open == [false; 2];
        let link = self.links.last().is_none_or(|link| gone(link) || (link.is_quiet() && link.losing == [false; 2]));
        link && self.nodes.iter().all(|n| {
            n.volumes.iter().all(|vol| vol.ops.is_empty() && vol.undo.is_quiet())
                && !n.batch
                && n.queued.is_empty()
                && n.helpers.is_empty()
        }) && self.pending.is_empty()
    }

    /// Looks at everything that can be looked at now.
    pub fn check(&mut self) {
        self.check_memory();
        self.check_status();
        self.check_stuck();
        if self.is_quiet() {
            self.note_drained();
            self.check_views();
            self.check_replicas();
            self.check_promises();
            self.check_undos();
        }
    }

    fn state(&self, node: usize, volume: usize) -> crate::engine::state::VolumeState {
        self.nodes[node].volumes[volume].seen
    }

    fn both_good(&self, volume: usize) -> bool {
        [A, B].iter().all(|n| {
            let s = self.state(*n, volume);
            self.nodes[*n].is_up()
                && s.conn == ConnState::Connected
                && s.disk == DiskState::UpToDate
                && s.pdsk == DiskState::UpToDate
        })
    }

    fn note_drained(&mut self) {
        for volume in 0..self.differs.len() {
            if self.both_good(volume)
                && let Some(node) = self.primary(volume)
            {
                let engine = self.nodes[node].engine.as_ref();
                let bits = engine.and_then(|engine| engine.bitmap(Self::volume_nr(volume)));
                let frozen = self.frozen_blocks(node, volume);
                self.model.drained(volume, node, 1 - node, |blocks| {
                    frozen.iter().any(|f| f.start < blocks.end && blocks.start < f.end)
                        || bits.is_some_and(|bits| bits.count() > 0 && bits.any(blocks))
                });
            }
        }
    }

    /// Blocks of writes that a node is to send again: the other one lacks them, whatever both say of their disks.
    pub(super) fn frozen_blocks(&self, node: usize, volume: usize) -> Vec<std::ops::Range<u64>> {
        let Some(engine) = self.nodes[node].engine.as_ref() else { return Vec::new() };
        let ranges = engine.frozen_writes(Self::volume_nr(volume));
        ranges.iter().map(|r| r.start.0 / 8..r.end().0.div_ceil(8)).collect()
    }

    pub(super) fn bits(&self, node: usize, volume: usize) -> Option<&crate::engine::dirty::Bitmap> {
        let engine = self.nodes[node].engine.as_ref()?;
        engine.bitmap(Self::volume_nr(volume))
    }

    /// P3 and P4.
    pub(super) fn check_replicas(&mut self) {
        for volume in 0..self.differs.len() {
            let (Some(a), Some(b)) = (self.bits(A, volume), self.bits(B, volume)) else { continue };
            let connected = [A, B].map(|n| self.state(n, volume).conn >= ConnState::Connected);
            if connected[A] != connected[B] {
                continue;
            }
            let frozen = [A, B].map(|n| self.frozen_blocks(n, volume)).concat();
            let odd = self.differs[volume].iter().copied().find(|page| {
                let bit = crate::units::BmBit(*page);
                !a.test(bit) && !b.test(bit) && !frozen.iter().any(|f| f.contains(page))
            });
            let clean = a.count() == 0 && b.count() == 0;
            let Some(page) = odd else { continue };
            if self.both_good(volume) && clean {
                let text = format!(
                    "block {page} of volume {volume} differs, both nodes are UpToDate and clean{}",
                    self.show(volume, page)
                );
                return self.fail(Checker::Equal, text);
            }
            // An operator may have thrown away what was known about it, by new metadata.
            if self.nodes.iter().any(|n| !n.volumes[volume].named.is_empty()) {
                continue;
            }
            let text = format!("block {page} of volume {volume} differs and no bit says so{}", self.show(volume, page));
            return self.fail(Checker::Covered, text);
        }
    }

    fn show(&self, volume: usize, page: u64) -> String {
        let contents = [A, B].map(|n| {
            let mut bytes = vec![0; SECTOR];
            let mut list = Vec::new();
            for i in 0..8 {
                self.nodes[n].volumes[volume].data.read_now(page * PAGE + i * SECTOR as u64, &mut bytes);
                list.push(match stamp::content(&bytes, page * 8 + i) {
                    Content::Zero => String::from("0"),
                    Content::Write(id) => id.0.to_string(),
                    Content::Alien => String::from("?"),
                });
            }
            list.join(",")
        });
        format!(" (writes by sector: A {}, B {})", contents[A], contents[B])
    }

    /// P1: what the disks hold against what was promised.
    pub(super) fn check_promises(&mut self) {
        for volume in 0..self.differs.len() {
            let all = std::mem::take(&mut self.unchecked_all[volume]);
            for node in [A, B] {
                if !self.nodes[node].is_up() || self.state(node, volume).disk != DiskState::UpToDate {
                    self.unchecked_all[volume] |= all;
                    continue;
                }
                let pages = std::mem::take(&mut self.unchecked[node][volume]);
                let sectors: Vec<u64> = if all {
                    self.model.touched(volume)
                } else {
                    pages
                        .iter()
                        .flat_map(|page| page * 8..page * 8 + 8)
                        .filter(|s| self.model.is_touched(volume, *s))
                        .collect()
                };
                for sector in sectors {
                    let content = self.content(node, volume, sector);
                    if let Err(text) = self.model.check_disk(node, volume, sector, content) {
                        let name = ["A", "B"][node];
                        return self.fail(Checker::Lost, format!("node {name}: {text}"));
                    }
                }
            }
        }
    }

    pub(super) fn content(&self, node: usize, volume: usize, sector: u64) -> Content {
        let Some(page) = self.nodes[node].volumes[volume].data.page(sector / 8) else { return Content::Zero };
        let at = usize::try_from(sector % 8).unwrap_or(0) * SECTOR;
        stamp::content(&page[at..at + SECTOR], sector)
    }

    /// What a node's disk shows on every sector that clients ever wrote.
    pub(super) fn contents(&self, node: usize, volume: usize) -> BTreeMap<u64, Content> {
        self.model.touched(volume).into_iter().map(|sector| (sector, self.content(node, volume, sector))).collect()
    }

    /// A node's disk becomes the truth.
    pub(super) fn adopt(&mut self, node: usize, volume: usize) {
        let (contents, other) = (self.contents(node, volume), self.contents(1 - node, volume));
        self.model.adopt(self.tick, node, volume, &contents, &other);
    }

    /// A volume goes Ahead again: not too often in a minute.
    pub(super) fn went_ahead(&mut self, node: usize, volume: usize) {
        let now = self.local(node).0;
        let aheads = &mut self.nodes[node].volumes[volume].aheads;
        aheads.push_back(now);
        if aheads.len() > CONGESTION_PHASES_MAX {
            let first = aheads.pop_front().unwrap_or(now);
            if now - first < 60_000_000_000 {
                let text = format!("volume {volume} went Ahead {} times in a minute", CONGESTION_PHASES_MAX + 1);
                self.fail(Checker::Flapping, text);
            }
        }
    }

    pub(super) fn check_memory(&mut self) {
        for node in [A, B] {
            let it = &mut self.nodes[node];
            let Some(engine) = it.engine.as_ref() else { continue };
            let marks = engine.high_water();
            // Without a configured connection nothing limits them; what was started then may take its time.
            let writes = it.max_buffers as usize;
            it.unlimited &= it.conn == ConnState::StandAlone || marks.started > writes;
            // What waited for one large range may start all at once when that is free.
            let writes = if it.unlimited || marks.blocked > 0 { usize::MAX } else { 2 * writes };
            let limits = [
                ("peer requests", marks.peer_requests, PEER_REQUESTS_MAX + 64),
                ("unacknowledged resync replies", marks.resync_unacked, RESYNC_UNACKED_MAX),
                ("received epochs", marks.received_epochs, PEER_REQUESTS_MAX + 64),
                ("requests started", marks.started, writes),
            ];
            if let Some((what, found, limit)) = limits.into_iter().find(|(_, found, limit)| found > limit) {
                let name = ["A", "B"][node];
                return self
                    .fail(Checker::Memory, format!("node {name} holds {found} {what}, at most {limit} are allowed"));
            }
        }
    }

    fn check_status(&mut self) {
        let now = [self.local(A), self.local(B)];
        for node in [A, B] {
            let Some(engine) = self.nodes[node].engine.as_ref() else { continue };
            for volume in 0..self.differs.len() {
                let nr = Self::volume_nr(volume);
                let Some(state) = engine.volume_state(nr) else { continue };
                let seen = self.state(node, volume);
                if state != seen {
                    let text = format!("volume {volume} is {state:?}, announced was {seen:?}");
                    return self.fail(Checker::Status, text);
                }
                if state.role == Role::Primary && state.disk < DiskState::UpToDate && state.pdsk < DiskState::UpToDate {
                    continue;
                }
            }
            if self.is_quiet() {
                let status = engine.status(now[node]);
                for vol in &status.volumes {
                    let c = vol.counters;
                    if c.local != 0 || c.application != 0 {
                        let text = format!(
                            "nothing is under way, but volume {} counts {} local operations and {} requests",
                            vol.nr, c.local, c.application
                        );
                        return self.fail(Checker::Status, text);
                    }
                }
            }
        }
    }

    /// A request that nothing is under way for, between two nodes that are connected and at work, at two looks in a row.
    fn check_stuck(&mut self) {
        let Some(link) = self.links.last() else { return };
        let at_work = link.open == [true; 2]
            && link.up == [true; 2]
            && link.losing == [false; 2]
            && link.is_quiet()
            && self.blocked == [false; 2]
            && self.nodes.iter().all(|n| {
                n.conn >= ConnState::Connected
                    && n.frozen_until < self.now
                    && !n.volumes.iter().any(|vol| vol.seen.is_suspended())
                    && n.volumes.iter().all(|vol| vol.ops.is_empty())
                    && !n.batch
                    && n.queued.is_empty()
                    && n.helpers.is_empty()
            });
        let oldest = self.pending.keys().next().copied().filter(|_| at_work);
        if let (Some(id), Some(before)) = (oldest, self.idle)
            && id == before
            && let Some(pending) = self.pending.get(&id)
        {
            let text = format!(
                "nothing is under way, but request {} ({:?}) of volume {} waits: {}",
                id.0,
                pending.what,
                pending.volume,
                self.describe()
            );
            self.fail(Checker::Requests, text);
        }
        self.idle = oldest;
    }

    /// Connected, and nothing is under way: each node knows the other as it is.
    fn check_views(&mut self) {
        for volume in 0..self.differs.len() {
            let (a, b) = (self.state(A, volume), self.state(B, volume));
            let settled = |s: &crate::engine::state::VolumeState| {
                // While a resync is being agreed on the engine holds packets back, and each node is a step behind.
                matches!(s.conn, ConnState::Connected | ConnState::SyncSource | ConnState::SyncTarget)
                    && !matches!(s.disk, DiskState::Attaching | DiskState::Negotiating)
            };
            if !settled(&a) || !settled(&b) {
                continue;
            }
            let mirrored = match a.conn {
                ConnState::SyncSource => b.conn == ConnState::SyncTarget,
                ConnState::SyncTarget => b.conn == ConnState::SyncSource,
                ConnState::Connected => b.conn == ConnState::Connected,
                _ => true,
            };
            if !mirrored || a.pdsk != b.disk || b.pdsk != a.disk || a.peer != b.role || b.peer != a.role {
                return self.fail(Checker::Status, format!("the nodes do not know each other: {}", self.describe()));
            }
        }
    }

    /// Whether both nodes are where they should be in the end.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        (0..self.differs.len()).all(|volume| self.both_good(volume)) && self.is_quiet()
    }

    /// P6 and forgotten requests, after the world had its time.
    pub fn check_settled(&mut self) {
        self.unchecked_all.fill(true);
        self.check_promises();
        if let Some((id, pending)) = self.pending.first_key_value() {
            let text = format!("request {} ({:?}) of volume {} was never answered", id.0, pending.what, pending.volume);
            return self.fail(Checker::Requests, text);
        }
        let open = self.nodes.iter().flat_map(|n| n.commands.values()).next();
        if let Some((volume, order)) = open {
            let text = format!("the command {order:?} for volume {volume} was never answered");
            return self.fail(Checker::Requests, text);
        }
        // A source that passes write errors on stays UpToDate and keeps the bits of what it could not write. What a device
        // grew by while the nodes were parted is marked until the next resync, as with 8.4.
        let passes_on =
            self.params.nodes.iter().any(|n| n.disk.on_io_error == crate::engine::options::OnIoError::PassOn);
        for volume in 0..self.differs.len() {
            let left = [A, B]
                .iter()
                .filter_map(|n| self.bits(*n, volume))
                .map(crate::engine::dirty::Bitmap::count)
                .sum::<u64>();
            if self.both_good(volume) && left > 0 && !passes_on && !self.grown[volume] {
                return self.fail(
                    Checker::Settles,
                    format!("both nodes are UpToDate, {left} bits are left: {}", self.describe()),
                );
            }
        }
        if !self.is_settled() {
            let text = format!("not settled: {}", self.describe());
            self.fail(Checker::Settles, text);
        }
    }

    /// Both nodes in words.
    #[must_use]
    pub fn describe(&self) -> String {
        let node = |n: usize| {
            let it = &self.nodes[n];
            let volumes: Vec<String> = (0..self.differs.len())
                .map(|v| {
                    let s = self.state(n, v);
                    let bits = self.bits(n, v).map_or(0, crate::engine::dirty::Bitmap::count);
                    format!("{} {}/{} {}/{} oos {bits}", s.conn, s.role, s.peer, s.disk, s.pdsk)
                })
                .collect();
            let up = if it.is_up() { "" } else { " (down)" };
            format!("{}{up}: {}", ["A", "B"][n], volumes.join("; "))
        };
        let busy: usize = self.nodes.iter().flat_map(|n| &n.volumes).map(|vol| vol.ops.len()).sum();
        let commands: usize = self.nodes.iter().map(|n| n.commands.len()).sum();
        format!(
            "{} | {} | {busy} disk operations, {} requests, {commands} commands under way, link quiet {}",
            node(A),
            node(B),
            self.pending.len(),
            self.links.last().is_none_or(super::net::Link::is_quiet)
        )
    }
}
