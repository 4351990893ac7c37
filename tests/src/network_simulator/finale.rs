//! How a seed ends: nothing disturbs any more, everything is sent to its end, readers come to theirs, and all that the queues hold is
//! compared with what was promised; then once more, behind a stop and a loss of power.

use std::collections::BTreeMap;

use peregrine_broker::log::disk::simulated::Conditions;
use peregrine_broker::simulated::{NetworkConditions, Process};

use super::auditor::{Auditor, Holding};
use super::ledger::Queue;
use super::reader::Reader;
use super::simulation::{Ending, PATIENCE, Simulation};
use crate::simulator::{Violation, promise};

impl Simulation {
    pub fn finale(&mut self) -> Result<(), Violation> {
        self.world.machine.disarm();
        self.world.machine.set_conditions(Conditions::default());
        self.world.network.set_conditions(NetworkConditions::default());
        self.world.is_calm = true;
        self.clients.finish();
        let mut held = BTreeMap::new();
        self.live(|simulation, process| {
            simulation.settle(process)?;
            held = simulation.audit(process)?;
            simulation.readers_arrive(process, &held)?;
            simulation.stop(process)
        })?;
        self.live(|simulation, process| {
            let again = simulation.audit(process)?;
            for (queue, before) in &held {
                let now = again.get(queue).cloned().unwrap_or_default();
                let same = now.end == before.end && before.numbers.ends_with(&now.numbers);
                promise!(same, "a restart changed queue {queue:?}: {before:?} became {now:?}");
            }
            Ok(Ending::Abandoned)
        })
    }

    /// Until all that was sent is acknowledged.
    fn settle(&mut self, process: &mut Process) -> Result<(), Violation> {
        let until = self.world.now() + PATIENCE;
        while let Some(who) = self.clients.who_waits() {
            promise!(self.world.now() < until, "{who} waits for answers that do not come");
            self.undisturbed_turn(process, until)?;
        }
        Ok(())
    }

    fn undisturbed_turn(&mut self, process: &mut Process, until: u64) -> Result<(), Violation> {
        self.turn(process, until)?;
        promise!(process.ended().is_none(), "the broker ended by itself: {:?}", process.ended());
        Ok(())
    }

    /// What every queue holds; the oracle has looked at it.
    fn audit(&mut self, process: &mut Process) -> Result<BTreeMap<Queue, Holding>, Violation> {
        let mut held = BTreeMap::new();
        let queues: Vec<Queue> = self.world.ledger.queues().collect();
        for queue in queues {
            let until = self.world.now() + PATIENCE;
            let mut auditor = Auditor::new(&mut self.world, queue);
            let holding = loop {
                auditor.act(&mut self.world)?;
                if let Some(holding) = auditor.holding() {
                    break holding.clone();
                }
                promise!(self.world.now() < until, "an audit of {queue:?} does not come to its end");
                let wake = auditor.next_wake(self.world.now()).max(self.world.now() + 1_000);
                self.undisturbed_turn(process, until.min(wake))?;
            };
            self.world.statistics.audited += holding.numbers.len() as u64;
            self.world.ledger.audit(queue, holding.start, &holding.numbers)?;
            held.insert(queue, holding);
        }
        Ok(held)
    }

    fn readers_arrive(&mut self, process: &mut Process, held: &BTreeMap<Queue, Holding>) -> Result<(), Violation> {
        let until = self.world.now() + PATIENCE;
        let is_there = |reader: &Reader| match (reader.next(), held.get(&reader.queue())) {
            (Some(next), Some(holding)) => next >= holding.end,
            _ => true,
        };
        loop {
            let late = self.clients.readers().find(|reader| !is_there(reader));
            let Some((queue, next)) = late.map(|reader| (reader.queue(), reader.next())) else { return Ok(()) };
            promise!(
                self.world.now() < until,
                "a reader of {queue:?} stays at {next:?}, and it ends at {:?}",
                held.get(&queue).map(|holding| holding.end)
            );
            self.undisturbed_turn(process, until)?;
        }
    }
}
