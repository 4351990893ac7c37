//! Who holds which queue of a group, and how the next assignment follows from the last: a pure function, at the group's home.
//!
//! ```text
//!  last ──► 1 keep: what a member holds and still wants ──► 2 fill: free queues go to the least filled that want them
//!                                                                      │
//!  next ◄── 3 level: while a member holds two or more above another that wants one of its queues, one queue moves ◄──┘
//! ```
//!
//! *Even*: of two members that want the same topics neither holds two queues more than the other. *Sticky*: a queue whose holder
//! stays moves only where evenness needs it, so that a member that leaves moves its own queues and nobody else's. *The same
//! whoever computes it*: members are taken by their ids, and ties go to the highest hash of (member's name, queue). Members that
//! are absent keep what they hold, and get nothing as long as anyone present wants it.
//!
//! The cost is O(queues × (log members + tied members)), each tie some nanoseconds; most for the first assignment, where all are
//! tied with all. Members with the same list of topics are looked up as one, so that lists that all differ cost more.

use std::collections::{BTreeMap, BTreeSet};

use peregrine_protocol::ids::{MemberId, QueueId, TopicId};
use peregrine_protocol::limits::MEMBER_QUEUES_MAX;
use xxhash_rust::xxh64::xxh64;

/// No member.
const NOBODY: MemberId = MemberId(0);
/// No candidate, as an index.
const NONE: u32 = u32::MAX;

/// XXH64 of a member's name: what decides between members that hold equally many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemberHash(u64);

impl MemberHash {
    pub fn of(name: &str) -> Self {
        Self(xxh64(name.as_bytes(), 0))
    }
}

/// A member that queues may be assigned to.
#[derive(Clone, Copy, Debug)]
pub struct Candidate<'a> {
    pub id: MemberId,
    pub hash: MemberHash,
    /// The topics that it wants: ascending, each once.
    pub topics: &'a [TopicId],
    /// It keeps what it holds for now, and gets nothing that anyone present wants.
    pub absent: bool,
}

/// The holders of a group's queues.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Assignment {
    /// By topic, the holders of queues 0, 1, …
    topics: BTreeMap<TopicId, Vec<MemberId>>,
}

impl Assignment {
    #[cfg(test)]
    pub fn holder(&self, topic: TopicId, queue: QueueId) -> Option<MemberId> {
        self.topics.get(&topic)?.get(queue.0 as usize).copied().filter(|&holder| holder != NOBODY)
    }

    /// Every queue that has a holder, ascending.
    pub fn iter(&self) -> impl Iterator<Item = (TopicId, QueueId, MemberId)> + '_ {
        self.topics.iter().flat_map(|(&topic, holders)| {
            (0..)
                .zip(holders)
                .filter(|&(_, &holder)| holder != NOBODY)
                .map(move |(queue, &holder)| (topic, QueueId(queue), holder))
        })
    }

    #[cfg(test)]
    pub fn is_empty(&self) -> bool {
        self.iter().next().is_none()
    }

    #[cfg(test)]
    pub fn bytes(&self) -> usize {
        self.topics.values().map(|holders| holders.capacity() * size_of::<MemberId>()).sum()
    }

    /// Another id stands for the same member from now on.
    pub fn rename(&mut self, old: MemberId, new: MemberId) {
        for holder in self.topics.values_mut().flatten().filter(|holder| **holder == old) {
            *holder = new;
        }
    }

    /// The assignment that follows for these members, in whatever order they are listed. `queues_of` says how many queues a topic
    /// has: none where it does not exist.
    pub fn next(&self, candidates: &[Candidate<'_>], queues_of: impl Fn(TopicId) -> u32) -> Self {
        let mut members: Vec<Candidate<'_>> = candidates.to_vec();
        members.sort_unstable_by_key(|member| member.id);
        let mut levelling = Levelling::new(&members, queues_of);
        levelling.keep(self);
        levelling.fill();
        levelling.level();
        levelling.into_assignment()
    }
}

/// Members that want the same topics.
#[derive(Debug)]
struct Class {
    /// (queues held, member), so that the least filled come first.
    filled: BTreeSet<(u32, u32)>,
    absent: bool,
}

impl Class {
    /// Queues that its least filled member holds.
    fn least(&self) -> Option<u32> {
        self.filled.first().map(|&(count, _)| count)
    }
}

