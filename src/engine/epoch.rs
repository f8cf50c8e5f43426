//! Epochs on the sending side: which replicated writes stand between two barriers, over all volumes (behaviour.md 5.5).
//!
//! Owns the list of epochs that are not acknowledged, oldest first; the last one may still be open. A write belongs to the
//! epoch that was open when it was sent. Invariants: numbers increase by 1 and never restart; a barrier is sent only
//! for an epoch with writes; only the last epoch lacks a barrier. What is *frozen* (see `suspend`) is of links that are gone,
//! and older than every epoch of the queue, once it has begun to be sent again.
//!
//! With two Primaries the peer may refuse writes. A kernel (see `two_primaries`) does not count these, and acknowledges no
//! epoch that had some: it goes with the next one that is acknowledged, or when nothing is left of it.
//!
//! A frozen write that the other Primary has, and may have overwritten since, is not sent again. It *rides* in the epoch that
//! was open then: that one's acknowledgement speaks for it as well, and does not count it.

use std::collections::VecDeque;

use crate::units::Timestamp;

/// One epoch.
#[derive(Debug)]
pub(crate) struct SentEpoch {
    pub nr: u32,
    /// Request keys of its writes.
    pub members: Vec<u64>,
    /// Writes that were sent in it and refused.
    pub refused: u32,
    /// Writes of an earlier link that the peer has; they are not counted.
    pub riders: Vec<u64>,
    /// When the barrier was sent.
    pub barrier_at: Option<Timestamp>,
}

impl SentEpoch {
    const fn new(nr: u32) -> Self {
        Self { nr, members: Vec::new(), refused: 0, riders: Vec::new(), barrier_at: None }
    }

    /// Whether nobody waits for its acknowledgement.
    const fn is_bare(&self) -> bool {
        self.members.is_empty() && self.riders.is_empty()
    }

    fn into_keys(self) -> impl Iterator<Item = u64> {
        self.riders.into_iter().chain(self.members)
    }
}

/// Why a `P_BARRIER_ACK` was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BarrierAckError {
    #[error("BAD! BarrierAck #{got} received, but no epoch in tl!?")]
    NoEpoch { got: u32 },
    #[error("BAD! BarrierAck #{got} received, expected #{expected}!")]
    Number { got: u32, expected: u32 },
    #[error("BAD! BarrierAck #{nr} received with n_writes={got}, expected n_writes={expected}!")]
    Count { nr: u32, got: u32, expected: usize },
}

/// All epochs that are not acknowledged.
#[derive(Debug, Default)]
pub(crate) struct SendEpochs {
    current: u32,
    queue: VecDeque<SentEpoch>,
    /// Members of epochs that are to be sent again, oldest first.
    frozen: VecDeque<Vec<u64>>,
}

impl SendEpochs {
    /// Number of the open epoch.
    pub(crate) const fn current(&self) -> u32 {
        self.current
    }

    /// Writes in the open epoch.
    pub(crate) fn open_writes(&self) -> usize {
        self.queue.back().filter(|e| e.nr == self.current).map_or(0, |e| e.members.len() + e.refused as usize)
    }

    /// Adds a write to the open epoch and returns its number.
    pub(crate) fn add(&mut self, key: u64) -> u32 {
        self.open().members.push(key);
        self.current
    }

    /// A write that is not sent again: it ends with the open epoch, whose number this is. That one needs a write of its own,
    /// see [`rides_alone`](Self::rides_alone).
    pub(crate) fn ride(&mut self, key: u64) -> u32 {
        self.open().riders.push(key);
        self.current
    }

    /// Whether the open epoch has no write that the peer would count, and others wait for its end.
    pub(crate) fn rides_alone(&self) -> bool {
        self.queue.back().is_some_and(|e| e.nr == self.current && e.members.is_empty() && !e.riders.is_empty())
    }

    fn open(&mut self) -> &mut SentEpoch {
        if self.queue.back().is_none_or(|e| e.nr != self.current) {
            self.queue.push_back(SentEpoch::new(self.current));
        }
        let last = self.queue.len() - 1;
        &mut self.queue[last]
    }

