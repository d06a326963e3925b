//! Signs CertificateSigningRequests that are approved, with the authority of clients.
//!
//! Of Kubernetes' signers there are the two whose certificates this API accepts: `kubernetes.io/kube-apiserver-client` for
//! people and programs, and `kubernetes.io/kube-apiserver-client-kubelet` for nodes. What is approved and not permitted by
//! its signer gets the condition `Failed`. Who gets what approved is decided elsewhere (`controllers::csr`).

use crate::csr::{self, Parsed};
use crate::pki::Authority;
use controllers::{Controller, Cx, Outcome};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestSpec};
use serde_json::{Value, json};
use state::{Change, Event, Key, Object, World, Write, rfc3339};

const CLIENT: &str = "kubernetes.io/kube-apiserver-client";
const KUBELET: &str = "kubernetes.io/kube-apiserver-client-kubelet";
/// How long a certificate is valid unless less is asked for.
const LIFE: SignedDuration = SignedDuration::from_hours(365 * 24);
/// Longest common name that X.509 allows is 64 characters; ours end where names of nodes do.
const COMMON_NAME_CHARS_MAX: usize = 253 + 12;

/// Signs for both signers.
pub struct Signer {
    authority: Authority,
}

impl Signer {
    /// With the authority of clients.
    pub fn new(authority: Authority) -> Self {
        Self { authority }
    }

    fn certificate(&self, spec: &CertificateSigningRequestSpec, now: Timestamp) -> Result<String, String> {
        let parsed = csr::parse(&spec.request.0)?;
        permits(spec, &parsed)?;
        let asked = spec.expiration_seconds.map(|seconds| SignedDuration::from_secs(seconds.into()));
        let life = asked.map_or(LIFE, |asked| asked.min(LIFE));
        let Parsed { asks, public_key } = parsed;
        self.authority
            .client_certificate(&public_key, &asks.common_name, &asks.organizations, now, life)
            .map_err(|error| format!("{error:#}"))
    }
}

/// Whether a signer permits what is asked.
fn permits(spec: &CertificateSigningRequestSpec, parsed: &Parsed) -> Result<(), String> {
    let usages = spec.usages.as_deref().unwrap_or_default();
    let asks = &parsed.asks;
    let is = |usage: &&String, allowed: &[&str]| allowed.contains(&usage.as_str());
    if let Some(usage) =
        usages.iter().find(|usage| !is(usage, &["client auth", "digital signature", "key encipherment"]))
    {
        return Err(format!("usage {usage:?} is not permitted by {}", spec.signer_name));
    }
    for needed in if spec.signer_name == KUBELET { &["client auth", "digital signature"][..] } else { &["client auth"] }
    {
        if !usages.iter().any(|usage| usage == needed) {
            return Err(format!("usage {needed:?} is required by {}", spec.signer_name));
        }
    }
    if asks.common_name.is_empty() || asks.common_name.len() > COMMON_NAME_CHARS_MAX {
        return Err("the subject must have one common name".into());
    }
    if asks.has_alternative_names {
        return Err("subject alternative names are not permitted".into());
    }
    let is_node = asks.common_name.starts_with("system:node:");
    match spec.signer_name.as_str() {
        KUBELET if !is_node || asks.organizations != ["system:nodes"] => {
            Err("the subject must be CN=system:node:NAME, O=system:nodes".into())
        }
        CLIENT if asks.organizations.iter().any(|group| group == "system:masters") => {
            Err(format!("use of {CLIENT} signer with system:masters group is not allowed"))
        }
        // a node's name is given by the other signer only, whose approver sees to it that nobody else has it
        CLIENT if is_node || asks.organizations.iter().any(|group| group == "system:nodes") => {
            Err(format!("use {KUBELET} for certificates of nodes"))
        }
        CLIENT if asks.organizations.len() > 1 => Err("a subject of several organizations is not supported".into()),
        _ => Ok(()),
    }
}

impl Controller for Signer {
    fn name(&self) -> &'static str {
        "csrsigning"
    }

    fn wakes(&self, event: &Event, _: &World) -> Vec<Key> {
        let is_news = event.key().is::<CertificateSigningRequest>() && event.change != Change::Deleted;
        if is_news { vec![event.key().clone()] } else { Vec::new() }
    }

    fn reconcile(&self, cx: &mut Cx<'_>, key: &Key) -> Outcome {
        let Some(object) = cx.world.get(key) else { return Outcome::default() };
        let Some(request) = object.view::<CertificateSigningRequest>() else { return Outcome::default() };
        let status = request.status.as_ref();
        let conditions = status.and_then(|status| status.conditions.as_deref()).unwrap_or_default();
        let is = |kind: &str| conditions.iter().any(|condition| condition.type_ == kind && condition.status == "True");
        let is_issued = status.is_some_and(|status| status.certificate.is_some());
        let is_ours = matches!(request.spec.signer_name.as_str(), CLIENT | KUBELET);
        if !is_ours || !is("Approved") || is("Denied") || is("Failed") || is_issued {
            return Outcome::default();
        }
        let write = match self.certificate(&request.spec, cx.now) {
            Ok(pem) => {
                let mut value = object.value();
                value["status"]["certificate"] = json!(ByteString(pem.into_bytes()));
                Write::update(object, value)
            }
            Err(why) => failed(object, &why, cx.now),
        };
        Outcome { writes: vec![write], again_at: None }
    }
}

