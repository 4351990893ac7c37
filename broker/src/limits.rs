//! Every bound of the broker, in one place, with the arithmetic that led to it. A queue, buffer or table that is not here is a
//! bug. Limits that are part of the wire format (message, frame) are `peregrine_protocol::limits`; what an operator may change
//! is in the configuration table and starts from these values.

use std::time::Duration;

use peregrine_protocol::ids::Nanos;
use peregrine_protocol::limits::{IN_FLIGHT_MAX, MEMBER_QUEUES_MAX};

/// One kibibyte, bytes.
pub const KIB: usize = 1024;
/// One mebibyte, bytes.
pub const MIB: usize = 1024 * KIB;

// --- Connections -----------------------------------------------------------------------------------------------------------

/// Connections of one executor. Each costs its two tasks and their state, about 2 KiB, while it is idle: 20 MiB in all.
pub const CONNECTIONS_PER_EXECUTOR: usize = 10_000;
/// Connections accepted in a row before the acceptor lets others run: an accept costs some 30 µs.
pub const ACCEPTS_PER_TURN: usize = 8;
/// A connection says hello within this time of being accepted.
pub const HELLO_WITHIN: Duration = Duration::from_secs(10);
/// A frame that has begun must make progress within this time.
pub const FRAME_PROGRESS_WITHIN: Duration = Duration::from_secs(30);
/// The same while other connections wait for the memory that unfinished frames hold: who stalls then makes room for them.
pub const FRAME_PROGRESS_WHEN_SHORT: Duration = Duration::from_secs(2);
/// Bytes waiting for a client that takes none of them for this long mean that the client is gone.
pub const OUTPUT_PROGRESS_WITHIN: Duration = Duration::from_secs(60);
/// The tick of the one sweeper per executor: it finds what is overdue. A tick costs an idle executor about 150 µs (a wake-up and
/// the spin before it parks again): 10 a second are 0.15 % of a core.
pub const SWEEP_EVERY: Duration = Duration::from_millis(100);

// --- Receiving -------------------------------------------------------------------------------------------------------------

/// The one receive buffer of an executor, into which sockets without a large partial frame are read: one turn's bytes.
pub const RECEIVE_SCRATCH: usize = 64 * KIB;
/// A connection may hold a partial frame up to this size outside of any budget: 10,000 × 4 KiB = 40 MiB at the very worst.
pub const RECEIVE_FLOOR: usize = 4 * KIB;
/// What partial frames above [`RECEIVE_FLOOR`] may hold together on one executor. The oldest of them may exceed it, so that one
/// always gets on: the true bound is this plus twice the largest frame's growth step, 16 MiB + 16 MiB by default.
pub const RECEIVE_BUDGET: usize = 16 * MIB;
/// Frames handled for one connection before the others have their turn.
pub const FRAMES_PER_TURN: usize = 64;
/// Bytes of frames handled for one connection before the others have their turn.
pub const BYTES_PER_TURN: usize = 64 * KIB;
/// A payload's checksum is computed, and a large entry is copied, in steps of this size: about 10 µs each.
pub const STEP: usize = 64 * KIB;

// --- Answering and delivering ----------------------------------------------------------------------------------------------

/// Answers that wait for the socket; above it the connection's requests are not read. One more answer may be added at that
/// point, so that the true bound is this plus the largest answer ([`ANSWER_MAX`]).
pub const OUTPUT_HIGH: usize = 128 * KIB;
/// The largest answer that is made of bytes of its own (listings and statistics; payloads are not among them).
pub const ANSWER_MAX: usize = MIB;
/// Payloads gathered from the log into one send.
pub const GATHER_PAYLOADS: usize = 32;
/// Payload bytes from which no further payload is added to one send.
pub const GATHER_BYTES: usize = 64 * KIB;
/// One direct read of the log for a consumer that is behind the ring.
pub const COLD_READ: usize = 256 * KIB;
/// What such blocks may be in use together on one executor, 32 of them, or one batch that is fetched whole and is larger than that.
/// Who finds none left waits for its turn.
pub const COLD_BUDGET: usize = 8 * MIB;

