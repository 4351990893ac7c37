//! What the application's half of a consumer and its task have in common: the member's core, and the links that its actions go out on.
//! One lock guards it, held for the length of one call of the core.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use peregrine_protocol::error::ErrorCode;
use peregrine_protocol::ids::{Nanos, ShardId, TopicId};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::client::Client;
use crate::error::Error;
use crate::group::{Action, MemberCore, Notice, QueueKey, Token};
use crate::link::{Generation, Link, Listener, MemberRequest};
use crate::message::Delivery;

/// Errors kept for an application that does not ask; what comes then is not told.
const ERRORS_MAX: usize = 1_024;

#[derive(Debug)]
pub(super) struct Shared {
    state: Mutex<State>,
    /// A message, an error, the end, or a queue that is free again: what `next`, `run` and `close` wait for.
    pub news: Notify,
    /// The application's calls have changed when the task is to wake, or that it is to end.
    pub changed: Notify,
}

#[derive(Debug)]
pub(super) struct State {
    pub core: MemberCore<Delivery>,
    client: Client,
    listener: Listener,
    pub links: HashMap<ShardId, (Link, Option<Generation>)>,
    /// Since when a shard cannot be reached.
    pub unreachable_since: BTreeMap<ShardId, Instant>,
    started: Instant,
    pub topics: HashMap<TopicId, Arc<str>>,
    /// Of them, those that were deleted.
    gone: HashSet<TopicId>,
    /// For the application, and what ends nothing.
    errors: VecDeque<Error>,
    failure: Option<Error>,
    /// The failure was told, or the consumer was closed.
    pub is_over: bool,
    /// Queues of which a handler has a message.
    pub busy: HashSet<QueueKey>,
}

/// What `next` finds.
pub(super) enum Found {
    Message(Box<Delivery>),
    Error(Error),
    Nothing,
    /// And there never will be anything.
    End,
}

impl Shared {
    pub fn new(
        core: MemberCore<Delivery>,
        client: Client,
        listener: Listener,
        topics: HashMap<TopicId, Arc<str>>,
    ) -> Self {
        let state = State {
            core,
            client,
            listener,
            links: HashMap::new(),
            unreachable_since: BTreeMap::new(),
            started: Instant::now(),
            topics,
            gone: HashSet::new(),
            errors: VecDeque::new(),
            failure: None,
            is_over: false,
            busy: HashSet::new(),
        };
        Self { state: Mutex::new(state), news: Notify::new(), changed: Notify::new() }
    }

    /// The state, to be looked at.
    pub fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does something with the core, then what follows from it.
    pub fn with<T>(&self, work: impl FnOnce(&mut State, Nanos) -> T) -> T {
        let mut state = self.lock();
        let now = state.now();
        let result = work(&mut state, now);
        state.follow();
        result
    }

    /// The application is done with a message. `false`: it was not this consumer's any more, or was done before.
    pub fn done(&self, token: &Token) -> bool {
        self.with(|state, now| state.core.done(token, now))
    }
}

impl State {
    /// Since the consumer was made.
    fn now(&self) -> Nanos {
        Nanos::from(self.started.elapsed())
    }

    /// When the core is to be woken.
    pub fn next_wake(&self) -> Option<Instant> {
        self.core.next_wake().map(|at| self.started + at.to_duration())
    }

    /// The next message or error.
    pub fn next(&mut self) -> Found {
        if let Some(error) = self.errors.pop_front() {
            return Found::Error(error);
        }
        let Self { core, busy, .. } = self;
        if let Some((token, mut message)) = core.next_message(|key| busy.contains(&key)) {
            message.token = Some(token);
            return Found::Message(Box::new(message));
        }
        if self.is_over {
            return Found::End;
        }
        match self.failure().cloned() {
            Some(error) => {
                self.is_over = true;
                Found::Error(error)
            }
            None if self.core.is_over() => Found::End,
            None => Found::Nothing,
        }
    }

    /// Why it has ended, if not by being closed.
    pub fn failure(&self) -> Option<&Error> {
        self.failure.as_ref().or_else(|| self.core.failure())
    }

    pub fn fail(&mut self, error: Error) {
        self.failure.get_or_insert(error);
    }

    pub fn tell(&mut self, error: Error) {
        if self.errors.len() < ERRORS_MAX {
            self.errors.push_back(error);
        }
    }

    /// The error of a shard that could not be reached in time.
    pub fn timed_out(&self, shard: ShardId) -> Error {
        self.client.timed_out(&self.client.link(shard))
    }

    /// Sends what the core wants sent, and keeps what the application is to know.
    fn follow(&mut self) {
        while let Some(action) = self.core.next_action() {
            self.carry_out(action);
        }
        while let Some(notice) = self.core.next_notice() {
            self.note(notice);
        }
    }

    fn carry_out(&mut self, action: Action) {
        let (shard, request) = match action {
            Action::Connect(shard) => {
                let link = self.client.link(shard);
                link.listen(self.listener.clone());
                self.links.insert(shard, (link, None));
                self.unreachable_since.insert(shard, Instant::now());
                return;
            }
            Action::Join(shard) => {
                let join = self.core.join_request();
                let topics = join.topics.iter().collect();
                let (name, client) = (join.member.to_owned(), join.client.to_owned());
                (shard, MemberRequest::Join { group: join.group, name, topics, client })
            }
            Action::Heartbeat(shard, _)
            | Action::Leave(shard, _)
            | Action::Subscribe(shard, ..)
            | Action::Ack(shard, ..)
            | Action::Credit(shard, _)
            | Action::Unsubscribe(shard, ..) => (shard, MemberRequest::Do(action)),
        };
        if let Some((link, Some(generation))) = self.links.get(&shard) {
            link.member(*generation, request, self.listener.clone());
        }
    }

    fn note(&mut self, notice: Notice) {
        match notice {
            Notice::Truncated { key, at } => self.tell(Error::Truncated { queue: key.queue, at }),
            Notice::Refused { key, refusal } => {
                let is_gone = matches!(refusal.code(), Some(ErrorCode::TopicDeleted | ErrorCode::UnknownTopic));
                if !is_gone {
                    self.tell(refusal.into());
                } else if self.gone.insert(key.topic) {
                    // Once, and not for each of its queues.
                    if self.gone.len() < self.topics.len() {
                        self.tell(refusal.into());
                    } else {
                        self.fail(refusal.into());
                    }
                }
            }
        }
    }
}
