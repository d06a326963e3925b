//! PKCS#10: what a CertificateSigningRequest's bytes ask for. Pure.

use crate::identities::hex;
use controllers::csr::CertificateRequest;
use rustls::pki_types::CertificateSigningRequestDer;
use rustls::pki_types::pem::PemObject;
use sha2::{Digest, Sha256};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::extensions::ParsedExtension;
use x509_parser::prelude::FromDer;

/// Bytes of a request; a large RSA key is a few kilobytes.
const REQUEST_BYTES_MAX: usize = 64 * 1024;

/// A request: what it asks for, and its public key.
pub struct Parsed {
    /// What it asks for.
    pub asks: CertificateRequest,
    /// The key's SubjectPublicKeyInfo, DER.
    pub public_key: Vec<u8>,
}

/// What a PEM text asks for, for those who approve.
///
/// # Errors
/// As [`parse`].
pub fn read(pem: &[u8]) -> Result<CertificateRequest, String> {
    parse(pem).map(|parsed| parsed.asks)
}

/// Reads a PEM text and checks that who made it has the private key.
///
/// # Errors
/// When it is not one request, or not signed by its own key. The reason is for people.
pub fn parse(pem: &[u8]) -> Result<Parsed, String> {
    if pem.len() > REQUEST_BYTES_MAX {
        return Err(format!("the request is longer than {REQUEST_BYTES_MAX} bytes"));
    }
    let der = CertificateSigningRequestDer::from_pem_slice(pem).map_err(|error| format!("read PEM: {error}"))?;
    let (rest, request) =
        X509CertificationRequest::from_der(&der).map_err(|error| format!("read the request: {error}"))?;
    if !rest.is_empty() {
        return Err("bytes follow the request".into());
    }
    request.verify_signature().map_err(|_| "the request is not signed by its own key".to_owned())?;
    let info = &request.certification_request_info;
    let mut names = info.subject.iter_common_name();
    let common_name = match (names.next(), names.next()) {
        (Some(name), None) => name.as_str().unwrap_or_default().to_owned(),
        _ => String::new(),
    };
    let organizations = info.subject.iter_organization();
    // one that is no text is none that anybody allows
    let organizations = organizations.map(|name| name.as_str().unwrap_or_default().to_owned()).collect();
    let is_names = |extension: &ParsedExtension<'_>| matches!(extension, ParsedExtension::SubjectAlternativeName(_));
    let has_alternative_names = request.requested_extensions().is_some_and(|mut all| all.any(is_names));
    let public_key = info.subject_pki.raw.to_vec();
    let public_key_sha256 = hex(&Sha256::digest(&public_key));
    let asks = CertificateRequest { common_name, organizations, has_alternative_names, public_key_sha256 };
    Ok(Parsed { asks, public_key })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, PublicKeyData};

    fn request(names: Vec<String>, subject: &[(DnType, &str)]) -> (String, KeyPair) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(names).unwrap();
        params.distinguished_name = DistinguishedName::new();
        for (kind, value) in subject {
            params.distinguished_name.push(kind.clone(), *value);
        }
        (params.serialize_request(&key).unwrap().pem().unwrap(), key)
    }

    #[test]
    fn a_request_says_what_it_asks_for() {
        let subject = [(DnType::CommonName, "system:node:a"), (DnType::OrganizationName, "system:nodes")];
        let (pem, key) = request(Vec::new(), &subject);
        let asks = read(pem.as_bytes()).unwrap();
        assert_eq!((asks.common_name.as_str(), asks.organizations), ("system:node:a", vec!["system:nodes".to_owned()]));
        assert!(!asks.has_alternative_names);
        assert_eq!(asks.public_key_sha256, hex(&Sha256::digest(key.subject_public_key_info())));
        let (pem, _) = request(vec!["example.com".into()], &subject);
        assert!(read(pem.as_bytes()).unwrap().has_alternative_names);
    }

    #[test]
    fn what_is_no_request_or_somebody_elses_is_refused() {
        let (pem, _) = request(Vec::new(), &[(DnType::CommonName, "a")]);
        assert!(read(b"").is_err());
        assert!(read(b"-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n").is_err());
        assert!(read(&vec![b'x'; REQUEST_BYTES_MAX + 1]).is_err());
        let mut der = CertificateSigningRequestDer::from_pem_slice(pem.as_bytes()).unwrap().to_vec();
        // the name is another, the signature is not
        let at = der.windows(3).position(|bytes| bytes == [0x0c, 1, b'a']).unwrap();
        der[at + 2] = b'b';
        use base64::Engine;
        let text = base64::engine::general_purpose::STANDARD.encode(&der);
        let pem = format!("-----BEGIN CERTIFICATE REQUEST-----\n{text}\n-----END CERTIFICATE REQUEST-----\n");
        assert_eq!(read(pem.as_bytes()).unwrap_err(), "the request is not signed by its own key");
    }
}
