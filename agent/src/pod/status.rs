//! A pod's status as the kubelet would report it, computed from what is observed.
//!
//! Pure. What others keep in the status (gates, scheduling, claims) is carried over by [`merge`], never invented.

use super::blueprint::Blueprint;
use super::plan::{Wanted, restarts};
use super::state::{ContainerState, Current, Ended, Ground, PodState, Settled, Slot, Waiting, is_sidecar};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    Container, ContainerState as StateView, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting,
    ContainerStatus, HostIP, Pod, PodCondition, PodIP, PodStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::Value;

/// The conditions that the node's body owns.
const OWN_CONDITIONS: [&str; 5] =
    ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled"];
/// The fields of `status` that the node's body owns; all others are left as they are.
const OWN_FIELDS: [&str; 14] = [
    "conditions",
    "containerStatuses",
    "ephemeralContainerStatuses",
    "hostIP",
    "hostIPs",
    "initContainerStatuses",
    "message",
    "observedGeneration",
    "phase",
    "podIP",
    "podIPs",
    "qosClass",
    "reason",
    "startTime",
];

/// What a status is computed from.
pub struct Facts<'a> {
    /// The pod as last known.
    pub pod: &'a Pod,
    /// The status as this agent computed it last, whether the cluster has it or not; `None`: what the cluster has.
    pub before: Option<&'a PodStatus>,
    /// Its spec.
    pub spec: &'a Blueprint,
    /// Its name, for messages: `name_namespace(uid)`.
    pub full_name: &'a str,
    /// What is observed.
    pub state: &'a PodState,
    /// Whether it is to run.
    pub wanted: Wanted,
    /// The node's address.
    pub host_ip: &'a str,
    /// Now.
    pub now: Timestamp,
}

/// The status of a pod now.
pub fn status(facts: &Facts<'_>) -> PodStatus {
    let spec = facts.spec;
    let phase = phase(spec, facts);
    let verdict = facts.state.verdict.as_ref();
    let statuses = |wanted: fn(&Slot) -> bool| -> Vec<ContainerStatus> {
        let slots = spec.slots().filter(|(slot, _)| wanted(slot));
        slots
            .filter_map(|(slot, container)| {
                Some(container_status(facts, slot, container, facts.state.container(slot)?))
            })
            .collect()
    };
    let init = statuses(|slot| matches!(slot, Slot::Init(_)));
    let main = statuses(|slot| matches!(slot, Slot::Main(_)));
    let ephemeral = statuses(|slot| matches!(slot, Slot::Ephemeral(_)));
    let ip = facts.state.address.map(|address| address.to_string());
    PodStatus {
        conditions: Some(conditions(spec, facts, phase)),
        container_statuses: Some(main),
        ephemeral_container_statuses: (!ephemeral.is_empty()).then_some(ephemeral),
        host_ip: Some(facts.host_ip.into()),
        host_ips: Some(vec![HostIP { ip: facts.host_ip.into() }]),
        init_container_statuses: (!init.is_empty()).then_some(init),
        message: verdict.map(|verdict| verdict.message.clone()),
        observed_generation: facts.pod.metadata.generation,
        phase: Some(phase.into()),
        pod_ips: ip.clone().map(|ip| vec![PodIP { ip }]),
        pod_ip: ip,
        qos_class: Some(manifests::pods::qos(spec).into()),
        reason: verdict.map(|verdict| verdict.reason.clone()),
        start_time: Some(Time(facts.state.since)),
        ..PodStatus::default()
    }
}

/// Puts a computed status into the current JSON of the pod, leaving what others own. `None` when nothing differs.
pub fn merge(current: &Value, computed: &PodStatus) -> Option<Value> {
    let Ok(Value::Object(mut new)) = serde_json::to_value(computed) else { return None };
    let old = current.get("status").and_then(Value::as_object).cloned().unwrap_or_default();
    let foreign = old
        .get("conditions")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter(|condition| condition["type"].as_str().is_some_and(|type_| !OWN_CONDITIONS.contains(&type_)));
    if let Some(conditions) = new.get_mut("conditions").and_then(Value::as_array_mut) {
        conditions.extend(foreign.cloned());
    }
    let mut merged = old.clone();
    merged.retain(|name, _| !OWN_FIELDS.contains(&name.as_str()));
    merged.extend(new);
    if merged == old {
        return None;
    }
    let mut value = current.clone();
    value.as_object_mut()?.insert("status".into(), Value::Object(merged));
    Some(value)
}

