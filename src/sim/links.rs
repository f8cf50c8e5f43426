//! Connections of the world: how they come up, carry packets, break, and are noticed to be broken.

use super::net::{Link, index};
use super::plan::Cut;
use super::world::{A, B, Checker, Due, World};
use crate::engine::event::{Event, LinkEvent, LinkNr, Socket};
use crate::units::VolumeNr;
use crate::wire::agreed::Agreed;
use crate::wire::feature::{FeatureFlags, Features};
use crate::wire::packet::Packet;
use crate::wire::{feature, kind::Socket as WireSocket};

/// Both sockets.
const SOCKETS: [Socket; 2] = [WireSocket::Data, WireSocket::Meta];
/// How long the drivers wait before they try to connect again, nanoseconds.
const RETRY_NS: u64 = 300_000_000;
/// Nanoseconds of a millisecond, after which a slow link brings its next bytes.
const MS: u64 = 1_000_000;

impl World {
    fn net_delay(&mut self, socket: Socket) -> u64 {
        let typical = self.params.net_ns;
        let skew = if self.params.skewed_sockets && socket == WireSocket::Meta { 8 } else { 1 };
        self.dice.net.around(typical * skew)
    }

    fn current(&self) -> Option<usize> {
        self.links.len().checked_sub(1)
    }

    /// Both drivers may find each other soon.
    pub(super) fn try_connect(&mut self) {
        if !self.connecting && self.nodes.iter().all(|n| n.wants_link) {
            self.connecting = true;
            let mut wait = self.net_delay(WireSocket::Data) * 2;
            // A link that lived for a moment only is not tried again at once.
            if self.links.last().is_some_and(|link| self.now < link.born + RETRY_NS) {
                wait += RETRY_NS;
            }
            self.after(wait, Due::Connect);
        }
    }

    pub(super) fn connect(&mut self) {
        self.connecting = false;
        if !self.nodes.iter().all(|n| n.wants_link && n.is_up()) {
            return;
        }
        let free = self.links.last().is_none_or(|link| link.open == [false; 2]);
        let fails = self.dice.net.percent(self.params.failed_connects);
        if !free || self.blocked != [false; 2] || fails {
            self.connecting = true;
            return self.after(RETRY_NS, Due::Connect);
        }
        let offer = |n: usize| {
            let params = &self.nodes[n].params;
            Features {
                protocol_min: feature::Version::MIN.nr(),
                protocol_max: params.version,
                flags: FeatureFlags(params.features),
            }
        };
        let agreed = match Agreed::negotiate(offer(A), offer(B)) {
            Ok(agreed) => agreed,
            Err(fault) => return self.fail(Checker::Sanity, format!("no common version: {fault:?}")),
        };
        for node in &mut self.nodes {
            node.wants_link = false;
            node.link_nr = LinkNr(node.link_nr.0 + 1);
        }
        let nrs = [self.nodes[A].link_nr, self.nodes[B].link_nr];
        let powers = [self.nodes[A].powers, self.nodes[B].powers];
        let mut link = Link::new(nrs, agreed, powers, self.tick);
        link.born = self.now;
        self.links.push(link);
        let link = self.links.len() - 1;
        for node in [A, B] {
            let wait = self.net_delay(WireSocket::Data);
            self.after(wait, Due::Up { link, node });
        }
    }

    pub(super) fn link_up(&mut self, link: usize, node: usize) {
        let it = &mut self.links[link];
        if !it.open[node] || it.losing[node] || !self.nodes[node].is_up() {
            return;
        }
        it.up[node] = true;
        let agreed = it.agreed[node];
        let up = LinkEvent::Up {
            nr: it.nr[node],
            version: agreed.version.nr(),
            features: agreed.features.0,
            resolve_conflicts: (node == A) == link.is_multiple_of(2),
            relaxed_epochs: self.nodes.iter().all(|n| n.params.relaxed),
        };
        self.trace.note(self.now, node, 10, link as u64, || format!("link {link} up, {agreed:?}"));
        self.event(node, Event::Link(up));
        // What arrived before.
        self.decode(link, 1 - node);
    }

    // --- packets ---

