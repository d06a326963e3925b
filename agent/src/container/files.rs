//! The files by which a pod knows names: `/etc/hosts`, `/etc/resolv.conf`, `/etc/hostname`.
//!
//! The kubelet's rules as pure functions of the pod and of what the host has; [`write`] puts the results where Docker's
//! containers find them. Programs in this process have no such files: they get the same by [`view`].

use super::hostname;
use crate::body::Body;
use k8s_openapi::api::core::v1::PodSpec;
use netproxy::{DnsPolicy, NAMESERVERS_MAX, PodDns, PodView, SEARCHES_MAX};
use state::Object;
use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Characters of all search domains together.
const SEARCH_CHARS_MAX: usize = 2048;
/// Characters of a host name, as the kernel has it.
const FQDN_CHARS_MAX: usize = 64;
/// Bytes of a file of the host's that are looked at.
const HOST_FILE_BYTES_MAX: u64 = 1 << 20;
/// What a pod's resolver is told beside name servers, where these are the cluster's.
const CLUSTER_OPTION: (&str, &str) = ("ndots", "5");
/// Port of name servers.
const DNS_PORT: u16 = 53;
/// The files, under the pod's `etc` and in `/etc`.
const FILES: [(&str, &str); 3] =
    [("hosts", "/etc/hosts"), ("resolv.conf", "/etc/resolv.conf"), ("hostname", "/etc/hostname")];

/// What names depend on beside the spec.
pub struct Surroundings<'a> {
    /// The pod's namespace.
    pub namespace: &'a str,
    /// The pod's name.
    pub name: &'a str,
    /// `cluster.local`
    pub cluster_domain: &'a str,
    /// Where the cluster's names are answered.
    pub cluster_dns: Option<IpAddr>,
    /// The pod's own address; `None`: it has the node's network.
    pub address: Option<IpAddr>,
    /// The node's host name.
    pub node_hostname: &'a str,
    /// The node's `/etc/hosts`.
    pub node_hosts: &'a str,
    /// The node's `/etc/resolv.conf`.
    pub node_resolv_conf: &'a str,
}

/// The host name that the pod's kernel says.
///
/// # Errors
/// The kubelet's words for a name that is too long for it.
pub fn kernel_hostname(spec: &PodSpec, around: &Surroundings<'_>) -> Result<String, String> {
    if spec.host_network == Some(true) && hostname_override(spec).is_none() {
        return Ok(around.node_hostname.to_owned());
    }
    let short = pod_hostname(spec, around.name);
    match domain(spec, around) {
        Some(domain) if spec.set_hostname_as_fqdn == Some(true) => {
            let full = format!("{short}.{domain}");
            let length = full.len();
            if length > FQDN_CHARS_MAX {
                return Err(format!(
                    "Failed to construct FQDN from pod hostname and cluster domain, FQDN {full} is too long \
                     ({FQDN_CHARS_MAX} characters is the max, {length} characters requested)"
                ));
            }
            Ok(full)
        }
        _ => Ok(short),
    }
}

fn hostname_override(spec: &PodSpec) -> Option<&str> {
    spec.hostname_override.as_deref().filter(|name| !name.is_empty())
}

fn pod_hostname(spec: &PodSpec, name: &str) -> String {
    hostname_override(spec).map_or_else(|| hostname(spec, name), ToOwned::to_owned)
}

/// `subdomain.namespace.svc.cluster.local`
fn domain(spec: &PodSpec, around: &Surroundings<'_>) -> Option<String> {
    let subdomain = spec.subdomain.as_deref().filter(|subdomain| !subdomain.is_empty())?;
    if hostname_override(spec).is_some() {
        return None;
    }
    Some(format!("{subdomain}.{}.svc.{}", around.namespace, around.cluster_domain))
}

/// `/etc/hosts`
pub fn hosts(spec: &PodSpec, around: &Surroundings<'_>) -> String {
    let mut text = match around.address {
        None => {
            let mut text = "# Kubernetes-managed hosts file (host network).\n".to_owned();
            text.push_str(around.node_hosts);
            if !text.ends_with('\n') {
                text.push('\n');
            }
            text
        }
        Some(address) => {
            let mut text = "# Kubernetes-managed hosts file.\n".to_owned();
            for (address, names) in [
                ("127.0.0.1", "localhost"),
                ("::1", "localhost ip6-localhost ip6-loopback"),
                ("fe00::0", "ip6-localnet"),
                ("fe00::0", "ip6-mcastprefix"),
                ("fe00::1", "ip6-allnodes"),
                ("fe00::2", "ip6-allrouters"),
            ] {
                text.push_str(&format!("{address}\t{names}\n"));
            }
            text.push_str(&line(address, &own_names(spec, around)));
            text
        }
    };
    let mut aliases = aliases(spec).peekable();
    if aliases.peek().is_some() {
        text.push_str("\n# Entries added by HostAliases.\n");
    }
    aliases.for_each(|(address, names)| text.push_str(&line(address, &names)));
    text
}

