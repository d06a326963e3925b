//! A cluster's API without the cluster: a store in a temporary directory, served on a loopback port, and a client.
#![allow(dead_code, reason = "each test binary uses its part")]

use api::{
    Api, ApiConfig, AttachOptions, Authorizer, ByteStream, CallError, ExecOptions, Input, Limits, LogsOptions,
    NodeUsage, Nodes, Opening, Output, PodUsage, Route, TokenTable, Usage, User,
};
use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use futures::stream::{self, StreamExt};
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde_json::{Value, json};
use state::{Identities, Object, World};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use store::Store;
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// The token of user `alice`.
pub const TOKEN: &str = "s3cret";
/// What the API shows as its authority.
pub const CA_PEM: &str = "-----BEGIN CERTIFICATE-----\n";
/// A group that may read Nodes and do nothing else.
pub const QUARANTINED: &str = "quarantined";
/// The token of user `carol`, who is of it.
pub const QUARANTINED_TOKEN: &str = "fever";

/// Decides about the quarantined.
struct Quarantine;

impl Authorizer for Quarantine {
    fn allows(&self, user: &User, route: &Route, _: &World) -> Option<bool> {
        let reads_nodes =
            || route.resource.as_ref().is_some_and(|at| at.plural == "nodes" && matches!(route.verb, "get" | "list"));
        user.is_of(QUARANTINED).then(reads_nodes)
    }
}

/// SplitMix64: good enough for names.
struct Random(u64);

impl Identities for Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

/// A log that is asked for with this limit breaks off.
pub const BREAKING_BYTES: u64 = 77;

/// Nodes whose log is the options they were asked with, and whose programs are played. Holds the UID of
/// pod `p`, and for each program that is played one more count of `running`.
struct Echo {
    pod_uid: Arc<Mutex<String>>,
    running: Arc<()>,
}

impl Nodes for Echo {
    fn logs(&self, pod: Arc<Object>, options: LogsOptions) -> BoxFuture<'static, Result<ByteStream, CallError>> {
        async move {
            if options.limit_bytes == Some(BREAKING_BYTES) {
                let pieces =
                    [Ok(Bytes::from("begun\n")), Err(CallError::Failed { message: "the disk is gone".into() })];
                return Ok(stream::iter(pieces).boxed());
            }
            let line = format!("{} {} tail={:?}\n", pod.meta().name, options.container, options.tail_lines);
            Ok(stream::iter([Ok(Bytes::from(line))]).boxed())
        }
        .boxed()
    }

    fn exec(&self, _: Arc<Object>, options: ExecOptions, input: mpsc::Receiver<Input>) -> Opening {
        if options.command[0] == "absent" {
            let message = format!("container not found ({:?})", options.container);
            return async { Err(CallError::NotFound { message }) }.boxed();
        }
        play(&self.running, |say| program(options.command, input, say))
    }

    fn attach(&self, _: Arc<Object>, options: AttachOptions, input: mpsc::Receiver<Input>) -> Opening {
        let command = if options.streams.stdin { "cat" } else { "exit" };
        play(&self.running, |say| program(vec![command.into(), "3".into()], input, say))
    }

    fn port_forward(&self, _: Arc<Object>, port: u16, input: mpsc::Receiver<Input>) -> Opening {
        if port == 1 {
            return async { Err(CallError::Failed { message: "connection refused".into() }) }.boxed();
        }
        play(&self.running, |say| echo_port(input, say))
    }

    fn usage(&self, node: String) -> BoxFuture<'static, Result<NodeUsage, CallError>> {
        if node == "dead" {
            return std::future::pending().boxed();
        }
        let total = Usage { cpu_nanocores: 123_456_789, memory_bytes: 3 * 1024 * 1024 };
        let one = Usage { cpu_nanocores: 1500, memory_bytes: 2048 };
        let pods = vec![PodUsage {
            namespace: "default".into(),
            name: "p".into(),
            uid: self.pod_uid.lock().expect("lock").clone(),
            containers: vec![("a".into(), one)],
        }];
        let timestamp = "2026-01-02T03:04:05Z".parse().expect("time");
        async move { Ok(NodeUsage { timestamp, window: std::time::Duration::from_secs(10), total, pods }) }.boxed()
    }
}

