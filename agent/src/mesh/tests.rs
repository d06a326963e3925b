//! Nodes in network namespaces of their own, joined by a cable that can be pulled; the master is this process. Needs root.

use super::*;
use netproxy::network;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use runtime::NetworkNamespace;
use rustls::pki_types::PrivateKeyDer;
use state::{Change, Event, Revision};
use std::future::Future;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc;
use std::time::Instant;
use sync::mesh::{Attached, Relay};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UdpSocket};

/// Everything asked for happens by then.
const PATIENCE: Duration = Duration::from_secs(30);

fn run(command: &str) -> String {
    let mut words = command.split_whitespace();
    let output = Command::new(words.next().unwrap()).args(words).output().unwrap();
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// A network namespace, gone when dropped.
struct Namespace {
    name: String,
    handle: NetworkNamespace,
}

impl Namespace {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("cormesh{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        run(&format!("ip netns add {name}"));
        let handle = NetworkNamespace::open(format!("/var/run/netns/{name}").as_ref()).unwrap();
        let space = Self { name, handle };
        space.ip("link set lo up");
        space
    }

    fn ip(&self, command: &str) -> String {
        run(&format!("ip -n {} {command}", self.name))
    }

    fn run(&self, command: &str) -> String {
        run(&format!("ip netns exec {} {command}", self.name))
    }

    /// Does something inside, with a runtime of its own, on this thread.
    fn block_on<T>(&self, act: impl Future<Output = T>) -> T {
        let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        self.handle.run(|| runtime().block_on(async { tokio::time::timeout(PATIENCE, act).await.unwrap() })).unwrap()
    }

    /// Two namespaces with a cable between them.
    fn joined(addresses: [&str; 2]) -> [Self; 2] {
        let pair = [Self::new(), Self::new()];
        let [a, b] = &pair;
        a.ip(&format!("link add cable type veth peer name cable netns {}", b.name));
        for (space, address) in pair.iter().zip(addresses) {
            space.ip(&format!("addr add {address} dev cable"));
            space.ip("link set cable up");
        }
        pair
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.name]).status();
    }
}

/// A node in a namespace: its device and mesh live on a thread of theirs.
struct Here {
    space: Namespace,
    connected: Arc<dyn Fn() -> Vec<String> + Send + Sync>,
    neighbours: Arc<dyn Fn(Vec<Neighbour>) + Send + Sync>,
    stop: CancellationToken,
    thread: Option<std::thread::JoinHandle<()>>,
    _link: Attached,
}

impl Drop for Here {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(ended.is_ok() || std::thread::panicking());
        }
    }
}

struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
}

impl Authority {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let certificate = params.self_signed(&key).unwrap().der().clone();
        Self { issuer: Issuer::new(params, key), certificate }
    }

    fn node(&self, name: &str) -> Arc<Identity> {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, format!("system:node:{name}"));
        params.distinguished_name.push(DnType::OrganizationName, "system:nodes");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let chain = vec![params.signed_by(&key, &self.issuer).unwrap().der().clone()];
        Arc::new(Identity { chain, key: PrivateKeyDer::try_from(key.serialize_der()).unwrap() })
    }
}

const CLUSTER: &str = "10.42.0.0/16";
const PORT: u16 = 6444;

/// Two nodes, `a` with 10.42.1.0/24 and `b` with 10.42.2.0/24, and the master between them.
struct Fleet {
    /// The master's.
    _runtime: tokio::runtime::Runtime,
    a: Here,
    b: Here,
}

