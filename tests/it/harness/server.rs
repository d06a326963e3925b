//! A `coracle server` process with what it needs, and nothing left of it afterwards.

use super::docker::{containers_of, docker, owner, remove_all_of};
use super::fleet::ordinary_user;
use super::{Busybox, PATIENCE, User, free_port, root};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Other networks are tried when somebody else turns out to use those.
const TRIES_MAX: u32 = 5;
const READY: &str = r#"jsonpath={.status.conditions[?(@.type=="Ready")].status}"#;

/// A server, running or between two runs.
pub struct Server {
    dir: TempDir,
    ports: Ports,
    networks: Networks,
    /// What it is told to be known as; else it finds out.
    address: Option<Ipv4Addr>,
    process: Mutex<Option<Child>>,
    engine: Engine,
}

/// Which Docker it has.
enum Engine {
    /// None, and no privilege: it lives in loopback networks.
    Unprivileged,
    /// The same as an ordinary user, and other machines reach it at that address.
    Rootless(Ipv4Addr),
    /// The one of this machine, with the image of the tests.
    Shared { _busybox: Busybox },
    /// The one, if any, at that `DOCKER_HOST`.
    At(String),
}

struct Ports {
    api: u16,
    http: u16,
    https: u16,
}

pub struct Networks {
    pods: String,
    services: String,
    /// The part of the pods' network that the server's own node has without Docker.
    user_space: String,
    /// The part that Docker has.
    bridge: String,
    /// A /24 network for machines.
    pub site: Ipv4Addr,
}

impl Server {
    /// One that needs no privilege.
    pub fn start_loopback() -> Self {
        let server = Self::prepare(Networks::loopback(), Engine::Unprivileged);
        server.run();
        server
    }

    /// One of an ordinary user, which other machines reach at that address.
    pub fn start_rootless_at(address: Ipv4Addr) -> Self {
        let server = Self::prepare(Networks::loopback(), Engine::Rootless(address));
        server.run();
        server
    }

    /// One with routes, a bridge and this machine's Docker.
    pub fn start_privileged() -> Self {
        Self::start_with(|| Engine::Shared { _busybox: Busybox::make() })
    }

    /// The same with the Docker, if any, at that `DOCKER_HOST`.
    pub fn start_at(host: &str) -> Self {
        Self::start_with(|| Engine::At(host.to_owned()))
    }

    /// One with this machine's Docker, in these networks and known under that address.
    pub fn start_at_address(networks: Networks, address: Ipv4Addr) -> Self {
        let mut server = Self::prepare(networks, Engine::Shared { _busybox: Busybox::make() });
        server.address = Some(address);
        server.run();
        server
    }

    fn start_with(engine: impl Fn() -> Engine) -> Self {
        for _ in 1..TRIES_MAX {
            let server = Self::prepare(Networks::unused(), engine());
            if server.try_run() {
                return server;
            }
            eprintln!("{:?} does not start, trying others:\n{}", server.networks.pods, server.log());
        }
        let server = Self::prepare(Networks::unused(), engine());
        server.run();
        server
    }

    fn prepare(networks: Networks, engine: Engine) -> Self {
        Self {
            dir: tempfile::Builder::new().prefix("coracle-it-").tempdir().unwrap(),
            ports: Ports { api: free_port(), http: free_port(), https: free_port() },
            networks,
            address: None,
            process: Mutex::new(None),
            engine,
        }
    }

    /// Starts it, on what its directory holds, and waits until its node is ready.
    pub fn run(&self) {
        assert!(self.try_run(), "the server does not start\n{}", self.log());
    }