fn line(address: IpAddr, names: &[String]) -> String {
    format!("{address}\t{}\n", names.join("\t"))
}

/// The names of the pod itself, the full one first.
fn own_names(spec: &PodSpec, around: &Surroundings<'_>) -> Vec<String> {
    let short = pod_hostname(spec, around.name);
    let full = domain(spec, around).map(|domain| format!("{short}.{domain}"));
    full.into_iter().chain([short]).collect()
}

/// `hostAliases` with an address and names.
fn aliases(spec: &PodSpec) -> impl Iterator<Item = (IpAddr, Vec<String>)> {
    spec.host_aliases.iter().flatten().filter_map(|alias| {
        let names = alias.hostnames.clone().filter(|names| !names.is_empty())?;
        Some((alias.ip.parse().ok()?, names))
    })
}

/// `/etc/hostname`
pub fn hostname_file(kernel_hostname: &str) -> String {
    format!("{kernel_hostname}\n")
}

/// A `resolv.conf` as plain values.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResolvConf {
    /// In the order they are asked.
    pub nameservers: Vec<IpAddr>,
    /// In the order they are tried.
    pub searches: Vec<String>,
    /// Name and value; an empty value is none.
    pub options: BTreeMap<String, String>,
}

impl ResolvConf {
    /// Reads the host's. What is not understood is left out, as by a resolver.
    pub fn parse(text: &str) -> Self {
        let mut found = Self::default();
        for line in text.lines() {
            let mut words = line.split(['#', ';']).next().unwrap_or_default().split_whitespace();
            match words.next() {
                Some("nameserver") => {
                    let address = words.next().map(|word| word.split('%').next().unwrap_or(word));
                    found.nameservers.extend(address.and_then(|word| word.parse::<IpAddr>().ok()));
                }
                // the last line with domains is the one that counts
                Some("search" | "domain") => found.searches = words.map(ToOwned::to_owned).collect(),
                Some("options") => found.options.extend(words.map(|word| {
                    let (name, value) = word.split_once(':').unwrap_or((word, ""));
                    (name.to_owned(), value.to_owned())
                })),
                _ => {}
            }
        }
        found
    }

    fn add(&mut self, nameservers: impl IntoIterator<Item = IpAddr>, searches: impl IntoIterator<Item = String>) {
        for nameserver in nameservers {
            if !self.nameservers.contains(&nameserver) {
                self.nameservers.push(nameserver);
            }
        }
        for search in searches {
            if !self.searches.contains(&search) {
                self.searches.push(search);
            }
        }
    }

    /// Within what resolvers take.
    fn limited(mut self) -> Self {
        self.nameservers.truncate(NAMESERVERS_MAX);
        self.searches.truncate(SEARCHES_MAX);
        while self.searches.iter().map(|search| search.len() + 1).sum::<usize>() > SEARCH_CHARS_MAX + 1 {
            self.searches.pop();
        }
        self
    }

    /// The file.
    pub fn text(&self) -> String {
        let mut text = String::new();
        if !self.searches.is_empty() {
            text.push_str(&format!("search {}\n", self.searches.join(" ")));
        }
        for nameserver in &self.nameservers {
            text.push_str(&format!("nameserver {nameserver}\n"));
        }
        if !self.options.is_empty() {
            let option = |(name, value): (&String, &String)| match value.as_str() {
                "" => name.clone(),
                value => format!("{name}:{value}"),
            };
            text.push_str(&format!("options {}\n", self.options.iter().map(option).collect::<Vec<_>>().join(" ")));
        }
        text
    }
}

/// Whom the pod's policy asks first. In the node's network the cluster's names have to be asked for by their own policy.
fn policy(spec: &PodSpec) -> DnsPolicy {
    match spec.dns_policy.as_deref() {
        Some("None") => DnsPolicy::None,
        Some("Default") => DnsPolicy::Default,
        Some("ClusterFirstWithHostNet") => DnsPolicy::ClusterFirst,
        _ if spec.host_network == Some(true) => DnsPolicy::Default,
        _ => DnsPolicy::ClusterFirst,
    }
}