/// Who a client is.
pub enum Who {
    /// Nobody.
    Anonymous,
    /// By this token.
    Token(&'static str),
    /// By the certificate of `admin`, group `system:masters`.
    Certificate,
}

/// A served API.
pub struct Server {
    address: SocketAddr,
    ca: CertificateDer<'static>,
    client: (CertificateDer<'static>, Vec<u8>),
    pub store: Store,
    /// UID of the pod that nodes have figures of.
    pub pod_uid: Arc<Mutex<String>>,
    running: Arc<()>,
    shutdown: CancellationToken,
    serving: JoinHandle<()>,
    _dir: TempDir,
}

/// An answer, read whole.
#[derive(Debug)]
pub struct Answer {
    pub code: u16,
    pub warnings: Vec<String>,
    pub body: Bytes,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {:?}", self.body))
    }

    pub fn message(&self) -> String {
        self.json()["message"].as_str().unwrap_or_default().to_owned()
    }
}

/// A program or port at a node, played by a task: it takes input and says what it likes.
fn play<F, P>(running: &Arc<()>, act: P) -> Opening
where
    F: Future<Output = ()> + Send + 'static,
    P: FnOnce(mpsc::Sender<Result<Output, CallError>>) -> F,
{
    let (say, said) = mpsc::channel(4);
    let played = tokio::spawn(act(say));
    // dropping the answer ends the call
    let ending = Ending(played.abort_handle(), running.clone());
    let outputs = stream::unfold((said, ending), async |(mut said, ending)| {
        let output = said.recv().await?;
        Some((output, (said, ending)))
    });
    async move { Ok(outputs.boxed()) }.boxed()
}

struct Ending(tokio::task::AbortHandle, #[allow(dead_code)] Arc<()>);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The programs there are: `cat`, `count` (of its input), `say TEXT`, `warn TEXT`, `flood BYTES`, `sizes`, `exit CODE`,
/// `break`, `sleep`. Each ends with 0 unless it says otherwise.
async fn program(command: Vec<String>, mut input: mpsc::Receiver<Input>, say: mpsc::Sender<Result<Output, CallError>>) {
    let argument = command.get(1).cloned().unwrap_or_default();
    let text = |text: String| Ok(Output::Stdout(Bytes::from(text)));
    let mut code = 0;
    let mut count = 0;
    match command[0].as_str() {
        "cat" | "count" | "sizes" => loop {
            let answer = match input.recv().await {
                Some(Input::Data(bytes)) if command[0] == "cat" => Ok(Output::Stdout(bytes)),
                Some(Input::Data(bytes)) => {
                    count += bytes.len();
                    continue;
                }
                Some(Input::Resize { columns, rows }) if command[0] == "sizes" => text(format!("{columns}x{rows} ")),
                Some(Input::Resize { .. }) => continue,
                Some(Input::End) if command[0] == "count" => break drop(say.send(text(count.to_string())).await),
                Some(Input::End) => break,
                // the client has gone
                None => return,
            };
            if say.send(answer).await.is_err() {
                return;
            }
        },
        "say" => drop(say.send(text(argument)).await),
        "warn" => drop(say.send(Ok(Output::Stderr(argument.into()))).await),
        "flood" => {
            let mut left: usize = argument.parse().expect("a number");
            while left > 0 {
                let length = left.min(32 * 1024);
                left -= length;
                if say.send(Ok(Output::Stdout(vec![b'x'; length].into()))).await.is_err() {
                    return;
                }
            }
        }
        "exit" => code = argument.parse().expect("a number"),
        "break" => return drop(say.send(Err(CallError::Failed { message: "it broke".into() })).await),
        "sleep" => std::future::pending().await,
        other => panic!("no program {other}"),
    }
    drop(say.send(Ok(Output::Exit(code))).await);
}

/// A port that says everything back, and goodbye when it has heard all.
async fn echo_port(mut input: mpsc::Receiver<Input>, say: mpsc::Sender<Result<Output, CallError>>) {
    let mut count = 0;
    loop {
        let answer = match input.recv().await {
            Some(Input::Data(bytes)) => {
                count += bytes.len();
                bytes
            }
            Some(Input::End) => return drop(say.send(Ok(Output::Stdout(format!("heard {count}").into()))).await),
            _ => return,
        };
        if say.send(Ok(Output::Stdout(answer))).await.is_err() {
            return;
        }
    }
}

impl Server {
    /// Serves an API with the namespace `default`.
    pub async fn start() -> Self {
        Self::start_with(Limits::default()).await
    }

    pub async fn start_with(limits: Limits) -> Self {
        let dir = tempfile::tempdir().expect("temporary directory");
        let (store, writer) = Store::open(&dir.path().join("db"), store::Limits::default()).expect("store");
        std::thread::spawn(move || writer.run());
        let (ca, issuer) = authority();
        let serving_key = KeyPair::generate().expect("key");
        let names = vec!["localhost".to_owned()];
        let serving = CertificateParams::new(names).expect("params").signed_by(&serving_key, &issuer).expect("sign");
        let key = PrivateKeyDer::Pkcs8(serving_key.serialize_der().into());
        let serving = api::ServingCertificate::new(vec![serving.der().clone()], key).expect("certificate");
        let tls = api::tls_config(Arc::new(serving), std::slice::from_ref(&ca), &[]).expect("tls");
        let mut tokens = TokenTable::default();
        tokens.insert(TOKEN, User::new("alice", ["dev".to_owned()]));
        tokens.insert(QUARANTINED_TOKEN, User::new("carol", [QUARANTINED.to_owned()]));
        let (pod_uid, running) = (Arc::new(Mutex::new(String::new())), Arc::new(()));
        let api = Api::new(ApiConfig {
            store: store.clone(),
            nodes: Arc::new(Echo { pod_uid: pod_uid.clone(), running: running.clone() }),
            clock: Arc::new(Timestamp::now),
            identities: Mutex::new(Box::new(Random(7))),
            tokens,
            authorizer: Arc::new(Quarantine),
            server_ca_pem: CA_PEM.into(),
            links: None,
            service_cidr: ([10, 43, 0, 0].into(), 16),
            service_addresses_reserved: vec![[10, 43, 0, 10].into()],
            git_version: "v1.36.0+coracle.0.1.0".into(),
            ready: Arc::new(|| true),
            limits,
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("port");
        let address = listener.local_addr().expect("address");
        let shutdown = CancellationToken::new();
        let serving = tokio::spawn(api::serve(listener, tls, api, shutdown.clone()));
        let client = client_certificate(&issuer);
        let server = Self { address, ca, client, store, pod_uid, running, shutdown, serving, _dir: dir };
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "default"}});
        let made = server.client(Who::Certificate).await.send("POST", "/api/v1/namespaces", &namespace).await;
        assert_eq!(made.code, 201, "{made:?}");
        server
    }

    /// A connection.
    pub async fn client(&self, who: Who) -> Client {
        let token = if let Who::Token(token) = who { Some(token) } else { None };
        let (sender, connection) = http1::handshake(TokioIo::new(self.connect(who).await)).await.expect("http");
        tokio::spawn(connection.with_upgrades());
        Client { sender, token }
    }

    /// Waits until no program is played.
    pub async fn rest(&self) {
        let began = std::time::Instant::now();
        // the server's own and the nodes'
        while Arc::strong_count(&self.running) > 2 {
            assert!(began.elapsed() < std::time::Duration::from_secs(10), "programs go on");
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    }

    /// Where it is served.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The authority of its certificate, DER.
    pub fn authority(&self) -> &[u8] {
        &self.ca
    }

    async fn connect(&self, who: Who) -> tokio_rustls::client::TlsStream<TcpStream> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.ca.clone()).expect("root");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(roots);
        let config = match who {
            Who::Certificate => {
                let key = PrivateKeyDer::Pkcs8(self.client.1.clone().into());
                builder.with_client_auth_cert(vec![self.client.0.clone()], key).expect("client certificate")
            }
            _ => builder.with_no_client_auth(),
        };
        let tcp = TcpStream::connect(self.address).await.expect("connect");
        let name = ServerName::try_from("localhost").expect("name");
        tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, tcp).await.expect("handshake")
    }

    /// Ends it, and sees that it ends.
    pub async fn stop(self) {
        self.shutdown.cancel();
        self.serving.await.expect("serve ends");
        self.store.close().await;
    }
}

