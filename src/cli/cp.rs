//! `cp`: files and directories to a container and back, as a tar stream through `exec`.
//!
//! The container's own `tar` is the other end, called exactly as kubectl calls it. Local archives are made in `cp_pack` and
//! opened in `cp_unpack`. Deliberately absent: links on the way here, which could lead anywhere; they are skipped and named.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use serde_json::Value;
use tokio::sync::mpsc;

use super::exec;
use super::failure::{Failure, Result, fail};
use super::session::Session;
use super::stream::target;
use super::{cp_pack, cp_unpack};

/// How many pieces of an archive wait between the network and the disk.
const PIECES_MAX: usize = 16;

/// Flags of `cp`.
#[derive(Debug, clap::Args)]
pub struct CpArgs {
    /// SOURCE and DESTINATION, one of them [[NAMESPACE/]POD:]PATH
    words: Vec<String>,
    /// Container name; the default is the pod's default container, or its first
    #[arg(short = 'c', long)]
    container: Option<String>,
    /// The copied files' ownership and permissions will not be preserved in the container
    #[arg(long)]
    no_preserve: bool,
    /// How often a copy from a container is taken up again where it broke off; negative is without end
    #[arg(long, default_value_t = 0, allow_hyphen_values = true)]
    retries: i64,
}

/// One side of a copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// A path of this machine.
    Local(String),
    /// A path in a container of a pod.
    Remote {
        /// The pod's namespace, if it was named.
        namespace: Option<String>,
        /// The pod.
        pod: String,
        /// The path, with `/` between its parts and none at its end.
        path: String,
    },
}

impl Place {
    /// Reads `path`, `pod:path` or `namespace/pod:path`.
    pub fn parse(text: &str) -> Result<Place> {
        const FORM: &str = "filespec must match the canonical format: [[namespace/]pod:]file/path";
        let Some((pod, path)) = text.split_once(':') else { return Ok(Place::Local(without_slash(text))) };
        let path = without_slash(path).replace('\\', "/");
        match pod.split('/').collect::<Vec<_>>().as_slice() {
            [""] => fail(FORM),
            [pod] => Ok(Place::Remote { namespace: None, pod: (*pod).into(), path }),
            [namespace, pod] => Ok(Place::Remote { namespace: Some((*namespace).into()), pod: (*pod).into(), path }),
            _ => fail(FORM),
        }
    }

    fn path(&self) -> &str {
        match self {
            Place::Local(path) | Place::Remote { path, .. } => path,
        }
    }
}

fn without_slash(path: &str) -> String {
    match path.strip_suffix('/') {
        Some(rest) if !rest.is_empty() => rest.to_string(),
        _ => path.to_string(),
    }
}

/// Carries it out.
pub async fn run(session: &Session, args: CpArgs) -> Result<()> {
    let [source, destination] = args.words.as_slice() else { return fail("source and destination are required") };
    let (source, destination) = (Place::parse(source)?, Place::parse(destination)?);
    if matches!((&source, &destination), (Place::Remote { .. }, Place::Remote { .. })) {
        return fail("one of src or dest must be a local file specification");
    }
    if source.path().is_empty() || destination.path().is_empty() {
        return fail("filepath can not be empty");
    }
    match (source, destination) {
        (Place::Remote { namespace, pod, path }, Place::Local(local)) => {
            let (pod, container) = find(session, namespace, &pod, &args).await?;
            from_pod(session, &pod, &container, &path, Path::new(&local), args.retries).await
        }
        (Place::Local(local), Place::Remote { namespace, pod, path }) => {
            if std::fs::symlink_metadata(&local).is_err() {
                return fail(format!("{local} doesn't exist in local filesystem"));
            }
            let (pod, container) = find(session, namespace, &pod, &args).await?;
            to_pod(session, &pod, &container, PathBuf::from(local), &path, args.no_preserve).await
        }
        _ => fail("one of src or dest must be a remote file specification"),
    }
}

