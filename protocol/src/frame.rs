//! Frames: how requests, answers and pushes follow each other on a connection.
//!
//! ```text
//!  0            4      5      6       8                12           16             24
//! ┌────────────┬──────┬──────┬───────┬────────────────┬────────────┬──────────────┐
//! │ length u32 │ vers │ kind │ flags │ header len u32 │ zero u32   │ correlation  │ head
//! ├────────────┴──────┴──────┴───────┴───────┬────────┴────────────┴──────────────┘
//! │ header: a FlatBuffers struct or table     │ zeros to 8
//! ├──────────────────────────────────────────┤
//! │ body: raw batches, JSON, or nothing       │ zeros to 8, as many as flags & 7 say
//! └──────────────────────────────────────────┘
//! flags: bits 0..=2 zeros behind the body · bit 3 from the broker · others zero
//! ```
//!
//! `length` counts everything behind the head, zeros included, and is a multiple of 8; so headers and bodies stay aligned in
//! a receive buffer. Length, version, kind and correlation keep their places in every later version, so that a frame of an
//! unknown one can be skipped and answered. All lengths are checked before anything else is looked at; nothing is allocated.

use std::ops::Range;

use crate::error::ErrorCode;
use crate::ids::Correlation;
use crate::limits::{FRAME_ALIGN, FRAME_HEAD_LEN, FRAME_HEADER_MAX};
use crate::preamble::PROTOCOL_VERSION;

const FILLING: u16 = 0b111;
const FROM_BROKER: u16 = 1 << 3;
const ZEROS: [u8; FRAME_ALIGN] = [0; FRAME_ALIGN];

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident = $number:literal,)*) => {
        /// What a frame is about. An answer has its request's kind. Numbers are part of the protocol.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        #[non_exhaustive]
        pub enum Kind {
            $($(#[$doc])* $name = $number,)*
        }

        impl Kind {
            pub const ALL: &[Self] = &[$(Self::$name),*];

            pub const fn from_number(number: u8) -> Option<Self> {
                match number {
                    $($number => Some(Self::$name),)*
                    _ => None,
                }
            }
        }
    };
}

kinds! {
    Hello = 1,
    Ping = 2,
    Metadata = 3,
    CreateTopic = 4,
    AlterTopic = 5,
    DeleteTopic = 6,
    ListTopics = 7,
    DescribeTopic = 8,
    Produce = 16,
    Fetch = 17,
    LookUp = 18,
    GetMessage = 19,
    FindMessages = 20,
    Subscribe = 32,
    Unsubscribe = 33,
    Credit = 34,
    /// Pushed by the broker with correlation 0.
    Deliver = 35,
    Ack = 36,
    /// Pushed by the broker with correlation 0.
    Revoke = 37,
    Stats = 48,
    CreateGroup = 64,
    DeleteGroup = 65,
    ListGroups = 66,
    DescribeGroup = 67,
    GroupLag = 68,
    ResetOffset = 69,
    JoinGroup = 80,
    LeaveGroup = 81,
    Heartbeat = 82,
    /// Pushed by the broker with correlation 0.
    Assignment = 83,
    /// From the broker alone: instead of an answer, or pushed with correlation 0.
    Error = 127,
}

/// The first 24 bytes of a frame, all lengths checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHead {
    /// Bytes behind the head.
    length: u32,
    pub version: u8,
    /// A [`Kind`], or one of a later version.
    pub kind: u8,
    flags: u16,
    header_length: u32,
    pub correlation: Correlation,
}

impl FrameHead {
    /// The head of a frame with a header and a body of these lengths. Bounds are the caller's: header at most
    /// [`FRAME_HEADER_MAX`], the whole at most what the peer's hello said.
    pub fn new(kind: Kind, sender: Sender, correlation: Correlation, header_length: usize, body_length: usize) -> Self {
        let body_end = header_length.next_multiple_of(FRAME_ALIGN) + body_length;
        let length = body_end.next_multiple_of(FRAME_ALIGN);
        assert!(header_length <= FRAME_HEADER_MAX as usize, "a header is at most {FRAME_HEADER_MAX} bytes");
        let Ok(length) = u32::try_from(length) else { panic!("a body is far below 4 GiB") };
        let from_broker = if sender == Sender::Broker { FROM_BROKER } else { 0 };
        Self {
            length,
            version: PROTOCOL_VERSION,
            kind: kind as u8,
            flags: from_broker | (length as usize - body_end) as u16,
            header_length: header_length as u32,
            correlation,
        }
    }

    pub fn encode(&self) -> [u8; FRAME_HEAD_LEN] {
        let mut bytes = [0; FRAME_HEAD_LEN];
        bytes[0..4].copy_from_slice(&self.length.to_le_bytes());
        bytes[4] = self.version;
        bytes[5] = self.kind;
        bytes[6..8].copy_from_slice(&self.flags.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.header_length.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.correlation.0.to_le_bytes());
        bytes
    }

