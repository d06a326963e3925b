//! `port-forward`: local ports whose connections lead to ports of a pod.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use futures::StreamExt;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use super::client::with_query;
use super::failure::{Failure, Result, fail, usage};
use super::files::FileArgs;
use super::output;
use super::session::{Session, name_of};
use super::stream::{ports, target};

/// How many connections are open at once; more wait to be taken.
const CONNECTIONS_MAX: usize = 1024;

/// Flags of `port-forward`.
#[derive(Debug, clap::Args)]
pub struct PortForwardArgs {
    /// POD or TYPE/NAME, then [LOCAL_PORT:]REMOTE_PORT ...
    words: Vec<String>,
    /// Addresses to listen on: IP addresses or localhost, which is 127.0.0.1 and ::1
    #[arg(long, value_delimiter = ',', default_value = "localhost")]
    address: Vec<String>,
    /// How long to wait until at least one pod is running (5s, 2m, 3h)
    #[arg(long, default_value = "1m0s", value_parser = super::duration::flag)]
    pod_running_timeout: std::time::Duration,
}

/// A local port, 0 for any, and the pod's port that it leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Pair {
    local: u16,
    remote: u16,
}

/// Carries it out.
pub async fn run(session: &Session, args: PortForwardArgs) -> Result<()> {
    if args.words.len() < 2 {
        return usage("port-forward", "TYPE/NAME and list of ports are required for port-forward");
    }
    let timeout = target::running_timeout("port-forward", args.pod_running_timeout)?;
    let chosen = target::choose(session, &args.words[..1], &FileArgs::default(), timeout).await?;
    let pairs = pairs(&args.words[1..], &chosen.kind, &chosen.object, &chosen.pod)?;
    let addresses = addresses(&args.address)?;
    let phase = chosen.pod["status"]["phase"].as_str().unwrap_or_default();
    if phase != "Running" {
        return fail(format!("unable to forward port because pod is not running. Current status={phase}"));
    }
    let listeners = listen(&pairs, &addresses).await?;
    let path = target::path(session, &chosen.pod, "portforward");
    let (sender, mut accepted) = tokio::sync::mpsc::channel(1);
    let mut accepting = JoinSet::new();
    for (listener, pair) in listeners {
        let sender = sender.clone();
        accepting.spawn(async move {
            loop {
                match listener.accept().await {
                    Ok((connection, _)) => {
                        if sender.send((connection, pair)).await.is_err() {
                            return;
                        }
                    }
                    Err(error) => {
                        eprintln!("error accepting connection on port {}: {error}", pair.local);
                        // Mostly too many open files, which passes.
                        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                    }
                }
            }
        });
    }
    let gone = lost(session, &chosen.pod);
    tokio::pin!(gone);
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            failure = &mut gone => return Err(failure),
            Some((connection, pair)) = accepted.recv(), if connections.len() < CONNECTIONS_MAX => {
                output::line(&format!("Handling connection for {}", pair.local));
                let (client, path) = (session.client.clone(), path.clone());
                connections.spawn(async move {
                    if let Err(failure) = ports::forward(&client, &path, pair.remote, connection).await {
                        let message = failure.message();
                        let message = message.strip_prefix("error: ").unwrap_or(&message);
                        eprintln!("an error occurred forwarding {} -> {}: {message}", pair.local, pair.remote);
                    }
                });
            }
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
        }
    }
}

/// Waits until the pod is gone or over, or the server can no longer be asked about it.
async fn lost(session: &Session, pod: &Value) -> Failure {
    let lost = || Failure::Text("lost connection to pod".into());
    let uid = pod["metadata"]["uid"].as_str().unwrap_or_default();
    let object = target::path(session, pod, "");
    let Some((collection, _)) = object.rsplit_once('/') else { return lost() };
    loop {
        // The state as it is comes first, so nothing between two watches is missed.
        let now = match session.client.get(&object).await {
            Ok(now) if now["metadata"]["uid"] == uid && !target::is_over(&now) => now,
            Ok(_) => return lost(),
            // Who may forward a port may yet not be allowed to look at the pod.
            Err(failure) if failure.has_reason("Forbidden") => return std::future::pending().await,
            Err(_) => return lost(),
        };
        let version = now["metadata"]["resourceVersion"].as_str().unwrap_or_default();
        let query = [
            ("watch", "true".to_string()),
            ("resourceVersion", version.to_string()),
            ("fieldSelector", format!("metadata.name={}", name_of(pod))),
        ];
        let mut events = match session.client.watch(&with_query(collection, &query), "application/json").await {
            Ok(events) => events,
            Err(failure) if failure.has_reason("Forbidden") => return std::future::pending().await,
            Err(_) => return lost(),
        };
        while let Some(Ok(event)) = events.next().await {
            if event["type"] == "DELETED" || target::is_over(&event["object"]) {
                return lost();
            }
        }
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    }
}

