//! How much each member of a group holds while its next assignment is made: the tables of a [`super::plan::Plan`].
//!
//! ```text
//!  topic ──► classes that want it, by what the least filled of each holds
//!  class ──► members with the same list of topics, by (queues held, hash of the name)
//!  member ─► its queues by topic
//! ```
//!
//! Members, topics and classes go by their indexes. An operation looks at the topics of one member, and once or a few times into
//! each tree that it changes: none takes longer because a group has many members, all with lists of their own.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use peregrine_protocol::ids::{MemberId, QueueId, TopicId};
use rustc_hash::FxHashMap;
use xxhash_rust::xxh64::xxh64;

use super::assignment::{Assignment, Candidate, NOBODY, NONE};
use crate::engine::slice::Slice;

/// Members that want the same topics.
#[derive(Debug)]
struct Class {
    topics: Vec<u32>,
    /// (queues held, hash, member), so that the least filled come first.
    filled: BTreeSet<(u32, u64, u32)>,
    absent: bool,
}

#[derive(Debug)]
struct Topic {
    id: TopicId,
    queues: u32,
    /// The holders of queues 0, 1, …, as indexes of members; those that are missing have none.
    holders: Vec<u32>,
    /// (queues that its least filled member holds, class): classes of present members, and of absent ones.
    present: BTreeSet<(u32, u32)>,
    absent: BTreeSet<(u32, u32)>,
}

/// The tables.
#[derive(Debug, Default)]
pub struct Levelling {
    members: Vec<Candidate>,
    /// Under every id that it had while it was here.
    by_id: FxHashMap<MemberId, u32>,
    class_of: Vec<u32>,
    /// Queues that each member holds.
    counts: Vec<u32>,
    /// The same by topic, each list in the order in which its queues came.
    held: Vec<BTreeMap<u32, Vec<u32>>>,
    /// Members that hold other queues than in the last assignment.
    changed: Vec<bool>,
    topics: Vec<Topic>,
    topic_of: BTreeMap<TopicId, u32>,
    classes: Vec<Class>,
    class_of_wish: BTreeMap<(bool, Arc<[TopicId]>), u32>,
    /// (queues held, member) of those present.
    filled: BTreeSet<(u32, u32)>,
}

impl Levelling {
    // Members.

    pub fn add(&mut self, member: Candidate, queues_of: impl Fn(TopicId) -> u32, slice: &mut Slice) {
        slice.spend(self.steps_to_rank());
        let index = self.members.len() as u32;
        let wish = (member.absent, member.topics.clone());
        let class = if let Some(&class) = self.class_of_wish.get(&wish) {
            class
        } else {
            slice.spend(member.topics.len());
            let topics = member.topics.iter().map(|&topic| self.find_or_make(topic, &queues_of)).collect();
            let class = self.classes.len() as u32;
            self.classes.push(Class { topics, filled: BTreeSet::new(), absent: member.absent });
            self.class_of_wish.insert(wish, class);
            class
        };
        self.by_id.insert(member.id, index);
        self.class_of.push(class);
        self.counts.push(0);
        self.held.push(BTreeMap::new());
        self.changed.push(false);
        self.members.push(member);
    }

    /// Steps of one who is ranked anew, where a row that is looked at is one: some trees change that are as deep as there are
    /// members.
    fn steps_to_rank(&self) -> usize {
        1 + (self.members.len() + 1).ilog2() as usize / 3
    }

    fn find_or_make(&mut self, id: TopicId, queues_of: &impl Fn(TopicId) -> u32) -> u32 {
        *self.topic_of.entry(id).or_insert_with(|| {
            let queues = queues_of(id);
            let holders = Vec::with_capacity(queues as usize);
            self.topics.push(Topic { id, queues, holders, present: BTreeSet::new(), absent: BTreeSet::new() });
            self.topics.len() as u32 - 1
        })
    }

    pub fn rename(&mut self, old: MemberId, new: MemberId) {
        if let Some(&index) = self.by_id.get(&old) {
            self.by_id.insert(new, index);
            self.set_id(index, new);
        }
    }

    pub fn gone(&mut self, member: MemberId) {
        if let Some(&index) = self.by_id.get(&member) {
            self.set_id(index, NOBODY);
        }
    }

    fn set_id(&mut self, index: u32, id: MemberId) {
        // What is being dismantled may have it no more.
        if let Some(member) = self.members.get_mut(index as usize) {
            member.id = id;
        }
    }

    pub fn member(&self, index: u32) -> Option<MemberId> {
        self.members.get(index as usize).map(|member| member.id)
    }

    // What they had.

