//! hostPath volumes: the node's own files, after the checks that `type` asks for.

use super::VolumeError;
use k8s_openapi::api::core::v1::HostPathVolumeSource;
use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Checks, and where asked makes, the path.
pub fn lay(source: &HostPathVolumeSource) -> Result<PathBuf, VolumeError> {
    let path = PathBuf::from(&source.path);
    let refuse =
        |what: &str| Err(VolumeError::later(format!("hostPath type check failed: {} is not {what}", source.path)));
    let found = fs::metadata(&path).ok();
    let is = |check: fn(&fs::Metadata) -> bool| found.as_ref().is_some_and(check);
    match source.type_.as_deref().unwrap_or_default() {
        // what Kubernetes leaves to the container runtime
        "" if fs::symlink_metadata(&path).is_err() => make(source, &path)?,
        "" => {}
        "DirectoryOrCreate" if found.is_none() => make(source, &path)?,
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

fn make(source: &HostPathVolumeSource, path: &Path) -> Result<(), VolumeError> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o755).create(path);
    made.map_err(|error| failed(source, &error))
}

fn failed(source: &HostPathVolumeSource, error: &io::Error) -> VolumeError {
    VolumeError::later(format!("cannot create {}: {error}", source.path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_type_is_checked_in_the_kubelets_words() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name).display().to_string();
        fs::create_dir(at("dir")).unwrap();
        fs::write(at("file"), "").unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
        let cases = [
            ("Directory", "dir", None),
            ("Directory", "file", Some("a directory")),
            ("Directory", "none", Some("a directory")),
            ("DirectoryOrCreate", "made/below", None),
            ("DirectoryOrCreate", "file", Some("a directory")),
            ("File", "file", None),
            ("File", "dir", Some("a file")),
            ("FileOrCreate", "made-file", None),
            ("FileOrCreate", "dir", Some("a file")),
            ("Socket", "socket", None),
            ("Socket", "file", Some("a socket file")),
            ("CharDevice", "file", Some("a character device")),
            ("BlockDevice", "file", Some("a block device")),
            ("", "anything", None),
        ];
        for (kind, name, fault) in cases {
            let source = HostPathVolumeSource { path: at(name), type_: Some(kind.into()) };
            let expected = fault.map(|fault| format!("hostPath type check failed: {} is not {fault}", at(name)));
            assert_eq!(lay(&source).err().map(|error| error.message), expected, "{kind} {name}");
        }
        assert!(root.path().join("made/below").is_dir() && root.path().join("made-file").is_file());
        assert!(root.path().join("anything").is_dir());
        let device = HostPathVolumeSource { path: "/dev/null".into(), type_: Some("CharDevice".into()) };
        assert!(lay(&device).is_ok());
    }
}
