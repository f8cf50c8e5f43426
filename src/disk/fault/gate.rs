//! Between a ring and its back ends: holds operations back, lets them fail, and tells their media.
//!
//! Owns: the operations that are held before they begin, and the completions that are held after their end. Takes in:
//! operations and completions of the ring. Gives them out later, in another order. A thread announces on the ring's eventfd
//! when something is due. When the ring goes away, each operation that was held before its beginning is executed or not.
#![expect(unsafe_code, reason = "a deliberate mistake reads memory that it does not own any more")]

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, LazyLock};
use std::thread;
use std::time::{Duration, Instant};

use super::Mistake;
use super::medium::{Fate, Medium};
use crate::disk::op::{Active, Completion, Effect};
use crate::disk::pool::Pool;
use crate::disk::portable;

/// An operation on a medium, from its submission to its delivery.
struct Ticket {
    medium: Arc<Medium>,
    what: What,
    fate: Fate,
    /// It was reported already: a mistake.
    reported: bool,
    /// Where its payload was when it was given up: a mistake.
    given_up: Option<(usize, usize)>,
}

enum What {
    Read,
    Write { nr: u64, fua: bool },
    Flush { covered: Vec<u64> },
}

struct HeldCompletion {
    at: Instant,
    completion: Completion,
    ticket: Ticket,
    /// Checksum of the data of a read.
    sum: Option<u32>,
}

/// The gate of one ring.
pub(in crate::disk) struct Gate {
    tickets: BTreeMap<u64, Ticket>,
    before: Vec<(Instant, Active)>,
    after: Vec<HeldCompletion>,
    early: Vec<Completion>,
    alarm: Option<mpsc::Sender<Instant>>,
    event: Arc<OwnedFd>,
    mistake: Option<Mistake>,
}

/// Memory for payloads that were given up.
static RUINS: LazyLock<Option<Pool>> = LazyLock::new(|| Pool::new(16 << 20).ok());

impl Gate {
    pub(in crate::disk) fn new(event: Arc<OwnedFd>) -> Self {
        Self {
            tickets: BTreeMap::new(),
            before: Vec::new(),
            after: Vec::new(),
            early: Vec::new(),
            alarm: None,
            event,
            mistake: None,
        }
    }

    pub(in crate::disk) fn make_mistake(&mut self, mistake: Option<Mistake>) {
        self.mistake = mistake;
    }

    pub(in crate::disk) fn mistake(&self) -> Option<Mistake> {
        self.mistake
    }

    /// Operations that the gate holds.
    pub(in crate::disk) fn held(&self) -> usize {
        self.before.len() + self.after.len()
    }

    /// An operation was submitted.
    pub(in crate::disk) fn submitted(&mut self, active: &mut Active) {
        let Some(medium) = active.dev.medium().cloned() else { return };
        let what = match active.effect() {
            Effect::Read => What::Read,
            Effect::Write { offset, len, pieces, fua } => {
                What::Write { nr: medium.write_submitted(offset, len, pieces, fua), fua }
            }
            Effect::Flush => What::Flush { covered: medium.flush_submitted() },
        };
        let fate = medium.fate();
        let mut given_up = None;
        if self.mistake == Some(Mistake::BufferEarly)
            && fate.before.is_some()
            && let Some(payload) = active.take_payload()
        {
            given_up = Some((payload.as_ptr().expose_provenance(), payload.len()));
        }
        let ticket = Ticket { medium: Arc::clone(&medium), what, fate, reported: false, given_up };
        if self.tickets.insert(active.token, ticket).is_some() {
            medium.note_violation("two operations under way have the same token");
        }
    }

    /// An operation is about to be handed to a back end: given back if that is to happen now.
    pub(in crate::disk) fn hold(&mut self, active: Active, ready: &mut Vec<Completion>) -> Option<Active> {
        let Some(ticket) = self.tickets.get_mut(&active.token) else { return Some(active) };
        let early = match ticket.what {
            What::Read => false,
            What::Write { .. } => self.mistake == Some(Mistake::WriteEarly),
            What::Flush { .. } => self.mistake == Some(Mistake::FlushEarly),
        };
        if early {
            ticket.reported = true;
            self.early.push(Completion { token: active.token, result: Ok(()), buf: None });
        }
        match ticket.fate.before.take() {
            None => self.begin(active, ready),
            Some(time) => {
                let at = Instant::now() + time;
                self.before.push((at, active));
                self.wake_at(at);
                None
            }
        }
    }

