//! How the next assignment follows from the last, at the group's home: a piece of work that goes on from where it was left, since
//! a group may have 65,536 queues and whoever else is served there must not wait for all of them.
//!
//! ```text
//!  members, one by one ─► 1 keep: what a member holds and still wants ─► rank: members by how much they hold
//!                                                                          │
//!  next ◄── 3 level: while a member holds two or more above another ◄── 2 fill: free queues go to the least
//!           that wants one of its queues, one queue moves                  filled that want them
//! ```
//!
//! *Even*: of two members that want the same topics neither holds two queues more than the other. *Sticky*: a queue whose holder
//! stays moves only where evenness needs it, so that a member that leaves moves its own queues and nobody else's. *The same
//! whoever computes it*: members are taken by their names, and ties go to who comes next on a ring of the hashes of members'
//! names, from the queue's hash on. Members that are absent keep what they hold, and get nothing as long as anyone present wants
//! it.
//!
//! A member may leave, or get another id, while the plan is made: what one that is gone would have had is nobody's, and the next
//! plan, which is due then, gives it to others. One who joins meanwhile waits for the next plan. So each plan comes to its end,
//! whoever comes and goes.

use peregrine_protocol::ids::{MemberId, QueueId, TopicId};
use peregrine_protocol::limits::MEMBER_QUEUES_MAX;

use super::assignment::{Assignment, Candidate};
use super::levelling::Levelling;
use crate::engine::slice::Slice;

/// The work on one assignment.
#[derive(Debug)]
pub struct Plan {
    levelling: Levelling,
    stage: Stage,
    /// A queue has no holder, as all that want it are full.
    is_short: bool,
    /// A queue has moved since.
    has_moved: bool,
}

/// What is done next.
#[derive(Clone, Copy, Debug)]
enum Stage {
    /// From this row of the last assignment on.
    Keep {
        topic: TopicId,
        queue: u32,
    },
    RankMembers {
        next: u32,
    },
    RankClasses {
        next: u32,
    },
    Fill {
        topic: u32,
        queue: u32,
    },
    /// From the fullest member down; from the one below `below`, which has nothing to give.
    Level {
        below: Option<(u32, u32)>,
        moved_since_stuck: bool,
    },
    Done,
}

impl Plan {
    pub fn new() -> Self {
        Self {
            levelling: Levelling::default(),
            stage: Stage::Keep { topic: TopicId(0), queue: 0 },
            is_short: false,
            has_moved: false,
        }
    }

    // Members. All are added before the first step, in the order of their names.

    /// One more member shares the queues. `queues_of` says how many queues a topic has: none where it does not exist.
    pub fn add(&mut self, member: Candidate, queues_of: impl Fn(TopicId) -> u32, slice: &mut Slice) {
        self.levelling.add(member, queues_of, slice);
    }

    pub fn rename(&mut self, old: MemberId, new: MemberId) {
        self.levelling.rename(old, new);
    }

    /// The member is gone: what it would have is nobody's.
    pub fn gone(&mut self, member: MemberId) {
        self.levelling.gone(member);
    }

    /// By index, who was added; nobody where that one is gone.
    pub fn member(&self, index: u32) -> Option<MemberId> {
        self.levelling.member(index)
    }

    // Work.

    /// Goes on until all is done, which it returns, or the slice is spent. `last` is the same with each call, but for the ids of
    /// its members.
    pub fn step(&mut self, last: &Assignment, slice: &mut Slice) -> bool {
        while !slice.is_spent() {
            self.stage = match self.stage {
                Stage::Keep { topic, queue } => self.keep(last, topic, queue, slice),
                Stage::RankMembers { next } if self.levelling.rank_member(next, slice) => {
                    Stage::RankMembers { next: next + 1 }
                }
                Stage::RankMembers { .. } => Stage::RankClasses { next: 0 },
                Stage::RankClasses { next } if self.levelling.rank_class(next, slice) => {
                    Stage::RankClasses { next: next + 1 }
                }
                Stage::RankClasses { .. } => Stage::Fill { topic: 0, queue: 0 },
                Stage::Fill { topic, queue } => self.fill(topic, queue, slice),
                Stage::Level { below, moved_since_stuck } => self.level(below, moved_since_stuck, slice),
                Stage::Done => return true,
            };
        }
        matches!(self.stage, Stage::Done)
    }