    /// Decodes a head and checks its lengths against `frame_max` (bytes of a whole frame). Of a later version only the length
    /// is checked: such a frame can be skipped and answered with `UnknownVersion`.
    pub fn decode(bytes: &[u8; FRAME_HEAD_LEN], frame_max: u32) -> Result<Self, FrameError> {
        let &[l0, l1, l2, l3, version, kind, f0, f1, h0, h1, h2, h3, r0, r1, r2, r3, c0, c1, c2, c3, c4, c5, c6, c7] =
            bytes;
        let head = Self {
            length: u32::from_le_bytes([l0, l1, l2, l3]),
            version,
            kind,
            flags: u16::from_le_bytes([f0, f1]),
            header_length: u32::from_le_bytes([h0, h1, h2, h3]),
            correlation: Correlation(u64::from_le_bytes([c0, c1, c2, c3, c4, c5, c6, c7])),
        };
        if u64::from(head.length) + FRAME_HEAD_LEN as u64 > u64::from(frame_max) {
            return Err(FrameError::TooLarge { length: head.length, frame_max });
        }
        if !(head.length as usize).is_multiple_of(FRAME_ALIGN) {
            return Err(FrameError::Length);
        }
        if version != PROTOCOL_VERSION {
            return Ok(head);
        }
        if head.header_length > FRAME_HEADER_MAX {
            return Err(FrameError::HeaderTooLarge(head.header_length));
        }
        let header_end = head.header_length.next_multiple_of(FRAME_ALIGN as u32);
        if header_end + u32::from(head.flags & FILLING) > head.length {
            return Err(FrameError::Length);
        }
        if head.flags & !(FILLING | FROM_BROKER) != 0 {
            return Err(FrameError::Flags(head.flags));
        }
        if [r0, r1, r2, r3] != [0; 4] {
            return Err(FrameError::Zeros);
        }
        Ok(head)
    }

    /// Bytes of the whole frame, head and zeros included.
    pub fn frame_len(&self) -> usize {
        FRAME_HEAD_LEN + self.length as usize
    }

    pub fn sender(&self) -> Sender {
        if self.flags & FROM_BROKER != 0 { Sender::Broker } else { Sender::Client }
    }

    /// Where the header lies in the frame. Of a known version only.
    pub fn header_range(&self) -> Range<usize> {
        FRAME_HEAD_LEN..FRAME_HEAD_LEN + self.header_length as usize
    }

    /// Where the body lies in the frame. Of a known version only.
    pub fn body_range(&self) -> Range<usize> {
        let start = FRAME_HEAD_LEN + (self.header_length as usize).next_multiple_of(FRAME_ALIGN);
        start..self.frame_len() - (self.flags & FILLING) as usize
    }
}

/// Who sends a frame; in the flags, so that neither takes the other's frames for its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sender {
    Client,
    Broker,
}

/// A whole frame, in place. Of an unknown version, header and body are empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    pub head: FrameHead,
    pub header: &'a [u8],
    pub body: &'a [u8],
}

impl Frame<'_> {
    /// Bytes of the whole frame: what the receive buffer is to be advanced by.
    pub fn len(&self) -> usize {
        self.head.frame_len()
    }

    /// A frame is never empty: its head is part of it.
    pub fn is_empty(&self) -> bool {
        false
    }
}

/// What the bytes received so far hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received<'a> {
    Frame(Frame<'a>),
    /// At least so many bytes more must come before another try makes sense.
    Missing(usize),
}

/// Takes the first frame from `bytes`, or says how many bytes are missing.
pub fn decode(bytes: &[u8], frame_max: u32) -> Result<Received<'_>, FrameError> {
    let Some(head) = bytes.first_chunk::<FRAME_HEAD_LEN>() else {
        return Ok(Received::Missing(FRAME_HEAD_LEN - bytes.len()));
    };
    let head = FrameHead::decode(head, frame_max)?;
    let Some(frame) = bytes.get(..head.frame_len()) else {
        return Ok(Received::Missing(head.frame_len() - bytes.len()));
    };
    if head.version != PROTOCOL_VERSION {
        return Ok(Received::Frame(Frame { head, header: &[], body: &[] }));
    }
    let (header, body) = (head.header_range(), head.body_range());
    let zeros = frame[header.end..body.start].iter().chain(&frame[body.end..]);
    if zeros.into_iter().any(|&byte| byte != 0) {
        return Err(FrameError::Zeros);
    }
    Ok(Received::Frame(Frame { head, header: &frame[header], body: &frame[body] }))
}

/// Appends a whole frame.
pub fn encode(kind: Kind, sender: Sender, correlation: Correlation, header: &[u8], body: &[u8], out: &mut Vec<u8>) {
    let head = FrameHead::new(kind, sender, correlation, header.len(), body.len());
    out.reserve(head.frame_len());
    out.extend_from_slice(&head.encode());
    out.extend_from_slice(header);
    out.extend_from_slice(filling(header.len()));
    out.extend_from_slice(body);
    out.extend_from_slice(filling(body.len()));
}

/// The zeros behind a header or body of `len` bytes; for gather writes.
pub fn filling(len: usize) -> &'static [u8] {
    &ZEROS[..len.next_multiple_of(FRAME_ALIGN) - len]
}

