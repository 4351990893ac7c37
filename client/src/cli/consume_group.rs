//! `peregrine consume --group`: prints what comes to one member of a group. A message is acknowledged when it was written, and not
//! before, so that nothing is lost with this process.

use std::io::{BufWriter, Stdout, Write, stdout};
use std::time::Duration;

use jiff::Timestamp;
use peregrine_client::{Admin, Client, Consumer, Delivery, Error, QueueId, QueueOffset};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Interval, MissedTickBehavior, interval};

use super::arguments::ConsumeOptions;
use super::consume::{self, print};
use super::failure::Failure;
use super::start;

/// Messages written and acknowledged together, at the most.
const TOGETHER: usize = 1_024;
/// How often an idle consumer looks whether the group has come to the end.
const LOOK: Duration = Duration::from_millis(200);

pub async fn run(broker: &str, group: &str, options: &ConsumeOptions) -> Result<(), Failure> {
    let start = start::parse(&options.from, Timestamp::now())?;
    let client = Client::builder(broker).timeout(options.timeout).connect().await?;
    let ends = if options.follow { None } else { Some(Ends::of(client.admin(), group, &options.topic).await?) };
    let mut builder = client.consumer(group).topic(&options.topic).start(start).manual_ack().patience(options.timeout);
    if let Some(name) = &options.member {
        builder = builder.member(name);
    }
    let mut consumer = builder.build().await?;
    let mut out = BufWriter::with_capacity(64 << 10, stdout());
    let result = tokio::select! {
        result = print_all(&mut consumer, options, ends, &mut out) => result,
        result = asked_to_end() => result,
    };
    // Also when something went wrong: the queues go to others at once.
    let closed = consumer.close().await;
    match result {
        Err(failure) => Err(failure),
        Ok(()) => Ok(closed?),
    }
}

/// What was the end of each queue when this began.
struct Ends {
    admin: Admin,
    group: String,
    topic: String,
    of_queues: Vec<(QueueId, QueueOffset)>,
    look: Interval,
}

impl Ends {
    async fn of(admin: Admin, group: &str, topic: &str) -> Result<Self, Failure> {
        let queues = admin.describe_topic(topic).await?.queues;
        let of_queues = queues.iter().map(|state| (state.queue, state.end)).collect();
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Ok(Self { admin, group: group.to_owned(), topic: topic.to_owned(), of_queues, look })
    }

    /// Waits until the group, with all its members, is done with what was there.
    async fn reached(&mut self) -> Result<(), Failure> {
        loop {
            self.look.tick().await;
            let lags = self.admin.group_lag(&self.group).await?;
            let is_done = |(queue, end): &(QueueId, QueueOffset)| {
                let here = lags.iter().find(|lag| lag.topic == self.topic && lag.queue == *queue);
                here.is_some_and(|lag| lag.offset >= *end)
            };
            if self.of_queues.iter().all(is_done) {
                return Ok(());
            }
        }
    }
}

async fn print_all(
    consumer: &mut Consumer,
    options: &ConsumeOptions,
    mut ends: Option<Ends>,
    out: &mut BufWriter<Stdout>,
) -> Result<(), Failure> {
    let bar = consume::bar();
    let mut left = options.max.unwrap_or(u64::MAX);
    let mut written: Vec<Delivery> = Vec::new();
    while left > 0 {
        let mut next = if written.len() < TOGETHER { consumer.try_next() } else { None };
        if next.is_none() {
            acknowledge(consumer, &mut written, out)?;
            next = match &mut ends {
                None => consumer.next().await,
                Some(ends) => tokio::select! {
                    biased;
                    next = consumer.next() => next,
                    reached = ends.reached() => {
                        reached?;
                        break;
                    }
                },
            };
        }
        match next {
            None => break,
            Some(Ok(message)) => {
                print(&message, options.format, out)?;
                bar.inc(message.body.len() as u64 + 1);
                written.push(message);
                left -= 1;
            }
            // The group goes on behind it; who consumes must know all the same.
            Some(Err(error @ Error::Truncated { .. })) => bar.suspend(|| eprintln!("peregrine: {error}")),
            Some(Err(error)) => return Err(error.into()),
        }
    }
    acknowledge(consumer, &mut written, out)?;
    bar.finish_and_clear();
    Ok(())
}

fn acknowledge(consumer: &Consumer, written: &mut Vec<Delivery>, out: &mut impl Write) -> Result<(), Failure> {
    out.flush()?;
    for message in written.drain(..) {
        consumer.ack(&message); // lost in the meantime: another member has it, too
    }
    Ok(())
}

/// Ctrl-C, or what a service manager sends.
async fn asked_to_end() -> Result<(), Failure> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    Ok(())
}
