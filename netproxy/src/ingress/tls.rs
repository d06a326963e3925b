//! Certificates by server name. Bad ones are problems of their own; without a match the default answers, self-signed if none
//! was given. Nothing is read from disk here.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use rustls::crypto::CryptoProvider;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::problems::{About, Problems};
use crate::routes::Certificate;

/// What is wrong with a certificate.
#[derive(Debug, thiserror::Error)]
enum CertificateError {
    #[error("tls.crt is no PEM certificate chain")]
    Chain(#[source] rustls_pki_types::pem::Error),
    #[error("tls.crt holds no certificate")]
    Empty,
    #[error("tls.key is no PEM private key")]
    Key(#[source] rustls_pki_types::pem::Error),
    #[error("tls.crt and tls.key do not make a usable pair")]
    Pair(#[source] rustls::Error),
    #[error("tls.crt cannot be read")]
    Names(#[source] webpki::Error),
}

/// Picks the certificate of a handshake.
pub(crate) struct Certificates {
    provider: Arc<CryptoProvider>,
    current: ArcSwap<Current>,
    self_signed: OnceLock<Option<Arc<CertifiedKey>>>,
}

#[derive(Default)]
struct Current {
    from: Vec<Certificate>,
    default_from: Option<Certificate>,
    exact: HashMap<String, Arc<CertifiedKey>>,
    /// By what follows the `*`.
    wildcard: HashMap<String, Arc<CertifiedKey>>,
    default: Option<Arc<CertifiedKey>>,
}

impl std::fmt::Debug for Certificates {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Certificates").finish_non_exhaustive()
    }
}

impl Certificates {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            provider: Arc::new(rustls::crypto::ring::default_provider()),
            current: ArcSwap::default(),
            self_signed: OnceLock::new(),
        })
    }

    /// What a TLS listener needs.
    pub(crate) fn server_config(self: &Arc<Self>) -> Result<Arc<ServerConfig>, rustls::Error> {
        let mut config = ServerConfig::builder_with_provider(self.provider.clone())
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_cert_resolver(self.clone());
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }

    /// Takes new certificates; unchanged ones cost nothing.
    pub(crate) fn set(&self, from: Vec<Certificate>, default_from: Option<Certificate>, problems: &Problems) {
        let old = self.current.load();
        if old.from == from && old.default_from == default_from {
            return;
        }
        problems.clear_if(|about| match about {
            About::Certificate(name) => !from.iter().chain(&default_from).any(|certificate| certificate.name == *name),
            _ => false,
        });
        let load = |certificate: &Certificate| match self.load(certificate) {
            Ok(loaded) => {
                problems.clear(&About::Certificate(certificate.name.clone()));
                Some(loaded)
            }
            Err(error) => {
                let cause = std::error::Error::source(&error).map_or_else(String::new, |cause| format!(": {cause}"));
                let message = format!("cannot use TLS secret {}: {error}{cause}", certificate.name);
                problems.add(About::Certificate(certificate.name.clone()), message);
                None
            }
        };
        let mut current = Current::default();
        for certificate in &from {
            let Some((key, names)) = load(certificate) else { continue };
            for name in names {
                match name.strip_prefix('*') {
                    Some(suffix) => current.wildcard.entry(suffix.to_owned()).or_insert_with(|| key.clone()),
                    None => current.exact.entry(name).or_insert_with(|| key.clone()),
                };
            }
        }
        current.default = default_from.as_ref().and_then(load).map(|(key, _)| key);
        (current.from, current.default_from) = (from, default_from);
        self.current.store(Arc::new(current));
    }

    fn load(&self, certificate: &Certificate) -> Result<(Arc<CertifiedKey>, Vec<String>), CertificateError> {
        let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(&certificate.chain_pem)
            .collect::<Result<_, _>>()
            .map_err(CertificateError::Chain)?;
        let Some(leaf) = chain.first() else { return Err(CertificateError::Empty) };
        let names = if certificate.hosts.is_empty() {
            let leaf = webpki::EndEntityCert::try_from(leaf).map_err(CertificateError::Names)?;
            leaf.valid_dns_names().map(str::to_ascii_lowercase).collect()
        } else {
            certificate.hosts.iter().map(|host| host.to_ascii_lowercase()).collect()
        };
        let key = PrivateKeyDer::from_pem_slice(&certificate.key_pem).map_err(CertificateError::Key)?;
        let key = CertifiedKey::from_der(chain, key, &self.provider).map_err(CertificateError::Pair)?;
        Ok((Arc::new(key), names))
    }

    /// Made when first needed: most nodes never do.
    fn self_signed(&self) -> Option<Arc<CertifiedKey>> {
        let make = || {
            let made = rcgen::generate_simple_self_signed(["ingress.local".to_owned()]).ok()?;
            let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).ok()?;
            CertifiedKey::from_der(vec![made.cert.der().clone()], key, &self.provider).ok().map(Arc::new)
        };
        self.self_signed.get_or_init(make).clone()
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let current = self.current.load();
        let by_name = hello.server_name().and_then(|name| {
            let name = name.to_ascii_lowercase();
            let suffix = name.find('.').map(|dot| &name[dot..]);
            current.exact.get(&name).or_else(|| current.wildcard.get(suffix?))
        });
        by_name.or(current.default.as_ref()).cloned().or_else(|| self.self_signed())
    }
}
