//! Little-endian fields at fixed places of a block: what segment identities, marks and the ring's page are made of. Every
//! such block ends its checked part with a CRC32 of all bytes before it.

use peregrine_protocol::checksum::crc32;

pub(super) fn put<const N: usize>(block: &mut [u8], at: usize, value: [u8; N]) {
    block[at..at + N].copy_from_slice(&value);
}

pub(super) fn bytes_at<const N: usize>(block: &[u8], at: usize) -> [u8; N] {
    let mut value = [0; N];
    value.copy_from_slice(&block[at..at + N]);
    value
}

pub(super) fn u16_at(block: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes_at(block, at))
}

pub(super) fn u32_at(block: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes_at(block, at))
}

pub(super) fn u64_at(block: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes_at(block, at))
}

pub(super) fn u128_at(block: &[u8], at: usize) -> u128 {
    u128::from_le_bytes(bytes_at(block, at))
}

/// Writes the CRC32 of `block[from..at]` at `at`.
pub(super) fn put_crc(block: &mut [u8], from: usize, at: usize) {
    let crc = crc32(&block[from..at]);
    put(block, at, crc.to_le_bytes());
}

/// Whether [`put_crc`] wrote this.
pub(super) fn crc_holds(block: &[u8], from: usize, at: usize) -> bool {
    u32_at(block, at) == crc32(&block[from..at])
}
