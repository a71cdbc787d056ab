//! Directories of this machine that are copied into containers, for engines that do not share its file system.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use bollard::query_parameters::UploadToContainerOptionsBuilder;
use bytes::Bytes;

use super::container::Container;
use super::error::DockerError;
use super::spec::FilesSpec;

/// Archives of the directories, made once in a run.
#[derive(Clone, Default)]
pub(super) struct Archives(Arc<Mutex<HashMap<FilesSpec, Bytes>>>);

impl Archives {
    /// Copies the directories into a container that was created.
    pub(super) async fn upload(&self, container: &Container, files: &[FilesSpec]) -> Result<(), DockerError> {
        for wanted in files {
            let archive = self.archive(wanted).await?;
            let options = UploadToContainerOptionsBuilder::new().path("/").build();
            let operation = format!("copy {} into container {}", wanted.source.display(), container.name);
            let body = bollard::body_full(archive);
            let sent = container.engine.docker.upload_to_container(&container.id, Some(options), body).await;
            sent.map_err(DockerError::of(operation))?;
        }
        Ok(())
    }

    async fn archive(&self, wanted: &FilesSpec) -> Result<Bytes, DockerError> {
        let known = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(archive) = known().get(wanted) {
            return Ok(archive.clone());
        }
        let (source, target) = (wanted.source.clone(), wanted.target.clone());
        let packed = tokio::task::spawn_blocking(move || pack(&source, &target)).await;
        let archive = packed.unwrap_or_else(|error| Err(io::Error::other(error))).map_err(|error| {
            DockerError::spec("files", format!("the directory {} cannot be read: {error}", wanted.source.display()))
        })?;
        known().insert(wanted.clone(), archive.clone());
        Ok(archive)
    }
}

/// A directory as an archive for `/`, readable by every user, without what Python caches.
fn pack(source: &Path, target: &str) -> io::Result<Bytes> {
    let mut archive = tar::Builder::new(Vec::new());
    let target = target.trim_start_matches('/');
    let mut stack = vec![(source.to_path_buf(), PathBuf::from(target))];
    while let Some((from, to)) = stack.pop() {
        let mut entries = std::fs::read_dir(&from)?.collect::<io::Result<Vec<_>>>()?;
        entries.sort_by_key(std::fs::DirEntry::file_name);
        for entry in entries {
            let (path, name) = (entry.path(), entry.file_name());
            // Follows links: what they point to is not in the container.
            let metadata = std::fs::metadata(&path)?;
            if metadata.is_dir() && name != "__pycache__" {
                stack.push((path, to.join(name)));
            } else if metadata.is_file() {
                let bytes = std::fs::read(&path)?;
                let mut header = tar::Header::new_gnu();
                header.set_size(bytes.len() as u64);
                header.set_mode(if is_executable(&metadata) { 0o755 } else { 0o644 });
                archive.append_data(&mut header, to.join(name), bytes.as_slice())?;
            }
        }
    }
    Ok(Bytes::from(archive.into_inner()?))
}

#[cfg(unix)]
fn is_executable(metadata: &std::fs::Metadata) -> bool {
    use std::os::unix::fs::PermissionsExt as _;

    metadata.permissions().mode() & 0o100 != 0
}

#[cfg(not(unix))]
fn is_executable(_: &std::fs::Metadata) -> bool {
    false
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    #[test]
    fn a_directory_is_packed_with_what_is_in_it() {
        let directory = std::env::temp_dir().join(format!("step-engine-files-{}", std::process::id()));
        std::fs::create_dir_all(directory.join("inner/__pycache__")).unwrap();
        std::fs::write(directory.join("inner/a.py"), "text").unwrap();
        std::fs::write(directory.join("inner/__pycache__/a.pyc"), "cache").unwrap();
        let packed = pack(&directory, "/opt/x").unwrap();
        std::fs::remove_dir_all(&directory).unwrap();
        let mut archive = tar::Archive::new(&packed[..]);
        let mut found = Vec::new();
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let mut text = String::new();
            entry.read_to_string(&mut text).unwrap();
            found.push((entry.path().unwrap().display().to_string(), entry.header().mode().unwrap(), text));
        }
        assert_eq!(found, [("opt/x/inner/a.py".to_owned(), 0o644, "text".to_owned())]);
        assert!(pack(Path::new("/no/such/directory"), "/x").is_err());
    }
}
