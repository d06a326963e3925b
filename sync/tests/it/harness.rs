//! Authorities, a master that keeps books, and what tests wait for.

use bytes::Bytes;
use futures::{StreamExt, stream};
use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::json;
use state::{Change, Event, Key, Object, Revision, World};
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use sync::master::{self, Door, Refusal, Session};
use sync::node::{self, LinkState};
use sync::{
    Call, CallError, ClusterFacts, Down, Identity, IncomingCall, Input, Limits, MasterEnd, NodeEnd, Output, Position,
    Rejected, Up, Welcome,
};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

/// Nothing here takes so long, even on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Waits for what must come.
pub async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("{what} did not happen"))
}

/// An authority.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub certificate: CertificateDer<'static>,
}

impl Authority {
    pub fn new(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).unwrap().der().clone();
        Self { issuer: Issuer::new(params, key), certificate }
    }

    fn sign(&self, mut params: CertificateParams, usage: ExtendedKeyUsagePurpose) -> Identity {
        params.extended_key_usages = vec![usage];
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        Identity { chain: vec![certificate.der().clone()], key }
    }

    pub fn server(&self, name: &str) -> Identity {
        self.sign(CertificateParams::new(vec![name.to_owned()]).unwrap(), ExtendedKeyUsagePurpose::ServerAuth)
    }

    pub fn node(&self, name: &str) -> Identity {
        self.sign(subject(&format!("system:node:{name}"), "system:nodes"), ExtendedKeyUsagePurpose::ClientAuth)
    }

    pub fn client(&self, name: &str, organization: &str) -> Identity {
        self.sign(subject(name, organization), ExtendedKeyUsagePurpose::ClientAuth)
    }

    pub fn expired(&self, name: &str) -> Identity {
        let mut params = subject(&format!("system:node:{name}"), "system:nodes");
        params.not_before = rcgen::date_time_ymd(2020, 1, 1);
        params.not_after = rcgen::date_time_ymd(2021, 1, 1);
        self.sign(params, ExtendedKeyUsagePurpose::ClientAuth)
    }
}

fn subject(name: &str, organization: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.distinguished_name.push(DnType::OrganizationName, organization);
    params
}

/// A master with its authorities; its sessions are served by [`serve`] or by the test.
pub struct Master {
    pub address: SocketAddr,
    pub server_ca: Authority,
    pub node_ca: Authority,
    pub door: Door,
    pub sessions: mpsc::Receiver<Session>,
    pub shutdown: CancellationToken,
    /// Names that are refused.
    pub banned: Arc<Mutex<Vec<String>>>,
}

impl Master {
    pub fn start(limits: Limits) -> Self {
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        Self::on(udp, Authority::new("server"), Authority::new("nodes"), limits)
    }

    pub fn on(udp: UdpSocket, server_ca: Authority, node_ca: Authority, limits: Limits) -> Self {
        let address = udp.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let tls = Arc::new(sync::tls::server(&server_ca.server(sync::tls::SERVER_NAME), &node_ca.certificate).unwrap());
        let banned: Arc<Mutex<Vec<String>>> = Arc::default();
        let bans = banned.clone();
        let config = master::Config {
            udp,
            tls: Arc::new(move || tls.clone()),
            node_ca: node_ca.certificate.clone(),
            reset_key: [7; 32],
            admit: Arc::new(move |node, _| match bans.lock().unwrap().iter().any(|banned| banned == node) {
                true => Err(Refusal::Dismissed(format!("node {node} was deleted"))),
                false => Ok(()),
            }),
            limits,
        };
        let (door, sessions) = master::listen(config, shutdown.clone()).unwrap();
        Self { address, server_ca, node_ca, door, sessions, shutdown, banned }
    }

    /// Serves links on TCP too, on `listener`, as the API's listener would.
    pub fn serve_tcp(&self, listener: TcpListener) {
        let identity = self.server_ca.server(sync::tls::SERVER_NAME);
        let config = sync::tls::server(&identity, &self.node_ca.certificate).unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let (door, shutdown) = (self.door.clone(), self.shutdown.clone());
        tokio::spawn(async move {
            let accept = async {
                loop {
                    let (stream, remote) = listener.accept().await.unwrap();
                    let (acceptor, door) = (acceptor.clone(), door.clone());
                    tokio::spawn(async move {
                        if let Ok(stream) = acceptor.accept(stream).await {
                            assert!(sync::tls::is_link(stream.get_ref().1.alpn_protocol()));
                            door.accept_tls(stream, remote);
                        }
                    });
                }
            };
            tokio::select! {
                () = accept => {}
                () = shutdown.cancelled() => {}
            }
        });
    }

    /// How a node of this master dials.
    pub fn dialling(&self, node: &str, identity: Identity, limits: Limits) -> node::Config {
        node::Config {
            server: self.address.ip().to_string(),
            port: self.address.port(),
            node: node.into(),
            server_ca: self.server_ca.certificate.clone(),
            identity: watch::channel(Arc::new(identity)).1,
            from: None,
            limits,
            bind: None,
        }
    }

