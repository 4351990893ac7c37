//! The house rules that neither rustfmt nor clippy knows, as a test over the files of this repository.
//!
//! Each rule is a plain function from the text of one file to its violations, so that it can be shown to fail on a sample; the test
//! `the_repository_is_tidy` runs them all on everything that lies here. Generated code is exempt from all of them.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Longer files are to be split by noun.
const FILE_LINES_MAX: usize = 600;

/// Names that say nothing about what a file or a folder holds.
const NAMES_BANNED: [&str; 6] = ["util", "utils", "helper", "helpers", "common", "misc"];

/// Where neither I/O nor a clock may be used, so that the simulator and the fuzzers run the very code of production.
const SANS_IO: [&str; 2] = ["protocol/src/", "broker/src/engine/"];
const PATHS_BANNED_IN_SANS_IO: [&str; 15] = [
    "std::fs",
    "std::net",
    "std::io",
    "std::os",
    "std::env",
    "std::process",
    "std::thread",
    "std::time::Instant",
    "std::time::SystemTime",
    "glommio",
    "libc",
    "memmap2",
    "mio",
    "socket2",
    "tokio",
];

/// One broken rule: the line, counted from 1, and a sentence.
type Violation = (usize, String);

#[test]
fn the_repository_is_tidy() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate lies in the workspace");
    let mut files = Vec::new();
    collect_files(root, &mut files);
    assert!(files.len() > 20, "only {} files found under {}", files.len(), root.display());

    let files: Vec<(String, PathBuf, String)> = files
        .into_iter()
        // What is not text has no lines to judge.
        .filter_map(|file| {
            let shown = file.strip_prefix(root).expect("found under the root").to_string_lossy().into_owned();
            let text = fs::read_to_string(&file).ok()?;
            (!is_generated(&shown)).then_some((shown, file, text))
        })
        .collect();
    let test_modules: Vec<String> = files.iter().flat_map(|(path, _, text)| test_modules_of(path, text)).collect();

    let mut report = Vec::new();
    for (path, file, text) in &files {
        let is_test = is_test_file(path, &test_modules);
        for (line, sentence) in
            violations_of(path, text, is_test, &|target| file.with_file_name("").join(target).exists())
        {
            report.push(format!("{path}:{line}: {sentence}"));
        }
    }
    assert!(report.is_empty(), "house rules are broken:\n{}", report.join("\n"));
}

fn is_generated(path: &str) -> bool {
    path.contains("/generated") || path == "Cargo.lock"
}

/// All rules that apply to the file, by its path from the root.
fn violations_of(path: &str, text: &str, is_test: bool, exists: &dyn Fn(&str) -> bool) -> Vec<Violation> {
    let extension = Path::new(path).extension().unwrap_or_default();
    let mut found = names(path);
    found.extend(length(text));
    found.extend(machine_paths(text));
    if extension == "md" {
        found.extend(links(text, exists));
    }
    if extension == "rs" {
        // A module's tests in a file of their own go by what the module says.
        if !path.ends_with("/tests.rs") {
            found.extend(opening(text));
        }
        found.extend(unfinished(text));
        let code = production_code(text);
        if SANS_IO.iter().any(|folder| path.starts_with(folder)) && !is_test {
            found.extend(sans_io(&code));
        }
        if !is_test {
            found.extend(unwraps(&code));
        }
    }
    found
}

/// Everything that is ours: no build output, and of the hidden folders only those with our files.
fn collect_files(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a readable folder") {
        let entry = entry.expect("a readable folder");
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let kind = entry.file_type().expect("a known kind of file");
        if kind.is_dir() && name != "target" && (!name.starts_with('.') || name == ".ci" || name == ".cargo") {
            collect_files(&entry.path(), files);
        } else if kind.is_file() && name != ".git" {
            files.push(entry.path());
        }
    }
}

/// The test crate, an integration test, an example, a benchmark, or a module that is declared for tests only.
fn is_test_file(path: &str, test_modules: &[String]) -> bool {
    let of_module =
        |module: &String| path.strip_prefix(module.as_str()).is_some_and(|rest| rest.starts_with(['.', '/']));
    path.starts_with("tests/")
        || ["/tests/", "/examples/", "/benches/"].iter().any(|folder| path.contains(folder))
        || test_modules.iter().any(of_module)
}

/// The modules that a file declares with `#[cfg(test)] mod name;`, as paths without their extension.
fn test_modules_of(path: &str, text: &str) -> Vec<String> {
    let (folder, file) = path.rsplit_once('/').unwrap_or(("", path));
    let folder = match file {
        "mod.rs" | "lib.rs" | "main.rs" => folder.to_owned(),
        other => format!("{folder}/{}", other.trim_end_matches(".rs")),
    };
    let declarations = text.match_indices("#[cfg(test)]").filter_map(|(at, mark)| {
        let declared = text[at + mark.len()..].trim_start().strip_prefix("mod ")?;
        let end = declared.find(|c: char| !c.is_alphanumeric() && c != '_')?;
        declared[end..].starts_with(';').then(|| format!("{folder}/{}", &declared[..end]))
    });
    declarations.collect()
}