/// Why bytes are no frame. The connection cannot go on after it: where the next frame starts is not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    #[error("the frame announces {length} bytes, at most {frame_max} with its head are allowed")]
    TooLarge { length: u32, frame_max: u32 },
    #[error("the frame's header announces {0} bytes, at most {FRAME_HEADER_MAX} are allowed")]
    HeaderTooLarge(u32),
    #[error("the frame's lengths do not fit together")]
    Length,
    #[error("unknown frame flags {0:#06x}")]
    Flags(u16),
    #[error("bytes that must be zero are not")]
    Zeros,
}

impl FrameError {
    pub const fn code(&self) -> ErrorCode {
        match self {
            Self::TooLarge { .. } => ErrorCode::TooLarge,
            _ => ErrorCode::Malformed,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MAX: u32 = 4096;

    fn frame(header: &[u8], body: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        encode(Kind::Stats, Sender::Broker, Correlation(0x0102_0304_0506_0708), header, body, &mut bytes);
        bytes
    }

    #[test]
    fn golden_bytes_of_version_1() {
        let expected = [
            &[24, 0, 0, 0, 1, 48, 0b1011, 0, 3, 0, 0, 0, 0, 0, 0, 0, 8, 7, 6, 5, 4, 3, 2, 1][..],
            &[b'a', b'b', b'c', 0, 0, 0, 0, 0],
            b"0123456789abc",
            &[0, 0, 0],
        ];
        assert_eq!(frame(b"abc", b"0123456789abc"), expected.concat());
    }

    #[test]
    fn lengths_are_checked_before_the_rest_has_arrived() {
        let check = |at: usize, value: u32| {
            let mut bytes = frame(b"abc", b"body");
            bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
            decode(&bytes[..FRAME_HEAD_LEN], MAX).map(|_| ()).map_err(|error| error.code())
        };
        assert_eq!(check(0, MAX - 24), Ok(()));
        assert_eq!(check(0, MAX - 16), Err(ErrorCode::TooLarge));
        assert_eq!(check(0, u32::MAX), Err(ErrorCode::TooLarge));
        assert_eq!(check(0, 12), Err(ErrorCode::Malformed));
        assert_eq!(check(0, 8), Err(ErrorCode::Malformed), "the filling of 4 would lie in the header");
        assert_eq!(check(8, 17), Err(ErrorCode::Malformed));
        assert_eq!(check(8, u32::MAX), Err(ErrorCode::Malformed));
        assert_eq!(check(12, 1), Err(ErrorCode::Malformed));
    }

    #[test]
    fn an_unknown_version_can_be_skipped() {
        let mut bytes = frame(b"abc", b"body");
        bytes[4] = 9;
        bytes[6..16].fill(0xFF);
        let Ok(Received::Frame(frame)) = decode(&bytes, MAX) else { panic!("a frame") };
        assert_eq!((frame.head.version, frame.len(), frame.header, frame.body), (9, bytes.len(), &[][..], &[][..]));
        assert_eq!(frame.head.correlation, Correlation(0x0102_0304_0506_0708));
    }

    #[test]
    fn filling_must_be_zero() {
        for at in [FRAME_HEAD_LEN + 3, FRAME_HEAD_LEN + 7, FRAME_HEAD_LEN + 12, FRAME_HEAD_LEN + 15] {
            let mut bytes = frame(b"abc", b"body");
            bytes[at] = 1;
            assert_eq!(decode(&bytes, MAX), Err(FrameError::Zeros));
        }
    }

    proptest! {
        #[test]
        fn round_trip_and_every_prefix_says_what_is_missing(
            header in prop::collection::vec(any::<u8>(), 0..40),
            body in prop::collection::vec(any::<u8>(), 0..40),
        ) {
            let bytes = frame(&header, &body);
            for end in 0..bytes.len() {
                let Ok(Received::Missing(missing)) = decode(&bytes[..end], MAX) else { panic!("a prefix is no frame") };
                let whole = if end < FRAME_HEAD_LEN { FRAME_HEAD_LEN } else { bytes.len() };
                prop_assert_eq!(end + missing, whole);
            }
            let mut longer = bytes.clone();
            longer.extend([7; 9]);
            let Ok(Received::Frame(frame)) = decode(&longer, MAX) else { panic!("a frame") };
            prop_assert_eq!((frame.header, frame.body, frame.len()), (&header[..], &body[..], bytes.len()));
            prop_assert_eq!((frame.head.kind, frame.head.sender()), (Kind::Stats as u8, Sender::Broker));
        }

        #[test]
        fn arbitrary_heads_never_reach_beyond_the_frame(head: [u8; FRAME_HEAD_LEN]) {
            if let Ok(head) = FrameHead::decode(&head, MAX) {
                prop_assert!(head.frame_len() <= MAX as usize);
                if head.version == PROTOCOL_VERSION {
                    prop_assert!(head.header_range().end <= head.body_range().start);
                    prop_assert!(head.body_range().start <= head.body_range().end);
                    prop_assert!(head.body_range().end <= head.frame_len());
                }
            }
        }
    }
}
