//! A master and its agents, each agent on a machine of its own: a network namespace on a switch, whose plug can be pulled.

use super::server::{Networks, Server, ip, unmount_all};
use super::{Cable, Cluster, PATIENCE, Traffic, has_docker, root, until};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use tempfile::TempDir;

/// Host numbers on the switch: of the master, and of the first agent.
const MASTER: u8 = 1;
const FIRST: u8 = 10;

/// A cluster of several machines.
pub struct Fleet {
    /// The workers.
    pub agents: Vec<Agent>,
    switch: Switch,
    cluster: Cluster,
}

impl Fleet {
    /// A privileged server, and so many agents that have joined and are ready; `None`, with a word why, where the tests
    /// may not make machines.
    pub fn launch(agents: u8) -> Option<Self> {
        Self::launch_with(agents, false, Server::start_at_address)
    }

    /// The same with agents of an ordinary user.
    pub fn launch_rootless_agents(agents: u8) -> Option<Self> {
        Self::launch_with(agents, true, Server::start_at_address)
    }

    /// All of it as an ordinary user, the server included.
    pub fn launch_rootless(agents: u8) -> Option<Self> {
        Self::launch_with(agents, true, |_, address| Server::start_rootless_at(address))
    }

    fn launch_with(agents: u8, are_rootless: bool, start: impl Fn(Networks, Ipv4Addr) -> Server) -> Option<Self> {
        if !has_docker() {
            return None;
        }
        let networks = Networks::unused();
        let switch = Switch::make(networks.site);
        let server = start(networks, switch.host(MASTER));
        let mut fleet = Self { agents: Vec::new(), cluster: Cluster::of(server), switch };
        for number in 0..agents {
            let mut agent = fleet.machine(&format!("agent-{number}"));
            agent.is_rootless = are_rootless;
            agent.start();
            fleet.agents.push(agent);
        }
        for agent in &fleet.agents {
            fleet.ready(agent);
        }
        Some(fleet)
    }

    /// A further machine, on which no agent runs yet.
    pub fn machine(&self, name: &str) -> Agent {
        let number = u8::try_from(self.agents.len()).unwrap() + FIRST;
        Agent::make(&self.switch, number, name, self.server())
    }

    /// Waits until an agent's node is ready.
    pub fn ready(&self, agent: &Agent) {
        let what = format!("node/{}", agent.name);
        let said = || format!("{} is not ready\n{}", agent.name, agent.log());
        let begun = std::time::Instant::now();
        while self.field(&what, r#"{.status.conditions[?(@.type=="Ready")].status}"#) != "True" {
            assert!(begun.elapsed() < PATIENCE, "{}", said());
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
    }

    /// Where the machines find the master.
    pub fn switch_address(&self) -> Ipv4Addr {
        self.switch.host(MASTER)
    }

    /// The master, and its administrator.
    pub fn cluster(&mut self) -> &mut Cluster {
        &mut self.cluster
    }
}

impl std::ops::Deref for Fleet {
    type Target = Cluster;

    fn deref(&self) -> &Cluster {
        &self.cluster
    }
}

/// A machine with an agent, running or between two runs.
pub struct Agent {
    /// The node's name.
    pub name: String,
    /// Its address on the switch.
    pub address: Ipv4Addr,
    /// What it joins with; nothing when empty.
    pub token: String,
    /// More flags.
    pub flags: Vec<String>,
    /// More of its environment.
    pub environment: Vec<(String, String)>,
    /// It runs as an ordinary user.
    pub is_rootless: bool,
    server: String,
    namespace: String,
    plug: String,
    switch: String,
    cable: Option<Cable>,
    dir: TempDir,
    process: Option<Child>,
}

impl Agent {
    fn make(switch: &Switch, number: u8, name: &str, server: &Server) -> Self {
        let namespace = unique("n");
        let plug = unique("p");
        let address = switch.host(number);
        ip(&["netns", "add", &namespace]);
        ip(&["-n", &namespace, "link", "set", "lo", "up"]);
        ip(&[
            "-n",
            &switch.namespace,
            "link",
            "add",
            &plug,
            "type",
            "veth",
            "peer",
            "name",
            "eth0",
            "netns",
            &namespace,
        ]);
        ip(&["-n", &switch.namespace, "link", "set", &plug, "master", "br0", "up"]);
        ip(&["-n", &namespace, "address", "add", &format!("{address}/24"), "dev", "eth0"]);
        ip(&["-n", &namespace, "link", "set", "eth0", "up"]);
        ip(&["-n", &namespace, "route", "add", "default", "via", &switch.host(MASTER).to_string()]);
        let token = std::fs::read_to_string(server.data_dir().join("server/token")).unwrap();
        Self {
            name: name.to_owned(),
            address,
            token: token.trim().to_owned(),
            flags: Vec::new(),
            environment: Vec::new(),
            is_rootless: false,
            server: format!("https://{}:{}", switch.host(MASTER), server.api_port()),
            namespace,
            plug,
            switch: switch.namespace.clone(),
            cable: None,
            dir: tempfile::Builder::new().prefix("coracle-it-").tempdir().unwrap(),
            process: None,
        }
    }

