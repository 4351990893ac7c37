//! Integers in as few bytes as they need (LEB128): groups of seven bits, lowest first, the top bit set on all but the last byte.

/// Appends `value`: one byte below 128, ten at the most.
pub fn put(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Reads at `*at` what [`put`] wrote there, and moves past it. `None` where the bytes end before it does, or it is no u64.
pub fn take(bytes: &[u8], at: &mut usize) -> Option<u64> {
    let mut value = 0;
    for shift in (0..u64::BITS).step_by(7) {
        let byte = *bytes.get(*at)?;
        *at += 1;
        let group = u64::from(byte & 0x7f);
        if group << shift >> shift != group {
            return None;
        }
        value |= group << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn small_values_are_short_and_what_is_no_value_is_none() {
        for (value, bytes) in [(0, &[0][..]), (127, &[127]), (128, &[0x80, 1]), (300, &[0xAC, 2])] {
            let mut out = Vec::new();
            put(&mut out, value);
            assert_eq!(out, bytes);
        }
        assert_eq!(take(&[], &mut 0), None);
        assert_eq!(take(&[0x80, 0x80], &mut 0), None, "it does not end");
        assert_eq!(take(&[0xFF; 12], &mut 0), None, "it has more than 64 bits");
        let mut too_large = [0xFF; 10];
        too_large[9] = 2;
        assert_eq!(take(&too_large, &mut 0), None);
        too_large[9] = 1;
        assert_eq!(take(&too_large, &mut 0), Some(u64::MAX));
    }

    proptest! {
        #[test]
        fn values_read_back_one_after_the_other(values in prop::collection::vec(any::<u64>().prop_map(|n| n >> (n % 64)), 0..50)) {
            let mut out = Vec::new();
            for &value in &values {
                put(&mut out, value);
            }
            let mut at = 0;
            let read: Option<Vec<_>> = values.iter().map(|_| take(&out, &mut at)).collect();
            prop_assert_eq!((read, at), (Some(values), out.len()));
        }
    }
}