fn names(path: &str) -> Vec<Violation> {
    let banned = |part: &str| NAMES_BANNED.contains(&part.split('.').next().unwrap_or(part));
    let parts = path.split('/').filter(|part| banned(part));
    parts.map(|part| (1, format!("the name {part:?} says nothing about what it holds"))).collect()
}

fn length(text: &str) -> Vec<Violation> {
    let lines = text.lines().count();
    if lines <= FILE_LINES_MAX {
        return Vec::new();
    }
    vec![(lines, format!("{lines} lines, where {FILE_LINES_MAX} are allowed: split it by noun"))]
}

/// A path of one person's machine has no place in a file that others read.
fn machine_paths(text: &str) -> Vec<Violation> {
    // In two halves, so that this file passes its own rule.
    let roots = [["/ro", "ot/"], ["/ho", "me/"], ["/wo", "rk/"], ["/Us", "ers/"]].map(|halves| halves.concat());
    // `$HOME/x` and `a/home/x` are none: only a slash that begins a path counts.
    let begins_path = |line: &str, at: usize| {
        !line[..at].chars().next_back().is_some_and(|c| c.is_alphanumeric() || "._-}~".contains(c))
    };
    lines_where(text, |line| {
        let root = roots.iter().find(|root| line.match_indices(root.as_str()).any(|(at, _)| begins_path(line, at)))?;
        Some(format!("an absolute path of one machine, {root}"))
    })
}

fn opening(text: &str) -> Vec<Violation> {
    if text.starts_with("//!") {
        return Vec::new();
    }
    vec![(1, "the file does not open with what it is for, in `//!` lines".into())]
}

fn unfinished(text: &str) -> Vec<Violation> {
    let marks = [["TO", "DO"], ["FIX", "ME"], ["todo", "!("], ["unimplemented", "!("], ["dbg", "!("]];
    let marks = marks.map(|halves| halves.concat());
    lines_where(text, |line| {
        let mark = marks.iter().find(|mark| line.contains(mark.as_str()))?;
        Some(format!("unfinished work is not landed: {mark}"))
    })
}

fn unwraps(code: &str) -> Vec<Violation> {
    lines_where(code, |line| {
        let call = [".unwrap()", ".expect("].into_iter().find(|call| line.contains(call))?;
        Some(format!("{call} outside of tests: return an error, or assert the invariant with its sentence"))
    })
}

fn sans_io(code: &str) -> Vec<Violation> {
    let mut found = lines_where(code, |line| {
        let path = PATHS_BANNED_IN_SANS_IO.into_iter().find(|path| names_path(line, path))?;
        Some(format!("{path} in code that does no I/O and reads no clock"))
    });
    for (line, path) in imports(code) {
        let banned = |ban: &str| path == ban || path.starts_with(&format!("{ban}::"));
        let known = |found: &[Violation]| found.iter().any(|(at, _)| *at == line);
        if PATHS_BANNED_IN_SANS_IO.iter().any(|ban| banned(ban)) && !known(&found) {
            found.push((line, format!("{path} imported into code that does no I/O and reads no clock")));
        }
    }
    found
}

/// Whether the line mentions the path as one: `std::fs` in `std::fs::read`, not in `my_std::fsync`; a crate only before `::`.
fn names_path(line: &str, path: &str) -> bool {
    let word = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(path).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let after = &line[at + path.len()..];
        let whole = !before.is_some_and(word) && !after.starts_with(word);
        whole && (path.contains("::") || (after.starts_with("::") && before != Some(':')))
    })
}

/// Every path that a `use` brings in, with its line: `use std::{fs, net::TcpStream}` gives `std::fs` and `std::net::TcpStream`.
fn imports(code: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (at, _) in code.match_indices("use ") {
        let starts_word = !code[..at].chars().next_back().is_some_and(|c| c.is_alphanumeric() || c == '_');
        let Some(end) = code[at..].find(';').filter(|_| starts_word) else { continue };
        let tree: String = code[at + 4..at + end].split_whitespace().collect();
        let line = code[..at].matches('\n').count() + 1;
        expand_import("", &tree, &mut |path| found.push((line, path)));
    }
    found
}

