//! Changes of the catalogue: decided and logged by shard 0, in effect once durable, told to every shard, and only then answered.
//!
//! ```text
//!   ask ─► decide ─► append, apply ─► durable ─► in effect here ─► told to each executor ─► all told: answer
//!            │ another change of the topic is on its way: decide again when that is durable
//! ```

use crate::engine::{
    CatalogueDecision, CatalogueId, CatalogueState, Group, GroupStart, GroupState, HOME, StartAt, Topic, TopicState,
};
use crate::limits::ROOM_WITHIN;
use crate::shard::answers;
use crate::shard::clock;
use crate::shard::executor::Executor;
use crate::shard::mesh_messages::{CatalogueAsked, Request};
use crate::shard::router::Asker;
use crate::shard::runtime;
use crate::shard::state::{Shard, Waiting};
use crate::shard::tickets::Reply;
use peregrine_protocol::entry::EntryDraft;
use peregrine_protocol::error::ErrorCode;
use peregrine_protocol::frame::Kind;
use peregrine_protocol::ids::{Correlation, DurableLevel, Epoch, GroupId, Nanos, ShardId, TopicId};
use peregrine_protocol::message::{GroupAnswer, GroupRow, GroupTopic, TopicAnswer, TopicRetention, TopicRow};
use std::collections::HashMap;
use std::rc::Rc;

/// What is to become of a topic or a group.
#[derive(Clone, Debug)]
pub enum ChangeWanted {
    CreateTopic { name: String, queues: u32, retention: TopicRetention },
    AlterTopic { name: String, queues: Option<u32>, retention: Option<TopicRetention> },
    DeleteTopic { name: String, id: Option<TopicId> },
    CreateGroup { name: String, topics: Vec<(TopicId, StartAt)> },
    DeleteGroup { name: String, id: Option<GroupId> },
}

impl ChangeWanted {
    /// Whether there is more afterwards than before.
    fn is_new(&self) -> bool {
        !matches!(
            self,
            ChangeWanted::DeleteTopic { .. }
                | ChangeWanted::DeleteGroup { .. }
                | ChangeWanted::AlterTopic { queues: None, .. }
        )
    }

    fn kind(&self) -> Kind {
        match self {
            ChangeWanted::CreateTopic { .. } => Kind::CreateTopic,
            ChangeWanted::AlterTopic { .. } => Kind::AlterTopic,
            ChangeWanted::DeleteTopic { .. } => Kind::DeleteTopic,
            ChangeWanted::CreateGroup { .. } => Kind::CreateGroup,
            ChangeWanted::DeleteGroup { .. } => Kind::DeleteGroup,
        }
    }
}

/// What a change is about, as an answer shows it.
#[derive(Clone, Debug)]
enum Object {
    Topic(Topic),
    Group(Group),
}

/// A request for a change, and the object that its answer will show.
#[derive(Clone, Debug)]
pub struct ChangeAsked {
    pub asker: Asker,
    pub correlation: Correlation,
    wanted: ChangeWanted,
    /// Of a deletion: as the object was.
    before: Option<Object>,
    asked_at: Nanos,
}

impl ChangeAsked {
    pub fn new(asker: Asker, correlation: Correlation, wanted: ChangeWanted) -> Self {
        ChangeAsked { asker, correlation, wanted, before: None, asked_at: clock::monotonic() }
    }
}

/// Changes that took effect and that not every executor knows of yet.
#[derive(Default)]
pub struct Home {
    next: u64,
    untold: HashMap<u64, Untold>,
}

struct Untold {
    executors: usize,
    changes: Vec<ChangeAsked>,
}