impl Fleet {
    fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let (relay, authority) = (Relay::new(), Authority::new());
        relay.set_nodes(&world());
        let [a, b] = Namespace::joined(["192.0.2.1/24", "192.0.2.2/24"]);
        // as strict as any machine
        for space in [&a, &b] {
            space.run("sysctl -qw net.ipv4.conf.all.rp_filter=1");
        }
        let entered = runtime.enter();
        let a = Here::start("a", "10.42.1.0/24", a, &relay, &authority);
        let b = Here::start("b", "10.42.2.0/24", b, &relay, &authority);
        drop(entered);
        Self { _runtime: runtime, a, b }
    }

    fn introduce(&self, direct: bool) {
        let told = |name: &str, networks: &str, ip: &str| Neighbour {
            name: name.into(),
            networks: vec![networks.parse().unwrap()],
            endpoints: if direct { vec![format!("{ip}:{PORT}").parse().unwrap()] } else { Vec::new() },
        };
        let all = vec![told("a", "10.42.1.0/24", "192.0.2.1"), told("b", "10.42.2.0/24", "192.0.2.2")];
        (self.a.neighbours)(all.clone());
        (self.b.neighbours)(all);
    }

    fn until(&self, what: &str, is_so: impl Fn() -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !is_so() {
            assert!(Instant::now() < deadline, "{what}");
            // something that wants to go there
            self.a.space.block_on(async {
                let socket = UdpSocket::bind("10.42.1.5:0").await.unwrap();
                let _ = socket.send_to(b"x", "10.42.2.5:9").await;
            });
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn is_direct(&self) -> bool {
        (self.a.connected)() == ["b"] && (self.b.connected)() == ["a"]
    }
}

impl Here {
    fn start(name: &str, own: &str, space: Namespace, relay: &Relay, authority: &Authority) -> Self {
        let (bulk, masters) = sync::bulk_pair();
        let stop = CancellationToken::new();
        let (identity, renewed) = watch::channel(authority.node(name));
        let config = WireConfig {
            node: name.into(),
            device: Device::Kernel("coracle0".into()),
            port: PORT,
            cluster: CLUSTER.parse().unwrap(),
            own: own.parse().unwrap(),
            identity: renewed,
            node_ca: authority.certificate.clone(),
            bulk,
        };
        let [user_space, _] = crate::addresses::halves(config.own);
        let (ready, is_ready) = mpsc::channel();
        let (handle, stopped) = (space.handle.clone(), stop.clone());
        let thread = std::thread::spawn(move || {
            let work = async {
                network::claim(&[user_space]).await.unwrap();
                let wire = Wire::open(config).await.unwrap();
                assert_eq!(wire.port, PORT);
                ready.send(wire.mesh.clone()).unwrap();
                stopped.cancelled().await;
                wire.close().await;
                drop(identity);
            };
            let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            handle.run(|| runtime().block_on(work)).unwrap();
        });
        let mesh = is_ready.recv().expect("the node started");
        let shown = mesh.clone();
        Self {
            space,
            connected: Arc::new(move || shown.connected()),
            neighbours: Arc::new(move |all| mesh.set_neighbours(all)),
            stop,
            thread: Some(thread),
            _link: relay.attach(name, masters),
        }
    }
}

fn world() -> World {
    let mut world = World::default();
    for (revision, name, cidr) in [(1, "a", "10.42.1.0/24"), (2, "b", "10.42.2.0/24")] {
        let node = serde_json::json!({
            "apiVersion": "v1", "kind": "Node", "metadata": {"name": name}, "spec": {"podCIDR": cidr},
        });
        let revision = Revision(revision);
        let object = Object::encode(manifests::Resource::of::<Node>(), revision, node).unwrap();
        world.fold(&Event { revision, change: Change::Added, object: Arc::new(object), previous: None });
    }
    world
}

/// Answers each connection with its caller's address, then with all that it sends.
async fn serve(listener: TcpListener) {
    loop {
        let Ok((mut stream, from)) = listener.accept().await else { return };
        tokio::spawn(async move {
            let _ = stream.write_all(format!("{:<32}", from.ip()).as_bytes()).await;
            let (mut reader, mut writer) = stream.split();
            let _ = tokio::io::copy(&mut reader, &mut writer).await;
            let _ = writer.shutdown().await;
        });
    }
}

/// Does something inside a namespace while it serves TCP there.
struct Server {
    stop: CancellationToken,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Server {
    fn start(space: &Namespace, address: &str) -> Self {
        let stop = CancellationToken::new();
        let (handle, stopped, address) = (space.handle.clone(), stop.clone(), address.to_owned());
        let (ready, is_ready) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            let work = async {
                let listener = TcpListener::bind(&address).await.unwrap();
                let udp = UdpSocket::bind(&address).await.unwrap();
                ready.send(()).unwrap();
                let echo = async {
                    let mut buffer = vec![0; 65536];
                    while let Ok((bytes, from)) = udp.recv_from(&mut buffer).await {
                        let _ = udp.send_to(&buffer[..bytes], from).await;
                    }
                };
                tokio::select! {
                    () = stopped.cancelled() => {}
                    () = serve(listener) => {}
                    () = echo => {}
                }
            };
            let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            handle.run(|| runtime().block_on(work)).unwrap();
        });
        is_ready.recv().expect("the server started");
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(ended.is_ok() || std::thread::panicking());
        }
    }
}