/// What the block cache of a shard keeps of what was read, 128 blocks of [`COLD_READ`], unless it is configured otherwise. Blocks in use
/// ([`COLD_BUDGET`]) may come on top where they were pushed out of it, and one that is being read: 41 MiB at the most.
pub const BLOCK_CACHE: usize = 32 * MIB;
/// How long the device rests at least between two such reads of a shard that is being written, before the next one looks for a gap
/// between flushes. A read takes some 200 µs; see ARCHITECTURE.md for what this moved.
pub const COLD_REST: Duration = Duration::from_micros(150);
/// How many flushes such a read lets pass where there is no gap between them.
pub const FLUSHES_LET_PASS: u64 = 2;

// --- Segment indexes -------------------------------------------------------------------------------------------------------

/// One direct read of a segment whose index is being made. Its copy, some 8 µs, comes on top of a step.
pub const INDEX_READ: usize = 64 * KIB;
/// Bytes that are summed or hashed at once while an index is made: some 3 µs.
pub const INDEX_PART: usize = 16 * KIB;
/// One direct write of an index.
pub const INDEX_WRITE: usize = 64 * KIB;
/// Batches that are sorted together and become one tree of an index: 256 Ki × 40 bytes = 10 MiB while an index is made. A segment of
/// 256 MiB has one such tree where its entries have 1 KiB, four at 256 bytes, eight at 128, which is the least that one has.
pub const INDEX_TREE_BATCHES: usize = 256 * KIB;
/// The same of keys: 256 Ki × 16 bytes = 4 MiB. A segment of 256 MiB full of messages of 128 bytes, each with a key and 32 bytes of
/// heads, has 1.7 Mi of them in seven trees.
pub const INDEX_TREE_KEYS: usize = 256 * KIB;
/// What is sorted at once, before what is sorted is merged: 512 batches take some 25 µs. 512 such runs are merged at the most.
pub const INDEX_SORTED_RUN: usize = 512;
/// For each so many bytes of a segment its index says where an entry starts.
pub const INDEX_STRETCH: u64 = 64 * KIB as u64;
/// Bytes of entries in a segment that an index can be made of: positions are 32 bits in units of 8 bytes. Configured segments end at
/// 1 GiB; the largest ring may stand before that.
pub const INDEX_SEGMENT_MAX: u64 = 8 << 32;
/// What the making of an index does between two turns of the reactor, as it counts its own work. Measured, a usual step takes
/// 20 µs and 99 of 100 take less than about 50, single ones longer (`cargo test -p peregrine-broker --lib log::index::tests::device -- --ignored --nocapture`).
pub const INDEX_STEP: Nanos = Nanos::from_micros(30);
/// How long it rests in between, at the least: two thirds of a core are left to others.
pub const INDEX_REST: Duration = Duration::from_micros(50);
/// Batches or positions that one look-up in an index finds at the most; whoever wants more asks again behind the last.
pub const INDEX_FOUND_MAX: usize = 1024;

/// Indexes of one shard that are kept open for look-ups, a file and some kilobytes each; others are opened again.
pub const INDEXES_OPEN_MAX: usize = 64;
/// After which the making of an index that failed, for want of room or by the device, is tried again.
pub const INDEX_RETRY: Nanos = Nanos::from_secs(10);
/// A segment that could not be read so often is taken for damaged where it cannot be read: its index is made around that.
pub const INDEX_ATTEMPTS: u32 = 6;
/// Queues of a damaged segment of which is known, while its index is made, where they ended: some 4 MiB.
pub const DAMAGED_QUEUES_MAX: usize = 1 << 16;

/// Look-ups of one shard for its readers that are under way at once, a block of 4 KiB each.
pub const LOOK_UPS_AT_ONCE: usize = 16;

/// A fetch that waits for an index to be made looks again after so long, at the latest: the log may have been closed.
pub const LOOK_AGAIN_AFTER: Duration = Duration::from_secs(1);

// --- The background scrub ---------------------------------------------------------------------------------------------------

/// The first round begins so long after a start: who restarts a broker wants it for other things first.
pub const SCRUB_FIRST: Nanos = Nanos::from_secs(600);
/// The least that it reads in a second: a read of [`INDEX_READ`] and the rest behind it, 62 ms, is what a stop may wait for.
pub const SCRUB_RATE_MIN: u64 = MIB as u64;
/// The least time between two rounds.
pub const SCRUB_EVERY_MIN: Duration = Duration::from_millis(100);