/// Decides a change and logs it, or answers at once.
pub fn ask(executor: &Rc<Executor>, shard: &Rc<Shard>, mut asked: ChangeAsked) {
    let refused = {
        let core = &mut *shard.core.borrow_mut();
        let now = clock::wall();
        let engine = &core.engine;
        let decided = match &asked.wanted {
            ChangeWanted::CreateTopic { name, queues, retention } => {
                engine.decide_create(name, *queues, *retention, now).map(|decision| decision.map(Object::Topic))
            }
            ChangeWanted::AlterTopic { name, queues, retention } => {
                engine.decide_alter(name, *queues, *retention, now).map(|decision| decision.map(Object::Topic))
            }
            ChangeWanted::DeleteTopic { name, id } => {
                asked.before = engine.topic_named(name).cloned().map(Object::Topic);
                engine.decide_delete(name, *id, now).map(|decision| decision.map(Object::Topic))
            }
            ChangeWanted::CreateGroup { name, topics } => {
                engine.decide_create_group(name, topics, now).map(|decision| decision.map(Object::Group))
            }
            ChangeWanted::DeleteGroup { name, id } => {
                asked.before = engine.group_named(name).cloned().map(Object::Group);
                engine.decide_delete_group(name, *id, now).map(|decision| decision.map(Object::Group))
            }
        };
        match decided {
            Ok(CatalogueDecision::Append { draft, payload }) => match log(core, shard, &draft, &payload, asked) {
                Ok(()) => return,
                Err(refused) => refused,
            },
            Ok(CatalogueDecision::After(end)) => {
                core.waiting.wait(DurableLevel::Synced, end, Waiting::ChangeAgain(asked));
                shard.work.raise();
                return;
            }
            Ok(CatalogueDecision::Done(object)) => {
                answer(executor, &asked, &object, false);
                return;
            }
            Err(refusal) => {
                executor.refuse_refused(asked.asker, asked.correlation, &refusal);
                return;
            }
        }
    };
    match *refused {
        (asked, Some(code)) => executor.refuse(asked.asker, asked.correlation, code),
        (asked, None) => wait_for_room(executor, shard, asked),
    }
}

/// Appends a change's entry and applies it. What the log refuses comes back; without a code it may wait for room.
fn log(
    core: &mut crate::shard::state::Core,
    shard: &Shard,
    draft: &EntryDraft,
    payload: &[u8],
    asked: ChangeAsked,
) -> Result<(), Box<(ChangeAsked, Option<ErrorCode>)>> {
    if !Shard::has_place_to_wait(core) {
        return Err(Box::new((asked, None)));
    }
    // What is kept of a full disk is for what makes room.
    if asked.wanted.is_new() && core.log.is_disk_full() {
        return Err(Box::new((asked, Some(ErrorCode::DiskFull))));
    }
    match core.log.append(draft, payload, clock::monotonic()) {
        Ok(appended) => {
            let header = draft.at(appended.position, core.log.epoch());
            if let Err(error) = core.engine.apply(&header, payload) {
                unreachable!("what was decided in this turn applies: {error}");
            }
            core.waiting.wait(DurableLevel::Synced, appended.end, Waiting::Change(asked));
            shard.work.raise();
            Ok(())
        }
        Err(refused) => Err(Box::new((asked, answers::append_refused(refused)))),
    }
}

fn wait_for_room(executor: &Rc<Executor>, shard: &Rc<Shard>, asked: ChangeAsked) {
    let (executor, shard) = (executor.clone(), shard.clone());
    runtime::spawn(async move {
        if shard.room(asked.asked_at + Nanos::from(ROOM_WITHIN).0).await {
            ask(&executor, &shard, asked);
        } else {
            executor.refuse_with(asked.asker, asked.correlation, &answers::busy());
        }
    })
    .detach();
}

/// At home: changes took effect, and these requests asked for them. They are told to every shard before they are answered.
pub fn took_effect(executor: &Rc<Executor>, shard: &Shard, effects: &[CatalogueState], changes: Vec<ChangeAsked>) {
    for other in executor.local_shards() {
        for state in effects.iter().filter(|_| other.id != HOME) {
            other.learn(state);
        }
    }
    let executors = executor.mesh().peers().count();
    if executors == 0 || effects.is_empty() {
        answer_all(executor, shard, changes);
        return;
    }
    let round = {
        let home = &mut shard.core.borrow_mut().home;
        home.next += 1;
        home.untold.insert(home.next, Untold { executors: executors * effects.len(), changes });
        home.next
    };
    for peer in executor.mesh().peers() {
        for state in effects {
            executor.mesh().request(peer, Request::Catalogue { change: round, state: state.clone() });
        }
    }
}

/// An executor knows of a change.
pub fn told(executor: &Executor, shard: &Shard, round: u64) {
    let changes = {
        let home = &mut shard.core.borrow_mut().home;
        let Some(untold) = home.untold.get_mut(&round) else { return };
        untold.executors -= 1;
        if untold.executors > 0 {
            return;
        }
        home.untold.remove(&round).map(|untold| untold.changes)
    };
    answer_all(executor, shard, changes.unwrap_or_default());
}

