//! An OCI registry on loopback: Debian's docker-registry, with or without a password.

use super::docker::docker;
use super::free_port;
use std::net::{Ipv4Addr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use tempfile::TempDir;

/// A registry that ends with this value.
pub struct Registry {
    dir: TempDir,
    port: u16,
    process: Child,
}

impl Registry {
    /// Who may use a registry with a password.
    pub const USER: &str = "tester";
    /// That user's password.
    pub const PASSWORD: &str = "secret";
    /// Its bcrypt hash, the only kind that the registry takes.
    const HASH: &str = "$2b$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a";

    /// One that asks nobody who he is.
    pub fn open() -> Self {
        Self::start("")
    }

    /// One that wants a password (HTTP basic authentication).
    pub fn guarded() -> Self {
        Self::start("auth: {htpasswd: {realm: test, path: HTPASSWD}}\n")
    }

    fn start(auth: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let port = free_port();
        let htpasswd = dir.path().join("htpasswd");
        std::fs::write(&htpasswd, format!("{}:{}\n", Self::USER, Self::HASH)).unwrap();
        let config = dir.path().join("config.yml");
        let storage = dir.path().join("storage");
        let text = format!(
            "version: 0.1\nlog: {{level: error}}\n\
             storage: {{filesystem: {{rootdirectory: {}}}, delete: {{enabled: true}}}}\n\
             http: {{addr: \"127.0.0.1:{port}\"}}\n{}",
            storage.display(),
            auth.replace("HTPASSWD", htpasswd.to_str().unwrap())
        );
        std::fs::write(&config, text).unwrap();
        let process = Command::new("docker-registry")
            .arg("serve")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(dir.path().join("log")).unwrap())
            .spawn()
            .expect("docker-registry is installed by cargo xtask test");
        let registry = Self { dir, port, process };
        super::until("the registry listens", || TcpStream::connect((Ipv4Addr::LOCALHOST, port)).ok());
        registry
    }

    /// Host and port, as an image's name begins.
    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Changes one byte in every blob that is large, so that none has its digest any more.
    pub fn spoil(&self) {
        let mut folders = vec![self.dir.path().join("storage")];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
                let path = entry.path();
                if path.is_dir() {
                    folders.push(path);
                } else if path.ends_with("data") && entry.metadata().unwrap().len() > 10_000 {
                    let mut bytes = std::fs::read(&path).unwrap();
                    bytes[5_000] ^= 1;
                    std::fs::write(&path, bytes).unwrap();
                }
            }
        }
    }

    /// What Docker's clients keep a password in.
    pub fn docker_config(&self) -> String {
        // base64 of USER:PASSWORD
        format!("{{\"auths\":{{\"{}\":{{\"auth\":\"dGVzdGVyOnNlY3JldA==\"}}}}}}", self.host())
    }

    /// Pushes a local image of Docker's under that name of this registry, and forgets the name locally; the name to pull.
    pub fn push(&self, image: &str, name: &str) -> String {
        let target = format!("{}/{name}", self.host());
        docker(&["tag", image, &target]);
        self.docker_as_user(&["login", "--username", Self::USER, "--password", Self::PASSWORD, &self.host()]);
        self.docker_as_user(&["push", "--quiet", &target]);
        docker(&["rmi", &target]);
        target
    }

    /// Docker's client with a configuration that holds only this registry's password.
    fn docker_as_user(&self, arguments: &[&str]) {
        let config: &Path = &self.dir.path().join("docker");
        docker(&[&["--config", config.to_str().unwrap()], arguments].concat());
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        // it may have ended by itself
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
