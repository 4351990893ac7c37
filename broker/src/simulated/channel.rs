//! A bounded channel between the schedulers of one process.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};

#[derive(Debug)]
struct State<T> {
    slots: usize,
    messages: VecDeque<T>,
    sender: Option<Waker>,
    receiver: Option<Waker>,
}

/// Either end of it. There is one thread; the lock only says that it could be two.
#[derive(Debug)]
pub struct Channel<T> {
    state: Arc<Mutex<State<T>>>,
}

impl<T> Clone for Channel<T> {
    fn clone(&self) -> Self {
        Self { state: self.state.clone() }
    }
}

impl<T> Channel<T> {
    pub fn new(slots: usize) -> Self {
        let state = State { slots, messages: VecDeque::new(), sender: None, receiver: None };
        Self { state: Arc::new(Mutex::new(state)) }
    }

    fn state(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives the message back where there is no slot.
    pub fn try_send(&self, message: T) -> Result<(), T> {
        let mut state = self.state();
        if state.messages.len() >= state.slots {
            return Err(message);
        }
        state.messages.push_back(message);
        if let Some(waker) = state.receiver.take() {
            waker.wake();
        }
        Ok(())
    }

    pub async fn send(&self, message: T) {
        let mut message = Some(message);
        poll_fn(|context| {
            let Some(next) = message.take() else { return Poll::Ready(()) };
            match self.try_send(next) {
                Ok(()) => Poll::Ready(()),
                Err(rest) => {
                    message = Some(rest);
                    self.state().sender = Some(context.waker().clone());
                    Poll::Pending
                }
            }
        })
        .await;
    }

    pub async fn recv(&self) -> T {
        poll_fn(|context| {
            let mut state = self.state();
            let Some(message) = state.messages.pop_front() else {
                state.receiver = Some(context.waker().clone());
                return Poll::Pending;
            };
            if let Some(waker) = state.sender.take() {
                waker.wake();
            }
            Poll::Ready(message)
        })
        .await
    }
}
