//! Figures of use: what the node and each running container take, as `top` shows them.
//!
//! CPU is a rate, so it needs two looks. The last one is kept; where it is too old, or lacks a container, two are taken a second
//! apart. Nothing is measured while nobody asks.

use crate::body::{Body, GuestKey};
use futures::StreamExt;
use futures::stream::iter;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::time::{Duration, Instant};
use sync::{CallError, ContainerUsage, NodeUsage, Output, OutputStream, PodUsage};

/// Two looks are at least so far apart.
const WINDOW_MIN: Duration = Duration::from_secs(1);
/// A look that is older says nothing about now.
const WINDOW_MAX: Duration = Duration::from_secs(60);
/// Containers that are asked at once.
const ASKED_MAX: usize = 16;
/// Nanoseconds of a second.
const SECOND_NS: u64 = 1_000_000_000;

/// What was seen last. One asks at a time; who comes meanwhile gets the same answer.
#[derive(Default)]
pub struct Samples(tokio::sync::Mutex<Seen>);

#[derive(Default)]
struct Seen {
    sample: Option<Sample>,
    answer: Option<(Instant, NodeUsage)>,
}

/// One look.
#[derive(Clone, Debug)]
struct Sample {
    at: Instant,
    node_cpu_ns: u64,
    node_memory_bytes: u64,
    containers: HashMap<GuestKey, runtime::Usage>,
}

/// Measures, in a second at most if nobody asked lately.
pub async fn open(body: &Body) -> Result<OutputStream, CallError> {
    let usage = measure(body).await.map_err(|error| CallError::Failed(format!("cannot measure usage: {error}")))?;
    let json = serde_json::to_vec(&usage).map_err(|error| CallError::Failed(error.to_string()))?;
    Ok(iter([Ok(Output::Stdout(json.into()))]).boxed())
}

async fn measure(body: &Body) -> io::Result<NodeUsage> {
    let mut seen = body.samples.0.lock().await;
    if let Some((at, answer)) = &seen.answer
        && at.elapsed() < WINDOW_MIN
    {
        return Ok(answer.clone());
    }
    let mut now = look(body).await?;
    let before = match seen.sample.take().filter(|before| before.serves(&now)) {
        Some(before) => before,
        None => {
            let before = now;
            tokio::time::sleep(WINDOW_MIN).await;
            now = look(body).await?;
            before
        }
    };
    let answer = compare(&before, &now, &names(body), Timestamp::now());
    *seen = Seen { sample: Some(now), answer: Some((Instant::now(), answer.clone())) };
    Ok(answer)
}

async fn look(body: &Body) -> io::Result<Sample> {
    let guests: Vec<_> = body.guests.lock().iter().map(|(key, live)| (key.clone(), live.guest.clone())).collect();
    let asked = iter(guests).map(|(key, guest)| async move { (key, guest.usage().await) });
    let containers: Vec<_> = asked.buffer_unordered(ASKED_MAX).collect().await;
    Ok(Sample {
        at: Instant::now(),
        node_cpu_ns: cpu_ns(&std::fs::read_to_string("/proc/stat")?)?,
        node_memory_bytes: memory_bytes(&std::fs::read_to_string("/proc/meminfo")?)?,
        containers: containers.into_iter().filter_map(|(key, usage)| Some((key, usage?))).collect(),
    })
}

/// Namespace and name of the pods, by uid.
fn names(body: &Body) -> HashMap<String, (String, String)> {
    let world = body.world();
    let pods = world.all::<Pod>(None).map(|object| object.meta());
    pods.map(|meta| (meta.uid.clone(), (meta.namespace.clone().unwrap_or_default(), meta.name.clone()))).collect()
}

impl Sample {
    /// Whether it can be what `now` is compared with.
    fn serves(&self, now: &Self) -> bool {
        let age = now.at.saturating_duration_since(self.at);
        let known = |(key, usage): (&GuestKey, &runtime::Usage)| {
            // one that counts from the beginning again was restarted
            self.containers.get(key).is_some_and(|before| before.cpu_ns <= usage.cpu_ns)
        };
        (WINDOW_MIN..WINDOW_MAX).contains(&age) && now.containers.iter().all(known)
    }
}

fn compare(
    before: &Sample,
    now: &Sample,
    names: &HashMap<String, (String, String)>,
    timestamp: Timestamp,
) -> NodeUsage {
    let window = now.at.saturating_duration_since(before.at);
    let rate = |before: u64, now: u64| {
        let spent = u128::from(now.saturating_sub(before)) * u128::from(SECOND_NS);
        u64::try_from(spent / window.as_nanos().max(1)).unwrap_or(u64::MAX)
    };
    let mut pods: BTreeMap<(&str, &str), PodUsage> = BTreeMap::new();
    for ((uid, container), usage) in &now.containers {
        let (Some((namespace, name)), Some(earlier)) =
            (names.get(uid), before.containers.get(&(uid.clone(), container.clone())))
        else {
            continue;
        };
        let pod = pods.entry((namespace, name)).or_insert_with(|| PodUsage {
            namespace: namespace.clone(),
            name: name.clone(),
            uid: uid.clone(),
            containers: Vec::new(),
        });
        pod.containers.push(ContainerUsage {
            name: container.clone(),
            cpu_nanocores: rate(earlier.cpu_ns, usage.cpu_ns),
            memory_bytes: usage.memory_bytes,
        });
    }
    let mut pods: Vec<PodUsage> = pods.into_values().collect();
    pods.iter_mut().for_each(|pod| pod.containers.sort_by(|a, b| a.name.cmp(&b.name)));
    NodeUsage {
        timestamp,
        window_ms: u64::try_from(window.as_millis()).unwrap_or(u64::MAX),
        cpu_nanocores: rate(before.node_cpu_ns, now.node_cpu_ns),
        memory_bytes: now.node_memory_bytes,
        pods,
    }
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{what} is not as expected"))
}

