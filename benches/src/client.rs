//! A client of the Kubernetes API that adds as little as possible to what is measured: one connection, HTTP/1.1 over
//! TLS, the administrator's certificate from the kubeconfig that the server writes.

use anyhow::{Context, Result, bail};
use base64::Engine;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde_json::Value;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// How to reach the API, before there is a connection.
pub struct Access {
    address: SocketAddr,
    tls: TlsConnector,
}

impl Access {
    /// Reads a kubeconfig that holds its certificates inline, as `server` writes it.
    pub fn read(kubeconfig: &Path, port: u16) -> Result<Self> {
        let config: Value = serde_yaml::from_str(&std::fs::read_to_string(kubeconfig)?)?;
        let pem = |pointer: &str| -> Result<Vec<u8>> {
            let text = config.pointer(pointer).and_then(Value::as_str).with_context(|| format!("no {pointer}"))?;
            Ok(base64::engine::general_purpose::STANDARD.decode(text)?)
        };
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(&pem("/clusters/0/cluster/certificate-authority-data")?)?)?;
        let chain: Result<Vec<_>, _> =
            CertificateDer::pem_slice_iter(&pem("/users/0/user/client-certificate-data")?).collect();
        let key = PrivateKeyDer::from_pem_slice(&pem("/users/0/user/client-key-data")?)?;
        let tls = rustls::ClientConfig::builder_with_provider(rustls::crypto::ring::default_provider().into())
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain?, key)?;
        Ok(Self { address: (Ipv4Addr::LOCALHOST, port).into(), tls: TlsConnector::from(Arc::new(tls)) })
    }

    /// A connection on which nothing was said yet.
    pub async fn raw(&self) -> Result<TlsStream<TcpStream>> {
        let stream = TcpStream::connect(self.address).await?;
        stream.set_nodelay(true)?;
        Ok(self.tls.connect(ServerName::from(self.address.ip()), stream).await?)
    }

    /// A connection that is ready to be asked.
    pub async fn connect(&self) -> Result<Client> {
        let stream = self.raw().await?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(Client { sender })
    }
}

/// One connection to the API.
pub struct Client {
    sender: SendRequest<Full<Bytes>>,
}

impl Client {
    /// The object at a path, or the text of an answer that is not JSON as a string.
    pub async fn get(&mut self, path: &str) -> Result<Value> {
        self.send("GET", path, Bytes::new()).await
    }

    /// Creates an object in a collection.
    pub async fn create(&mut self, path: &str, object: &Value) -> Result<Value> {
        self.send("POST", path, object.to_string().into()).await
    }

    /// Puts an object in the place of the one that is there.
    pub async fn replace(&mut self, path: &str, object: &Value) -> Result<Value> {
        self.send("PUT", path, object.to_string().into()).await
    }

    /// Deletes an object.
    pub async fn delete(&mut self, path: &str) -> Result<Value> {
        self.send("DELETE", path, Bytes::new()).await
    }

    async fn send(&mut self, method: &str, path: &str, body: Bytes) -> Result<Value> {
        let request = hyper::Request::builder()
            .method(method)
            .uri(path)
            .header("host", "127.0.0.1")
            .header("accept", "application/json")
            .header("content-type", "application/json")
            .body(Full::new(body))?;
        // the last answer may be read before its connection is free again
        self.sender.ready().await?;
        let answer = self.sender.send_request(request).await?;
        let status = answer.status();
        let body = answer.into_body().collect().await?.to_bytes();
        let text = String::from_utf8_lossy(&body);
        if !status.is_success() {
            bail!("{method} {path}: {status}: {text}");
        }
        Ok(serde_json::from_slice(&body).unwrap_or_else(|_| Value::String(text.into_owned())))
    }
}
