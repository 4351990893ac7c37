//! Reports side by side, as a Markdown table for a README.

use std::fmt::Write as _;

use serde_json::Value;

/// Metric, percentile, and the column's heading.
const COLUMNS: [(&str, &str, &str); 12] = [
    ("acknowledged", "p50", "ack p50"),
    ("acknowledged", "p99", "p99"),
    ("acknowledged", "p99.9", "p99.9"),
    ("acknowledged", "p99.99", "p99.99"),
    ("acknowledged", "max", "max"),
    ("end_to_end", "p50", "end to end p50"),
    ("end_to_end", "p99", "p99"),
    ("end_to_end", "p99.99", "p99.99"),
    ("echo_floor", "p50", "echo p50"),
    ("echo_floor", "p99", "p99"),
    ("echo_floor", "p99.99", "p99.99"),
    ("flush_floor", "p99", "flush p99"),
];

/// One row per report, in microseconds.
pub fn table(reports: &[Value]) -> String {
    let mut out = String::from("| level | msg/s | size | shards |");
    // Writing to a String cannot fail.
    for (_, _, heading) in COLUMNS {
        let _ = write!(out, " {heading} |");
    }
    out.push_str(" |\n|---|--:|--:|---|");
    out.push_str(&"--:|".repeat(COLUMNS.len()));
    out.push_str("---|\n");
    for report in reports {
        let level = report["level"].as_str().unwrap_or("?");
        let shared = if report["generator"]["shared_cores"] == true { ", shared cores" } else { "" };
        let _ = write!(out, "| {level} | {} | {} | {}{shared} |", report["rate"], report["size"], report["shards"]);
        for (metric, percentile, _) in COLUMNS {
            let _ = write!(out, " {} |", cell(&report["latency_us"][metric], percentile));
        }
        let verdict = if report["valid"] == true { "valid" } else { "INVALID" };
        let _ = writeln!(out, " {verdict} |");
    }
    out
}

/// One row per report: level, rate, and what of its acknowledgements a highest rate is judged by.
pub fn highest_rows(reports: &[Value]) -> String {
    let row = |report: &Value| {
        let acknowledged = &report["latency_us"]["acknowledged"];
        let [p50, p99, p99_99] = ["p50", "p99", "p99.99"].map(|percentile| cell(acknowledged, percentile));
        let level = report["level"].as_str().unwrap_or("?");
        format!("| {level} | {} | {p50} / {p99} / {p99_99} |\n", report["rate"])
    };
    reports.iter().map(row).collect()
}

fn cell(latencies: &Value, percentile: &str) -> String {
    match latencies[percentile].as_f64() {
        _ if latencies["count"] == 0 => "–".to_owned(),
        None => "∞".to_owned(),
        Some(us) if us < 10.0 => format!("{us:.1}"),
        Some(us) => format!("{us:.0}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_infinite_and_what_was_not_measured_are_told_apart() {
        let report = serde_json::json!({
            "level": "memory", "rate": 5000, "size": 1024, "shards": 2, "valid": true, "generator": {"shared_cores": true},
            "latency_us": {
                "acknowledged": {"p50": 9.84, "p99": 120.4, "max": null, "count": 10},
                "echo_floor": {"p50": null, "count": 0},
            },
        });
        let text = table(&[report]);
        let row = text.lines().nth(2).unwrap();
        assert!(row.starts_with("| memory | 5000 | 1024 | 2, shared cores | 9.8 | 120 | ∞ |"), "{row}");
        assert!(row.contains(" – |") && row.ends_with(" valid |"), "{row}");
        let columns: Vec<_> = text.lines().map(|line| line.matches('|').count()).collect();
        assert!(columns.windows(2).all(|pair| pair[0] == pair[1]), "{columns:?}");
    }
}
