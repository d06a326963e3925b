//! Who is asking: a client certificate (CN is the user, O the groups), a bearer token, or nobody.
//!
//! The certificate's chain was verified in the TLS handshake; here it is only read. Bearer tokens are those of a table,
//! and bootstrap tokens, which are Secrets of the cluster (`authn/bootstrap.rs`). Deliberately absent: OIDC, webhooks,
//! request headers of a front proxy, ServiceAccount tokens (none are issued yet).

mod bootstrap;

use crate::status::Status;
use http::HeaderMap;
use http::header::AUTHORIZATION;
use jiff::Timestamp;
use sha2::{Digest, Sha256};
use state::World;
use std::fmt::Write;
use std::hint::black_box;
use x509_parser::prelude::{FromDer, X509Certificate};

/// Group of everyone who proved who they are.
pub const AUTHENTICATED: &str = "system:authenticated";
/// Group of everyone who did not.
pub const UNAUTHENTICATED: &str = "system:unauthenticated";
/// User name of those who did not.
pub const ANONYMOUS: &str = "system:anonymous";
/// Group of those who hold a token to join with.
pub const BOOTSTRAPPERS: &str = "system:bootstrappers";

/// Who a request comes from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct User {
    /// `system:admin`
    pub name: String,
    /// Identity over time, where the source has one.
    pub uid: String,
    /// Groups, `system:authenticated` included.
    pub groups: Vec<String>,
    /// SHA-256 of the public key (its SubjectPublicKeyInfo, DER) of the certificate that says so, hexadecimal; empty when
    /// it was no certificate.
    pub key_sha256: String,
}

impl User {
    /// Nobody known.
    pub fn anonymous() -> Self {
        Self { name: ANONYMOUS.into(), groups: vec![UNAUTHENTICATED.into()], ..Self::default() }
    }

    /// Somebody known.
    pub fn new(name: impl Into<String>, groups: impl IntoIterator<Item = String>) -> Self {
        let mut groups: Vec<String> = groups.into_iter().collect();
        groups.push(AUTHENTICATED.into());
        Self { name: name.into(), groups, ..Self::default() }
    }

    /// Whether it is of a group.
    pub fn is_of(&self, group: &str) -> bool {
        self.groups.iter().any(|own| own == group)
    }

    /// Whether nobody is known.
    pub fn is_anonymous(&self) -> bool {
        self.name == ANONYMOUS
    }
}

/// A line of a token file that is none.
#[derive(Debug, thiserror::Error)]
#[error("token file, line {line}: {problem}")]
pub struct TokenFileError {
    /// Counted from 1.
    pub line: usize,
    /// What is wrong with it.
    pub problem: &'static str,
}

/// Bearer tokens and whose they are.
#[derive(Clone, Default)]
pub struct TokenTable {
    rows: Vec<(String, User)>,
}

impl TokenTable {
    /// Reads kube-apiserver's `--token-auth-file`: CSV lines `token,user,uid` and optionally `"group1,group2"`.
    ///
    /// # Errors
    /// The first line that has fewer columns, no token or no user, or an open quote.
    pub fn parse(csv: &str) -> Result<Self, TokenFileError> {
        let mut table = Self::default();
        for (index, text) in csv.lines().enumerate() {
            if text.trim().is_empty() || text.starts_with('#') {
                continue;
            }
            let fault = |problem| TokenFileError { line: index + 1, problem };
            let columns = columns(text).ok_or_else(|| fault("a quote is not closed"))?;
            let [token, name, uid, rest @ ..] = columns.as_slice() else {
                return Err(fault("needs at least the columns token, user, uid"));
            };
            if token.is_empty() {
                return Err(fault("the token is empty"));
            }
            if name.is_empty() {
                return Err(fault("the user is empty"));
            }
            let groups = rest.first().map(String::as_str).unwrap_or_default();
            let groups = groups.split(',').map(str::trim).filter(|group| !group.is_empty()).map(str::to_owned);
            let mut user = User::new(name.clone(), groups);
            user.uid.clone_from(uid);
            table.insert(token, user);
        }
        Ok(table)
    }

    /// Adds a token; an empty one is never accepted.
    pub fn insert(&mut self, token: &str, user: User) {
        if !token.is_empty() {
            self.rows.push((token.to_owned(), user));
        }
    }

    /// Whose token this is. Looks at every row and every byte, so that time says nothing about how much was right.
    fn user(&self, token: &str) -> Option<&User> {
        let mut found = None;
        for (known, user) in &self.rows {
            if same(known.as_bytes(), token.as_bytes()) && found.is_none() {
                found = Some(user);
            }
        }
        found
    }
}

/// One CSV line; quotes as in RFC 4180.
fn columns(line: &str) -> Option<Vec<String>> {
    let mut columns = vec![String::new()];
    let mut quoted = false;
    let mut chars = line.chars().peekable();
    while let Some(char) = chars.next() {
        let last = columns.last_mut()?;
        match char {
            '"' if quoted && chars.peek() == Some(&'"') => {
                chars.next();
                last.push('"');
            }
            '"' => quoted = !quoted,
            ',' if !quoted => columns.push(String::new()),
            char => last.push(char),
        }
    }
    let trimmed = columns.into_iter().map(|column| column.trim().to_owned()).collect();
    (!quoted).then_some(trimmed)
}

fn same(a: &[u8], b: &[u8]) -> bool {
    let differing = a.iter().zip(b).fold(0, |differing, (a, b)| black_box(differing | (a ^ b)));
    a.len() == b.len() && differing == 0
}

/// Who a verified client certificate (DER) names; `None` when it names nobody.
pub fn certified(certificate: &[u8]) -> Option<User> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    let subject = certificate.subject();
    let name = subject.iter_common_name().next()?.as_str().ok()?;
    if name.is_empty() {
        return None;
    }
    let groups = subject.iter_organization().filter_map(|group| group.as_str().ok()).map(str::to_owned);
    let key_sha256 = Sha256::digest(certificate.public_key().raw).iter().fold(String::new(), |mut hex, byte| {
        // writing to a string does not fail
        let _ = write!(hex, "{byte:02x}");
        hex
    });
    Some(User { key_sha256, ..User::new(name, groups) })
}

/// Who is asking: the certificate's user if there is one, else the token's, be it one of `tokens` or a bootstrap token
/// of `world` that is good at `now`.
///
/// # Errors
/// 401 when credentials were shown that are nobody's.
pub fn authenticate(
    certified: Option<&User>,
    headers: &HeaderMap,
    tokens: &TokenTable,
    world: &World,
    now: Timestamp,
) -> Result<User, Status> {
    if let Some(user) = certified {
        return Ok(user.clone());
    }
    let Some(authorization) = headers.get(AUTHORIZATION) else { return Ok(User::anonymous()) };
    let authorization = authorization.to_str().map_err(|_| Status::unauthorized())?;
    let (scheme, token) = authorization.trim().split_once(' ').ok_or_else(Status::unauthorized)?;
    if !scheme.eq_ignore_ascii_case("bearer") {
        return Err(Status::unauthorized());
    }
    let token = token.trim();
    tokens.user(token).cloned().or_else(|| bootstrap::user(token, world, now)).ok_or_else(Status::unauthorized)
}