fn authority() -> (CertificateDer<'static>, Issuer<'static, KeyPair>) {
    let key = KeyPair::generate().expect("key");
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, "test-ca");
    let certificate = params.self_signed(&key).expect("sign");
    (certificate.der().clone(), Issuer::new(params, key))
}

fn client_certificate(issuer: &Issuer<'static, KeyPair>) -> (CertificateDer<'static>, Vec<u8>) {
    let key = KeyPair::generate().expect("key");
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "admin");
    params.distinguished_name.push(DnType::OrganizationName, "system:masters");
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    (params.signed_by(&key, issuer).expect("sign").der().clone(), key.serialize_der())
}

/// A connection to the API.
pub struct Client {
    sender: SendRequest<Full<Bytes>>,
    token: Option<&'static str>,
}

impl Client {
    pub async fn get(&mut self, path: &str) -> Answer {
        self.raw("GET", path, &[], Bytes::new()).await
    }

    pub async fn send(&mut self, method: &str, path: &str, body: &Value) -> Answer {
        self.raw(method, path, &[("content-type", "application/json")], body.to_string().into()).await
    }

    pub async fn patch(&mut self, path: &str, kind: &str, body: &Value) -> Answer {
        let content_type = format!("application/{kind}+json");
        self.raw("PATCH", path, &[("content-type", &content_type)], body.to_string().into()).await
    }

