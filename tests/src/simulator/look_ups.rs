//! What the indexes of a shard's sealed segments are asked, as in production: in the background for readers, at once for requests.

use peregrine_broker::engine::{Asked, Delivery, Engine, IndexEntry, IndexQuestion, ReaderOwner, Slice};
use peregrine_broker::log::disk::simulated::{Machine, Random, SimulatedDisk, Tasks};
use peregrine_broker::log::index::{IndexLookUpError, IndexedBatch, LogIndexes};
use peregrine_protocol::ids::SubscriptionId;

use super::violation::Violation;

/// Batches that one look-up finds at most: few, so that readers look often.
const FOUND_MAX: usize = 5;

struct LookedUp {
    asked: Delivery,
    found: Result<Vec<IndexEntry>, IndexLookUpError>,
}

/// The look-ups of one shard.
pub struct LookUps {
    indexes: LogIndexes<SimulatedDisk>,
    under_way: Tasks<LookedUp>,
    /// For an index to be made.
    waiting: Vec<Delivery>,
    /// Readers to whom it is to be said that what they want cannot be looked up.
    damaged: Vec<(ReaderOwner, SubscriptionId)>,
    has_to_drop: bool,
    answered: u64,
}

impl LookUps {
    pub fn new(indexes: LogIndexes<SimulatedDisk>) -> Self {
        Self {
            indexes,
            under_way: Tasks::default(),
            waiting: Vec::new(),
            damaged: Vec::new(),
            has_to_drop: false,
            answered: 0,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.under_way.is_empty() && self.waiting.is_empty()
    }

    /// Whether something can go on without time passing.
    pub fn has_woken(&self) -> bool {
        self.under_way.has_woken()
    }

    /// Begins what the engine asks for.
    pub fn ask(&mut self, asked: Delivery) {
        let indexes = self.indexes.clone();
        self.under_way.spawn(async move {
            let found = match asked {
                Delivery::LookUp { queue, offset, behind, .. } => {
                    let found = indexes.lookup(queue.topic, queue.queue, offset, behind, FOUND_MAX).await;
                    found.map(|found| found.iter().map(entry).collect())
                }
                Delivery::Ask { question } => find(&indexes, &question).await.map(|found| found.into_iter().collect()),
                other => unreachable!("{other:?} asks for nothing"),
            };
            LookedUp { asked, found }
        });
    }

    /// An index was made, or not.
    pub fn indexed(&mut self, engine: &mut Engine) {
        engine.indexed(self.indexes.indexed_to());
        self.has_to_drop = true;
        for asked in std::mem::take(&mut self.waiting) {
            self.ask(asked);
        }
    }

    /// Tells the engine what was found, and lets it drop a slice.
    pub fn turn(&mut self, engine: &mut Engine, random: &mut Random, devices_fail: bool) -> Result<(), Violation> {
        if self.has_to_drop {
            self.has_to_drop = engine.drop_indexed(&mut Slice::new(random.between(1, 4) as u32));
        }
        while let Some(LookedUp { asked, found }) = self.under_way.poll(random) {
            let found = match found {
                Ok(found) => found,
                Err(IndexLookUpError::NotMade) => {
                    self.waiting.push(asked);
                    continue;
                }
                Err(error) if !devices_fail => return Err(Violation(format!("a look-up failed: {error}"))),
                Err(_) => {
                    match asked {
                        Delivery::LookUp { owner, subscription, .. } => self.damaged.push((owner, subscription)),
                        // It has no other way on.
                        asked => self.waiting.push(asked),
                    }
                    continue;
                }
            };
            self.answered += 1;
            match asked {
                Delivery::LookUp { subscription, below, .. } => engine.looked_up(subscription, below, found),
                Delivery::Ask { question } => engine.answered(&question, found.first()),
                other => unreachable!("{other:?} asks for nothing"),
            }
        }
        Ok(())
    }

    /// Answers what a request needs to know. False where it is to come again.
    pub fn answer(&mut self, engine: &mut Engine, question: &IndexQuestion, machine: &Machine) -> bool {
        let found = machine.block_on(find(&self.indexes, question));
        if let Ok(found) = &found {
            self.answered += 1;
            engine.answered(question, found.as_ref());
        }
        found.is_ok()
    }

    /// Those whose look-ups failed for good since the last call.
    pub fn take_damaged(&mut self) -> Vec<(ReaderOwner, SubscriptionId)> {
        std::mem::take(&mut self.damaged)
    }

    /// Look-ups that were answered since the last call.
    pub fn take_answered(&mut self) -> u64 {
        std::mem::take(&mut self.answered)
    }
}

async fn find(
    indexes: &LogIndexes<SimulatedDisk>,
    question: &IndexQuestion,
) -> Result<Option<IndexEntry>, IndexLookUpError> {
    let (topic, queue) = (question.queue.topic, question.queue.queue);
    let found = match question.asked {
        Asked::Time(time) => indexes.lookup_time(topic, queue, time, question.below).await?,
        Asked::Offset(offset) => indexes.first_readable(topic, queue, offset).await?,
    };
    Ok(found.as_ref().map(entry))
}

fn entry(found: &IndexedBatch) -> IndexEntry {
    let &IndexedBatch { offset, records, position, length, store_time } = found;
    IndexEntry { offset, records, position, length, store_time }
}
