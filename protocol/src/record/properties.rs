//! The properties section: pairs of strings, each name and value with its length.
//!
//! ```text
//! name length u16 · value length u16 · name · value · next pair ...
//! ```

use super::RecordError;

/// The pairs of a properties section, in the order in which they were written.
#[derive(Clone, Debug)]
pub struct Properties<'a> {
    rest: &'a [u8],
}

impl<'a> Properties<'a> {
    pub fn new(section: &'a [u8]) -> Self {
        Self { rest: section }
    }
}

impl<'a> Iterator for Properties<'a> {
    type Item = Result<(&'a str, &'a str), RecordError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let pair = split(self.rest);
        self.rest = pair.map_or(&[], |(_, rest)| rest);
        Some(pair.map(|(pair, _)| pair).ok_or(RecordError::Property))
    }
}

/// Appends one pair to a section in the making; `false` (and nothing appended) where name or value has over 65,535 bytes.
pub fn push_property(section: &mut Vec<u8>, name: &str, value: &str) -> bool {
    let (Ok(name_len), Ok(value_len)) = (u16::try_from(name.len()), u16::try_from(value.len())) else { return false };
    section.extend_from_slice(&name_len.to_le_bytes());
    section.extend_from_slice(&value_len.to_le_bytes());
    section.extend_from_slice(name.as_bytes());
    section.extend_from_slice(value.as_bytes());
    true
}

fn split(bytes: &[u8]) -> Option<((&str, &str), &[u8])> {
    let (&[n0, n1, v0, v1], rest) = bytes.split_first_chunk::<4>()?;
    let (name, rest) = rest.split_at_checked(u16::from_le_bytes([n0, n1]) as usize)?;
    let (value, rest) = rest.split_at_checked(u16::from_le_bytes([v0, v1]) as usize)?;
    Some(((str::from_utf8(name).ok()?, str::from_utf8(value).ok()?), rest))
}
