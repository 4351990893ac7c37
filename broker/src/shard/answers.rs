//! What the broker says: errors with their detail, deliveries as pieces of an outbox, and whole delivery frames for the mesh.

use crate::engine::{BatchPlace, Refusal};
use crate::limits::BUSY_RETRY_AFTER;
use crate::log::AppendRefused;
use crate::shard::connection::outbox::{LogBytes, Outbox};
use crate::shard::subscriptions;
use peregrine_protocol::entry::EntryHeader;
use peregrine_protocol::error::{ErrorCode, ErrorDetail};
use peregrine_protocol::frame;
use peregrine_protocol::ids::{Correlation, MemberId, Nanos, ShardId, SubscriptionId};
use peregrine_protocol::message::consume::deliver_prefix;
use peregrine_protocol::message::{BatchHead, ErrorAnswer, Revoke};

/// The queue lives there.
pub fn wrong_shard(shard: ShardId) -> ErrorAnswer<'static> {
    let detail = ErrorDetail { shard: Some(u64::from(shard.0)), ..ErrorDetail::default() };
    ErrorAnswer::new(ErrorCode::WrongShard).with(detail)
}

/// There is no room, and there was none for as long as a request waits.
pub fn busy() -> ErrorAnswer<'static> {
    let retry_after_ns = Some(Nanos::from(BUSY_RETRY_AFTER).0);
    ErrorAnswer::new(ErrorCode::Busy).with(ErrorDetail { retry_after_ns, ..ErrorDetail::default() })
}

/// What the engine refused, with its own sentence.
pub fn refusal(refusal: &Refusal, correlation: Correlation, out: &mut Vec<u8>) {
    let sentence = refusal.to_string();
    ErrorAnswer::saying(refusal.code(), &sentence).with(refusal.detail()).encode(correlation, out);
}

/// What the log refused; `None` where the request may wait for room.
pub fn append_refused(refused: AppendRefused) -> Option<ErrorCode> {
    match refused {
        AppendRefused::NoRoom => None,
        AppendRefused::Poisoned => Some(ErrorCode::Poisoned),
        AppendRefused::DiskFull => Some(ErrorCode::DiskFull),
        AppendRefused::TooLarge => Some(ErrorCode::TooLarge),
        AppendRefused::Closing => Some(ErrorCode::ShuttingDown),
    }
}

/// Puts a delivery into an outbox: its head, the place of its payload, and the filling behind it.
pub fn delivery(
    outbox: &mut Outbox,
    shard: ShardId,
    subscription: SubscriptionId,
    batch: &BatchPlace,
    header: &EntryHeader,
) {
    let head = BatchHead { attempt: batch.attempt, ..BatchHead::of(header, batch.first_wanted) };
    let prefix = deliver_prefix(subscriptions::on_wire(shard, subscription), &head);
    let len = header.length as usize;
    outbox.push(|bytes| bytes.extend_from_slice(&prefix));
    outbox.push_log(LogBytes { shard, position: header.payload_position(), len });
    outbox.push(|bytes| bytes.extend_from_slice(frame::filling(len)));
}

/// A whole delivery frame.
pub fn delivery_frame(
    shard: ShardId,
    subscription: SubscriptionId,
    batch: &BatchPlace,
    header: &EntryHeader,
    payload: &[u8],
) -> Vec<u8> {
    let head = BatchHead { attempt: batch.attempt, ..BatchHead::of(header, batch.first_wanted) };
    let prefix = deliver_prefix(subscriptions::on_wire(shard, subscription), &head);
    let mut frame = Vec::with_capacity(prefix.len() + payload.len() + 8);
    frame.extend_from_slice(&prefix);
    frame.extend_from_slice(payload);
    frame.extend_from_slice(frame::filling(payload.len()));
    frame
}

/// Tells that another member is to get a subscription's queue.
pub fn revoked(out: &mut Vec<u8>, shard: ShardId, subscription: SubscriptionId) {
    Revoke { subscription: subscriptions::on_wire(shard, subscription) }.encode(out);
}

/// Tells that a member of a group has ended, and why.
pub fn member_ended(out: &mut Vec<u8>, member: MemberId, why: ErrorCode) {
    let detail = ErrorDetail { member: Some(member.0), ..ErrorDetail::default() };
    ErrorAnswer::new(why).with(detail).encode(Correlation(0), out);
}

/// Tells that a subscription has ended, and why.
pub fn ended(out: &mut Vec<u8>, shard: ShardId, subscription: SubscriptionId, why: ErrorCode) {
    let subscription = Some(subscriptions::on_wire(shard, subscription).0);
    let detail = ErrorDetail { subscription, ..ErrorDetail::default() };
    ErrorAnswer::new(why).with(detail).encode(Correlation(0), out);
}
