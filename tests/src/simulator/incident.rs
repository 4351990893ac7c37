//! What no crash does, but people and devices do, between two lives of a broker. A start must meet each of these with a refusal
//! that names it, having changed nothing, or with no loss at all; only what is then given up on purpose may be gone.
//!
//! ```text
//!   incident                                      the start               then                      lost
//!   a ring is removed, replaced, tampered with    names ring and epoch    it is put back            nothing
//!                                                                         --discard-ring            `memory` above durable
//!                          … another epoch's      refuses as before       --discard-ring            nothing
//!                          … and is not due       comes up                                          nothing
//!   a bit of a segment's identity turns over      names the file          it is mended              nothing
//!   shard 0's log is gone, shard 1 has batches    refuses                 brought back, rings too   nothing
//!                          … and rings stay where they are, for nothing else says where they were
//! ```
//!
//! Crashes strike these starts as any others. A ring file of zeros, and one of an earlier run, are not here: neither can be told from
//! what a killed start leaves, so that a start goes on without them.

use peregrine_broker::log::StartError;
use peregrine_broker::log::disk::simulated::Machine;
use peregrine_protocol::entry::EntryKind;
use peregrine_protocol::ids::Epoch;
use peregrine_protocol::limits::BLOCK;

use super::configuration::{Configuration, RING_DIRECTORIES};
use super::damage::base_and_epoch;
use super::simulation::Simulation;
use super::violation::{Violation, promise};

/// Bytes before the ring in its file, and how far its fields reach into them.
const RING_PAGE: usize = BLOCK as usize;
const RING_FIELDS: usize = 328;

/// Something that befell one shard, and whether a start has said so.
#[derive(Debug)]
pub struct Incident {
    shard: u16,
    what: What,
    told: Option<Told>,
}

#[derive(Debug)]
enum What {
    /// The ring file at this path held these bytes; now it may be another shard's.
    Ring {
        path: String,
        held: Vec<u8>,
        foreign: bool,
    },
    Identity {
        file: String,
        byte: u64,
        bit: u8,
    },
    /// The log and what held its rings: a start without it makes a ring of its own there.
    LogGone(RingsAside),
}

/// The ring files of a shard as they stood in one boot of the machine.
#[derive(Debug)]
struct RingsAside {
    boot: [u8; 16],
    files: Vec<(String, Option<Vec<u8>>)>,
}

impl RingsAside {
    fn of(machine: &Machine, shard: u16) -> Self {
        let rings = machine.rings();
        let read = |directory: &&str| {
            let path = Configuration::ring_file(directory, shard);
            let held = rings.take(&path);
            if let Some(held) = held.clone() {
                rings.put(&path, held);
            }
            (path, held)
        };
        Self { boot: machine.boot_id(), files: RING_DIRECTORIES.iter().map(read).collect() }
    }

