//! Subscription ids on the wire name the shard too, so that credit for one finds its way without a table:
//! 10 bits of shard ‖ 54 bits of the engine's own id.

use peregrine_protocol::ids::{ShardId, SubscriptionId};

const SHARD_SHIFT: u32 = 54;

/// The id that clients see.
pub fn on_wire(shard: ShardId, id: SubscriptionId) -> SubscriptionId {
    debug_assert!(id.0 >> SHARD_SHIFT == 0, "an engine's ids leave the upper ten bits free");
    SubscriptionId(u64::from(shard.0) << SHARD_SHIFT | id.0)
}

/// The shard and its engine's id.
pub fn from_wire(id: SubscriptionId) -> (ShardId, SubscriptionId) {
    (ShardId((id.0 >> SHARD_SHIFT) as u16), SubscriptionId(id.0 & ((1 << SHARD_SHIFT) - 1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_leads_back_to_its_shard() {
        for (shard, id) in [(0, 0), (1023, (1 << 54) - 1), (7, 0x2A_0000_0003)] {
            let there = on_wire(ShardId(shard), SubscriptionId(id));
            assert_eq!(from_wire(there), (ShardId(shard), SubscriptionId(id)));
        }
    }
}