// --- Messages looked up by id and key --------------------------------------------------------------------------------------

/// Of one shard, those that wait and the answers that wait for their sockets included: 16 × [`FOUND_BYTES`] are 4 MiB, unless single
/// messages are larger. More are answered `Busy`.
pub const SEARCHES_PER_SHARD: usize = 16;
/// And of one connection at one shard.
pub const SEARCHES_PER_CONNECTION: usize = 4;
/// That are carried out side by side: each does one step, and holds one block, between two turns of the reactor.
pub const SEARCHES_AT_ONCE: usize = 2;
/// Bytes of records in one answer, unless its first alone is larger: it is made in memory.
pub const FOUND_BYTES: usize = 256 * KIB;
/// Bytes of the log that are looked at for one answer, or one batch: some 32 reads of [`COLD_READ`], after which the asker is told where
/// to go on.
pub const SEARCH_BYTES: u64 = 8 * MIB as u64;
/// What a search does between two turns of the reactor, as it counts its own work; a read of [`STEP`] bytes may come on top.
pub const SEARCH_STEP: Nanos = Nanos::from_micros(20);
/// The first look in front of a position for the entry that holds it; the next ones are larger, up to [`STEP`].
pub const SEARCH_BACK: usize = 4 * KIB;

// --- Requests --------------------------------------------------------------------------------------------------------------

/// Requests of one connection that are not answered yet; above it the socket is not read. 64 batches in flight for each of 64
/// queues.
pub const OUTSTANDING_PER_CONNECTION: usize = 4096;
/// Acknowledgements of one shard that wait for their level: 65,536 × 96 bytes = 6 MiB. One more waits like a full ring.
pub const ACKNOWLEDGEMENTS_PER_SHARD: usize = 64 * KIB;
/// A produce request that finds the ring full waits this long at most; then it is answered `Busy`.
pub const ROOM_WITHIN: Duration = Duration::from_millis(100);
/// What `Busy` tells the client to wait.
pub const BUSY_RETRY_AFTER: Duration = Duration::from_millis(20);
/// Payload bytes of one fetch answer, unless its first batch alone is larger: it is made in memory.
pub const FETCH_BYTES: u64 = 256 * KIB as u64;
/// Subscriptions of one connection: all queues that a group's member may have, and as many that it is giving up and still
/// acknowledges.
pub const SUBSCRIPTIONS_PER_CONNECTION: usize = 2 * MEMBER_QUEUES_MAX;

// --- Mesh ------------------------------------------------------------------------------------------------------------------

/// Requests that one executor may have outstanding at one other shard.
pub const MESH_CREDIT_PER_SHARD: usize = 512;
/// Bytes of forwarded frames that one executor and one other shard may hold: under way, not handled yet, or come back for want of
/// room. A larger frame goes when no other of them is held, so that the true bound is this or the largest frame, 16 MiB each by
/// default; with [`MESH_SMALL_FRAME`]'s 4 MiB, 20 MiB for each pair of an executor and a shard of another.
pub const MESH_BYTES_PER_SHARD: usize = 16 * MIB;
/// A forwarded frame up to this size counts as a frame alone, so that what is no batch passes large ones that wait. As many as have
/// credit may be under way, and as many may have come back: 2 × 512 × 4 KiB = 4 MiB.
pub const MESH_SMALL_FRAME: usize = 4 * KIB;
/// Batches that one executor may have got back from one other shard that had no room for them. While they wait no other batch is
/// sent there, so that they and those still under way are as many as had credit when the first came back.
pub const MESH_RETURNED_PER_SHARD: usize = MESH_CREDIT_PER_SHARD;
/// Slots of a channel between two executors, at the least: below 1,024 its throughput falls by a factor of five.
pub const MESH_CHANNEL: usize = 1024;
/// Bytes of deliveries under way between two shards for one connection that subscribed at a wrong shard.
pub const MESH_DELIVERY_WINDOW: usize = 256 * KIB;
/// Messages taken from one channel before others have their turn.
pub const MESH_PER_TURN: usize = 64;

// --- Executors -------------------------------------------------------------------------------------------------------------