    pub async fn raw(&mut self, method: &str, path: &str, headers: &[(&str, &str)], body: Bytes) -> Answer {
        let answer = self.open(method, path, headers, body).await;
        let (head, body) = answer.into_parts();
        let warnings = head.headers.get_all("warning").iter();
        let warnings = warnings.map(|value| value.to_str().expect("text").to_owned()).collect();
        let body = body.collect().await.expect("body").to_bytes();
        Answer { code: head.status.as_u16(), warnings, body }
    }

    /// Asks to leave HTTP: the answer's headers and what the connection has become.
    pub async fn upgrade(
        mut self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
    ) -> Result<(http::HeaderMap, TokioIo<hyper::upgrade::Upgraded>), Answer> {
        let mut answer = self.open(method, path, headers, Bytes::new()).await;
        if answer.status() != 101 {
            let (head, body) = answer.into_parts();
            let body = body.collect().await.expect("body").to_bytes();
            return Err(Answer { code: head.status.as_u16(), warnings: Vec::new(), body });
        }
        let upgraded = hyper::upgrade::on(&mut answer).await.expect("upgrade");
        Ok((answer.headers().clone(), TokioIo::new(upgraded)))
    }

    async fn open(
        &mut self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Bytes,
    ) -> http::Response<hyper::body::Incoming> {
        let mut request = Request::builder().method(method).uri(path).header("host", "localhost");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if let Some(token) = self.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        self.sender.ready().await.expect("connection is open");
        self.sender.send_request(request.body(Full::new(body)).expect("request")).await.expect("answer")
    }

    /// A watch; uses the connection up.
    pub async fn watch(mut self, path: &str) -> Watch {
        let answer = self.open("GET", path, &[], Bytes::new()).await;
        assert_eq!(answer.status(), 200);
        Watch { body: answer.into_body(), read: Vec::new(), _client: self }
    }
}

/// An open watch.
pub struct Watch {
    body: hyper::body::Incoming,
    read: Vec<u8>,
    _client: Client,
}

impl Watch {
    /// The next event; `None` when the watch has ended.
    pub async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some(event) = self.line() {
                return Some(event);
            }
            let frame = self.body.frame().await?.expect("frame");
            self.read.extend_from_slice(frame.data_ref().map_or(&[], |data| data));
        }
    }

    /// As [`Watch::next`]; a watch that is broken off has ended too.
    pub async fn try_next(&mut self) -> Option<Value> {
        loop {
            if let Some(event) = self.line() {
                return Some(event);
            }
            let frame = self.body.frame().await?.ok()?;
            self.read.extend_from_slice(frame.data_ref().map_or(&[], |data| data));
        }
    }

    fn line(&mut self) -> Option<Value> {
        let end = self.read.iter().position(|byte| *byte == b'\n')?;
        let line: Vec<u8> = self.read.drain(..=end).collect();
        Some(serde_json::from_slice(&line).expect("an event a line"))
    }

    /// The next event's type and object's name.
    pub async fn next_short(&mut self) -> (String, String) {
        let event = self.next().await.expect("an event");
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        (text(&event["type"]), text(&event["object"]["metadata"]["name"]))
    }
}

/// A ConfigMap.
pub fn config_map(name: &str, labels: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "labels": labels}, "data": {"k": "v"}})
}
