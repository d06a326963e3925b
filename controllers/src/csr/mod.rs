//! CertificateSigningRequests of nodes: who gets one approved, and when they are cleared away.
//!
//! A node asks with a bootstrap token the first time and with its own certificate later. It is given a certificate for the
//! name it asks for if nobody else has that name: the first key that is approved for a name is kept in a Secret
//! ([`identity`]) until the Node is deleted. Everything else is left to people (`kubectl certificate approve`). Deliberately
//! absent: X.509 (the request is read by a function of `server`'s) and signing (also `server`'s).

mod cleaner;
pub mod identity;
#[cfg(test)]
mod tests;

pub use cleaner::Cleaner;

use crate::{Controller, Cx, Outcome};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::certificates::v1::{
    CertificateSigningRequest, CertificateSigningRequestCondition, CertificateSigningRequestSpec,
};
use k8s_openapi::api::core::v1::Node;
use serde_json::{Value, json};
use state::{Change, Event, Key, Object, World, Write, rfc3339};

/// The signer of nodes' certificates.
const SIGNER: &str = "kubernetes.io/kube-apiserver-client-kubelet";
/// Group of those who showed a bootstrap token.
const BOOTSTRAPPERS: &str = "system:bootstrappers";
/// Group of nodes, which a certificate says as its organization.
const NODES: &str = "system:nodes";
/// What a node's user name begins with.
const NODE_USER: &str = "system:node:";
/// What a node's certificate must be for.
const USAGES_REQUIRED: [&str; 2] = ["digital signature", "client auth"];
/// What it may be for beside that.
const USAGE_ALLOWED: &str = "key encipherment";
/// Reason of an approval by this controller.
const AUTO: &str = "AutoApproved";
/// An approval by people is seen to for this long, if it was not at once.
const FRESH_SECONDS: i64 = 60;
/// Reason of a denial: the name is another machine's.
const TAKEN: &str = "NodeNameTaken";
/// Longest name of a node: a DNS subdomain.
const NAME_CHARS_MAX: usize = 253;

/// What a PKCS#10 request asks for; its signature has been checked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CertificateRequest {
    /// The subject's only CN; empty when there is none, or more than one.
    pub common_name: String,
    /// The subject's O, all of them.
    pub organizations: Vec<String>,
    /// Whether it asks for names or addresses beside its subject.
    pub has_alternative_names: bool,
    /// SHA-256 of the public key's SubjectPublicKeyInfo (DER), lower-case hex.
    pub public_key_sha256: String,
}

/// Reads `spec.request`: the bytes of a PEM text. The error is a reason for people.
pub type ReadRequest = fn(&[u8]) -> Result<CertificateRequest, String>;

/// Approves and denies what nodes ask for.
pub struct Approver {
    /// Reads requests.
    pub read_request: ReadRequest,
}

impl Controller for Approver {
    fn name(&self) -> &'static str {
        "csrapproving"
    }

    fn wakes(&self, event: &Event, _world: &World) -> Vec<Key> {
        let news = event.key().is::<CertificateSigningRequest>() && event.change != Change::Deleted;
        if news { vec![event.key().clone()] } else { Vec::new() }
    }

    fn reconcile(&self, cx: &mut Cx<'_>, key: &Key) -> Outcome {
        let Some(object) = cx.world.get(key).cloned() else { return Outcome::default() };
        let Some(csr) = object.view::<CertificateSigningRequest>() else { return Outcome::default() };
        let conditions = csr.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
        let is = |type_: &str| conditions.iter().any(|condition| condition.type_ == type_);
        if csr.spec.signer_name != SIGNER || is("Denied") || is("Failed") {
            return Outcome::default();
        }
        let Ok(request) = (self.read_request)(&csr.spec.request.0) else { return Outcome::default() };
        let Some(node) = node_of(&csr.spec, &request) else { return Outcome::default() };
        let writes = if is("Approved") {
            match is_fresh(csr, cx.now) {
                // what somebody approved by hand reserves the name all the same
                true => {
                    identity::reserve(cx, node, &request.public_key_sha256).unwrap_or_default().into_iter().collect()
                }
                false => Vec::new(),
            }
        } else {
            self.judge(cx, &object, &csr.spec, node, &request)
        };
        Outcome { writes, again_at: None }
    }
}

