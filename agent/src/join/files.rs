//! Key and certificates of a node on its disk, readable by their owner only. The key is made once; the certificates are
//! replaced whole.

use super::{JoinError, disk};
use rcgen::KeyPair;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use sync::Identity;

/// Certificates of a chain that are looked at.
const CHAIN_MAX: usize = 8;

/// Where they are.
pub struct Files {
    dir: PathBuf,
}

/// What an earlier agent left.
pub struct Found {
    pub server_ca: CertificateDer<'static>,
    pub identity: Arc<Identity>,
}

impl Files {
    /// Below the agent's data directory.
    pub fn new(data_dir: &Path) -> Self {
        Self { dir: data_dir.join("identity") }
    }

    fn key_file(&self) -> PathBuf {
        self.dir.join("node.key")
    }

    fn certificate_file(&self) -> PathBuf {
        self.dir.join("node.crt")
    }

    fn ca_file(&self) -> PathBuf {
        self.dir.join("server-ca.crt")
    }

    /// The credentials of this node, if all are there and of this name. What is damaged is as if it were not there.
    ///
    /// # Errors
    /// When the disk does not let them be read.
    pub fn load(&self, node: &str) -> Result<Option<Found>, JoinError> {
        let (key_file, certificate_file, ca_file) = (self.key_file(), self.certificate_file(), self.ca_file());
        let (Some(key), Some(chain), Some(ca)) = (read(&key_file)?, read(&certificate_file)?, read(&ca_file)?) else {
            return Ok(None);
        };
        let parsed = || {
            let key = KeyPair::from_pem(&key).ok()?;
            let chain = certificates(&chain)?;
            let server_ca = certificates(&ca)?.into_iter().next()?;
            let is_ours = sync::tls::node_name(chain.first()?).ok()? == node;
            (is_ours && super::request::is_for(chain.first()?, &key)).then_some((key, chain, server_ca))
        };
        let Some((key, chain, server_ca)) = parsed() else {
            let dir = self.dir.display();
            tracing::warn!(%dir, node, "the certificate on disk is not for this node's name and key: joining anew");
            return Ok(None);
        };
        Ok(Some(Found { server_ca, identity: Arc::new(self.identity(&chain, &key)?) }))
    }

    /// The node's key; made when there is none.
    ///
    /// # Errors
    /// When the disk refuses, or what is there is no key.
    pub fn key(&self) -> Result<KeyPair, JoinError> {
        let path = self.key_file();
        if let Some(pem) = read(&path)? {
            let bad = |error: rcgen::Error| io::Error::new(io::ErrorKind::InvalidData, error.to_string());
            return KeyPair::from_pem(&pem).map_err(bad).map_err(disk("read the key in", &path));
        }
        let key = KeyPair::generate().map_err(|error| JoinError::Key(error.to_string()))?;
        self.write(&path, key.serialize_pem().as_bytes())?;
        Ok(key)
    }

    /// Keeps a certificate chain, and whom to trust.
    ///
    /// # Errors
    /// The disk's.
    pub fn store(
        &self,
        chain: &[CertificateDer<'static>],
        server_ca: Option<&CertificateDer<'static>>,
    ) -> Result<(), JoinError> {
        if let Some(ca) = server_ca {
            self.write(&self.ca_file(), pem(std::slice::from_ref(ca)).as_bytes())?;
        }
        self.write(&self.certificate_file(), pem(chain).as_bytes())
    }

    /// What the link shows.
    ///
    /// # Errors
    /// When the key is of no kind that TLS takes.
    pub fn identity(&self, chain: &[CertificateDer<'static>], key: &KeyPair) -> Result<Identity, JoinError> {
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        Ok(Identity { chain: chain.to_vec(), key })
    }

    /// Whole or not at all, and on the disk when this returns.
    fn write(&self, path: &Path, bytes: &[u8]) -> Result<(), JoinError> {
        let write = || -> io::Result<()> {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.dir)?;
            let new = path.with_extension("new");
            let mut file = fs::OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(&new)?;
            file.write_all(bytes)?;
            file.sync_all()?;
            fs::rename(&new, path)?;
            fs::File::open(&self.dir)?.sync_all()
        };
        write().map_err(disk("write", path))
    }
}

/// `None` when there is no such file.
fn read(path: &Path) -> Result<Option<String>, JoinError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(disk("read", path)(error)),
    }
}

/// The certificates of a PEM; `None` when there is none, or something else.
pub fn certificates(pem: &str) -> Option<Vec<CertificateDer<'static>>> {
    let found: Vec<_> =
        CertificateDer::pem_slice_iter(pem.as_bytes()).take(CHAIN_MAX).collect::<Result<_, _>>().ok()?;
    (!found.is_empty()).then_some(found)
}

/// As PEM.
pub fn pem(chain: &[CertificateDer<'_>]) -> String {
    use base64::Engine;
    let mut text = String::new();
    for certificate in chain {
        text.push_str("-----BEGIN CERTIFICATE-----\n");
        let encoded = base64::engine::general_purpose::STANDARD.encode(certificate);
        for line in encoded.as_bytes().chunks(64) {
            text.push_str(&String::from_utf8_lossy(line));
            text.push('\n');
        }
        text.push_str("-----END CERTIFICATE-----\n");
    }
    text
}
