//! Executors: one pinned thread per core used, each with a glommio runtime set up for a short tail.
//!
//! What is chosen here and why (the numbers are those of the runtime's study): placement is fixed, since an unbound executor
//! silently never spins; the blocking pool is unbound, since by default it would sit on the executor's own core; no task queue
//! asks for `Latency::Matters`, which slows hops and protects nothing; one throw-away sleep pays for the registration of
//! membarrier before anyone is served.

use crate::limits::{KIB, MIB, RING_DEPTH};
use glommio::{LocalExecutorBuilder, Placement, PoolPlacement};
use std::future::Future;
use std::io;
use std::time::Duration;

/// What an executor is made of.
#[derive(Clone, Debug)]
pub struct ExecutorOptions {
    pub index: usize,
    pub core: usize,
    /// How long it spins before it sleeps.
    pub spin: Duration,
    /// Bytes of direct-I/O buffers, from [`io_memory`].
    pub io_memory: usize,
}

/// Direct-I/O memory of an executor with `shards` shards where `executors` of them share `memlock` bytes of lockable memory
/// (`None`: no limit).
///
/// A shard has at most two flushes of 1 MiB in flight, one step of 1 MiB of the next segment, and its share of cold reads:
/// 4 MiB; buddy allocation rounds up, × 1.3. The slab is registered with three rings, so that an account that is limited pays
/// for it three times; below the wish glommio falls back to memory that is not registered, which costs a page look-up per
/// write and nothing else.
pub fn io_memory(shards: usize, executors: usize, memlock: Option<u64>) -> usize {
    let wish = (4 * MIB * shards * 13 / 10).next_power_of_two().min(64 * MIB);
    let limit = memlock.map_or(usize::MAX, |bytes| bytes as usize / (3 * executors.max(1)) / 2);
    let fits = if limit == usize::MAX { wish } else { wish.min(limit) };
    fits.max(512 * KIB) / (4 * KIB) * (4 * KIB)
}

/// How much memory this process may lock; `None` where there is no limit that it is held to.
pub fn lockable_memory() -> Option<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: both calls write no more than the structure that they are given, or nothing.
    let (root, result) = unsafe { (libc::geteuid() == 0, libc::getrlimit(libc::RLIMIT_MEMLOCK, &raw mut limit)) };
    (!root && result == 0 && limit.rlim_cur != libc::RLIM_INFINITY).then_some(limit.rlim_cur)
}

/// A running executor.
pub type Handle<T> = glommio::ExecutorJoinHandle<T>;

/// Starts an executor; `make` runs on it, and the executor ends with the future that it returns.
pub fn start<T, F>(options: &ExecutorOptions, make: impl FnOnce() -> F + Send + 'static) -> io::Result<Handle<T>>
where
    F: Future<Output = T> + 'static,
    T: Send + 'static,
{
    LocalExecutorBuilder::new(Placement::Fixed(options.core))
        .name(&format!("shard-{}", options.index))
        .spin_before_park(options.spin)
        .ring_depth(RING_DEPTH)
        .io_memory(options.io_memory)
        .blocking_thread_pool_placement(PoolPlacement::Unbound(1))
        .spawn(move || async move {
            glommio::timer::sleep(Duration::from_millis(1)).await;
            make().await
        })
        .map_err(io::Error::from)
}

/// The cores that this process may use, in ascending order.
pub fn cores() -> io::Result<Vec<usize>> {
    // SAFETY: an all-zero set is a valid value of this plain C structure, and the call writes no more than its size.
    let (result, set) = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        (libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &raw mut set), set)
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the index stays below the size of the set.
    Ok((0..libc::CPU_SETSIZE as usize).filter(|&core| unsafe { libc::CPU_ISSET(core, &set) }).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn direct_memory_follows_the_limit_of_locked_memory() {
        assert_eq!(io_memory(1, 1, None), 8 * MIB);
        assert!(3 * 2 * io_memory(1, 2, Some(8 * MIB as u64)) <= 8 * MIB);
        assert_eq!(io_memory(1, 1, Some(64 * KIB as u64)), 512 * KIB);
        assert!(io_memory(64, 1, None) <= 64 * MIB);
    }
}
