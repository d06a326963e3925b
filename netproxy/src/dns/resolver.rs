//! The resolver of pods that have no C library to do it: hosts file, the cluster's names, then the host's resolver or the name
//! servers that the pod asks for.

use std::io::{Error, ErrorKind};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use hickory_proto::op::Query;
use hickory_proto::rr::{Name, RecordType};

use crate::dns::client;
use crate::dns::names::{self, Found};
use crate::shared::Shared;
use crate::table::Table;
use crate::view::{DnsPolicy, NAMESERVERS_MAX, PodView, SEARCHES_MAX, is_localhost_name};

/// Aliases followed from one name.
const ALIASES_MAX: usize = 8;
/// Addresses of one outside name that are kept.
const ADDRESSES_MAX: usize = 4;
/// All of one look-up in name servers, whatever the pod's options say.
const LOOKUP_SECONDS_MAX: u64 = 30;
/// A resolver's usual time for one question.
const TIMEOUT_SECONDS: u64 = 5;
/// The longest `timeout` a resolver takes.
const TIMEOUT_SECONDS_MAX: u64 = 30;
/// A resolver's usual number of rounds, and the most it takes.
const ATTEMPTS: usize = 2;
const ATTEMPTS_MAX: usize = 5;

/// What can be said about a name without asking anyone.
pub(crate) enum Known {
    /// Its addresses; none: it exists, but nobody is there.
    Addresses(Vec<IpAddr>),
    /// To be asked for under this name, which may be another.
    Outside(String),
    /// It could only be the cluster's, and is not.
    Absent,
}

/// What the pod's hosts file and the cluster know of `name`.
pub(crate) fn known(table: &Table, domain: &str, pod: &PodView, name: &str) -> Known {
    let mut name = name.to_owned();
    for _ in 0..ALIASES_MAX {
        if is_localhost_name(&name) {
            return Known::Addresses(vec![std::net::Ipv4Addr::LOCALHOST.into()]);
        }
        if let Ok(address) = name.parse() {
            return Known::Addresses(vec![address]);
        }
        let hosts = pod.in_hosts(&name);
        if !hosts.is_empty() {
            return Known::Addresses(hosts);
        }
        if pod.dns.policy != DnsPolicy::ClusterFirst {
            return Known::Outside(name);
        }
        let of_searches = || {
            let full = |search: &&String| format!("{name}.{}", search.trim_matches('.')).to_ascii_lowercase();
            let inside = searches(pod).filter(|search| !name.ends_with('.') && names::is_inside(domain, search));
            let found = inside.map(|search| names::lookup(table, domain, &full(&search)));
            found.into_iter().find(|found| matches!(found, Found::Addresses(_) | Found::Alias(_)))
        };
        match names::resolve(table, domain, &name, &pod.namespace).or_else(of_searches) {
            Some(Found::Addresses(addresses)) => return Known::Addresses(addresses),
            // An alias is a full name.
            Some(Found::Alias(alias)) => name = format!("{alias}."),
            _ if names::is_inside(domain, &name) => return Known::Absent,
            _ => return Known::Outside(name),
        }
    }
    Known::Absent
}

/// Addresses of a name that [`known`] left to others.
///
/// # Errors
/// `NotFound` when there is no such name; anything else is trouble that may pass.
pub(crate) async fn outside(shared: &Shared, pod: &PodView, name: &str) -> Result<Vec<IpAddr>, Error> {
    if pod.dns.policy == DnsPolicy::None {
        return by_servers(pod, name).await;
    }
    let mut last = None;
    for full in candidates(name, searches(pod).filter(|s| !names::is_inside(&shared.cluster_domain, s)), ndots(pod)) {
        match by_host(shared, &full).await {
            Ok(addresses) => return Ok(addresses),
            Err(error) => last = Some(error),
        }
    }
    if !pod.dns.nameservers.is_empty() {
        return by_servers(pod, name).await;
    }
    Err(last.unwrap_or_else(|| no_such_host(name)))
}

fn no_such_host(name: &str) -> Error {
    Error::new(ErrorKind::NotFound, format!("no such host: {name}"))
}

fn searches(pod: &PodView) -> impl Iterator<Item = &String> {
    pod.dns.searches.iter().take(SEARCHES_MAX)
}

fn ndots(pod: &PodView) -> usize {
    pod.dns.ndots.unwrap_or(if pod.dns.policy == DnsPolicy::ClusterFirst { 5 } else { 1 })
}

/// The names a resolver tries, in order.
fn candidates<'a>(name: &str, searches: impl Iterator<Item = &'a String>, ndots: usize) -> Vec<String> {
    if name.ends_with('.') {
        return vec![name.to_owned()];
    }
    let searches = searches.map(|search| search.trim_matches('.')).filter(|search| !search.is_empty());
    let mut names: Vec<String> = searches.map(|search| format!("{name}.{search}")).collect();
    let as_is = if name.matches('.').count() >= ndots { 0 } else { names.len() };
    names.insert(as_is, name.to_owned());
    names
}

