//! What message bodies hold behind their stamps: pseudo-random bytes, or a file's own.
//!
//! With a file, message `i` begins at the file's line `i mod lines` and runs on through the file (and from its end to its
//! beginning) until the body is full, so real data comes in the same order in every run. The content of a message is a
//! function of its index: a message can be made again.

use std::path::Path;

/// Bytes of pseudo-random content kept; messages are windows of it.
const RANDOM_BYTES: usize = 1 << 20;

/// The source of message content.
#[derive(Clone, Debug)]
pub struct Content {
    bytes: Vec<u8>,
    /// Where a message's content may begin.
    starts: Vec<u32>,
}

impl Content {
    /// Pseudo-random bytes that do not compress, the same in every run of one seed.
    pub fn random(seed: u64) -> Self {
        let mut state = seed | 1;
        let mut bytes = Vec::with_capacity(RANDOM_BYTES);
        while bytes.len() < RANDOM_BYTES {
            // xorshift64*: Vigna, "An experimental exploration of Marsaglia's xorshift generators, scrambled" (2014).
            state ^= state >> 12;
            state ^= state << 25;
            state ^= state >> 27;
            bytes.extend_from_slice(&state.wrapping_mul(0x2545_F491_4F6C_DD1D).to_le_bytes());
        }
        let starts = (0..RANDOM_BYTES as u32).step_by(64).collect();
        Self { bytes, starts }
    }

    /// The lines of the file at `path`. An empty file is an error, as is one above 4 GiB.
    pub fn from_file(path: &Path) -> std::io::Result<Self> {
        let bytes = std::fs::read(path)?;
        if bytes.is_empty() || u32::try_from(bytes.len()).is_err() {
            return Err(std::io::Error::other("a payload file has 1 byte to 4 GiB"));
        }
        let mut starts = vec![0];
        starts.extend((1..bytes.len()).filter(|at| bytes[at - 1] == b'\n').map(|at| at as u32));
        Ok(Self { bytes, starts })
    }

    /// Fills `body` with the content of message `index`.
    pub fn fill(&self, index: u64, body: &mut [u8]) {
        let mut from = self.starts[(index % self.starts.len() as u64) as usize] as usize;
        let mut filled = 0;
        while filled < body.len() {
            let take = (self.bytes.len() - from).min(body.len() - filled);
            body[filled..filled + take].copy_from_slice(&self.bytes[from..from + take]);
            filled += take;
            from = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn a_file_is_taken_line_by_line_and_wraps() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(b"ab\ncde\nf").unwrap();
        let content = Content::from_file(file.path()).unwrap();
        let message = |index| {
            let mut body = [0; 10];
            content.fill(index, &mut body);
            String::from_utf8(body.to_vec()).unwrap()
        };
        assert_eq!(message(0), "ab\ncde\nfab");
        assert_eq!(message(1), "cde\nfab\ncd");
        assert_eq!(message(2), "fab\ncde\nfa");
        assert_eq!(message(3), message(0));
        assert!(Content::from_file(tempfile::NamedTempFile::new().unwrap().path()).is_err());
    }

    #[test]
    fn random_content_differs_from_message_to_message() {
        let content = Content::random(1);
        let (mut one, mut other) = ([0; 100], [0; 100]);
        content.fill(0, &mut one);
        content.fill(1, &mut other);
        assert_ne!(one, other);
    }
}