/// `/etc/resolv.conf`
pub fn resolv_conf(spec: &PodSpec, around: &Surroundings<'_>) -> ResolvConf {
    let host = ResolvConf::parse(around.node_resolv_conf);
    let mut made = match (policy(spec), around.cluster_dns) {
        (DnsPolicy::None, _) => ResolvConf::default(),
        (DnsPolicy::ClusterFirst, Some(cluster_dns)) => {
            let (namespace, domain) = (around.namespace, around.cluster_domain);
            let mut made = ResolvConf { nameservers: vec![cluster_dns], ..ResolvConf::default() };
            made.add([], [format!("{namespace}.svc.{domain}"), format!("svc.{domain}"), domain.to_owned()]);
            made.add([], host.searches);
            made.options = BTreeMap::from([(CLUSTER_OPTION.0.to_owned(), CLUSTER_OPTION.1.to_owned())]);
            made
        }
        _ => reachable(host, around),
    };
    if let Some(config) = &spec.dns_config {
        let nameservers = config.nameservers.iter().flatten().filter_map(|address| address.parse().ok());
        made.add(nameservers.collect::<Vec<_>>(), config.searches.iter().flatten().cloned());
        let options = config.options.iter().flatten();
        made.options.extend(options.filter_map(|o| Some((o.name.clone()?, o.value.clone().unwrap_or_default()))));
    }
    made.limited()
}

/// The host's resolver as a pod can use it: one that listens on the host's localhost cannot be reached from elsewhere, but
/// the cluster's asks it.
fn reachable(mut host: ResolvConf, around: &Surroundings<'_>) -> ResolvConf {
    if around.address.is_some() {
        host.nameservers.retain(|address| !address.is_loopback());
        if host.nameservers.is_empty() {
            host.nameservers.extend(around.cluster_dns);
        }
    }
    host
}

/// The same for a program in this process.
pub fn view(spec: &PodSpec, around: &Surroundings<'_>, address: IpAddr) -> PodView {
    let own = around.address.map(|address| (address, own_names(spec, around)));
    let config = spec.dns_config.as_ref();
    let option = |wanted: &str| {
        let mut options = config.into_iter().flat_map(|config| config.options.iter().flatten());
        options.rfind(|option| option.name.as_deref() == Some(wanted))?.value.as_deref()?.parse::<u64>().ok()
    };
    let nameservers = config.into_iter().flat_map(|config| config.nameservers.iter().flatten());
    PodView {
        namespace: around.namespace.to_owned(),
        address,
        host_network: around.address.is_none(),
        dial: None,
        hosts: own.into_iter().chain(aliases(spec)).collect(),
        dns: PodDns {
            policy: policy(spec),
            nameservers: nameservers
                .filter_map(|address| Some(SocketAddr::new(address.parse().ok()?, DNS_PORT)))
                .collect(),
            searches: config.and_then(|config| config.searches.clone()).unwrap_or_default(),
            ndots: option("ndots").and_then(|ndots| usize::try_from(ndots).ok()),
            timeout: option("timeout").map(Duration::from_secs),
            attempts: option("attempts").and_then(|attempts| usize::try_from(attempts).ok()),
        },
    }
}

/// What of the node's own files a pod's names depend on.
#[derive(Default)]
struct NodeFiles {
    hostname: String,
    hosts: String,
    resolv_conf: String,
}

impl NodeFiles {
    fn read(node_resolv_conf: &Path) -> Self {
        Self {
            hostname: node_hostname(),
            hosts: host_file(Path::new("/etc/hosts")),
            resolv_conf: host_file(node_resolv_conf),
        }
    }
}

fn node_hostname() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// A file that a host may lack.
fn host_file(path: &Path) -> String {
    let read = || {
        let mut bytes = Vec::new();
        io::Read::read_to_end(&mut io::Read::take(std::fs::File::open(path)?, HOST_FILE_BYTES_MAX), &mut bytes)?;
        io::Result::Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    read().unwrap_or_default()
}

fn surroundings<'a>(
    body: &'a Body,
    object: &'a Object,
    address: Option<IpAddr>,
    node: &'a NodeFiles,
) -> Surroundings<'a> {
    Surroundings {
        namespace: object.meta().namespace.as_deref().unwrap_or_default(),
        name: &object.meta().name,
        cluster_domain: &body.cluster.cluster_domain,
        cluster_dns: body.cluster.cluster_dns,
        address,
        node_hostname: &node.hostname,
        node_hosts: &node.hosts,
        node_resolv_conf: &node.resolv_conf,
    }
}

