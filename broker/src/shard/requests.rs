//! What a shard does with each kind of request.

use crate::engine::{Credit as EngineCredit, QueueKey, ReaderOwner, Refusal};
use crate::limits::SUBSCRIPTIONS_PER_CONNECTION;
use crate::shard::catalogue::{self, ChangeAsked, ChangeWanted};
use crate::shard::connection::outlet::{Held, HeldFetch};
use crate::shard::executor::Executor;
use crate::shard::group;
use crate::shard::listings;
use crate::shard::look_ups;
use crate::shard::peers::PeerId;
use crate::shard::proxy;
use crate::shard::reports;
use crate::shard::router::{Asker, Wait};
use crate::shard::state::Shard;
use crate::shard::{answers, produce, search, subscriptions};
use peregrine_protocol::error::ErrorCode;
use peregrine_protocol::frame::{Frame, Kind, Sender};
use peregrine_protocol::ids::{Correlation, Nanos, QueueOffset, ShardId};
use peregrine_protocol::message::{
    Ack, AlterTopic, Answer, CreateTopic, Credit, DecodeError, ErrorAnswer, Fetch, GetMessage, LookUp, LookUpAnswer,
    Mode, Produce, ProduceHead, Request, Start, Subscribe, SubscribeAnswer, Unsubscribe,
};
use peregrine_protocol::preamble::PROTOCOL_VERSION;
use std::rc::Rc;

/// Whether a request of this kind is answered. Credit is not, unless it is wrong.
pub fn is_answered(kind: u8) -> bool {
    kind != Kind::Credit as u8
}

/// The shard that a subscription's frame is for.
pub fn subscription_shard(frame: &Frame<'_>) -> Option<ShardId> {
    let id = match Kind::from_number(frame.head.kind)? {
        Kind::Credit => Credit::decode(frame.header).ok()?.subscription,
        Kind::Ack => Ack::decode(frame.header).ok()?.subscription,
        Kind::Unsubscribe => Unsubscribe::decode(frame.header).ok()?.subscription,
        _ => return None,
    };
    Some(subscriptions::from_wire(id).0)
}

/// The shard whose log a message's id points into.
pub fn message_shard(frame: &Frame<'_>) -> Option<ShardId> {
    Some(GetMessage::decode(frame.header).ok()?.message.id.shard())
}

/// Handles a request at this shard.
pub fn handle(
    executor: &Rc<Executor>,
    shard: &Rc<Shard>,
    asker: Asker,
    frame: &Frame<'_>,
    received_at: Nanos,
) -> Result<(), Wait> {
    let correlation = frame.head.correlation;
    let version_and_sender = (frame.head.version, frame.head.sender());
    if frame.head.kind == Kind::Produce as u8 && version_and_sender == (PROTOCOL_VERSION, Sender::Client) {
        // The one on every message's path, before all others.
        return match ProduceHead::decode(frame.header) {
            Ok(head) => {
                let batch = Produce { head, payload: frame.body };
                produce::produce(executor, shard, asker, correlation, &batch, received_at)
            }
            Err(error) => undecodable(executor, asker, correlation, frame.head.kind, &error),
        };
    }
    let request = match Request::decode(frame) {
        Ok(request) => request,
        Err(error) => return undecodable(executor, asker, correlation, frame.head.kind, &error),
    };
    let answer = |answer: &Answer<'_>| executor.answer(asker, |out| answer.encode(correlation, out));
    match request {
        Request::Hello(_) => executor.refuse(asker, correlation, ErrorCode::HelloExpected),
        Request::Ping => answer(&Answer::Ping),
        Request::Metadata(asked) => return listings::metadata(executor, shard, asker, correlation, &asked),
        Request::ListTopics(asked) => listings::list(executor, shard, asker, correlation, &asked),
        Request::DescribeTopic(asked) => return listings::describe(executor, shard, asker, correlation, &asked),
        Request::CreateTopic(asked) => {
            let CreateTopic { name, queues, retention } = asked;
            let wanted = ChangeWanted::CreateTopic { name: name.to_owned(), queues, retention };
            catalogue::ask(executor, shard, ChangeAsked::new(asker, correlation, wanted));
        }
        Request::AlterTopic(asked) => {
            let AlterTopic { name, queues, retention } = asked;
            let wanted = ChangeWanted::AlterTopic { name: name.to_owned(), queues, retention };
            catalogue::ask(executor, shard, ChangeAsked::new(asker, correlation, wanted));
        }
        Request::DeleteTopic(asked) => {
            let wanted = ChangeWanted::DeleteTopic { name: asked.name.to_owned(), id: asked.id };
            catalogue::ask(executor, shard, ChangeAsked::new(asker, correlation, wanted));
        }
        Request::Subscribe(asked) => return subscribe(executor, shard, asker, correlation, &asked),
        Request::Unsubscribe(asked) => unsubscribe(executor, shard, asker, correlation, asked),
        Request::Credit(given) => credit(executor, shard, asker, correlation, &given),
        Request::Ack(given) => return group::places::ack(executor, shard, asker, correlation, &given),
        Request::Fetch(asked) => return fetch(executor, shard, asker, correlation, &asked),
        Request::LookUp(asked) => return look_up(executor, shard, asker, correlation, &asked),
        Request::GetMessage(asked) => return search::get(executor, shard, asker, correlation, &asked),
        Request::FindMessages(asked) => return search::find(executor, shard, asker, correlation, &asked),
        Request::Stats(what) => reports::answer(executor, asker, correlation, what),
        Request::CreateGroup(asked) => {
            let topics = asked.topics.iter().map(|topic| (topic.topic, topic.start)).collect();
            let wanted = ChangeWanted::CreateGroup { name: asked.name.to_owned(), topics };
            catalogue::ask(executor, shard, ChangeAsked::new(asker, correlation, wanted));
        }
        Request::DeleteGroup(asked) => {
            let wanted = ChangeWanted::DeleteGroup { name: asked.name.to_owned(), id: asked.id };
            catalogue::ask(executor, shard, ChangeAsked::new(asker, correlation, wanted));
        }
        Request::ListGroups(asked) => group::listings::list(executor, shard, asker, correlation, &asked),
        Request::DescribeGroup(asked) => {
            return group::listings::describe(executor, shard, asker, correlation, &asked);
        }
        Request::GroupLag(asked) => return group::listings::lag(executor, shard, asker, correlation, &asked),
        Request::ResetOffset(asked) => return group::places::reset(executor, shard, asker, correlation, &asked),
        Request::JoinGroup(asked) => return group::members::join(executor, shard, asker, correlation, &asked),
        Request::LeaveGroup(asked) => return group::members::leave(executor, shard, asker, correlation, asked),
        Request::Heartbeat(given) => return group::members::heartbeat(executor, shard, asker, correlation, given),
        Request::Produce(_) => unreachable!("handled above"),
    }
    Ok(())
}