/// Opens all local ports; of several addresses for one port at least one must do.
async fn listen(pairs: &[Pair], addresses: &[Vec<IpAddr>]) -> Result<Vec<(TcpListener, Pair)>> {
    let mut listeners = Vec::new();
    for pair in pairs {
        let mut pair = *pair;
        for group in addresses {
            let mut errors = Vec::new();
            for address in group {
                match TcpListener::bind(SocketAddr::new(*address, pair.local)).await {
                    Ok(listener) => {
                        // Any port is the same port on all addresses.
                        pair.local = listener.local_addr().map_or(pair.local, |bound| bound.port());
                        let shown = SocketAddr::new(*address, pair.local);
                        output::line(&format!("Forwarding from {shown} -> {}", pair.remote));
                        listeners.push((listener, pair));
                    }
                    Err(error) => errors.push(unable(*address, pair.local, &error)),
                }
            }
            if errors.len() == group.len() {
                eprintln!(
                    "Unable to listen on port {}: Listeners failed to create with the following errors: [{}]",
                    pair.local,
                    errors.join(" ")
                );
            }
        }
    }
    if listeners.is_empty() {
        let wanted: Vec<String> = pairs.iter().map(|pair| format!("{{{} {}}}", pair.local, pair.remote)).collect();
        return fail(format!("unable to listen on any of the requested ports: [{}]", wanted.join(" ")));
    }
    Ok(listeners)
}

fn unable(address: IpAddr, port: u16, error: &std::io::Error) -> String {
    let family = if address.is_ipv4() { "tcp4" } else { "tcp6" };
    // Go leaves out the number, and begins small.
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or_default().to_lowercase();
    format!("unable to create listener: Error listen {family} {}: bind: {text}", SocketAddr::new(address, port))
}

/// What `--address` names; the addresses of one name belong together.
fn addresses(names: &[String]) -> Result<Vec<Vec<IpAddr>>> {
    let mut groups: Vec<Vec<IpAddr>> = Vec::new();
    for name in names {
        let group = match name.as_str() {
            "localhost" => vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()],
            other => match other.parse::<IpAddr>() {
                Ok(address) => vec![address],
                Err(_) => return fail(format!("{other} is not a valid IP")),
            },
        };
        if !groups.contains(&group) {
            groups.push(group);
        }
    }
    if groups.is_empty() {
        return fail("you must specify at least 1 address");
    }
    Ok(groups)
}

/// Reads `LOCAL:REMOTE`, `:REMOTE` and `REMOTE`; a service's ports become the pod's, names become numbers.
fn pairs(words: &[String], kind: &str, object: &Value, pod: &Value) -> Result<Vec<Pair>> {
    let mut pairs = Vec::new();
    for word in words {
        let parts: Vec<&str> = word.split(':').collect();
        let (local, remote) = match parts.as_slice() {
            [remote] => (*remote, *remote),
            [local, remote] => (*local, *remote),
            _ => return fail(format!("invalid port format '{word}'")),
        };
        let (shown, remote) = match kind {
            "Service" => of_service(object, pod, remote)?,
            _ => of_pod(pod, remote)?,
        };
        if remote == 0 {
            return fail("remote port must be > 0");
        }
        // A name that stands for both sides becomes the number that it names.
        let local = if parts.len() == 1 { shown.to_string() } else { local.to_string() };
        let local = match local.as_str() {
            "" => 0,
            text => number(text)
                .ok_or_else(|| Failure::Text(format!("error parsing local port '{text}': invalid syntax")))?,
        };
        pairs.push(Pair { local, remote });
    }
    Ok(pairs)
}

fn number(text: &str) -> Option<u16> {
    text.parse().ok()
}

/// The port that a name or number means in a pod, twice: as a local default and as the pod's.
fn of_pod(pod: &Value, remote: &str) -> Result<(u16, u16)> {
    if let Some(port) = number(remote) {
        let declared: Vec<&Value> = container_ports(pod).filter(|entry| entry["containerPort"] == port).collect();
        refuse_udp(&declared, remote)?;
        return Ok((port, port));
    }
    let port = named(pod, remote)?;
    Ok((port, port))
}

fn of_service(service: &Value, pod: &Value, remote: &str) -> Result<(u16, u16)> {
    let name = name_of(service);
    let ports: Vec<&Value> = service["spec"]["ports"].as_array().into_iter().flatten().collect();
    let wanted = match number(remote) {
        Some(port) => u64::from(port),
        None => match ports.iter().find(|entry| entry["name"] == remote) {
            Some(entry) => entry["port"].as_u64().unwrap_or_default(),
            None => return fail(format!("Service '{name}' does not have a named port '{remote}'")),
        },
    };
    let declared: Vec<&Value> = ports.iter().copied().filter(|entry| entry["port"] == wanted).collect();
    let Some(entry) = declared.first() else {
        return fail(format!("Service {name} does not have a service port {wanted}"));
    };
    refuse_udp(&declared, remote)?;
    let port = u16::try_from(wanted).unwrap_or_default();
    // A headless service's clients reach the pod's port of the same number.
    if service["spec"]["clusterIP"] == "None" {
        return Ok((port, port));
    }
    let to = match &entry["targetPort"] {
        Value::String(target) => named(pod, target)?,
        target => match target.as_u64().and_then(|target| u16::try_from(target).ok()) {
            Some(target) if target > 0 => target,
            _ => port,
        },
    };
    Ok((port, to))
}