/// The kernel host name of a pod of this node; `address` as of [`Surroundings`].
///
/// # Errors
/// As of [`kernel_hostname`].
pub fn hostname_of(body: &Body, object: &Object, spec: &PodSpec, address: Option<IpAddr>) -> Result<String, String> {
    let node = NodeFiles { hostname: node_hostname(), ..NodeFiles::default() };
    kernel_hostname(spec, &surroundings(body, object, address, &node))
}

/// How a pod of this node sees the network, `address` being what it is known by.
pub fn view_of(body: &Body, object: &Object, spec: &PodSpec, address: IpAddr) -> PodView {
    let own = (spec.host_network != Some(true)).then_some(address);
    let node = NodeFiles::default();
    view(spec, &surroundings(body, object, own, &node), address)
}

/// Writes the files of a pod; `address` is its own, `None` with the node's network. Files that are right stay untouched, others
/// are rewritten in place, because containers hold on to them.
///
/// # Errors
/// When they cannot be written, or the host name is impossible.
pub async fn write(body: &Body, object: &Arc<Object>, spec: &PodSpec, address: Option<IpAddr>) -> io::Result<()> {
    let node_resolv_conf = body.config.resolv_conf.clone();
    let node = tokio::task::spawn_blocking(move || NodeFiles::read(&node_resolv_conf)).await?;
    let around = surroundings(body, object, address, &node);
    let own = kernel_hostname(spec, &around).map_err(io::Error::other)?;
    let texts = [hosts(spec, &around), resolv_conf(spec, &around).text(), hostname_file(&own)];
    let dir = body.pod_dir(&object.meta().uid).join("etc");
    tokio::task::spawn_blocking(move || {
        std::fs::create_dir_all(&dir)?;
        for ((name, _), text) in FILES.iter().zip(texts) {
            let path = dir.join(name);
            if std::fs::read(&path).ok().is_none_or(|old| old != text.as_bytes()) {
                std::fs::write(path, text)?;
            }
        }
        Ok(())
    })
    .await?
}