/// By the host's name servers, as containers' resolvers ask them through the cluster's; else by its C library, which may know more:
/// a hosts file, neighbours.
async fn by_host(shared: &Shared, name: &str) -> Result<Vec<IpAddr>, Error> {
    let asked = by_name_servers(shared, name).await;
    if let Some(addresses) = asked.clone().filter(|addresses| !addresses.is_empty()) {
        return Ok(addresses);
    }
    let target = (name.trim_end_matches('.').to_owned(), 0);
    let lookup = shared.data.spawn(async move {
        tokio::net::lookup_host(target).await.map(|addrs| {
            let mut addresses: Vec<IpAddr> = Vec::new();
            for addr in addrs.take(ADDRESSES_MAX) {
                if !addresses.contains(&addr.ip()) {
                    addresses.push(addr.ip());
                }
            }
            addresses
        })
    });
    match lookup.await {
        Ok(Ok(addresses)) if !addresses.is_empty() => Ok(addresses),
        Ok(Ok(_)) => Err(no_such_host(name)),
        // The C library's word does not tell a name that is not there from nobody to ask.
        Ok(Err(_)) if asked.is_some() => Err(no_such_host(name)),
        Ok(Err(error)) => Err(error),
        Err(error) => Err(Error::other(error)),
    }
}

/// The addresses that the host's name servers know for a full name; None: they did not answer.
async fn by_name_servers(shared: &Shared, name: &str) -> Option<Vec<IpAddr>> {
    let full = Name::from_ascii(format!("{}.", name.trim_end_matches('.'))).ok()?;
    let of = |kind| shared.forwarder.addresses(Query::query(full.clone(), kind));
    let (v4, v6) = tokio::join!(of(RecordType::A), of(RecordType::AAAA));
    let mut addresses = v4?;
    addresses.extend(v6.unwrap_or_default());
    addresses.truncate(ADDRESSES_MAX);
    Some(addresses)
}

/// By the pod's own name servers.
async fn by_servers(pod: &PodView, name: &str) -> Result<Vec<IpAddr>, Error> {
    let servers = &pod.dns.nameservers[..pod.dns.nameservers.len().min(NAMESERVERS_MAX)];
    let timeout = pod.dns.timeout.unwrap_or(Duration::from_secs(TIMEOUT_SECONDS));
    let timeout = timeout.clamp(Duration::from_millis(1), Duration::from_secs(TIMEOUT_SECONDS_MAX));
    let attempts = pod.dns.attempts.unwrap_or(ATTEMPTS).clamp(1, ATTEMPTS_MAX);
    let names = candidates(name, searches(pod), ndots(pod));
    let asking = async {
        let mut trouble = None;
        for full in &names {
            match by_one_of(servers, full, timeout, attempts).await {
                Ok(addresses) if addresses.is_empty() => {}
                Ok(addresses) => return Ok(addresses.into_iter().take(ADDRESSES_MAX).collect()),
                // A server that says it failed may know the next name; one that says nothing costs time for each.
                Err(error) if error.kind() == ErrorKind::Other => trouble = Some(error),
                Err(error) => return Err(error),
            }
        }
        Err(trouble.unwrap_or_else(|| no_such_host(name)))
    };
    tokio::time::timeout(Duration::from_secs(LOOKUP_SECONDS_MAX), asking).await?
}

/// The first answer, good or bad, to one full name.
async fn by_one_of(
    servers: &[SocketAddr],
    full: &str,
    timeout: Duration,
    attempts: usize,
) -> Result<Vec<IpAddr>, Error> {
    let Ok(wire_name) = Name::from_ascii(format!("{}.", full.trim_end_matches('.'))) else {
        return Err(no_such_host(full));
    };
    let mut last = Error::other("no name server to ask");
    for _ in 0..attempts {
        for server in servers {
            match tokio::time::timeout(timeout, client::addresses(*server, &wire_name)).await {
                Ok(Ok(addresses)) => return Ok(addresses),
                Ok(Err(error)) => last = error,
                Err(elapsed) => last = elapsed.into(),
            }
        }
    }
    Err(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn search_domains_and_ndots_order_what_is_tried() {
        let searches = ["corp.example.".to_owned(), ".".to_owned(), "lan".to_owned()];
        for (name, ndots, expected) in [
            ("db", 1, "db.corp.example db.lan db"),
            ("db.east", 1, "db.east db.east.corp.example db.east.lan"),
            ("db.east", 2, "db.east.corp.example db.east.lan db.east"),
            ("db.", 5, "db."),
        ] {
            assert_eq!(candidates(name, searches.iter(), ndots).join(" "), expected, "{name} {ndots}");
        }
    }
}