fn expand_import(prefix: &str, tree: &str, found: &mut dyn FnMut(String)) {
    let Some(open) = tree.find('{') else {
        found(format!("{prefix}{tree}"));
        return;
    };
    let inner = tree[open + 1..].strip_suffix('}').unwrap_or(&tree[open + 1..]);
    let prefix = format!("{prefix}{}", &tree[..open]);
    let (mut depth, mut start) = (0, 0);
    for (at, c) in inner.char_indices().chain([(inner.len(), ',')]) {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                if start < at {
                    expand_import(&prefix, &inner[start..at], found);
                }
                start = at + 1;
            }
            _ => {}
        }
    }
}

/// Relative links of a document lead to a file, and their anchors to a heading where they point into the same document.
fn links(text: &str, exists: &dyn Fn(&str) -> bool) -> Vec<Violation> {
    let headings: HashSet<String> =
        text.lines().filter(|line| line.starts_with('#')).map(|line| slug(line.trim_start_matches('#'))).collect();
    let mut fenced = false;
    let mut found = Vec::new();
    for (index, line) in text.lines().enumerate() {
        fenced ^= line.trim_start().starts_with("```");
        if fenced {
            continue;
        }
        for (at, _) in line.match_indices("](") {
            let Some(target) = line[at + 2..].split(')').next() else { continue };
            let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
            if target.contains("://") || target.starts_with("mailto:") {
                continue;
            }
            if !file.is_empty() && !exists(file) {
                found.push((index + 1, format!("the link to {file} leads nowhere")));
            }
            if file.is_empty() && !headings.contains(anchor) {
                found.push((index + 1, format!("the link to #{anchor} meets no heading")));
            }
        }
    }
    found
}

/// The anchor that GitHub gives a heading.
fn slug(heading: &str) -> String {
    let kept = heading.trim().chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
    kept.collect::<String>().to_lowercase().replace(' ', "-")
}

fn lines_where(text: &str, judge: impl Fn(&str) -> Option<String>) -> Vec<Violation> {
    text.lines().enumerate().filter_map(|(index, line)| Some((index + 1, judge(line)?))).collect()
}

/// The source without comments, literals and test items: they become blanks, so that lines keep their numbers.
fn production_code(source: &str) -> String {
    let mut code = blank_literals(source);
    let test_mark =
        |code: &str| ["#[cfg(test)]", "#[cfg(all(test", "#[test]"].iter().filter_map(|m| code.find(m)).min();
    while let Some(start) = test_mark(&code) {
        let end = item_end(&code, start);
        let blank: String = code[start..end].chars().map(|c| if c == '\n' { c } else { ' ' }).collect();
        code.replace_range(start..end, &blank);
    }
    code
}

/// Where the item that begins at `start` ends: behind its braces, or its semicolon where it has none.
fn item_end(code: &str, start: usize) -> usize {
    let mut depth = 0;
    for (at, c) in code[start..].char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 1 => return start + at + 1,
            '}' => depth -= 1,
            ';' if depth == 0 => return start + at + 1,
            _ => {}
        }
    }
    code.len()
}

/// Replaces what stands in comments, strings and character literals by blanks of one byte each.
fn blank_literals(source: &str) -> String {
    let mut code = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(first) = rest.chars().next() {
        let taken = literal_len(rest, code.chars().next_back());
        if taken == 0 {
            code.push(first);
            rest = &rest[first.len_utf8()..];
        } else {
            code.extend(rest[..taken].chars().map(|c| if c == '\n' { c } else { ' ' }));
            rest = &rest[taken..];
        }
    }
    code
}

/// The length of the comment or literal that `rest` begins with; 0 where it begins with code.
fn literal_len(rest: &str, before: Option<char>) -> usize {
    let until = |end: &str, from: usize| rest[from..].find(end).map_or(rest.len(), |at| from + at + end.len());
    if rest.starts_with("//") {
        return rest.find('\n').unwrap_or(rest.len());
    }
    if rest.starts_with("/*") {
        return until("*/", 2);
    }
    if rest.starts_with('"') {
        return quoted_len(rest, '"');
    }
    let in_word = before.is_some_and(|c| c.is_alphanumeric() || c == '_');
    if rest.starts_with('r') && (!in_word || before == Some('b')) {
        let hashes = rest[1..].chars().take_while(|&c| c == '#').count();
        if rest[1 + hashes..].starts_with('"') {
            return until(&format!("\"{}", "#".repeat(hashes)), 2 + hashes);
        }
    }
    // `'x'` and `'\n'` are characters, `'x` is a lifetime.
    let mut after = rest.chars().skip(1);
    if rest.starts_with('\'') && (after.next() == Some('\\') || after.next() == Some('\'')) {
        return quoted_len(rest, '\'');
    }
    0
}

fn quoted_len(rest: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in rest.char_indices().skip(1) {
        if c == quote && !escaped {
            return at + c.len_utf8();
        }
        escaped = c == '\\' && !escaped;
    }
    rest.len()
}

/// The rules, each shown to fail: a rule that cannot is worth nothing.
mod rules {
    use super::*;