/// The files as a container sees them: of the node, and in the container.
pub fn mounts(pod_dir: &Path) -> Vec<(PathBuf, &'static str)> {
    FILES.iter().map(|(name, path)| (pod_dir.join("etc").join(name), *path)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};

    fn spec(yaml: &str) -> PodSpec {
        serde_yaml::from_str(&format!("{{containers: [], {yaml}}}")).unwrap()
    }

    fn around(spec: &PodSpec) -> Surroundings<'static> {
        Surroundings {
            namespace: "shop",
            name: "web-0",
            cluster_domain: "cluster.local",
            cluster_dns: Some("10.43.0.10".parse().unwrap()),
            address: (spec.host_network != Some(true)).then(|| "10.42.0.130".parse().unwrap()),
            node_hostname: "node-1",
            node_hosts: "127.0.0.1 localhost node-1\n192.0.2.1 nas",
            node_resolv_conf: "# made by dhcp\nnameserver 192.0.2.53\nnameserver 127.0.0.53 ; local\nsearch lan home.arpa\n\
                               options edns0 trust-ad timeout:3\n",
        }
    }

    fn check_hosts(yaml: &str, expected: Expect) {
        let spec = spec(yaml);
        expected.assert_eq(&hosts(&spec, &around(&spec)));
    }

    #[test]
    fn a_pods_hosts_file_is_the_kubelets() {
        check_hosts(
            "subdomain: db, hostAliases: [{ip: 192.0.2.9, hostnames: [a.lan, b]}, {ip: bad, hostnames: [c]}]",
            expect![[r#"
                # Kubernetes-managed hosts file.
                127.0.0.1	localhost
                ::1	localhost ip6-localhost ip6-loopback
                fe00::0	ip6-localnet
                fe00::0	ip6-mcastprefix
                fe00::1	ip6-allnodes
                fe00::2	ip6-allrouters
                10.42.0.130	web-0.db.shop.svc.cluster.local	web-0

                # Entries added by HostAliases.
                192.0.2.9	a.lan	b
            "#]],
        );
        check_hosts(
            "hostNetwork: true",
            expect![[r#"
                # Kubernetes-managed hosts file (host network).
                127.0.0.1 localhost node-1
                192.0.2.1 nas
            "#]],
        );
    }

    #[test]
    fn resolv_conf_follows_policy_and_config() {
        for (yaml, expected) in [
            (
                "hostname: x",
                "search shop.svc.cluster.local svc.cluster.local cluster.local lan home.arpa\n\
                 nameserver 10.43.0.10\noptions ndots:5\n",
            ),
            ("dnsPolicy: Default", "search lan home.arpa\nnameserver 192.0.2.53\noptions edns0 timeout:3 trust-ad\n"),
            (
                "dnsPolicy: ClusterFirst, hostNetwork: true",
                "search lan home.arpa\nnameserver 192.0.2.53\nnameserver 127.0.0.53\n\
                 options edns0 timeout:3 trust-ad\n",
            ),
            (
                "dnsPolicy: ClusterFirstWithHostNet, hostNetwork: true, dnsConfig: {nameservers: [192.0.2.1, 10.43.0.10, \
                 192.0.2.2, 192.0.2.3], searches: [corp, lan], options: [{name: ndots, value: '2'}, {name: rotate}]}",
                "search shop.svc.cluster.local svc.cluster.local cluster.local lan home.arpa corp\n\
                 nameserver 10.43.0.10\nnameserver 192.0.2.1\nnameserver 192.0.2.2\noptions ndots:2 rotate\n",
            ),
            (
                "dnsPolicy: None, dnsConfig: {nameservers: ['2001:db8::1'], searches: [corp]}",
                "search corp\nnameserver 2001:db8::1\n",
            ),
        ] {
            let spec = spec(yaml);
            assert_eq!(resolv_conf(&spec, &around(&spec)).text(), expected, "{yaml}");
        }
        // a resolver of the host alone is asked by the cluster's
        let spec = spec("dnsPolicy: Default");
        let around = Surroundings { node_resolv_conf: "nameserver 127.0.0.53\n", ..around(&spec) };
        assert_eq!(resolv_conf(&spec, &around).text(), "nameserver 10.43.0.10\n");
    }

    #[test]
    fn searches_stay_within_their_bounds() {
        let many: Vec<String> = (0..40).map(|n| format!("d{n}.{}", "x".repeat(90))).collect();
        let spec =
            spec(&format!("dnsPolicy: None, dnsConfig: {{searches: {}}}", serde_json::to_string(&many).unwrap()));
        let searches = resolv_conf(&spec, &around(&spec)).searches;
        assert!(searches.len() < SEARCHES_MAX && searches.join(" ").len() <= SEARCH_CHARS_MAX);
        assert!(searches.iter().zip(&many).all(|(kept, wanted)| kept == wanted) && searches.len() > 20);
    }

    #[test]
    fn host_names_follow_the_spec() {
        let long = "l".repeat(60);
        for (yaml, expected) in [
            ("restartPolicy: Always", Ok("web-0")),
            ("hostname: me", Ok("me")),
            ("hostname: me, subdomain: db", Ok("me")),
            ("hostname: me, subdomain: db, setHostnameAsFQDN: true", Ok("me.db.shop.svc.cluster.local")),
            ("hostname: me, setHostnameAsFQDN: true", Ok("me")),
            ("hostNetwork: true, hostname: me", Ok("node-1")),
            (
                "hostnameOverride: other.example, hostname: me, subdomain: db, setHostnameAsFQDN: false",
                Ok("other.example"),
            ),
            (format!("hostname: {long}, subdomain: db, setHostnameAsFQDN: true").as_str(), Err("is too long (64")),
        ] {
            let spec = spec(yaml);
            match (kernel_hostname(&spec, &around(&spec)), expected) {
                (Err(error), Err(part)) => assert!(error.contains(part), "{error}"),
                (got, expected) => assert_eq!(got.as_deref().ok(), expected.ok(), "{yaml}"),
            }
        }
    }

    #[test]
    fn a_guest_sees_what_the_files_say() {
        let spec = spec(
            "subdomain: db, dnsPolicy: None, hostAliases: [{ip: 192.0.2.9, hostnames: [a.lan]}], dnsConfig: \
             {nameservers: [192.0.2.1], searches: [corp], options: [{name: ndots, value: '2'}, {name: timeout, value: x}]}",
        );
        let view = view(&spec, &around(&spec), "10.42.0.130".parse().unwrap());
        expect![[r#"
            [(10.42.0.130, ["web-0.db.shop.svc.cluster.local", "web-0"]), (192.0.2.9, ["a.lan"])]
            PodDns { policy: None, nameservers: [192.0.2.1:53], searches: ["corp"], ndots: Some(2), timeout: None, attempts: None }
        "#]]
        .assert_eq(&format!("{:?}\n{:?}\n", view.hosts, view.dns));
    }
}
