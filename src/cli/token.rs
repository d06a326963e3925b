//! `coracle token`: bootstrap tokens, with which machines join. Each is a Secret of `kube-system` with kubeadm's keys.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::Method;
use jiff::{SignedDuration, Timestamp};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::client::Media;
use super::duration;
use super::failure::{Failure, Result, all_of, fail};
use super::output::{gojson, line, out, tabs};
use super::session::{Session, items_of};

const SECRETS: &str = "/api/v1/namespaces/kube-system/secrets";
const TYPE: &str = "bootstrap.kubernetes.io/token";
/// What the Secrets' names begin with.
const NAME_PREFIX: &str = "bootstrap-token-";
const ID_CHARS: usize = 6;
const SECRET_CHARS: usize = 16;

/// What can be done with tokens.
#[derive(Debug, clap::Subcommand)]
pub enum TokenCommand {
    /// Create a token for machines to join with
    Create(CreateArgs),
    /// List the tokens
    #[command(visible_alias = "ls")]
    List(ListArgs),
    /// Delete tokens
    #[command(visible_alias = "rm")]
    Delete(DeleteArgs),
}

/// Arguments of `create`.
#[derive(Debug, clap::Args)]
pub struct CreateArgs {
    /// The token to create, ID.SECRET; made up when it is left out
    #[arg(value_name = "TOKEN")]
    given: Option<String>,
    /// The duration before the token is automatically deleted (e.g. 1s, 2m, 3h); 0: the token never expires
    #[arg(long, default_value = "24h", value_parser = duration::flag)]
    ttl: Duration,
    /// A human friendly description of how this token is used
    #[arg(long, default_value = "")]
    description: String,
    /// Extra groups of who joins with it, each beginning with system:bootstrappers:
    #[arg(long, value_delimiter = ',')]
    groups: Vec<String>,
    /// Output format: json, yaml
    #[arg(short = 'o', long)]
    output: Option<String>,
}

/// Arguments of `list`.
#[derive(Debug, clap::Args)]
pub struct ListArgs {
    /// Output format: json, yaml
    #[arg(short = 'o', long)]
    output: Option<String>,
}

/// Arguments of `delete`.
#[derive(Debug, clap::Args)]
pub struct DeleteArgs {
    /// IDs of tokens, or tokens
    #[arg(required = true, value_name = "TOKEN")]
    tokens: Vec<String>,
}

/// Carries one of them out.
pub async fn run(session: &Session, command: TokenCommand) -> Result<()> {
    match command {
        TokenCommand::Create(args) => create(session, args).await,
        TokenCommand::List(args) => list(session, &args).await,
        TokenCommand::Delete(args) => delete(session, args).await,
    }
}

/// A token as it is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Token {
    id: String,
    secret: String,
    expires: Option<Timestamp>,
    usages: Vec<String>,
    description: String,
    groups: String,
}

impl Token {
    fn text(&self) -> String {
        format!("{}.{}", self.id, self.secret)
    }

    /// For scripts.
    fn value(&self, token: String) -> Value {
        let mut value = json!({"token": token, "id": self.id, "usages": self.usages});
        if let Some(expires) = self.expires {
            value["expires"] = state::rfc3339(expires).into();
        }
        if !self.description.is_empty() {
            value["description"] = self.description.as_str().into();
        }
        let groups: Vec<&str> = self.groups.split(',').filter(|group| !group.is_empty()).collect();
        if !groups.is_empty() {
            value["groups"] = json!(groups);
        }
        value
    }

    /// The Secret that it is.
    fn secret_object(&self) -> Value {
        let mut data = Map::new();
        let mut put = |key: &str, text: &str| drop(data.insert(key.to_owned(), STANDARD.encode(text).into()));
        put("token-id", &self.id);
        put("token-secret", &self.secret);
        put("usage-bootstrap-authentication", "true");
        if let Some(expires) = self.expires {
            put("expiration", &state::rfc3339(expires));
        }
        if !self.description.is_empty() {
            put("description", &self.description);
        }
        if !self.groups.is_empty() {
            put("auth-extra-groups", &self.groups);
        }
        json!({
            "apiVersion": "v1", "kind": "Secret", "type": TYPE, "data": data,
            "metadata": {"name": format!("{NAME_PREFIX}{}", self.id), "namespace": "kube-system"},
        })
    }

