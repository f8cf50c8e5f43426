//! Memory for payloads: page-aligned, bounded, reusable, fit for direct I/O.
//!
//! Owns: [`Pool`], one anonymous mapping cut up by a buddy allocator into blocks of 4 KiB to 1 MiB. Gives out:
//! [`PoolBuf`], unique and writable, that [`PoolBuf::freeze`] turns into cheap-to-clone [`Bytes`]; dropping the last
//! handle returns the block. Invariants: the mapping outlives every block (each holds the pool); no two live blocks
//! overlap; the sum of live blocks never exceeds the budget. The lock is uncontended within a shard; it exists because
//! [`Bytes`] may be dropped on any thread.
#![expect(unsafe_code, reason = "maps memory and hands out disjoint slices of it")]

use std::fmt;
use std::io;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};
use smallvec::SmallVec;
use tokio::sync::Notify;

/// Alignment and smallest size of a block, in bytes.
pub const BUF_ALIGN: usize = 4096;
/// Largest block, in bytes.
pub const BUF_LEN_MAX: usize = 1 << 20;
/// Default budget of a pool, in bytes.
pub const POOL_BYTES_DEFAULT: usize = 64 << 20;
/// Largest budget, in bytes.
pub const POOL_BYTES_MAX: usize = 64 << 30;

const ORDER_MAX: u8 = 8;
const ORDERS: usize = ORDER_MAX as usize + 1;
const PAGES_PER_CHUNK: u32 = 1 << ORDER_MAX;
/// Blocks of one size that wait for reuse before they are merged.
const RECENT_MAX: usize = 32;
const NIL: u32 = u32::MAX;
const NOT_FREE: u8 = u8::MAX;

const _: () = assert!(BUF_ALIGN << ORDER_MAX == BUF_LEN_MAX, "the largest block is one chunk");
const _: () = assert!(POOL_BYTES_MAX / BUF_ALIGN < NIL as usize, "a page number fits into 32 bits");

/// A bounded supply of aligned memory. Cloning gives another handle to the same supply.
#[derive(Clone)]
pub struct Pool(Arc<Shared>);

struct Shared {
    base: NonNull<u8>,
    budget_bytes: usize,
    buddy: Mutex<Buddy>,
    returned: Notify,
}

// SAFETY: `base` is only used to compute addresses of blocks, which the buddy allocator (behind its lock) hands out
// disjointly; all other fields are Send and Sync themselves.
unsafe impl Send for Shared {}
// SAFETY: as above: shared access to `Shared` never dereferences `base`.
unsafe impl Sync for Shared {}

impl Shared {
    fn buddy(&self) -> MutexGuard<'_, Buddy> {
        // The allocator's operations cannot panic half-way, so a poisoned lock still guards a sound state.
        self.buddy.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: `base` and `budget_bytes` describe exactly the mapping made in `Pool::new`, and no block is alive:
        // each holds an `Arc` of `self`. Failure would only leak address space.
        let _ = unsafe { munmap(self.base.as_ptr().cast(), self.budget_bytes) };
    }
}

