use super::*;
use jiff::SignedDuration;

const NOW: &str = "2026-03-01T12:00:00Z";

fn at(days: i64) -> Timestamp {
    NOW.parse::<Timestamp>().unwrap() + SignedDuration::from_hours(24 * days)
}

#[test]
fn certificates_are_made_anew_when_a_third_of_their_life_is_left() {
    let dir = tempfile::tempdir().unwrap();
    let pki = Pki::open(dir.path(), at(0)).unwrap();
    let wanted = vec!["localhost".to_owned(), "192.0.2.1".to_owned()];
    let first = pki.serving(&wanted, at(0)).unwrap();
    assert_eq!(pki.serving(&wanted, at(200)).unwrap().certificate, first.certificate);
    let second = pki.serving(&wanted, at(250)).unwrap();
    assert_ne!(second.certificate, first.certificate);
    assert_eq!(second.key, first.key, "its key stays");
    assert!(lasts(&second, at(250)) && !lasts(&first, at(250)));
    let more = vec!["localhost".to_owned(), "192.0.2.2".to_owned()];
    let third = pki.serving(&more, at(250)).unwrap();
    assert!(covers(&third, &more) && !covers(&third, &wanted));
    second.der().unwrap();
}

#[test]
fn a_client_is_who_it_was_made_for() {
    let dir = tempfile::tempdir().unwrap();
    let pki = Pki::open(dir.path(), at(0)).unwrap();
    let one = pki.client("node", "system:node:a", &["system:nodes"], at(0)).unwrap();
    assert_eq!(pki.client("node", "system:node:a", &["system:nodes"], at(1)).unwrap().certificate, one.certificate);
    let other = pki.client("node", "system:node:b", &["system:nodes"], at(1)).unwrap();
    assert!(names(&other, "system:node:b") && other.key == one.key);
    // a key that is none is replaced
    write_private(&dir.path().join("node.key"), b"no key").unwrap();
    let mended = pki.client("node", "system:node:c", &["system:nodes"], at(1)).unwrap();
    mended.der().unwrap();
    assert!(names(&mended, "system:node:c"));
}

#[test]
fn the_authority_signs_within_its_own_life() {
    let dir = tempfile::tempdir().unwrap();
    let pki = Pki::open(dir.path(), at(0)).unwrap();
    let authority = Authority::new(&pki.client_ca).unwrap();
    let key = KeyPair::generate().unwrap();
    let key = rcgen::PublicKeyData::subject_public_key_info(&key);
    let end = |now: Timestamp| {
        let life = SignedDuration::from_hours(24 * 365);
        let pem = authority.client_certificate(&key, "a", &["g".to_owned()], now, life).unwrap();
        let der = CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
        let (_, certificate) = x509_parser::parse_x509_certificate(&der).unwrap();
        certificate.validity().not_after.timestamp()
    };
    assert_eq!(end(at(0)), at(365).as_second());
    let der = CertificateDer::from_pem_slice(pki.client_ca.certificate.as_bytes()).unwrap();
    let last = x509_parser::parse_x509_certificate(&der).unwrap().1.validity().not_after.timestamp();
    assert_eq!(end(at(3600)), last);
    assert!(authority.client_certificate(b"no key", "a", &[], at(0), SignedDuration::from_hours(1)).is_err());
}
