//! The join token: `K10<sha256 of the server's CA>::<user>:<secret>`, as k3s has it.
//!
//! The digest pins the cluster's authority, so that the secret is shown to nobody else. Pure.

use super::JoinError;

/// What every token begins with.
const PREFIX: &str = "K10";
/// Hexadecimal digits of a SHA-256.
const DIGEST_CHARS: usize = 64;
/// Longest token that is looked at.
const TOKEN_BYTES_MAX: usize = 1024;

/// A token taken apart.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    /// SHA-256 of the server CA's DER, lower-case hexadecimal.
    pub ca_digest: String,
    /// What is shown to the API: `<id>.<secret>` or `server:<secret>`.
    pub bearer: String,
}

impl Token {
    /// Takes a token apart; white space around it does not count.
    ///
    /// # Errors
    /// [`JoinError::Token`] with what is wrong; the secret is never repeated.
    pub fn parse(text: &str) -> Result<Self, JoinError> {
        let wrong = |why| Err(JoinError::Token(why));
        let text = text.trim();
        if text.len() > TOKEN_BYTES_MAX {
            return wrong("it is too long");
        }
        let Some((digest, credential)) = text.strip_prefix(PREFIX).and_then(|rest| rest.split_once("::")) else {
            return wrong("it does not begin with K10<digest>::, so it does not say which cluster to trust");
        };
        if digest.len() != DIGEST_CHARS || !digest.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return wrong("what follows K10 is not a SHA-256 of 64 hexadecimal digits");
        }
        if credential.bytes().any(|byte| !byte.is_ascii_graphic()) {
            return wrong("it holds characters that no token has");
        }
        let bearer = match credential.split_once(':') {
            Some(("server", secret)) if !secret.is_empty() => credential.to_owned(),
            Some((id, secret)) if is_bootstrap(id, secret) => format!("{id}.{secret}"),
            None if credential.split_once('.').is_some_and(|(id, secret)| is_bootstrap(id, secret)) => {
                credential.into()
            }
            _ => return wrong("what follows :: is neither server:<secret> nor <id>:<secret> with 6 and 16 characters"),
        };
        Ok(Self { ca_digest: digest.to_ascii_lowercase(), bearer })
    }
}

fn is_bootstrap(id: &str, secret: &str) -> bool {
    let of = |text: &str, length| {
        text.len() == length && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
    };
    of(id, 6) && of(secret, 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_taken_apart() {
        let digest = "AB".repeat(32);
        let bearer = |rest: &str| Token::parse(&format!(" K10{digest}::{rest}\n")).map(|token| token.bearer).ok();
        let cases = [
            ("server:s3cret", Some("server:s3cret")),
            ("abc123:0123456789abcdef", Some("abc123.0123456789abcdef")),
            ("abc123.0123456789abcdef", Some("abc123.0123456789abcdef")),
            ("abc123:short", None),
            ("ABC123:0123456789abcdef", None),
            ("server:", None),
            ("", None),
            ("server:a b", None),
        ];
        for (rest, expected) in cases {
            assert_eq!(bearer(rest).as_deref(), expected, "{rest}");
        }
        let parsed = Token::parse(&format!("K10{digest}::server:x")).ok();
        assert_eq!(parsed.map(|token| token.ca_digest), Some("ab".repeat(32)));
        for text in ["", "abc123.0123456789abcdef", "K10ab::server:x", &format!("K10{digest}:server:x")] {
            let error = Token::parse(text).err().unwrap().to_string();
            assert!(error.starts_with("the join token cannot be used: "), "{error}");
        }
    }
}
