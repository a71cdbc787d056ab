//! What is said of a file that cannot be written, and whether that is for want of room.

use std::io;
use std::path::Path;

/// Whether there is no room, which may pass.
pub(super) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Says in a clause what cannot be written, why, and how much room is left there.
pub(super) fn unwritable(path: &Path, error: &io::Error) -> String {
    let left = free_bytes(path).map(|bytes| format!("; {} are free there", in_words(bytes))).unwrap_or_default();
    format!("{} cannot be written: {error}{left}", path.display())
}

/// Room on the file system of a path, or of the nearest directory above it that exists.
#[cfg(unix)]
fn free_bytes(path: &Path) -> Option<u64> {
    let found = path.ancestors().find_map(|at| rustix::fs::statvfs(at).ok())?;
    Some(found.f_bavail.saturating_mul(found.f_frsize))
}

#[cfg(not(unix))]
fn free_bytes(_: &Path) -> Option<u64> {
    None
}

#[expect(clippy::cast_precision_loss, reason = "for people")]
fn in_words(bytes: u64) -> String {
    if bytes < 1_000_000 { format!("{bytes} bytes") } else { format!("{:.1} MB", bytes as f64 / 1e6) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn path_reason_and_room_are_told() {
        let path = std::env::temp_dir().join("no/such/file");
        let text = unwritable(&path, &io::Error::from(io::ErrorKind::StorageFull));
        assert!(text.starts_with(&format!("{} cannot be written: ", path.display())), "{text}");
        #[cfg(unix)]
        assert!(text.ends_with(" are free there"), "{text}");
        assert_eq!((in_words(0), in_words(1_500_000)), ("0 bytes".to_owned(), "1.5 MB".to_owned()));
    }
}
