//! Bodies of answers that hold several parts: each a fixed head and the bytes that it announces, filled to the frame's alignment.

use std::marker::PhantomData;

use super::DecodeError;
use crate::frame;
use crate::limits::FRAME_ALIGN;

/// What stands before a part's bytes.
pub trait PartHead: Copy {
    /// Bytes on the wire.
    const WIRE_LEN: usize;
    /// Parts of one body.
    const PARTS_MAX: u32;

    /// From `WIRE_LEN` bytes.
    fn read(bytes: &[u8]) -> Result<Self, DecodeError>;

    fn write(&self, out: &mut Vec<u8>);

    /// Bytes that belong to it, the filling not counted.
    fn announced(&self) -> usize;
}

/// A body in the making.
#[derive(Clone, Debug)]
pub struct PartsBody<H> {
    bytes: Vec<u8>,
    count: u32,
    heads: PhantomData<H>,
}

impl<H> Default for PartsBody<H> {
    fn default() -> Self {
        Self { bytes: Vec::new(), count: 0, heads: PhantomData }
    }
}

impl<H: PartHead> PartsBody<H> {
    /// Appends a part: at most [`PartHead::PARTS_MAX`], with as many bytes as its head announces.
    pub fn push(&mut self, head: &H, bytes: &[u8]) {
        assert!(self.count < H::PARTS_MAX, "an answer holds at most {} parts", H::PARTS_MAX);
        assert!(head.announced() == bytes.len(), "a part goes out whole");
        head.write(&mut self.bytes);
        self.bytes.extend_from_slice(bytes);
        self.bytes.extend_from_slice(frame::filling(bytes.len()));
        self.count += 1;
    }

    /// Bytes that the body would have with another part of `len` bytes.
    pub fn len_with(&self, len: usize) -> usize {
        self.bytes.len() + H::WIRE_LEN + len.next_multiple_of(FRAME_ALIGN)
    }

    pub fn parts(&self) -> Parts<'_, H> {
        Parts { body: &self.bytes, count: self.count, heads: PhantomData }
    }
}

/// Parts in an answer, in the order of the sender; checked when decoded, so that iteration cannot fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parts<'a, H> {
    body: &'a [u8],
    count: u32,
    heads: PhantomData<H>,
}

impl<H> Default for Parts<'_, H> {
    fn default() -> Self {
        Self { body: &[], count: 0, heads: PhantomData }
    }
}

impl<'a, H: PartHead> Parts<'a, H> {
    pub(super) fn check(body: &'a [u8], count: u32) -> Result<Self, DecodeError> {
        if count > H::PARTS_MAX {
            return Err(DecodeError::Field("count"));
        }
        let mut rest = body;
        for _ in 0..count {
            (_, rest) = split::<H>(rest)?;
        }
        if rest.is_empty() { Ok(Self { body, count, heads: PhantomData }) } else { Err(DecodeError::Body) }
    }

    pub(super) fn count(&self) -> u32 {
        self.count
    }

    pub(super) fn body(&self) -> &'a [u8] {
        self.body
    }

    pub fn len(&self) -> usize {
        self.count as usize
    }

    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Each part's head and its bytes.
    pub fn iter(&self) -> impl Iterator<Item = (H, &'a [u8])> + use<'a, H> {
        self.iter_filled().map(|(head, filled)| (head, &filled[..head.announced()]))
    }

    /// The same with the zeros that fill a part's bytes up to a multiple of 8.
    pub fn iter_filled(&self) -> impl Iterator<Item = (H, &'a [u8])> + use<'a, H> {
        let mut rest = self.body;
        std::iter::from_fn(move || {
            let (part, after) = split(rest).ok()?;
            rest = after;
            Some(part)
        })
    }
}

/// A part's head, and its bytes with their filling.
type Part<'a, H> = (H, &'a [u8]);

/// The first part of `body`, and what follows it.
fn split<H: PartHead>(body: &[u8]) -> Result<(Part<'_, H>, &[u8]), DecodeError> {
    let (head, rest) = body.split_at_checked(H::WIRE_LEN).ok_or(DecodeError::Body)?;
    let head = H::read(head)?;
    let length = head.announced();
    let (filled, rest) = rest.split_at_checked(length.next_multiple_of(FRAME_ALIGN)).ok_or(DecodeError::Body)?;
    if filled[length..].iter().any(|&byte| byte != 0) {
        return Err(DecodeError::Body);
    }
    Ok(((head, filled), rest))
}
