//! The flags of an entry:
//!
//! ```text
//! bit   0..=3   codec of the payload: 0 none, 1 lz4, 2 zstd
//!       4..=5   durable level asked for: 1 memory, 2 synced, 3 replicated; 0 none (catalogue, loss)
//!       6       transactional: prepared, not yet visible
//!       7       encrypted by the producer
//!       8       control: not a message, never delivered
//!       9..=15  zero
//! ```

use crate::ids::DurableLevel;

const CODEC_MASK: u16 = 0x000F;
const LEVEL_SHIFT: u32 = 4;
const LEVEL_MASK: u16 = 0x0030;
const TRANSACTIONAL: u16 = 1 << 6;
const ENCRYPTED: u16 = 1 << 7;
const CONTROL: u16 = 1 << 8;
const KNOWN: u16 = CODEC_MASK | LEVEL_MASK | TRANSACTIONAL | ENCRYPTED | CONTROL;

/// How a batch's records are compressed, as one block.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Codec {
    #[default]
    None = 0,
    Lz4 = 1,
    Zstd = 2,
}

/// The flags of an entry; see the module's table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct EntryFlags(u16);

impl EntryFlags {
    /// No codec, no level, nothing set.
    pub const NONE: Self = Self(0);

    /// A batch whose producer asked for `level`.
    pub const fn for_level(level: DurableLevel) -> Self {
        Self((level.number() as u16) << LEVEL_SHIFT)
    }

    /// Refuses unknown bits and an unknown codec.
    pub const fn from_bits(bits: u16) -> Option<Self> {
        if bits & !KNOWN != 0 || bits & CODEC_MASK > Codec::Zstd as u16 { None } else { Some(Self(bits)) }
    }

    pub const fn bits(self) -> u16 {
        self.0
    }

    pub const fn with_codec(self, codec: Codec) -> Self {
        Self(self.0 & !CODEC_MASK | codec as u16)
    }

    pub const fn with_transactional(self) -> Self {
        Self(self.0 | TRANSACTIONAL)
    }

    pub const fn with_encrypted(self) -> Self {
        Self(self.0 | ENCRYPTED)
    }

    pub const fn with_control(self) -> Self {
        Self(self.0 | CONTROL)
    }

    pub const fn codec(self) -> Codec {
        match self.0 & CODEC_MASK {
            1 => Codec::Lz4,
            2 => Codec::Zstd,
            _ => Codec::None,
        }
    }

    /// The level that the producer asked for; `None` for entries that no producer sent.
    pub const fn level(self) -> Option<DurableLevel> {
        DurableLevel::from_number(((self.0 & LEVEL_MASK) >> LEVEL_SHIFT) as u8)
    }

    pub const fn is_transactional(self) -> bool {
        self.0 & TRANSACTIONAL != 0
    }

    pub const fn is_encrypted(self) -> bool {
        self.0 & ENCRYPTED != 0
    }

    pub const fn is_control(self) -> bool {
        self.0 & CONTROL != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_known_combination_reads_back_and_no_unknown_bit_passes() {
        let mut accepted = 0;
        for bits in 0..=u16::MAX {
            let Some(flags) = EntryFlags::from_bits(bits) else { continue };
            accepted += 1;
            let mut rebuilt = flags.level().map_or(EntryFlags::NONE, EntryFlags::for_level).with_codec(flags.codec());
            rebuilt = if flags.is_transactional() { rebuilt.with_transactional() } else { rebuilt };
            rebuilt = if flags.is_encrypted() { rebuilt.with_encrypted() } else { rebuilt };
            rebuilt = if flags.is_control() { rebuilt.with_control() } else { rebuilt };
            assert_eq!(rebuilt.bits(), bits);
        }
        assert_eq!(accepted, 3 * 4 * 8, "codecs, levels, three single bits");
    }
}
