//! The cluster's certificates: a CA for servers, a CA for clients, and what they sign, kept in the data directory.
//!
//! Layout under `tls/` follows k3s, so that people find things. Everything is made at the first start; certificates
//! (not CAs) of whose life less than a third is left, or that do not name every address of today, are made anew when they
//! are asked for: at each start, and from time to time while the server runs.

mod authority;
#[cfg(test)]
mod tests;

pub use authority::Authority;

use anyhow::{Context, Result};
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use jiff::{Span, Timestamp, ToSpan};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType, date_time_ymd,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use sha2::{Digest, Sha256};
use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use x509_parser::extensions::GeneralName;

const CA_YEARS: i16 = 10;
const CERTIFICATE_DAYS: i16 = 365;
/// A certificate is made anew when less than this part of its life is left.
const RENEW_AT: i64 = 3;

/// A certificate and its key, PEM.
#[derive(Clone)]
pub struct Pair {
    /// Certificate, PEM.
    pub certificate: String,
    /// PKCS#8 private key, PEM.
    pub key: String,
}

impl Pair {
    /// As rustls takes them.
    pub fn der(&self) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)> {
        let chain = CertificateDer::pem_slice_iter(self.certificate.as_bytes()).collect::<Result<_, _>>()?;
        Ok((chain, PrivateKeyDer::from_pem_slice(self.key.as_bytes())?))
    }
}

/// The directory of the cluster's certificates, with its two authorities.
pub struct Pki {
    dir: PathBuf,
    /// Signs what servers show.
    pub server_ca: Pair,
    /// Signs what clients show.
    pub client_ca: Pair,
}

impl Pki {
    /// Opens or makes the authorities in `dir`.
    pub fn open(dir: &Path, now: Timestamp) -> Result<Self> {
        make_private_dir(dir)?;
        let authority = |name: &str| -> Result<Pair> {
            match load(dir, name)? {
                Some(pair) => Ok(pair),
                None => keep(dir, name, make_authority(&format!("coracle-{name}@{}", now.as_second()), now)?),
            }
        };
        Ok(Self { dir: dir.to_owned(), server_ca: authority("server-ca")?, client_ca: authority("client-ca")? })
    }

    /// The certificate that the API server shows, naming every one of `names` (DNS names or addresses).
    pub fn serving(&self, names: &[String], now: Timestamp) -> Result<Pair> {
        self.issued(
            "serving-kube-apiserver",
            now,
            |pair| covers(pair, names),
            |key| {
                let mut params = params("kube-apiserver", &[], now)?;
                params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
                for name in names {
                    params.subject_alt_names.push(match name.parse::<IpAddr>() {
                        Ok(address) => SanType::IpAddress(address),
                        Err(_) => {
                            SanType::DnsName(name.as_str().try_into().with_context(|| format!("--tls-san {name}"))?)
                        }
                    });
                }
                sign(params, key, &self.server_ca)
            },
        )
    }

    /// A client's certificate: `user` as CN, `groups` as O. Its key stays the same when it is renewed.
    pub fn client(&self, file: &str, user: &str, groups: &[&str], now: Timestamp) -> Result<Pair> {
        self.issued(
            file,
            now,
            |pair| names(pair, user),
            |key| {
                let mut params = params(user, groups, now)?;
                params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
                sign(params, key, &self.client_ca)
            },
        )
    }

    /// SHA-256 of the server CA's certificate (DER), hexadecimal: what a join token pins.
    pub fn server_ca_sha256(&self) -> Result<String> {
        let der = CertificateDer::from_pem_slice(self.server_ca.certificate.as_bytes())?;
        Ok(Sha256::digest(&der).iter().fold(String::new(), |mut hex, byte| {
            let _ = write!(hex, "{byte:02x}");
            hex
        }))
    }

    /// A secret for another use, which stays the same for as long as the authorities do.
    pub fn secret(&self, purpose: &str) -> [u8; 32] {
        Sha256::new().chain_update(purpose).chain_update([0]).chain_update(&self.client_ca.key).finalize().into()
    }

    fn issued(
        &self,
        name: &str,
        now: Timestamp,
        fits: impl Fn(&Pair) -> bool,
        make: impl Fn(Option<&str>) -> Result<Pair>,
    ) -> Result<Pair> {
        let kept = load(&self.dir, name)?;
        if let Some(pair) = &kept
            && lasts(pair, now)
            && fits(pair)
        {
            return Ok(pair.clone());
        }
        // a key that cannot be used any more is replaced with its certificate
        let made = kept.and_then(|pair| make(Some(&pair.key)).ok());
        let made = made.map_or_else(|| make(None), Ok).with_context(|| format!("make certificate {name}"))?;
        keep(&self.dir, name, made)
    }
}