    /// The token of a Secret, if it is one.
    fn of(secret: &Value) -> Option<Self> {
        if secret["type"] != TYPE {
            return None;
        }
        let text = |key: &str| {
            let bytes = STANDARD.decode(secret["data"][key].as_str()?).ok()?;
            String::from_utf8(bytes).ok()
        };
        let usage = |name: &str| text(&format!("usage-bootstrap-{name}")).is_some_and(|value| value == "true");
        Some(Self {
            id: text("token-id")?,
            secret: text("token-secret")?,
            // what cannot be read is over, as the server has it
            expires: text("expiration").map(|end| end.parse().unwrap_or(Timestamp::UNIX_EPOCH)),
            usages: ["authentication", "signing"]
                .iter()
                .filter(|name| usage(name))
                .map(|name| (*name).into())
                .collect(),
            description: text("description").unwrap_or_default(),
            groups: text("auth-extra-groups").unwrap_or_default(),
        })
    }
}

async fn create(session: &Session, args: CreateArgs) -> Result<()> {
    let format = format(args.output.as_deref())?;
    let (id, secret) = match &args.given {
        Some(given) => parts(given)?,
        None => (random(ID_CHARS)?, random(SECRET_CHARS)?),
    };
    if let Some(group) = args.groups.iter().find(|group| !group.starts_with("system:bootstrappers:")) {
        return fail(format!("the group {group:?} does not begin with \"system:bootstrappers:\""));
    }
    let expires = match args.ttl {
        Duration::ZERO => None,
        ttl => Some(end(Timestamp::now(), ttl)?),
    };
    let token = Token {
        id,
        secret,
        expires,
        usages: vec!["authentication".into()],
        description: args.description,
        groups: args.groups.join(","),
    };
    let whole = format!("K10{}::{}", authority(session).await?, token.text());
    session.client.send(Method::POST, SECRETS, Media::Json, &token.secret_object()).await?;
    match format {
        Format::Human => line(&whole),
        format => show(format, &token.value(whole)),
    }
    Ok(())
}

fn end(now: Timestamp, ttl: Duration) -> Result<Timestamp> {
    let end = SignedDuration::try_from(ttl).ok().and_then(|ttl| now.checked_add(ttl).ok());
    end.ok_or_else(|| Failure::Text("--ttl: too long".into()))
}

/// SHA-256 of the server's authority, hexadecimal: what a machine that joins compares.
async fn authority(session: &Session) -> Result<String> {
    let pem = session.client.text("/cacerts").await.map_err(|failure| {
        if failure.is_not_found() {
            return Failure::Text("the server does not show its authority at /cacerts; is it coracle?".into());
        }
        failure
    })?;
    let der = CertificateDer::from_pem_slice(pem.as_bytes())
        .map_err(|error| Failure::Text(format!("read the certificate at /cacerts: {error}")))?;
    Ok(Sha256::digest(&der).iter().map(|byte| format!("{byte:02x}")).collect())
}

async fn list(session: &Session, args: &ListArgs) -> Result<()> {
    let format = format(args.output.as_deref())?;
    let resource = session.resource("secrets").await?;
    let path = super::client::with_query(SECRETS, &[("fieldSelector", format!("type={TYPE}"))]);
    let secrets = items_of(session.client.get(&path).await?, &resource);
    let mut tokens: Vec<Token> = secrets.iter().filter_map(Token::of).collect();
    tokens.sort_by(|a, b| (a.expires.is_none(), a.expires, &a.id).cmp(&(b.expires.is_none(), b.expires, &b.id)));
    match format {
        Format::Human => out(&tabs::grid(&rows(&tokens, Timestamp::now()))),
        format => show(format, &tokens.iter().map(|token| token.value(token.text())).collect()),
    }
    Ok(())
}

