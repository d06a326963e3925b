//! The certificates of this process, renewed while it runs: the one that the API and the links show, and that of the node
//! in this process.

use crate::entropy::now;
use crate::identities::public_key_sha256;
use crate::pki::{Pair, Pki};
use anyhow::{Context, Result};
use api::ServingCertificate;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;
use sync::Identity;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// How often it is looked whether a certificate is to be renewed.
const LOOK_EVERY: Duration = Duration::from_secs(3600);
/// File of the certificate of the node in this process.
const NODE_FILE: &str = "client-node";

/// What this process proves itself with.
pub struct Certificates {
    pki: Pki,
    /// What the serving certificate names.
    names: Vec<String>,
    node: String,
    serving: Arc<ServingCertificate>,
    link: RwLock<Arc<rustls::ServerConfig>>,
    node_identity: watch::Sender<Arc<Identity>>,
    /// PEM of what is shown now, and of the node's.
    shown: RwLock<[String; 2]>,
}

impl Certificates {
    /// Those of a server that is known by `names` and whose node is called `node`.
    ///
    /// # Errors
    /// When one cannot be made or kept.
    pub fn open(pki: Pki, names: Vec<String>, node: &str) -> Result<Self> {
        let (serving, own) = (pki.serving(&names, now())?, node_certificate(&pki, node)?);
        let (chain, key) = serving.der()?;
        Ok(Self {
            serving: Arc::new(ServingCertificate::new(chain, key)?),
            link: RwLock::new(Arc::new(link_config(&pki, &serving)?)),
            node_identity: watch::Sender::new(Arc::new(identity(&own)?)),
            shown: RwLock::new([serving.certificate, own.certificate]),
            node: node.to_owned(),
            names,
            pki,
        })
    }

    /// What the API shows.
    pub fn serving(&self) -> Arc<ServingCertificate> {
        self.serving.clone()
    }

    /// The TLS configuration of links over UDP.
    pub fn link(&self) -> Arc<rustls::ServerConfig> {
        self.link.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The certificate of the node in this process, through its renewals.
    pub fn node_identity(&self) -> watch::Receiver<Arc<Identity>> {
        self.node_identity.subscribe()
    }

    /// SHA-256 of its public key, hexadecimal.
    ///
    /// # Errors
    /// When the certificate cannot be read.
    pub fn node_key_sha256(&self) -> Result<String> {
        let identity = self.node_identity.borrow().clone();
        identity.chain.first().and_then(public_key_sha256).context("read the node's certificate")
    }

    /// Renews what is due, until shutdown.
    pub async fn keep(self: Arc<Self>, shutdown: CancellationToken) {
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
            if let Err(error) = self.renew() {
                tracing::error!(error = format!("{error:#}"), "certificates cannot be renewed");
            }
        }
    }

    /// Shows new certificates in place of those that are near their end.
    fn renew(&self) -> Result<()> {
        let (serving, own) = (self.pki.serving(&self.names, now())?, node_certificate(&self.pki, &self.node)?);
        let mut shown = self.shown.write().unwrap_or_else(PoisonError::into_inner);
        if serving.certificate != shown[0] {
            let (chain, key) = serving.der()?;
            let link = Arc::new(link_config(&self.pki, &serving)?);
            self.serving.replace(chain, key)?;
            *self.link.write().unwrap_or_else(PoisonError::into_inner) = link;
            shown[0] = serving.certificate;
            tracing::info!("the serving certificate is renewed");
        }
        if own.certificate != shown[1] {
            self.node_identity.send_replace(Arc::new(identity(&own)?));
            shown[1] = own.certificate;
            tracing::info!("the node's certificate is renewed");
        }
        Ok(())
    }
}

fn node_certificate(pki: &Pki, node: &str) -> Result<Pair> {
    pki.client(NODE_FILE, &format!("system:node:{node}"), &["system:nodes"], now())
}

fn identity(pair: &Pair) -> Result<Identity> {
    let (chain, key) = pair.der()?;
    Ok(Identity { chain, key })
}

fn link_config(pki: &Pki, serving: &Pair) -> Result<rustls::ServerConfig> {
    let node_ca = CertificateDer::from_pem_slice(pki.client_ca.certificate.as_bytes())?;
    sync::tls::server(&identity(serving)?, &node_ca).context("set up TLS of the links")
}