    pub(super) fn send(&mut self, node: usize, socket: Socket, volume: VolumeNr, packet: Packet) {
        let Some(link) = self.current() else { return };
        let name = packet.kind().name();
        let it = &mut self.links[link];
        if it.nr[node] != self.nodes[node].link_nr || !it.up[node] || it.pipes[node][index(socket)].closed {
            return;
        }
        self.coverage.packet(name);
        self.note_said(node, volume, &packet);
        let it = &mut self.links[link];
        self.trace.note(self.now, node, 11, packet.payload().map_or(0, |p| p.len() as u64), || {
            format!("sends {socket:?} vol {volume} {}", brief(&packet))
        });
        if let Err(error) = it.send(node, socket, volume, packet) {
            return self.fail(Checker::Sanity, format!("{name} cannot be sent: {error}"));
        }
        self.kick(link, node, socket);
    }

    fn kick(&mut self, link: usize, from: usize, socket: Socket) {
        let pipe = &mut self.links[link].pipes[from][index(socket)];
        if !pipe.handing {
            pipe.handing = true;
            let wait = self.dice.net.below(30_000);
            self.after(wait, Due::Handover { link, from, socket });
        }
    }

    pub(super) fn hand_over(&mut self, link: usize, from: usize, socket: Socket) {
        let it = &mut self.links[link];
        let pipe = &mut it.pipes[from][index(socket)];
        pipe.handing = false;
        let advanced = pipe.hand_over();
        let packets = pipe.packets;
        let moving = pipe.has_flight() && !pipe.delivering;
        if moving {
            pipe.delivering = true;
            let wait = self.net_delay(socket);
            self.after(wait, Due::Deliver { link, from, socket });
        }
        let it = &self.links[link];
        // As in the daemon: only the data socket's progress is reported.
        if advanced && socket == WireSocket::Data && it.open[from] && !it.losing[from] {
            let nr = it.nr[from];
            self.event(from, Event::Sent { link: nr, socket, packets });
        }
        self.end_of_stream(link, from);
    }

    pub(super) fn deliver(&mut self, link: usize, from: usize, socket: Socket) {
        if self.blocked[from] {
            // TCP goes on when the network does.
            self.links[link].pipes[from][index(socket)].delivering = false;
            return;
        }
        let pieces = self.dice.net.percent(self.params.fragments);
        let pipe = &mut self.links[link].pipes[from][index(socket)];
        let limit = if pieces { usize::try_from(self.dice.net.within(1, 700)).unwrap_or(1) } else { usize::MAX };
        let slow = self.params.link_rate > 0 && socket == WireSocket::Data;
        let per_ms = usize::try_from(self.params.link_rate / 1000).unwrap_or(usize::MAX).max(1);
        pipe.arrive(if slow { limit.min(per_ms) } else { limit });
        pipe.delivering = pipe.has_flight();
        if pipe.delivering {
            let wait = if slow { MS } else { self.dice.net.below(20_000) };
            self.after(wait, Due::Deliver { link, from, socket });
        }
        if self.links[link].pipes[from][index(socket)].has_queued() {
            self.kick(link, from, socket);
        }
        self.decode_socket(link, from, socket);
        self.end_of_stream(link, from);
        if !self.links[link].open[1 - from] && self.nodes[1 - from].is_up() {
            self.lose_link(link, from, "connection reset");
        }
    }

    fn decode(&mut self, link: usize, from: usize) {
        for socket in SOCKETS {
            self.decode_socket(link, from, socket);
        }
    }

    fn decode_socket(&mut self, link: usize, from: usize, socket: Socket) {
        let to = 1 - from;
        loop {
            let it = &mut self.links[link];
            if !it.open[to] || !it.up[to] || it.losing[to] || !self.nodes[to].is_up() {
                return;
            }
            let wants = self.nodes[to].engine.as_ref().is_some_and(crate::engine::Engine::accepts_peer_requests);
            if socket == WireSocket::Data && !wants {
                // Looked at again when something else happens on this node; at the latest soon.
                let pipe = &mut it.pipes[from][index(socket)];
                if !pipe.delivering {
                    pipe.delivering = true;
                    self.after(200_000, Due::Deliver { link, from, socket });
                }
                return;
            }
            match it.receive(from, socket) {
                Ok(Some((volume, packet))) => {
                    let nr = it.nr[to];
                    self.trace.note(self.now, to, 12, packet.payload().map_or(0, |p| p.len() as u64), || {
                        format!("gets {socket:?} vol {volume} {}", brief(&packet))
                    });
                    self.look_if_sizes(to, volume, &packet);
                    self.event(to, Event::Packet { link: nr, socket, volume, packet });
                }
                Ok(None) => return,
                Err(error) => return self.fail(Checker::Sanity, format!("an engine sent something illegal: {error}")),
            }
        }
    }