async fn connect(from: &str, to: &str) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(format!("{from}:0").parse().unwrap()).unwrap();
    socket.connect(to.parse().unwrap()).await.unwrap()
}

/// The address under which a caller is seen, after so many bytes have gone there and come back unharmed.
async fn echoed(from: &str, to: &str, bytes: usize) -> String {
    let mut stream = connect(from, to).await;
    let mut seen = [0; 32];
    stream.read_exact(&mut seen).await.unwrap();
    let sent: Vec<u8> = (0..bytes).map(|at| (at * 31 % 251) as u8).collect();
    let (mut reader, mut writer) = stream.split();
    let mut received = Vec::new();
    let write = async {
        writer.write_all(&sent).await.unwrap();
        writer.shutdown().await.unwrap();
    };
    let (read, ()) = tokio::join!(reader.read_to_end(&mut received), write);
    read.unwrap();
    assert!(received == sent, "{} of {bytes} bytes came back, or others", received.len());
    String::from_utf8_lossy(&seen).trim().to_owned()
}

/// A datagram there and back; sent again until it comes.
async fn pinged(from: &str, to: &str, bytes: usize) {
    let socket = UdpSocket::bind(format!("{from}:0")).await.unwrap();
    socket.connect(to).await.unwrap();
    let sent = vec![7; bytes];
    let mut received = vec![0; 65536];
    loop {
        socket.send(&sent).await.unwrap();
        let answer = tokio::time::timeout(Duration::from_millis(500), socket.recv(&mut received)).await;
        if let Ok(answer) = answer {
            assert_eq!(received[..answer.unwrap()], sent);
            return;
        }
    }
}

fn is_root() -> bool {
    let is_root = network::may_configure() && network::may_enter_namespaces();
    if !is_root {
        eprintln!("not run: needs root (network namespaces)");
    }
    is_root
}

#[test]
fn pods_of_two_nodes_talk_directly_relayed_and_when_the_cable_is_pulled() {
    if !is_root() {
        return;
    }
    let fleet = Fleet::new();
    let (a, b) = (&fleet.a.space, &fleet.b.space);
    let _servers = [Server::start(a, "10.42.1.7:8080"), Server::start(b, "10.42.2.7:8080")];
    let talk = || {
        for bytes in [0, 1, 5_000_000] {
            assert_eq!(a.block_on(echoed("10.42.1.5", "10.42.2.7:8080", bytes)), "10.42.1.5");
            assert_eq!(b.block_on(echoed("10.42.2.5", "10.42.1.7:8080", bytes)), "10.42.2.5");
        }
        // the host itself, by its address on the device
        assert_eq!(a.block_on(echoed("0.0.0.0", "10.42.2.7:8080", 1000)), "10.42.1.0");
        for bytes in [1, 1352, 1353, 20_000] {
            a.block_on(pinged("10.42.1.5", "10.42.2.7:8080", bytes));
        }
    };
    fleet.introduce(false);
    talk();
    assert!((fleet.a.connected)().is_empty());
    fleet.introduce(true);
    fleet.until("direct", || fleet.is_direct());
    talk();
    assert!(fleet.is_direct());
    // a flow that is under way goes on over the relay
    a.block_on(async {
        let mut stream = connect("10.42.1.5", "10.42.2.7:8080").await;
        let mut seen = [0; 32];
        stream.read_exact(&mut seen).await.unwrap();
        for turn in 0..20_u32 {
            if turn == 5 {
                b.ip("link set cable down");
            }
            stream.write_all(&turn.to_be_bytes()).await.unwrap();
            assert_eq!(stream.read_u32().await.unwrap(), turn);
        }
    });
    assert!(!fleet.is_direct());
    b.ip("link set cable up");
    fleet.until("direct again", || fleet.is_direct());
    talk();
}

