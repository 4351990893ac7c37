//! Sizes and times as people write them.

use std::time::Duration;

/// Bytes: a whole number, with `KiB`, `MiB`, `GiB` (or `K`, `M`, `G`, the same) or nothing behind it.
pub fn size(text: &str) -> Result<u64, String> {
    let (number, unit) = split(text);
    let unit: u64 = match unit {
        "" | "B" => 1,
        "K" | "KiB" => 1 << 10,
        "M" | "MiB" => 1 << 20,
        "G" | "GiB" => 1 << 30,
        _ => return Err(format!("\"{text}\" is no size; write for example 4096, 64KiB or 4MiB")),
    };
    let bytes = number.parse::<u64>().ok().and_then(|number| number.checked_mul(unit));
    bytes.ok_or_else(|| format!("\"{text}\" is no size; write for example 4096, 64KiB or 4MiB"))
}

/// A length of time: a whole number with `ns`, `us`, `ms`, `s`, `min`, `h` or `d` behind it; 0 needs no unit.
pub fn time(text: &str) -> Result<Duration, String> {
    let (number, unit) = split(text);
    let nanos: u64 = match unit {
        "" if number == "0" => 1,
        "ns" => 1,
        "us" | "µs" => 1_000,
        "ms" => 1_000_000,
        "s" => 1_000_000_000,
        "min" => 60 * 1_000_000_000,
        "h" => 3600 * 1_000_000_000,
        "d" => 24 * 3600 * 1_000_000_000,
        _ => return Err(format!("\"{text}\" is no time; write for example 50us, 1ms or 2s")),
    };
    let nanos = number.parse::<u64>().ok().and_then(|number| number.checked_mul(nanos));
    nanos.map(Duration::from_nanos).ok_or_else(|| format!("\"{text}\" is no time; write for example 50us, 1ms or 2s"))
}

/// A size with the largest unit that says it exactly.
pub fn show_size(bytes: u64) -> String {
    let units = [(30, "GiB"), (20, "MiB"), (10, "KiB")];
    let unit = units.into_iter().find(|(shift, _)| bytes != 0 && bytes.is_multiple_of(1 << shift));
    unit.map_or_else(|| format!("{bytes} bytes"), |(shift, unit)| format!("{} {unit}", bytes >> shift))
}

fn split(text: &str) -> (&str, &str) {
    let end = text.find(|character: char| !character.is_ascii_digit()).unwrap_or(text.len());
    (&text[..end], text[end..].trim_start())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        assert_eq!(size("4096"), Ok(4096));
        assert_eq!(size("64KiB"), Ok(65_536));
        assert_eq!(size("4 MiB"), Ok(4 << 20));
        assert_eq!(size("1G"), Ok(1 << 30));
        for wrong in ["", "MiB", "-1", "1.5MiB", "4MB", "99999999999GiB", "4MiBx"] {
            assert!(size(wrong).is_err(), "{wrong}");
        }
        assert_eq!([0, 5, 4096, 4 << 20, 3 << 30].map(show_size), ["0 bytes", "5 bytes", "4 KiB", "4 MiB", "3 GiB"]);
    }

    #[test]
    fn times() {
        assert_eq!(time("0"), Ok(Duration::ZERO));
        assert_eq!(time("50us"), Ok(Duration::from_micros(50)));
        assert_eq!(time("50µs"), Ok(Duration::from_micros(50)));
        assert_eq!(time("1 ms"), Ok(Duration::from_millis(1)));
        for wrong in ["", "5", "us", "1m", "-1s", "99999999999999999999s", "20000000000s"] {
            assert!(time(wrong).is_err(), "{wrong}");
        }
    }
}