    pub fn node(&self, name: &str) -> node::Config {
        self.dialling(name, self.node_ca.node(name), Limits::default())
    }

    pub async fn session(&mut self) -> Session {
        soon("a session", self.sessions.recv()).await.unwrap()
    }
}

impl Drop for Master {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

/// The same port number of TCP and of UDP, where nobody reads: what is sent there vanishes.
pub async fn port_without_quic() -> (TcpListener, UdpSocket) {
    for _ in 0..100 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        // somebody else may have the other one
        if let Ok(hole) = UdpSocket::bind(listener.local_addr().unwrap()) {
            return (listener, hole);
        }
    }
    panic!("no port is free for both TCP and UDP");
}

pub fn facts() -> ClusterFacts {
    ClusterFacts {
        cluster_cidr: "10.42.0.0/16".into(),
        service_cidr: "10.43.0.0/16".into(),
        cluster_dns: None,
        cluster_domain: "cluster.local".into(),
        api: "127.0.0.1:6443".parse().unwrap(),
        loopback: false,
        node_ca_pem: String::new(),
        server_ca_pem: String::new(),
    }
}

pub fn welcome(resumed: bool) -> Down {
    Down::Welcome(Welcome { lineage: "l".into(), cluster: facts(), resumed })
}

pub fn key(name: &str) -> Key {
    Key::new(manifests::Resource::new("", "things"), "n", name)
}

pub fn object(name: &str, revision: u64) -> Arc<Object> {
    let text = format!("{name} as of {revision} ").repeat(40);
    let value = json!({"metadata": {"name": name, "namespace": "n", "uid": name}, "text": text});
    Arc::new(Object::encode(key(name).resource, Revision(revision), value).unwrap())
}

pub fn change(name: &str, revision: u64) -> Down {
    let object = object(name, revision);
    Down::Event(Event { revision: Revision(revision), change: Change::Modified, object, previous: None })
}

/// A cluster that counts: object `o<n % 10>` is new at revision n. It feeds each session that comes, and answers writes.
#[derive(Clone)]
pub struct Books {
    head: watch::Sender<u64>,
    /// What it does not know any more.
    pub forgotten: Arc<Mutex<u64>>,
    /// From where each session began; `None` for a reset.
    pub began: Arc<Mutex<Vec<Option<u64>>>>,
}

impl Books {
    pub fn new() -> Self {
        Self { head: watch::Sender::new(0), forgotten: Arc::default(), began: Arc::default() }
    }

    pub fn grow(&self, by: u64) -> u64 {
        self.head.send_modify(|head| *head += by);
        *self.head.borrow()
    }

    /// Serves sessions until the master goes.
    pub fn serve(&self, mut sessions: mpsc::Receiver<Session>) {
        let books = self.clone();
        tokio::spawn(async move {
            while let Some(session) = sessions.recv().await {
                tokio::spawn(books.clone().feed(session.hello.from, session.end));
            }
        });
    }

    async fn feed(self, from: Option<Position>, end: MasterEnd) {
        let MasterEnd { down, mut up, caller: _caller, asks: _asks } = end;
        tokio::spawn(async move {
            while let Some(up) = up.recv().await {
                match up {
                    Up::Writes(batch) => batch.answer(Err(Rejected::Conflict("look again".into()))),
                    Up::Renew(renewal) => renewal.answer(Ok(())),
                }
            }
        });
        let mut head = self.head.subscribe();
        let now = *head.borrow_and_update();
        let good =
            from.map(|from| from.revision.0).filter(|from| (*self.forgotten.lock().unwrap()..=now).contains(from));
        self.began.lock().unwrap().push(good);
        if down.send(welcome(good.is_some())).await.is_err() {
            return;
        }
        let mut fed = match good {
            Some(from) => from,
            None => {
                let oldest = now.saturating_sub(9).max(1);
                let objects = (oldest..=now).map(|n| object(&format!("o{}", n % 10), n)).collect();
                if down.send(Down::Reset { revision: Revision(now), objects }).await.is_err() {
                    return;
                }
                now
            }
        };
        loop {
            let now = *head.borrow_and_update();
            while fed < now {
                fed += 1;
                if down.send(change(&format!("o{}", fed % 10), fed)).await.is_err() {
                    return;
                }
            }
            if down.send(Down::Reached(Revision(fed))).await.is_err() {
                return;
            }
            tokio::select! {
                changed = head.changed() => if changed.is_err() { return },
                () = down.closed() => return,
            }
        }
    }
}

/// A node's replica, which counts what it was told.
#[derive(Default)]
pub struct Replica {
    pub world: World,
    pub welcomes: Vec<bool>,
    pub resets: usize,
    pub events: usize,
}

