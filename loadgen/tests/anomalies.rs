//! The tool is proven before it is trusted: a transport in memory, on a clock of its own, loses, duplicates, swaps or
//! damages one message in a million, or stands still for 200 ms, and the account must say exactly that.

use std::cell::Cell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;

use peregrine_loadgen::audience::Listening;
use peregrine_loadgen::clock::{MICROSECOND, MILLISECOND, Ns, SECOND};
use peregrine_loadgen::content::Content;
use peregrine_loadgen::generator::{Generator, Idle, Time};
use peregrine_loadgen::schedule::Schedule;
use peregrine_loadgen::tally::Tally;
use peregrine_loadgen::transport::{Events, Offer, Origin, Refusal, Transport, TransportError};
use peregrine_loadgen::workload::{Message, Workload};

/// One message in so many meets the fault.
const MESSAGES: u64 = 1_000_000;
/// The message that meets it, well after the warm-up.
const VICTIM: u64 = 654_321;
/// How long a message takes to be acknowledged and delivered.
const TRANSIT: Ns = 20 * MICROSECOND;

#[derive(Clone, Copy, PartialEq)]
enum Fault {
    None,
    Drop,
    Duplicate,
    /// The victim is delivered after the next message of its lane.
    Swap,
    Corrupt,
    WrongQueue,
    NoAnswer,
    AnswerTwice,
    /// The victim is refused once, and what is behind it in its lane with it.
    Busy,
    Rejected,
    /// Nothing goes out or comes in between these instants after the start.
    Stall(Ns, Ns),
}

#[derive(Clone)]
struct VirtualTime(Rc<Cell<Ns>>);

impl Time for VirtualTime {
    fn now(&self) -> Ns {
        self.0.get()
    }
}

struct Faulty {
    time: VirtualTime,
    fault: Fault,
    victim: u64,
    flying: VecDeque<(Ns, u64, u32, Vec<u8>)>,
    /// The swapped victim, until its successor has passed.
    aside: Option<(u32, u64, Vec<u8>)>,
    refused: bool,
    period: u64,
}

impl Transport for Faulty {
    fn offer(&mut self, message: &Message<'_>) -> Result<Offer, TransportError> {
        let mut body = vec![0; message.len()];
        message.write(&mut body);
        self.flying.push_back((self.time.now() + TRANSIT, message.index, message.place.queue, body));
        Ok(Offer::Taken)
    }

    fn turn(&mut self, wait_until: Option<Ns>, events: &mut impl Events) -> Result<(), TransportError> {
        let until = wait_until.expect("the test's generator sleeps");
        let next = self.flying.front().map_or(until, |(arrival, ..)| until.min(*arrival));
        let mut now = self.time.now().max(next);
        if let Fault::Stall(from, to) = self.fault
            && (from..to).contains(&now)
        {
            now = to;
        }
        self.time.0.set(now);
        while let Some((_, index, queue, mut body)) = self.flying.pop_front_if(|(arrival, ..)| *arrival <= now) {
            let is_victim = index == self.victim;
            match self.fault {
                Fault::Busy if is_victim && !self.refused => {
                    self.refused = true;
                    events.refused(index, Refusal::Retry { after: MILLISECOND }, now);
                    continue;
                }
                Fault::Rejected if is_victim => {
                    events.refused(index, Refusal::Final, now);
                    continue;
                }
                Fault::NoAnswer if is_victim => {}
                Fault::AnswerTwice if is_victim => {
                    events.acknowledged(index, now);
                    events.acknowledged(index, now);
                }
                _ => events.acknowledged(index, now),
            }
            match self.fault {
                Fault::Drop if is_victim => {}
                Fault::Duplicate if is_victim => {
                    events.delivered(&Origin::reader(queue), &body, now);
                    events.delivered(&Origin::reader(queue), &body, now);
                }
                Fault::Swap if is_victim => self.aside = Some((queue, index + self.period, body)),
                Fault::Corrupt if is_victim => {
                    body[60] ^= 4;
                    events.delivered(&Origin::reader(queue), &body, now);
                }
                Fault::WrongQueue if is_victim => events.delivered(&Origin::reader(queue + 1), &body, now),
                _ => events.delivered(&Origin::reader(queue), &body, now),
            }
            if let Some((queue, _, body)) = self.aside.take_if(|(_, successor, _)| *successor == index) {
                events.delivered(&Origin::reader(queue), &body, now);
            }
        }
        Ok(())
    }
}

