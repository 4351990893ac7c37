//! Everything at random, against a model: never two members at once, none skipped, none again once it was acknowledged, in order.

use std::collections::{BTreeSet, HashMap};

use super::*;

const QUEUES: u32 = 2;
const MEMBERS: u64 = 3;

#[derive(Clone, Debug)]
enum Step {
    Store {
        queue: u32,
        records: u32,
        level: DurableLevel,
    },
    Publish,
    Harden,
    /// The home's next word: the holder of each queue (0: nobody), and the members that are fenced.
    Assign([u64; QUEUES as usize], Vec<u64>),
    /// Goes on to carry it out by so many queues.
    Follow(u32),
    Subscribe {
        member: u64,
        queue: u32,
        messages: u64,
    },
    Credit(usize, u64),
    Unsubscribe(usize),
    Detach(u64),
    /// Acknowledges, of what a subscription was handed, so many messages less than all.
    Ack(usize, u64),
    /// Deliver so many; the shard stays busy with every other one until the next round.
    Serve(usize),
    Pass(u64),
    /// The process is killed: what was published comes back.
    Crash,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let level = prop_oneof![2 => Just(Memory), 1 => Just(Synced)];
    let holder = || 0u64..=MEMBERS;
    let fenced = prop_oneof![3 => Just(Vec::new()), 1 => (1u64..=MEMBERS).prop_map(|member| vec![member])];
    let step = prop_oneof![
        8 => (0u32..QUEUES, 1u32..4, level).prop_map(|(queue, records, level)| Step::Store { queue, records, level }),
        4 => Just(Step::Publish),
        2 => Just(Step::Harden),
        4 => (holder(), holder(), fenced).prop_map(|(a, b, fenced)| Step::Assign([a, b], fenced)),
        2 => (0u32..=QUEUES).prop_map(Step::Follow),
        6 => (1u64..=MEMBERS, 0u32..QUEUES, 0u64..9)
            .prop_map(|(member, queue, messages)| Step::Subscribe { member, queue, messages }),
        3 => (0usize..6, 1u64..9).prop_map(|(index, messages)| Step::Credit(index, messages)),
        1 => (0usize..6).prop_map(Step::Unsubscribe),
        1 => (1u64..=MEMBERS).prop_map(Step::Detach),
        6 => (0usize..6, 0u64..4).prop_map(|(index, less)| Step::Ack(index, less)),
        8 => (1usize..9).prop_map(Step::Serve),
        3 => prop_oneof![Just(DRAIN.0 / 3), Just(DRAIN.0)].prop_map(Step::Pass),
        1 => Just(Step::Crash),
    ];
    prop::collection::vec(step, 1..250)
}

/// A subscription that lives, as the model has it.
#[derive(Clone, Copy, Debug)]
struct Known {
    id: SubscriptionId,
    member: u64,
    queue: u32,
    /// The offset behind what it was handed; `None` before its first message.
    next: Option<u64>,
    messages: i64,
    /// The shard is busy with its last batch.
    taken: bool,
    /// Its member was told to give the queue up.
    revoked: bool,
    /// When another member became the queue's holder.
    lost: Option<Nanos>,
    /// Whatever it was handed, it may end now: its member was fenced, or subscribed again.
    may_end: bool,
}

/// A queue, as the model has it.
#[derive(Clone, Debug, Default)]
struct Queue {
    /// What is below was acknowledged, and the entry that says so applied.
    place: u64,
    /// The same of what a crash leaves.
    safe: u64,
    /// Whom the home wants to have it.
    holder: u64,
    /// How often each message was handed out since the start.
    handed_out: HashMap<u64, u16>,
}

struct Model {
    turns: Turns,
    known: Vec<Known>,
    queues: [Queue; QUEUES as usize],
    /// Somebody was fenced, and that is not carried out.
    fenced: bool,
}

impl Model {
    fn new() -> Self {
        let turns = Turns { steps: 0, ..Turns::new(QUEUES) };
        Self { turns, known: Vec::new(), queues: Default::default(), fenced: false }
    }

    /// A member that was fenced has another id when it comes again; here it waits until all that it had has ended.
    fn end_fenced(&mut self) {
        if std::mem::take(&mut self.fenced) {
            self.turns.bench.engine.follow_assignments(&mut Slice::new(u32::MAX));
        }
    }

