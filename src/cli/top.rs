//! `top`: what nodes, pods and containers use now, as the metrics API tells it.

use std::collections::HashMap;

use jiff::Timestamp;
use serde_json::Value;

use super::client::{escape, with_query};
use super::failure::{Result, fail, usage};
use super::output::{self, tabs};
use super::session::{Selection, Session, Target, items_of, name_of, namespace_of};

const API: &str = "metrics.k8s.io";
const BASE: &str = "/apis/metrics.k8s.io/v1beta1";
const NANO: i128 = 1_000_000_000;
/// How old a pod is before missing numbers are strange.
const NEW_POD_SECONDS: i64 = 120;

/// What `top` can tell about.
#[derive(Debug, clap::Subcommand)]
pub enum TopCommand {
    /// Display resource (CPU/memory) usage of nodes
    #[command(visible_aliases = ["nodes", "no"])]
    Node(NodeArgs),
    /// Display resource (CPU/memory) usage of pods
    #[command(visible_aliases = ["pods", "po"])]
    Pod(PodArgs),
}

/// Flags of `top node`.
#[derive(Debug, clap::Args)]
pub struct NodeArgs {
    /// NAME
    names: Vec<String>,
    #[command(flatten)]
    common: CommonArgs,
    /// Percentages are of the nodes' capacity, not of what they can allocate
    #[arg(long)]
    show_capacity: bool,
}

/// Flags of `top pod`.
#[derive(Debug, clap::Args)]
pub struct PodArgs {
    /// NAME
    names: Vec<String>,
    #[command(flatten)]
    common: CommonArgs,
    /// Pods of all namespaces
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// Usage of the containers within the pods
    #[arg(long)]
    containers: bool,
    /// Selector (field query) to filter on
    #[arg(long)]
    field_selector: Option<String>,
    /// Print the sum of the resource usage
    #[arg(long)]
    sum: bool,
}

#[derive(Debug, clap::Args)]
struct CommonArgs {
    /// Selector (label query) to filter on
    #[arg(short = 'l', long)]
    selector: Option<String>,
    /// Sort by cpu or memory, the most first
    #[arg(long)]
    sort_by: Option<String>,
    /// Print output without headers
    #[arg(long)]
    no_headers: bool,
    /// JSON is what is spoken; accepted for kubectl's sake
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", hide = true)]
    use_protocol_buffers: Option<bool>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    Name,
    Cpu,
    Memory,
}

/// An amount of both resources, in thousand-millionths of a core and of a byte.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Usage {
    cpu: i128,
    memory: i128,
}

impl Usage {
    fn read(value: &Value) -> Usage {
        let amount = |key: &str| {
            let text = value[key].as_str().unwrap_or("0");
            manifests::quantity::parse(text).map_or(0, |amount| amount.nano())
        };
        Usage { cpu: amount("cpu"), memory: amount("memory") }
    }

    fn plus(self, other: Usage) -> Usage {
        Usage { cpu: self.cpu.saturating_add(other.cpu), memory: self.memory.saturating_add(other.memory) }
    }

    fn milli_cores(self) -> i128 {
        ceil(self.cpu, NANO / 1000)
    }

    fn cells(self) -> [String; 2] {
        [format!("{}m", self.milli_cores()), format!("{}Mi", ceil(self.memory, NANO) / (1 << 20))]
    }

    /// What is sorted by: the most first.
    fn rank(self, order: Order) -> i128 {
        match order {
            Order::Name => 0,
            Order::Cpu => -self.milli_cores(),
            Order::Memory => -ceil(self.memory, NANO),
        }
    }
}

fn ceil(nano: i128, unit: i128) -> i128 {
    nano.div_euclid(unit) + i128::from(nano.rem_euclid(unit) != 0)
}

impl CommonArgs {
    fn order(&self) -> Result<Order> {
        match self.sort_by.as_deref() {
            None | Some("") => Ok(Order::Name),
            Some("cpu") => Ok(Order::Cpu),
            Some("memory") => Ok(Order::Memory),
            Some(_) => fail("--sort-by accepts only cpu or memory"),
        }
    }
}

