//! `coracle up`: a throw-away cluster in the foreground. A line per step with its time, then how to reach it, then the
//! pods' logs; Ctrl-C stops everything and leaves nothing.

use super::flags::UpFlags;
use super::network::Networks;
use super::process::{Cluster, NodeChoices, Threads};
use super::server::{tenth, write_kubeconfig};
use crate::cli::{self, FileArgs, Globals, Session, Target};
use anyhow::{Context, Result, bail};
use serde_json::Value;
use server::ServerConfig;
use std::io::Write;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};
use tokio::signal::unix::{SignalKind, signal};

const NODE: &str = "coracle";
/// How often the workloads are looked at while they start.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Runs until Ctrl-C, or until something fails.
pub fn up(flags: UpFlags) -> Result<ExitCode> {
    let threads = Threads::start()?;
    let home = Home::make()?;
    threads.control.block_on(run(flags, &home.0, &threads))
}

/// The cluster's directory: gone when the cluster is.
struct Home(PathBuf);

impl Home {
    fn make() -> Result<Self> {
        use std::os::unix::fs::DirBuilderExt;
        let dir = std::env::temp_dir().join(format!("coracle-up-{}", std::process::id()));
        // not `create_dir_all`: a directory that somebody else made there is not ours to use
        std::fs::DirBuilder::new().mode(0o700).create(&dir).with_context(|| format!("make {}", dir.display()))?;
        Ok(Self(dir))
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            eprintln!("warning: {} is left behind: {error}", self.0.display());
        }
    }
}

/// What happened when, for the reader.
struct Steps(Instant);

impl Steps {
    fn say(&self, text: &str) {
        print(&format!("{:>8.3}s  {text}", self.0.elapsed().as_secs_f64()));
    }
}

/// Prints a line. A reader that has gone is no reason to stop the cluster.
fn print(line: &str) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

async fn run(flags: UpFlags, home: &Path, threads: &Threads) -> Result<ExitCode> {
    let steps = Steps(Instant::now());
    let ports = Ports { http: port(flags.ingress_http_port, 8080)?, https: port(flags.ingress_https_port, 8443)? };
    let mut cluster = begin(&flags, &ports, home, threads).await?;
    steps.say(&format!("API answers at https://{}", cluster.server.address));
    let kubeconfig = home.join("coracle.yaml");
    write_kubeconfig(&kubeconfig, &cluster.server.kubeconfig)?;
    let globals = Globals { kubeconfig: Some(kubeconfig.clone()), request_timeout: "0".into(), ..Globals::default() };

    let mut terminate = signal(SignalKind::terminate())?;
    let outcome = tokio::select! {
        _ = tokio::signal::ctrl_c() => Ok(ExitCode::SUCCESS),
        _ = terminate.recv() => Ok(ExitCode::SUCCESS),
        error = cluster.agent_failed() => Err(error),
        outcome = work(&flags, &ports, &globals, &kubeconfig, &steps) => outcome,
    };
    print("");
    steps.say("stopping");
    cluster.stop().await;
    steps.say("stopped; nothing is left");
    outcome
}

struct Ports {
    http: u16,
    https: u16,
}

/// The port asked for; else the usual one, or a free one when somebody has it.
fn port(given: Option<u16>, usual: u16) -> Result<u16> {
    if let Some(port) = given.filter(|port| *port != 0) {
        return Ok(port);
    }
    let bind = |port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).and_then(|listener| listener.local_addr());
    let tried = if given.is_none() { bind(usual) } else { bind(0) };
    Ok(tried.or_else(|_| bind(0)).context("find a free port")?.port())
}

async fn begin(flags: &UpFlags, ports: &Ports, home: &Path, threads: &Threads) -> Result<Cluster> {
    let networks = Networks::choose(None, None, true, u64::from(std::process::id()))?;
    let service_cidr = networks.services_v4()?;
    let config = ServerConfig {
        data_dir: home.to_owned(),
        bind_address: Ipv4Addr::LOCALHOST.into(),
        https_port: flags.https_listen_port,
        node_name: NODE.into(),
        node_ip: Ipv4Addr::LOCALHOST.into(),
        tls_sans: Vec::new(),
        cluster_cidr: networks.pods_v4()?,
        node_cidr_mask: None,
        loopback: networks.loopback,
        service_cidr,
        cluster_dns: tenth(service_cidr.0),
        cluster_domain: "cluster.local".into(),
        token: None,
        token_auth_file: None,
        client_ca_file: None,
        images: Some(super::images::open(home)?),
    };
    let choices = NodeChoices {
        labels: Vec::new(),
        taints: Vec::new(),
        ingress_http_port: ports.http,
        ingress_https_port: ports.https,
        resolv_conf: agent::RESOLV_CONF.into(),
        wasi_p3: flags.wasi_p3,
    };
    Cluster::start(config, networks, Some(choices), threads).await
}

/// Applies, waits, tells, and follows the logs until somebody stops it.
async fn work(flags: &UpFlags, ports: &Ports, globals: &Globals, kubeconfig: &Path, steps: &Steps) -> Result<ExitCode> {
    let session = Session::open(globals).await?;
    let deadline = Instant::now() + Duration::from_secs(flags.timeout_seconds);
    until_ready(&session, "/api/v1/nodes/coracle", deadline).await.context("node coracle")?;
    steps.say("node coracle is ready");

    let files = FileArgs { filename: flags.filename.clone(), recursive: false, kustomize: None };
    let mut targets = Vec::new();
    if !files.is_empty() {
        if !cli::embedded::apply(globals, &flags.filename).await {
            return Ok(ExitCode::FAILURE);
        }
        steps.say("manifests applied");
        targets = session.file_targets(&files).await?.0;
    }
    for target in &targets {
        until_ready(&session, &target.path(), deadline).await.with_context(|| target.full_name())?;
        if is_workload(target) {
            steps.say(&format!("{} is ready", target.full_name()));
        }
    }
    tell(&session, &targets, ports, kubeconfig).await?;
    follow(globals, &session, &targets).await;
    std::future::pending().await
}

