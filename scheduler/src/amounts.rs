//! Amounts of resources: what a pod asks for, what a node has.

use k8s_openapi::api::core::v1::{Container, PodSpec};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use manifests::quantity;
use std::collections::BTreeMap;

type List = BTreeMap<String, Quantity>;

/// Counted for a container that asks for no cpu, when nodes are compared: thousandths of a core.
const USUAL_CPU_MILLIS: i64 = 100;
/// Counted for a container that asks for no memory, when nodes are compared.
const USUAL_MEMORY_BYTES: i64 = 200 * 1024 * 1024;

/// Amounts of resources.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Amounts {
    /// Thousandths of a core.
    pub(crate) cpu: i64,
    /// Bytes.
    pub(crate) memory: i64,
    /// Bytes.
    pub(crate) storage: i64,
    /// Everything else, in whole units.
    pub(crate) extended: BTreeMap<String, i64>,
}

impl Amounts {
    /// The amounts of a resource list. What is no quantity counts nothing: validation keeps it out.
    pub(crate) fn of(list: Option<&List>) -> Self {
        let mut amounts = Self::default();
        for (name, quantity) in list.into_iter().flatten() {
            let whole = || saturate(quantity::bytes(quantity));
            match name.as_str() {
                "cpu" => amounts.cpu = saturate(quantity::milli(quantity)),
                "memory" => amounts.memory = whole(),
                "ephemeral-storage" => amounts.storage = whole(),
                "pods" => {}
                _ => {
                    amounts.extended.insert(name.clone(), whole());
                }
            }
        }
        amounts
    }

    pub(crate) fn add(&mut self, other: &Self) {
        self.combine(other, i64::saturating_add);
    }

    pub(crate) fn subtract(&mut self, other: &Self) {
        self.combine(other, i64::saturating_sub);
        self.extended.retain(|_, amount| *amount != 0);
    }

    /// The greater of each.
    fn raise(&mut self, other: &Self) {
        self.combine(other, i64::max);
    }

    fn combine(&mut self, other: &Self, f: impl Fn(i64, i64) -> i64) {
        self.cpu = f(self.cpu, other.cpu);
        self.memory = f(self.memory, other.memory);
        self.storage = f(self.storage, other.storage);
        for (name, amount) in &other.extended {
            let own = self.extended.entry(name.clone()).or_insert(0);
            *own = f(*own, *amount);
        }
    }
}

fn saturate(amount: Option<i128>) -> i64 {
    i64::try_from(amount.unwrap_or(0)).unwrap_or(i64::MAX)
}

/// The number of pods a resource list allows; none if it does not say.
pub(crate) fn pods(list: Option<&List>) -> i64 {
    list.and_then(|list| list.get("pods")).map_or(0, |quantity| saturate(quantity::bytes(quantity)))
}

/// What a pod asks for: its containers together with its sidecars, or what its greediest init container needs, whichever
/// is more; then what its runtime adds. With `usual`, containers that ask for no cpu or memory count with the usual.
pub(crate) fn request(spec: &PodSpec, usual: bool) -> Amounts {
    let of = |container: &Container| {
        let mut amounts = Amounts::of(container.resources.as_ref().and_then(|resources| resources.requests.as_ref()));
        if usual && amounts.cpu == 0 {
            amounts.cpu = USUAL_CPU_MILLIS;
        }
        if usual && amounts.memory == 0 {
            amounts.memory = USUAL_MEMORY_BYTES;
        }
        amounts
    };
    let mut total = Amounts::default();
    let (mut sidecars, mut peak) = (Amounts::default(), Amounts::default());
    for container in spec.init_containers.iter().flatten() {
        let mut amounts = of(container);
        if container.restart_policy.as_deref() == Some("Always") {
            sidecars.add(&amounts);
            peak.raise(&sidecars);
        } else {
            amounts.add(&sidecars);
            peak.raise(&amounts);
        }
    }
    spec.containers.iter().for_each(|container| total.add(&of(container)));
    total.add(&sidecars);
    total.raise(&peak);
    // what is asked for the pod as a whole replaces the sum
    if let Some(whole) = spec.resources.as_ref().and_then(|resources| resources.requests.as_ref()) {
        let amounts = Amounts::of(Some(whole));
        total.cpu = if whole.contains_key("cpu") { amounts.cpu } else { total.cpu };
        total.memory = if whole.contains_key("memory") { amounts.memory } else { total.memory };
    }
    total.add(&Amounts::of(spec.overhead.as_ref()));
    total
}
