//! The floors: what this machine costs without the broker, so that a figure can be judged.
//!
//! Each is taken before and after the load on the generator's own cores, never during it, and the two halves are added.
//!
//! - [`hiccup`]: how late a thread that only spins comes to the run's due instants;
//! - [`echo`]: the run's frames, connections and schedule against a bare echo of the broker's runtime on its core;
//! - [`flush`]: single-block synchronous direct writes on the data directory's file system, one at a time.
//!
//! [`ways`] stands beside them: it compares the broker's way of flushing with others, by a command of its own.

pub mod echo;
pub mod flush;
pub mod hiccup;
pub mod ways;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::audience::Listening;
use crate::clock::{Clock, MILLISECOND, Ns, SECOND};
use crate::content::Content;
use crate::cores::Cores;
use crate::generator::Generator;
use crate::latency::Latencies;
use crate::schedule::Schedule;
use crate::stamp::STAMP_BYTES;
use crate::tally::Tally;
use crate::workload::Workload;
use echo::{Echo, EchoProcess};
use flush::FlushFloor;

/// Echoes before those that are measured.
const ECHO_WARMUP: Ns = SECOND / 2;

/// Against what the floors are taken.
#[derive(Debug)]
pub struct Ground {
    /// The run's clock.
    pub clock: Clock,
    /// The generator's cores.
    pub cores: Cores,
    /// How long each floor is taken each time.
    pub span: Ns,
    /// The run's messages a second.
    pub rate: u64,
    /// The run's producers.
    pub producers: u32,
    /// Bytes of the run's produce frame.
    pub frame: usize,
    /// The broker's executable.
    pub binary: Option<PathBuf>,
    /// A core of the broker.
    pub core: Option<usize>,
    /// The broker's idle policy.
    pub policy: String,
    /// The broker's data directory.
    pub data: Option<PathBuf>,
}

/// What was measured so far.
#[derive(Debug, Default)]
pub struct Floors {
    /// See [`echo`].
    pub echo: Latencies,
    /// See [`flush`].
    pub flush: Latencies,
    /// See [`hiccup`].
    pub hiccup: Latencies,
    /// What could not be taken, each sentence once.
    pub notes: Vec<String>,
}

impl Floors {
    /// Takes all floors once, spacing flushes by `flush_rate`.
    pub fn take(&mut self, ground: &Ground, flush_rate: u64) {
        if ground.span == 0 {
            return;
        }
        self.take_hiccup(ground);
        if let Err(sentence) = self.take_echo(ground) {
            self.note(format!("no echo floor: {sentence}"));
        }
        match &ground.data {
            None => self
                .note("no flush floor: the broker does not say where its data is, and --data is not given".to_owned()),
            Some(directory) => {
                if let Err(error) = self.take_flush(ground, directory, flush_rate) {
                    self.note(format!("no flush floor: {} does not take direct writes: {error}", directory.display()));
                }
            }
        }
    }

    fn take_hiccup(&mut self, ground: &Ground) {
        let threads = ground.cores.threads();
        let rate = (ground.rate / u64::from(threads)).max(1);
        let measured = ground.cores.run(ground.cores.parts(), |_| hiccup::measure(ground.clock, rate, ground.span));
        for latencies in &measured {
            self.hiccup.add(latencies);
        }
    }

    fn take_flush(&mut self, ground: &Ground, directory: &Path, rate: u64) -> std::io::Result<()> {
        let floor = FlushFloor::prepare(directory)?;
        let measured = ground.cores.run([0], |_| floor.measure(ground.clock, rate, ground.span));
        for latencies in measured {
            self.flush.add(&latencies?);
        }
        Ok(())
    }

    fn take_echo(&mut self, ground: &Ground) -> Result<(), String> {
        if ground.policy == "spin" {
            return Err("the broker spins on the core that the echo would need".to_owned());
        }
        let binary = ground
            .binary
            .as_deref()
            .ok_or("no peregrine-broker beside this program, and --broker-binary is not given")?;
        let process = EchoProcess::start(binary, ground.core, &ground.policy)?;
        let schedule = Schedule {
            rate: ground.rate,
            warmup: ECHO_WARMUP,
            duration: ground.span,
            producers: ground.producers,
            queues: 1,
            start: ground.clock.now() + 100 * MILLISECOND,
        };
        let workload = Arc::new(Workload { run: 0, size: STAMP_BYTES, schedule, content: Content::random(1) });
        let threads = ground.cores.threads();
        let outcomes = ground.cores.run(ground.cores.parts(), |thread| {
            let producers = (thread..ground.producers).step_by(threads as usize).len();
            let echo = Echo::connect(&process, ground.clock, ground.frame, producers, threads)
                .map_err(|error| error.to_string())?;
            let generator = Generator::new(
                echo,
                ground.clock,
                ground.cores.idle,
                &workload,
                (thread, threads),
                &Listening::nobody(),
                SECOND,
            );
            Ok::<_, String>(generator.run())
        });
        let mut whole = Tally::new(0, &workload.schedule, &Listening::nobody());
        for outcome in outcomes {
            let outcome = outcome?;
            if let Some(failure) = outcome.failure {
                return Err(failure.to_string());
            }
            whole.merge(&outcome.tally);
        }
        whole.close(false);
        self.echo.add(&whole.acknowledgement);
        Ok(())
    }

    fn note(&mut self, sentence: String) {
        if !self.notes.contains(&sentence) {
            self.notes.push(sentence);
        }
    }
}