    fn step(&mut self, step: Step) -> Result<(), TestCaseError> {
        if matches!(step, Step::Assign(..) | Step::Subscribe { .. }) {
            self.end_fenced();
        }
        let bench = &mut self.turns.bench;
        match step {
            Step::Store { queue, records, level } => {
                bench.store(queue, records, level);
            }
            Step::Publish => self.publish(),
            Step::Harden => {
                self.publish();
                self.turns.bench.harden();
            }
            Step::Assign(holders, fenced) => {
                let gone: BTreeSet<u64> = fenced.iter().copied().collect();
                let rows: Vec<(u32, u64)> =
                    (0..).zip(holders).filter(|(_, member)| *member != 0 && !gone.contains(member)).collect();
                self.turns.assign_all(&rows, &fenced);
                self.fenced = !fenced.is_empty();
                for (queue, state) in (0..).zip(&mut self.queues) {
                    state.holder = rows.iter().find(|row| row.0 == queue).map_or(0, |row| row.1);
                }
                for known in &mut self.known {
                    known.may_end |= gone.contains(&known.member);
                    if !rows.contains(&(known.queue, known.member)) {
                        known.lost.get_or_insert(self.turns.clock);
                    }
                }
            }
            Step::Follow(queues) => {
                for _ in 0..queues {
                    bench.engine.follow_assignments(&mut Slice::new(1));
                }
            }
            Step::Subscribe { member, queue, messages } => {
                let again = |known: &&mut Known| (known.member, known.queue) == (member, queue);
                for known in self.known.iter_mut().filter(again) {
                    known.may_end = true;
                }
                self.turns.credit.messages = messages;
                let (id, place) = self.turns.try_subscribe(member, queue).unwrap();
                prop_assert_eq!(place.offset.0, self.queues[queue as usize].place);
                let messages = messages as i64;
                self.known.push(Known {
                    id,
                    member,
                    queue,
                    next: None,
                    messages,
                    taken: false,
                    revoked: false,
                    lost: None,
                    may_end: false,
                });
            }
            Step::Credit(index, messages) => {
                if let Some(known) = self.known.get_mut(index) {
                    // One that has ended and was not told yet takes none.
                    if bench.engine.credit(ReaderOwner(known.member), known.id, Credit { messages, bytes: 0 }).is_ok() {
                        known.messages += messages as i64;
                    }
                }
            }
            Step::Unsubscribe(index) if index < self.known.len() => {
                let known = self.known[index];
                if bench.engine.unsubscribe(ReaderOwner(known.member), known.id).is_ok() {
                    self.known.remove(index);
                }
            }
            Step::Unsubscribe(_) => {}
            Step::Detach(member) => {
                bench.engine.detach(ReaderOwner(member), self.turns.clock);
                self.known.retain(|known| known.member != member);
            }
            Step::Ack(index, less) => self.ack(index, less)?,
            Step::Serve(count) => {
                self.serve(count)?;
            }
            Step::Pass(nanos) => self.turns.pass(nanos),
            Step::Crash => {
                self.turns.bench.restart(self.turns.bench.engine.published());
                self.known.clear();
                for queue in &mut self.queues {
                    queue.place = queue.safe;
                    queue.handed_out.clear();
                    queue.holder = 0;
                }
                self.fenced = false;
            }
        }
        Ok(())
    }

    fn publish(&mut self) {
        self.turns.bench.publish();
        for queue in &mut self.queues {
            queue.safe = queue.place;
        }
    }

    fn ack(&mut self, index: usize, less: u64) -> Result<(), TestCaseError> {
        let Some(&known) = self.known.get(index) else { return Ok(()) };
        let Some(next) = known.next else { return Ok(()) };
        let offset = next.saturating_sub(less);
        let place = &mut self.queues[known.queue as usize].place;
        let engine = &mut self.turns.bench.engine;
        match engine.ack_checked(ReaderOwner(known.member), known.id, Epoch::ANY, QueueOffset(offset)) {
            Ok(AckChecked::Group(ack)) => {
                if let AckDecision::Append(entry) = engine.decide_ack(&ack, self.turns.bench.now).unwrap() {
                    self.turns.bench.append(&entry.draft, entry.payload.to_vec());
                }
                *place = offset.max(*place);
            }
            // It has ended and was not told yet.
            refused => prop_assert_eq!(refused, Err(Refusal::NotHolder)),
        }
        Ok(())
    }

    /// Carries out so many of what is to be done; how many there were.
    fn serve(&mut self, count: usize) -> Result<usize, TestCaseError> {
        self.turns.begin();
        let mut served = 0;
        while served < count
            && let Some(delivery) = self.turns.bench.engine.next_delivery()
        {
            self.handed_out(delivery, served % 2 == 1)?;
            self.turns.begin();
            served += 1;
        }
        for known in self.known.iter_mut().filter(|known| known.taken) {
            known.taken = false;
            self.turns.bench.engine.delivered(known.id);
        }
        Ok(served)
    }