    #[track_caller]
    fn check(path: &str, text: &str, expected: &[(usize, &str)]) {
        let is_test = is_test_file(path, &[]);
        let found = violations_of(path, text, is_test, &|target| target == "README.md");
        let matches = found.len() == expected.len()
            && found.iter().zip(expected).all(|((line, sentence), (at, part))| line == at && sentence.contains(part));
        assert!(matches, "found {found:?}, expected {expected:?}");
    }

    #[test]
    fn sans_io_code_names_no_io_and_no_clock() {
        check("protocol/src/a.rs", "//! A.\nlet now = std::time::Instant::now();\n", &[(2, "std::time::Instant")]);
        check("protocol/src/a.rs", "//! A.\nuse std::time::{Duration,\n    Instant};\n", &[(2, "std::time::Instant")]);
        check("broker/src/engine/a.rs", "//! A.\nuse std::{fmt, fs::File};\n", &[(2, "std::fs::File")]);
        check("broker/src/engine/a.rs", "//! A.\nglommio::spawn_local(f);\n", &[(2, "glommio")]);
        check("protocol/src/a.rs", "//! A.\nuse std::time::Duration;\nlet libc = my_libc::x();\n", &[]);
        check("protocol/src/a.rs", "//! A.\n// std::fs is what the log uses\n", &[]);
        check("protocol/src/a.rs", "//! A.\n#[cfg(test)]\nmod tests {\n    use std::fs;\n}\n", &[]);
        check("broker/src/log/a.rs", "//! A.\nuse std::fs;\n", &[]);
    }

    #[test]
    fn production_code_does_not_unwrap() {
        check("client/src/a.rs", "//! A.\nlet x = y.unwrap();\n", &[(2, ".unwrap()")]);
        check("client/src/a.rs", "//! A.\n\nlet x = y\n    .expect(\"z\");\n", &[(4, ".expect(")]);
        check("client/src/a.rs", "//! A.\n/// x.unwrap()\nlet s = (\".unwrap()\", r#\".unwrap()\"#);\n", &[]);
        check(
            "client/src/a.rs",
            "//! A.\n#[test]\nfn f() { x.unwrap() }\nfn g() { x.unwrap() }\n",
            &[(4, ".unwrap()")],
        );
        check("client/src/a.rs", "//! A.\nlet c = '\"'; x.unwrap(); let d = '\"';\n", &[(2, ".unwrap()")]);
        check("client/src/a.rs", "//! A.\nfn f<'a>(x: &'a str) { x.unwrap() }\n", &[(2, ".unwrap()")]);
        check("client/tests/a.rs", "//! A.\nx.unwrap();\n", &[]);
    }

    #[test]
    fn files_are_short_named_for_what_they_hold_and_say_what_for() {
        check("client/src/a.rs", &format!("//! A.\n{}", "\n".repeat(FILE_LINES_MAX)), &[(601, "split it")]);
        check("client/src/utils/a.rs", "//! A.\n", &[(1, "\"utils\"")]);
        check("client/src/helpers.rs", "//! A.\n", &[(1, "\"helpers.rs\"")]);
        check("client/src/a.rs", "use x;\n", &[(1, "does not open")]);
    }

    #[test]
    fn nothing_unfinished_and_no_path_of_one_machine_is_landed() {
        check("client/src/a.rs", &format!("//! A.\n// {}{}: more\n", "TO", "DO"), &[(2, "unfinished")]);
        check("notes.md", &format!("see `/{}/someone/x`\n", "home"), &[(1, "absolute path")]);
        check("notes.md", "see $HOME/x and target/home/x\n", &[]);
    }

    #[test]
    fn links_lead_somewhere() {
        check("notes.md", "# A b\n[x](README.md) [y](GONE.md) [z](#a-b) [w](#c)\n", &[(2, "GONE.md"), (2, "#c")]);
        check("notes.md", "[x](https://example.org/GONE.md)\n```\n[y](GONE.md)\n```\n", &[]);
    }

    #[test]
    fn modules_declared_for_tests_are_tests() {
        let modules =
            test_modules_of("client/src/a/mod.rs", "//! A.\n#[cfg(test)]\nmod model;\n#[cfg(test)]\nmod b { }\n");
        assert_eq!(modules, ["client/src/a/model"]);
        assert!(is_test_file("client/src/a/model.rs", &modules) && is_test_file("client/src/a/model/x.rs", &modules));
        assert!(!is_test_file("client/src/a/models.rs", &modules));
        assert_eq!(test_modules_of("client/src/a.rs", "#[cfg(test)]\nmod tests;"), ["client/src/a/tests"]);
    }

    #[test]
    fn generated_code_is_exempt() {
        assert!(is_generated("protocol/src/generated/peregrine.rs"));
        assert!(!is_generated("protocol/src/frame.rs"));
    }
}
