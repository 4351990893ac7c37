//! Every bound of the formats and of the protocol, with the arithmetic beside it.
//!
//! What a broker may set lower or higher at its start (message, frame) stands here as default and ceiling; the hello answer
//! tells clients which values hold. Alignments and header sizes are part of the formats and never change within a version.

/// Bytes that open a connection: magic and version.
pub const PREAMBLE_LEN: usize = 8;
/// Bytes of a frame's head.
pub const FRAME_HEAD_LEN: usize = 24;
/// A frame is padded to this, so that each header in a receive buffer is aligned as its largest field.
pub const FRAME_ALIGN: usize = 8;

/// Largest frame, head included, unless configured: a batch of a few messages of [`MESSAGE_MAX_DEFAULT`].
pub const FRAME_MAX_DEFAULT: u32 = 16 << 20;
/// No configuration goes above this: the largest entry (below) with room for its head.
pub const FRAME_MAX_CEILING: u32 = (256 << 20) + (64 << 10);
/// Largest FlatBuffers header: a full page of a listing (1,024 names of 127 bytes and their ids: 160 KiB) fits.
pub const FRAME_HEADER_MAX: u32 = 256 << 10;

/// What a frame needs beside the payload of one batch, at the most: head 24, a fetch answer's table below 64, a batch's head 56,
/// filling 3 × 7; rounded up.
pub const FRAME_OVERHEAD: u32 = 256;

/// Largest payload of a batch where frames have at most `frame_max` bytes: it fits a produce, a deliver and a fetch answer.
pub const fn batch_max(frame_max: u32) -> u32 {
    frame_max.saturating_sub(FRAME_OVERHEAD) / RECORD_ALIGN as u32 * RECORD_ALIGN as u32
}

/// Largest message, all its sections and its record header included, unless configured.
pub const MESSAGE_MAX_DEFAULT: u32 = 4 << 20;

/// Entries start at multiples of this: a cache line, so that a header never shares one with another writer's payload.
pub const ENTRY_ALIGN: u64 = 64;
/// Bytes of an entry's header.
pub const ENTRY_HEADER_LEN: usize = 96;
/// Bytes of a pad's header: the smallest gap that alignment leaves.
pub const PAD_HEADER_LEN: usize = 64;
/// The unit of direct I/O: a flush ends on its boundary.
pub const BLOCK: u64 = 4096;
/// The largest staging ring; where no ring was found, positions go on above everything known by at least this much.
pub const RING_MAX: u64 = 1 << 30;
/// The smallest staging ring.
pub const RING_MIN: u64 = 1 << 20;
/// An entry is at most this fraction of the ring, so that a large one never stops the shard while it waits for space.
pub const ENTRY_PER_RING: u64 = 4;
/// Largest payload of an entry: a quarter of the largest ring, less its header.
pub const ENTRY_PAYLOAD_MAX: u32 = (RING_MAX / ENTRY_PER_RING) as u32 - ENTRY_HEADER_LEN as u32;

/// Records start at multiples of this within a batch, and so (96 being one) within the log.
pub const RECORD_ALIGN: usize = 8;
/// Bytes of a record's header.
pub const RECORD_HEADER_LEN: usize = 12;
/// Bytes of a section's header.
pub const SECTION_HEADER_LEN: usize = 8;
/// Sections of a record: the known ones and room for as many unknown ones as anybody is likely to invent.
pub const SECTIONS_MAX: u16 = 64;
/// Records of a batch: with 64 batches in flight, offsets within them still fit in 22 bits.
pub const RECORDS_MAX: u32 = 65_536;

/// Shards of a broker: 10 bits of a message id.
pub const SHARDS_MAX: u16 = 1_024;
/// Bytes of a topic's, group's or member's name, as in RocketMQ.
pub const NAME_MAX: usize = 127;
/// Queues of a topic: 64 for each of the most shards.
pub const QUEUES_PER_TOPIC_MAX: u32 = 65_536;
/// Topics of a consumer group.
pub const GROUP_TOPICS_MAX: usize = 64;
/// Groups in one page of a listing: with 64 topics of 24 bytes and a name each, 220 KiB, below [`FRAME_HEADER_MAX`].
pub const GROUPS_PAGE_MAX: u32 = 128;
/// Members in one page of a description: with a name of 127 and a client of 255 bytes each, 220 KiB, below [`FRAME_HEADER_MAX`].
pub const MEMBERS_PAGE_MAX: u32 = 512;
/// Queues of one member, all of which may lie on one shard: half of what a broker lets one connection subscribe to. 16 bytes each
/// in an assignment, 64 KiB, below [`FRAME_MAX_DEFAULT`]. What a group has above that has no holder until more members join.
pub const MEMBER_QUEUES_MAX: usize = 4_096;
/// Batches in flight of one producer in one queue; the broker remembers as many.
pub const IN_FLIGHT_MAX: u64 = 64;
/// Items of one page of a listing, and names of one metadata request.
pub const PAGE_ITEMS_MAX: u32 = 1_024;
/// Batches in one fetch answer.
pub const FETCH_BATCHES_MAX: u32 = 1_024;
/// Messages in one answer to a look-up by key.
pub const FOUND_MAX: u32 = 256;
/// Bytes of a key that messages are looked up by; with the rest of its request far below [`FRAME_HEADER_MAX`].
pub const FIND_KEY_MAX: usize = 64 << 10;
/// Bytes of a client's instance id, and of an authentication mechanism's name.
pub const CLIENT_TEXT_MAX: usize = 255;
/// Bytes of authentication data in a hello.
pub const AUTHENTICATION_MAX: usize = 16 << 10;
/// Bytes of an error's sentence; a longer one is cut by the encoder.
pub const SENTENCE_MAX: usize = 1_024;

const _: () = assert!(FRAME_HEAD_LEN.is_multiple_of(FRAME_ALIGN), "a header after the head stays aligned");
const _: () = assert!(ENTRY_HEADER_LEN.is_multiple_of(RECORD_ALIGN), "records are aligned within the log");
const _: () = assert!(BLOCK.is_multiple_of(ENTRY_ALIGN), "a block is filled by entries exactly");
const _: () = assert!(FRAME_MAX_CEILING > ENTRY_PAYLOAD_MAX, "the largest entry fits the largest frame");