#[derive(Debug)]
struct Topic {
    id: TopicId,
    /// The holders of queues 0, 1, …, as indexes of members.
    holders: Vec<u32>,
    /// The classes that want it, those of present members first.
    classes: Vec<u32>,
}

/// The work on one assignment. Members, topics and classes go by their indexes.
#[derive(Debug)]
struct Levelling<'a> {
    members: &'a [Candidate<'a>],
    class_of: Vec<u32>,
    /// Queues that each member holds.
    counts: Vec<u32>,
    /// The same by topic, each list in the order in which its queues came.
    held: Vec<BTreeMap<u32, Vec<u32>>>,
    topics: Vec<Topic>,
    classes: Vec<Class>,
    /// (queues held, member) of those present.
    filled: BTreeSet<(u32, u32)>,
}

impl<'a> Levelling<'a> {
    fn new(members: &'a [Candidate<'a>], queues_of: impl Fn(TopicId) -> u32) -> Self {
        let mut by_wish: BTreeMap<(bool, &[TopicId]), Vec<u32>> = BTreeMap::new();
        for (index, member) in (0..).zip(members) {
            by_wish.entry((member.absent, member.topics)).or_default().push(index);
        }
        let mut topics: BTreeMap<TopicId, Topic> = BTreeMap::new();
        let mut classes = Vec::with_capacity(by_wish.len());
        let mut class_of = vec![NONE; members.len()];
        for ((absent, wanted), indexes) in by_wish {
            let class = classes.len() as u32;
            for &topic in wanted {
                let queues = queues_of(topic) as usize;
                let new = || Topic { id: topic, holders: vec![NONE; queues], classes: Vec::new() };
                topics.entry(topic).or_insert_with(new).classes.push(class);
            }
            for &index in &indexes {
                class_of[index as usize] = class;
            }
            classes.push(Class { filled: indexes.into_iter().map(|index| (0, index)).collect(), absent });
        }
        Self {
            members,
            class_of,
            counts: vec![0; members.len()],
            held: vec![BTreeMap::new(); members.len()],
            topics: topics.into_values().collect(),
            classes,
            filled: (0..).zip(members).filter(|(_, member)| !member.absent).map(|(index, _)| (0, index)).collect(),
        }
    }

    /// Every queue stays with its holder, if that is still a member and still wants it.
    fn keep(&mut self, last: &Assignment) {
        for topic in 0..self.topics.len() as u32 {
            let Some(holders) = last.topics.get(&self.topics[topic as usize].id) else { continue };
            let queues = self.topics[topic as usize].holders.len();
            for (queue, &holder) in (0..).zip(holders).take(queues) {
                let Ok(member) = self.members.binary_search_by_key(&holder, |member| member.id) else { continue };
                if self.members[member].topics.binary_search(&self.topics[topic as usize].id).is_ok() {
                    self.give(topic, queue, member as u32);
                }
            }
        }
    }

    /// Queues without a holder go to the least filled that want them.
    fn fill(&mut self) {
        for topic in 0..self.topics.len() as u32 {
            for queue in 0..self.topics[topic as usize].holders.len() as u32 {
                if self.topics[topic as usize].holders[queue as usize] == NONE
                    && let Some(least) = self.least_wanting(topic)
                    && (least as usize) < MEMBER_QUEUES_MAX
                {
                    let member = self.choose(topic, queue, least);
                    self.give(topic, queue, member);
                }
            }
        }
    }

    /// Moves queues from the fullest members to less filled ones until no move makes two of them more alike. It ends, as each
    /// move makes the sum of the squares of what the members hold smaller.
    fn level(&mut self) {
        loop {
            let mut below = None;
            let mut moved_since_stuck = false;
            // From the fullest down. Where all want the same, the first that has nothing to give ends it.
            while let Some(&(count, member)) = match below {
                None => self.filled.last(),
                Some(stuck) => self.filled.range(..stuck).next_back(),
            } {
                if self.filled.first().is_none_or(|&(least, _)| count < least + 2) {
                    break;
                }
                if self.pass_on(member) {
                    moved_since_stuck |= below.is_some();
                } else {
                    below = Some((count, member));
                }
            }
            // What moved below may have made room for those who were stuck.
            if !moved_since_stuck {
                break;
            }
        }
    }

    /// Moves one of the member's queues to one who holds at least two fewer, the least filled that wants any of them.
    fn pass_on(&mut self, member: u32) -> bool {
        let count = self.counts[member as usize];
        let mut best: Option<(u32, u32, usize)> = None;
        for (&topic, queues) in &self.held[member as usize] {
            let Some(least) = self.least_present(topic).filter(|&least| least + 2 <= count) else { continue };
            // Of topics that are wanted alike, the one that the member holds most of.
            if best.is_none_or(|(_, lowest, most)| least < lowest || least == lowest && queues.len() > most) {
                best = Some((topic, least, queues.len()));
            }
        }
        let Some((topic, least, _)) = best else { return false };
        let queue = self.take_newest(member, topic);
        let receiver = self.choose(topic, queue, least);
        self.give(topic, queue, receiver);
        true
    }

    /// Takes from a member the queue of the topic that it got last.
    fn take_newest(&mut self, member: u32, topic: u32) -> u32 {
        let held = &mut self.held[member as usize];
        let Some(queue) = held.get_mut(&topic).and_then(Vec::pop) else {
            unreachable!("topics that it holds none of are not listed")
        };
        if held.get(&topic).is_some_and(Vec::is_empty) {
            held.remove(&topic);
        }
        self.recount(member, self.counts[member as usize] - 1);
        queue
    }

    fn give(&mut self, topic: u32, queue: u32, member: u32) {
        self.topics[topic as usize].holders[queue as usize] = member;
        self.held[member as usize].entry(topic).or_default().push(queue);
        self.recount(member, self.counts[member as usize] + 1);
    }

    fn recount(&mut self, member: u32, count: u32) {
        let before = std::mem::replace(&mut self.counts[member as usize], count);
        let class = &mut self.classes[self.class_of[member as usize] as usize];
        class.filled.remove(&(before, member));
        class.filled.insert((count, member));
        if !class.absent {
            self.filled.remove(&(before, member));
            self.filled.insert((count, member));
        }
    }

    /// What the least filled holds of those present that want the topic.
    fn least_present(&self, topic: u32) -> Option<u32> {
        let classes = self.topics[topic as usize].classes.iter().map(|&class| &self.classes[class as usize]);
        classes.filter(|class| !class.absent).filter_map(Class::least).min()
    }

    /// The same; of those absent where nobody else wants the topic.
    fn least_wanting(&self, topic: u32) -> Option<u32> {
        let all =
            || self.topics[topic as usize].classes.iter().filter_map(|&class| self.classes[class as usize].least());
        self.least_present(topic).or_else(|| all().min())
    }

    /// Of those that want the topic and hold `count` queues, the one with the highest hash for this queue.
    fn choose(&self, topic: u32, queue: u32, count: u32) -> u32 {
        let Topic { id, classes, .. } = &self.topics[topic as usize];
        let hash = queue_hash(*id, QueueId(queue));
        let absent = classes.iter().all(|&class| self.classes[class as usize].absent);
        let wanting = classes.iter().map(|&class| &self.classes[class as usize]).filter(|class| class.absent == absent);
        let tied = wanting.flat_map(|class| class.filled.range((count, 0)..=(count, NONE)));
        let highest = tied.map(|&(_, member)| (mix(self.members[member as usize].hash, hash), member)).max();
        let Some((_, member)) = highest else { unreachable!("the caller found that somebody holds that many") };
        member
    }

    fn into_assignment(self) -> Assignment {
        let member_of = |holder: u32| self.members.get(holder as usize).map_or(NOBODY, |member| member.id);
        let topics = self.topics.into_iter().filter(|topic| !topic.holders.is_empty());
        let holders = topics.map(|topic| (topic.id, topic.holders.into_iter().map(member_of).collect()));
        Assignment { topics: holders.collect() }
    }
}

fn queue_hash(topic: TopicId, queue: QueueId) -> u64 {
    let mut bytes = [0; 12];
    bytes[..8].copy_from_slice(&topic.0.to_le_bytes());
    bytes[8..].copy_from_slice(&queue.0.to_le_bytes());
    xxh64(&bytes, 0)
}

/// A hash of both: the finalizer of MurmurHash3 (`fmix64`), since XXH64 of the name anew for each queue would cost ten times as
/// much where all are tied with all.
fn mix(member: MemberHash, queue: u64) -> u64 {
    let mut hash = member.0 ^ queue;
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xFF51_AFD7_ED55_8CCD);
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xC4CE_B9FE_1A85_EC53);
    hash ^ (hash >> 33)
}
