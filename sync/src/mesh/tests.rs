//! Meshes on loopback, with real sockets and certificates.

use super::frame::tests::{packet, with_room};
use super::*;
use crate::bulk_pair;
use manifests::Resource;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use rustls_pki_types::PrivateKeyDer;
use state::{Object, Revision, World};
use std::collections::HashMap;
use std::net::UdpSocket;
use std::time::Duration;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio_util::sync::DropGuard;

/// Everything asked for happens by then.
const PATIENCE: Duration = Duration::from_secs(20);

struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
}

impl Authority {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "test-client-ca");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let certificate = params.self_signed(&key).unwrap().der().clone();
        Self { issuer: Issuer::new(params, key), certificate }
    }

    fn node(&self, name: &str) -> Arc<Identity> {
        self.issue(name, |_| {})
    }

    fn issue(&self, name: &str, change: impl FnOnce(&mut CertificateParams)) -> Arc<Identity> {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, format!("system:node:{name}"));
        params.distinguished_name.push(DnType::OrganizationName, "system:nodes");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        change(&mut params);
        let certificate = params.signed_by(&key, &self.issuer).unwrap().der().clone();
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        Arc::new(Identity { chain: vec![certificate], key })
    }
}

struct Inbox(mpsc::UnboundedSender<Bytes>);

impl Deliver for Inbox {
    fn deliver<'a>(&'a self, packets: &'a [Bytes]) -> BoxFuture<'a, ()> {
        for packet in packets {
            let _ = self.0.send(packet.clone());
        }
        Box::pin(async {})
    }
}

/// A node of a cluster in this process.
struct Here {
    mesh: Mesh,
    inbox: UnboundedReceiver<Bytes>,
    to_master: Bulk,
    link: Option<Attached>,
    _identity: watch::Sender<Arc<Identity>>,
    _stop: DropGuard,
}

struct Cluster {
    authority: Authority,
    relay: Relay,
    nodes: HashMap<&'static str, Here>,
    endpoints: HashMap<&'static str, SocketAddr>,
}

/// The part of the pod network of each node.
fn network(name: &str) -> &'static str {
    match name {
        "a" => "10.42.1.0/24",
        "b" => "10.42.2.0/24",
        _ => "10.42.3.0/24",
    }
}

impl Cluster {
    fn new() -> Self {
        let relay = Relay::new();
        relay.set_nodes(&world());
        Self { authority: Authority::new(), relay, nodes: HashMap::new(), endpoints: HashMap::new() }
    }

    fn add(&mut self, name: &'static str) {
        let identity = self.authority.node(name);
        self.add_as(name, identity, network(name));
    }

    fn add_as(&mut self, name: &'static str, identity: Arc<Identity>, own: &str) {
        let (ours, masters) = bulk_pair();
        let (identity, renewed) = watch::channel(identity);
        let (inbox, received) = mpsc::unbounded_channel();
        let shutdown = CancellationToken::new();
        let config = Config {
            node: name.into(),
            networks: vec![own.parse().unwrap()],
            port: 0,
            identity: renewed,
            node_ca: self.authority.certificate.clone(),
            bulk: ours.clone(),
        };
        let mesh = Mesh::start(config, Inbox(inbox), shutdown.clone()).unwrap();
        self.endpoints.insert(name, ([127, 0, 0, 1], mesh.port().unwrap()).into());
        let here = Here {
            mesh,
            inbox: received,
            to_master: ours,
            link: Some(self.relay.attach(name, masters)),
            _identity: identity,
            _stop: shutdown.drop_guard(),
        };
        self.nodes.insert(name, here);
    }

    /// Tells each node of all others, but not where the hidden ones are.
    fn introduce(&self, hidden: &[&str]) {
        let neighbour = |name: &str, endpoint: &SocketAddr| Neighbour {
            name: name.into(),
            networks: vec![network(name).parse().unwrap()],
            endpoints: if hidden.contains(&name) { Vec::new() } else { vec![*endpoint] },
        };
        let all: Vec<_> = self.endpoints.iter().map(|(name, endpoint)| neighbour(name, endpoint)).collect();
        for here in self.nodes.values() {
            here.mesh.set_neighbours(all.clone());
        }
    }

    fn mesh(&self, name: &str) -> &Mesh {
        &self.nodes[name].mesh
    }

