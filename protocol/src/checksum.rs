//! CRC32 (IEEE, as in gzip; crc32fast uses the processor's carry-less multiplication) of entries, records and pages.
//!
//! A long payload is summed in steps, so that no shard's turn grows with the size of a message.

/// CRC32 of `bytes`.
pub fn crc32(bytes: &[u8]) -> u32 {
    crc32fast::hash(bytes)
}

/// CRC32 of what `initial` is the CRC of, followed by `bytes`.
pub fn crc32_after(initial: u32, bytes: &[u8]) -> u32 {
    let mut crc = Crc32::after(initial);
    crc.update(bytes);
    crc.finish()
}

/// A CRC32 in the making.
#[derive(Clone, Debug, Default)]
pub struct Crc32(crc32fast::Hasher);

impl Crc32 {
    pub fn new() -> Self {
        Self::default()
    }

    /// Goes on from the CRC of earlier bytes.
    pub fn after(initial: u32) -> Self {
        Self(crc32fast::Hasher::new_with_initial(initial))
    }

    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The CRC of all bytes so far.
    pub fn finish(self) -> u32 {
        self.0.finalize()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_value_and_steps_agree() {
        assert_eq!(crc32(b"123456789"), 0xCBF4_3926, "the check value of CRC-32/ISO-HDLC");
        assert_eq!(crc32(b""), 0);
        let mut steps = Crc32::new();
        steps.update(b"1234");
        steps.update(b"56789");
        assert_eq!(steps.finish(), 0xCBF4_3926);
        assert_eq!(crc32_after(crc32(b"1234"), b"56789"), 0xCBF4_3926);
    }
}
