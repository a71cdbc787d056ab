//! Names from content: readable, unique, at most 80 characters, equal for equal pipelines.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};

use super::limits::NAME_CHARACTERS;

/// Two lanes of multiply and rotate over words of eight bytes, each finished by MurmurHash3's mixer (Appleby 2011): a definition of a
/// megabyte takes a tenth of a millisecond. Names contents; it is no protection against an attacker.
#[must_use]
pub fn content_hash(bytes: &[u8]) -> String {
    const LANES: [(u64, u64); 2] =
        [(0x6c62_272e_07bb_0142, 0x9e37_79b9_7f4a_7c15), (0x62b8_2175_6295_c58d, 0xd6e8_feb8_6659_fd93)];
    let mut lanes = LANES.map(|(seed, _)| seed ^ bytes.len() as u64);
    let mut take = |word: u64| {
        for (lane, (_, factor)) in lanes.iter_mut().zip(LANES) {
            *lane = (*lane ^ word).wrapping_mul(factor).rotate_left(29);
        }
    };
    let (words, rest) = bytes.as_chunks::<8>();
    words.iter().for_each(|word| take(u64::from_le_bytes(*word)));
    let mut last = [0_u8; 8];
    last[..rest.len()].copy_from_slice(rest);
    take(u64::from_le_bytes(last));
    let [high, low] = lanes.map(|mut lane| {
        for factor in [0xff51_afd7_ed55_8ccd, 0xc4ce_b9fe_1a85_ec53] {
            lane = (lane ^ (lane >> 33)).wrapping_mul(factor);
        }
        lane ^ (lane >> 33)
    });
    format!("{high:016x}{low:016x}")
}

/// Longest labels that are tried; what is added to one in a state's name must fit beside it.
const LABEL_CHARACTERS: [usize; 5] = [56, 40, 28, 20, 14];

/// Labels of steps: their names as far as those can stand in state names, keys, patterns and lists. No two are equal.
///
/// Letters, digits, `_`, `-`, `.` and inner spaces stay. Anything else becomes `_`, and a hash of the original keeps two such names
/// apart. `room` is for all of them in a list, each with a comma: long names in a large pipeline are shortened until they fit or are
/// as short as they can be.
pub fn labels(names: &[&str], room: usize) -> Vec<String> {
    let [.., shortest] = LABEL_CHARACTERS;
    let fits = |&longest: &usize| names.iter().map(|name| name.len().min(longest) + 1).sum::<usize>() <= room;
    let longest = LABEL_CHARACTERS.into_iter().find(fits).unwrap_or(shortest);
    let stays = |name: &str| is_label(name, longest);
    // A name that stays as it is has the first right to itself.
    let mut taken: HashSet<String> = names.iter().copied().filter(|name| stays(name)).map(str::to_owned).collect();
    let make = |name: &&str| {
        if stays(name) {
            return (*name).to_owned();
        }
        let digits = content_hash(name.as_bytes());
        let mut label = with_hash(name, &digits, longest);
        let mut round = 1;
        while !taken.insert(label.clone()) {
            label = with_hash(name, &content_hash(format!("{digits}{round}").as_bytes()), longest);
            round += 1;
        }
        label
    };
    names.iter().map(make).collect()
}

/// What the label of a step can be, whatever else is in its plan; all but certain, as two hashes can be equal.
///
/// For readers of a machine who know its steps by name only: how far names are shortened depends on the whole plan.
pub fn possible_labels(name: &str) -> impl Iterator<Item = String> {
    LABEL_CHARACTERS.into_iter().map(|longest| {
        if is_label(name, longest) { name.to_owned() } else { with_hash(name, &content_hash(name.as_bytes()), longest) }
    })
}

fn is_plain(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | ' ')
}

/// Whether a name can be its own label. One of dots alone would mean another place in a key.
fn is_label(name: &str, longest: usize) -> bool {
    name.len() <= longest && name.chars().all(is_plain) && name.trim() == name && !name.chars().all(|c| c == '.')
}

fn with_hash(name: &str, digits: &str, longest: usize) -> String {
    let kept: String = name.chars().map(|c| if is_plain(c) { c } else { '_' }).take(longest - 9).collect();
    format!("{}-{}", kept.trim(), &digits[..8])
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
        let (name, mut count) = match self.taken.entry(shortened(wanted)) {
            Entry::Vacant(free) => {
                let name = free.key().clone();
                free.insert(1);
                return name;
            }
            Entry::Occupied(taken) => (taken.key().clone(), *taken.get()),
        };
        loop {
            count += 1;
            let suffix = format!(" ~{count}");
            let candidate = format!("{}{suffix}", &name[..name.len().min(NAME_CHARACTERS - suffix.len())]);
            if !self.taken.contains_key(&candidate) {
                self.taken.insert(candidate.clone(), 1);
                self.taken.insert(name, count);
                return candidate;
            }
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
