//! Joining against an API server of the test's own: real TLS, real certificates, real files.

use super::*;
use ::http::{Method, Request, Response, StatusCode, header};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rcgen::{BasicConstraints, CertificateParams, CertificateSigningRequestParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::WebPkiClientVerifier;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::convert::Infallible;
use std::os::unix::fs::PermissionsExt;
use std::sync::Mutex;
use sync::node::LinkState;
use tokio::sync::watch;

const SECRET: &str = "abc123.0123456789abcdef";

struct Authority {
    der: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let der = params.self_signed(&key).unwrap().der().clone();
        Self { der, issuer: Issuer::new(params, key) }
    }
}

/// What the server is asked, and how it decides.
struct Api {
    server_ca: Authority,
    client_ca: Authority,
    /// `METHOD PATH authorization`, `certificate` in place of the authorization where that was shown.
    seen: Mutex<Vec<String>>,
    requests: Mutex<HashMap<String, Value>>,
    denial: Mutex<Option<&'static str>>,
}

impl Api {
    /// Serves until the test ends; returns its port.
    async fn start() -> (Arc<Self>, u16) {
        let (server_ca, client_ca) = (Authority::new(), Authority::new());
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![sync::tls::SERVER_NAME.to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &server_ca.issuer).unwrap().der().clone();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = rustls::RootCertStore::empty();
        roots.add(client_ca.der.clone()).unwrap();
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
            .allow_unauthenticated()
            .build()
            .unwrap();
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let tls = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(verifier)
            .with_single_cert(vec![certificate], key)
            .unwrap();
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(tls));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let api = Arc::new(Self {
            server_ca,
            client_ca,
            seen: Mutex::default(),
            requests: Mutex::default(),
            denial: Mutex::default(),
        });
        let serving = api.clone();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (api, acceptor) = (serving.clone(), acceptor.clone());
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    let shown = stream.get_ref().1.peer_certificates().map(|chain| sync::tls::node_name(&chain[0]));
                    let service = service_fn(|request| api.answer(request, shown.as_ref().map(|_| ())));
                    let connection = hyper::server::conn::http1::Builder::new();
                    let _ = connection.serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        (api, port)
    }

    async fn answer(&self, request: Request<Incoming>, shown: Option<()>) -> Result<Response<Full<Bytes>>, Infallible> {
        let (head, body) = request.into_parts();
        let authorization = match head.headers.get(header::AUTHORIZATION) {
            Some(value) => value.to_str().unwrap().to_owned(),
            None if shown.is_some() => "certificate".into(),
            None => String::new(),
        };
        let path = head.uri.path().to_owned();
        self.seen.lock().unwrap().push(format!("{} {path} {authorization}", head.method).trim().to_owned());
        let reply = |status: StatusCode, body: String| {
            Ok(Response::builder().status(status).body(Full::new(Bytes::from(body))).unwrap())
        };
        if path == "/cacerts" {
            return reply(StatusCode::OK, files::pem(std::slice::from_ref(&self.server_ca.der)));
        }
        if authorization != format!("Bearer {SECRET}") && authorization != "certificate" {
            return reply(StatusCode::UNAUTHORIZED, json!({"message": "Unauthorized"}).to_string());
        }
        let object = match head.method {
            Method::POST => {
                let body = body.collect().await.unwrap().to_bytes();
                let mut request: Value = serde_json::from_slice(&body).unwrap();
                request["status"] = json!({});
                let name = request["metadata"]["name"].as_str().unwrap().to_owned();
                self.requests.lock().unwrap().insert(name, request.clone());
                request
            }
            _ => self.decided(path.rsplit('/').next().unwrap()),
        };
        reply(StatusCode::OK, object.to_string())
    }

    /// The second look at a request finds it decided.
    fn decided(&self, name: &str) -> Value {
        let mut requests = self.requests.lock().unwrap();
        let request = requests.get_mut(name).unwrap();
        let before = request.clone();
        if let Some(message) = *self.denial.lock().unwrap() {
            request["status"]["conditions"] = json!([{"type": "Denied", "status": "True", "message": message}]);
        } else {
            let pem = STANDARD.decode(request["spec"]["request"].as_str().unwrap()).unwrap();
            let asked = CertificateSigningRequestParams::from_pem(std::str::from_utf8(&pem).unwrap()).unwrap();
            let signed = asked.signed_by(&self.client_ca.issuer).unwrap();
            request["status"]["certificate"] = STANDARD.encode(files::pem(&[signed.der().clone()])).into();
        }
        before
    }

    fn seen(&self) -> Vec<String> {
        std::mem::take(&mut self.seen.lock().unwrap())
    }
}

fn config(dir: &tempfile::TempDir, port: u16, token: Option<String>) -> JoinConfig {
    JoinConfig {
        server: format!("https://localhost:{port}"),
        token,
        node_name: "edge-1".into(),
        data_dir: dir.path().join("agent"),
    }
}

fn token(api: &Api) -> Option<String> {
    Some(format!("K10{}::{}", request::digest(&api.server_ca.der), SECRET.replace('.', ":")))
}

