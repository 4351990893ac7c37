//! What `--from` means.

use jiff::{SignedDuration, Timestamp, Zoned};
use peregrine_client::{Epoch, Nanos, QueueOffset, Start};

/// `earliest`, `latest`, an offset, an instant (RFC 3339; without an offset from UTC, local time), or a time ago.
pub fn parse(text: &str, now: Timestamp) -> Result<Start, String> {
    match text {
        "earliest" => return Ok(Start::Earliest),
        "latest" => return Ok(Start::Latest),
        _ => {}
    }
    if text.bytes().all(|byte| byte.is_ascii_digit()) {
        let offset = text.parse().map_err(|_| format!("\"{text}\" is too large for an offset"))?;
        return Ok(Start::Offset { epoch: Epoch::ANY, offset: QueueOffset(offset) });
    }
    let instant = instant(text, now).ok_or_else(|| {
        format!("\"{text}\" is no start: use earliest, latest, an offset, an instant like 2026-08-01T12:00:00Z or a time ago like 15m")
    })?;
    Ok(Start::Time(nanos(instant)))
}

/// What `--begin` and `--end` mean: an instant, or a time ago.
pub fn time(text: &str, now: Timestamp) -> Result<Nanos, String> {
    let instant = instant(text, now)
        .ok_or_else(|| format!("\"{text}\" is no instant like 2026-08-01T12:00:00Z and no time ago like 15m"))?;
    Ok(nanos(instant))
}

fn nanos(instant: Timestamp) -> Nanos {
    Nanos(u64::try_from(instant.as_nanosecond()).unwrap_or(0))
}

fn instant(text: &str, now: Timestamp) -> Option<Timestamp> {
    if let Ok(instant) = text.parse::<Timestamp>() {
        return Some(instant);
    }
    if let Ok(local) = text.parse::<jiff::civil::DateTime>() {
        return local.to_zoned(Zoned::now().time_zone().clone()).ok().map(|zoned| zoned.timestamp());
    }
    let ago = text.strip_suffix(" ago").unwrap_or(text);
    // Days of 24 hours: what people mean by the last two days.
    let ago = match ago.strip_suffix('d').map(str::parse::<i64>) {
        Some(Ok(days)) => SignedDuration::from_hours(days.checked_mul(24)?),
        _ => ago.parse::<SignedDuration>().ok()?,
    };
    now.checked_sub(ago.abs()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_start() {
        let now: Timestamp = "2026-08-01T12:00:00Z".parse().expect("an instant");
        let time = |text: &str| match parse(text, now) {
            Ok(Start::Time(at)) => Timestamp::from_nanosecond(at.0.into()).expect("in range").to_string(),
            other => panic!("{text}: {other:?}"),
        };
        assert_eq!(parse("earliest", now), Ok(Start::Earliest));
        assert_eq!(parse("latest", now), Ok(Start::Latest));
        assert_eq!(parse("42", now), Ok(Start::Offset { epoch: Epoch::ANY, offset: QueueOffset(42) }));
        assert_eq!(time("15m"), "2026-08-01T11:45:00Z");
        assert_eq!(time("1h30m ago"), "2026-08-01T10:30:00Z");
        assert_eq!(time("2d"), "2026-07-30T12:00:00Z");
        assert_eq!(time("2026-08-01T09:00:00+02:00"), "2026-08-01T07:00:00Z");
        assert_eq!(time("2026-08-01T09:00:00.5Z"), "2026-08-01T09:00:00.5Z");
        assert_eq!(super::time("15m", now).map(Start::Time), parse("15m", now));
        assert!(super::time("earliest", now).is_err() && super::time("-", now).is_err());
        assert!(parse("yesterday", now).is_err() && parse("", now).is_err());
        assert!(parse("99999999999999999999", now).is_err());
    }
}