impl Replica {
    pub fn fold(&mut self, message: Down) {
        match message {
            Down::Welcome(welcome) => self.welcomes.push(welcome.resumed),
            Down::Reset { revision, objects } => {
                self.resets += 1;
                self.world = World::default();
                objects.into_iter().for_each(|object| self.world.put(object));
                self.world.advance(revision);
            }
            Down::Event(event) => {
                self.events += 1;
                self.world.fold(&event);
            }
            Down::Reached(revision) => self.world.advance(revision),
        }
    }

    /// Reads on until the replica has reached a revision; then it must be what the books say.
    pub async fn reach(&mut self, link: &mut node::Link, revision: u64) {
        while self.world.revision().0 < revision || self.welcomes.is_empty() {
            let message = soon("the next message", link.end.next()).await.unwrap();
            self.fold(message);
        }
        for n in revision.saturating_sub(9).max(1)..=revision {
            let name = format!("o{}", n % 10);
            assert_eq!(self.world.get(&key(&name)).unwrap().json(), object(&name, n).json());
        }
    }
}

/// Waits until a link is in a state.
pub async fn wait_state(link: &node::Link, what: &str, is: impl FnMut(&LinkState) -> bool) -> LinkState {
    let mut states = link.state.clone();
    let found = timeout(PATIENCE, states.wait_for(is)).await.map(|state| state.unwrap().clone());
    found.unwrap_or_else(|_| panic!("{what} did not happen: {:?}", link.state.borrow()))
}

pub async fn up(link: &node::Link) -> LinkState {
    wait_state(link, "the link", |state| matches!(state, LinkState::Up { .. })).await
}

/// Serves a node's calls: a log of what is asked, an echo for exec, and what each call does when it is cancelled.
pub fn answer_calls(mut end: NodeEnd) -> mpsc::UnboundedReceiver<&'static str> {
    let (told, news) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Some(incoming) = end.call().await {
            tokio::spawn(answer(incoming, told.clone()));
        }
    });
    news
}

async fn answer(incoming: IncomingCall, told: mpsc::UnboundedSender<&'static str>) {
    let (call, mut input, reply) = incoming.split();
    match call {
        Call::Logs(logs) if logs.pod == "missing" => {
            reply.answer(Err(CallError::NotFound("pods \"missing\" not found".into())));
        }
        // for ever, and it is noticed when nobody reads any more
        Call::Logs(_) => {
            let guard = Told("log dropped", told);
            let lines = stream::unfold(guard, |guard| async move {
                tokio::time::sleep(Duration::from_millis(1)).await;
                Some((Ok(Output::Stdout(Bytes::from_static(b"line\n"))), guard))
            });
            reply.answer(Ok(lines.boxed()));
        }
        // says back what it hears; at the end of the input, how much that was
        Call::Exec(_) => {
            let (out, outputs) = mpsc::channel(4);
            reply.answer(Ok(
                stream::unfold(outputs, |mut outputs| async { Some((outputs.recv().await?, outputs)) }).boxed()
            ));
            let (mut heard, mut has_ended) = (0, false);
            while let Some(piece) = input.recv().await {
                let output = match piece {
                    Input::Data(bytes) => {
                        heard += bytes.len();
                        Output::Stdout(bytes)
                    }
                    Input::Resize { columns, rows } => Output::Stderr(format!("{columns}x{rows}").into()),
                    Input::End => {
                        has_ended = true;
                        break;
                    }
                };
                if out.send(Ok(output)).await.is_err() {
                    let _ = told.send("exec dropped");
                    return;
                }
            }
            if !has_ended {
                let _ = told.send("client gone");
                return;
            }
            let _ = out.send(Ok(Output::Exit(heard as i32))).await;
        }
        // never reads its input
        Call::Attach(_) => {
            drop(input);
            reply.answer(Ok(stream::once(async {
                tokio::time::sleep(Duration::from_millis(300)).await;
                Ok(Output::Exit(0))
            })
            .boxed()));
        }
        // more than any window, as fast as it is read
        Call::PortForward(_) => {
            let guard = Told("forward dropped", told);
            let pieces = stream::unfold(guard, |guard| async move {
                FORWARDED.fetch_add(1, Ordering::Relaxed);
                Some((Ok(Output::Stdout(Bytes::from(vec![1; 32 << 10]))), guard))
            });
            reply.answer(Ok(pieces.boxed()));
        }
        // dies with an error
        Call::Usage => {
            let outputs = [Ok(Output::Stdout(Bytes::from_static(b"{"))), Err(CallError::Failed("it broke".into()))];
            reply.answer(Ok(stream::iter(outputs).boxed()));
        }
    }
}

/// Pieces that port-forwards have given away.
pub static FORWARDED: AtomicUsize = AtomicUsize::new(0);

struct Told(&'static str, mpsc::UnboundedSender<&'static str>);

impl Drop for Told {
    fn drop(&mut self) {
        let _ = self.1.send(self.0);
    }
}