/// Entries of each of an executor's rings: one per connection of a busy broker, so that a turn seldom needs two submissions.
pub const RING_DEPTH: usize = 512;
/// Shares of the background queue against 1,000 of the hot one.
pub const BACKGROUND_SHARES: usize = 50;
/// An executor that has not moved for this long, while the watchdog itself ran, is taken for hung.
pub const HUNG_AFTER: Duration = Duration::from_secs(10);
/// And what of that time its thread must have had for itself: it ran, or waited for something that is no core. A beat is due every
/// [`SWEEP_EVERY`] and costs far less than a millisecond; only a thread that got less than a tenth of a core is given longer.
pub const HUNG_OWN_TIME: Duration = Duration::from_secs(1);
/// Slots of the table of connections that the sweeper looks at in one turn, 20 ns each.
pub const SWEEP_SLOTS: usize = 1024;
/// How long a stop waits for the last flushes; a device that takes longer is broken.
pub const CLOSE_WITHIN: Duration = Duration::from_secs(30);
/// How long a shutdown waits for answers to leave through slow sockets.
pub const LINGER: Duration = Duration::from_secs(2);

// --- Engine: catalogue ----------------------------------------------------------------------------------------------------

/// Live topics of a broker. Each shard holds a copy of the catalogue, 250 bytes a topic: 16 MiB a shard at the most.
pub const TOPICS_MAX: usize = 65_536;
/// Live groups of a broker. Each shard holds a copy of each, 300 bytes where it has one topic: 20 MiB a shard at the most.
pub const GROUPS_MAX: usize = 65_536;
/// Catalogue changes that wait for their entry to be durable; more are answered `Busy`. One is a device flush away.
pub const CATALOGUE_CHANGES_PENDING_MAX: usize = 1_024;
/// After which a catalogue change that met that bound is worth another try: some flushes.
pub const CATALOGUE_RETRY: Nanos = Nanos::from_millis(10);

// --- Engine: queues -------------------------------------------------------------------------------------------------------

/// Batches of an index chunk. One is found by decoding at most this many, 5 ns each; a chunk's 72 bytes of head are one byte a
/// batch.
pub const INDEX_CHUNK_BATCHES: u32 = 64;

/// Queues whose starts one entry moves: some 25 µs of a turn.
pub const QUEUE_STARTS_ROWS: usize = 256;
/// Queues whose first message behind a damaged segment is looked for in one step, and moved to in one turn.
pub const QUEUES_SURVEYED: usize = 32;
/// Slots of queues that are looked at in one turn for those that keep anything, each in memory of its own.
pub const QUEUE_SLOTS_LOOKED_AT: u32 = 256;
/// Chunks that are dropped in one slice once their segments are indexed, some 0.2 µs each: 40 µs.
pub const INDEX_DROP_SLICE: u32 = 200;
/// What was looked up of batches that a queue's index dropped (where a time begins, when an offset was stored), 32 bytes each in a
/// queue that was asked; older ones are looked up again.
pub const BATCHES_FOUND_MAX: usize = 16;
/// Batches that are looked up for a reader of what its queue's index dropped, before it looks again: 128 × 40 bytes = 5 KiB.
pub const LOOK_UP_BATCHES: usize = 128;
/// Those that were looked up for readers and not handed out yet, of one shard: 40 MiB. Beyond that a reader is given one at a time.
pub const LOOKED_UP_BATCHES_MAX: usize = 1 << 20;

/// How often a shard looks whether messages are to be given up, and whether a segment may go for which it waits: a disk that is full has
/// producers wait for it.
pub const RETENTION_LOOK_EVERY: Duration = Duration::from_millis(50);
/// Queues of a topic with a retention of its own that are looked at in one turn: some 10 µs.
pub const TOPIC_RETENTION_SLICE: usize = 32;
/// A topic is walked again after this part of its age at the earliest, so that messages stay that much longer at the most...
pub const TOPIC_RETENTION_PARTS: u64 = 16;
/// ...and no longer than this.
pub const TOPIC_RETENTION_EVERY: Nanos = Nanos::from_secs(60);
/// After a segment could not be given up, when to try again.
pub const RETENTION_RETRY: Nanos = Nanos::from_secs(1);

// --- Engine: producers ----------------------------------------------------------------------------------------------------