fn container_ports(pod: &Value) -> impl Iterator<Item = &Value> {
    let sidecars = target::containers(pod, "initContainers").filter(|container| container["restartPolicy"] == "Always");
    let every = target::containers(pod, "containers").chain(sidecars);
    every.flat_map(|container| container["ports"].as_array().into_iter().flatten())
}

fn named(pod: &Value, name: &str) -> Result<u16> {
    let declared: Vec<&Value> = container_ports(pod).filter(|entry| entry["name"] == name).collect();
    let port = declared.first().and_then(|entry| u16::try_from(entry["containerPort"].as_u64()?).ok());
    refuse_udp(&declared, name)?;
    match port {
        Some(port) => Ok(port),
        None => fail(format!("Pod '{}' does not have a named port '{name}'", name_of(pod))),
    }
}

/// Only a port that is nothing but UDP is refused.
fn refuse_udp(declared: &[&Value], port: &str) -> Result<()> {
    let is_udp = |entry: &&Value| entry["protocol"] == "UDP";
    if !declared.is_empty() && declared.iter().all(is_udp) {
        return fail(format!("UDP protocol is not supported for {port}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn show(words: &str, kind: &str, object: &Value, pod: &Value) -> String {
        let words: Vec<String> = words.split_whitespace().map(str::to_string).collect();
        match pairs(&words, kind, object, pod) {
            Ok(pairs) => {
                pairs.iter().map(|pair| format!("{}->{}", pair.local, pair.remote)).collect::<Vec<_>>().join(" ")
            }
            Err(failure) => failure.message(),
        }
    }

    #[test]
    fn ports_of_a_pod() {
        let pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"ports": [
            {"name": "http", "containerPort": 8080}, {"name": "dns", "containerPort": 53, "protocol": "UDP"},
            {"containerPort": 54, "protocol": "UDP"}, {"containerPort": 54, "protocol": "TCP"}]}]}});
        for (words, expected) in [
            ("80", "80->80"),
            ("8000:80 9000", "8000->80 9000->9000"),
            (":80", "0->80"),
            ("http", "8080->8080"),
            ("80:http", "80->8080"),
            (":http", "0->8080"),
            ("54", "54->54"),
            ("53", "error: UDP protocol is not supported for 53"),
            ("dns", "error: UDP protocol is not supported for dns"),
            ("x", "error: Pod 'p' does not have a named port 'x'"),
            ("1:2:3", "error: invalid port format '1:2:3'"),
            ("a:80", "error: error parsing local port 'a': invalid syntax"),
            ("80:0", "error: remote port must be > 0"),
        ] {
            assert_eq!(show(words, "Pod", &pod, &pod), expected, "{words}");
        }
    }

    #[test]
    fn ports_of_a_service() {
        let pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"ports": [{"name": "web", "containerPort": 8080}]}]}});
        let service = json!({"metadata": {"name": "s"}, "spec": {"clusterIP": "10.0.0.1", "ports": [
            {"name": "http", "port": 80, "targetPort": "web"}, {"name": "admin", "port": 81, "targetPort": 9000},
            {"name": "same", "port": 82}, {"name": "bad", "port": 83, "targetPort": "nope"},
            {"name": "dns", "port": 53, "protocol": "UDP"}]}});
        for (words, expected) in [
            ("80", "80->8080"),
            ("http", "80->8080"),
            ("9999:http", "9999->8080"),
            (":81", "0->9000"),
            ("82", "82->82"),
            ("99", "error: Service s does not have a service port 99"),
            ("nope", "error: Service 's' does not have a named port 'nope'"),
            ("83", "error: Pod 'p' does not have a named port 'nope'"),
            ("53", "error: UDP protocol is not supported for 53"),
        ] {
            assert_eq!(show(words, "Service", &service, &pod), expected, "{words}");
        }
        let mut headless = service;
        headless["spec"]["clusterIP"] = "None".into();
        assert_eq!(show("http", "Service", &headless, &pod), "80->80");
    }

    #[test]
    fn listening_addresses() {
        let names = |text: &str| text.split(',').map(str::to_string).collect::<Vec<_>>();
        assert_eq!(addresses(&names("localhost,localhost")).unwrap().len(), 1);
        assert_eq!(addresses(&names("0.0.0.0,::1")).unwrap().len(), 2);
        assert_eq!(addresses(&names("example.com")).unwrap_err().message(), "error: example.com is not a valid IP");
    }
}