    fn try_run(&self) -> bool {
        let log = std::fs::File::options().create(true).append(true).open(self.log_file()).unwrap();
        let address = if let Engine::Unprivileged = self.engine { "127.0.0.1" } else { "0.0.0.0" };
        let mut words = Vec::new();
        if let Engine::Rootless(_) = self.engine {
            words = ordinary_user(self.dir.path());
        }
        words.push(env!("CARGO_BIN_EXE_coracle").to_owned());
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]);
        if let Engine::Rootless(reached) = self.engine {
            command.args(["server", "--tls-san", &reached.to_string()]);
        } else {
            command.arg("server");
        }
        if let Engine::At(host) = &self.engine {
            command.env("DOCKER_HOST", host);
        }
        if let Some(address) = self.address {
            command.env("CORACLE_NODE_IP", address.to_string());
        }
        let process = command
            .arg("--data-dir")
            .arg(self.data_dir())
            .arg("--write-kubeconfig")
            .arg(self.kubeconfig())
            .args(["--bind-address", address, "--https-listen-port", &self.ports.api.to_string()])
            .args(["--ingress-http-port", &self.ports.http.to_string()])
            .args(["--ingress-https-port", &self.ports.https.to_string()])
            .args(["--cluster-cidr", &self.networks.pods, "--service-cidr", &self.networks.services])
            .args(["--node-name", "node"])
            .current_dir(root())
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        *self.process.lock().unwrap() = Some(process);
        let user = self.user();
        let begun = Instant::now();
        loop {
            if self.kubeconfig().exists() && user.try_kubectl(&["get", "node", "node", "-o", READY]) == "True" {
                return true;
            }
            let ended = self.process.lock().unwrap().as_mut().unwrap().try_wait().unwrap().is_some();
            if ended || begun.elapsed() > PATIENCE {
                return false;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// SIGKILL: no chance to tidy up.
    pub fn kill(&self) {
        let mut server = self.process.lock().unwrap().take().unwrap();
        server.kill().unwrap();
        server.wait().unwrap();
    }

    /// SIGTERM, and waits for the end.
    pub fn stop(&self) {
        let mut server = self.process.lock().unwrap().take().unwrap();
        assert!(Command::new("kill").arg(server.id().to_string()).status().unwrap().success());
        assert!(server.wait().unwrap().success());
    }

    /// The process's id.
    pub fn pid(&self) -> u32 {
        self.process.lock().unwrap().as_ref().unwrap().id()
    }

    /// Where the cluster keeps everything.
    pub fn data_dir(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// The port of the API.
    pub fn api_port(&self) -> u16 {
        self.ports.api
    }

    /// Where plain-text ingress traffic goes.
    pub fn ingress(&self) -> SocketAddr {
        ([127, 0, 0, 1], self.ports.http).into()
    }

    /// The ids of this node's Docker containers, also of those that have ended.
    pub fn containers(&self) -> Vec<String> {
        self.owner().map(|owner| containers_of(&owner)).unwrap_or_default()
    }

    /// What is mounted in its directory, the outermost first.
    pub fn mounts(&self) -> Vec<String> {
        mounts_in(self.dir.path())
    }

    /// The network interfaces that this host has on the node's bridge.
    pub fn links(&self) -> Vec<String> {
        let Some(owner) = self.owner() else { return Vec::new() };
        let network = format!("coracle-{owner}");
        let format = "{{index .Options \"com.docker.network.bridge.name\"}}";
        let bridge = docker(&["network", "inspect", "--format", format, &network]);
        let listed = ip(&["-oneline", "link", "show", "master", &bridge]);
        listed.lines().filter_map(|line| line.split(':').nth(1)).map(str::to_owned).collect()
    }

    /// The names of the folders that pods have on the node.
    pub fn pod_folders(&self) -> Vec<String> {
        let folders = std::fs::read_dir(self.data_dir().join("agent/pods")).into_iter().flatten();
        folders.map(|folder| folder.unwrap().file_name().to_string_lossy().into_owned()).collect()
    }

    /// How many files, sockets and namespaces the process has open.
    pub fn open_files(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.pid())).unwrap().count()
    }

    /// Somebody who uses it as its administrator.
    pub fn user(&self) -> User {
        User { dir: tempfile::tempdir().unwrap(), kubeconfig: self.kubeconfig(), log: self.log_file() }
    }

    fn is_privileged(&self) -> bool {
        !matches!(self.engine, Engine::Unprivileged | Engine::Rootless(_))
    }

    fn owner(&self) -> Option<String> {
        owner(&self.networks.bridge)
    }

    fn kubeconfig(&self) -> PathBuf {
        self.dir.path().join("kubeconfig")
    }

    fn log_file(&self) -> PathBuf {
        self.dir.path().join("server.log")
    }

    /// What it has said.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log_file()).unwrap_or_default()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(mut server) = self.process.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).take() {
            // it may have ended by itself, which is no reason to hide why the test fails
            let _ = server.kill();
            let _ = server.wait();
        }
        if matches!(self.engine, Engine::Shared { .. })
            && let Some(owner) = self.owner()
        {
            remove_all_of(&owner);
        }
        if self.is_privileged() {
            unmount_all(self.dir.path());
            for network in [&self.networks.user_space, &self.networks.services] {
                ip(&["route", "del", "local", network, "dev", "lo", "table", "local"]);
            }
            self.networks.remove_bridge();
        }
    }
}

