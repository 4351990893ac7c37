//! Changes of the catalogue: topics come, grow and go, decided by shard 0 and answered when they are synced.

use std::rc::Rc;

use peregrine_broker::engine::{CatalogueDecision, Refusal, TopicRetention};
use peregrine_protocol::ids::{DurableLevel, Nanos};

use super::process::{Append, Shard, Waiting};
use super::simulation::{Process, Simulation};
use super::violation::{Violation, promise};
use super::work::TOPICS_MAX;

impl Simulation {
    pub(super) fn change_catalogue(&mut self, process: &mut Process) -> Result<(), Violation> {
        let ages = self.configuration.topic_ages;
        let name = format!("topic-{}", self.random.below(TOPICS_MAX as u64));
        let wall = self.wall();
        let home = &mut process.shards[0];
        let mut retention = || match self.random.below(3) {
            0 if ages => TopicRetention { age: Some(Nanos::from_millis(self.random.between(1, 3_000))) },
            _ => TopicRetention::default(),
        };
        let (wanted, altered) = (retention(), retention());
        let decision = match self.random.below(10) {
            0 => {
                self.catalogue.asks_to_delete(&name);
                home.engine.decide_delete(&name, None, wall)
            }
            1 => home.engine.decide_alter(&name, Some(self.random.between(1, 6) as u32), None, wall),
            2 => home.engine.decide_alter(&name, None, Some(altered), wall),
            _ => home.engine.decide_create(&name, self.random.between(1, 3) as u32, wanted, wall),
        };
        match decision {
            Ok(decided) => self.append_change(home, name, decided),
            Err(refusal) => Self::must_be_sensible(&refusal),
        }
    }

    /// What shard 0 decided about a topic or a group. Where that is an entry, it is answered when it is synced.
    pub(super) fn append_change<T>(
        &mut self,
        home: &mut Shard,
        name: String,
        decided: CatalogueDecision<T>,
    ) -> Result<(), Violation> {
        let CatalogueDecision::Append { draft, payload } = decided else { return Ok(()) };
        let (payload, now): (Rc<[u8]>, _) = (payload.into(), self.now());
        match home.append(&draft, &payload, &mut self.ledgers[0], now)? {
            Append::Done(header) => {
                self.machine.note(&("change", name, header.position));
                let position = header.position;
                home.waiting.wait(DurableLevel::Synced, header.end(), Waiting::Change { position });
                Ok(())
            }
            Append::Refused(refused) => self.not_appended(refused),
        }
    }

    fn must_be_sensible(refusal: &Refusal) -> Result<(), Violation> {
        let sensible = matches!(
            refusal,
            Refusal::Poisoned
                | Refusal::Busy { .. }
                | Refusal::UnknownTopic
                | Refusal::TopicExists { .. }
                | Refusal::InvalidArgument(_)
        );
        promise!(sensible, "a change of the catalogue was refused: {refusal}");
        Ok(())
    }
}
