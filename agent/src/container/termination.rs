//! What a container says at its end: the file at `terminationMessagePath`, or the end of its log.

use super::Started;
use super::guest::Guest;
use k8s_openapi::api::core::v1::Container;
use runtime::logs::LogFile;
use runtime::{Exit, Mount};
use std::fs::Permissions;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Bytes of the file that are shown.
const MESSAGE_BYTES_MAX: u64 = 4096;
/// Bytes and lines of the log that stand in for it.
const LOG_BYTES_MAX: usize = 2048;
const LOG_LINES_MAX: u64 = 80;
/// Kubernetes' default of `terminationMessagePath`.
pub const PATH: &str = "/dev/termination-log";

/// The file of one instance of a container, on the node.
pub fn file(pod_dir: &Path, container: &str, instance: u32) -> PathBuf {
    pod_dir.join("containers").join(container).join(instance.to_string()).join("message")
}

/// Where a container says it.
pub struct LastWords {
    file: PathBuf,
    log: Option<LogFile>,
    falls_back: bool,
}

impl LastWords {
    /// Of a container that runs.
    pub fn of(container: &Container, started: &Started) -> Self {
        Self {
            file: started.messages.clone(),
            log: started.log.clone(),
            falls_back: container.termination_message_policy.as_deref() == Some("FallbackToLogsOnError"),
        }
    }

    /// The message, if there is one. The file is taken even when the container could not be run to its end.
    pub async fn read(self, guest: &Guest, exit: &Exit) -> Option<String> {
        let file = self.file;
        let read = tokio::task::spawn_blocking(move || {
            let mut text = Vec::new();
            std::fs::File::open(file)?.take(MESSAGE_BYTES_MAX).read_to_end(&mut text)?;
            std::io::Result::Ok(text)
        });
        let text = read.await.ok().and_then(Result::ok).unwrap_or_default();
        if !text.is_empty() {
            return Some(String::from_utf8_lossy(&text).into_owned());
        }
        if !self.falls_back || exit.code == 0 {
            return None;
        }
        let tail = guest.log_tail(self.log.as_ref(), LOG_LINES_MAX, LOG_BYTES_MAX).await;
        (!tail.is_empty()).then_some(tail)
    }
}

/// Makes the empty message file of an instance and forgets those of its predecessors. Blocking.
pub fn make(file: &Path) -> std::io::Result<()> {
    let Some(dir) = file.parent() else { return Ok(()) };
    if let Some(instances) = dir.parent() {
        match std::fs::remove_dir_all(instances) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    std::fs::create_dir_all(dir)?;
    std::fs::write(file, "")?;
    // whoever the container runs as
    std::fs::set_permissions(file, Permissions::from_mode(0o666))
}

/// Shows the message file to a Wasm guest, which sees directories: the one that holds only it, under the name of the path's own.
/// `None` where the guest sees another directory there, in which it may write itself. Blocking.
pub fn show(file: &Path, path: &str, mounts: &[Mount]) -> std::io::Result<Option<Mount>> {
    let (parent, name) = path.trim_end_matches('/').rsplit_once('/').unwrap_or(("", path));
    let parent = if parent.is_empty() { "/" } else { parent };
    if name.is_empty() || mounts.iter().any(|mount| mount.guest.trim_end_matches('/') == parent) {
        return Ok(None);
    }
    make(file)?;
    let Some(dir) = file.parent() else { return Ok(None) };
    let shown = dir.join("shown");
    std::fs::create_dir_all(&shown)?;
    std::fs::hard_link(file, shown.join(name))?;
    Mount::open(&shown, parent, false).map(Some)
}
