//! The first 8 bytes of a connection, sent by the client before its hello.
//!
//! ```text
//! 0xF5 'P' 'g' 'r' · version u16 · zero u16
//! ```
//!
//! The first byte starts no HTTP request, no TLS record and no RocketMQ frame (whose big-endian length would be 4 GiB), so
//! these can share the port.

use crate::limits::PREAMBLE_LEN;

const MAGIC: [u8; 4] = [0xF5, b'P', b'g', b'r'];

/// The version of the protocol: of the frames and of what is in them.
pub const PROTOCOL_VERSION: u8 = 1;

/// What this program sends.
pub const PREAMBLE: [u8; PREAMBLE_LEN] = [MAGIC[0], MAGIC[1], MAGIC[2], MAGIC[3], PROTOCOL_VERSION, 0, 0, 0];

/// Why a connection is not one of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PreambleError {
    #[error("the connection does not open with Peregrine's preamble")]
    Magic,
    /// The broker answers `UnknownVersion` in a frame of its own version, then closes.
    #[error("the client speaks protocol version {0}, this program {PROTOCOL_VERSION}")]
    Version(u16),
}

/// Checks what has arrived of a preamble; `Ok(false)` means that it is right so far and more must come.
pub fn check_preamble(bytes: &[u8]) -> Result<bool, PreambleError> {
    if bytes.iter().zip(MAGIC).any(|(&byte, magic)| byte != magic) {
        return Err(PreambleError::Magic);
    }
    let Some(&[_, _, _, _, v0, v1, z0, z1]) = bytes.first_chunk::<PREAMBLE_LEN>() else { return Ok(false) };
    match u16::from_le_bytes([v0, v1]) {
        version if version != u16::from(PROTOCOL_VERSION) => Err(PreambleError::Version(version)),
        _ if [z0, z1] != [0, 0] => Err(PreambleError::Magic),
        _ => Ok(true),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ours_passes_and_every_prefix_waits() {
        assert_eq!(PREAMBLE, [0xF5, 0x50, 0x67, 0x72, 1, 0, 0, 0]);
        for end in 0..PREAMBLE_LEN {
            assert_eq!(check_preamble(&PREAMBLE[..end]), Ok(false));
        }
        assert_eq!(check_preamble(&PREAMBLE), Ok(true));
    }

    #[test]
    fn others_are_told_apart_at_the_first_byte_that_differs() {
        for other in [&b"GET /"[..], &[0x16, 3, 1], &[0, 0, 0, 99], &[0xF5, b'P', b'x']] {
            assert_eq!(check_preamble(other), Err(PreambleError::Magic));
        }
        assert_eq!(check_preamble(&[0xF5, b'P', b'g', b'r', 2, 0, 0, 0]), Err(PreambleError::Version(2)));
        assert_eq!(check_preamble(&[0xF5, b'P', b'g', b'r', 1, 0, 1, 0]), Err(PreambleError::Magic));
    }
}
