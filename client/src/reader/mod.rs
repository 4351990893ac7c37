//! Reading without a group: the application's half. A task keeps the subscriptions; what it receives waits here until it is taken, and
//! what is taken becomes credit.

mod builder;
mod place;
mod task;

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use peregrine_protocol::entry::DirectoryId;
use peregrine_protocol::ids::QueueId;
use tokio::sync::mpsc;

pub use self::builder::ReaderBuilder;
use self::task::{Consumed, Piece};
use crate::error::{Error, Result};
use crate::message::Delivery;

/// Reads queues of one topic from a chosen start on, as they were stored: in order per queue, each message once, however often
/// connections break or the broker is started again.
///
/// Every message is checked against the checksums that its producer made. Where a failure of the broker took back messages that had
/// been read, `next` gives [`Error::Truncated`] once and goes on behind it; so it does with [`Error::TooOld`] where retention took
/// messages before they were read.
///
/// ```no_run
/// # async fn example(client: peregrine_client::Client) -> peregrine_client::Result<()> {
/// use peregrine_client::{QueueId, Start};
///
/// // All that is there now, of two queues; ends by itself.
/// let mut reader = client.reader("orders").queues([QueueId(0), QueueId(3)]).from(Start::Earliest).until_end().build().await?;
/// while let Some(message) = reader.next().await {
///     let message = message?;
///     println!("{} {}: {:?}", message.queue, message.offset, message.body);
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Reader {
    topic: Arc<str>,
    directory: DirectoryId,
    pieces: mpsc::UnboundedReceiver<Piece>,
    consumed: mpsc::UnboundedSender<Consumed>,
    ready: VecDeque<Delivery>,
    /// What the batch in `ready` becomes when it is taken.
    due: Option<Consumed>,
}

impl Reader {
    /// The next message of any queue; `None` when there will be none: with [`ReaderBuilder::until_end`] at the end, otherwise after an
    /// error that ends the reader. Dropping the future loses nothing.
    pub async fn next(&mut self) -> Option<Result<Delivery>> {
        loop {
            if let Some(result) = self.next_ready() {
                return Some(result);
            }
            let piece = self.pieces.recv().await?;
            if let Some(result) = self.open(piece) {
                return Some(result);
            }
        }
    }

    /// The next message if one is here already; `None` says only that one would have to be waited for.
    pub fn try_next(&mut self) -> Option<Result<Delivery>> {
        loop {
            if let Some(result) = self.next_ready() {
                return Some(result);
            }
            let piece = self.pieces.try_recv().ok()?;
            if let Some(result) = self.open(piece) {
                return Some(result);
            }
        }
    }

    fn next_ready(&mut self) -> Option<Result<Delivery>> {
        let message = self.ready.pop_front()?;
        if self.ready.is_empty() {
            self.give_back();
        }
        Some(Ok(message))
    }

    fn open(&mut self, piece: Piece) -> Option<Result<Delivery>> {
        match piece {
            Piece::Batch { batch, consumed } => {
                self.due = Some(consumed);
                match batch.messages(&self.topic, self.directory) {
                    Ok(messages) => {
                        self.ready.extend(messages);
                        None
                    }
                    Err(error) => {
                        self.give_back();
                        Some(Err(error))
                    }
                }
            }
            Piece::Error(error) => Some(Err(error)),
        }
    }

    /// The room of a batch that was taken whole.
    fn give_back(&mut self) {
        if let Some(consumed) = self.due.take() {
            let _ = self.consumed.send(consumed); // the task may have ended: it needs no credit then
        }
    }
}

/// Which queues are read.
#[derive(Debug, Clone)]
enum Queues {
    All,
    These(Vec<QueueId>),
}

/// A body as text, where it is some.
impl Delivery {
    /// The body as UTF-8 text.
    pub fn text(&self) -> Option<&str> {
        str::from_utf8(&self.body).ok()
    }

    /// The body alone.
    pub fn into_body(self) -> Bytes {
        self.body
    }
}

/// An error after which the reader, or the queue, is at its end.
fn is_fatal(error: &Error) -> bool {
    !matches!(error, Error::Truncated { .. } | Error::TooOld { .. } | Error::Corrupt { .. })
}
