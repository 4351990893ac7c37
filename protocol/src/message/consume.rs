//! Subscriptions: subscribe, then credit one way and deliveries the other, acks, and the revoke that takes a queue back. All but
//! the subscribing are on a message's path: structs alone, nothing allocated.

use super::DecodeError;
use super::produce::BatchHead;
use super::read::Start;
use super::table::{self, Envelope, read_struct};
use crate::frame::{self, FrameHead, Kind, Sender};
use crate::generated as wire;
use crate::ids::{Correlation, Epoch, GroupId, MemberId, QueueId, QueueOffset, SubscriptionId, TopicId};
use crate::limits::FRAME_HEAD_LEN;

/// Bytes of a deliver frame before its payload.
pub const DELIVER_PREFIX_LEN: usize = FRAME_HEAD_LEN + 8 + BatchHead::LEN;

/// How a subscription takes messages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Mode {
    /// No group: the client keeps its own place.
    #[default]
    Reader,
    /// Of a member of a group. Any number of members may have one for the same queue; messages go to the one that the queue is
    /// assigned to, from where the group is, and its acks move that place.
    Group { group: GroupId, member: MemberId },
}

impl Mode {
    fn from_wire(mode: u8, group: u64, member: u64) -> Result<Self, DecodeError> {
        match mode {
            1 => Ok(Self::Reader),
            2 if group == 0 => Err(DecodeError::Field("group")),
            2 if member == 0 => Err(DecodeError::Field("member")),
            2 => Ok(Self::Group { group: GroupId(group), member: MemberId(member) }),
            _ => Err(DecodeError::Field("mode")),
        }
    }

    fn to_wire(self) -> (u8, u64, u64) {
        match self {
            Self::Reader => (1, 0, 0),
            Self::Group { group, member } => (2, group.0, member.0),
        }
    }
}

/// Opens a subscription to one queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subscribe {
    pub topic: TopicId,
    pub queue: QueueId,
    pub mode: Mode,
    /// A reader's. A group goes on where it is, and sends [`Start::Earliest`].
    pub start: Start,
    /// The first credit, as in [`Credit`].
    pub credit_messages: u32,
    pub credit_bytes: u64,
}

impl Subscribe {
    pub fn decode(header: &[u8]) -> Result<Self, DecodeError> {
        let table = table::read::<wire::Subscribe<'_>>(header)?;
        let mode = Mode::from_wire(table.mode(), table.group(), table.member())?;
        let start = match mode {
            Mode::Reader => Start::from_wire(table.start(), table.start_epoch(), table.start_value())?,
            Mode::Group { .. } => Start::Earliest,
        };
        Ok(Self {
            topic: TopicId(table.topic()),
            queue: QueueId(table.queue()),
            mode,
            start,
            credit_messages: table.credit_messages(),
            credit_bytes: table.credit_bytes(),
        })
    }

    pub fn encode(&self, correlation: Correlation, out: &mut Vec<u8>) {
        let (start, start_epoch, start_value) = self.start.to_wire();
        let (mode, group, member) = self.mode.to_wire();
        Envelope::request(Kind::Subscribe, correlation).write(out, |builder| {
            let args = wire::SubscribeArgs {
                topic: self.topic.0,
                queue: self.queue.0,
                mode,
                start,
                start_epoch,
                start_value,
                credit_messages: self.credit_messages,
                credit_bytes: self.credit_bytes,
                group,
                member,
            };
            wire::Subscribe::create(builder, &args)
        });
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SubscribeAnswer {
    pub subscription: SubscriptionId,
    /// Of the first message to come; with none yet, the queue's newest. For a group the epoch of its place.
    pub epoch: Epoch,
    /// The first offset to come. For a group its place now, which others may move before the first message comes here.
    pub start: QueueOffset,
    /// The visible end at that time.
    pub end: QueueOffset,
}

impl SubscribeAnswer {
    pub fn decode(header: &[u8]) -> Result<Self, DecodeError> {
        let table = table::read::<wire::SubscribeAnswer<'_>>(header)?;
        Ok(Self {
            subscription: SubscriptionId(table.subscription()),
            epoch: Epoch(table.epoch()),
            start: QueueOffset(table.start()),
            end: QueueOffset(table.end()),
        })
    }

    pub fn encode(&self, correlation: Correlation, out: &mut Vec<u8>) {
        Envelope::answer(Kind::Subscribe, correlation).write(out, |builder| {
            let args = wire::SubscribeAnswerArgs {
                subscription: self.subscription.0,
                epoch: self.epoch.0,
                start: self.start.0,
                end: self.end.0,
            };
            wire::SubscribeAnswer::create(builder, &args)
        });
    }
}

/// Closes a subscription; the answer is the same, and no delivery of it follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unsubscribe {
    pub subscription: SubscriptionId,
}

impl Unsubscribe {
    pub fn decode(header: &[u8]) -> Result<Self, DecodeError> {
        let table = table::read::<wire::Unsubscribe<'_>>(header)?;
        Ok(Self { subscription: SubscriptionId(table.subscription()) })
    }

    pub fn decode_answer(header: &[u8]) -> Result<Self, DecodeError> {
        let table = table::read::<wire::UnsubscribeAnswer<'_>>(header)?;
        Ok(Self { subscription: SubscriptionId(table.subscription()) })
    }

