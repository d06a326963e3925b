//! hostPath volumes: the node's own files, after the checks that `type` asks for.

use super::VolumeError;
use k8s_openapi::api::core::v1::HostPathVolumeSource;
use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, OpenOptionsExt};
use std::path::PathBuf;

/// Checks, and where asked makes, the path.
pub fn lay(source: &HostPathVolumeSource) -> Result<PathBuf, VolumeError> {
    let path = PathBuf::from(&source.path);
    let refuse =
        |what: &str| Err(VolumeError::later(format!("hostPath type check failed: {} is not {what}", source.path)));
    let found = fs::metadata(&path).ok();
    let is = |check: fn(&fs::Metadata) -> bool| found.as_ref().is_some_and(check);
    match source.type_.as_deref().unwrap_or_default() {
        "" => {}
        "DirectoryOrCreate" if found.is_none() => {
            let made = fs::DirBuilder::new().recursive(true).mode(0o755).create(&path);
            made.map_err(|error| failed(source, &error))?;
        }
        "DirectoryOrCreate" | "Directory" if !is(fs::Metadata::is_dir) => return refuse("a directory"),
        "FileOrCreate" if found.is_none() => {
            let made = OpenOptions::new().write(true).create_new(true).mode(0o644).open(&path);
            made.map_err(|error| failed(source, &error))?;
        }
        "FileOrCreate" | "File" if !is(fs::Metadata::is_file) => return refuse("a file"),
        "Socket" if !is(|meta| meta.file_type().is_socket()) => return refuse("a socket file"),
        "CharDevice" if !is(|meta| meta.file_type().is_char_device()) => return refuse("a character device"),
        "BlockDevice" if !is(|meta| meta.file_type().is_block_device()) => return refuse("a block device"),
        _ => {}
    }
    Ok(path)
}

fn failed(source: &HostPathVolumeSource, error: &io::Error) -> VolumeError {
    VolumeError::later(format!("cannot create {}: {error}", source.path))
}