/// Batches remembered of a producer in a queue: those that may be in flight, so that each can be sent again.
pub const PRODUCER_BATCHES_REMEMBERED: usize = IN_FLIGHT_MAX as usize;
/// States of (producer, queue). One that wrote a batch takes about 250 bytes, one that wrote 64 takes 2.2 KiB: 64 MiB where
/// all wrote little, 576 MiB at the very most.
pub const PRODUCER_STATES_MAX: usize = 262_144;
/// A producer's state that was idle for so long may be forgotten: 7 days.
pub const PRODUCER_IDLE_NS: Nanos = Nanos::from_secs(7 * 24 * 3600);
/// States looked at for forgetting with each batch. A batch adds at most one, so two shrink what is overdue.
pub const PRODUCER_STATES_AGED_PER_BATCH: usize = 2;

// --- Engine: readers ------------------------------------------------------------------------------------------------------

/// Subscriptions, 120 bytes each: 32 MiB at the most.
pub const SUBSCRIPTIONS_MAX: usize = 262_144;

// --- Engine: groups -------------------------------------------------------------------------------------------------------

/// Queues that the members of one group share, over all of its topics: an assignment takes 4 bytes each.
pub const GROUP_QUEUES_MAX: u64 = 65_536;
/// Steps of one slice of work on an assignment, at its home and at owners, some 0.1 µs each where the group is large: 50 µs. A
/// step is a row that is looked at; what takes longer counts as several.
pub const GROUP_SLICE: u32 = 500;
/// Members of one group. Each joins, leaves and is told by itself, and a change looks at all of them.
pub const GROUP_MEMBERS_MAX: usize = 4_096;
/// Members of the groups whose home one shard is, at most 1 KiB each beside their queues: 64 MiB.
pub const MEMBERS_MAX: usize = 65_536;
/// A group's first assignment, and each after a start, waits until nobody has joined for this long: members that start or come
/// back together share the queues from the beginning.
pub const GROUP_SETTLED_AFTER: Nanos = Nanos::from_millis(300);
/// And at most this long after the first join.
pub const GROUP_SETTLED_WITHIN: Nanos = Nanos::from_secs(3);
/// Stretches of one queue whose messages were handed out a different number of times and not acknowledged, 16 bytes each. One is
/// made where a consumer ends before it got as far as the one before it; above this many, the two furthest count as one.
pub const ATTEMPT_STEPS_MAX: usize = 8;

// --- Engine: checkpoints ---------------------------------------------------------------------------------------------------

/// Places of groups in one record of a checkpoint: 128 × 32 bytes, so that a slice goes beyond its budget by 4 KiB at most. (The
/// records of a queue, with 16 bytes for each start that wrote to it, a chunk of 64 batches, a producer's 64 batches and a group's
/// 64 topics are as large or smaller.)
pub const CHECKPOINT_RECORD_PLACES: usize = 128;
/// Ranges of deleted ids in one record of a checkpoint: 256 × 16 bytes, 4 KiB as well.
pub const CHECKPOINT_RECORD_RANGES: usize = 256;
/// What looking at one thing costs of a slice's budget where less is written: a slice of 16 KiB looks at no more than 512 slots
/// of queues that are empty.
pub const CHECKPOINT_LOOK: usize = 32;
/// Bytes of the engine that are saved in one turn: 26 to 37 µs, measured by `cargo test -p peregrine-broker --lib
/// longest_slice -- --ignored --nocapture`.
pub const CHECKPOINT_SLICE: usize = 32 * KIB;
/// How often a shard looks whether a checkpoint is due, or counts by now: at 1 GB a second the log grows by 100 MB in between.
pub const CHECKPOINT_LOOK_EVERY: Duration = Duration::from_millis(100);
/// The longest time between two checkpoints that may be configured.
pub const CHECKPOINT_AGE_MAX: Duration = Duration::from_secs(24 * 3600);

// --- Groups, as an operator may set them ----------------------------------------------------------------------------------

/// The shortest silence of a group's member: three of the sweeper's ticks, which find it.
pub const GROUP_SILENCE_MIN: Duration = Duration::from_millis(300);
/// The longest silence, grace and drain: a queue that stands still for longer is an outage.
pub const GROUP_TIME_MAX: Duration = Duration::from_secs(3600);