fn rows(tokens: &[Token], now: Timestamp) -> Vec<Vec<String>> {
    let head = ["TOKEN", "TTL", "EXPIRES", "USAGES", "DESCRIPTION", "EXTRA GROUPS"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    let or = |text: &str, none: &str| if text.is_empty() { none.to_owned() } else { text.to_owned() };
    rows.extend(tokens.iter().map(|token| {
        let (ttl, expires) = match token.expires {
            None => ("<forever>".to_owned(), "<never>".to_owned()),
            Some(end) if end <= now => ("<invalid>".to_owned(), state::rfc3339(end)),
            Some(end) => (duration::between(now, end), state::rfc3339(end)),
        };
        let usages = or(&token.usages.join(","), "<none>");
        vec![token.text(), ttl, expires, usages, or(&token.description, "<none>"), or(&token.groups, "<none>")]
    }));
    rows
}

async fn delete(session: &Session, args: DeleteArgs) -> Result<()> {
    let mut failures = Vec::new();
    for given in &args.tokens {
        let id = id(given)?;
        let path = format!("{SECRETS}/{NAME_PREFIX}{id}");
        match session.client.send(Method::DELETE, &path, Media::Json, &json!({})).await {
            Ok(_) => line(&format!("bootstrap token {id:?} deleted")),
            Err(failure @ Failure::Unreachable { .. }) => return Err(failure),
            Err(failure) if failure.is_not_found() => {
                let text = format!("failed to delete bootstrap token {id:?}: secrets \"{NAME_PREFIX}{id}\" not found");
                failures.push(Failure::Text(text));
            }
            Err(failure) => failures.push(failure),
        }
    }
    all_of(failures)
}

/// ID and secret of `id.secret`, or of a whole join token.
fn parts(token: &str) -> Result<(String, String)> {
    let bare = token.rsplit("::").next().unwrap_or(token);
    match bare.split_once('.') {
        Some((id, secret)) if is_word(id, ID_CHARS) && is_word(secret, SECRET_CHARS) => Ok((id.into(), secret.into())),
        _ => fail(format!(
            "the bootstrap token {token:?} was not of the form \"\\\\A([a-z0-9]{{6}})\\\\.([a-z0-9]{{16}})\\\\z\""
        )),
    }
}

/// The ID of a token that is given whole, without what it begins with, or as its ID alone.
fn id(token: &str) -> Result<String> {
    if is_word(token, ID_CHARS) {
        return Ok(token.to_owned());
    }
    parts(token).map(|(id, _)| id).or_else(|_| {
        fail(format!("given token or token id {token:?} didn't match pattern \"[a-z0-9]{{6}}\" or \"[a-z0-9]{{6}}.[a-z0-9]{{16}}\""))
    })
}

fn is_word(text: &str, chars: usize) -> bool {
    text.len() == chars && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
}

/// Random characters, each of them equally likely.
fn random(chars: usize) -> Result<String> {
    const ALPHABET: &[u8; 36] = b"abcdefghijklmnopqrstuvwxyz0123456789";
    let mut text = String::new();
    while text.len() < chars {
        let mut byte = [0];
        getrandom::fill(&mut byte).map_err(|error| Failure::Text(format!("make a token: {error}")))?;
        // seven times the alphabet: what is above would make its beginning more likely
        if byte[0] < 252 {
            text.push(char::from(ALPHABET[usize::from(byte[0]) % ALPHABET.len()]));
        }
    }
    Ok(text)
}

#[derive(Clone, Copy)]
enum Format {
    Human,
    Json,
    Yaml,
}

fn format(text: Option<&str>) -> Result<Format> {
    match text {
        None | Some("" | "text") => Ok(Format::Human),
        Some("json") => Ok(Format::Json),
        Some("yaml") => Ok(Format::Yaml),
        Some(other) => fail(format!("invalid output format: {other}: json or yaml")),
    }
}

fn show(format: Format, value: &Value) {
    match format {
        Format::Yaml => out(&manifests::yaml::to_string(value)),
        _ => line(&gojson::pretty(value)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_given_in_three_ways() {
        let token = "abcdef.0123456789abcdef";
        assert_eq!(parts(token).unwrap(), ("abcdef".into(), "0123456789abcdef".into()));
        assert_eq!(parts(&format!("K10aa::{token}")).unwrap().0, "abcdef");
        assert!(parts("abcdef").is_err() && parts("ABCDEF.0123456789abcdef").is_err() && parts("abcdef.0").is_err());
        assert_eq!(id("abcdef").unwrap(), "abcdef");
        assert_eq!(id(token).unwrap(), "abcdef");
        assert!(id("abc").is_err());
        let (one, other) = (random(SECRET_CHARS).unwrap(), random(SECRET_CHARS).unwrap());
        assert!(is_word(&one, SECRET_CHARS) && one != other);
    }

    #[test]
    fn a_token_is_its_secret() {
        let token = Token {
            id: "abcdef".into(),
            secret: "0123456789abcdef".into(),
            expires: Some("2026-01-02T00:00:00Z".parse().unwrap()),
            usages: vec!["authentication".into()],
            description: "shed".into(),
            groups: "system:bootstrappers:edge".into(),
        };
        assert_eq!(Token::of(&token.secret_object()), Some(token.clone()));
        let forever = Token { id: "zzzzzz".into(), expires: None, description: String::new(), ..token.clone() };
        let shown = tabs::grid(&rows(&[token, forever], "2026-01-01T00:00:00Z".parse().unwrap()));
        assert!(
            shown.contains("abcdef.0123456789abcdef") && shown.contains("24h") && shown.contains("shed"),
            "{shown}"
        );
        assert!(shown.contains("<forever>") && shown.contains("<never>") && shown.contains("<none>"), "{shown}");
    }
}
