//! Real data with keys: flights that left New York in 2013, one a line (`scripts/dataset` says where they come from).
//!
//! No two lines are equal, so that "exactly once" can be checked by comparing sorted lines; the lines of one plane stand in the order
//! of their dates, so that "in order per key" can be checked against the file.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The column of the plane's tail number, counted from 1.
pub const KEY_FIELD: usize = 12;
pub const KEY_DELIMITER: &str = ",";

/// The first lines of the data set, without its heading.
#[derive(Debug)]
pub struct Dataset {
    lines: Vec<String>,
}

impl Dataset {
    /// # Panics
    /// If the data cannot be fetched: it comes from the Python package index once, and lies beside the build from then on.
    pub fn flights(count: usize) -> Self {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/dataset");
        let output = Command::new(&script).output().expect("scripts/dataset can be run");
        assert!(output.status.success(), "{} failed: {}", script.display(), String::from_utf8_lossy(&output.stderr));
        let path = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim_end());
        let text = fs::read_to_string(&path).expect("the data set can be read");
        let lines: Vec<String> = text.lines().skip(1).take(count).map(str::to_owned).collect();
        assert_eq!(lines.len(), count, "the data set is shorter than that");
        Dataset { lines }
    }

    pub fn lines(&self) -> &[String] {
        &self.lines
    }

    /// Writes the lines to a file, as input of `peregrine produce`.
    pub fn write_to(&self, path: &Path) {
        let mut text = self.lines.join("\n");
        text.push('\n');
        fs::write(path, text).expect("the file can be written");
    }

    /// Each line exactly once, and those of one key in the order of the data set.
    ///
    /// # Panics
    /// With the first lines that are lost, double, foreign or out of order.
    #[track_caller]
    pub fn assert_delivered(&self, delivered: &[String]) {
        let mut counts: HashMap<&str, i64> = self.lines.iter().map(|line| (line.as_str(), 0)).collect();
        let mut foreign = Vec::new();
        for line in delivered {
            match counts.get_mut(line.as_str()) {
                Some(count) => *count += 1,
                None => foreign.push(line),
            }
        }
        let lost: Vec<&&str> = counts.iter().filter(|&(_, &count)| count == 0).map(|(line, _)| line).collect();
        let double: Vec<&&str> = counts.iter().filter(|&(_, &count)| count > 1).map(|(line, _)| line).collect();
        assert!(
            lost.is_empty() && double.is_empty() && foreign.is_empty(),
            "of {} lines {} are lost, {} double and {} foreign; for example lost {:?}, double {:?}, foreign {:?}",
            self.lines.len(),
            lost.len(),
            double.len(),
            foreign.len(),
            lost.first(),
            double.first(),
            foreign.first()
        );
        assert_eq!(by_key(&self.lines), by_key(delivered), "the lines of a key are out of order");
    }
}

fn by_key(lines: &[String]) -> HashMap<&str, Vec<&str>> {
    let mut keys: HashMap<&str, Vec<&str>> = HashMap::new();
    for line in lines {
        let key = line.split(KEY_DELIMITER).nth(KEY_FIELD - 1).unwrap_or_default();
        keys.entry(key).or_default().push(line);
    }
    keys
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Dataset {
        let line = |key: &str, number: u32| format!("{number},1,1,1,1,1,1,1,1,1,1,{key},x");
        Dataset { lines: vec![line("a", 1), line("b", 2), line("a", 3)] }
    }

    #[test]
    fn keys_may_interleave_in_any_way() {
        let Dataset { lines } = sample();
        sample().assert_delivered(&[lines[1].clone(), lines[0].clone(), lines[2].clone()]);
    }

    #[test]
    #[should_panic(expected = "1 are lost")]
    fn a_lost_line_is_seen() {
        let Dataset { lines } = sample();
        sample().assert_delivered(&lines[1..]);
    }

    #[test]
    #[should_panic(expected = "1 double")]
    fn a_double_line_is_seen() {
        let Dataset { mut lines } = sample();
        lines.push(lines[0].clone());
        sample().assert_delivered(&lines);
    }

    #[test]
    #[should_panic(expected = "out of order")]
    fn a_swap_within_a_key_is_seen() {
        let Dataset { mut lines } = sample();
        lines.swap(0, 2);
        sample().assert_delivered(&lines);
    }
}