    /// Starts the agent, on what its directory holds.
    pub fn start(&mut self) {
        let log = File::options().create(true).append(true).open(self.log_file()).unwrap();
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.namespace]);
        if self.is_rootless {
            command.args(ordinary_user(self.dir.path()));
        }
        let process = command
            .args([env!("CARGO_BIN_EXE_coracle"), "agent"])
            .args(["--server", &self.server, "--node-name", &self.name])
            .args(["--node-ip", &self.address.to_string(), "--data-dir"])
            .arg(self.data_dir())
            .args(if self.token.is_empty() { vec![] } else { vec!["--token", &self.token] })
            .args(&self.flags)
            // the machine's own Docker lives elsewhere
            .env("DOCKER_HOST", "unix:///nowhere/docker.sock")
            // what it says is read
            .env("NO_COLOR", "1")
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .current_dir(root())
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        self.process = Some(process);
    }

    /// SIGKILL: no chance to tidy up.
    pub fn kill(&mut self) {
        let mut process = self.process.take().unwrap();
        process.kill().unwrap();
        process.wait().unwrap();
    }

    /// Waits for an agent that ends by itself, which must be a failure; what it said.
    pub fn refused(&mut self) -> String {
        let mut process = self.process.take().unwrap();
        let status = until("the agent ends", || process.try_wait().unwrap());
        assert!(!status.success());
        self.log()
    }

    /// What memory knows, and the kernel's networks with it, are gone as after a power cut; the disk stays.
    pub fn power_off(&mut self) {
        self.kill();
        ip(&["-n", &self.namespace, "route", "flush", "table", "local", "proto", "unspec"]);
    }

    /// The power was off.
    pub fn reboot(&mut self) {
        self.power_off();
        self.start();
    }

    /// A cable to the switch that can be listened at and has weather.
    pub fn cable(&mut self) -> &Cable {
        self.cable.get_or_insert_with(|| Cable::lay(&self.switch, &self.plug, &unique("c")))
    }

    /// Asks a web server again and again, as a program of that machine.
    pub fn traffic(&self, to: SocketAddr) -> Traffic {
        let namespace = File::open(Path::new("/run/netns").join(&self.namespace)).unwrap();
        Traffic::start(to, move || {
            // of the thread alone that asks
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
        })
    }

    /// Pulls the plug.
    pub fn cut(&self) {
        ip(&["-n", &self.switch, "link", "set", &self.plug, "down"]);
    }

    /// Plugs it in again.
    pub fn heal(&self) {
        ip(&["-n", &self.switch, "link", "set", &self.plug, "up"]);
    }

    /// Gives the machine another address.
    pub fn readdress(&mut self, number: u8) {
        let [a, b, c, _] = self.address.octets();
        let next = Ipv4Addr::new(a, b, c, number);
        // in this order: with the first address of a network the kernel removes the others
        ip(&["-n", &self.namespace, "address", "delete", &format!("{}/24", self.address), "dev", "eth0"]);
        ip(&["-n", &self.namespace, "address", "add", &format!("{next}/24"), "dev", "eth0"]);
        ip(&["-n", &self.namespace, "route", "add", "default", "via", &Ipv4Addr::new(a, b, c, 1).to_string()]);
        self.address = next;
    }

    /// Does something as a program of that machine would.
    pub fn within<T: Send>(&self, act: impl FnOnce() -> T + Send) -> T {
        let namespace = File::open(Path::new("/run/netns").join(&self.namespace)).unwrap();
        std::thread::scope(|scope| {
            let there = scope.spawn(move || {
                // of this thread alone, which ends with the act
                move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
                act()
            });
            there.join().unwrap()
        })
    }

    /// Where the agent keeps everything.
    pub fn data_dir(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// All that the agent said.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    fn log_file(&self) -> PathBuf {
        self.dir.path().join("agent.log")
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
        if std::thread::panicking() {
            eprintln!("--- the log of {} ---\n{}", self.name, self.log());
        }
        unmount_all(self.dir.path());
        ip(&["netns", "delete", &self.namespace]);
        ip(&["-n", &self.switch, "link", "delete", &self.plug]);
    }
}

/// What all machines are plugged into, in a namespace of its own: the rules of this machine's firewall are not for it.
struct Switch {
    namespace: String,
    plug: String,
    network: Ipv4Addr,
}

impl Switch {
    /// A /24 network, in which this machine is the master.
    fn make(network: Ipv4Addr) -> Self {
        let switch = Self { namespace: unique("s"), plug: unique("m"), network };
        let Self { namespace, plug, .. } = &switch;
        ip(&["netns", "add", namespace]);
        ip(&["-n", namespace, "link", "add", "br0", "type", "bridge"]);
        ip(&["-n", namespace, "link", "set", "br0", "up"]);
        ip(&["link", "add", plug, "type", "veth", "peer", "name", "up0", "netns", namespace]);
        ip(&["-n", namespace, "link", "set", "up0", "master", "br0", "up"]);
        ip(&["address", "add", &format!("{}/24", switch.host(MASTER)), "dev", plug]);
        ip(&["link", "set", plug, "up"]);
        switch
    }

    fn host(&self, number: u8) -> Ipv4Addr {
        let [a, b, c, _] = self.network.octets();
        Ipv4Addr::new(a, b, c, number)
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        ip(&["link", "delete", &self.plug]);
        ip(&["netns", "delete", &self.namespace]);
    }
}

/// What makes the program named after it run as an ordinary user, who owns that directory: whoever the sources are of, or else
/// nobody.
pub fn ordinary_user(dir: &Path) -> Vec<String> {
    const NOBODY: u32 = 65_534;
    let owner = std::fs::metadata(root()).unwrap().uid();
    let user = if owner == 0 { NOBODY } else { owner };
    std::os::unix::fs::chown(dir, Some(user), Some(user)).unwrap();
    let words = ["setpriv", "--clear-groups", "--bounding-set=-all", "--inh-caps=-all"];
    words.map(str::to_owned).into_iter().chain([format!("--reuid={user}"), format!("--regid={user}")]).collect()
}

/// A name that no other test on this machine gives, short enough for an interface.
fn unique(kind: &str) -> String {
    static GIVEN: AtomicU32 = AtomicU32::new(0);
    format!("ct{}{kind}{}", std::process::id(), GIVEN.fetch_add(1, Ordering::Relaxed))
}