/// As Docker arranges it: a bridge, a policy to drop what is forwarded, and masquerading of what leaves.
#[test]
fn pods_behind_a_bridge_are_reached_and_keep_their_address() {
    if !is_root() {
        return;
    }
    let fleet = Fleet::new();
    fleet.introduce(true);
    let (a, b) = (&fleet.a.space, &fleet.b.space);
    let pod = Namespace::new();
    b.ip("link add bridge7 type bridge");
    b.ip("addr add 10.42.2.129/25 dev bridge7");
    b.ip("link set bridge7 up");
    b.ip(&format!("link add pod7 type veth peer name eth0 netns {}", pod.name));
    b.ip("link set pod7 master bridge7 up");
    pod.ip("addr add 10.42.2.130/25 dev eth0");
    pod.ip("link set eth0 up");
    pod.ip("route add default via 10.42.2.129");
    for rule in [
        "-P FORWARD DROP",
        "-N DOCKER-USER",
        "-A DOCKER-USER -j RETURN",
        "-A FORWARD -j DOCKER-USER",
        "-A FORWARD -o bridge7 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
        "-A FORWARD -i bridge7 ! -o bridge7 -j ACCEPT",
        "-t nat -A POSTROUTING -s 10.42.2.128/25 ! -o bridge7 -j MASQUERADE",
    ] {
        b.run(&format!("iptables {rule}"));
    }
    let before = [b.run("iptables -S"), b.run("iptables -t nat -S")];
    let _servers = [Server::start(a, "10.42.1.7:8080"), Server::start(&pod, "10.42.2.130:8080")];
    let forwarding =
        Forwarding { device: "coracle0".into(), bridge: "bridge7".into(), pods: "10.42.2.128/25".parse().unwrap() };
    for _ in 0..2 {
        b.block_on(forwarding.ensure()).unwrap();
        assert_eq!(a.block_on(echoed("10.42.1.5", "10.42.2.130:8080", 3_000_000)), "10.42.1.5");
        assert_eq!(pod.block_on(echoed("10.42.2.130", "10.42.1.7:8080", 3_000_000)), "10.42.2.130");
        // Docker comes again and puts its own in front
        b.run("iptables -t nat -I POSTROUTING -s 10.42.2.128/25 ! -o bridge7 -j MASQUERADE");
        b.run("iptables -I DOCKER-USER -i coracle0 -j DROP");
    }
    b.run("iptables -D DOCKER-USER -i coracle0 -j DROP");
    b.run("iptables -D DOCKER-USER -i coracle0 -j DROP");
    for _ in 0..2 {
        b.run("iptables -t nat -D POSTROUTING -s 10.42.2.128/25 ! -o bridge7 -j MASQUERADE");
    }
    for _ in 0..2 {
        b.block_on(forwarding.remove()).unwrap();
        assert_eq!([b.run("iptables -S"), b.run("iptables -t nat -S")], before);
    }
}

#[test]
fn neighbours_are_read_from_nodes() {
    let mut world = world();
    let node = serde_json::json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": "c", "annotations": {
            (ENDPOINTS): "192.0.2.9:6444, [2001:db8::9]:6444,10.42.3.1:6444,127.0.0.1:6444,nonsense,0.0.0.0:1,192.0.2.9:0",
        }},
        "spec": {"podCIDR": "10.42.3.0/24", "podCIDRs": ["10.42.3.0/24", "fd00::/64"]},
    });
    let object = Object::encode(manifests::Resource::of::<Node>(), Revision(3), node).unwrap();
    world.fold(&Event { revision: Revision(3), change: Change::Added, object: Arc::new(object), previous: None });
    let found = neighbours(&world, "a", CLUSTER.parse().unwrap());
    let told: Vec<_> = found
        .iter()
        .map(|known| {
            let networks: Vec<_> = known.networks.iter().map(ToString::to_string).collect();
            let endpoints: Vec<_> = known.endpoints.iter().map(ToString::to_string).collect();
            format!("{} {} {}", known.name, networks.join(","), endpoints.join(","))
        })
        .collect();
    assert_eq!(told, ["b 10.42.2.0/24 ", "c 10.42.3.0/24 192.0.2.9:6444,[2001:db8::9]:6444"]);
}
