//! Is the peer alive: pings on the meta socket, and requests or barriers that stay unanswered.

use std::time::Duration;

use crate::engine::Engine;
use crate::engine::action::{Action, Level};
use crate::engine::connection::AfterPing;
use crate::engine::event::{Socket, Timer};
use crate::engine::request::AckDue;
use crate::units::VolumeNr;
use crate::wire::packet::Packet;
use crate::wire::state::ConnState;

impl Engine {
    /// The TCP stack has taken this many packets of the data socket.
    pub(crate) fn note_sent(&mut self, packets: u64) {
        if packets > self.conn.data_sent {
            self.conn.data_sent = packets;
            self.conn.sent_progress = self.now;
        }
    }

    /// A packet arrived on this socket.
    pub(crate) const fn note_received(&mut self, socket: Socket) {
        match socket {
            Socket::Data => self.conn.data_received = self.now,
            Socket::Meta => self.conn.meta_received = self.now,
        }
    }

    /// Sends a ping now.
    pub(crate) fn request_ping(&mut self) {
        let Some(timeout) = self.conn.opts.as_ref().map(|o| o.ping_timeout) else { return };
        if self.conn.link.is_none() {
            return;
        }
        self.send_meta(VolumeNr(0), Packet::Ping);
        self.conn.pings_sent += 1;
        if self.conn.ping_at.is_none() {
            self.conn.ping_at = Some(self.now);
            self.out.push(Action::SetTimer { timer: Timer::Ping, at: self.now.after(timeout) });
        }
    }

    /// Sends a ping; `then` happens when it is answered.
    pub(crate) fn ping_then(&mut self, then: AfterPing) {
        self.request_ping();
        self.conn.ping_waiters.push_back((self.conn.pings_sent, then));
    }

    pub(crate) fn on_ping_ack(&mut self) {
        self.conn.pings_answered = (self.conn.pings_answered + 1).min(self.conn.pings_sent);
        if self.conn.pings_answered == self.conn.pings_sent {
            self.conn.ping_at = None;
            if let Some(idle) = self.conn.opts.as_ref().map(|o| o.ping_int) {
                self.out.push(Action::SetTimer { timer: Timer::Ping, at: self.now.after(idle) });
            }
        } else {
            self.conn.ping_at = Some(self.now);
        }
        while self.conn.ping_waiters.front().is_some_and(|(nr, _)| *nr <= self.conn.pings_answered) {
            let Some((_, then)) = self.conn.ping_waiters.pop_front() else { return };
            match then {
                AfterPing::TargetFinish(v) => self.finish_target(v),
                AfterPing::SourceFinish(v) => self.finish_source(v),
                AfterPing::SourceStart(v) => {
                    if let Some(vol) = self.volumes.get_mut(&v) {
                        vol.resync_abandoned = vol.resync_unacked.iter().map(|(key, it)| (*key, it.count)).collect();
                        vol.resync_unacked.clear();
                        if matches!(vol.state.conn, ConnState::WfBitMapS | ConnState::StartingSyncS | ConnState::Ahead)
                        {
                            self.start_source(v);
                        }
                    }
                }
                AfterPing::TargetAsk(v) => self.target_asks(v, true),
                AfterPing::VerifyFinish(v) => self.finish_verify(v),
            }
        }
    }

    /// The ping timer fired: the meta socket was idle, or a ping stayed unanswered.
    pub(crate) fn on_ping_timer(&mut self) {
        let Some((idle, timeout)) = self.conn.opts.as_ref().map(|o| (o.ping_int, o.ping_timeout)) else { return };
        if self.conn.link.is_none() {
            return;
        }
        let now = self.now;
        let heard = self.conn.meta_received.max(self.conn.data_received);
        let (wait, since) = match self.conn.ping_at {
            Some(sent) => (timeout, sent.max(heard)),
            None => (idle, self.conn.meta_received),
        };
        let due = since.after(wait);
        if now < due {
            self.out.push(Action::SetTimer { timer: Timer::Ping, at: due });
        } else if self.conn.ping_at.is_some() {
            self.log(Level::Warn, None, "PingAck did not arrive in time.");
            self.drop_link(ConnState::NetworkFailure);
        } else {
            self.request_ping();
        }
    }

    pub(crate) fn effective_timeout(&self) -> Option<Duration> {
        let opts = self.conn.opts.as_ref()?;
        (opts.ko_count > 0).then(|| opts.timeout * opts.ko_count)
    }

    /// Watches the oldest unanswered request from now on.
    pub(crate) fn arm_request_timeout(&mut self) {
        if self.conn.request_timer || self.conn.link.is_none() {
            return;
        }
        if let Some(timeout) = self.effective_timeout() {
            self.conn.request_timer = true;
            self.out.push(Action::SetTimer { timer: Timer::RequestTimeout, at: self.now.after(timeout) });
        }
    }

    /// Drops a peer that answers pings but neither requests nor barriers (behaviour.md 10.6).
    pub(crate) fn on_request_timeout(&mut self) {
        self.conn.request_timer = false;
        let Some(timeout) = self.effective_timeout() else { return };
        if self.conn.link.is_none() {
            return;
        }
        let oldest_request = self
            .requests
            .iter()
            .filter(|(_, r)| {
                r.net == super::request::Side::Pending
                    && (r.ack != AckDue::None || r.kind == super::request::Kind::Read)
            })
            .map(|(_, r)| r.started)
            .min();
        let unsent = (self.conn.data_queued > self.conn.data_sent).then_some(self.conn.sent_progress);
        let oldest_conflict = self.oldest_conflict();
        let waits = [oldest_request, self.epochs.oldest_barrier(), unsent, oldest_conflict];
        let Some(oldest) = waits.into_iter().flatten().min() else { return };
        let oldest = oldest.max(self.conn.since);
        let due = oldest.after(timeout);
        if self.now < due {
            self.conn.request_timer = true;
            self.out.push(Action::SetTimer { timer: Timer::RequestTimeout, at: due });
            return;
        }
        let what = if oldest_request.is_some_and(|t| self.now >= t.after(timeout)) {
            "Remote failed to finish a request"
        } else if unsent.is_some_and(|t| self.now >= t.after(timeout)) {
            "Remote failed to take any data"
        } else {
            "Remote failed to answer a P_BARRIER"
        };
        let waited = self.now.since(oldest).as_millis();
        let Some((ko_count, each)) = self.conn.opts.as_ref().map(|o| (o.ko_count, o.timeout.as_millis() / 100)) else {
            return;
        };
        let text = format!("{what} within {waited}ms > ko-count ({ko_count}) * timeout ({each} * 0.1s)");
        self.log(Level::Warn, None, text);
        self.drop_link(ConnState::Timeout);
    }
}