#[tokio::test]
async fn a_token_is_exchanged_for_a_certificate_once() {
    let (api, port) = Api::start().await;
    let dir = tempfile::tempdir().unwrap();
    let shutdown = CancellationToken::new();
    let first = credentials(&config(&dir, port, token(&api)), &shutdown).await.unwrap();
    assert_eq!(sync::tls::node_name(&first.identity.chain[0]).unwrap(), "edge-1");
    assert_eq!((first.host.as_str(), first.port, &first.server_ca), ("localhost", port, &api.server_ca.der));
    let seen = api.seen();
    assert_eq!(seen[0], "GET /cacerts", "the secret is not shown before the server is known");
    assert!(seen[1].starts_with("POST /apis/certificates.k8s.io/v1/certificatesigningrequests Bearer"), "{seen:?}");
    for file in ["node.key", "node.crt", "server-ca.crt"] {
        let path = dir.path().join("agent/identity").join(file);
        assert_eq!(std::fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o600, "{file}");
    }

    // the next start asks nobody, with or without the token
    for token in [None, token(&api)] {
        let again = credentials(&config(&dir, port, token), &shutdown).await.unwrap();
        assert_eq!(again.identity.chain, first.identity.chain);
    }
    assert!(api.seen().is_empty());

    // renewed with itself, for the same key
    let renewed = renew(&config(&dir, port, None), &first).await.unwrap();
    assert_ne!(renewed.chain, first.identity.chain);
    assert_eq!(renewed.key, first.identity.key);
    assert!(api.seen().iter().all(|line| line.ends_with(" certificate")));

    // another name needs another certificate
    let other = JoinConfig { node_name: "edge-2".into(), ..config(&dir, port, None) };
    assert!(matches!(credentials(&other, &shutdown).await, Err(JoinError::NoToken)));
}

#[tokio::test]
async fn what_cannot_be_joined_says_why() {
    let (api, port) = Api::start().await;
    let dir = tempfile::tempdir().unwrap();
    let shutdown = CancellationToken::new();
    let message = async |config: JoinConfig| credentials(&config, &shutdown).await.err().unwrap().to_string();

    let foreign = Some(format!("K10{}::abc123:0123456789abcdef", "00".repeat(32)));
    let text = message(config(&dir, port, foreign)).await;
    assert!(text.contains("is not the one that the token is for"), "{text}");
    assert_eq!(api.seen(), ["GET /cacerts"]);

    let digest = request::digest(&api.server_ca.der);
    let text = message(config(&dir, port, Some(format!("K10{digest}::server:guess")))).await;
    assert!(text.contains("make a new one with coracle token create"), "{text}");

    let taken = "node \"edge-1\" has joined from another machine; delete it (kubectl delete node edge-1) or choose another \
                 --node-name";
    *api.denial.lock().unwrap() = Some(taken);
    assert_eq!(message(config(&dir, port, token(&api))).await, taken);
    let text = message(JoinConfig { server: "http://host:6443".into(), ..config(&dir, port, token(&api)) }).await;
    assert_eq!(text, "--server http://host:6443: an address like https://HOST:6443 is needed");

    // a server that is not there is waited for
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let config = config(&dir, closed, token(&api));
    let waiting = credentials(&config, &shutdown);
    shutdown.cancel();
    assert!(matches!(waiting.await, Err(JoinError::Stopped)));
}

#[tokio::test]
async fn who_is_not_known_joins_anew_and_who_was_taken_out_does_not() {
    let (api, port) = Api::start().await;
    let dir = tempfile::tempdir().unwrap();
    let shutdown = CancellationToken::new();
    let config = config(&dir, port, token(&api));
    let first = credentials(&config, &shutdown).await.unwrap();
    let (identities, mut identity) = watch::channel(first.identity.clone());
    let (states, state) = watch::channel(LinkState::Connecting { error: None });
    let keeping = tokio::spawn(keep(config, first, identities, state, shutdown.clone()));
    api.seen();
    states.send_replace(LinkState::Refused("unknown key".into()));
    tokio::time::timeout(Duration::from_secs(30), identity.changed()).await.unwrap().unwrap();
    assert_eq!(api.seen()[0], "GET /cacerts");
    let remote = "127.0.0.1:1".parse().unwrap();
    states.send_replace(LinkState::Up { over: sync::node::Transport::Quic, remote });
    tokio::task::yield_now().await;
    states.send_replace(LinkState::Dismissed("deleted".into()));
    assert!(tokio::time::timeout(Duration::from_millis(300), identity.changed()).await.is_err());
    assert!(api.seen().is_empty());
    shutdown.cancel();
    keeping.await.unwrap();
}

#[test]
fn addresses_of_servers() {
    let cases = [
        ("https://host:6443", Some(("host", 6443))),
        ("https://host", Some(("host", 6443))),
        ("https://host:443/", Some(("host", 443))),
        ("https://[::1]:7000", Some(("::1", 7000))),
        ("https://10.0.0.1:6443/", Some(("10.0.0.1", 6443))),
        ("host:6443", None),
        ("https://host/path", None),
        ("https://u@host", None),
        ("", None),
    ];
    for (text, expected) in cases {
        let found = address(text).ok();
        assert_eq!(found.as_ref().map(|(host, port)| (host.as_str(), *port)), expected, "{text}");
    }
}
