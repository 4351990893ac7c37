//! Questions to other executors that tasks wait for: a number that travels with the question, and the place for its answer.

use crate::engine::CatalogueState;
use crate::shard::event::Event;
use crate::shard::reports::ShardReport;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;

/// An answer from another executor.
pub enum Reply {
    Catalogue(Option<CatalogueState>),
    Reports(Vec<ShardReport>),
}

#[derive(Default)]
struct Question {
    reply: RefCell<Option<Reply>>,
    answered: Event,
}

/// The open questions of one executor. Each is answered, since an executor ends only with the process.
#[derive(Default)]
pub struct Tickets {
    next: Cell<u64>,
    open: RefCell<HashMap<u64, Rc<Question>>>,
}

impl Tickets {
    /// Asks with a new number, and waits for the answer.
    pub async fn ask(&self, send: impl FnOnce(u64)) -> Option<Reply> {
        let ticket = self.next.get();
        self.next.set(ticket + 1);
        let question = Rc::new(Question::default());
        self.open.borrow_mut().insert(ticket, question.clone());
        send(ticket);
        question.answered.wait().await;
        question.reply.borrow_mut().take()
    }

    pub fn answer(&self, ticket: u64, reply: Reply) {
        if let Some(question) = self.open.borrow_mut().remove(&ticket) {
            *question.reply.borrow_mut() = Some(reply);
            question.answered.raise();
        }
    }
}
