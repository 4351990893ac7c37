//! A stretch of a queue's batches, packed; see the module.

use peregrine_protocol::limits::ENTRY_ALIGN;

/// Up to [`limits::INDEX_CHUNK_BATCHES`] batches, dense in offsets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chunk {
    pub first_offset: u64,
    pub first_position: u64,
    pub first_time: u64,
    pub end_offset: u64,
    pub batches: u32,
    pub encoded: Vec<u8>,
}

impl Chunk {
    /// Position and store time of its last batch; `None` where its bytes do not hold what its head says.
    pub(super) fn last(&self) -> Option<(u64, u64)> {
        let (mut at, mut batches) = (0, 0);
        let (mut offset, mut position, mut time) = (self.first_offset, self.first_position, self.first_time);
        while at < self.encoded.len() {
            let records = u32::try_from(checked_varint(&self.encoded, &mut at)?).ok().filter(|&records| records > 0)?;
            offset = offset.checked_add(records.into())?;
            let step = checked_varint(&self.encoded, &mut at)?.checked_mul(ENTRY_ALIGN)?;
            position = position.checked_add(step)?;
            u32::try_from(checked_varint(&self.encoded, &mut at)?).ok()?;
            time = time.checked_add(checked_varint(&self.encoded, &mut at)?)?;
            batches += 1;
        }
        (batches > 0 && batches == self.batches && offset == self.end_offset).then_some((position, time))
    }
}

/// Appends `value` in groups of seven bits, lowest first, the top bit set on all but the last byte (LEB128).
pub(super) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Reads at `*at` what [`put_varint`] wrote there, and moves past it.
pub(super) fn take_varint(bytes: &[u8], at: &mut usize) -> u64 {
    let mut value = 0;
    let mut shift = 0;
    loop {
        let byte = bytes[*at];
        *at += 1;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return value;
        }
        shift += 7;
    }
}

/// The same of bytes that may hold anything.
fn checked_varint(bytes: &[u8], at: &mut usize) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..u64::BITS).step_by(7) {
        let byte = *bytes.get(*at)?;
        *at += 1;
        let group = u64::from(byte & 0x7f);
        value |= group.checked_shl(shift).filter(|shifted| shifted >> shift == group)?;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}
