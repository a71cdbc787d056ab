//! Names from content: readable, unique, at most 80 characters, equal for equal pipelines.

use std::collections::HashMap;

use super::limits::NAME_CHARACTERS;

/// FNV-1a (Fowler, Noll, Vo) in 128 bits. Names contents; it is no protection against an attacker.
#[must_use]
pub fn content_hash(bytes: &[u8]) -> String {
    const OFFSET: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
    const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;
    let hash = bytes.iter().fold(OFFSET, |hash, byte| (hash ^ u128::from(*byte)).wrapping_mul(PRIME));
    format!("{hash:032x}")
}

/// Longest label; what is added to it in a state's name must fit beside it.
const LABEL_CHARACTERS: usize = 56;

/// A step's name as far as it can stand in state names, keys, patterns and lists.
///
/// Letters, digits, `_`, `-`, `.` and inner spaces stay. Anything else becomes `_`, and a hash of the original keeps two such names
/// apart.
#[must_use]
pub fn label(name: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | ' ');
    if name.len() <= LABEL_CHARACTERS && name.chars().all(plain) && name.trim() == name {
        return name.to_owned();
    }
    let kept: String = name.chars().map(|c| if plain(c) { c } else { '_' }).take(LABEL_CHARACTERS - 9).collect();
    format!("{}-{}", kept.trim(), &content_hash(name.as_bytes())[..8])
}

/// Part of a machine's name: no whitespace, no special characters.
#[must_use]
pub fn machine_name(text: &str, room: usize) -> String {
    let kept: String =
        text.chars().map(|c| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '-' }).collect();
    let kept = if kept.is_empty() { "pipeline".to_owned() } else { kept };
    if kept.len() <= room && kept == text {
        return kept;
    }
    // Changed names keep a hash, so that two pipelines never share a machine.
    let hash = &content_hash(text.as_bytes())[..8];
    format!("{}-{hash}", &kept[..kept.len().min(room - 9)])
}

/// The names of one machine.
#[derive(Debug, Default)]
pub struct Names {
    taken: HashMap<String, u32>,
}

impl Names {
    /// Takes a name, or the nearest free one.
    pub fn take(&mut self, wanted: &str) -> String {
        let name = shortened(wanted);
        let mut candidate = name.clone();
        loop {
            if !self.taken.contains_key(&candidate) {
                self.taken.insert(candidate.clone(), 1);
                return candidate;
            }
            let count = self.taken.entry(name.clone()).or_insert(1);
            *count += 1;
            let suffix = format!(" ~{count}");
            candidate = format!("{}{suffix}", &name[..name.len().min(NAME_CHARACTERS - suffix.len())]);
        }
    }
}

fn shortened(wanted: &str) -> String {
    if wanted.len() <= NAME_CHARACTERS {
        return wanted.to_owned();
    }
    let hash = &content_hash(wanted.as_bytes())[..8];
    format!("{}-{hash}", &wanted[..NAME_CHARACTERS - 9])
}
