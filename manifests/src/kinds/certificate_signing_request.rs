//! CertificateSigningRequests: who wants a certificate, for which use, and what became of it.
//!
//! Here is what the object may be. Who may be given what is decided by the approver and by the signer, who look into the
//! request; here it only has to be one.

use super::cells::{AGE, NAME, NONE, column, items, text, text_or};
use crate::field::{At, FieldError, invalid_by};
use crate::{Column, Kind, fill, human, meta, names};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use schemars::SchemaGenerator;
use serde_json::Value;

/// The shortest life of a certificate that may be asked for, seconds.
const EXPIRATION_SECONDS_MIN: i64 = 600;
/// Bytes of a signer's name: a domain and a path.
const SIGNER_CHARS_MAX: usize = 571;
/// What a certificate may be used for, in Kubernetes' words.
const USAGES: [&str; 23] = [
    "any",
    "cert sign",
    "client auth",
    "code signing",
    "content commitment",
    "crl sign",
    "data encipherment",
    "decipher only",
    "digital signature",
    "email protection",
    "encipher only",
    "ipsec end system",
    "ipsec tunnel",
    "ipsec user",
    "key agreement",
    "key encipherment",
    "microsoft sgc",
    "netscape sgc",
    "ocsp signing",
    "s/mime",
    "server auth",
    "signing",
    "timestamping",
];

/// `CertificateSigningRequest`.
pub(super) const CERTIFICATE_SIGNING_REQUEST: Kind = Kind {
    group: "certificates.k8s.io",
    version: "v1",
    kind: "CertificateSigningRequest",
    plural: "certificatesigningrequests",
    singular: "certificatesigningrequest",
    short_names: &["csr"],
    categories: &[],
    namespaced: false,
    subresources: &["approval", "status"],
    volatile: false,
    counts_generation: false,
    columns: &[NAME, AGE, SIGNER, REQUESTOR, DURATION, CONDITION],
    selectable: &["spec.signerName"],
    default: fill::prune,
    validate,
    schema: SchemaGenerator::subschema_for::<k8s_openapi::api::certificates::v1::CertificateSigningRequest>,
};

const SIGNER: Column =
    column("SignerName", "string", "Who is to sign.", |object, _| text_or(&object["spec"]["signerName"], NONE).into());
const REQUESTOR: Column =
    column("Requestor", "string", "Who asks.", |object, _| text(&object["spec"]["username"]).into());
const DURATION: Column =
    column("RequestedDuration", "string", "How long the certificate is to be valid.", |object, _| {
        match object["spec"]["expirationSeconds"].as_i64() {
            Some(seconds) => human::duration(seconds).into(),
            None => NONE.into(),
        }
    });
const CONDITION: Column = column("Condition", "string", "What became of it.", |object, _| condition(object).into());

/// `Approved,Issued` and the like.
fn condition(object: &Value) -> String {
    let has = |kind: &str| items(&object["status"]["conditions"]).iter().any(|condition| condition["type"] == kind);
    let mut shown = if has("Denied") {
        "Denied".to_owned()
    } else if has("Approved") {
        "Approved".to_owned()
    } else {
        "Pending".to_owned()
    };
    if has("Failed") {
        shown.push_str(",Failed");
    }
    if !text(&object["status"]["certificate"]).is_empty() {
        shown.push_str(",Issued");
    }
    shown
}

fn validate(new: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let mut errors = meta::validate(new, old, names::dns_subdomain);
    let root = At::root(new);
    let spec = root.field("spec");
    if old.is_none() {
        errors.extend(request(&spec.field("request")));
        errors.extend(signer(&spec.field("signerName")));
        errors.extend(usages(&spec.field("usages")));
        let seconds = spec.field("expirationSeconds");
        if seconds.int().is_some_and(|seconds| seconds < EXPIRATION_SECONDS_MIN) {
            errors.push(seconds.invalid("may not specify a duration less than 600 seconds (10 minutes)"));
        }
    }
    errors.extend(conditions(&root.fields(&["status", "conditions"])));
    let certificate = root.fields(&["status", "certificate"]);
    if !certificate.text().is_empty() && !is_pem(certificate.text(), "CERTIFICATE") {
        errors.push(certificate.invalid("must contain a PEM block of type CERTIFICATE"));
    }
    errors
}

fn request(request: &At<'_>) -> Option<FieldError> {
    if request.text().is_empty() {
        return Some(request.required(""));
    }
    (!is_pem(request.text(), "CERTIFICATE REQUEST"))
        .then(|| request.invalid("PEM block type must be CERTIFICATE REQUEST"))
}

/// Whether the base64 of a field holds a PEM block of this type.
fn is_pem(encoded: &str, kind: &str) -> bool {
    let Ok(bytes) = STANDARD.decode(encoded) else { return false };
    let Ok(text) = std::str::from_utf8(&bytes) else { return false };
    let (begin, end) = (format!("-----BEGIN {kind}-----"), format!("-----END {kind}-----"));
    text.find(&begin).is_some_and(|at| text[at..].contains(&end))
}