    /// Sends packets until one arrives; it must be the one that was sent. The way it took is the callers' to look at.
    async fn reach(&mut self, from: &str, to: &str, bytes: usize) {
        let sent = packet_between(from, to, bytes);
        let all = async {
            loop {
                self.mesh(from).send(with_room(&sent));
                let next = self.nodes.get_mut(to).unwrap().inbox.recv();
                if let Ok(received) = tokio::time::timeout(Duration::from_millis(300), next).await {
                    return received.unwrap();
                }
            }
        };
        let received = tokio::time::timeout(PATIENCE, all).await.unwrap_or_else(|_| panic!("{from} -> {to}"));
        assert_eq!(received, sent);
    }

    /// Lets packets flow both ways until `is_so`.
    async fn until(&mut self, what: &str, mut is_so: impl FnMut(&Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !is_so(self) {
            assert!(Instant::now() < deadline, "{what}: {:?}", self.counters());
            for (from, to) in [("a", "b"), ("b", "a")] {
                self.mesh(from).send(with_room(&packet_between(from, to, 100)));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
            self.drain();
        }
    }

    fn drain(&mut self) {
        for here in self.nodes.values_mut() {
            while here.inbox.try_recv().is_ok() {}
        }
    }

    fn counters(&self) -> HashMap<&str, Counters> {
        self.nodes.iter().map(|(name, here)| (*name, here.mesh.counters())).collect()
    }

    fn are_connected(&self) -> bool {
        let is_up = |from: &str, to: &str| self.mesh(from).connected().iter().any(|name| name == to);
        is_up("a", "b") && is_up("b", "a")
    }
}

fn packet_between(from: &str, to: &str, bytes: usize) -> Vec<u8> {
    let address = |name| network(name).replace(".0/24", ".9");
    packet(&address(from), &address(to), bytes)
}

fn world() -> World {
    let mut world = World::default();
    for (at, name) in ["a", "b", "c"].into_iter().enumerate() {
        let node = serde_json::json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": {"name": name}, "spec": {"podCIDR": network(name), "podCIDRs": [network(name)]},
        });
        let revision = Revision(at as u64 + 1);
        let object =
            Arc::new(Object::encode(Resource::of::<k8s_openapi::api::core::v1::Node>(), revision, node).unwrap());
        world.fold(&state::Event { revision, change: state::Change::Added, object, previous: None });
    }
    world
}

#[tokio::test]
async fn packets_are_relayed_until_a_direct_connection_is_up() {
    let mut cluster = Cluster::new();
    for name in ["a", "b", "c"] {
        cluster.add(name);
    }
    cluster.introduce(&["c"]);
    for bytes in [20, 100, 1380, 1500] {
        cluster.reach("a", "b", bytes).await;
        cluster.reach("b", "a", bytes).await;
        cluster.reach("c", "b", bytes).await;
    }
    cluster.until("direct", Cluster::are_connected).await;
    let before = cluster.mesh("a").counters();
    assert!(before.sent_relayed > 0 && before.received_relayed > 0);
    for bytes in [20, 100, 1380, 1500] {
        cluster.reach("a", "b", bytes).await;
        cluster.reach("b", "a", bytes).await;
    }
    let after = cluster.mesh("a").counters();
    assert_eq!(after.sent_relayed, before.sent_relayed);
    assert!(after.sent_direct >= before.sent_direct + 4 && after.received_direct > before.received_direct);
    // c says not where it is, but it has dialled
    cluster.reach("b", "c", 1380).await;
    assert_eq!(cluster.relay.counters().dropped_source, 0);
}

#[tokio::test]
async fn crossed_dials_leave_one_connection() {
    for _ in 0..5 {
        let mut cluster = Cluster::new();
        cluster.add("a");
        cluster.add("b");
        cluster.introduce(&[]);
        cluster.until("direct", Cluster::are_connected).await;
        cluster
            .until("one connection", |cluster| {
                cluster.nodes.values().all(|here| here.mesh.0.endpoint.open_connections() == 1)
            })
            .await;
        assert!(cluster.are_connected());
        cluster.drain();
        cluster.reach("a", "b", 1000).await;
    }
}