    /// In the last assignment `holder` held the queue. All of a topic's queues come in their order, before anything is ranked.
    pub fn keep(&mut self, topic: TopicId, queue: u32, holder: Option<MemberId>) {
        let member = holder.and_then(|holder| self.by_id.get(&holder)).copied();
        let wanted = member.filter(|&member| self.members[member as usize].topics.binary_search(&topic).is_ok());
        let mut kept = NONE;
        if let Some(&index) = self.topic_of.get(&topic)
            && let Topic { queues, holders, .. } = &mut self.topics[index as usize]
            && queue < *queues
        {
            if let Some(member) = wanted {
                kept = member;
                self.counts[member as usize] += 1;
                self.held[member as usize].entry(index).or_default().push(queue);
            }
            holders.push(kept);
        }
        if let (NONE, Some(member)) = (kept, member) {
            self.changed[member as usize] = true;
        }
    }

    /// Ranks the member of that index within its class; false where there is none.
    pub fn rank_member(&mut self, member: u32, slice: &mut Slice) -> bool {
        slice.spend(self.steps_to_rank());
        let Some(&count) = self.counts.get(member as usize) else { return false };
        let hash = self.members[member as usize].hash.0;
        let class = &mut self.classes[self.class_of[member as usize] as usize];
        class.filled.insert((count, hash, member));
        if !class.absent {
            self.filled.insert((count, member));
        }
        true
    }

    /// Ranks the class of that index, whose members are ranked, among those that want its topics; false where there is none.
    pub fn rank_class(&mut self, index: u32, slice: &mut Slice) -> bool {
        slice.spend(self.steps_to_rank());
        let Some(class) = self.classes.get(index as usize) else { return false };
        slice.spend(class.topics.len());
        for &topic in &class.topics {
            self.topics[topic as usize].classes(class.absent).insert((class.least(), index));
        }
        true
    }

    // Who holds how much.

    /// Queues of the topic of that index.
    pub fn queues(&self, topic: u32) -> Option<u32> {
        self.topics.get(topic as usize).map(|topic| topic.queues)
    }

    pub fn is_free(&self, topic: u32, queue: u32) -> bool {
        self.topics[topic as usize].holders.get(queue as usize).is_none_or(|&holder| holder == NONE)
    }

    /// What the least filled holds of those that want the topic: of those absent only where nobody else does.
    pub fn least_wanting(&self, topic: u32) -> Option<u32> {
        let topic = &self.topics[topic as usize];
        topic.present.first().or(topic.absent.first()).map(|&(least, _)| least)
    }

    /// Of those that want the topic and hold `least` queues, as few as any, the next on the ring from the queue's hash on.
    pub fn choose(&self, topic: u32, queue: u32, least: u32) -> u32 {
        let Topic { id, present, absent, .. } = &self.topics[topic as usize];
        let hash = queue_hash(*id, QueueId(queue));
        let classes = if present.is_empty() { absent } else { present };
        let from = (hash % self.classes.len() as u64) as u32;
        let class = classes.range((least, from)..=(least, NONE)).next().or(classes.first());
        let Some(&(_, class)) = class else { unreachable!("the caller found that somebody wants it") };
        let filled = &self.classes[class as usize].filled;
        let member = filled.range((least, hash, 0)..=(least, u64::MAX, NONE)).next().or(filled.first());
        let Some(&(_, _, member)) = member else { unreachable!("a class has members") };
        member
    }

    /// (Queues held, member): the fullest that is present, or the next below one; none where it holds at most one more than the
    /// least filled.
    pub fn fullest(&self, below: Option<(u32, u32)>) -> Option<(u32, u32)> {
        let &found = match below {
            None => self.filled.last(),
            Some(stuck) => self.filled.range(..stuck).next_back(),
        }?;
        self.filled.first().filter(|&&(least, _)| found.0 >= least + 2).map(|_| found)
    }

    // What moves.

    /// Moves one of the member's queues to one present who holds at least two fewer, the least filled that wants any of them.
    pub fn pass_on(&mut self, member: u32, slice: &mut Slice) -> bool {
        let count = self.counts[member as usize];
        let mut best: Option<(u32, u32, usize)> = None;
        slice.spend(self.held[member as usize].len());
        for (&topic, queues) in &self.held[member as usize] {
            let least = self.topics[topic as usize].present.first().map(|&(least, _)| least);
            let Some(least) = least.filter(|&least| least + 2 <= count) else { continue };
            // Of topics that are wanted alike, the one that the member holds most of.
            if best.is_none_or(|(_, lowest, most)| least < lowest || least == lowest && queues.len() > most) {
                best = Some((topic, least, queues.len()));
            }
        }
        let Some((topic, least, _)) = best else { return false };
        let queue = self.take_newest(member, topic, slice);
        let receiver = self.choose(topic, queue, least);
        self.give(topic, queue, receiver, slice);
        true
    }