impl Networks {
    fn loopback() -> Self {
        static TAKEN: AtomicU32 = AtomicU32::new(0);
        let pair = 192 + 2 * (TAKEN.fetch_add(1, Ordering::Relaxed) % 31);
        Self {
            pods: format!("127.{pair}.0.0/16"),
            services: format!("127.{}.0.0/16", pair + 1),
            user_space: String::new(),
            bridge: String::new(),
            site: Ipv4Addr::LOCALHOST,
        }
    }

    /// Networks of 10.64.0.0 and up that no route of this machine touches and no other test of this process has.
    pub fn unused() -> Self {
        static TAKEN: AtomicU32 = AtomicU32::new(0);
        // 10.64.0.0 to 10.255.255.255 in pieces of /19
        const PIECES: u32 = 192 * 8;
        let routes = ip(&["-4", "route", "show", "table", "all"]);
        loop {
            let turn = TAKEN.fetch_add(1, Ordering::Relaxed);
            assert!(turn < PIECES, "all networks are taken");
            let piece = (std::process::id().wrapping_mul(37) + turn) % PIECES;
            let (second, third) = (64 + piece / 8, 32 * (piece % 8));
            let first = Ipv4Addr::new(10, second as u8, third as u8, 0);
            if !routes.split_whitespace().any(|word| overlaps(word, first, 19)) {
                return Self {
                    pods: format!("{first}/20"),
                    // the server's node has the lower half of it, and Docker the upper half of that
                    user_space: format!("{first}/22"),
                    bridge: format!("10.{second}.{}.0/22", third + 4),
                    services: format!("10.{second}.{}.0/21", third + 16),
                    site: Ipv4Addr::new(10, second as u8, third as u8 + 24, 0),
                };
            }
        }
    }
}

impl Networks {
    /// An engine that was killed leaves its bridge behind.
    fn remove_bridge(&self) {
        let gateway = self.bridge.replace(".0/22", ".1/22");
        let addresses = ip(&["-4", "-oneline", "address", "show"]);
        for line in addresses.lines() {
            // 7: br-0123    inet 10.64.4.1/22 brd ...
            let words: Vec<&str> = line.split_whitespace().collect();
            if let [_, link, "inet", address, ..] = words[..]
                && address == gateway
            {
                ip(&["link", "delete", link]);
            }
        }
    }
}

/// Whether a word is an address or a network of which some part is in that network. The whole internet is none.
fn overlaps(word: &str, network: Ipv4Addr, prefix: u32) -> bool {
    let (address, length) = word.split_once('/').unwrap_or((word, "32"));
    let (Ok(address), Ok(length)) = (address.parse::<Ipv4Addr>(), length.parse::<u32>()) else { return false };
    let common = length.min(prefix);
    common > 0 && (address.to_bits() ^ network.to_bits()) >> (32 - common) == 0
}

pub fn ip(arguments: &[&str]) -> String {
    // what a failure says is that there is no such route
    let output = Command::new("ip").args(arguments).output().expect("ip is installed by cargo xtask test");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Unmounts what was left mounted in a directory, the innermost first.
pub fn unmount_all(dir: &Path) {
    for point in mounts_in(dir).iter().rev() {
        let _ = Command::new("umount").arg("--lazy").arg(point).status();
    }
}

/// What is mounted in a directory, the outermost first.
fn mounts_in(dir: &Path) -> Vec<String> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let points =
        table.lines().filter_map(|line| line.split(' ').nth(4)).filter(|point| Path::new(point).starts_with(dir));
    let mut inside: Vec<String> = points.map(str::to_owned).collect();
    inside.sort_by_key(String::len);
    inside
}