    /// The sender has closed and everything it queued has arrived: the other side sees the end.
    fn end_of_stream(&mut self, link: usize, from: usize) {
        let it = &self.links[link];
        let to = 1 - from;
        let ended = it.pipes[from].iter().all(|pipe| pipe.closed && !pipe.has_queued() && !pipe.has_flight());
        if ended && it.open[to] && !it.losing[to] {
            self.lose_link(link, to, "the peer closed the connection");
        }
    }

    // --- ends ---

    pub(super) fn close_link(&mut self, node: usize, nr: LinkNr) {
        let Some(link) = self.current() else { return };
        let it = &mut self.links[link];
        if it.nr[node] != nr || !it.open[node] {
            return;
        }
        self.trace.note(self.now, node, 13, link as u64, || format!("closes link {link}"));
        it.open[node] = false;
        for pipe in &mut it.pipes[node] {
            pipe.closed = true;
        }
        self.leave_packets(link, node);
        self.end_of_stream(link, node);
        self.try_connect();
    }

    /// A link ends here; of what was under way to this node its driver may have taken some, and hands it over late.
    fn leave_packets(&mut self, link: usize, node: usize) {
        for pipe in &mut self.links[link].pipes[1 - node] {
            let some = self.dice.net.below(pipe.flight_len() as u64 + 1);
            pipe.arrive(usize::try_from(some).unwrap_or(0));
        }
        let wait = self.dice.net.pick(&[100_000, 50_000_000, 700_000_000]);
        let (wait, life) = (self.dice.net.around(wait), self.nodes[node].life);
        self.after(wait, Due::Late { link, node, life });
    }

    /// The engine gets packets of a link that it knows to be gone.
    pub(super) fn late_packets(&mut self, link: usize, node: usize) {
        for socket in SOCKETS {
            while let Ok(Some((volume, packet))) = self.links[link].receive(1 - node, socket) {
                let nr = self.links[link].nr[node];
                self.trace.note(self.now, node, 15, 0, || {
                    format!("gets late, of link {link}, {socket:?} vol {volume} {}", brief(&packet))
                });
                self.look_if_sizes(node, volume, &packet);
                self.event(node, Event::Packet { link: nr, socket, volume, packet });
            }
        }
    }

    /// The node will learn soon that its link is gone.
    fn lose_link(&mut self, link: usize, node: usize, reason: &'static str) {
        let it = &mut self.links[link];
        if it.open[node] && !it.losing[node] {
            it.losing[node] = true;
            let wait = self.net_delay(WireSocket::Data);
            self.after(wait, Due::Lost { link, node, reason });
        }
    }

    pub(super) fn link_lost(&mut self, link: usize, node: usize, reason: &'static str) {
        let it = &mut self.links[link];
        if !std::mem::take(&mut it.open[node]) || !self.nodes[node].is_up() {
            return;
        }
        let (nr, up) = (it.nr[node], it.up[node]);
        for pipe in &mut it.pipes[node] {
            pipe.closed = true;
            pipe.lose();
        }
        self.trace.note(self.now, node, 14, link as u64, || format!("link {link} lost: {reason}"));
        self.leave_packets(link, node);
        if up {
            let socket = if self.dice.net.coin() { WireSocket::Data } else { WireSocket::Meta };
            let reason = String::from(reason);
            self.event(node, Event::Link(LinkEvent::Lost { nr, socket, protocol_error: false, fatal: false, reason }));
        } else {
            // It never came up here: the driver goes on trying.
            self.nodes[node].wants_link = true;
        }
        self.end_of_stream(link, node);
        self.try_connect();
    }