/// A frame that is no request: an error where the next frame can still be found, the connection's end where it cannot.
fn undecodable(
    executor: &Executor,
    asker: Asker,
    correlation: Correlation,
    kind: u8,
    error: &DecodeError,
) -> Result<(), Wait> {
    let answer = ErrorAnswer::new(error.code());
    if is_answered(kind) {
        executor.refuse_with(asker, correlation, &answer);
    } else {
        executor.push(asker, |out| answer.encode(correlation, out));
    }
    if error.is_fatal() && matches!(asker, Asker::Here(_)) { Err(Wait::End) } else { Ok(()) }
}

/// Answers what the engine refused, or says what the request waits for.
pub fn refuse(
    executor: &Executor,
    shard: &Shard,
    asker: Asker,
    correlation: Correlation,
    refusal: &Refusal,
) -> Result<(), Wait> {
    match *refusal {
        Refusal::AskHome { about, otherwise } => Err(Wait::Catalogue { shard: shard.id, about, otherwise }),
        Refusal::LookUp(question) => Err(Wait::LookUp { shard: shard.id, question }),
        Refusal::WrongShard(owner) if matches!(asker, Asker::Here(_)) => Err(Wait::Elsewhere(owner)),
        _ => {
            executor.refuse_refused(asker, correlation, refusal);
            Ok(())
        }
    }
}

fn subscribe(
    executor: &Rc<Executor>,
    shard: &Rc<Shard>,
    asker: Asker,
    correlation: Correlation,
    asked: &Subscribe,
) -> Result<(), Wait> {
    let Some(peer) = proxy::peer_of(executor, asker) else { return Ok(()) };
    if executor.subscriptions_of(peer) >= SUBSCRIPTIONS_PER_CONNECTION {
        executor.refuse(asker, correlation, ErrorCode::LimitReached);
        return Ok(());
    }
    let credit = EngineCredit { messages: u64::from(asked.credit_messages), bytes: asked.credit_bytes };
    let began = {
        let mut core = shard.core.borrow_mut();
        let (owner, topic, queue) = (ReaderOwner(peer.0), asked.topic, asked.queue);
        match asked.mode {
            Mode::Group { group, member } => core.engine.subscribe_group(owner, group, member, topic, queue, credit),
            _ => core.engine.subscribe(owner, topic, queue, asked.start, credit),
        }
    };
    match began {
        Ok((id, place)) => {
            let answer = SubscribeAnswer {
                subscription: subscriptions::on_wire(shard.id, id),
                epoch: place.epoch,
                start: place.offset,
                end: place.visible_end,
            };
            executor.answer(asker, |out| answer.encode(correlation, out));
            // A group's place may have to be written down first, which is the shard's task.
            shard.work.raise();
            shard.hand_out_now(executor);
            Ok(())
        }
        Err(refusal) => refuse(executor, shard, asker, correlation, &refusal),
    }
}