/// Carries it out.
pub async fn run(session: &Session, command: TopCommand) -> Result<()> {
    match command {
        TopCommand::Node(args) => nodes(session, args).await,
        TopCommand::Pod(args) => pods(session, args).await,
    }
}

async fn check_api(session: &Session) -> Result<()> {
    let versions = &session.discovery().await?.group_versions;
    if versions.iter().any(|version| version.split_once('/').is_some_and(|(group, _)| group == API)) {
        return Ok(());
    }
    fail("Metrics API not available")
}

async fn pods(session: &Session, args: PodArgs) -> Result<()> {
    if args.names.len() > 1 {
        return usage("top pod", "pod [NAME | -l label]");
    }
    let name = args.names.first();
    if name.is_some() && (args.common.selector.is_some() || args.field_selector.is_some()) {
        return fail("only one of NAME or selector can be provided");
    }
    let order = args.common.order()?;
    check_api(session).await?;
    let base = match args.all_namespaces {
        true => format!("{BASE}/pods"),
        false => format!("{BASE}/namespaces/{}/pods", escape(&session.namespace)),
    };
    let metrics = match name {
        Some(name) => vec![session.client.get(&format!("{base}/{}", escape(name))).await?],
        None => list(session, &base, &args.common.selector, &args.field_selector).await?,
    };
    if metrics.is_empty() {
        why_nothing(session, &args).await?;
        match args.all_namespaces {
            true => eprintln!("No resources found"),
            false => eprintln!("No resources found in {} namespace.", session.namespace),
        }
        return Ok(());
    }
    output::out(&tabs::grid(&pod_rows(metrics, &args, order)));
    Ok(())
}

async fn list(session: &Session, path: &str, labels: &Option<String>, fields: &Option<String>) -> Result<Vec<Value>> {
    let selectors = [("labelSelector", labels), ("fieldSelector", fields)];
    let query: Vec<(&str, String)> =
        selectors.into_iter().filter_map(|(key, value)| Some((key, value.clone()?))).collect();
    let mut list = session.client.get(&with_query(path, &query)).await?;
    Ok(list["items"].as_array_mut().map(std::mem::take).unwrap_or_default())
}

/// No numbers are a failure if there are pods that should have some.
async fn why_nothing(session: &Session, args: &PodArgs) -> Result<()> {
    let resource = session.resource("pods").await?;
    let namespace = (!args.all_namespaces).then(|| session.namespace.clone());
    let target = Target { resource: resource.clone(), namespace, name: None, manifest: None };
    let selection = Selection {
        selector: args.common.selector.clone(),
        field_selector: args.field_selector.clone(),
        all_namespaces: args.all_namespaces,
    };
    let list = session.list(&target, &selection, super::session::CHUNK_OBJECTS).await?;
    let pods = items_of(list, &resource);
    for pod in &pods {
        let created = pod["metadata"]["creationTimestamp"].as_str().unwrap_or_default().parse::<Timestamp>();
        let Ok(created) = created else { continue };
        let now = Timestamp::now();
        if now.as_second() - created.as_second() > NEW_POD_SECONDS {
            return fail(format!(
                "Metrics not available for pod {}/{}, age: {}",
                namespace_of(pod).unwrap_or_default(),
                name_of(pod),
                age(now.as_second() - created.as_second())
            ));
        }
    }
    if pods.is_empty() { Ok(()) } else { fail("metrics not available yet") }
}

/// As Go writes a duration: `3h13m5s`.
fn age(seconds: i64) -> String {
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    if hours > 0 { format!("{hours}h{minutes}m{seconds}s") } else { format!("{minutes}m{seconds}s") }
}

fn containers(pod: &Value) -> Vec<(String, Usage)> {
    let list = pod["containers"].as_array().into_iter().flatten();
    list.map(|container| (container["name"].as_str().unwrap_or_default().to_string(), Usage::read(&container["usage"])))
        .collect()
}

fn total(pod: &Value) -> Usage {
    containers(pod).into_iter().fold(Usage::default(), |sum, (_, usage)| sum.plus(usage))
}