fn answer_all(executor: &Executor, shard: &Shard, changes: Vec<ChangeAsked>) {
    for asked in changes {
        let (object, gone) = {
            let engine = &shard.core.borrow().engine;
            match &asked.wanted {
                ChangeWanted::DeleteTopic { .. } => (asked.before.clone(), ErrorCode::TopicDeleted),
                ChangeWanted::DeleteGroup { .. } => (asked.before.clone(), ErrorCode::GroupDeleted),
                ChangeWanted::CreateTopic { name, .. } | ChangeWanted::AlterTopic { name, .. } => {
                    (engine.topic_named(name).cloned().map(Object::Topic), ErrorCode::TopicDeleted)
                }
                ChangeWanted::CreateGroup { name, .. } => {
                    (engine.group_named(name).cloned().map(Object::Group), ErrorCode::GroupDeleted)
                }
            }
        };
        match object {
            Some(object) => answer(executor, &asked, &object, true),
            // Deleted again before everybody was told of it.
            None => executor.refuse(asked.asker, asked.correlation, gone),
        }
    }
}

fn answer(executor: &Executor, asked: &ChangeAsked, object: &Object, changed: bool) {
    let (kind, correlation) = (asked.wanted.kind(), asked.correlation);
    match object {
        Object::Topic(topic) => {
            let answer = TopicAnswer { topic: row(topic), changed };
            executor.answer(asked.asker, |out| answer.encode(kind, correlation, out));
        }
        Object::Group(group) => {
            let topics = group_topics(group);
            let answer = GroupAnswer { group: group_row(group, &topics), changed };
            executor.answer(asked.asker, |out| answer.encode(kind, correlation, out));
        }
    }
}

/// A group as answers show it; `topics` are its [`group_topics`].
pub fn group_row<'a>(group: &'a Group, topics: &'a [GroupTopic]) -> GroupRow<'a> {
    GroupRow { name: &group.name, id: group.id, created: group.created, topics: topics.into() }
}

pub fn group_topics(group: &Group) -> Vec<GroupTopic> {
    let start = |start| match start {
        GroupStart::Earliest => StartAt::Earliest,
        GroupStart::Time(time) => StartAt::Time(time),
        GroupStart::Offset(offset) => StartAt::Offset { epoch: Epoch::ANY, offset },
    };
    group.topics.iter().map(|&(topic, from)| GroupTopic { topic, start: start(from) }).collect()
}

/// A topic as answers show it.
pub fn row(topic: &Topic) -> TopicRow<'_> {
    let &Topic { id, queues, created, .. } = topic;
    TopicRow { name: &topic.name, id, queues, created, retention: topic.retention.wanted }
}

/// Asks shard 0 about what `shard` does not know, or not with what a request names, and tells the shards here. True when that
/// was news.
pub async fn ask_home(executor: &Rc<Executor>, shard: ShardId, about: CatalogueId) -> bool {
    let before = executor.shard(shard).map(|shard| shard.catalogue_state(about));
    let state = learn_from_home(executor, CatalogueAsked::Id(about)).await;
    state.is_some() && before != state
}

/// Asks shard 0 about the name of a topic or a group that a copy of the catalogue here lacks. True when there is one.
pub async fn ask_home_by_name(executor: &Rc<Executor>, asked: CatalogueAsked) -> bool {
    let state = learn_from_home(executor, asked).await;
    matches!(state, Some(CatalogueState::Topic(TopicState::Live(_)) | CatalogueState::Group(GroupState::Live(_))))
}

/// Asks shard 0, and tells the shards here.
async fn learn_from_home(executor: &Rc<Executor>, asked: CatalogueAsked) -> Option<CatalogueState> {
    let state = if let Some(home) = executor.shard(HOME) {
        home.catalogue_asked(&asked)
    } else {
        let home = executor.layout.executor_of(HOME);
        let answer = executor.tickets.ask(|ticket| {
            executor.mesh().request(home, Request::AskCatalogue { ticket, asked });
        });
        match answer.await {
            Some(Reply::Catalogue(state)) => state,
            _ => None,
        }
    }?;
    for local in executor.local_shards() {
        local.learn(&state);
    }
    Some(state)
}
