//! A small HTTPS server with a certificate of its own: files, redirects, and places that want a token.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use runtime::images::RegistryConfig;
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

const TOKEN: &str = "t0ken";

#[derive(Default)]
struct State {
    places: HashMap<String, Place>,
    requests: Vec<String>,
    scopes: Vec<String>,
    saw_authorization: bool,
}

#[derive(Clone)]
struct Place {
    answer: Answer,
    with_token: bool,
}

#[derive(Clone)]
enum Answer {
    Bytes(Vec<u8>),
    Redirect(String),
}

pub struct TlsServer {
    pub host: String,
    pub url: String,
    certificate: Vec<u8>,
    state: Arc<Mutex<State>>,
    task: JoinHandle<()>,
}

impl Drop for TlsServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl TlsServer {
    pub async fn start() -> TlsServer {
        let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
        let certificate = made.cert.der().clone();
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
        let config = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.clone()], key)
            .unwrap();
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let url = format!("https://{host}");
        let state: Arc<Mutex<State>> = Arc::default();
        let (shared, base) = (state.clone(), url.clone());
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, shared, base) = (acceptor.clone(), shared.clone(), base.clone());
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    let service = hyper::service::service_fn(move |request| {
                        let answer = answer(&shared, &base, &request);
                        async move { Ok::<_, std::convert::Infallible>(answer) }
                    });
                    // A client may go whenever it likes.
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        TlsServer { host, url, certificate: certificate.to_vec(), state, task }
    }

    /// A configuration that takes this server for what it says it is.
    pub fn trusted(&self) -> RegistryConfig {
        RegistryConfig { extra_roots: vec![self.certificate.clone()], ..RegistryConfig::default() }
    }

    fn put(&self, path: &str, answer: Answer, with_token: bool) {
        self.state.lock().unwrap().places.insert(path.to_owned(), Place { answer, with_token });
    }

    pub fn serve(&self, path: &str, bytes: &[u8]) {
        self.put(path, Answer::Bytes(bytes.to_vec()), false);
    }

    pub fn serve_with_token(&self, path: &str, bytes: &[u8]) {
        self.put(path, Answer::Bytes(bytes.to_vec()), true);
    }

    pub fn redirect(&self, path: &str, to: &str) {
        self.put(path, Answer::Redirect(to.to_owned()), false);
    }

    pub fn redirect_with_token(&self, path: &str, to: &str) {
        self.put(path, Answer::Redirect(to.to_owned()), true);
    }

    pub fn requests(&self, path: &str) -> usize {
        self.state.lock().unwrap().requests.iter().filter(|known| *known == path).count()
    }

    pub fn scopes(&self) -> Vec<String> {
        self.state.lock().unwrap().scopes.clone()
    }

    pub fn saw_authorization(&self) -> bool {
        self.state.lock().unwrap().saw_authorization
    }
}

fn answer(state: &Mutex<State>, base: &str, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    let mut state = state.lock().unwrap();
    let path = request.uri().path().to_owned();
    let authorization = request.headers().get("authorization").map(|value| value.to_str().unwrap().to_owned());
    state.requests.push(path.clone());
    state.saw_authorization |= authorization.is_some();
    let status = |status: u16| Response::builder().status(status);
    let body = |bytes: &[u8]| Full::new(Bytes::copy_from_slice(bytes));
    if path == "/token" {
        let scope = request.uri().query().unwrap_or_default().split('&').find_map(|pair| pair.strip_prefix("scope="));
        state.scopes.push(scope.unwrap_or_default().replace("%3A", ":").replace("%2F", "/"));
        let want = format!("Basic {}", STANDARD.encode("user:s3cret"));
        return match authorization {
            Some(found) if found == want => status(200).body(body(b"{\"token\": \"t0ken\"}")).unwrap(),
            _ => status(401).body(body(b"{}")).unwrap(),
        };
    }
    let Some(place) = state.places.get(&path) else { return status(404).body(body(b"")).unwrap() };
    if place.with_token && authorization != Some(format!("Bearer {TOKEN}")) {
        let challenge = format!("Bearer realm=\"{base}/token\",service=\"test\"");
        return status(401).header("www-authenticate", challenge).body(body(b"")).unwrap();
    }
    match &place.answer {
        Answer::Bytes(bytes) => status(200).body(body(bytes)).unwrap(),
        Answer::Redirect(to) => status(307).header("location", to).body(body(b"")).unwrap(),
    }
}