async fn find(session: &Session, namespace: Option<String>, pod: &str, args: &CpArgs) -> Result<(Value, String)> {
    let resource = session.resource("pods").await?;
    let namespace = namespace.unwrap_or_else(|| session.namespace.clone());
    let pod = session.client.get(&resource.path(Some(&namespace), pod)).await?;
    if target::is_over(&pod) {
        let phase = pod["status"]["phase"].as_str().unwrap_or_default();
        return fail(format!("cannot exec into a container in a completed pod; current phase is {phase}"));
    }
    let container = match args.container.clone().filter(|name| !name.is_empty()) {
        Some(name) => name,
        None => target::container(&pod, None, false)?,
    };
    Ok((pod, container))
}

async fn to_pod(
    session: &Session,
    pod: &Value,
    container: &str,
    local: PathBuf,
    remote: &str,
    no_preserve: bool,
) -> Result<()> {
    let test = ["test", "-d", remote].map(str::to_string);
    let is_directory = match exec::silently(session, pod, container, &test).await {
        Ok(()) => true,
        Err(Failure::Unreachable { message }) => return Err(Failure::Unreachable { message }),
        Err(_) => false,
    };
    let (directory, name) = aim(&local, remote, is_directory);
    let mut command = vec!["tar".to_string()];
    if no_preserve {
        command.extend(["--no-same-permissions", "--no-same-owner"].map(str::to_string));
    }
    command.extend(["-xmf", "-", "-C", &directory].map(str::to_string));
    let (sender, receiver) = mpsc::channel::<Bytes>(PIECES_MAX);
    let packing = tokio::task::spawn_blocking(move || cp_pack::pack(&local, &name, cp_pack::Pipe::new(sender)));
    let sent = exec::piped(session, pod, container, &command, Some(receiver), None).await;
    let packed = packing.await.map_err(|error| Failure::Text(format!("making the archive: {error}")))?;
    match (sent, packed) {
        (Ok(()), Err(error)) => fail(error.to_string()),
        (sent, _) => sent,
    }
}

/// The directory that the container's `tar` works in, and the name of the copy in it.
fn aim(local: &Path, remote: &str, is_directory: bool) -> (String, String) {
    let mut path = clean(remote);
    if is_directory {
        let base = local.canonicalize().unwrap_or_else(|_| local.to_path_buf());
        // The name as it was given counts, unless it is no name (`.`, `..`).
        let base = local.file_name().or_else(|| base.file_name()).unwrap_or_default().to_string_lossy().into_owned();
        path = clean(&format!("{path}/{base}"));
    }
    match path.rsplit_once('/') {
        Some(("", name)) => ("/".into(), name.into()),
        Some((directory, name)) => (directory.into(), name.into()),
        None => (".".into(), path),
    }
}

async fn from_pod(
    session: &Session,
    pod: &Value,
    container: &str,
    remote: &str,
    local: &Path,
    retries: i64,
) -> Result<()> {
    let (sender, receiver) = mpsc::channel::<Bytes>(PIECES_MAX);
    let unpack = {
        let (prefix, local) = (prefix_of(remote), local.to_path_buf());
        let again = format!(
            "coracle exec -n {:?} {:?} -- tar cf - {remote:?} | tar xf -",
            super::session::namespace_of(pod).unwrap_or(&session.namespace),
            super::session::name_of(pod)
        );
        tokio::task::spawn_blocking(move || cp_unpack::unpack(cp_unpack::Pipe::new(receiver), &prefix, &local, &again))
    };
    let fetched = fetch(session, pod, container, remote, sender, retries).await;
    let unpacked = unpack.await.map_err(|error| Failure::Text(format!("opening the archive: {error}")))?;
    fetched?;
    unpacked.map_err(|error| Failure::Text(error.to_string()))
}

