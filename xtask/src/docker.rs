//! A Docker engine for the tests: the one that answers on this machine, or else one started for them, with a directory
//! and a socket of its own, which ends and leaves nothing when it is dropped. An engine that was there is left alone.

use crate::tools;
use anyhow::{Context, Result, bail};
use std::ffi::OsString;
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

const START_SECONDS_MAX: u64 = 60;
const STOP_SECONDS_MAX: u64 = 60;
const DEFAULT_SOCKET: &str = "/var/run/docker.sock";

/// Ways to start one, tried in turn: as usual, then as in a container that may not touch the packet filter.
const WAYS: [&[&str]; 2] = [&[], &["--iptables=false", "--ip6tables=false", "--ip-masq=false"]];

/// An engine that answers.
pub enum Engine {
    /// It was there before.
    Found,
    /// It is ours, and ends with this value.
    Started(Own),
}

/// A `dockerd` of this run alone.
pub struct Own {
    process: Child,
    /// Removed after the process has ended and its mounts are gone.
    dir: Option<TempDir>,
}

/// Finds or starts an engine.
pub fn engine() -> Result<Engine> {
    let host = std::env::var("DOCKER_HOST").ok().filter(|host| !host.is_empty());
    let socket = match &host {
        None => PathBuf::from(DEFAULT_SOCKET),
        Some(host) => match host.strip_prefix("unix://") {
            Some(path) => path.into(),
            None => return Ok(Engine::Found), // the user's word, over a network
        },
    };
    if answers(&socket) {
        return Ok(Engine::Found);
    }
    if !tools::is_root() {
        bail!("no engine answers on {} and starting one takes root", socket.display());
    }
    let dockerd = tools::find("dockerd").context("there is no dockerd")?;
    let mut said = String::new();
    for flags in WAYS {
        match start(&dockerd, flags) {
            Ok(own) => return Ok(Engine::Started(own)),
            Err(error) => said = format!("dockerd {}: {error:#}", flags.join(" ")),
        }
    }
    bail!(said)
}

impl Engine {
    /// What `DOCKER_HOST` must be to reach it, where that is not so already.
    pub fn host(&self) -> Option<OsString> {
        let Self::Started(own) = self else { return None };
        let mut host = OsString::from("unix://");
        host.push(socket_in(own.dir.as_ref()?.path()));
        Some(host)
    }
}

fn socket_in(dir: &Path) -> PathBuf {
    dir.join("docker.sock")
}

/// In a session of its own, so that an interrupt of the tests does not reach it before its containers are gone; it
/// ends with this process even if that is killed.
fn start(dockerd: &Path, flags: &[&str]) -> Result<Own> {
    // not /tmp, which may be a memory file system that images do not fit into
    let dir = tempfile::Builder::new().prefix("coracle-docker-").tempdir_in("/var/tmp")?;
    let log = File::create(dir.path().join("log"))?;
    let at = |name: &str| dir.path().join(name);
    let mut host = OsString::from("unix://");
    host.push(socket_in(dir.path()));
    let process = Command::new("setsid")
        .args(["setpriv", "--pdeathsig", "TERM"])
        .arg(dockerd)
        .arg("--data-root")
        .arg(at("data"))
        .arg("--exec-root")
        .arg(at("exec"))
        .arg("--pidfile")
        .arg(at("pid"))
        .arg("--host")
        .arg(host)
        .args(flags)
        .env_remove("DOCKER_HOST")
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .context("run setsid setpriv dockerd")?;
    let mut own = Own { process, dir: Some(dir) };
    own.wait()?;
    Ok(own)
}

impl Own {
    fn wait(&mut self) -> Result<()> {
        let dir = self.dir.as_ref().context("it has ended")?.path();
        let begun = Instant::now();
        loop {
            if answers(&socket_in(dir)) {
                return Ok(());
            }
            let ended = self.process.try_wait()?;
            if ended.is_some() || begun.elapsed() > Duration::from_secs(START_SECONDS_MAX) {
                let log = std::fs::read_to_string(dir.join("log")).unwrap_or_default();
                let lines: Vec<&str> = log.lines().rev().take(3).collect();
                let last = lines.into_iter().rev().collect::<Vec<_>>().join(" | ");
                bail!("{}: {last}", if ended.is_some() { "it ended" } else { "it does not answer" });
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// SIGTERM, and after a while SIGKILL for it and its containerd.
    fn stop(&mut self, dir: &Path) -> Result<()> {
        signal("-TERM", self.process.id())?;
        let begun = Instant::now();
        while self.process.try_wait()?.is_none() {
            if begun.elapsed() > Duration::from_secs(STOP_SECONDS_MAX) {
                self.process.kill()?;
                self.process.wait()?;
                let containerd = std::fs::read_to_string(dir.join("exec/containerd/containerd.pid"))?;
                signal("-KILL", containerd.trim().parse()?)?;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        let Some(dir) = self.dir.take() else { return };
        if let Err(error) = self.stop(dir.path()) {
            eprintln!("stop dockerd: {error:#}");
        }
        unmount_all(dir.path());
        if let Err(error) = dir.close() {
            eprintln!("{error}");
        }
    }
}

/// Whatever is still mounted in a directory, the innermost first; an engine leaves a namespace or two.
fn unmount_all(dir: &Path) {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let points = table.lines().filter_map(|line| line.split(' ').nth(4)).map(Path::new);
    let mut inside: Vec<&Path> = points.filter(|point| point.starts_with(dir)).collect();
    inside.sort_by_key(|point| std::cmp::Reverse(point.as_os_str().len()));
    for point in inside {
        // what stays mounted is told of when the directory cannot be removed
        let _ = Command::new("umount").arg("--lazy").arg(point).status();
    }
}

fn signal(which: &str, pid: u32) -> Result<()> {
    Command::new("kill").args([which, &pid.to_string()]).status().context("run kill")?;
    Ok(())
}

/// Whether an engine says that it is well.
fn answers(socket: &Path) -> bool {
    ask(socket).is_ok_and(|answer| answer.starts_with("HTTP/1.1 200"))
}

fn ask(socket: &Path) -> std::io::Result<String> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    stream.write_all(b"GET /_ping HTTP/1.1\r\nhost: docker\r\nconnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.take(4096).read_to_end(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}
