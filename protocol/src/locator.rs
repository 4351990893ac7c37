//! How a message is named for people and programs: its id, which says where it lies, and a check, which says that it is the one.

use std::fmt;
use std::str::FromStr;

use crate::checksum::{crc32, crc32_after};
use crate::entry::DirectoryId;
use crate::ids::MessageId;

/// Names one message of one data directory for ever. Written as 24 hexadecimal digits: the id's 16, then the check's 8.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MessageLocator {
    pub id: MessageId,
    /// See [`MessageLocator::check_of`].
    pub check: u32,
}

impl MessageLocator {
    /// Of the record with that checksum at that place in that directory.
    pub fn new(directory: DirectoryId, id: MessageId, record_crc: u32) -> Self {
        Self { id, check: Self::check_of(directory, record_crc) }
    }

    /// CRC32 of the directory's id and the record's CRC32: another directory has other messages at the same positions, and two
    /// that differ in the place alone differ in the id.
    pub fn check_of(directory: DirectoryId, record_crc: u32) -> u32 {
        crc32_after(crc32(&directory.0.to_be_bytes()), &record_crc.to_le_bytes())
    }
}

impl fmt::Display for MessageLocator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}{:08x}", self.id.0, self.check)
    }
}

impl FromStr for MessageLocator {
    type Err = BadLocator;

    fn from_str(text: &str) -> Result<Self, BadLocator> {
        // The parser of numbers takes signs, which are none of ours.
        let digits = Some(text).filter(|text| text.len() == 24 && text.bytes().all(|byte| byte.is_ascii_hexdigit()));
        let (id, check) = digits.and_then(|digits| digits.split_at_checked(16)).ok_or(BadLocator)?;
        let id = u64::from_str_radix(id, 16).map_err(|_| BadLocator)?;
        let check = u32::from_str_radix(check, 16).map_err(|_| BadLocator)?;
        Ok(Self { id: MessageId(id), check })
    }
}

/// A text that is no message's id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a message's id has 24 hexadecimal digits")]
pub struct BadLocator;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{LogPosition, ShardId};

    #[test]
    fn text_and_check_are_part_of_the_format() {
        let id = MessageId::new(ShardId(3), LogPosition(4192));
        let locator = MessageLocator::new(DirectoryId(0x1234 << 64 | 5), id, 0xCBF4_3926);
        assert_eq!(locator.to_string(), "00c000000000020c55ac7af9");
        assert_eq!(locator.to_string().parse(), Ok(locator));
        assert_eq!(locator.to_string().to_uppercase().parse(), Ok(locator));
        assert_ne!(MessageLocator::new(DirectoryId(5), id, 0xCBF4_3926).check, locator.check);
        assert_ne!(MessageLocator::new(DirectoryId(0x1234 << 64 | 5), id, 0xCBF4_3927).check, locator.check);
    }

    #[test]
    fn what_is_no_id_is_refused() {
        let long = "0".repeat(25);
        for text in [
            "",
            "00c000000000020c",
            "+0c000000000020c55ac7af9",
            "00c000000000020c55ac7afg",
            "é0c000000000020c55ac7a",
            &long,
        ] {
            assert_eq!(text.parse::<MessageLocator>(), Err(BadLocator), "{text}");
        }
    }
}
