//! A Docker engine of one test alone, which may be killed. It leaves the packet filter to the engine of this machine.

use super::docker::Busybox;
use super::programs::{bounded, feed};
use super::server::unmount_all;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use tempfile::TempDir;

/// A `dockerd` with a directory of its own; both go with this value.
pub struct Engine {
    dir: TempDir,
    process: Mutex<Option<Child>>,
}

impl Engine {
    /// Starts one and gives it the image of the tests.
    pub fn start(busybox: &Busybox) -> Self {
        // not /tmp, which may be a memory file system that images do not fit into
        let dir = tempfile::Builder::new().prefix("coracle-engine-").tempdir_in("/var/tmp").unwrap();
        let engine = Self { dir, process: Mutex::new(None) };
        engine.run();
        let tar = engine.at("image.tar");
        busybox.save(&tar);
        engine.docker(&["load".as_ref(), "--input".as_ref(), tar.as_os_str()]);
        engine
    }

    /// What `DOCKER_HOST` is to be.
    pub fn host(&self) -> String {
        format!("unix://{}", self.at("docker.sock").display())
    }

    /// Starts it on what its directory holds, and waits until it answers.
    pub fn run(&self) {
        let log = std::fs::File::options().create(true).append(true).open(self.at("log")).unwrap();
        let process = Command::new("dockerd")
            .arg("--data-root")
            .arg(self.at("data"))
            .arg("--exec-root")
            .arg(self.at("exec"))
            .arg("--pidfile")
            .arg(self.at("pid"))
            .args(["--host", &self.host(), "--iptables=false", "--ip6tables=false"])
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .expect("dockerd is installed by cargo xtask test");
        *self.process.lock().unwrap() = Some(process);
        super::until("the engine answers", || {
            feed(bounded(Path::new("docker")).args(["--host", &self.host(), "version"]), b"")
                .status
                .success()
                .then_some(())
        });
    }

    /// SIGKILL for it and its containerd, as when the machine's memory runs out.
    pub fn kill(&self) {
        let Some(mut process) = self.process.lock().unwrap().take() else { return };
        let _ = process.kill();
        let _ = process.wait();
        if let Ok(pid) = std::fs::read_to_string(self.at("exec/containerd/containerd.pid")) {
            let _ = Command::new("kill").args(["-KILL", pid.trim()]).status();
            super::until("containerd is gone", || {
                (!Path::new(&format!("/proc/{}/exe", pid.trim())).exists()).then_some(())
            });
        }
        // the next one takes what it finds for a running engine
        for name in ["pid", "exec/containerd/containerd.pid"] {
            let _ = std::fs::remove_file(self.at(name));
        }
    }

    /// SIGTERM, and waits for the end, which stops the containers.
    pub fn stop(&self) {
        let Some(mut process) = self.process.lock().unwrap().take() else { return };
        let _ = Command::new("kill").arg(process.id().to_string()).status();
        let _ = process.wait();
    }

    /// Runs Docker's client on this engine, which must succeed; its stdout.
    pub fn docker(&self, arguments: &[&OsStr]) -> String {
        let host = self.host();
        let output = feed(bounded(Path::new("docker")).args(["--host", &host]).args(arguments), b"");
        assert!(output.status.success(), "docker {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // one that was killed has left containers, which only an engine ends
        if self.process.lock().is_ok_and(|process| process.is_none()) && !std::thread::panicking() {
            self.run();
        }
        self.stop();
        unmount_all(self.dir.path());
    }
}
