//! The authority of clients as the signer of requests holds it: ready to sign, and of no other use.

use super::Pair;
use anyhow::{Context, Result};
use jiff::{SignedDuration, Timestamp};
use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, Issuer, KeyPair, KeyUsagePurpose,
    SubjectPublicKeyInfo, date_time_ymd,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use std::time::Duration;

/// A certificate is valid from so long ago: clocks of small machines are wrong at boot.
const BACKDATED: SignedDuration = SignedDuration::from_hours(24);

/// Signs certificates of clients.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// When it ends itself, seconds since 1970.
    not_after: i64,
}

impl Authority {
    /// With an authority's certificate and key.
    ///
    /// # Errors
    /// When they are none.
    pub fn new(pair: &Pair) -> Result<Self> {
        let der = CertificateDer::from_pem_slice(pair.certificate.as_bytes()).context("read the authority")?;
        let (_, certificate) = x509_parser::parse_x509_certificate(&der).context("read the authority")?;
        let not_after = certificate.validity().not_after.timestamp();
        let issuer = Issuer::from_ca_cert_pem(&pair.certificate, KeyPair::from_pem(&pair.key)?)?;
        Ok(Self { issuer, not_after })
    }

    /// A certificate, PEM, for a public key (SubjectPublicKeyInfo, DER): `common_name` as CN, `organizations` as O.
    ///
    /// # Errors
    /// When the key is of a kind that cannot be signed for.
    pub fn client_certificate(
        &self,
        public_key: &[u8],
        common_name: &str,
        organizations: &[String],
        now: Timestamp,
        life: SignedDuration,
    ) -> Result<String> {
        let key = SubjectPublicKeyInfo::from_der(public_key).context("use the request's public key")?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, common_name);
        for organization in organizations {
            params.distinguished_name.push(DnType::OrganizationName, organization.as_str());
        }
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let end = now.as_second().saturating_add(life.as_secs()).min(self.not_after);
        params.not_before = date_time_ymd(1970, 1, 1) + since_1970(now.as_second() - BACKDATED.as_secs());
        params.not_after = date_time_ymd(1970, 1, 1) + since_1970(end);
        Ok(params.signed_by(&key, &self.issuer)?.pem())
    }
}

fn since_1970(seconds: i64) -> Duration {
    Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
}