/// The containers as counted for the phase.
#[derive(Default)]
struct Tally {
    total: usize,
    waiting: usize,
    running: usize,
    stopped: usize,
    succeeded: usize,
}

fn phase(spec: &Blueprint, facts: &Facts<'_>) -> &'static str {
    let state = facts.state;
    let live = state.slots().any(|(_, c)| c.is_live());
    if state.verdict.is_some() {
        return if live { "Running" } else { "Failed" };
    }
    let mut tally = Tally::default();
    let (mut init_pending, mut init_failed) = (false, false);
    for (i, container) in spec.init().iter().enumerate() {
        let Some(observed) = state.container(Slot::Init(i)) else { continue };
        if is_sidecar(container) {
            init_pending |= !state.initialized && !observed.running().is_some_and(|running| running.started);
        } else if !state.initialized {
            match (&observed.current, &observed.last) {
                (Current::Ended(ended), _) if ended.code == 0 => {}
                (Current::Ended(ended), _) if !restarts(spec, Slot::Init(i), container, ended.code) => {
                    init_failed = true
                }
                _ => init_pending = true,
            }
        }
    }
    for container in &state.main {
        tally.add(container);
    }
    let going = matches!(facts.wanted, Wanted::Gone { .. });
    let policy = spec.restart_policy.as_deref().unwrap_or("Always");
    match tally {
        _ if init_failed => "Failed",
        Tally { waiting, running: 0, .. } if waiting > 0 && !going => "Pending",
        _ if init_pending && !going => "Pending",
        Tally { running, .. } if running > 0 => "Running",
        _ if going && live => "Running",
        Tally { stopped: 0, .. } if going => "Failed",
        Tally { stopped, succeeded, .. } if stopped > 0 && (policy != "Always" || going) => {
            let sidecars_live = state.init.iter().any(|c| c.running().is_some());
            match () {
                () if sidecars_live => "Running",
                () if stopped == succeeded && stopped == tally.total => "Succeeded",
                () if policy == "Never" || going => "Failed",
                () => "Running",
            }
        }
        Tally { stopped, .. } if stopped > 0 => "Running",
        _ => "Pending",
    }
}

impl Tally {
    fn add(&mut self, container: &ContainerState) {
        self.total += 1;
        let shown = match &container.current {
            Current::Starting { before } => before,
            current => current,
        };
        match (shown, &container.last) {
            (Current::Running(_), _) => self.running += 1,
            (Current::Ended(ended), _) | (Current::Waiting(_), Some(ended)) => {
                self.stopped += 1;
                self.succeeded += usize::from(ended.code == 0);
            }
            _ => self.waiting += 1,
        }
    }
}

fn container_status(
    facts: &Facts<'_>,
    slot: Slot,
    container: &Container,
    observed: &ContainerState,
) -> ContainerStatus {
    let spec = facts.spec;
    let shown = match &observed.current {
        Current::Starting { before } => before,
        current => current,
    };
    let mut last = observed.last.as_ref();
    let mut id = last.map(|ended| ended.id.as_str()).unwrap_or_default();
    let mut state = StateView::default();
    let (mut ready, mut started) = (false, false);
    match shown {
        Current::Waiting(waiting) => state.waiting = Some(waiting_view(spec, waiting, observed)),
        Current::Running(running) => {
            id = &running.id;
            state.running = Some(ContainerStateRunning { started_at: Some(Time(running.since)) });
            (ready, started) = (is_ready(observed), running.started);
        }
        Current::Ended(ended) => {
            id = &ended.id;
            let again = facts.wanted == Wanted::Run
                && facts.state.verdict.is_none()
                && restarts(spec, slot, container, ended.code);
            let until = observed.crash.until(ended.finished_at.unwrap_or(facts.now));
            if again && until.is_some_and(|at| at > facts.now) {
                last = Some(ended);
                state.waiting = Some(crash_loop(facts, container, observed));
            } else {
                state.terminated = Some(terminated_view(ended));
                // an init container that has done its work counts as ready
                ready = matches!(slot, Slot::Init(_)) && ended.code == 0;
            }
        }
        Current::Starting { .. } => {}
    }
    ContainerStatus {
        container_id: (!id.is_empty()).then(|| id.to_owned()),
        image: container.image.clone().unwrap_or_default(),
        image_id: observed.image_id.clone(),
        last_state: Some(StateView { terminated: last.map(terminated_view), ..StateView::default() }),
        name: container.name.clone(),
        ready,
        restart_count: i32::try_from(observed.restarts).unwrap_or(i32::MAX),
        started: Some(started),
        state: Some(state),
        ..ContainerStatus::default()
    }
}

fn is_ready(observed: &ContainerState) -> bool {
    observed.running().is_some_and(|running| running.started && running.ready && running.stopping.is_none())
}

fn waiting_view(spec: &Blueprint, waiting: &Waiting, observed: &ContainerState) -> ContainerStateWaiting {
    let default =
        if spec.init().is_empty() || observed.last.is_some() { "ContainerCreating" } else { "PodInitializing" };
    let reason = if waiting.reason.is_empty() { default } else { waiting.reason };
    let message = (!waiting.message.is_empty()).then(|| waiting.message.clone());
    ContainerStateWaiting { message, reason: Some(reason.into()) }
}

/// The kubelet's words for a container that waits for its restart.
pub fn back_off_message(container: &str, delay: &str, full_name: &str) -> String {
    format!("back-off {delay} restarting failed container={container} pod={full_name}")
}

fn crash_loop(facts: &Facts<'_>, container: &Container, observed: &ContainerState) -> ContainerStateWaiting {
    ContainerStateWaiting {
        message: Some(back_off_message(&container.name, &observed.crash.words(), facts.full_name)),
        reason: Some("CrashLoopBackOff".into()),
    }
}

fn terminated_view(ended: &Ended) -> ContainerStateTerminated {
    ContainerStateTerminated {
        container_id: (!ended.id.is_empty()).then(|| ended.id.clone()),
        exit_code: ended.code,
        finished_at: ended.finished_at.map(Time),
        message: (!ended.message.is_empty()).then(|| ended.message.clone()),
        reason: (!ended.reason.is_empty()).then(|| ended.reason.clone()),
        signal: None,
        started_at: ended.started_at.map(Time),
    }
}

/// A condition before its times are known: type, status, reason, message.
struct Draft {
    type_: &'static str,
    holds: bool,
    reason: &'static str,
    message: String,
}

impl Draft {
    fn holds(type_: &'static str) -> Self {
        Self { type_, holds: true, reason: "", message: String::new() }
    }

    fn fails(type_: &'static str, reason: &'static str, message: String) -> Self {
        Self { type_, holds: false, reason, message }
    }
}

fn conditions(spec: &Blueprint, facts: &Facts<'_>, phase: &str) -> Vec<PodCondition> {
    let grounded = facts.state.ground == Ground::Ready && facts.state.settled == Settled::No;
    let standing = if grounded {
        Draft::holds("PodReadyToStartContainers")
    } else {
        Draft::fails("PodReadyToStartContainers", "", String::new())
    };
    let containers_ready = containers_ready(spec, facts, phase);
    let ready = ready(spec, facts, &containers_ready);
    let drafts = [standing, initialized(spec, facts, phase), ready, containers_ready, Draft::holds("PodScheduled")];
    drafts.into_iter().map(|draft| date(draft, facts)).collect()
}

/// Gives a condition its times: the transition's is kept while its status stays.
fn date(draft: Draft, facts: &Facts<'_>) -> PodCondition {
    let status = if draft.holds { "True" } else { "False" };
    let old = facts.before.or(facts.pod.status.as_ref());
    let old =
        old.and_then(|status| status.conditions.as_ref()).into_iter().flatten().find(|old| old.type_ == draft.type_);
    let since = old.filter(|old| old.status == status).and_then(|old| old.last_transition_time.clone());
    PodCondition {
        last_probe_time: None,
        last_transition_time: Some(since.unwrap_or(Time(facts.now))),
        message: (!draft.message.is_empty()).then_some(draft.message),
        observed_generation: facts.pod.metadata.generation,
        reason: (!draft.reason.is_empty()).then(|| draft.reason.into()),
        status: status.into(),
        type_: draft.type_.into(),
    }
}

fn initialized(spec: &Blueprint, facts: &Facts<'_>, phase: &str) -> Draft {
    const TYPE: &str = "Initialized";
    if phase == "Succeeded" {
        return Draft { reason: "PodCompleted", ..Draft::holds(TYPE) };
    }
    let waiting: Vec<&str> = spec
        .init()
        .iter()
        .enumerate()
        .filter(|(i, container)| {
            let Some(observed) = facts.state.container(Slot::Init(*i)) else { return true };
            let done = if is_sidecar(container) {
                observed.running().is_some_and(|running| running.started)
            } else {
                observed.ended().is_some_and(|ended| ended.code == 0)
            };
            !done && !facts.state.initialized
        })
        .map(|(_, container)| container.name.as_str())
        .collect();
    if waiting.is_empty() {
        return Draft::holds(TYPE);
    }
    let message = format!("containers with incomplete status: [{}]", waiting.join(" "));
    Draft::fails(TYPE, "ContainersNotInitialized", message)
}

fn containers_ready(spec: &Blueprint, facts: &Facts<'_>, phase: &str) -> Draft {
    const TYPE: &str = "ContainersReady";
    match phase {
        "Succeeded" => return Draft::fails(TYPE, "PodCompleted", String::new()),
        "Failed" => return Draft::fails(TYPE, "PodFailed", String::new()),
        _ => {}
    }
    let sidecars = spec.init().iter().enumerate().filter(|(_, container)| is_sidecar(container));
    let sidecars = sidecars.map(|(i, container)| (Slot::Init(i), container));
    let mains = spec.containers.iter().enumerate().map(|(i, container)| (Slot::Main(i), container));
    let unready: Vec<&str> = sidecars
        .chain(mains)
        .filter(|(slot, _)| !facts.state.container(*slot).is_some_and(is_ready))
        .map(|(_, container)| container.name.as_str())
        .collect();
    if unready.is_empty() {
        return Draft::holds(TYPE);
    }
    let message = format!("containers with unready status: [{}]", unready.join(" "));
    Draft::fails(TYPE, "ContainersNotReady", message)
}

/// Ready is ContainersReady and every gate of `spec.readinessGates`.
fn ready(spec: &Blueprint, facts: &Facts<'_>, containers: &Draft) -> Draft {
    const TYPE: &str = "Ready";
    if !containers.holds {
        return Draft { type_: TYPE, holds: false, reason: containers.reason, message: containers.message.clone() };
    }
    let known = facts.pod.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    let missing: Vec<String> = spec
        .readiness_gates
        .iter()
        .flatten()
        .filter_map(|gate| {
            let type_ = &gate.condition_type;
            match known.iter().find(|condition| condition.type_ == *type_) {
                None => Some(format!("corresponding condition of pod readiness gate {type_:?} does not exist.")),
                Some(condition) if condition.status != "True" => Some(format!(
                    "the status of pod readiness gate {type_:?} is not \"True\", but {}",
                    condition.status
                )),
                Some(_) => None,
            }
        })
        .collect();
    if missing.is_empty() {
        Draft::holds(TYPE)
    } else {
        Draft::fails(TYPE, "ReadinessGatesNotReady", missing.join(", "))
    }
}