    pub fn encode(&self, correlation: Correlation, out: &mut Vec<u8>) {
        Envelope::request(Kind::Unsubscribe, correlation).write(out, |builder| {
            wire::Unsubscribe::create(builder, &wire::UnsubscribeArgs { subscription: self.subscription.0 })
        });
    }

    pub fn encode_answer(&self, correlation: Correlation, out: &mut Vec<u8>) {
        Envelope::answer(Kind::Unsubscribe, correlation).write(out, |builder| {
            wire::UnsubscribeAnswer::create(builder, &wire::UnsubscribeAnswerArgs { subscription: self.subscription.0 })
        });
    }
}

/// Lets the broker send so many more messages *and* payload bytes; a batch is sent while both are above zero, and may take
/// either below it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Credit {
    pub subscription: SubscriptionId,
    pub messages: u32,
    pub bytes: u64,
}

impl Credit {
    pub fn decode(header: &[u8]) -> Result<Self, DecodeError> {
        let head = wire::CreditHead(read_struct(header)?);
        if head.reserved() != 0 {
            return Err(DecodeError::Header);
        }
        let subscription = SubscriptionId(head.subscription());
        Ok(Self { subscription, messages: head.messages(), bytes: head.bytes() })
    }

    pub fn encode(&self, correlation: Correlation, out: &mut Vec<u8>) {
        let header = wire::CreditHead::new(self.subscription.0, self.bytes, self.messages, 0);
        frame::encode(Kind::Credit, Sender::Client, correlation, &header.0, &[], out);
    }
}

/// One batch, whole, pushed to a subscriber.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deliver<'a> {
    pub subscription: SubscriptionId,
    pub batch: BatchHead,
    pub payload: &'a [u8],
}

impl<'a> Deliver<'a> {
    pub fn decode(header: &[u8], payload: &'a [u8]) -> Result<Self, DecodeError> {
        let head = wire::DeliverHead(read_struct(header)?);
        let batch = BatchHead::from_wire(head.batch())?;
        if batch.payload_length as usize != payload.len() {
            return Err(DecodeError::Body);
        }
        Ok(Self { subscription: SubscriptionId(head.subscription()), batch, payload })
    }

    /// Appends the whole frame, payload copied.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&deliver_prefix(self.subscription, &self.batch));
        out.extend_from_slice(self.payload);
        out.extend_from_slice(frame::filling(self.payload.len()));
    }
}

/// All of a deliver frame before its payload: what a gather write puts in front of the bytes in the staging ring. Behind the
/// payload come [`frame::filling`]'s zeros.
pub fn deliver_prefix(subscription: SubscriptionId, batch: &BatchHead) -> [u8; DELIVER_PREFIX_LEN] {
    let header = wire::DeliverHead::new(subscription.0, &batch.to_wire());
    let head =
        FrameHead::new(Kind::Deliver, Sender::Broker, Correlation(0), header.0.len(), batch.payload_length as usize);
    let mut bytes = [0; DELIVER_PREFIX_LEN];
    bytes[..FRAME_HEAD_LEN].copy_from_slice(&head.encode());
    bytes[FRAME_HEAD_LEN..].copy_from_slice(&header.0);
    bytes
}

/// Everything below `offset` is done; cumulative. For a group, it is kept: answered when it is stored, and refused with `NotHolder`
/// where the subscription does not hold the queue any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ack {
    pub subscription: SubscriptionId,
    /// Of the message below `offset`; [`Epoch::ANY`] where it does not matter.
    pub epoch: Epoch,
    pub offset: QueueOffset,
}

impl Ack {
    pub fn decode(header: &[u8]) -> Result<Self, DecodeError> {
        let head = wire::AckHead(read_struct(header)?);
        Ok(Self {
            subscription: SubscriptionId(head.subscription()),
            epoch: Epoch(head.epoch()),
            offset: QueueOffset(head.offset()),
        })
    }

    pub fn encode(&self, correlation: Correlation, out: &mut Vec<u8>) {
        let header = wire::AckHead::new(self.subscription.0, self.epoch.0, self.offset.0);
        frame::encode(Kind::Ack, Sender::Client, correlation, &header.0, &[], out);
    }
}

/// The ack was valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AckAnswer {
    pub subscription: SubscriptionId,
    pub offset: QueueOffset,
}

impl AckAnswer {
    pub fn decode(header: &[u8]) -> Result<Self, DecodeError> {
        let head = wire::AckAnswerHead(read_struct(header)?);
        Ok(Self { subscription: SubscriptionId(head.subscription()), offset: QueueOffset(head.offset()) })
    }

    pub fn encode(&self, correlation: Correlation, out: &mut Vec<u8>) {
        let header = wire::AckAnswerHead::new(self.subscription.0, self.offset.0);
        frame::encode(Kind::Ack, Sender::Broker, correlation, &header.0, &[], out);
    }
}

/// Pushed: the queue of this subscription is to go to another member. No delivery follows; the client acks what is done and then
/// unsubscribes, or loses the queue when the broker's time for it is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Revoke {
    pub subscription: SubscriptionId,
}

impl Revoke {
    pub fn decode(header: &[u8]) -> Result<Self, DecodeError> {
        let head = wire::RevokeHead(read_struct(header)?);
        Ok(Self { subscription: SubscriptionId(head.subscription()) })
    }

    pub fn encode(&self, out: &mut Vec<u8>) {
        let header = wire::RevokeHead::new(self.subscription.0);
        frame::encode(Kind::Revoke, Sender::Broker, Correlation(0), &header.0, &[], out);
    }
}
