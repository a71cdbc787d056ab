//! Who may import whom: the table in `src/lib.rs` held against the code.

use std::fs;
use std::path::{Path, PathBuf};

/// Module, the modules of this crate it may name, and the external crates that are its alone to name.
const TABLE: &[(&str, &[&str], &[&str])] = &[
    ("event", &[], &[]),
    ("plan", &["event"], &[]),
    ("schedule", &["plan", "event"], &[]),
    ("asl", &["plan"], &[]),
    ("runner", &["schedule", "plan", "event"], &["tokio", "bytes"]),
    ("docker", &["runner", "plan", "event"], &["tokio", "bytes", "bollard"]),
    ("aws", &["runner", "asl", "plan", "event"], &["tokio", "bytes", "aws_sdk_", "aws_config", "aws_smithy_"]),
    (
        "python",
        &["event", "plan", "schedule", "asl", "runner", "docker", "aws"],
        &["tokio", "bytes", "pyo3", "pythonize"],
    ),
];

/// External crates that only the modules above may name.
const RESERVED: &[&str] = &["tokio", "bytes", "bollard", "aws_sdk_", "aws_config", "aws_smithy_", "pyo3", "pythonize"];

/// Paths that read a clock, the network, files or randomness; the pure modules name none of them.
const IMPURE: &[&str] = &["std::fs", "std::net", "std::env", "std::process", "std::thread", "SystemTime", "Instant"];
const PURE: &[&str] = &["event", "plan", "schedule", "asl"];

fn source_files(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap().map(Result::unwrap) {
        match entry.file_type().unwrap().is_dir() {
            true => source_files(&entry.path(), found),
            false if entry.path().extension().is_some_and(|extension| extension == "rs") => found.push(entry.path()),
            false => {}
        }
    }
}

/// What follows `prefix` in a line of code, as far as it is an identifier.
fn names_after<'a>(line: &'a str, prefix: &'a str) -> impl Iterator<Item = &'a str> {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(prefix)
        .filter(move |(at, _)| !line[..*at].ends_with(|c: char| is_word(c) || c == ':'))
        .map(move |(at, _)| line[at + prefix.len()..].split(|c| !is_word(c)).next().unwrap_or_default())
}

/// Wrongs in one file of a module. `depth` is the number of modules between the file and its top module.
fn wrongs(module: &str, depth: usize, text: &str) -> Vec<String> {
    let Some((_, may_use, may_name)) = TABLE.iter().find(|(name, ..)| *name == module) else {
        return vec![format!("`{module}` does not stand in the table")];
    };
    let mut wrongs = Vec::new();
    let mut in_tests = false;
    for line in text.lines() {
        in_tests |= line.starts_with("mod tests");
        let code = line.split("//").next().unwrap_or_default();
        for name in names_after(code, "crate::").filter(|name| *name != module && !may_use.contains(name)) {
            wrongs.push(format!("`{module}` uses `crate::{name}`: {code}"));
        }
        if code.contains(&"super::".repeat(depth + 1 + usize::from(in_tests))) {
            wrongs.push(format!("`{module}` leaves itself by `super`: {code}"));
        }
        for name in RESERVED.iter().filter(|name| !may_name.contains(name)) {
            let names = |line: &str| {
                line.match_indices(*name).any(|(at, _)| {
                    let before = line[..at].chars().next_back();
                    let after = line[at + name.len()..].trim_start_matches(|c: char| c.is_alphanumeric() || c == '_');
                    !before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':') && after.starts_with("::")
                })
            };
            if names(code) {
                wrongs.push(format!("`{module}` names the crate `{name}`: {code}"));
            }
        }
        if PURE.contains(&module) && !in_tests {
            wrongs.extend(
                IMPURE
                    .iter()
                    .filter(|path| code.contains(*path))
                    .map(|path| format!("`{module}` is pure and names `{path}`: {code}")),
            );
        }
    }
    wrongs
}

#[test]
fn every_module_imports_only_what_the_table_allows() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    source_files(&source, &mut files);
    assert!(files.len() > 10, "the source is there");
    let found: Vec<String> = files
        .iter()
        .map(|file| (file, file.strip_prefix(&source).unwrap().with_extension("")))
        .filter(|(_, path)| path.as_os_str() != "lib")
        .flat_map(|(file, path)| {
            let parts: Vec<&str> =
                path.iter().map(|part| part.to_str().unwrap()).filter(|part| *part != "mod").collect();
            let text = fs::read_to_string(file).unwrap();
            wrongs(parts[0], parts.len() - 1, &text)
                .into_iter()
                .map(|wrong| format!("{}: {wrong}", path.display()))
                .collect::<Vec<_>>()
        })
        .collect();
    assert!(found.is_empty(), "\n{}", found.join("\n"));
}

#[test]
fn the_table_names_the_modules_of_the_crate() {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/lib.rs")).unwrap();
    let modules = text.lines().filter_map(|line| line.trim_start_matches("pub ").strip_prefix("mod "));
    for module in modules.map(|rest| rest.trim_end_matches(';')) {
        assert!(TABLE.iter().any(|(name, ..)| *name == module), "`{module}` is missing in the table of this test");
        assert!(text.contains(&format!("`{module}`")), "`{module}` is missing in the table of src/lib.rs");
    }
}

#[test]
fn wrong_imports_are_found() {
    for (module, depth, line) in [
        ("plan", 1, "use crate::schedule::Scheduler;"),
        ("schedule", 1, "use crate::runner::drive;"),
        ("docker", 1, "fn f() { crate::schedule::Scheduler::new() }"),
        ("docker", 1, "use crate::aws::Deploy;"),
        ("docker", 1, "use super::super::schedule::Scheduler;"),
        ("plan", 0, "use super::runner;"),
        ("runner", 1, "use bollard::Docker;"),
        ("schedule", 1, "let x = tokio::time::sleep(d);"),
        ("aws", 1, "use pyo3::prelude::*;"),
        ("aws", 1, "use crate::schedule::Scheduler;"),
        ("runner", 1, "use aws_smithy_types::DateTime;"),
        ("python", 1, "aws_config::load_from_env();"),
        ("plan", 1, "use std::time::Instant;"),
        ("asl", 1, "std::thread::Builder::new();"),
        ("unheard_of", 1, ""),
    ] {
        let text = if line.is_empty() { "x" } else { line };
        assert_eq!(wrongs(module, depth, text).len(), 1, "{module}: {line}");
    }
    for (module, depth, line) in [
        ("schedule", 1, "use crate::plan::Plan;"),
        ("schedule", 1, "use super::ready::Rank;"),
        ("schedule", 1, "if super::a::A > super::b::B {}"),
        ("runner", 1, "use tokio::time::Instant;"),
        ("plan", 1, "// as crate::runner does with tokio::time"),
        ("aws", 1, "use aws_sdk_sfn::Client;"),
        ("aws", 1, "use aws_smithy_types::DateTime;"),
        ("runner", 0, "pub(crate) mod x;"),
    ] {
        assert_eq!(wrongs(module, depth, line), [""; 0], "{module}: {line}");
    }
    assert_eq!(wrongs("runner", 1, "use aws_sdk_sfn::Client;").len(), 1);
}