/// `example.com/name`: a domain, a slash, a path.
fn signer(signer: &At<'_>) -> Vec<FieldError> {
    let name = signer.text();
    if name.is_empty() {
        return vec![signer.required("")];
    }
    if name.len() > SIGNER_CHARS_MAX {
        return vec![signer.invalid("must be no more than 571 characters")];
    }
    match name.split_once('/') {
        Some((domain, path)) if !path.is_empty() && domain.contains('.') => {
            invalid_by(signer, path.split('.').chain([domain]).flat_map(names::dns_subdomain).collect()).collect()
        }
        _ => vec![signer.invalid("must be a fully qualified domain and path of the form 'example.com/signer-name'")],
    }
}

fn usages(usages: &At<'_>) -> Vec<FieldError> {
    if usages.is_empty() {
        return vec![usages.required("usages is required")];
    }
    let mut errors = Vec::new();
    let mut seen: Vec<&str> = Vec::new();
    for usage in usages.items() {
        errors.extend(usage.one_of(&USAGES));
        if seen.contains(&usage.text()) {
            errors.push(usage.duplicate());
        }
        seen.push(usage.text());
    }
    errors
}

/// Approved and denied exclude each other; what is said once is said with `True`.
fn conditions(conditions: &At<'_>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let mut seen: Vec<&str> = Vec::new();
    for condition in conditions.items() {
        let kind = condition.field("type");
        if kind.text().is_empty() {
            errors.push(kind.required(""));
        } else if seen.contains(&kind.text()) {
            errors.push(kind.duplicate());
        }
        let status = condition.field("status");
        match (kind.text(), status.text()) {
            (_, "") => errors.push(status.required("")),
            ("Approved" | "Denied" | "Failed", _) => errors.extend(status.one_of(&["True"])),
            _ => errors.extend(status.one_of(&["True", "False", "Unknown"])),
        }
        seen.push(kind.text());
    }
    if seen.contains(&"Approved") && seen.contains(&"Denied") {
        errors.push(conditions.invalid("Approved and Denied conditions are mutually exclusive"));
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn csr(spec: Value, status: Value) -> Value {
        let mut value = json!({
            "apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest", "metadata": {"name": "a"},
            "spec": {
                "request": STANDARD.encode("-----BEGIN CERTIFICATE REQUEST-----\nAA==\n-----END CERTIFICATE REQUEST-----\n"),
                "signerName": "kubernetes.io/kube-apiserver-client-kubelet",
                "usages": ["digital signature", "client auth"],
            },
            "status": status,
        });
        for (field, said) in spec.as_object().into_iter().flatten() {
            value["spec"][field] = said.clone();
        }
        value
    }

    #[test]
    fn what_is_no_request_is_refused() {
        let faulty = |spec: Value| -> Vec<String> {
            validate(&csr(spec, json!({})), None).into_iter().map(|error| error.path).collect()
        };
        assert_eq!(faulty(json!({})), [""; 0]);
        assert_eq!(faulty(json!({"request": ""})), ["spec.request"]);
        assert_eq!(faulty(json!({"request": STANDARD.encode("text")})), ["spec.request"]);
        assert_eq!(faulty(json!({"request": "###"})), ["spec.request"]);
        assert_eq!(faulty(json!({"signerName": "kubelet"})), ["spec.signerName"]);
        assert_eq!(faulty(json!({"signerName": "Example.com/x"})), ["spec.signerName"]);
        assert_eq!(faulty(json!({"usages": []})), ["spec.usages"]);
        assert_eq!(faulty(json!({"usages": ["client auth", "dreaming"]})), ["spec.usages[1]"]);
        assert_eq!(faulty(json!({"expirationSeconds": 60})), ["spec.expirationSeconds"]);
    }

    #[test]
    fn conditions_say_one_thing() {
        let status = |kinds: &[(&str, &str)]| {
            let conditions: Vec<Value> =
                kinds.iter().map(|(kind, status)| json!({"type": kind, "status": status})).collect();
            let value = csr(json!({}), json!({"conditions": conditions}));
            (condition(&value), validate(&value, Some(&value)).len())
        };
        assert_eq!(status(&[]), ("Pending".into(), 0));
        assert_eq!(status(&[("Approved", "True")]), ("Approved".into(), 0));
        assert_eq!(status(&[("Approved", "True"), ("Failed", "True")]), ("Approved,Failed".into(), 0));
        assert_eq!(status(&[("Approved", "False")]), ("Approved".into(), 1));
        assert_eq!(status(&[("Approved", "True"), ("Denied", "True")]), ("Denied".into(), 1));
        let mut issued = csr(json!({}), json!({"conditions": [{"type": "Approved", "status": "True"}]}));
        issued["status"]["certificate"] =
            STANDARD.encode("-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n").into();
        assert_eq!((condition(&issued).as_str(), validate(&issued, None).len()), ("Approved,Issued", 0));
    }
}
