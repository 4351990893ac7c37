//! One executor of a simulated process: two queues of tasks, and timers on the machine's clock.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::collections::btree_map::{BTreeMap, OccupiedEntry};
use std::future::Future;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use super::network::Network;
use super::process::ProcessOptions;
use crate::log::disk::simulated::{Machine, Random};

thread_local! {
    /// The scheduler whose task is polled on this thread.
    static HERE: RefCell<Option<Rc<Scheduler>>> = const { RefCell::new(None) };
}

type Boxed = Pin<Box<dyn Future<Output = ()>>>;

/// Tasks that were woken, in order.
#[derive(Debug, Default)]
struct Ready {
    hot: VecDeque<u64>,
    background: VecDeque<u64>,
}

struct Slot {
    /// Taken while it is polled.
    future: Option<Boxed>,
    woken: Arc<Woken>,
}

/// Puts its task into the queue, once until it is polled.
struct Woken {
    task: u64,
    is_background: bool,
    is_queued: AtomicBool,
    ready: Arc<Mutex<Ready>>,
}

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        if !self.is_queued.swap(true, Ordering::Relaxed) {
            let mut ready = locked(&self.ready);
            let queue = if self.is_background { &mut ready.background } else { &mut ready.hot };
            queue.push_back(self.task);
        }
    }
}

fn locked(ready: &Mutex<Ready>) -> MutexGuard<'_, Ready> {
    ready.lock().unwrap_or_else(PoisonError::into_inner)
}

/// See the module.
pub struct Scheduler {
    machine: Machine,
    network: Network,
    options: ProcessOptions,
    next_task: Cell<u64>,
    tasks: RefCell<BTreeMap<u64, Slot>>,
    ready: Arc<Mutex<Ready>>,
    next_timer: Cell<u64>,
    timers: RefCell<BTreeMap<(u64, u64), Waker>>,
    random: RefCell<Random>,
}

/// Where a background task is ready beside a hot one, it is taken once in so many times.
const BACKGROUND_ONE_IN: u64 = 8;

impl Scheduler {
    pub(super) fn new(machine: &Machine, network: &Network, options: &ProcessOptions) -> Rc<Self> {
        let random = RefCell::new(machine.fork_random());
        Rc::new(Self {
            machine: machine.clone(),
            network: network.clone(),
            options: options.clone(),
            next_task: Cell::new(0),
            tasks: RefCell::default(),
            ready: Arc::default(),
            next_timer: Cell::new(0),
            timers: RefCell::default(),
            random,
        })
    }

    /// The one whose task is polled on this thread; `None` outside simulations.
    pub fn here() -> Option<Rc<Scheduler>> {
        HERE.with_borrow(Clone::clone)
    }

    /// The same, or what follows from it: most callers want a part of it alone.
    pub fn with_here<T>(look: impl FnOnce(&Scheduler) -> T) -> Option<T> {
        HERE.with_borrow(|here| here.as_deref().map(look))
    }

    /// Runs `work` as if a task of this scheduler did.
    pub(super) fn enter<T>(self: &Rc<Self>, work: impl FnOnce() -> T) -> T {
        struct Leave(Option<Rc<Scheduler>>);
        impl Drop for Leave {
            fn drop(&mut self) {
                HERE.set(self.0.take());
            }
        }
        let _leave = Leave(HERE.replace(Some(self.clone())));
        work()
    }

    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    pub fn network(&self) -> &Network {
        &self.network
    }

    pub fn options(&self) -> &ProcessOptions {
        &self.options
    }

    // Tasks.

