//! Which key a node's name belongs to, and who may link under it.
//!
//! The first key that is approved for a name is kept in a Secret (`controllers::csr::identity`); the certificate of a link
//! must have that very key. When the Node is deleted, the name is free, and who comes with its old key is told so.

use anyhow::{Context, Result, ensure};
use controllers::csr::identity;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{Node, Secret};
use rustls::pki_types::CertificateDer;
use serde_json::json;
use sha2::{Digest, Sha256};
use state::{Change, Event, Key, Revision, Stamp, Write};
use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, PoisonError};
use store::Store;
use sync::master::Refusal;

/// Deletions of Nodes that are remembered until their Secrets say so.
const DELETIONS_MAX: usize = 4096;

/// The names of the cluster's nodes. Clones share them.
#[derive(Clone)]
pub struct Identities {
    store: Store,
    /// When Nodes were deleted whose Secret may not say yet that the name is free.
    deleted: Arc<Mutex<HashMap<String, Revision>>>,
}

impl Identities {
    /// Those of a store.
    pub fn new(store: Store) -> Self {
        Self { store, deleted: Arc::default() }
    }

    /// Takes note of a Node's deletion.
    pub fn see(&self, event: &Event) {
        if !event.key().is::<Node>() || event.change != Change::Deleted {
            return;
        }
        let mut deleted = self.deleted.lock().unwrap_or_else(PoisonError::into_inner);
        if deleted.len() >= DELETIONS_MAX {
            let world = self.store.world();
            deleted.retain(|node, at| world.get(&identity::key(node)).is_some_and(|secret| secret.revision() < *at));
        }
        deleted.insert(event.object.meta().name.clone(), event.revision);
    }

    /// Whether an event may change whose a name is.
    pub fn concerns(event: &Event) -> bool {
        event.key().is::<Secret>() && event.key().name.ends_with(".node-identity")
    }

    /// The key that has a node's name.
    pub fn key_of(&self, node: &str) -> Option<String> {
        let world = self.store.world();
        let secret = world.get(&identity::key(node))?;
        let deleted = self.deleted.lock().unwrap_or_else(PoisonError::into_inner);
        if deleted.get(node).is_some_and(|deleted| secret.revision() < *deleted) {
            return None;
        }
        identity::of(&world, node).map(str::to_owned)
    }

    /// Whether the holder of a certificate (DER) may link under a name.
    ///
    /// # Errors
    /// Why not, for people.
    pub fn admit(&self, node: &str, certificate: &[u8]) -> Result<(), Refusal> {
        let key = public_key_sha256(&CertificateDer::from(certificate)).ok_or("the certificate cannot be read")?;
        self.admit_key(node, &key)
    }

    /// As [`Identities::admit`], of a key.
    ///
    /// # Errors
    /// Why not, for people.
    pub fn admit_key(&self, node: &str, key: &str) -> Result<(), Refusal> {
        match self.key_of(node) {
            Some(known) if known == key => Ok(()),
            Some(_) => Err(Refusal::Dismissed(format!(
                "node {node:?} has joined from another machine; delete it (kubectl delete node {node}) or choose another \
                 --node-name"
            ))),
            None if self.store.world().get(&identity::key(node)).is_some() => Err(Refusal::Dismissed(format!(
                "node {node:?} was deleted; it must join again with a token when it is started anew"
            ))),
            None => Err(Refusal::Refused(format!("node {node:?} is not known; it must join again with a token"))),
        }
    }

    /// Reserves a name for a key of this machine.
    ///
    /// # Errors
    /// When another machine has it, or the store does not take it.
    pub async fn reserve(&self, node: &str, public_key_sha256: &str) -> Result<()> {
        let world = self.store.world();
        if let Some(known) = identity::of(&world, node) {
            ensure!(
                known == public_key_sha256,
                "--node-name {node}: a node of this name has joined from another machine; delete it (kubectl delete node \
                 {node}) or choose another name"
            );
            return Ok(());
        }
        let key: Key = identity::key(node);
        let mut value = json!({
            "apiVersion": "v1", "kind": "Secret", "type": identity::TYPE,
            "metadata": {"name": &*key.name, "namespace": &*key.namespace},
            "data": {identity::PUBLIC_KEY: ByteString(public_key_sha256.as_bytes().to_vec())},
        });
        Stamp { now: crate::entropy::now(), identities: &mut crate::entropy::Entropy }.complete(&mut value, false);
        let write = match world.get(&key) {
            Some(broken) => Write::update(broken, value),
            None => Write::create(key, value),
        };
        self.store.commit(vec![write]).await.context("reserve the node's name")?;
        Ok(())
    }
}

/// SHA-256 of a certificate's public key (its SubjectPublicKeyInfo, DER), hexadecimal.
pub fn public_key_sha256(certificate: &CertificateDer<'_>) -> Option<String> {
    let (_, certificate) = x509_parser::parse_x509_certificate(certificate).ok()?;
    Some(hex(&Sha256::digest(certificate.public_key().raw)))
}

/// Bytes in hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut hex, byte| {
        // writing to a string does not fail
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}