fn pod_rows(mut metrics: Vec<Value>, args: &PodArgs, order: Order) -> Vec<Vec<String>> {
    metrics.sort_by_cached_key(|pod| {
        let namespace = args.all_namespaces.then(|| namespace_of(pod).unwrap_or_default().to_string());
        (total(pod).rank(order), namespace, name_of(pod).to_string())
    });
    let mut header = Vec::new();
    header.extend(args.all_namespaces.then_some("NAMESPACE"));
    header.extend(args.containers.then_some("POD"));
    header.extend(["NAME", "CPU(cores)", "MEMORY(bytes)"]);
    let columns = header.len();
    let mut rows = Vec::new();
    if !args.common.no_headers {
        rows.push(row(header.into_iter().map(str::to_string)));
    }
    for pod in &metrics {
        let mut named = Vec::new();
        named.extend(args.all_namespaces.then(|| namespace_of(pod).unwrap_or_default().to_string()));
        named.push(name_of(pod).to_string());
        if !args.containers {
            rows.push(row(named.into_iter().chain(total(pod).cells())));
            continue;
        }
        let mut parts = containers(pod);
        parts.sort_by_cached_key(|(name, usage)| (usage.rank(order), name.clone()));
        for (name, usage) in parts {
            rows.push(row(named.iter().cloned().chain([name]).chain(usage.cells())));
        }
    }
    if args.sum {
        let sum = metrics.iter().map(total).fold(Usage::default(), Usage::plus);
        let blank = || std::iter::repeat_n(String::new(), columns - 2);
        rows.push(row(blank().chain(["________", "________"].map(str::to_string))));
        rows.push(row(blank().chain(sum.cells())));
    }
    rows
}

/// kubectl pads the last column too: it is one more column, an empty one.
fn row(cells: impl Iterator<Item = String>) -> Vec<String> {
    cells.chain([String::new()]).collect()
}

async fn nodes(session: &Session, args: NodeArgs) -> Result<()> {
    if args.names.len() > 1 {
        return usage("top node", "node [NAME | -l label]");
    }
    if !args.names.is_empty() && args.common.selector.is_some() {
        return fail("only one of NAME or --selector can be provided");
    }
    let order = args.common.order()?;
    check_api(session).await?;
    let base = format!("{BASE}/nodes");
    let resource = session.resource("nodes").await?;
    let (metrics, nodes) = match args.names.first() {
        Some(name) => {
            let metrics = session.client.get(&format!("{base}/{}", escape(name))).await?;
            (vec![metrics], vec![session.client.get(&resource.path(None, name)).await?])
        }
        None => {
            let metrics = list(session, &base, &args.common.selector, &None).await?;
            let target = Target { resource: resource.clone(), namespace: None, name: None, manifest: None };
            let selection = Selection { selector: args.common.selector.clone(), ..Default::default() };
            let nodes = session.list(&target, &selection, super::session::CHUNK_OBJECTS).await?;
            (metrics, items_of(nodes, &resource))
        }
    };
    if metrics.is_empty() {
        return fail("metrics not available yet");
    }
    let rows = node_rows(metrics, &nodes, &args, order);
    output::out(&tabs::grid(&rows));
    Ok(())
}

fn node_rows(mut metrics: Vec<Value>, nodes: &[Value], args: &NodeArgs, order: Order) -> Vec<Vec<String>> {
    let of = if args.show_capacity { "capacity" } else { "allocatable" };
    let mut available: HashMap<&str, Usage> =
        nodes.iter().map(|node| (name_of(node), Usage::read(&node["status"][of]))).collect();
    metrics.sort_by_cached_key(|node| (Usage::read(&node["usage"]).rank(order), name_of(node).to_string()));
    let mut rows = Vec::new();
    if !args.common.no_headers {
        rows.push(row(["NAME", "CPU(cores)", "CPU(%)", "MEMORY(bytes)", "MEMORY(%)"].map(str::to_string).into_iter()));
    }
    for node in &metrics {
        let usage = Usage::read(&node["usage"]);
        let [cpu, memory] = usage.cells();
        let name = name_of(node);
        // A node may have gone between the two questions; then there is nothing to be a part of.
        let of = available.remove(name);
        let cpu_share = of.map_or("<unknown>".into(), |of| percent(usage.cpu, of.cpu, NANO / 1000));
        let memory_share = of.map_or("<unknown>".into(), |of| percent(usage.memory, of.memory, NANO / 1000));
        rows.push(row([name.to_string(), cpu, cpu_share, memory, memory_share].into_iter()));
    }
    let mut silent: Vec<&str> = available.into_keys().collect();
    silent.sort_unstable();
    for name in silent {
        rows.push(row([name.to_string()].into_iter().chain(std::iter::repeat_n("<unknown>".to_string(), 4))));
    }
    rows
}