/// Has the container make the archive; a stream that breaks off is taken up where it broke, as often as was asked for.
async fn fetch(
    session: &Session,
    pod: &Value,
    container: &str,
    remote: &str,
    archive: mpsc::Sender<Bytes>,
    retries: i64,
) -> Result<()> {
    let mut read: u64 = 0;
    let mut retry = 0;
    loop {
        let command: Vec<String> = if retries == 0 {
            ["tar", "cf", "-", remote].map(str::to_string).to_vec()
        } else {
            vec!["sh".into(), "-c".into(), format!("tar cf - {remote} | tail -c+{}", read + 1)]
        };
        let (sender, mut receiver) = mpsc::channel::<Bytes>(PIECES_MAX);
        let pass = async {
            let mut count = 0;
            while let Some(piece) = receiver.recv().await {
                count += piece.len() as u64;
                if archive.send(piece).await.is_err() {
                    break;
                }
            }
            count
        };
        let (outcome, count) = tokio::join!(exec::piped(session, pod, container, &command, None, Some(sender)), pass);
        read += count;
        match outcome {
            Ok(()) => return Ok(()),
            // Its own end says more: the archive was refused or the disk is full.
            Err(_) if archive.is_closed() => return Ok(()),
            Err(failure) if retries >= 0 && retry >= retries => {
                if retries > 0 {
                    eprintln!("Dropping out copy after {retry} retries");
                }
                return Err(failure);
            }
            Err(failure) => {
                retry += 1;
                eprintln!("{}", failure.message());
                eprintln!("Resuming copy at {read} bytes, retry {retry}/{retries}");
            }
        }
    }
}

/// What every name in the archive begins with: the path as `tar` writes it, without a leading slash and without ways up.
fn prefix_of(remote: &str) -> String {
    let path = clean(remote.trim_start_matches('/'));
    let mut rest = path.as_str();
    loop {
        rest = match rest {
            "." | ".." => "",
            other => match other.strip_prefix("../") {
                Some(shorter) => shorter,
                None => return rest.to_string(),
            },
        };
    }
}

/// Go's `path.Clean`: the shortest path that means the same without asking a disk.
pub fn clean(path: &str) -> String {
    let rooted = path.starts_with('/');
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." if parts.last().is_some_and(|last| *last != "..") => {
                parts.pop();
            }
            ".." if rooted => {}
            part => parts.push(part),
        }
    }
    match (rooted, parts.is_empty()) {
        (true, _) => format!("/{}", parts.join("/")),
        (false, true) => ".".into(),
        (false, false) => parts.join("/"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places() {
        let remote = |namespace: Option<&str>, pod: &str, path: &str| Place::Remote {
            namespace: namespace.map(str::to_string),
            pod: pod.into(),
            path: path.into(),
        };
        for (text, expected) in [
            ("a/b", Place::Local("a/b".into())),
            ("a/b/", Place::Local("a/b".into())),
            ("/", Place::Local("/".into())),
            ("p:/tmp/x/", remote(None, "p", "/tmp/x")),
            ("n/p:x", remote(Some("n"), "p", "x")),
            ("p:", remote(None, "p", "")),
            ("p:a\\b", remote(None, "p", "a/b")),
            ("p:a:b", remote(None, "p", "a:b")),
        ] {
            assert_eq!(Place::parse(text).unwrap(), expected, "{text}");
        }
        for text in [":x", "a/b/c:d"] {
            let message = Place::parse(text).unwrap_err().message();
            assert_eq!(message, "error: filespec must match the canonical format: [[namespace/]pod:]file/path");
        }
    }

    #[test]
    fn where_a_copy_goes() {
        let check = |local: &str, remote: &str, is_directory: bool, expected: (&str, &str)| {
            let (directory, name) = aim(Path::new(local), remote, is_directory);
            assert_eq!((directory.as_str(), name.as_str()), expected, "{local} {remote}");
        };
        check("a/file", "/tmp", true, ("/tmp", "file"));
        check("a/file", "/tmp/new", false, ("/tmp", "new"));
        check("a/file", "/", true, ("/", "file"));
        check("a/file", "new", false, (".", "new"));
        check("a/file", ".", true, (".", "file"));
        check("dir", "/data/../x", false, ("/", "x"));
    }

    #[test]
    fn prefixes() {
        for (remote, expected) in [
            ("/tmp/x", "tmp/x"),
            ("/", ""),
            (".", ""),
            ("..", ""),
            ("../../x", "x"),
            ("a/../b", "b"),
            ("/tmp/", "tmp"),
            ("//etc//passwd", "etc/passwd"),
        ] {
            assert_eq!(prefix_of(remote), expected, "{remote}");
        }
    }
}
