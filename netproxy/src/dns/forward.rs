//! Names that are not the cluster's: the host's own resolvers know them. What they say is remembered for a while; one that keeps
//! silent is asked last for some time.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use hickory_proto::op::{Edns, Message, Query, ResponseCode};

use crate::config::ProxyConfig;
use crate::dns::cache::{Cache, Question};
use crate::dns::client::{self, Transport};
use crate::dns::wire::UDP_BYTES_MAX;

/// The host's resolvers that are asked, one after the other.
const RESOLVERS_MAX: usize = 3;
/// A resolver that did not answer is asked last for so long.
const SILENT: Duration = Duration::from_secs(10);

/// What the one who asks can do with an answer.
#[derive(Clone, Copy, Default)]
pub(crate) struct Wish {
    /// EDNS: longer datagrams, more codes.
    pub(crate) edns: bool,
    pub(crate) dnssec_ok: bool,
    pub(crate) checking_disabled: bool,
    pub(crate) authentic_data: bool,
}

impl Wish {
    pub(crate) fn of(message: &Message) -> Self {
        Self {
            edns: message.edns.is_some(),
            dnssec_ok: message.edns.as_ref().is_some_and(|edns| edns.flags().dnssec_ok),
            checking_disabled: message.metadata.checking_disabled,
            authentic_data: message.metadata.authentic_data,
        }
    }
}

/// The way to the host's resolvers.
pub(crate) struct Forwarder {
    resolv_conf: PathBuf,
    /// Our own server, which must never be asked.
    own: OnceLock<SocketAddr>,
    timeout: Duration,
    cache: Cache,
    /// Resolvers that did not answer, and since when; as many as are asked.
    silent: Mutex<Vec<(SocketAddr, Instant)>>,
}

impl Forwarder {
    pub(crate) fn new(config: &ProxyConfig) -> Self {
        Self {
            resolv_conf: config.resolv_conf.clone(),
            own: OnceLock::new(),
            timeout: config.limits.dns_timeout,
            cache: Cache::new(config.limits.dns_cache_bytes_max),
            silent: Mutex::default(),
        }
    }

    /// Says where our own server listens.
    pub(crate) fn is_served_at(&self, own: SocketAddr) {
        // There is one server, started once.
        let _ = self.own.set(own);
    }

    /// The answer to a question; of several resolvers that of the first which knows. None: nobody answered.
    pub(crate) async fn ask(&self, query: &Query, wish: Wish, transport: Transport) -> Option<Message> {
        let Wish { dnssec_ok, checking_disabled, .. } = wish;
        let asked = Question { query: query.clone(), dnssec_ok, checking_disabled };
        if let Some(known) = self.cache.get(&asked, Instant::now()) {
            return Some(known);
        }
        let mut refused = None;
        for resolver in self.resolvers() {
            let question = question(query, wish);
            match tokio::time::timeout(self.timeout, client::exchange(resolver, &question, transport)).await {
                Ok(Ok(answer)) if knows(&answer) => {
                    self.cache.put(asked, &answer, Instant::now());
                    return Some(answer);
                }
                Ok(Ok(answer)) => refused = Some(answer),
                Ok(Err(error)) => tracing::debug!(%resolver, %error, "resolver failed"),
                Err(_) => {
                    tracing::debug!(%resolver, "resolver did not answer in time");
                    self.keeps_silent(resolver);
                }
            }
        }
        refused
    }

    /// The addresses that answer a question; none: there is no such name, or it has none. None at all: nobody answered.
    pub(crate) async fn addresses(&self, query: Query) -> Option<Vec<IpAddr>> {
        let mut answer = self.ask(&query, Wish::default(), Transport::Udp).await?;
        if answer.metadata.truncation {
            answer = self.ask(&query, Wish::default(), Transport::Tcp).await?;
        }
        match answer.metadata.response_code {
            ResponseCode::NoError => Some(client::addresses_in(&answer)),
            ResponseCode::NXDomain => Some(Vec::new()),
            _ => None,
        }
    }

    /// The host's resolvers, without ourselves, those that keep silent last. Read anew each time: DHCP changes them.
    fn resolvers(&self) -> Vec<SocketAddr> {
        let mut all = resolvers(&self.resolv_conf, self.own.get());
        let mut silent = self.silent.lock().unwrap_or_else(PoisonError::into_inner);
        silent.retain(|(_, since)| since.elapsed() < SILENT);
        all.sort_by_key(|resolver| silent.iter().any(|(known, _)| known == resolver));
        all
    }

    fn keeps_silent(&self, resolver: SocketAddr) {
        let mut silent = self.silent.lock().unwrap_or_else(PoisonError::into_inner);
        silent.retain(|(known, _)| *known != resolver);
        silent.truncate(RESOLVERS_MAX - 1);
        silent.push((resolver, Instant::now()));
    }
}

/// A question of our own: only what concerns the answer is taken from the one we were asked.
fn question(query: &Query, wish: Wish) -> Message {
    let mut question = client::question(query.clone());
    question.metadata.checking_disabled = wish.checking_disabled;
    question.metadata.authentic_data = wish.authentic_data;
    if wish.edns {
        let mut edns = Edns::new();
        edns.set_max_payload(UDP_BYTES_MAX).set_dnssec_ok(wish.dnssec_ok);
        question.edns = Some(edns);
    }
    question
}

/// Whether an answer is one; a resolver that failed or will not serve us leaves it to the next.
fn knows(answer: &Message) -> bool {
    !matches!(answer.metadata.response_code, ResponseCode::ServFail | ResponseCode::Refused | ResponseCode::NotImp)
}

/// `nameserver` lines: an address, or an address and port.
fn resolvers(resolv_conf: &Path, own: Option<&SocketAddr>) -> Vec<SocketAddr> {
    let text = std::fs::read_to_string(resolv_conf).unwrap_or_default();
    let parse = |word: &str| match word.parse::<IpAddr>() {
        Ok(address) => Some(SocketAddr::new(address, 53)),
        Err(_) => word.parse().ok(),
    };
    text.lines()
        .filter_map(|line| parse(line.trim().strip_prefix("nameserver")?.split_whitespace().next()?))
        .filter(|resolver| Some(resolver) != own)
        .take(RESOLVERS_MAX)
        .collect()
}