/// How much of a whole, rounded down; both are first rounded up to a unit, as quantities are.
fn percent(part: i128, whole: i128, unit: i128) -> String {
    let (part, whole) = (ceil(part, unit), ceil(whole, unit));
    if whole <= 0 { "<unknown>".into() } else { format!("{}%", part.saturating_mul(100) / whole) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use serde_json::json;

    #[derive(clap::Parser)]
    struct Line {
        #[command(subcommand)]
        command: TopCommand,
    }

    fn pod(namespace: &str, name: &str, containers: &[(&str, &str, &str)]) -> Value {
        let containers: Vec<Value> = containers
            .iter()
            .map(|(name, cpu, memory)| json!({"name": name, "usage": {"cpu": cpu, "memory": memory}}))
            .collect();
        json!({"metadata": {"name": name, "namespace": namespace}, "containers": containers})
    }

    fn pods(line: &str) -> String {
        let TopCommand::Pod(args) = Line::parse_from(line.split(' ')).command else { panic!("{line}") };
        let metrics = vec![
            pod("default", "web-1", &[("main", "12345678n", "123456Ki"), ("side", "1m", "5Mi")]),
            pod("default", "a-very-long-pod-name-indeed", &[("main", "0", "0")]),
            pod("kube-system", "dns", &[("d", "1500m", "2Gi")]),
        ];
        let order = args.common.order().unwrap();
        tabs::grid(&pod_rows(metrics, &args, order))
    }

    #[test]
    fn tables_of_pods() {
        expect_test::expect![[r#"
            NAME                          CPU(cores)   MEMORY(bytes)   
            a-very-long-pod-name-indeed   0m           0Mi             
            dns                           1500m        2048Mi          
            web-1                         14m          125Mi           
        "#]]
        .assert_eq(&pods("top pod"));
        expect_test::expect![[r#"
            NAMESPACE     POD                           NAME   CPU(cores)   MEMORY(bytes)   
            kube-system   dns                           d      1500m        2048Mi          
            default       web-1                         main   13m          120Mi           
            default       web-1                         side   1m           5Mi             
            default       a-very-long-pod-name-indeed   main   0m           0Mi             
                                                               ________     ________        
                                                               1514m        2173Mi          
        "#]]
        .assert_eq(&pods("top pods -A --containers --sum --sort-by=memory"));
        expect_test::expect![[r#"
            dns                           1500m   2048Mi   
            web-1                         14m     125Mi    
            a-very-long-pod-name-indeed   0m      0Mi      
        "#]]
        .assert_eq(&pods("top po --no-headers --sort-by cpu"));
    }

    #[test]
    fn tables_of_nodes() {
        let TopCommand::Node(args) = Line::parse_from(["top", "node"]).command else { panic!() };
        let metrics = vec![
            json!({"metadata": {"name": "b"}, "usage": {"cpu": "250m", "memory": "1Gi"}}),
            json!({"metadata": {"name": "a"}, "usage": {"cpu": "1999999999n", "memory": "512Mi"}}),
        ];
        let node =
            |name: &str| json!({"metadata": {"name": name}, "status": {"allocatable": {"cpu": "2", "memory": "4Gi"}}});
        expect_test::expect![[r#"
            NAME   CPU(cores)   CPU(%)      MEMORY(bytes)   MEMORY(%)   
            a      2000m        100%        512Mi           12%         
            b      250m         12%         1024Mi          25%         
            c      <unknown>    <unknown>   <unknown>       <unknown>   
        "#]]
        .assert_eq(&tabs::grid(&node_rows(metrics, &[node("a"), node("b"), node("c")], &args, Order::Name)));
    }
}