impl Approver {
    fn judge(
        &self,
        cx: &mut Cx<'_>,
        object: &Object,
        spec: &CertificateSigningRequestSpec,
        node: &str,
        request: &CertificateRequest,
    ) -> Vec<Write> {
        let renews = spec.username.as_deref() == Some(&request.common_name);
        let joins = spec.groups.iter().flatten().any(|group| group == BOOTSTRAPPERS);
        if !renews && !joins {
            return Vec::new();
        }
        if renews && identity::of(cx.world, node).is_none() && cx.world.get(&Key::of::<Node>("", node)).is_none() {
            let message = format!("node {node:?} was deleted; it must join again with a token");
            return vec![conclude(object, "Denied", "NodeDeleted", &message, cx.now)];
        }
        match identity::reserve(cx, node, &request.public_key_sha256) {
            Ok(secret) => {
                let message = match renews {
                    true => "Auto approving the client certificate of a node that renews its own.",
                    false => "Auto approving the client certificate of a node that joins with a token.",
                };
                let approval = conclude(object, "Approved", AUTO, message, cx.now);
                secret.into_iter().chain([approval]).collect()
            }
            Err(identity::Taken) => {
                let message = format!(
                    "node {node:?} has joined from another machine; delete it (kubectl delete node {node}) or choose \
                     another --node-name"
                );
                vec![conclude(object, "Denied", TAKEN, &message, cx.now)]
            }
        }
    }
}

/// Whether an approval is so new that its node cannot have come and gone since.
fn is_fresh(csr: &CertificateSigningRequest, now: Timestamp) -> bool {
    let Some(status) = &csr.status else { return false };
    let conditions = status.conditions.iter().flatten().filter(|condition| condition.type_ == "Approved");
    let by_hand = |condition: &&CertificateSigningRequestCondition| condition.reason.as_deref() != Some(AUTO);
    let times = conditions.filter(by_hand).map(|condition| condition.last_update_time.as_ref().map(|time| time.0));
    let recently = now.checked_sub(SignedDuration::from_secs(FRESH_SECONDS)).unwrap_or(Timestamp::MIN);
    times.into_iter().any(|at| status.certificate.is_none() || at.is_some_and(|at| at >= recently))
}

/// The node whose certificate is asked for; `None` when it is something else that is asked for.
fn node_of<'r>(spec: &CertificateSigningRequestSpec, request: &'r CertificateRequest) -> Option<&'r str> {
    let node = request.common_name.strip_prefix(NODE_USER)?;
    let usages = spec.usages.as_deref().unwrap_or_default();
    let needed = USAGES_REQUIRED.iter().all(|usage| usages.iter().any(|own| own == usage));
    let allowed = usages.iter().all(|own| USAGES_REQUIRED.contains(&own.as_str()) || own == USAGE_ALLOWED);
    let subject = request.organizations == [NODES] && !request.has_alternative_names;
    let name = node.len() <= NAME_CHARS_MAX && manifests::names::dns_subdomain(node).is_empty();
    (needed && allowed && subject && name && !request.public_key_sha256.is_empty()).then_some(node)
}

/// The request with its answer.
fn conclude(object: &Object, type_: &str, reason: &str, message: &str, now: Timestamp) -> Write {
    let mut value = object.value();
    if !value["status"].is_object() {
        value["status"] = json!({});
    }
    if !value["status"]["conditions"].is_array() {
        value["status"]["conditions"] = json!([]);
    }
    if let Some(conditions) = value["status"]["conditions"].as_array_mut() {
        conditions.push(condition(type_, reason, message, now));
    }
    Write::update(object, value)
}

fn condition(type_: &str, reason: &str, message: &str, now: Timestamp) -> Value {
    json!({
        "type": type_, "status": "True", "reason": reason, "message": message,
        "lastUpdateTime": rfc3339(now), "lastTransitionTime": rfc3339(now),
    })
}