    pub(super) fn cut(&mut self, cut: Cut) {
        let link = self.current().filter(|link| self.links[*link].open != [false; 2]);
        let name = match cut {
            Cut::Reset => "link reset",
            Cut::Silent => "silent cut",
            Cut::OneWay(_) => "one-way cut",
            Cut::HalfOpen(_) => "half-open link",
        };
        match cut {
            Cut::Silent => self.blocked = [true; 2],
            Cut::OneWay(from) => self.blocked[from] = true,
            Cut::Reset | Cut::HalfOpen(_) => {}
        }
        self.fault(name);
        self.stats.cuts += 1;
        let Some(link) = link else { return };
        match cut {
            Cut::Reset => {
                self.drop_flight(link);
                for node in [A, B] {
                    self.lose_link(link, node, "connection reset");
                }
            }
            Cut::HalfOpen(node) => {
                self.drop_flight(link);
                self.lose_link(link, node, "connection reset");
            }
            Cut::Silent | Cut::OneWay(_) => {}
        }
    }

    /// Of the bytes on the way some still arrive, cut at any byte; the rest is lost.
    fn drop_flight(&mut self, link: usize) {
        for from in [A, B] {
            for socket in SOCKETS {
                let pipe = &mut self.links[link].pipes[from][index(socket)];
                let keep = self.dice.net.below(pipe.flight_len() as u64 + 1);
                pipe.arrive(usize::try_from(keep).unwrap_or(0));
                pipe.lose();
                self.decode_socket(link, from, socket);
            }
        }
    }

    pub(super) fn heal(&mut self) {
        self.blocked = [false; 2];
        if let Some(link) = self.current() {
            for from in [A, B] {
                for socket in SOCKETS {
                    let pipe = &mut self.links[link].pipes[from][index(socket)];
                    if pipe.has_flight() && !pipe.delivering {
                        pipe.delivering = true;
                        let wait = self.net_delay(socket);
                        self.after(wait, Due::Deliver { link, from, socket });
                    }
                }
            }
            // Of a node that is gone nothing answers: the other one's next packet is refused.
            for node in [A, B] {
                let it = &self.links[link];
                if it.open[node] && !it.open[1 - node] && !it.pipes[1 - node].iter().any(super::net::Pipe::has_flight) {
                    self.lose_link(link, node, "connection reset");
                }
            }
        }
        self.try_connect();
    }

    /// A node died: its sockets die with it. After a power cut the other side hears nothing at first.
    pub(super) fn links_of_the_dead(&mut self, node: usize, power: bool) {
        let Some(link) = self.current() else { return };
        let it = &mut self.links[link];
        if !std::mem::take(&mut it.open[node]) {
            return;
        }
        for pipe in &mut it.pipes[node] {
            // What the stack had taken may still arrive after the process died, not after the power failed.
            if power {
                pipe.lose();
            }
        }
        if !power {
            for socket in SOCKETS {
                let pipe = &mut self.links[link].pipes[node][index(socket)];
                let keep = self.dice.net.below(pipe.flight_len() as u64 + 1);
                pipe.arrive(usize::try_from(keep).unwrap_or(0));
                pipe.lose();
                self.decode_socket(link, node, socket);
            }
            self.lose_link(link, 1 - node, "connection reset");
        }
    }

    /// A node is back after a power cut: its stack refuses what the other one still sends.
    pub(super) fn refuse_old_links(&mut self, node: usize) {
        let Some(link) = self.current() else { return };
        if !self.links[link].open[node] {
            self.lose_link(link, 1 - node, "connection reset");
        }
    }
}

/// A packet without its payload, for traces.
fn brief(packet: &Packet) -> String {
    match packet {
        Packet::Data(p) => {
            format!("P_DATA {}+{} id {:x} seq {}", p.sector, p.payload.len() / 512, p.block_id.0, p.seq.0)
        }
        Packet::RsDataReply(p) | Packet::DataReply(p) => {
            format!("{} {}+{} id {:x}", packet.kind().name(), p.sector, p.payload.len() / 512, p.block_id.0)
        }
        Packet::Bitmap(body) | Packet::CompressedBitmap(body) => {
            format!("{} {} bytes", packet.kind().name(), body.len())
        }
        Packet::SyncParam(_) | Packet::Protocol(_) => packet.kind().name().to_owned(),
        other => format!("{other:?}"),
    }
}