fn unsubscribe(executor: &Executor, shard: &Shard, asker: Asker, correlation: Correlation, asked: Unsubscribe) {
    let (_, id) = subscriptions::from_wire(asked.subscription);
    let peer = proxy::known_peer_of(executor, asker);
    let ended = peer.ok_or(Refusal::UnknownSubscription).and_then(|peer| {
        shard.core.borrow_mut().engine.unsubscribe(ReaderOwner(peer.0), id)?;
        if let Some(peer) = executor.peers.get(peer) {
            peer.outlet().forget(shard.id, id);
        }
        // It may be another member's turn now, who is served by the shard's task.
        shard.work.raise();
        Ok(())
    });
    match ended {
        Ok(()) => executor.answer(asker, |out| asked.encode_answer(correlation, out)),
        Err(refusal) => executor.refuse_refused(asker, correlation, &refusal),
    }
}

fn credit(executor: &Rc<Executor>, shard: &Rc<Shard>, asker: Asker, correlation: Correlation, given: &Credit) {
    let (_, id) = subscriptions::from_wire(given.subscription);
    let credit = EngineCredit { messages: u64::from(given.messages), bytes: given.bytes };
    let peer = proxy::known_peer_of(executor, asker);
    let taken = peer
        .ok_or(Refusal::UnknownSubscription)
        .and_then(|peer| shard.core.borrow_mut().engine.credit(ReaderOwner(peer.0), id, credit));
    match taken {
        Ok(()) => shard.hand_out_now(executor),
        Err(refusal) => executor.push(asker, |out| answers::refusal(&refusal, correlation, out)),
    }
}

fn fetch(
    executor: &Rc<Executor>,
    shard: &Rc<Shard>,
    asker: Asker,
    correlation: Correlation,
    asked: &Fetch,
) -> Result<(), Wait> {
    let Some(peer) = proxy::peer_of(executor, asker) else { return Ok(()) };
    let start = Start::Offset { epoch: asked.epoch, offset: asked.offset };
    let found = shard.core.borrow().engine.look_up(asked.topic, asked.queue, start);
    match found {
        Ok(place) => {
            let fetch = HeldFetch::new(shard.id, correlation, *asked);
            let held = shard.core.borrow().engine.is_held(asked.topic, asked.queue, place.offset);
            match held {
                Ok(()) => hold(executor, peer, fetch),
                Err(below) => look_up_for(executor, shard, peer, fetch, below),
            }
            // It may stand behind deliveries to a client that does not read, where it must not keep others from this shard.
            executor.give_credit_back(asker);
            Ok(())
        }
        Err(refusal) => refuse(executor, shard, asker, correlation, &refusal),
    }
}

fn hold(executor: &Executor, peer: PeerId, fetch: HeldFetch) {
    if let Some(peer) = executor.peers.get(peer) {
        peer.outlet().hold(Held::Fetch(Box::new(fetch)));
    }
}

/// Looks up what is to be fetched before it is anything to be sent.
fn look_up_for(executor: &Rc<Executor>, shard: &Rc<Shard>, peer: PeerId, mut fetch: HeldFetch, below: QueueOffset) {
    let (executor, shard) = (executor.clone(), shard.clone());
    look_ups::in_background(&executor.clone(), async move {
        let queue = QueueKey { topic: fetch.asked.topic, queue: fetch.asked.queue };
        fetch.looked_up(look_ups::batches(&shard, queue, fetch.asked.offset).await, below);
        hold(&executor, peer, fetch);
    });
}

fn look_up(
    executor: &Executor,
    shard: &Shard,
    asker: Asker,
    correlation: Correlation,
    asked: &LookUp,
) -> Result<(), Wait> {
    let found = shard.core.borrow().engine.look_up(asked.topic, asked.queue, asked.start);
    match found {
        Ok(place) => {
            let answer =
                LookUpAnswer { offset: place.offset, epoch: place.epoch, start: place.first, end: place.visible_end };
            executor.answer(asker, |out| answer.encode(correlation, out));
            Ok(())
        }
        Err(refusal) => refuse(executor, shard, asker, correlation, &refusal),
    }
}