/// Whether enough of a certificate's life is left.
fn lasts(pair: &Pair, now: Timestamp) -> bool {
    let Ok(der) = CertificateDer::from_pem_slice(pair.certificate.as_bytes()) else { return false };
    let Ok((_, certificate)) = x509_parser::parse_x509_certificate(&der) else { return false };
    let (from, to) = (certificate.validity().not_before.timestamp(), certificate.validity().not_after.timestamp());
    to.saturating_sub(now.as_second()) > to.saturating_sub(from) / RENEW_AT
}

/// Whether a certificate's common name is this.
fn names(pair: &Pair, user: &str) -> bool {
    let Ok(der) = CertificateDer::from_pem_slice(pair.certificate.as_bytes()) else { return false };
    let Ok((_, certificate)) = x509_parser::parse_x509_certificate(&der) else { return false };
    certificate.subject().iter_common_name().any(|name| name.as_str() == Ok(user))
}

fn params(common_name: &str, organizations: &[&str], now: Timestamp) -> Result<CertificateParams> {
    let mut params = CertificateParams::default();
    let mut subject = DistinguishedName::new();
    subject.push(DnType::CommonName, common_name);
    for organization in organizations {
        subject.push(DnType::OrganizationName, *organization);
    }
    params.distinguished_name = subject;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
    limit(&mut params, now, CERTIFICATE_DAYS.days())?;
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

fn make_authority(common_name: &str, now: Timestamp) -> Result<Pair> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    limit(&mut params, now, CA_YEARS.years())?;
    let key = KeyPair::generate()?;
    Ok(Pair { certificate: params.self_signed(&key)?.pem(), key: key.serialize_pem() })
}

/// Signs for a key, PEM, or for a new one.
fn sign(params: CertificateParams, key: Option<&str>, authority: &Pair) -> Result<Pair> {
    let issuer = Issuer::from_ca_cert_pem(&authority.certificate, KeyPair::from_pem(&authority.key)?)?;
    let key = key.map_or_else(KeyPair::generate, KeyPair::from_pem)?;
    Ok(Pair { certificate: params.signed_by(&key, &issuer)?.pem(), key: key.serialize_pem() })
}

/// From yesterday (clocks of small machines are wrong at boot) to `lasting` from today.
fn limit(params: &mut CertificateParams, now: Timestamp, lasting: Span) -> Result<()> {
    let today: DateTime = TimeZone::UTC.to_datetime(now);
    let midnight = |at: DateTime| date_time_ymd(at.year().into(), at.month().unsigned_abs(), at.day().unsigned_abs());
    params.not_before = midnight(today.checked_sub(1.day())?);
    params.not_after = midnight(today.checked_add(lasting)?);
    Ok(())
}

fn covers(pair: &Pair, names: &[String]) -> bool {
    let Ok(der) = CertificateDer::from_pem_slice(pair.certificate.as_bytes()) else { return false };
    let Ok((_, certificate)) = x509_parser::parse_x509_certificate(&der) else { return false };
    let Ok(Some(extension)) = certificate.subject_alternative_name() else { return false };
    let has = |name: &String| {
        extension.value.general_names.iter().any(|known| match known {
            GeneralName::DNSName(dns) => dns == name,
            GeneralName::IPAddress(bytes) => match name.parse() {
                Ok(IpAddr::V4(address)) => *bytes == address.octets(),
                Ok(IpAddr::V6(address)) => *bytes == address.octets(),
                Err(_) => false,
            },
            _ => false,
        })
    };
    names.iter().all(has)
}

fn load(dir: &Path, name: &str) -> Result<Option<Pair>> {
    let (certificate, key) = (dir.join(format!("{name}.crt")), dir.join(format!("{name}.key")));
    if !certificate.exists() || !key.exists() {
        return Ok(None);
    }
    let read = |file: &Path| fs::read_to_string(file).with_context(|| format!("read {}", file.display()));
    Ok(Some(Pair { certificate: read(&certificate)?, key: read(&key)? }))
}

fn keep(dir: &Path, name: &str, pair: Pair) -> Result<Pair> {
    // the key first: a certificate without its key would look complete to nobody
    write_private(&dir.join(format!("{name}.key")), pair.key.as_bytes())?;
    write_private(&dir.join(format!("{name}.crt")), pair.certificate.as_bytes())?;
    Ok(pair)
}

/// Makes a directory that only this user can enter.
pub fn make_private_dir(dir: &Path) -> Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .with_context(|| format!("make directory {}", dir.display()))
}

/// Writes a file that only this user can read, whole or not at all.
pub fn write_private(file: &Path, bytes: &[u8]) -> Result<()> {
    use std::os::unix::fs::OpenOptionsExt;
    let act = || -> std::io::Result<()> {
        let next = file.with_added_extension("next");
        let mut out = fs::OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(&next)?;
        out.write_all(bytes)?;
        out.sync_all()?;
        fs::rename(&next, file)
    };
    act().with_context(|| format!("write {}", file.display()))
}