fn failed(object: &Object, why: &str, now: Timestamp) -> Write {
    let mut value: Value = object.value();
    let condition = json!({
        "type": "Failed", "status": "True", "reason": "SignerValidationFailure", "message": why,
        "lastUpdateTime": rfc3339(now), "lastTransitionTime": rfc3339(now),
    });
    if let Some(conditions) = value["status"]["conditions"].as_array_mut() {
        conditions.push(condition);
    }
    Write::update(object, value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entropy::Entropy;
    use crate::pki::Pki;
    use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};
    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject;
    use state::{Revision, Stamp};
    use std::sync::Arc;
    use tempfile::TempDir;

    const NOW: &str = "2026-03-01T00:00:00Z";

    struct Bench {
        signer: Signer,
        _dir: TempDir,
    }

    fn bench() -> Bench {
        let dir = tempfile::tempdir().unwrap();
        let pki = Pki::open(dir.path(), NOW.parse().unwrap()).unwrap();
        Bench { signer: Signer::new(Authority::new(&pki.client_ca).unwrap()), _dir: dir }
    }

    fn request(signer: &str, cn: &str, o: &str, names: &[&str], more: Value) -> Value {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, cn);
        params.distinguished_name.push(DnType::OrganizationName, o);
        let pem = params.serialize_request(&KeyPair::generate().unwrap()).unwrap().pem().unwrap();
        let mut value = json!({
            "apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest", "metadata": {"name": "r"},
            "spec": {
                "signerName": signer, "request": ByteString(pem.into_bytes()), "username": "u",
                "usages": ["digital signature", "client auth"],
            },
            "status": {"conditions": [{"type": "Approved", "status": "True"}]},
        });
        for (field, said) in more.as_object().into_iter().flatten() {
            value["spec"][field] = said.clone();
        }
        value
    }

    /// What becomes of a request: the certificate's common name and days, why it failed, or nothing.
    fn outcome(bench: &Bench, value: Value) -> String {
        let resource = manifests::by_kind("certificates.k8s.io/v1", "CertificateSigningRequest").unwrap().resource();
        let mut world = World::default();
        let object = Arc::new(Object::encode(resource, Revision(1), value).unwrap());
        world.put(object.clone());
        let now = NOW.parse().unwrap();
        let mut cx = Cx { world: &world, now, stamp: Stamp { now, identities: &mut Entropy } };
        let mut writes = bench.signer.reconcile(&mut cx, object.key()).writes;
        let Some(write) = writes.pop() else { return "nothing".into() };
        let status = write.value.unwrap()["status"].clone();
        let Some(encoded) = status["certificate"].as_str() else {
            return status["conditions"][1]["message"].as_str().unwrap().to_owned();
        };
        use base64::Engine;
        let pem = base64::engine::general_purpose::STANDARD.decode(encoded).unwrap();
        let der = CertificateDer::from_pem_slice(&pem).unwrap();
        let (_, certificate) = x509_parser::parse_x509_certificate(&der).unwrap();
        let name = certificate.subject().iter_common_name().next().unwrap().as_str().unwrap();
        let seconds = certificate.validity().not_after.timestamp() - now.as_second();
        format!("{name} {seconds}")
    }

    #[test]
    fn nodes_and_people_get_what_their_signers_permit() {
        let bench = bench();
        let node =
            |o: &str, names: &[&str], more: Value| outcome(&bench, request(KUBELET, "system:node:a", o, names, more));
        assert_eq!(node("system:nodes", &[], json!({})), format!("system:node:a {}", 365 * 86_400));
        assert_eq!(node("system:nodes", &[], json!({"expirationSeconds": 600})), "system:node:a 600");
        assert_eq!(
            node("system:nodes", &[], json!({"expirationSeconds": i32::MAX})),
            format!("system:node:a {}", 365 * 86_400)
        );
        let subject = "the subject must be CN=system:node:NAME, O=system:nodes";
        assert_eq!(node("system:masters", &[], json!({})), subject);
        assert_eq!(outcome(&bench, request(KUBELET, "admin", "system:nodes", &[], json!({}))), subject);
        assert_eq!(node("system:nodes", &["x.example"], json!({})), "subject alternative names are not permitted");
        let server = json!({"usages": ["client auth", "server auth", "digital signature"]});
        assert!(node("system:nodes", &[], server).starts_with("usage \"server auth\" is not permitted"));
        assert!(
            node("system:nodes", &[], json!({"usages": ["client auth"]})).starts_with("usage \"digital signature\"")
        );
        assert!(node("system:nodes", &[], json!({"request": "AAAA"})).starts_with("read PEM"));

        let person =
            |cn: &str, o: &str| outcome(&bench, request(CLIENT, cn, o, &[], json!({"expirationSeconds": 3600})));
        assert_eq!(person("alice", "dev"), "alice 3600");
        assert!(person("alice", "system:masters").contains("system:masters"));
        assert!(person("system:node:a", "dev").contains(KUBELET) && person("alice", "system:nodes").contains(KUBELET));
    }

    #[test]
    fn nothing_is_signed_that_is_not_approved_or_for_others_to_sign() {
        let bench = bench();
        let with = |conditions: Value, signer: &str| {
            let mut value = request(signer, "system:node:a", "system:nodes", &[], json!({}));
            value["status"] = json!({"conditions": conditions});
            outcome(&bench, value)
        };
        let approved = json!({"type": "Approved", "status": "True"});
        assert_eq!(with(json!([]), KUBELET), "nothing");
        assert_eq!(with(json!([approved]), "example.com/mine"), "nothing");
        assert_eq!(with(json!([approved, {"type": "Failed", "status": "True"}]), KUBELET), "nothing");
        assert_eq!(with(json!([{"type": "Denied", "status": "True"}]), KUBELET), "nothing");
        let mut issued = request(KUBELET, "system:node:a", "system:nodes", &[], json!({}));
        issued["status"]["certificate"] = "AAAA".into();
        assert_eq!(outcome(&bench, issued), "nothing");
    }
}