    /// A loss of power has taken them.
    fn bring_back(self, machine: &Machine) {
        if machine.boot_id() != self.boot {
            return;
        }
        for (path, held) in self.files {
            machine.rings().take(&path);
            if let Some(held) = held {
                machine.rings().put(&path, held);
            }
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Told {
    /// The ring of this run can be given up.
    Ring(Epoch),
    Otherwise,
}

impl Incident {
    /// Whether a start that failed so has named it.
    pub fn is_told_by(&mut self, shard: u16, error: &StartError) -> bool {
        let told = match (&self.what, error) {
            (What::Ring { path, .. }, StartError::Ring { epoch, path: named, .. }) if path == named => {
                Some(Told::Ring(*epoch))
            }
            (What::Ring { path, .. }, StartError::RingTaken { path: named, .. }) if path == named => {
                Some(Told::Otherwise)
            }
            (What::Ring { .. }, StartError::Damage(damage)) if damage.files.is_empty() => Some(Told::Otherwise),
            (What::Identity { file, .. }, StartError::Damage(damage)) => {
                damage.files.iter().any(|(named, _)| named.ends_with(file.as_str())).then_some(Told::Otherwise)
            }
            // Its ring or its mark tells; or the other shard, which meets a topic that nobody knows.
            (What::LogGone(_), StartError::Ring { .. } | StartError::Damage(_)) => {
                self.told = Some(Told::Otherwise);
                return true;
            }
            _ => None,
        };
        self.told = told.filter(|_| shard == self.shard);
        self.told.is_some()
    }

    pub fn took_log_of(&self, shard: u16) -> bool {
        matches!(self.what, What::LogGone(_)) && self.shard == shard
    }

    /// Rings are gone then, good or bad.
    pub fn outlives_power_cut(&self) -> bool {
        !matches!(self.what, What::Ring { .. })
    }
}

impl Simulation {
    pub(super) fn has_incident(&self) -> bool {
        self.incident.is_some()
    }

    /// Between two lives: something may happen, if the last one was put right.
    pub(super) fn something_happens(&mut self) {
        if self.has_incident()
            || self.discard_ring.is_some()
            || !self.random.one_in(self.configuration.incidents_one_in)
        {
            return;
        }
        let shard = self.random.below(u64::from(self.configuration.shards)) as u16;
        self.incident = match self.random.below(8) {
            0..5 => self.tamper_with_ring(shard),
            5..7 => self.damage_identity(shard),
            _ => self.lose_log(),
        };
    }

    fn tamper_with_ring(&mut self, shard: u16) -> Option<Incident> {
        let elsewhere = *self.random.pick(&RING_DIRECTORIES);
        let directory = if self.random.one_in(8) { elsewhere } else { self.rings? };
        let path = Configuration::ring_file(directory, shard);
        let rings = self.machine.rings();
        let held = rings.take(&path)?;
        let way = self.random.below(5);
        let mut bytes = held.clone();
        let mut foreign = false;
        match way {
            0 => {}
            1 => {
                let other = Configuration::ring_file(directory, shard ^ 1);
                if let Some(copy) = rings.take(&other) {
                    foreign = copy.first_chunk::<8>().is_some_and(|magic| magic == b"PgStRing");
                    if foreign {
                        bytes.clone_from(&copy);
                    }
                    rings.put(&other, copy);
                }
            }
            2 if held.len() > RING_PAGE => {
                let len = if self.random.coin() { RING_PAGE + (held.len() - RING_PAGE) / 2 } else { held.len() * 2 };
                bytes.resize(len, 0);
            }
            _ => {
                let len = if way == 3 { held.len().min(RING_FIELDS) } else { held.len() };
                if len > 0 {
                    bytes[self.random.below(len as u64) as usize] ^= 1 << self.random.below(8);
                }
            }
        }
        self.machine.note(&("tampers with", &path, way));
        if way > 0 {
            rings.put(&path, bytes);
        }
        Some(Incident { shard, what: What::Ring { path, held, foreign }, told: None })
    }

    fn damage_identity(&mut self, shard: u16) -> Option<Incident> {
        let mut names = self.machine.file_names(usize::from(shard));
        names.retain(|name| base_and_epoch(name).is_some());
        if names.is_empty() {
            return None;
        }
        let file = self.random.pick(&names).clone();
        let (byte, bit) = (self.random.below(BLOCK), self.random.below(8) as u8);
        self.machine.flip(usize::from(shard), &file, byte, bit);
        Some(Incident { shard, what: What::Identity { file, byte, bit }, told: None })
    }

    /// Where no other shard has a batch, a log that is gone without a trace cannot be told from one that never was.
    fn lose_log(&mut self) -> Option<Incident> {
        let other = self.ledgers.get(1)?;
        let is_kept = |end| end <= other.durable();
        if !other.records().any(|record| record.header.kind == EntryKind::Batch && is_kept(record.header.end())) {
            return None;
        }
        self.machine.move_away(0);
        let rings = RingsAside::of(&self.machine, 0);
        Some(Incident { shard: 0, what: What::LogGone(rings), told: None })
    }

    /// After a life: what a start has told of is put right, or given up.
    pub(super) fn mend(&mut self) -> Result<(), Violation> {
        // A ring that was given up stays so until a start has come up without it; another epoch's was but tried.
        if self.is_up || self.has_incident() {
            self.discard_ring = None;
        }
        let Some(incident) = self.incident.take() else { return Ok(()) };
        let Incident { shard, what, told } = incident;
        let Some(told) = told else {
            self.incident = self.not_told(shard, what)?;
            return Ok(());
        };
        match what {
            What::Ring { path, held, foreign } => self.mend_ring(shard, (path, held, foreign), told),
            What::Identity { file, byte, bit } => {
                self.statistics.identities_refused += 1;
                self.machine.flip(usize::from(shard), &file, byte, bit);
            }
            What::LogGone(rings) => {
                self.statistics.logs_missed += 1;
                rings.bring_back(&self.machine);
                self.machine.bring_back(usize::from(shard));
            }
        }
        Ok(())
    }

    fn mend_ring(&mut self, shard: u16, (path, held, foreign): (String, Vec<u8>, bool), told: Told) {
        self.statistics.rings_refused += 1;
        match told {
            Told::Ring(epoch) if self.random.one_in(3) => {
                self.statistics.rings_given_up += 1;
                self.machine.note(&("gives up the ring", shard, epoch));
                self.discard_ring = Some((shard, epoch));
                self.ledgers[usize::from(shard)].ring_given_up();
                if foreign {
                    // To give up one's own ring is not to be given another's file.
                    self.machine.rings().take(&path);
                }
            }
            Told::Ring(epoch) if self.random.one_in(4) => {
                let other = Epoch(if self.random.coin() { epoch.0 + 1 } else { epoch.0.saturating_sub(1) });
                self.discard_ring = Some((shard, other));
                self.incident = Some(Incident { shard, what: What::Ring { path, held, foreign }, told: None });
            }
            _ => {
                self.machine.note(&("puts back", &path));
                self.machine.rings().put(&path, held);
            }
        }
    }

    /// No start has said anything: none got as far, or the incident was none. What is left of it.
    fn not_told(&mut self, shard: u16, what: What) -> Result<Option<Incident>, Violation> {
        let left = match &what {
            // The ledgers have seen that nothing is missing. What no run took for its own is moved out of the way.
            What::Ring { path, .. } => {
                let taken = self.rings.is_some_and(|directory| Configuration::ring_file(directory, shard) == *path);
                if self.is_up && !taken {
                    self.machine.rings().take(path);
                }
                !self.is_up
            }
            What::Identity { file, .. } => {
                promise!(!self.is_up, "a bit turned over in the identity of {file}, and a start took it");
                // A power cut may take a name that nothing relied on.
                self.machine.file_names(usize::from(shard)).contains(file)
            }
            What::LogGone(_) => {
                promise!(!self.is_up, "a start came up without the log of shard {shard}");
                true
            }
        };
        Ok(left.then_some(Incident { shard, what, told: None }))
    }
}
