//! Asks a master for a certificate, as a kubelet does: a CertificateSigningRequest, looked at until it is decided.

use super::JoinError;
use super::files::certificates;
use super::http::Client;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, PublicKeyData};
use rustls::pki_types::CertificateDer;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use state::Identities;
use std::time::{Duration, Instant};
use x509_parser::prelude::{FromDer, X509Certificate};

const SIGNER: &str = "kubernetes.io/kube-apiserver-client-kubelet";
const PATH: &str = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
/// First delay between looks at a request; doubles up to the longest.
const LOOK: Duration = Duration::from_millis(50);
/// Longest delay between looks.
const LOOK_MAX: Duration = Duration::from_secs(2);
/// A request that is not decided after so long is told to people.
const TELL_AFTER: Duration = Duration::from_secs(10);
/// A request that is not decided after so long is given up.
const PATIENCE: Duration = Duration::from_secs(600);

/// A certificate for the node's key.
///
/// # Errors
/// [`JoinError`]: not reached, not let, denied, or not decided in time.
pub async fn certificate(
    client: &Client,
    node: &str,
    key: &KeyPair,
) -> Result<Vec<CertificateDer<'static>>, JoinError> {
    let pem = signing_request(node, key)?;
    let suffix = format!("{:016x}", crate::identity::Random::new().next());
    let name = format!("csr-{node}-{}", suffix.get(..5).unwrap_or_default());
    let request = json!({
        "apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest",
        "metadata": {"name": name},
        "spec": {"request": STANDARD.encode(pem), "signerName": SIGNER, "usages": ["digital signature", "client auth"]},
    });
    client.post(PATH, &request).await?;
    let begin = Instant::now();
    let (mut delay, mut is_told) = (LOOK, false);
    while begin.elapsed() < PATIENCE {
        let found = client.get(&format!("{PATH}/{name}")).await?;
        if let Some(chain) = decision(&found, key)? {
            return Ok(chain);
        }
        if !is_told && begin.elapsed() > TELL_AFTER {
            is_told = true;
            tracing::warn!("{}", JoinError::Unapproved(name.clone()));
        }
        tokio::time::sleep(delay).await;
        delay = (delay * 2).min(LOOK_MAX);
    }
    Err(JoinError::Unapproved(name))
}

/// A PKCS#10 request for a node's certificate, PEM.
fn signing_request(node: &str, key: &KeyPair) -> Result<String, JoinError> {
    let failed = |error: rcgen::Error| JoinError::Key(error.to_string());
    let mut subject = DistinguishedName::new();
    subject.push(DnType::OrganizationName, "system:nodes");
    subject.push(DnType::CommonName, format!("system:node:{node}"));
    let mut params = CertificateParams::default();
    params.distinguished_name = subject;
    params.serialize_request(key).and_then(|request| request.pem()).map_err(failed)
}

/// The certificate, once there is one; `None` while nobody has decided.
fn decision(request: &Value, key: &KeyPair) -> Result<Option<Vec<CertificateDer<'static>>>, JoinError> {
    let what = "the certificate request";
    for condition in request["status"]["conditions"].as_array().into_iter().flatten() {
        let kind = condition["type"].as_str().unwrap_or_default();
        if matches!(kind, "Denied" | "Failed") && condition["status"] != "False" {
            let message = condition["message"].as_str().filter(|message| !message.is_empty());
            let message = message.map_or_else(|| format!("the certificate request: {kind}"), ToOwned::to_owned);
            return Err(JoinError::Denied(message));
        }
    }
    let Some(text) = request["status"]["certificate"].as_str().filter(|text| !text.is_empty()) else { return Ok(None) };
    let unusable = |why: &str| JoinError::Answer { what, why: why.to_owned() };
    let pem = STANDARD.decode(text).map_err(|_| unusable("the certificate is not base64"))?;
    let chain =
        certificates(&String::from_utf8_lossy(&pem)).ok_or_else(|| unusable("there is no certificate in it"))?;
    if !chain.first().is_some_and(|certificate| is_for(certificate, key)) {
        return Err(unusable("the certificate is for another key"));
    }
    Ok(Some(chain))
}

/// Whether a certificate is for a key.
pub fn is_for(certificate: &CertificateDer<'_>, key: &KeyPair) -> bool {
    let parsed = X509Certificate::from_der(certificate);
    parsed.is_ok_and(|(_, certificate)| certificate.public_key().raw == key.subject_public_key_info().as_slice())
}

/// From when to when a certificate is valid, in seconds of Unix time.
pub fn validity(certificate: &CertificateDer<'_>) -> Option<(i64, i64)> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    let validity = certificate.validity();
    Some((validity.not_before.timestamp(), validity.not_after.timestamp()))
}

/// SHA-256 in lower-case hexadecimal.
pub fn digest(certificate: &CertificateDer<'_>) -> String {
    Sha256::digest(certificate).iter().map(|byte| format!("{byte:02x}")).collect()
}