fn run(fault: Fault) -> Tally {
    let schedule = Schedule { rate: 50_000, warmup: SECOND, duration: 19 * SECOND, producers: 3, queues: 4, start: 0 };
    assert_eq!(schedule.messages(), MESSAGES);
    let period = u64::from(schedule.producers * schedule.queues);
    let workload = Arc::new(Workload { run: 11, size: 64, schedule, content: Content::random(1) });
    let time = VirtualTime(Rc::new(Cell::new(0)));
    let flying = VecDeque::new();
    let transport = Faulty { time: time.clone(), fault, victim: VICTIM, flying, aside: None, refused: false, period };
    let generator =
        Generator::new(transport, time, Idle::Sleep, &workload, (0, 1), &Listening::Readers(vec![0, 1, 2, 3]), SECOND);
    let outcome = generator.run();
    assert!(outcome.failure.is_none());
    let mut tally = outcome.tally;
    tally.close(true);
    tally
}

/// (acknowledged, delivered, lost, duplicate, reordered, corrupt)
fn account(tally: &Tally) -> (u64, u64, u64, u64, u64, u64) {
    let seen = &tally.audiences()[0];
    (tally.acknowledged(), tally.delivered(), tally.lost(), seen.duplicate, seen.reordered, seen.corrupt)
}

#[test]
fn a_sound_transport_is_found_sound() {
    let tally = run(Fault::None);
    assert_eq!(account(&tally), (MESSAGES, MESSAGES, 0, 0, 0, 0));
    assert_eq!(tally.sent, MESSAGES);
    assert_eq!(tally.acknowledgement.count(), 950_000);
    let transit = tally.end_to_end.percentile_ns("max").expect("finite");
    assert!(transit.abs_diff(TRANSIT) < TRANSIT / 500, "{transit}");
}

#[test]
fn one_in_a_million_is_seen() {
    let all_but_one = MESSAGES - 1;
    let dropped = run(Fault::Drop);
    assert_eq!(account(&dropped), (MESSAGES, all_but_one, 1, 0, 0, 0));
    assert_eq!((dropped.end_to_end.infinite(), dropped.end_to_end.percentile_ns("max")), (1, None));
    assert_eq!(account(&run(Fault::Duplicate)), (MESSAGES, MESSAGES, 0, 1, 0, 0));
    assert_eq!(account(&run(Fault::Swap)), (MESSAGES, MESSAGES, 0, 0, 1, 0));
    assert_eq!(account(&run(Fault::Corrupt)), (MESSAGES, all_but_one, 1, 0, 0, 1));
    assert_eq!(account(&run(Fault::WrongQueue)), (MESSAGES, all_but_one, 1, 0, 0, 1));
}

#[test]
fn answers_are_accounted_for_like_messages() {
    let unanswered = run(Fault::NoAnswer);
    assert_eq!(account(&unanswered), (MESSAGES - 1, MESSAGES, 0, 0, 0, 0));
    assert_eq!(unanswered.acknowledgement.infinite(), 1);
    let twice = run(Fault::AnswerTwice);
    assert_eq!((twice.stray, twice.acknowledged()), (1, MESSAGES));
    let busy = run(Fault::Busy);
    assert_eq!(account(&busy), (MESSAGES, MESSAGES, 0, 0, 0, 0));
    assert!(busy.retried > 0 && busy.acknowledgement.percentile_ns("max") >= Some(MILLISECOND));
    let rejected = run(Fault::Rejected);
    let behind = rejected.acknowledgement.infinite() - 1;
    assert!(behind > 20_000, "a closed lane's {behind} messages count as infinite");
    assert_eq!((rejected.rejected, rejected.lost()), (1, 0));
}

/// With `stall` of a measured span `span`, the messages due while it stands still wait for what is left of it: their
/// latencies fall from `stall` to 0 evenly, so at quantile q the latency is `stall − (1 − q) · span`.
#[test]
fn a_stall_shows_in_the_percentiles_as_computed() {
    let (stall, span) = (200 * MILLISECOND, 19 * SECOND);
    let tally = run(Fault::Stall(5 * SECOND, 5 * SECOND + stall));
    assert_eq!(account(&tally), (MESSAGES, MESSAGES, 0, 0, 0, 0));
    for (name, beyond) in [("p99.9", span / 1_000), ("p99.99", span / 10_000), ("p99.996", span / 25_000), ("max", 0)] {
        for latencies in [&tally.acknowledgement, &tally.end_to_end] {
            let found = latencies.percentile_ns(name).expect("finite");
            let computed = stall - beyond + TRANSIT;
            assert!(found.abs_diff(computed) < stall / 100, "{name}: found {found} ns, computed {computed} ns");
        }
    }
    let median = tally.end_to_end.percentile_ns("p50").expect("finite");
    assert!(median.abs_diff(TRANSIT) < TRANSIT / 500, "{median}");
}
