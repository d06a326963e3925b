//! A cluster's API without the cluster: a store in a temporary directory, served on a loopback port, and a client.
#![allow(dead_code, reason = "each test binary uses its part")]

use api::{Api, ApiConfig, ByteStream, CallError, Limits, LogsOptions, Nodes, TokenTable, User};
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
use state::{Identities, Object};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use store::Store;
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// The token of user `alice`.
pub const TOKEN: &str = "s3cret";

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

/// Nodes whose log is the options they were asked with.
struct Echo;

impl Nodes for Echo {
    fn logs(&self, pod: Arc<Object>, options: LogsOptions) -> BoxFuture<'static, Result<ByteStream, CallError>> {
        async move {
            let line = format!("{} {} tail={:?}\n", pod.meta().name, options.container, options.tail_lines);
            Ok(stream::iter([Ok(Bytes::from(line))]).boxed())
        }
        .boxed()
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
        let tls = api::tls_config(vec![serving.der().clone()], key, std::slice::from_ref(&ca)).expect("tls");
        let mut tokens = TokenTable::default();
        tokens.insert(TOKEN, User::new("alice", ["dev".to_owned()]));
        let api = Api::new(ApiConfig {
            store: store.clone(),
            nodes: Arc::new(Echo),
            clock: Arc::new(Timestamp::now),
            identities: Mutex::new(Box::new(Random(7))),
            tokens,
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
        let server = Self { address, ca, client, store, shutdown, serving, _dir: dir };
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "default"}});
        let made = server.client(Who::Certificate).await.send("POST", "/api/v1/namespaces", &namespace).await;
        assert_eq!(made.code, 201, "{made:?}");
        server
    }

    /// A connection.
    pub async fn client(&self, who: Who) -> Client {
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
        let tls = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, tcp).await.expect("handshake");
        let (sender, connection) = http1::handshake(TokioIo::new(tls)).await.expect("http");
        tokio::spawn(connection);
        let token = if let Who::Token(token) = who { Some(token) } else { None };
        Client { sender, token }
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
