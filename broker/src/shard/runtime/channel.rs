//! A bounded channel from one executor to another: glommio's lock-free ring, or a simulation's queue.

use crate::simulated::{self, Scheduler};
use glommio::channels::shared_channel::{self, ConnectedReceiver, ConnectedSender, SharedReceiver, SharedSender};
use glommio::{GlommioError, ResourceType};

/// The sending end, before it is connected. It may change threads; what is connected may not.
#[derive(Debug)]
pub enum SenderEnd<T: Send + 'static> {
    Real(SharedSender<T>),
    Simulated(simulated::Channel<T>),
}

/// The receiving end, before it is connected.
#[derive(Debug)]
pub enum ReceiverEnd<T: Send + 'static> {
    Real(SharedReceiver<T>),
    Simulated(simulated::Channel<T>),
}

/// A channel of so many slots.
pub fn bounded<T: Send + 'static>(slots: usize) -> (SenderEnd<T>, ReceiverEnd<T>) {
    if Scheduler::here().is_some() {
        let channel = simulated::Channel::new(slots);
        return (SenderEnd::Simulated(channel.clone()), ReceiverEnd::Simulated(channel));
    }
    let (sender, receiver) = shared_channel::new_bounded(slots);
    (SenderEnd::Real(sender), ReceiverEnd::Real(receiver))
}

impl<T: Send + 'static> SenderEnd<T> {
    /// Ready when the other end is connected too.
    pub async fn connect(self) -> Sender<T> {
        match self {
            SenderEnd::Real(sender) => Sender::Real(sender.connect().await),
            SenderEnd::Simulated(channel) => Sender::Simulated(channel),
        }
    }
}

impl<T: Send + 'static> ReceiverEnd<T> {
    /// Ready when the other end is connected too.
    pub async fn connect(self) -> Receiver<T> {
        match self {
            ReceiverEnd::Real(receiver) => Receiver::Real(receiver.connect().await),
            ReceiverEnd::Simulated(channel) => Receiver::Simulated(channel),
        }
    }
}

/// What a channel did not take: it is full, or nobody receives any more.
#[derive(Debug)]
pub enum Refused<T> {
    Full(T),
    Gone,
}

pub enum Sender<T: Send + 'static> {
    Real(ConnectedSender<T>),
    Simulated(simulated::Channel<T>),
}

impl<T: Send + 'static> Sender<T> {
    pub fn try_send(&self, message: T) -> Result<(), Refused<T>> {
        match self {
            Sender::Real(sender) => sender.try_send(message).map_err(|error| match error {
                GlommioError::WouldBlock(ResourceType::Channel(rest)) => Refused::Full(rest),
                _ => Refused::Gone,
            }),
            Sender::Simulated(channel) => channel.try_send(message).map_err(Refused::Full),
        }
    }

    /// Waits for a slot. False where nobody receives any more.
    pub async fn send(&self, message: T) -> bool {
        match self {
            Sender::Real(sender) => sender.send(message).await.is_ok(),
            Sender::Simulated(channel) => {
                channel.send(message).await;
                true
            }
        }
    }
}

pub enum Receiver<T: Send + 'static> {
    Real(ConnectedReceiver<T>),
    Simulated(simulated::Channel<T>),
}

impl<T: Send + 'static> Receiver<T> {
    /// The next message; `None` where nobody sends any more.
    pub async fn recv(&self) -> Option<T> {
        match self {
            Receiver::Real(receiver) => receiver.recv().await,
            Receiver::Simulated(channel) => Some(channel.recv().await),
        }
    }
}