impl Pool {
    /// A pool of `budget_bytes`, rounded up to whole MiB. Memory is reserved now and becomes resident as it is used (or
    /// at once, where the process locks its future memory).
    ///
    /// # Errors
    /// `InvalidInput` for 0 or more than [`POOL_BYTES_MAX`]; the system's error when it refuses the mapping.
    pub fn new(budget_bytes: usize) -> io::Result<Self> {
        if budget_bytes == 0 || budget_bytes > POOL_BYTES_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "pool budget out of range"));
        }
        let budget_bytes = budget_bytes.next_multiple_of(BUF_LEN_MAX);
        // SAFETY: a fresh anonymous mapping at an address of the kernel's choice aliases nothing.
        let base = unsafe {
            mmap_anonymous(std::ptr::null_mut(), budget_bytes, ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE)?
        };
        // A child process must not share these pages: copy-on-write and direct I/O in flight do not go together. Where the
        // advice is not known, the processes that we start do not touch them either.
        // SAFETY: the advice concerns exactly the mapping made above and does not change its content.
        let _ = unsafe { madvise(base, budget_bytes, Advice::LinuxDontFork) };
        let base = NonNull::new(base.cast::<u8>()).ok_or(io::ErrorKind::OutOfMemory)?;
        let pages = u32::try_from(budget_bytes / BUF_ALIGN).map_err(|_| io::ErrorKind::InvalidInput)?;
        Ok(Self(Arc::new(Shared { base, budget_bytes, buddy: Mutex::new(Buddy::new(pages)), returned: Notify::new() })))
    }

    /// Takes a block of `len` bytes (0 to [`BUF_LEN_MAX`]); `None` when the budget is spent or too fragmented, and always
    /// for a larger `len`. The content is unspecified: whatever an earlier user of this pool left there.
    #[must_use]
    pub fn try_alloc(&self, len: usize) -> Option<PoolBuf> {
        let order = order_of(len)?;
        let page = self.0.buddy().take(order)?;
        // SAFETY: `page` is below the number of pages of the mapping, so the result lies inside it.
        let ptr = unsafe { self.0.base.add(page as usize * BUF_ALIGN) };
        Some(PoolBuf { ptr, len, page, order, shared: Arc::clone(&self.0) })
    }

    /// Like [`Pool::try_alloc`], but waits until enough memory has come back. Waiters are not served in order. Cancel safe.
    /// `None` only for a `len` above [`BUF_LEN_MAX`].
    pub async fn alloc(&self, len: usize) -> Option<PoolBuf> {
        order_of(len)?;
        loop {
            let returned = self.0.returned.notified();
            tokio::pin!(returned);
            // Registered before the attempt: memory that comes back in between must wake us.
            returned.as_mut().enable();
            if let Some(buf) = self.try_alloc(len) {
                return Some(buf);
            }
            returned.await;
        }
    }

    /// Completes when memory comes back after an allocation failed. Use as: create the future, `enable` it, attempt,
    /// await; a return between a failed attempt and the first poll of an un-enabled future is not seen.
    pub fn returned(&self) -> tokio::sync::futures::Notified<'_> {
        self.0.returned.notified()
    }

    /// Bytes not in use at this moment; because blocks are powers of two, not all of it may be usable for one request.
    #[must_use]
    pub fn free_bytes(&self) -> usize {
        self.0.buddy().free_pages as usize * BUF_ALIGN
    }

    /// The budget in bytes.
    #[must_use]
    pub fn budget_bytes(&self) -> usize {
        self.0.budget_bytes
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool")
            .field("budget_bytes", &self.budget_bytes())
            .field("free_bytes", &self.free_bytes())
            .finish()
    }
}

/// Order of the smallest block that holds `len` bytes.
fn order_of(len: usize) -> Option<u8> {
    if len > BUF_LEN_MAX {
        return None;
    }
    let pages = len.div_ceil(BUF_ALIGN).max(1).next_power_of_two();
    u8::try_from(pages.trailing_zeros()).ok()
}

/// One block of a [`Pool`]: unique, writable, starting at a multiple of [`BUF_ALIGN`]. Dropping it returns the memory.
pub struct PoolBuf {
    ptr: NonNull<u8>,
    len: usize,
    page: u32,
    order: u8,
    shared: Arc<Shared>,
}

// SAFETY: a `PoolBuf` is the only owner of its block, like a `Box<[u8]>`.
unsafe impl Send for PoolBuf {}
// SAFETY: shared access gives `&[u8]` only.
unsafe impl Sync for PoolBuf {}

impl PoolBuf {
    /// Bytes that the block can hold: a power of two from [`BUF_ALIGN`] to [`BUF_LEN_MAX`].
    #[must_use]
    pub fn capacity(&self) -> usize {
        BUF_ALIGN << self.order
    }

    /// Changes the length; false, and nothing changes, when it is above the capacity. Bytes gained are unspecified.
    pub fn set_len(&mut self, len: usize) -> bool {
        let fits = len <= self.capacity();
        if fits {
            self.len = len;
        }
        fits
    }