    /// Takes from a member the queue of the topic that it got last.
    fn take_newest(&mut self, member: u32, topic: u32, slice: &mut Slice) -> u32 {
        let held = &mut self.held[member as usize];
        let Some(queue) = held.get_mut(&topic).and_then(Vec::pop) else {
            unreachable!("topics that it holds none of are not listed")
        };
        if held.get(&topic).is_some_and(Vec::is_empty) {
            held.remove(&topic);
        }
        self.recount(member, self.counts[member as usize] - 1, slice);
        queue
    }

    pub fn give(&mut self, topic: u32, queue: u32, member: u32, slice: &mut Slice) {
        let holders = &mut self.topics[topic as usize].holders;
        if let Some(holder) = holders.get_mut(queue as usize) {
            *holder = member;
        } else {
            // Queues come in their order, so that nothing but what nobody may have lies between.
            holders.resize(queue as usize, NONE);
            holders.push(member);
        }
        self.held[member as usize].entry(topic).or_default().push(queue);
        self.recount(member, self.counts[member as usize] + 1, slice);
    }

    fn recount(&mut self, member: u32, count: u32, slice: &mut Slice) {
        slice.spend(self.steps_to_rank());
        self.changed[member as usize] = true;
        let before = std::mem::replace(&mut self.counts[member as usize], count);
        let hash = self.members[member as usize].hash.0;
        let index = self.class_of[member as usize];
        let class = &mut self.classes[index as usize];
        let least_before = class.least();
        class.filled.remove(&(before, hash, member));
        class.filled.insert((count, hash, member));
        let least = class.least();
        if least != least_before {
            slice.spend(2 * class.topics.len());
            for &topic in &class.topics {
                let classes = self.topics[topic as usize].classes(class.absent);
                classes.remove(&(least_before, index));
                classes.insert((least, index));
            }
        }
        if !class.absent {
            self.filled.remove(&(before, member));
            self.filled.insert((count, member));
        }
    }

    // What came of it.

    pub fn has_changed(&self) -> bool {
        self.changed.contains(&true)
    }

    pub fn is_changed(&self, member: u32) -> bool {
        self.changed[member as usize]
    }

    pub fn take_assignment(&mut self) -> Assignment {
        let members = self.members.iter().map(|member| member.id).collect();
        let topics = self.topics.iter_mut().map(|topic| (topic.id, std::mem::take(&mut topic.holders)));
        Assignment::new(members, topics.filter(|(_, holders)| !holders.is_empty()).collect())
    }

    pub fn take_queues(&mut self, member: u32) -> Vec<(TopicId, QueueId)> {
        let held = std::mem::take(&mut self.held[member as usize]);
        let mut queues = Vec::with_capacity(self.counts[member as usize] as usize);
        for (topic, of_topic) in held {
            let id = self.topics[topic as usize].id;
            queues.extend(of_topic.into_iter().map(|queue| (id, QueueId(queue))));
        }
        // They stand in a few ascending runs, which this sort finds.
        queues.sort();
        queues
    }

    /// Gives the memory back, a part at a time; true when nothing is left that takes long.
    pub fn dismantle(&mut self, slice: &mut Slice) -> bool {
        while !slice.is_spent() {
            slice.spend(1);
            if self.filled.pop_first().is_some()
                || self.held.pop().is_some()
                || self.members.pop().is_some()
                || self.class_of_wish.pop_first().is_some()
            {
                continue;
            }
            if let Some(class) = self.classes.last_mut() {
                if class.filled.pop_first().is_none() {
                    self.classes.pop();
                }
            } else if let Some(topic) = self.topics.last_mut() {
                if topic.present.pop_first().is_none() && topic.absent.pop_first().is_none() {
                    self.topics.pop();
                }
            } else {
                return true;
            }
        }
        false
    }
}

impl Class {
    /// Queues that its least filled member holds.
    fn least(&self) -> u32 {
        self.filled.first().map_or(0, |&(count, ..)| count)
    }
}

impl Topic {
    fn classes(&mut self, absent: bool) -> &mut BTreeSet<(u32, u32)> {
        if absent { &mut self.absent } else { &mut self.present }
    }
}

fn queue_hash(topic: TopicId, queue: QueueId) -> u64 {
    let mut bytes = [0; 12];
    bytes[..8].copy_from_slice(&topic.0.to_le_bytes());
    bytes[8..].copy_from_slice(&queue.0.to_le_bytes());
    xxh64(&bytes, 0)
}