    /// Writes of this link that are not covered by an acknowledgement, oldest first.
    pub(crate) fn unanswered(&self) -> impl Iterator<Item = u64> + '_ {
        self.queue.iter().flat_map(|e| e.riders.iter().chain(&e.members)).copied()
    }

    /// Closes the open epoch if it has writes.
    pub(crate) fn close(&mut self) {
        if self.open_writes() > 0 {
            self.current = self.current.wrapping_add(1);
        }
    }

    /// The number of a closed epoch whose barrier is due; it counts as sent now.
    pub(crate) fn take_due_barrier(&mut self, now: Timestamp) -> Option<u32> {
        let current = self.current;
        let last = self.queue.back_mut().filter(|e| e.nr != current && e.barrier_at.is_none())?;
        last.barrier_at = Some(now);
        let nr = last.nr;
        self.drop_empty();
        Some(nr)
    }

    /// A write of this epoch was refused, and does not count.
    pub(crate) fn forget(&mut self, nr: Option<u32>, key: u64) {
        if let Some(epoch) = self.queue.iter_mut().find(|e| Some(e.nr) == nr) {
            let before = epoch.members.len();
            epoch.members.retain(|member| *member != key);
            epoch.refused += u32::try_from(before - epoch.members.len()).unwrap_or(0);
            self.drop_empty();
        }
    }

    /// Nobody acknowledges an epoch of which nothing is left; its barrier goes out all the same.
    fn drop_empty(&mut self) {
        self.queue.retain(|e| !(e.is_bare() && e.refused > 0 && e.barrier_at.is_some()));
    }

    /// Whether a closed epoch had refused writes and no later one can bring its acknowledgement.
    pub(crate) fn mixed_is_last(&self) -> bool {
        let mixed = |e: &SentEpoch| e.refused > 0 && !e.is_bare() && e.barrier_at.is_some();
        self.queue.iter().rev().find(|e| e.refused == 0 || mixed(e)).is_some_and(mixed)
    }

    /// Whether a closed epoch lacks its barrier.
    pub(crate) fn barrier_due(&self) -> bool {
        self.queue.back().is_some_and(|e| e.nr != self.current && e.barrier_at.is_none())
    }

    /// The oldest epoch was acknowledged, or one after epochs that had refused writes: the members of all of these.
    pub(crate) fn ack(&mut self, nr: u32, set_size: u32) -> Result<Vec<u64>, BarrierAckError> {
        let due = self.queue.iter().take_while(|e| e.barrier_at.is_some());
        let skippable = due.clone().take_while(|e| e.nr != nr && e.refused > 0).count();
        let Some(epoch) = due.clone().nth(skippable).or_else(|| due.clone().next()) else {
            return Err(BarrierAckError::NoEpoch { got: nr });
        };
        if epoch.nr != nr {
            return Err(BarrierAckError::Number { got: nr, expected: epoch.nr });
        }
        if epoch.members.len() as u64 != u64::from(set_size) {
            return Err(BarrierAckError::Count { nr, got: set_size, expected: epoch.members.len() });
        }
        Ok(self.queue.drain(..=skippable).flat_map(SentEpoch::into_keys).collect())
    }

    /// The link is gone: all members of all epochs, oldest first. Numbering goes on.
    pub(crate) fn drain(&mut self) -> Vec<u64> {
        self.close();
        let sent = self.queue.drain(..).flat_map(SentEpoch::into_keys);
        sent.chain(self.frozen.drain(..).flatten()).collect()
    }

    /// The link is gone, and everything waits for the next one. Gives all members, oldest first. Numbering goes on.
    pub(crate) fn freeze(&mut self) -> Vec<u64> {
        self.close();
        let later = std::mem::take(&mut self.frozen);
        self.frozen = self.queue.drain(..).map(|e| e.into_keys().collect()).chain(later).collect();
        self.frozen().collect()
    }

    /// Everything that is frozen, oldest first.
    pub(crate) fn frozen(&self) -> impl Iterator<Item = u64> + '_ {
        self.frozen.iter().flatten().copied()
    }

    /// Whether something is frozen.
    pub(crate) fn has_frozen(&self) -> bool {
        !self.frozen.is_empty()
    }

    /// The oldest frozen epoch.
    pub(crate) fn next_frozen(&self) -> Option<&[u64]> {
        self.frozen.front().map(Vec::as_slice)
    }

    /// The same; from here on it is to be sent again.
    pub(crate) fn take_frozen(&mut self) -> Vec<u64> {
        self.frozen.pop_front().unwrap_or_default()
    }

    /// When the oldest barrier was sent that is not answered and has to be.
    pub(crate) fn oldest_barrier(&self) -> Option<Timestamp> {
        self.queue.iter().find(|e| e.refused == 0).and_then(|e| e.barrier_at)
    }

    /// Whether every epoch up to `nr` is acknowledged, and those before, which are frozen, too.
    pub(crate) fn is_retired(&self, nr: u32) -> bool {
        self.frozen.is_empty() && self.is_answered(nr)
    }

    /// Whether every epoch of this link up to `nr` is acknowledged.
    pub(crate) fn is_answered(&self, nr: u32) -> bool {
        let mut left = self.queue.iter().filter(|e| !e.is_bare());
        left.next().is_none_or(|e| nr.wrapping_sub(e.nr).cast_signed() < 0)
    }

    /// Number of the last epoch that has writes, open or closed.
    pub(crate) fn last(&self) -> Option<u32> {
        self.queue.iter().rev().find(|e| !e.is_bare()).map(|e| e.nr)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const T: Timestamp = Timestamp(1);

    #[test]
    fn a_barrier_is_due_once_and_only_for_an_epoch_with_writes() {
        let mut e = SendEpochs::default();
        e.close();
        assert_eq!(e.take_due_barrier(T), None);
        assert_eq!(e.add(7), 0);
        assert_eq!(e.take_due_barrier(T), None);
        e.close();
        assert_eq!(e.current(), 1);
        assert_eq!(e.take_due_barrier(T), Some(0));
        assert_eq!(e.take_due_barrier(T), None);
    }

    #[test]
    fn acks_must_match_the_oldest_epoch() {
        let mut e = SendEpochs::default();
        e.add(1);
        e.add(2);
        e.close();
        assert_eq!(e.ack(0, 2), Err(BarrierAckError::NoEpoch { got: 0 }));
        e.take_due_barrier(T);
        e.add(3);
        assert_eq!(e.ack(1, 1), Err(BarrierAckError::Number { got: 1, expected: 0 }));
        assert_eq!(e.ack(0, 1), Err(BarrierAckError::Count { nr: 0, got: 1, expected: 2 }));
        assert!(!e.is_retired(0));
        assert_eq!(e.ack(0, 2), Ok(vec![1, 2]));
        assert!(e.is_retired(0));
        assert!(!e.is_retired(1));
        assert_eq!(e.drain(), vec![3]);
        assert_eq!(e.current(), 2);
    }

    #[test]
    fn refused_writes_do_not_count_and_their_epoch_goes_with_the_next_one() {
        let mut e = SendEpochs::default();
        for (nr, keys) in [(0, [1, 2]), (1, [3, 4]), (2, [5, 6])] {
            for key in keys {
                assert_eq!(e.add(key), nr);
            }
            e.close();
            e.take_due_barrier(T);
        }
        e.forget(Some(0), 1);
        e.forget(Some(1), 3);
        e.forget(Some(1), 4);
        assert!(!e.mixed_is_last());
        assert_eq!(e.oldest_barrier(), Some(T));
        assert!(!e.is_retired(0));
        assert_eq!(e.ack(1, 0), Err(BarrierAckError::Number { got: 1, expected: 2 }));
        assert_eq!(e.ack(2, 2), Ok(vec![2, 5, 6]));
        assert_eq!(e.last(), None);
    }

    #[test]
    fn an_epoch_of_nothing_but_refused_writes_gets_its_barrier_and_is_forgotten() {
        let mut e = SendEpochs::default();
        e.add(1);
        e.forget(Some(0), 1);
        assert!(e.is_retired(0) && e.last().is_none());
        e.close();
        assert_eq!(e.take_due_barrier(T), Some(0));
        e.add(2);
        e.add(3);
        e.close();
        e.take_due_barrier(T);
        assert!(!e.mixed_is_last());
        e.forget(Some(1), 2);
        assert!(e.mixed_is_last());
        assert_eq!(e.oldest_barrier(), None);
        // A receiver that counts as we do acknowledges it.
        assert_eq!(e.ack(1, 1), Ok(vec![3]));
    }

    #[test]
    fn what_is_not_sent_again_ends_with_the_open_epoch_and_is_not_counted() {
        let mut e = SendEpochs::default();
        e.add(1);
        assert_eq!(e.freeze(), vec![1]);
        for key in e.take_frozen() {
            assert_eq!(e.ride(key), 1);
        }
        e.close();
        assert!(e.rides_alone() && !e.is_retired(1) && e.last() == Some(1));
        assert_eq!(e.take_due_barrier(T), None, "there is nothing to count");
        e.add(2);
        assert!(!e.rides_alone());
        e.close();
        e.take_due_barrier(T);
        assert_eq!(e.unanswered().collect::<Vec<_>>(), vec![1, 2]);
        // The link is lost again: both are frozen, the older one first.
        assert_eq!(e.freeze(), vec![1, 2]);
        for key in e.take_frozen() {
            e.ride(key);
        }
        // A write that is refused does not take them with it.
        e.add(3);
        e.close();
        e.take_due_barrier(T);
        e.forget(Some(2), 3);
        assert!(e.mixed_is_last());
        e.add(4);
        e.close();
        e.take_due_barrier(T);
        assert_eq!(e.ack(3, 1), Ok(vec![1, 2, 4]));
        assert!(e.is_retired(3));
    }

    #[test]
    fn frozen_epochs_keep_their_order_over_another_loss() {
        let mut e = SendEpochs::default();
        let first = e.add(1);
        e.close();
        e.add(2);
        assert_eq!(e.freeze(), vec![1, 2]);
        assert!(!e.is_retired(first));
        assert_eq!(e.next_frozen(), Some(&[1][..]));
        // The first is sent again, then the link is lost once more.
        for key in e.take_frozen() {
            e.add(key);
        }
        e.close();
        assert_eq!(e.freeze(), vec![1, 2]);
        assert_eq!(e.drain(), vec![1, 2]);
        assert!(!e.has_frozen());
        assert!(e.is_retired(first));
    }
}
