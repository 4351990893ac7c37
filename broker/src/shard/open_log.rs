//! A shard's log for as long as it is open. A stop takes it away; who still comes for its bytes then finds none.

use crate::shard::state::ShardLog;
use std::ops::{Deref, DerefMut};

pub struct OpenLog(Option<ShardLog>);

impl OpenLog {
    pub fn new(log: ShardLog) -> Self {
        OpenLog(Some(log))
    }

    pub fn get(&self) -> Option<&ShardLog> {
        self.0.as_ref()
    }

    /// The log, for its stop.
    pub fn take(&mut self) -> Option<ShardLog> {
        self.0.take()
    }
}

impl Deref for OpenLog {
    type Target = ShardLog;

    fn deref(&self) -> &ShardLog {
        let Some(log) = &self.0 else { unreachable!("nothing is asked of a shard after its stop") };
        log
    }
}

impl DerefMut for OpenLog {
    fn deref_mut(&mut self) -> &mut ShardLog {
        let Some(log) = &mut self.0 else { unreachable!("nothing is asked of a shard after its stop") };
        log
    }
}