    /// Gives up the right to write in exchange for cheap clones and slices. The block returns to its pool when the last
    /// clone or slice is dropped, on whatever thread.
    #[must_use]
    pub fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl Deref for PoolBuf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the block has at least `len` bytes, is initialised (anonymous memory starts as zeroes), stays mapped
        // while `shared` lives, and nobody else has access to it.
        unsafe { std::slice::from_raw_parts(self.ptr.as_ptr(), self.len) }
    }
}

impl DerefMut for PoolBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and `&mut self` makes the access exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.as_ptr(), self.len) }
    }
}

impl AsRef<[u8]> for PoolBuf {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl Drop for PoolBuf {
    fn drop(&mut self) {
        let wake = self.shared.buddy().give_back(self.page, self.order);
        if wake {
            self.shared.returned.notify_waiters();
        }
    }
}

impl fmt::Debug for PoolBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PoolBuf").field("len", &self.len).field("capacity", &self.capacity()).finish()
    }
}

/// Which pages are free, as blocks of `1 << order` pages, each naturally aligned inside its 1 MiB chunk. A free block is
/// described at its first page: its order, and its neighbours in the list of free blocks of that order.
struct Buddy {
    free_order: Vec<u8>,
    next: Vec<u32>,
    prev: Vec<u32>,
    heads: [u32; ORDERS],
    /// Blocks that came back lately and are not merged yet: the next request of their size is likely.
    recent: [SmallVec<[u32; RECENT_MAX]>; ORDERS],
    /// Free pages in all, the recent ones included.
    free_pages: u32,
    /// An allocation failed since memory last came back.
    starved: bool,
}

impl Buddy {
    fn new(pages: u32) -> Self {
        let n = pages as usize;
        let mut buddy = Self {
            free_order: vec![NOT_FREE; n],
            next: vec![NIL; n],
            prev: vec![NIL; n],
            heads: [NIL; ORDERS],
            recent: Default::default(),
            free_pages: pages,
            starved: false,
        };
        // Backwards, so that the lowest chunk is used first.
        for chunk in (0..pages / PAGES_PER_CHUNK).rev() {
            buddy.link(chunk * PAGES_PER_CHUNK, ORDER_MAX);
        }
        buddy
    }

    fn link(&mut self, page: u32, order: u8) {
        let head = std::mem::replace(&mut self.heads[usize::from(order)], page);
        self.free_order[page as usize] = order;
        self.prev[page as usize] = NIL;
        self.next[page as usize] = head;
        if head != NIL {
            self.prev[head as usize] = page;
        }
    }

    fn unlink(&mut self, page: u32) {
        let order = std::mem::replace(&mut self.free_order[page as usize], NOT_FREE);
        let (prev, next) = (self.prev[page as usize], self.next[page as usize]);
        if prev == NIL {
            self.heads[usize::from(order)] = next;
        } else {
            self.next[prev as usize] = next;
        }
        if next != NIL {
            self.prev[next as usize] = prev;
        }
    }

    fn take(&mut self, order: u8) -> Option<u32> {
        let page = self.recent[usize::from(order)].pop().or_else(|| self.split(order)).or_else(|| {
            self.merge_recent();
            self.split(order)
        });
        match page {
            Some(_) => self.free_pages -= 1 << order,
            None => self.starved = true,
        }
        page
    }

    /// Returns whether somebody may be waiting for memory.
    fn give_back(&mut self, page: u32, order: u8) -> bool {
        self.free_pages += 1 << order;
        let recent = &mut self.recent[usize::from(order)];
        if recent.len() < RECENT_MAX {
            recent.push(page);
        } else {
            self.merge(page, order);
        }
        std::mem::take(&mut self.starved)
    }

    /// Takes a block of `order`, if need be out of a larger one.
    fn split(&mut self, order: u8) -> Option<u32> {
        let found = (order..=ORDER_MAX).find(|&o| self.heads[usize::from(o)] != NIL)?;
        let page = self.heads[usize::from(found)];
        self.unlink(page);
        for half in (order..found).rev() {
            self.link(page + (1 << half), half);
        }
        Some(page)
    }

    /// Lists a free block, joined with its free neighbours as far as that goes.
    fn merge(&mut self, mut page: u32, mut order: u8) {
        while order < ORDER_MAX {
            let buddy = page ^ (1 << order);
            if self.free_order[buddy as usize] != order {
                break;
            }
            self.unlink(buddy);
            page = page.min(buddy);
            order += 1;
        }
        self.link(page, order);
    }