    /// Checks what the shard was told to do.
    fn handed_out(&mut self, delivery: Delivery, stays_busy: bool) -> Result<(), TestCaseError> {
        let (Delivery::Batch { subscription: id, .. }
        | Delivery::Revoked { subscription: id, .. }
        | Delivery::Ended { subscription: id, .. }) = delivery
        else {
            unreachable!("nothing was dropped")
        };
        let at = self.known.iter().position(|known| known.id == id).expect("it lives");
        let known = self.known[at];
        let queue = &mut self.queues[known.queue as usize];
        match delivery {
            Delivery::Batch { batch, .. } => {
                prop_assert!(!known.taken && !known.revoked && known.messages > 0);
                prop_assert_eq!(known.member, queue.holder, "whatever was followed, the newest assignment counts");
                let (first, end) = (batch.first_wanted.0, batch.end_offset().0);
                // In order, none skipped, none again; a first message is the first that nobody acknowledged.
                prop_assert_eq!(first, known.next.unwrap_or(queue.place));
                prop_assert!(first >= queue.place && end <= self.turns.bench.visible(known.queue));
                for other in self.known.iter().filter(|other| other.id != id && other.queue == known.queue) {
                    prop_assert!(other.next.is_none(), "{:?} holds the queue", other);
                }
                let before = queue.handed_out.get(&first).copied().unwrap_or(0);
                prop_assert!(batch.attempt <= before + 1, "attempt {} after {}", batch.attempt, before);
                prop_assert_eq!(batch.attempt == 1, before == 0);
                for offset in first..end {
                    *queue.handed_out.entry(offset).or_default() += 1;
                }
                let known = &mut self.known[at];
                known.messages -= (end - first) as i64;
                (known.next, known.taken) = (Some(end), stays_busy);
                if !stays_busy {
                    self.turns.bench.engine.delivered(id);
                }
            }
            Delivery::LookUp { .. } | Delivery::Ask { .. } => unreachable!("nothing was dropped"),
            Delivery::Revoked { .. } => {
                prop_assert!(!known.taken && known.next.is_some_and(|next| next > queue.place));
                self.known[at].revoked = true;
            }
            Delivery::Ended { code, .. } => {
                prop_assert_eq!(code, ErrorCode::NotHolder);
                let done = known.next.is_none_or(|next| next <= queue.place);
                let overdue = known.lost.is_some_and(|lost| self.turns.clock >= lost + DRAIN.0);
                prop_assert!(known.may_end || done || overdue, "{:?} was handed what it did not acknowledge", known);
                self.known.remove(at);
            }
        }
        Ok(())
    }

    /// One member that takes everything: all is there, from each group's place to the end.
    fn finish(&mut self) -> Result<(), TestCaseError> {
        self.turns.bench.harden();
        let fenced: Vec<u64> = (1..=MEMBERS).collect();
        let last = MEMBERS + 1;
        self.turns.steps = u32::MAX;
        self.step(Step::Assign([last; QUEUES as usize], fenced))?;
        for queue in 0..QUEUES {
            self.step(Step::Subscribe { member: last, queue, messages: 1 << 40 })?;
        }
        while self.turns.bench.engine.next_group_deadline().is_some() {
            self.turns.pass(DRAIN.0);
        }
        while self.serve(usize::MAX)? > 0 {}
        for queue in 0..QUEUES {
            let owed = self.turns.bench.visible(queue) > self.queues[queue as usize].place;
            let next =
                self.known.iter().find(|known| (known.member, known.queue) == (last, queue)).and_then(|k| k.next);
            prop_assert_eq!(next, owed.then(|| self.turns.bench.visible(queue)));
        }
        for index in 0..self.known.len() {
            self.ack(index, 0)?;
        }
        self.turns.assign_all(&[], &[last]);
        self.serve(usize::MAX)?;
        prop_assert!(self.turns.bench.engine.holders.is_empty(), "nothing is left of a group that is done");
        prop_assert_eq!(self.turns.bench.engine.counts().subscriptions, 0);
        Ok(())
    }
}

proptest! {
    #[test]
    fn a_queue_has_one_member_at_a_time_and_gives_all_in_order(steps in steps()) {
        let mut model = Model::new();
        for step in steps {
            model.step(step)?;
        }
        model.finish()?;
    }
}