/// The time that all processors have worked, from `/proc/stat`.
fn cpu_ns(stat: &str) -> io::Result<u64> {
    let line = stat.lines().find_map(|line| line.strip_prefix("cpu ")).ok_or_else(|| invalid("/proc/stat"))?;
    let ticks: Vec<u64> = line.split_whitespace().map_while(|word| word.parse().ok()).collect();
    // user, nice, system, irq, softirq, steal: neither idle nor waiting, and guests are counted in user already
    let busy = [0, 1, 2, 5, 6, 7].iter().filter_map(|at| ticks.get(*at)).fold(0_u64, |sum, n| sum.saturating_add(*n));
    if ticks.len() < 4 {
        return Err(invalid("/proc/stat"));
    }
    Ok(busy.saturating_mul(SECOND_NS / rustix::param::clock_ticks_per_second().max(1)))
}

/// Memory that is not to be had for something else, from `/proc/meminfo`.
fn memory_bytes(meminfo: &str) -> io::Result<u64> {
    let kib = |name: &str| {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line?.split_whitespace().next()?.parse::<u64>().ok()
    };
    let (total, free) = (kib("MemTotal"), kib("MemAvailable").or_else(|| kib("MemFree")));
    let used = total.zip(free).map(|(total, free)| total.saturating_sub(free));
    Ok(used.ok_or_else(|| invalid("/proc/meminfo"))?.saturating_mul(1024))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(at: Instant, node_cpu_ns: u64, containers: &[(&str, &str, u64, u64)]) -> Sample {
        let usage = |cpu_ns, memory_bytes| runtime::Usage { cpu_ns, memory_bytes };
        let containers =
            containers.iter().map(|(uid, name, cpu, memory)| (((*uid).into(), (*name).into()), usage(*cpu, *memory)));
        Sample { at, node_cpu_ns, node_memory_bytes: 7 << 20, containers: containers.collect() }
    }

    #[test]
    fn rates_are_what_was_spent_in_the_window() {
        let start = Instant::now();
        let end = start + Duration::from_secs(2);
        let before = sample(start, SECOND_NS, &[("u1", "b", 0, 0), ("u1", "a", SECOND_NS, 0), ("gone", "x", 5, 5)]);
        let now = sample(
            end,
            4 * SECOND_NS,
            &[("u1", "b", 500_000_000, 10), ("u1", "a", 2 * SECOND_NS, 20), ("u2", "new", 1, 1), ("gone", "x", 6, 6)],
        );
        let name = |name: &str| ("default".to_owned(), name.to_owned());
        let names = HashMap::from([("u1".to_owned(), name("web")), ("u2".to_owned(), name("late"))]);
        let usage = compare(&before, &now, &names, Timestamp::UNIX_EPOCH);
        expect_test::expect![[r#"{"timestamp":"1970-01-01T00:00:00Z","window_ms":2000,"cpu_nanocores":1500000000,"memory_bytes":7340032,"pods":[{"namespace":"default","name":"web","uid":"u1","containers":[{"name":"a","cpu_nanocores":500000000,"memory_bytes":20},{"name":"b","cpu_nanocores":250000000,"memory_bytes":10}]}]}"#]]
            .assert_eq(&serde_json::to_string(&usage).unwrap());
    }

    #[test]
    fn an_old_look_is_used_only_while_it_tells_of_now() {
        let start = Instant::now();
        let before = sample(start, 0, &[("u", "a", 10, 0)]);
        for (after_ms, containers, serves) in [
            (2_000, &[("u", "a", 11, 0)][..], true),
            (2_000, &[], true),
            (500, &[("u", "a", 11, 0)], false),
            (60_000, &[("u", "a", 11, 0)], false),
            (2_000, &[("u", "a", 11, 0), ("u", "b", 1, 0)], false),
            (2_000, &[("u", "a", 9, 0)], false),
        ] {
            let now = sample(start + Duration::from_millis(after_ms), 0, containers);
            assert_eq!(before.serves(&now), serves, "{after_ms} {containers:?}");
        }
    }

    #[test]
    fn the_kernels_figures_are_read() {
        let tick = SECOND_NS / rustix::param::clock_ticks_per_second();
        assert_eq!(cpu_ns("cpu  10 1 5 1000 50 2 3 4 99 99\ncpu0 1 1 1 1\n").unwrap(), 25 * tick);
        assert!(cpu_ns("cpu0 1 2 3 4\n").is_err() && cpu_ns("cpu  x\n").is_err());
        let meminfo = "MemTotal:       1000 kB\nMemFree:         100 kB\nMemAvailable:    400 kB\n";
        assert_eq!(memory_bytes(meminfo).unwrap(), 600 << 10);
        assert!(memory_bytes("MemTotal: x kB\n").is_err());
        // and the real ones
        assert!(cpu_ns(&std::fs::read_to_string("/proc/stat").unwrap()).unwrap() > 0);
        assert!(memory_bytes(&std::fs::read_to_string("/proc/meminfo").unwrap()).unwrap() > 0);
    }
}