fn is_workload(target: &Target) -> bool {
    matches!(&*target.resource.plural, "deployments" | "replicasets" | "jobs" | "pods")
}

/// Looks at an object until it is as it wants to be.
async fn until_ready(session: &Session, path: &str, deadline: Instant) -> Result<()> {
    loop {
        let object = session.client.get(path).await.unwrap_or(Value::Null);
        match readiness(&object) {
            Readiness::Ready => return Ok(()),
            Readiness::Failed(why) => bail!("{why}"),
            Readiness::NotYet(why) if Instant::now() > deadline => bail!("not ready in time: {why}"),
            Readiness::NotYet(_) => tokio::time::sleep(LOOK_EVERY).await,
        }
    }
}

enum Readiness {
    Ready,
    NotYet(String),
    Failed(String),
}

fn readiness(object: &Value) -> Readiness {
    let status = &object["status"];
    let condition = |kind: &str| {
        status["conditions"].as_array().into_iter().flatten().find(|c| c["type"] == kind && c["status"] == "True")
    };
    let said = |condition: &Value| condition["message"].as_str().unwrap_or_default().to_owned();
    match object["kind"].as_str() {
        None => Readiness::NotYet("not there".into()),
        Some("Node") if condition("Ready").is_some() => Readiness::Ready,
        Some("Pod") if condition("Ready").is_some() || status["phase"] == "Succeeded" => Readiness::Ready,
        Some("Pod") if status["phase"] == "Failed" => Readiness::Failed(format!("failed: {}", status["reason"])),
        Some("Node" | "Pod") => Readiness::NotYet(format!("{}", status["conditions"])),
        Some("Job") => match (condition("Complete"), condition("Failed")) {
            (Some(_), _) => Readiness::Ready,
            (_, Some(failed)) => Readiness::Failed(said(failed)),
            _ => Readiness::NotYet("not complete".into()),
        },
        Some("Deployment" | "ReplicaSet") => {
            let wanted = object["spec"]["replicas"].as_i64().unwrap_or(1);
            let seen = status["observedGeneration"].as_i64() >= object["metadata"]["generation"].as_i64();
            let available = status["availableReplicas"].as_i64().unwrap_or(0);
            let updated = object["kind"] == "ReplicaSet" || status["updatedReplicas"].as_i64().unwrap_or(0) >= wanted;
            if seen && updated && available >= wanted {
                Readiness::Ready
            } else {
                Readiness::NotYet(format!("{available} of {wanted} replicas are available"))
            }
        }
        Some(_) => Readiness::Ready,
    }
}

/// How to reach what was made.
async fn tell(session: &Session, targets: &[Target], ports: &Ports, kubeconfig: &Path) -> Result<()> {
    print("");
    print(&format!("  export KUBECONFIG={}", kubeconfig.display()));
    print("  kubectl get pods -A          (or: coracle get pods -A)");
    print(&format!("  ingress  http://127.0.0.1:{}   https://127.0.0.1:{}", ports.http, ports.https));
    for target in targets {
        let object = session.client.get(&target.path()).await?;
        if target.resource.plural == "ingresses" {
            ingress_urls(&object, ports).for_each(|line| print(&format!("  {line}")));
        } else if target.resource.plural == "services" {
            node_ports(&object).for_each(|line| print(&format!("  {line}")));
        }
    }
    print("");
    print("  Ctrl-C stops everything and leaves nothing. Logs of the pods:");
    print("");
    Ok(())
}

fn ingress_urls(ingress: &Value, ports: &Ports) -> impl Iterator<Item = String> {
    let (ports_http, none) = (ports.http, Vec::new());
    let rules = ingress["spec"]["rules"].as_array().unwrap_or(&none);
    let mut lines = Vec::new();
    for rule in rules {
        for path in rule["http"]["paths"].as_array().into_iter().flatten() {
            let path = path["path"].as_str().unwrap_or("/");
            lines.push(match rule["host"].as_str() {
                None => format!("curl http://127.0.0.1:{ports_http}{path}"),
                Some(host) => format!("curl -H 'Host: {host}' http://127.0.0.1:{ports_http}{path}"),
            });
        }
    }
    lines.into_iter()
}

fn node_ports(service: &Value) -> impl Iterator<Item = String> {
    let name = service["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    let ports: Vec<i64> = service["spec"]["ports"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|port| port["nodePort"].as_i64())
        .collect();
    ports.into_iter().map(move |port| format!("service {name}: 127.0.0.1:{port}"))
}

/// Prints the logs of the workloads' pods, each on its own.
async fn follow(globals: &Globals, session: &Session, targets: &[Target]) {
    for target in targets.iter().filter(|target| is_workload(target)) {
        let Ok(object) = session.client.get(&target.path()).await else { continue };
        let namespace = target.namespace.clone().unwrap_or_else(|| session.namespace.clone());
        let globals = Globals { namespace: Some(namespace), ..globals.clone() };
        let what = match object["spec"]["selector"]["matchLabels"].as_object() {
            Some(labels) => {
                let pairs = labels.iter().map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()));
                vec!["--selector".to_owned(), pairs.collect::<Vec<_>>().join(",")]
            }
            None => vec![target.full_name()],
        };
        tokio::spawn(cli::embedded::follow_logs(globals, what));
    }
}
