//! Who makes topics, gives them more queues and deletes them, one request at a time, each until it is answered.

use std::fmt;
use std::rc::Rc;

use peregrine_client::error::Refusal;
use peregrine_protocol::error::ErrorCode;
use peregrine_protocol::ids::{Nanos, ShardId, TopicId};
use peregrine_protocol::limits::PAGE_ITEMS_MAX;
use peregrine_protocol::message::{
    AlterTopic, Answer, CreateTopic, DeleteTopic, Metadata, Names, Request, TopicRetention, TopicRow,
};

use super::catalogue::Topic;
use super::link::{Link, Reply, Said};
use super::world::World;
use crate::simulator::{Violation, promise};

/// After a refusal that may pass.
const RETRY: u64 = 20_000_000;

/// Topics of one simulation.
const TOPICS_MAX: u64 = 4;

/// What is to be done.
#[derive(Clone, Debug)]
enum Order {
    Create {
        name: Rc<str>,
        queues: u32,
        age: Option<Nanos>,
    },
    Grow {
        name: Rc<str>,
        queues: u32,
    },
    Delete {
        name: Rc<str>,
        id: TopicId,
    },
    /// All topics that were known, with their queues.
    List {
        known: Vec<Topic>,
    },
}

pub struct Administrator {
    link: Link<Order>,
    order: Option<Order>,
    /// Topics to make before anything else.
    to_make: u64,
    made: u64,
    /// Topics may have an age of their own.
    ages: bool,
    /// Between two orders, at most.
    pause: u64,
    next_order: u64,
}

impl Administrator {
    pub fn new(world: &mut World, topics: u64, ages: bool, pause: u64) -> Self {
        let shard = world.random.coin().then(|| ShardId(world.pick_shard()));
        let link = Link::new("administrator".to_owned(), shard, world.random.next_u64());
        Self { link, order: None, to_make: topics, made: 0, ages, pause, next_order: 0 }
    }

    /// Whether all that is to be made is there, and no change is under way.
    pub fn is_idle(&self) -> bool {
        self.made >= self.to_make && matches!(self.order, None | Some(Order::List { .. }))
    }

    pub fn next_wake(&self, now: u64) -> u64 {
        let ready = self.link.is_ready() && self.link.outstanding() == 0;
        self.link.next_wake(now).min(if ready { self.next_order } else { u64::MAX })
    }

    pub fn act(&mut self, world: &mut World) -> Result<(), Violation> {
        for said in self.link.turn(world)? {
            match said {
                Said::Ready | Said::Lost => {}
                Said::Answered { asked, answer } => self.answered(world, &asked, &answer)?,
                Said::Refused { asked, refusal } => self.refused(world, &asked, &refusal)?,
                _ => return Err(Violation("the administrator was told what it did not ask".to_owned())),
            }
        }
        if self.link.is_ready() && self.link.outstanding() == 0 && world.now() >= self.next_order {
            if self.order.is_none() {
                self.order = Some(self.next_order(world));
            }
            self.send(world);
            self.next_order = world.now() + world.random.below(self.pause + 1);
        }
        Ok(())
    }

    fn next_order(&mut self, world: &mut World) -> Order {
        if self.made < self.to_make || (self.made < TOPICS_MAX && !world.is_calm && world.random.one_in(12)) {
            self.made += 1;
            let age = if self.ages && world.random.coin() {
                Some(Nanos::from_millis(world.random.between(5, 500)))
            } else {
                None
            };
            let name = Rc::from(format!("topic-{}", self.made));
            return Order::Create { name, queues: world.random.between(1, 4) as u32, age };
        }
        let known = world.catalogue.topics();
        let spare = known.get(1..).unwrap_or_default();
        if world.is_calm || spare.is_empty() {
            return Order::List { known: known.to_vec() };
        }
        let topic = spare[world.random.below(spare.len() as u64) as usize].clone();
        match world.random.below(8) {
            0 => Order::Delete { name: topic.name, id: topic.id },
            1 | 2 => Order::Grow { name: topic.name, queues: topic.queues + world.random.below(2) as u32 },
            _ => Order::List { known: known.to_vec() },
        }
    }