    fn begin(&mut self, mut active: Active, ready: &mut Vec<Completion>) -> Option<Active> {
        let Some(ticket) = self.tickets.get(&active.token) else { return Some(active) };
        if let Some((from, len)) = ticket.given_up
            && let Some(mut copy) = RUINS.as_ref().and_then(|pool| pool.try_alloc(len))
        {
            // SAFETY: the pool that the payload came from outlives the ring, so the memory is mapped; this thread is the
            // only one that writes to it, but for what the kernel reads into it. Whatever is found is looked at as bytes.
            copy.copy_from_slice(unsafe { std::slice::from_raw_parts(std::ptr::with_exposed_provenance(from), len) });
            active.put_payload(copy.freeze());
        }
        if let (What::Write { nr, .. }, Effect::Write { pieces, .. }) = (&ticket.what, active.effect()) {
            ticket.medium.write_begins(*nr, pieces);
        }
        if ticket.fate.fails == Some(false) {
            let error = active.error(io::Error::from_raw_os_error(libc::EIO));
            ready.push(active.finish(Err(error)));
            return None;
        }
        Some(active)
    }

    /// Operations that were held long enough.
    pub(in crate::disk) fn due(&mut self, ready: &mut Vec<Completion>) -> Vec<Active> {
        let now = Instant::now();
        let (due, later): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.before).into_iter().partition(|(at, _)| *at <= now);
        self.before = later;
        // The newest first: another order than they came in.
        due.into_iter().rev().filter_map(|(_, active)| self.begin(active, ready)).collect()
    }

    /// Whether [`Self::due`] or [`Self::completed`] has something to give.
    pub(in crate::disk) fn has_due(&self) -> bool {
        let now = Instant::now();
        !self.early.is_empty()
            || self.before.iter().any(|(at, _)| *at <= now)
            || self.after.iter().any(|held| held.at <= now)
    }

    /// Replaces what the back ends have finished by what is to be delivered.
    pub(in crate::disk) fn completed(&mut self, ready: &mut Vec<Completion>) {
        for completion in std::mem::take(ready) {
            match self.tickets.remove(&completion.token) {
                None => ready.push(completion),
                Some(ticket) => self.ended(completion, ticket, ready),
            }
        }
        let now = Instant::now();
        let (due, later): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.after).into_iter().partition(|held| held.at <= now);
        self.after = later;
        for HeldCompletion { completion, ticket, sum, .. } in due.into_iter().rev() {
            if sum != sum_of(&completion) {
                ticket.medium.note_violation("the memory of a read changed before it was delivered");
            }
            deliver(completion, &ticket, ready);
        }
        ready.append(&mut self.early);
    }

    /// The back end is done with an operation.
    fn ended(&mut self, mut completion: Completion, ticket: Ticket, ready: &mut Vec<Completion>) {
        if completion.result.is_ok() {
            match &ticket.what {
                _ if ticket.fate.fails.is_some() => {
                    completion = ticket.medium.failed(completion.token);
                }
                What::Read => {}
                What::Write { nr, fua } => ticket.medium.write_ended(*nr, *fua),
                What::Flush { covered } => ticket.medium.flush_ended(covered),
            }
        }
        match ticket.fate.after {
            None => deliver(completion, &ticket, ready),
            Some(time) => {
                let at = Instant::now() + time;
                let sum = sum_of(&completion);
                self.after.push(HeldCompletion { at, completion, ticket, sum });
                self.wake_at(at);
            }
        }
    }

    fn wake_at(&mut self, at: Instant) {
        let alarm = self.alarm.get_or_insert_with(|| {
            let (sender, receiver) = mpsc::channel();
            let event = Arc::clone(&self.event);
            // Ends with the sender.
            thread::spawn(move || ring_when_due(&receiver, &event));
            sender
        });
        // The thread lives as long as the sender.
        let _ = alarm.send(at);
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        // As with the kernel: what was under way when the process died has happened or not, in any order.
        for (_, active) in self.before.drain(..).rev() {
            let lives =
                self.tickets.get(&active.token).is_some_and(|ticket| ticket.given_up.is_none() && ticket.medium.coin());
            if lives {
                drop(portable::run(active));
            }
        }
    }
}

fn deliver(completion: Completion, ticket: &Ticket, ready: &mut Vec<Completion>) {
    if let What::Write { nr, .. } = ticket.what {
        ticket.medium.write_delivered(nr);
    }
    if !ticket.reported {
        ready.push(completion);
    }
}

fn sum_of(completion: &Completion) -> Option<u32> {
    completion.buf.as_ref().map(|buf| crc32c::crc32c(buf))
}

fn ring_when_due(times: &mpsc::Receiver<Instant>, event: &OwnedFd) {
    let mut due: BinaryHeap<Reverse<Instant>> = BinaryHeap::new();
    loop {
        let wait = due.peek().map_or(Duration::MAX, |Reverse(at)| at.saturating_duration_since(Instant::now()));
        match times.recv_timeout(wait) {
            Ok(at) => due.push(Reverse(at)),
            Err(RecvTimeoutError::Timeout) => {
                let now = Instant::now();
                while due.peek().is_some_and(|Reverse(at)| *at <= now) {
                    due.pop();
                }
                // Fails only if the counter is full, and then there is plenty to see.
                let _ = rustix::io::write(event, &1_u64.to_ne_bytes());
            }
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}
