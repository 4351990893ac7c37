//! Where the fields of an entry's header stand: the one table that encoders and decoders share. The first eight are common to
//! full entries and pads.

pub(super) const MAGIC: usize = 0;
pub(super) const VERSION: usize = 4;
pub(super) const KIND: usize = 5;
pub(super) const FLAGS: usize = 6;
pub(super) const HEADER_CRC: usize = 8;
pub(super) const PAYLOAD_CRC: usize = 12;
pub(super) const LENGTH: usize = 16;
pub(super) const RECORD_COUNT: usize = 20;
pub(super) const POSITION: usize = 24;
pub(super) const EPOCH: usize = 32;

pub(super) const TOPIC: usize = 40;
pub(super) const QUEUE: usize = 48;
pub(super) const PRODUCER_EPOCH: usize = 52;
pub(super) const BASE_OFFSET: usize = 56;
pub(super) const STORE_TIME: usize = 64;
pub(super) const PRODUCER_ID: usize = 72;
pub(super) const SEQUENCE: usize = 80;
pub(super) const RESERVED: usize = 88;

pub(super) const PAD_DURABLE: usize = 40;
pub(super) const PAD_NODE: usize = 48;
pub(super) const PAD_RESERVED: usize = 56;

pub(super) fn u16_at<const N: usize>(bytes: &[u8; N], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

pub(super) fn u32_at<const N: usize>(bytes: &[u8; N], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

pub(super) fn u64_at<const N: usize>(bytes: &[u8; N], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

pub(super) fn put<const N: usize, const M: usize>(bytes: &mut [u8; N], at: usize, value: [u8; M]) {
    bytes[at..at + M].copy_from_slice(&value);
}
