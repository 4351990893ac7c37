//! `PROTOCOL.md` names every kind and every error as the code has them.

use peregrine_protocol::error::ErrorCode;
use peregrine_protocol::frame::Kind;

const DOCUMENT: &str = include_str!("../PROTOCOL.md");

#[test]
fn every_kind_is_documented() {
    for &kind in Kind::ALL {
        let row = format!("\n| {} | {kind:?} | ", kind as u8);
        assert!(DOCUMENT.contains(&row), "PROTOCOL.md has no row that begins with {}", row.trim());
    }
}

#[test]
fn every_error_is_documented() {
    let rows: String = ErrorCode::ALL.iter().map(|&code| row(code)).collect();
    assert!(DOCUMENT.ends_with(&rows), "PROTOCOL.md must end with these rows:\n{rows}");
}

fn row(code: ErrorCode) -> String {
    let retriable = if code.is_retriable() { "yes" } else { "no" };
    let sentence = code.sentence().replace('|', "\\|");
    format!("| {} | {} | {retriable} | {sentence} |\n", code.number(), code.name())
}
