//! A panic in a shard, as a bug would bring it about: the process ends at once, by SIGABRT, and the next start brings back all that
//! was acknowledged, at `memory` too.

// A test that unwraps fails where it should.
#![allow(clippy::unwrap_used)]

use std::os::unix::process::ExitStatusExt;

use peregrine_protocol::ids::{DurableLevel, QueueId};
use peregrine_tests::broker::Settings;
use peregrine_tests::connection::{Connection, Reply, Sent};

const TOPIC: &str = "panicked";
const QUEUE: QueueId = QueueId(0);

#[test]
fn a_panic_aborts_the_process_and_takes_nothing_that_was_acknowledged() {
    // What asks only for `memory` waits for the third write, so that it stands in the ring alone.
    let mut broker = Settings::default().start();
    Connection::open(broker.address(), None).create_topic(TOPIC, 1);
    assert!(broker.terminate().success(), "a clean stop is a success");
    broker.set_arguments(&["--test-fault=panic-at-write=3", "--memory-wait=100s"]);
    broker.start_again();

    let mut connection = Connection::open(broker.address(), None);
    let topic = connection.topic(TOPIC);
    let levels = [DurableLevel::Synced, DurableLevel::Synced, DurableLevel::Memory, DurableLevel::Memory];
    let bodies: Vec<String> = (0..=levels.len()).map(|number| format!("message {number}")).collect();
    let batch =
        |number: usize, level| Sent { topic, queue: QUEUE, level, producer: None, bodies: &bodies[number..=number] };
    for (number, level) in levels.into_iter().enumerate() {
        let reply = connection.produce(&batch(number, level));
        assert!(matches!(reply, Reply::Produced(answer) if answer.level == level), "{reply:?}");
    }
    connection.send_batch(&batch(levels.len(), DurableLevel::Synced));
    let status = broker.wait_for_end();
    assert_eq!(status.signal(), Some(libc::SIGABRT), "{status}; its log:\n{}", broker.log());
    assert!(
        broker.log().contains("a test asked for a panic at write 3"),
        "the panic is written down: {}",
        broker.log()
    );

    broker.set_arguments(&[]);
    let ready = broker.start_again();
    assert_eq!(ready.messages_from_ring, 3, "the two at memory, and the one whose write it was");
    assert_eq!(Connection::open(broker.address(), None).read_all(topic, QUEUE), bodies);
}
