//! What a broker says of durable levels that it cannot give, and that what it says is what it does.

// A test that unwraps fails where it should.
#![allow(clippy::unwrap_used)]

use peregrine_protocol::error::ErrorCode;
use peregrine_protocol::ids::DurableLevel;
use peregrine_protocol::message::{Answer, Produce, ProduceAnswer, Request};
use peregrine_tests::broker::Settings;
use peregrine_tests::wire::{Wire, batch_of, produce_head};

/// Produces one message to a fresh topic: the acknowledgement, or the code of the error.
fn produce(wire: &mut Wire, topic: &str, level: DurableLevel) -> Result<ProduceAnswer, u16> {
    let topic = wire.create_topic(topic, 1);
    let payload = batch_of(b"a message");
    let head = produce_head(topic, level, &payload);
    wire.ask(&Request::Produce(Produce { head, payload: &payload }), |answer| match answer {
        Answer::Produce(acknowledged) => Ok(acknowledged),
        Answer::Error(error) => Err(error.code),
        other => panic!("an acknowledgement or an error was due, not {other:?}"),
    })
}

#[test]
fn an_acknowledgement_states_the_level_reached() {
    let broker = Settings::default().start();
    let mut wire = Wire::open(broker.address());
    // A memory acknowledgement may find the flush already done.
    assert!(produce(&mut wire, "memory", DurableLevel::Memory).unwrap().level >= DurableLevel::Memory);
    assert_eq!(produce(&mut wire, "synced", DurableLevel::Synced).unwrap().level, DurableLevel::Synced);
}

#[test]
fn replicated_is_refused_where_there_is_no_cluster() {
    let broker = Settings::default().start();
    let mut wire = Wire::open(broker.address());
    let refused = produce(&mut wire, "replicated", DurableLevel::Replicated);
    assert_eq!(refused, Err(ErrorCode::LevelUnavailable.number()));
}

#[test]
fn memory_is_refused_where_the_ring_would_not_survive() {
    let broker = Settings::default().without_ring_file().argument("--without-tmpfs=refuse").start();
    let mut wire = Wire::open(broker.address());
    assert_eq!(produce(&mut wire, "memory", DurableLevel::Memory), Err(ErrorCode::LevelUnavailable.number()));
    assert_eq!(produce(&mut wire, "synced", DurableLevel::Synced).unwrap().level, DurableLevel::Synced);
}

#[test]
fn memory_is_raised_to_synced_where_configured() {
    let mut broker = Settings::default().without_ring_file().argument("--without-tmpfs=raise").start();
    let mut wire = Wire::open(broker.address());
    assert_eq!(produce(&mut wire, "raised", DurableLevel::Memory).unwrap().level, DurableLevel::Synced);
    broker.kill_nine();
    assert_eq!(broker.start_again().messages_from_ring, 0);
    assert_eq!(broker.command_line().consume_all("raised"), ["a message"]);
}
