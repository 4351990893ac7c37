//! Counts allocations, for the tests that say what a message costs.
//!
//! A test program that uses this crate has its allocator: the system's, with a count for each thread and one for all of them. A
//! broker's executors run closures of their own, so that what they allocate is seen from outside: as that of the other threads. Such
//! a test stands alone in its program.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};

/// Runs `work` and counts what this thread allocates in it.
pub fn of_this_thread<T>(work: impl FnOnce() -> T) -> (T, u64) {
    let before = THIS_THREAD.get();
    let result = work();
    (result, THIS_THREAD.get() - before)
}

/// Runs `work` and counts what all other threads of the process allocate meanwhile.
pub fn of_other_threads<T>(work: impl FnOnce() -> T) -> (T, u64) {
    let others = || ALL_THREADS.load(Ordering::Relaxed) - THIS_THREAD.get();
    // Threads that ended have left their share in the sum, so that this never falls.
    let before = others();
    let result = work();
    (result, others() - before)
}

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

static ALL_THREADS: AtomicU64 = AtomicU64::new(0);

thread_local! {
    static THIS_THREAD: Cell<u64> = const { Cell::new(0) };
}

fn count() {
    THIS_THREAD.set(THIS_THREAD.get() + 1);
    ALL_THREADS.fetch_add(1, Ordering::Relaxed);
}

// SAFETY: every call is handed on to the system's allocator as it came; counting touches an atomic and a thread-local number without
// a destructor, and allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller keeps the contract of `alloc_zeroed`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: the caller keeps the contract of `realloc`.
        unsafe { System.realloc(memory, layout, size) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract of `dealloc`.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[cfg(test)]
mod tests {
    use std::hint::black_box;

    use super::*;

    #[test]
    fn each_allocation_counts_once_for_the_thread_that_made_it() {
        let ((), made) = of_this_thread(|| drop(black_box(Box::new(7))));
        assert_eq!(made, 1);
        let (mut grown, made) = of_this_thread(|| black_box(vec![0_u8; 100]));
        assert_eq!(made, 1, "zeroed");
        let ((), made) = of_this_thread(|| grown.reserve_exact(1000));
        assert_eq!(made, 1, "grown");
        let (made, others) = of_other_threads(|| {
            let other = std::thread::spawn(|| of_this_thread(|| (0..50).for_each(|_| drop(black_box(Box::new(7))))).1);
            other.join().expect("it ends")
        });
        assert_eq!(made, 50);
        assert!(others >= made, "{others} allocations of a thread that made {made}");
    }
}