    pub fn spawn<T: 'static>(
        self: &Rc<Self>,
        future: impl Future<Output = T> + 'static,
        is_background: bool,
    ) -> Task<T> {
        let id = self.next_task.get();
        self.next_task.set(id + 1);
        let output = Rc::new(Output { value: RefCell::new(None), waiting: RefCell::new(None) });
        let told = output.clone();
        let future = Box::pin(async move {
            let value = future.await;
            *told.value.borrow_mut() = Some(value);
            if let Some(waker) = told.waiting.borrow_mut().take() {
                waker.wake();
            }
        });
        let woken =
            Arc::new(Woken { task: id, is_background, is_queued: AtomicBool::new(false), ready: self.ready.clone() });
        self.tasks.borrow_mut().insert(id, Slot { future: Some(future), woken: woken.clone() });
        woken.wake();
        Task { output, id, scheduler: Rc::downgrade(self), is_detached: false }
    }

    pub(super) fn has_ready(&self) -> bool {
        let ready = locked(&self.ready);
        !ready.hot.is_empty() || !ready.background.is_empty()
    }

    /// Polls one task that was woken: the first of its queue, as in production.
    pub(super) fn run_one(self: &Rc<Self>) {
        let Some(id) = self.next_ready() else { return };
        let taken = self.tasks.borrow_mut().get_mut(&id).map(|slot| (slot.future.take(), slot.woken.clone()));
        let Some((Some(mut future), woken)) = taken else { return };
        woken.is_queued.store(false, Ordering::Relaxed);
        let waker = Waker::from(woken);
        let polled = self.enter(|| future.as_mut().poll(&mut Context::from_waker(&waker)));
        let mut tasks = self.tasks.borrow_mut();
        match polled {
            Poll::Ready(()) => drop(tasks.remove(&id)),
            // One that was cancelled meanwhile has no slot any more.
            Poll::Pending => {
                if let Some(slot) = tasks.get_mut(&id) {
                    slot.future = Some(future);
                    return;
                }
            }
        }
        drop(tasks);
        self.enter(|| drop(future));
    }

    fn next_ready(&self) -> Option<u64> {
        let mut ready = locked(&self.ready);
        let background_first = || self.random.borrow_mut().one_in(BACKGROUND_ONE_IN);
        if !ready.background.is_empty() && (ready.hot.is_empty() || background_first()) {
            return ready.background.pop_front();
        }
        ready.hot.pop_front()
    }

    /// Ends all tasks: what the end of the process does to them.
    pub(super) fn end(self: &Rc<Self>) {
        self.enter(|| {
            // What is dropped may cancel others.
            while let Some((_, slot)) = { self.tasks.borrow_mut().pop_first() } {
                drop(slot);
            }
        });
        self.timers.borrow_mut().clear();
    }

    fn cancel(self: &Rc<Self>, id: u64) {
        let slot = self.tasks.borrow_mut().remove(&id);
        drop(slot);
    }

    // Time.

    pub fn sleep(self: &Rc<Self>, time: Duration) -> Sleep {
        Sleep { scheduler: Rc::downgrade(self), due: self.machine.now() + nanos(time), registered: None }
    }

    /// When the next timer is due.
    pub(super) fn next_due(&self) -> Option<u64> {
        self.timers.borrow().first_key_value().map(|(&(due, _), _)| due)
    }

    /// Wakes who waits for a time that has come.
    pub(super) fn fire_timers(&self) {
        let now = self.machine.now();
        loop {
            let fired = {
                let mut timers = self.timers.borrow_mut();
                timers.first_entry().filter(|first| first.key().0 <= now).map(OccupiedEntry::remove)
            };
            match fired {
                Some(waker) => waker.wake(),
                None => return,
            }
        }
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX / 2)
}

/// Ready at an instant of the machine's clock.
pub struct Sleep {
    scheduler: Weak<Scheduler>,
    due: u64,
    registered: Option<(u64, u64)>,
}

impl Sleep {
    /// Begins anew.
    pub fn reset(&mut self, time: Duration) {
        self.unregister();
        if let Some(scheduler) = self.scheduler.upgrade() {
            self.due = scheduler.machine.now() + nanos(time);
        }
    }

    fn unregister(&mut self) {
        if let (Some(key), Some(scheduler)) = (self.registered.take(), self.scheduler.upgrade()) {
            scheduler.timers.borrow_mut().remove(&key);
        }
    }
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let Some(scheduler) = self.scheduler.upgrade() else { return Poll::Pending };
        if scheduler.machine.now() >= self.due {
            self.unregister();
            return Poll::Ready(());
        }
        let key = *self.registered.get_or_insert_with(|| {
            let number = scheduler.next_timer.get();
            scheduler.next_timer.set(number + 1);
            (0, number)
        });
        let key = (self.due, key.1);
        self.registered = Some(key);
        scheduler.timers.borrow_mut().insert(key, context.waker().clone());
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        self.unregister();
    }
}

struct Output<T> {
    value: RefCell<Option<T>>,
    waiting: RefCell<Option<Waker>>,
}

/// A task's output to be. Dropped, the task is cancelled.
pub struct Task<T> {
    output: Rc<Output<T>>,
    id: u64,
    scheduler: Weak<Scheduler>,
    is_detached: bool,
}

impl<T> Task<T> {
    pub fn detach(mut self) {
        self.is_detached = true;
    }
}

impl<T> Future for Task<T> {
    type Output = T;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        if let Some(value) = self.output.value.borrow_mut().take() {
            return Poll::Ready(value);
        }
        *self.output.waiting.borrow_mut() = Some(context.waker().clone());
        Poll::Pending
    }
}

impl<T> Drop for Task<T> {
    fn drop(&mut self) {
        if !self.is_detached
            && let Some(scheduler) = self.scheduler.upgrade()
        {
            scheduler.cancel(self.id);
        }
    }
}