    fn send(&mut self, world: &mut World) {
        let Some(order) = self.order.clone() else { return };
        let now = world.now();
        match &order {
            Order::Create { name, queues, age } => {
                let retention = TopicRetention { age: *age };
                let create = CreateTopic { name, queues: *queues, retention };
                self.link.request(now, &Request::CreateTopic(create), order.clone());
            }
            Order::Grow { name, queues } => {
                let alter = AlterTopic { name, queues: Some(*queues), retention: None };
                self.link.request(now, &Request::AlterTopic(alter), order.clone());
            }
            Order::Delete { name, id } => {
                world.ledger.topic_doomed(*id);
                let delete = DeleteTopic { name, id: Some(*id) };
                self.link.request(now, &Request::DeleteTopic(delete), order.clone());
            }
            Order::List { .. } => {
                let all = Metadata { names: Names::from(&[][..]), after: "", limit: PAGE_ITEMS_MAX };
                self.link.request(now, &Request::Metadata(all), order.clone());
            }
        }
    }

    fn answered(&mut self, world: &mut World, asked: &Order, reply: &Reply) -> Result<(), Violation> {
        self.order = None;
        match (asked, reply.answer()) {
            (Order::Create { name, queues, age }, Some(Answer::CreateTopic(answer))) => {
                Self::check(name, *queues, &answer.topic)?;
                let known = world.catalogue.topics().iter().any(|topic| topic.id == answer.topic.id);
                promise!(!known, "two topics have the id {:?}", answer.topic.id);
                world.statistics.topics += 1;
                world.ledger.topic_made(answer.topic.id, *age);
                let topic = Topic { name: name.clone(), id: answer.topic.id, queues: *queues };
                world.catalogue.note(topic);
            }
            (Order::Grow { name, queues }, Some(Answer::AlterTopic(answer))) => {
                Self::check(name, *queues, &answer.topic)?;
                world.statistics.topics_grown += 1;
                let known = world.catalogue.find(answer.topic.id).cloned();
                world.catalogue.note(Topic { queues: *queues, ..known.ok_or(Violation(format!("{name} is new")))? });
            }
            (Order::Delete { id, .. }, Some(Answer::DeleteTopic(_))) => {
                world.statistics.topics_deleted += 1;
                world.catalogue.forget(*id);
            }
            (Order::List { known }, Some(Answer::Metadata(answer))) => {
                for topic in known {
                    let row = answer.topics.iter().find(|row| row.id == topic.id);
                    let holds = row.is_some_and(|row| row.name == &*topic.name && row.queues >= topic.queues);
                    promise!(
                        holds || answer.more || world.ledger.is_doomed(topic.id),
                        "{topic:?} was made, and the broker says {row:?}"
                    );
                }
            }
            _ => return Err(Violation(format!("{asked:?} was answered otherwise"))),
        }
        Ok(())
    }

    fn check(name: &str, queues: u32, row: &TopicRow<'_>) -> Result<(), Violation> {
        promise!(row.name == name && row.queues == queues, "{name} with {queues} queues was answered {row:?}");
        Ok(())
    }

    fn refused(&mut self, world: &mut World, asked: &Order, refusal: &Refusal) -> Result<(), Violation> {
        let gone = matches!(refusal.code(), Some(ErrorCode::UnknownTopic | ErrorCode::TopicDeleted));
        match asked {
            _ if refusal.retriable => self.next_order = world.now() + RETRY,
            // An answer was lost.
            Order::Delete { id, .. } if gone => {
                world.catalogue.forget(*id);
                self.order = None;
            }
            _ => return Err(Violation(format!("{asked:?} was refused: {refusal}"))),
        }
        Ok(())
    }
}

impl fmt::Display for Administrator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (is_ready, outstanding) = (self.link.is_ready(), self.link.outstanding());
        write!(f, "the administrator with {:?} (connection ready: {is_ready}, unanswered: {outstanding})", self.order)
    }
}
