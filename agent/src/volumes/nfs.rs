//! Network file systems, mounted by the host's own `mount`.

use super::{Laid, VolumeError, disk, mountpoints};
use cap_std::fs::Dir;
use k8s_openapi::api::core::v1::NFSVolumeSource;
use std::io::Read;
use std::net::Ipv6Addr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// A server that does not answer for so long is tried again later.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often it is asked whether the command has ended.
const PAUSE: Duration = Duration::from_millis(20);
/// What of the command's output is told.
const OUTPUT_BYTES_MAX: u64 = 2048;

/// Mounts a share below `pod_dir`, whose handle is `root`. What is mounted already stays.
pub fn lay(
    root: &Dir,
    pod_dir: &Path,
    name: &str,
    source: &NFSVolumeSource,
    options: &[String],
    read_only: bool,
) -> Result<Laid, VolumeError> {
    if !mountpoints::may_mount() {
        return Err(VolumeError::unsupported(
            "this node may not mount network file systems: it runs without privilege",
        ));
    }
    let place = format!("volumes/kubernetes.io~nfs/{name}");
    root.create_dir_all(&place).map_err(|error| disk(&error))?;
    let path = pod_dir.join(place);
    let read_only = read_only || source.read_only == Some(true);
    if !mountpoints::is_mounted(&path).map_err(|error| disk(&error))? {
        mount(source, options, read_only, &path)?;
    }
    Ok(Laid { path, read_only })
}

/// The arguments of the command.
fn arguments(source: &NFSVolumeSource, options: &[String], read_only: bool, path: &Path) -> Vec<String> {
    let server = match source.server.parse::<Ipv6Addr>() {
        Ok(address) => format!("[{address}]"),
        Err(_) => source.server.clone(),
    };
    let mut all = options.to_vec();
    if read_only {
        all.push("ro".into());
    }
    let mut arguments = vec!["-t".into(), "nfs".into()];
    if !all.is_empty() {
        arguments.extend(["-o".into(), all.join(",")]);
    }
    arguments.extend([format!("{server}:{}", source.path), path.display().to_string()]);
    arguments
}

fn mount(source: &NFSVolumeSource, options: &[String], read_only: bool, path: &Path) -> Result<(), VolumeError> {
    if source.server.starts_with('-') {
        return Err(VolumeError::unsupported(format!("invalid server: {:?}", source.server)));
    }
    let arguments = arguments(source, options, read_only, path);
    let failed = |status: &str, output: &str| {
        let arguments = arguments.join(" ");
        let told = format!(
            "mount failed: {status}\nMounting command: mount\nMounting arguments: {arguments}\nOutput: {output}"
        );
        VolumeError::later(told.trim_end().to_owned())
    };
    let mut command = Command::new("mount");
    command.args(&arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|error| failed(&error.to_string(), ""))?;
    let until = Instant::now() + PATIENCE;
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if Instant::now() < until => std::thread::sleep(PAUSE),
            _ => {
                let _ = child.kill();
                // a helper that waits for a dead server ends when it likes
                std::thread::spawn(move || child.wait());
                return Err(failed("timed out", "the server did not answer"));
            }
        }
    };
    if status.success() {
        return Ok(());
    }
    let mut output = String::new();
    if let Some(stderr) = child.stderr.take() {
        let _ = stderr.take(OUTPUT_BYTES_MAX).read_to_string(&mut output);
    }
    Err(failed(&format!("exit status {}", status.code().unwrap_or(-1)), output.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_mount_is_told_what_the_spec_says() {
        let source = |server: &str| NFSVolumeSource { server: server.into(), path: "/share".into(), read_only: None };
        let text = |server, options: &[&str], read_only| {
            let options: Vec<String> = options.iter().map(|option| (*option).to_owned()).collect();
            arguments(&source(server), &options, read_only, Path::new("/v")).join(" ")
        };
        assert_eq!(text("nas", &[], false), "-t nfs nas:/share /v");
        assert_eq!(
            text("fd00::1", &["nfsvers=4.1", "hard"], true),
            "-t nfs -o nfsvers=4.1,hard,ro [fd00::1]:/share /v"
        );
        assert!(mount(&source("-oloop"), &[], false, Path::new("/v")).is_err());
    }

    #[test]
    fn a_server_that_is_not_there_is_said_in_the_kubelets_words() {
        if !mountpoints::may_mount() {
            return println!("not run: needs the right to mount");
        }
        let pod = tempfile::tempdir().unwrap();
        let root = Dir::open_ambient_dir(pod.path(), cap_std::ambient_authority()).unwrap();
        let source = NFSVolumeSource { server: "127.0.0.1".into(), path: "/none".into(), read_only: None };
        let options = ["nfsvers=4".to_owned(), "soft".to_owned(), "timeo=1".to_owned(), "retry=0".to_owned()];
        let error = lay(&root, pod.path(), "v", &source, &options, false).unwrap_err();
        assert!(error.message.starts_with("mount failed: "), "{error}");
        assert!(error.message.contains("127.0.0.1:/none"), "{error}");
    }
}