    fn merge_recent(&mut self) {
        for order in 0..=ORDER_MAX {
            for page in std::mem::take(&mut self.recent[usize::from(order)]) {
                self.merge(page, order);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn blocks_are_aligned_and_sized_in_powers_of_two() {
        let pool = Pool::new(1 << 20).unwrap();
        for (len, capacity) in [(0, 4096), (1, 4096), (4096, 4096), (4097, 8192), (600_000, 1 << 20)] {
            let buf = pool.try_alloc(len).unwrap();
            assert_eq!((buf.len(), buf.capacity(), buf.as_ptr() as usize % BUF_ALIGN), (len, capacity, 0));
        }
        assert!(pool.try_alloc(BUF_LEN_MAX + 1).is_none());
        assert_eq!(pool.free_bytes(), 1 << 20);
    }

    #[test]
    fn the_budget_is_a_limit_and_returned_memory_merges() {
        let pool = Pool::new(1 << 20).unwrap();
        let pages: Vec<_> = (0..256).map(|_| pool.try_alloc(4096).unwrap()).collect();
        assert!(pool.try_alloc(1).is_none());
        drop(pages);
        assert!(pool.try_alloc(BUF_LEN_MAX).is_some());
    }

    #[test]
    fn frozen_memory_survives_the_pool_and_returns_with_its_last_slice() {
        let pool = Pool::new(1 << 20).unwrap();
        let mut buf = pool.try_alloc(5000).unwrap();
        buf.fill(7);
        let frozen = buf.freeze();
        let slice = frozen.slice(4990..);
        drop(frozen);
        assert_eq!(pool.free_bytes(), (1 << 20) - 8192);
        let watcher = pool.clone();
        drop(pool);
        assert_eq!(&slice[..], [7; 10]);
        std::thread::spawn(move || drop(slice)).join().unwrap();
        assert_eq!(watcher.free_bytes(), 1 << 20);
    }

    #[test]
    fn a_waiter_gets_the_memory_that_comes_back() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let pool = Pool::new(1 << 20).unwrap();
            let all = pool.try_alloc(BUF_LEN_MAX).unwrap();
            let waiter = pool.alloc(4096);
            tokio::pin!(waiter);
            tokio::select! {
                biased;
                _ = &mut waiter => panic!("no memory is free"),
                () = std::future::ready(()) => {}
            }
            std::thread::spawn(move || drop(all)).join().unwrap();
            assert!(waiter.await.is_some());
            assert!(pool.alloc(BUF_LEN_MAX + 1).await.is_none());
        });
    }

    #[test]
    fn impossible_budgets_are_refused() {
        assert!(Pool::new(0).is_err());
        assert!(Pool::new(usize::MAX).is_err());
    }

    proptest! {
        #[test]
        fn live_blocks_never_overlap_and_all_memory_returns(steps in prop::collection::vec((any::<bool>(), 0usize..300_000), 1..200)) {
            let pool = Pool::new(2 << 20).unwrap();
            let mut live: Vec<(u8, PoolBuf)> = Vec::new();
            for (index, (take, len)) in steps.into_iter().enumerate() {
                if take {
                    let mark = u8::try_from(index % 251).unwrap();
                    if let Some(mut buf) = pool.try_alloc(len) {
                        buf.fill(mark);
                        live.push((mark, buf));
                    }
                } else if !live.is_empty() {
                    let (mark, buf) = live.swap_remove(len % live.len());
                    prop_assert!(buf.iter().all(|&b| b == mark));
                }
                let used: usize = live.iter().map(|(_, buf)| buf.capacity()).sum();
                prop_assert_eq!(pool.free_bytes() + used, pool.budget_bytes());
            }
            for (mark, buf) in &live {
                prop_assert!(buf.iter().all(|b| b == mark));
            }
            live.clear();
            // All of it, in the largest pieces.
            let whole: Vec<_> = std::iter::from_fn(|| pool.try_alloc(BUF_LEN_MAX)).collect();
            prop_assert_eq!(whole.len(), 2);
        }
    }
}