    /// Every queue stays with its holder, if that is still a member and still wants it.
    fn keep(&mut self, last: &Assignment, topic: TopicId, mut queue: u32, slice: &mut Slice) -> Stage {
        for (topic, holders) in last.topics_from(topic) {
            while let Some(&holder) = holders.get(queue as usize) {
                if slice.is_spent() {
                    return Stage::Keep { topic, queue };
                }
                self.levelling.keep(topic, queue, last.member(holder));
                slice.spend(1);
                queue += 1;
            }
            queue = 0;
        }
        Stage::RankMembers { next: 0 }
    }

    /// A queue without a holder goes to the least filled that wants it, unless that is full.
    fn fill(&mut self, topic: u32, queue: u32, slice: &mut Slice) -> Stage {
        slice.spend(1);
        let Some(queues) = self.levelling.queues(topic) else {
            return Stage::Level { below: None, moved_since_stuck: false };
        };
        if queue == queues {
            return Stage::Fill { topic: topic + 1, queue: 0 };
        }
        if self.levelling.is_free(topic, queue)
            && let Some(least) = self.levelling.least_wanting(topic)
        {
            if (least as usize) < MEMBER_QUEUES_MAX {
                let member = self.levelling.choose(topic, queue, least);
                self.levelling.give(topic, queue, member, slice);
            } else {
                self.is_short = true;
            }
        }
        Stage::Fill { topic, queue: queue + 1 }
    }

    /// Moves a queue from the fullest member to a less filled one, until no move makes two of them more alike. It ends, as each
    /// move makes the sum of the squares of what the members hold smaller.
    fn level(&mut self, below: Option<(u32, u32)>, moved_since_stuck: bool, slice: &mut Slice) -> Stage {
        slice.spend(1);
        // From the fullest down. Where all want the same, the first that has nothing to give ends it.
        match self.levelling.fullest(below) {
            // What moved below may have made room for those who were stuck.
            None if moved_since_stuck => Stage::Level { below: None, moved_since_stuck: false },
            // Where members are full, what moved may have made room for queues that nobody could take.
            None if self.is_short && self.has_moved => {
                (self.is_short, self.has_moved) = (false, false);
                Stage::Fill { topic: 0, queue: 0 }
            }
            None => Stage::Done,
            Some((_, member)) if self.levelling.pass_on(member, slice) => {
                self.has_moved = true;
                Stage::Level { below, moved_since_stuck: moved_since_stuck || below.is_some() }
            }
            stuck => Stage::Level { below: stuck, moved_since_stuck },
        }
    }

    // What came of it, once all is done.

    /// Whether a member that is there has other queues than before.
    pub fn has_changed(&self) -> bool {
        self.levelling.has_changed()
    }

    pub fn take_assignment(&mut self) -> Assignment {
        assert!(matches!(self.stage, Stage::Done), "what is taken is whole");
        self.levelling.take_assignment()
    }

    /// Whether the member of that index has other queues than before.
    pub fn is_changed(&self, index: u32) -> bool {
        self.levelling.is_changed(index)
    }

    /// The queues of the member of that index, ascending; once.
    pub fn take_queues(&mut self, index: u32) -> Vec<(TopicId, QueueId)> {
        self.levelling.take_queues(index)
    }

    /// Gives the memory back; true when nothing is left that takes long.
    pub fn dismantle(&mut self, slice: &mut Slice) -> bool {
        self.levelling.dismantle(slice)
    }
}