#[tokio::test]
async fn without_a_master_neighbours_go_on() {
    let mut cluster = Cluster::new();
    cluster.add("a");
    cluster.add("b");
    cluster.introduce(&[]);
    for here in cluster.nodes.values_mut() {
        here.link = None;
        here.to_master.close();
    }
    // the first packets are lost, as there is no way for them, and dial all the same
    cluster.until("direct", Cluster::are_connected).await;
    cluster.drain();
    cluster.reach("a", "b", 1380).await;
    cluster.reach("b", "a", 1380).await;
    assert!(cluster.mesh("a").counters().dropped_link > 0);
}

#[tokio::test]
async fn nobody_speaks_in_anothers_name() {
    let mut cluster = Cluster::new();
    cluster.add("a");
    cluster.add("b");
    // has a good certificate, and believes that the pods of a are its own
    let liar = cluster.authority.node("c");
    cluster.add_as("c", liar, network("a"));
    cluster.introduce(&[]);
    // from a foreign address: stopped where it begins
    cluster.mesh("a").send(with_room(&packet_between("b", "c", 100)));
    assert_eq!(cluster.mesh("a").counters().dropped_source, 1);
    // to nobody
    cluster.mesh("a").send(with_room(&packet("10.42.1.9", "10.42.99.9", 100)));
    assert_eq!(cluster.mesh("a").counters().dropped_destination, 1);
    // over the relay, and directly
    let lie = packet_between("a", "b", 100);
    let deadline = Instant::now() + PATIENCE;
    while cluster.relay.counters().dropped_source == 0 || cluster.mesh("b").counters().dropped_source == 0 {
        assert!(Instant::now() < deadline);
        cluster.mesh("c").send(with_room(&lie));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // to the wrong node, from the right one
    cluster.nodes["a"].to_master.send(frame::whole(with_room(&packet("10.42.1.9", "10.42.1.7", 100)), 1)).unwrap();
    while cluster.mesh("a").counters().dropped_source == 1 {
        assert!(Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(cluster.nodes.get_mut("b").unwrap().inbox.try_recv().is_err());
}

/// What is not the node that was meant is never connected to; the relay, where the master has admitted it, goes on.
#[tokio::test]
async fn certificates_are_checked_on_both_sides() {
    let foreign = Authority::new();
    type Make<'a> = Box<dyn Fn(&Authority) -> Arc<Identity> + 'a>;
    let cases: [(&str, Make); 4] = [
        ("another authority's", Box::new(|_| foreign.node("b"))),
        ("another node's", Box::new(|authority| authority.node("x"))),
        (
            "expired",
            Box::new(|authority| {
                authority.issue("b", |params| {
                    params.not_before = rcgen::date_time_ymd(2020, 1, 1);
                    params.not_after = rcgen::date_time_ymd(2021, 1, 1);
                })
            }),
        ),
        (
            "a server's",
            Box::new(|authority| {
                authority.issue("b", |params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth])
            }),
        ),
    ];
    for (what, make) in cases {
        for hidden in ["a", "b"] {
            let mut cluster = Cluster::new();
            cluster.add("a");
            let identity = make(&cluster.authority);
            cluster.add_as("b", identity, network("b"));
            cluster.introduce(&[hidden]);
            // whoever is not hidden is dialled by the other
            let (from, to) = if hidden == "a" { ("a", "b") } else { ("b", "a") };
            cluster.reach(from, to, 100).await;
            let quiet = Instant::now() + Duration::from_millis(300);
            while Instant::now() < quiet {
                cluster.reach(from, to, 100).await;
                cluster.drain();
                assert_eq!(cluster.mesh("a").counters().received_direct, 0, "{what}");
                assert!(cluster.mesh("a").connected().is_empty(), "{what}");
            }
        }
    }
}

#[tokio::test]
async fn who_is_no_neighbour_is_refused_and_cut_off() {
    let mut cluster = Cluster::new();
    cluster.add("a");
    cluster.add("b");
    cluster.introduce(&[]);
    cluster.until("direct", Cluster::are_connected).await;
    cluster.mesh("a").set_neighbours(Vec::new());
    cluster.until("cut off", |cluster| cluster.mesh("b").connected().is_empty()).await;
    let refused = cluster.mesh("a").counters().received_direct;
    cluster.until("time for another dial", |cluster| cluster.mesh("b").counters().sent_relayed > 50).await;
    assert_eq!(cluster.mesh("a").counters().received_direct, refused);
    cluster.introduce(&[]);
    cluster.until("direct again", Cluster::are_connected).await;
}

/// Passes datagrams between a node and those who dial it, until it is cut.
struct Wire {
    is_cut: Arc<AtomicBool>,
    address: SocketAddr,
}

impl Wire {
    fn to(target: SocketAddr, shutdown: CancellationToken) -> Self {
        let front = UdpSocket::bind("127.0.0.1:0").unwrap();
        front.set_nonblocking(true).unwrap();
        let address = front.local_addr().unwrap();
        let back = UdpSocket::bind("127.0.0.1:0").unwrap();
        back.set_nonblocking(true).unwrap();
        let is_cut = Arc::new(AtomicBool::new(false));
        let cut = is_cut.clone();
        tokio::spawn(async move {
            let front = tokio::net::UdpSocket::from_std(front).unwrap();
            let back = tokio::net::UdpSocket::from_std(back).unwrap();
            let (mut there, mut here) = (vec![0; 65536], vec![0; 65536]);
            let mut caller = None;
            loop {
                tokio::select! {
                    () = shutdown.cancelled() => return,
                    Ok((bytes, from)) = front.recv_from(&mut there) => {
                        caller = Some(from);
                        if !cut.load(Ordering::Relaxed) {
                            let _ = back.send_to(&there[..bytes], target).await;
                        }
                    }
                    Ok((bytes, _)) = back.recv_from(&mut here) => {
                        if let Some(caller) = caller.filter(|_| !cut.load(Ordering::Relaxed)) {
                            let _ = front.send_to(&here[..bytes], caller).await;
                        }
                    }
                }
            }
        });
        Self { is_cut, address }
    }
}

#[tokio::test]
async fn a_cut_path_is_left_for_the_relay_and_taken_again() {
    let mut cluster = Cluster::new();
    cluster.add("a");
    cluster.add("b");
    let shutdown = CancellationToken::new();
    let _stop = shutdown.clone().drop_guard();
    let wire = Wire::to(cluster.endpoints["b"], shutdown);
    cluster.endpoints.insert("b", wire.address);
    cluster.introduce(&["a"]);
    cluster.until("direct", Cluster::are_connected).await;
    wire.is_cut.store(true, Ordering::Relaxed);
    let cut_at = Instant::now();
    cluster.until("the relay", |cluster| cluster.nodes.values().all(|here| here.mesh.connected().is_empty())).await;
    assert!(cut_at.elapsed() < Duration::from_secs(5), "{:?}", cut_at.elapsed());
    cluster.drain();
    cluster.reach("a", "b", 1380).await;
    cluster.reach("b", "a", 1380).await;
    wire.is_cut.store(false, Ordering::Relaxed);
    cluster.until("direct again", Cluster::are_connected).await;
    assert_eq!(cluster.mesh("a").0.endpoint.open_connections(), 1, "the same connection or a new one, not both");
}

#[tokio::test]
async fn the_relay_forgets_links_and_nodes() {
    let mut cluster = Cluster::new();
    cluster.add("a");
    cluster.add("b");
    cluster.introduce(&["a", "b"]);
    cluster.reach("a", "b", 100).await;
    // another link takes the place of the first, whose end is not that of the second
    let (ours, masters) = bulk_pair();
    let second = cluster.relay.attach("a", masters);
    cluster.nodes.get_mut("a").unwrap().link = None;
    let sent = packet_between("a", "b", 100);
    ours.send(frame::whole(with_room(&sent), 1)).unwrap();
    assert_eq!(cluster.nodes.get_mut("b").unwrap().inbox.recv().await.unwrap(), sent);
    cluster.mesh("b").send(with_room(&packet_between("b", "a", 100)));
    assert_eq!(ours.recv().await.unwrap()[HEAD_BYTES..], packet_between("b", "a", 100));
    drop(second);
    let deadline = Instant::now() + PATIENCE;
    while cluster.relay.counters().dropped_link == 0 {
        assert!(Instant::now() < deadline);
        cluster.mesh("b").send(with_room(&packet_between("b", "a", 100)));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let world = world();
    let node =
        world.all::<k8s_openapi::api::core::v1::Node>(None).find(|node| &*node.key().name == "b").unwrap().clone();
    let gone = state::Event { revision: Revision(9), change: state::Change::Deleted, object: node, previous: None };
    cluster.relay.node_changed(&gone);
    cluster.mesh("b").send(with_room(&packet_between("b", "a", 100)));
    while cluster.relay.counters().dropped_source == 0 {
        assert!(Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
