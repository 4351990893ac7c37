//! Consumer groups as objects: made, deleted, listed, described, how far they are in each queue, and set to another place.
//!
//! - `row`: a group and its topics, as all messages show them;
//! - `change`: made, deleted; `show`: listed, described with the members; `place`: how far in each queue, and set.

mod change;
mod place;
mod row;
mod show;

pub use change::{CreateGroup, DeleteGroup, GroupAnswer};
pub use place::{GroupLag, GroupLagAnswer, LagRow, LagRows, ResetOffset, ResetOffsetAnswer};
pub use row::{GroupRow, GroupTopic, GroupTopics};
pub use show::{DescribeGroup, DescribeGroupAnswer, GroupRows, ListGroups, ListGroupsAnswer, MemberRow, MemberRows};
