//! Tables: a pod and what was observed of it in, steps and status out.

use super::blueprint::Blueprint;
use super::plan::{Desired, Wanted, plan};
use super::state::{
    Adoption, Current, Drain, Ended, Ground, PodState, Retry, Running, Settled, Slot, Unhealthy, Waiting,
};
use super::status::{Facts, merge, status};
use expect_test::{Expect, expect};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use std::fmt::Write as _;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn pod(spec: &str) -> Pod {
    let spec: serde_json::Value = serde_yaml::from_str(spec).unwrap();
    let pod = serde_json::json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "p", "namespace": "ns", "uid": "u", "generation": 1}, "spec": spec,
    });
    serde_json::from_value(pod).unwrap()
}

fn blueprint(pod: &Pod) -> Blueprint {
    Blueprint::new(pod.spec.clone().unwrap())
}

fn running(second: i64) -> Current {
    Current::Running(Running {
        id: "c".into(),
        since: at(second),
        started: true,
        ready: true,
        stopping: None,
        killed: false,
        unhealthy: None,
    })
}

fn ended(code: i32, second: i64) -> Current {
    let reason = if code == 0 { "Completed" } else { "Error" };
    Current::Ended(Ended {
        id: "c".into(),
        code,
        reason: reason.into(),
        message: String::new(),
        started_at: Some(at(second - 1)),
        finished_at: Some(at(second)),
    })
}

/// A pod's state with volumes and address, changed by `change`; then what the plan and the status say of it at second 100.
fn check(spec: &str, wanted: Wanted, change: impl FnOnce(&mut PodState), expected: &Expect) {
    let pod = pod(spec);
    let mut state = PodState::recover(&pod, &blueprint(&pod), at(0));
    state.ground = Ground::Ready;
    state.address = Some("10.42.0.2".parse().unwrap());
    change(&mut state);
    let spec = blueprint(&pod);
    let desired = Desired { spec: &spec, wanted };
    let mut out = String::new();
    for step in plan(&desired, &state, at(100)) {
        writeln!(out, "{step:?}").unwrap();
    }
    let facts = Facts {
        pod: &pod,
        before: None,
        spec: &spec,
        full_name: "p_ns(u)",
        state: &state,
        wanted,
        host_ip: "10.0.0.1",
        now: at(100),
    };
    let status = status(&facts);
    let phase = status.phase.unwrap();
    let conditions: Vec<String> = status
        .conditions
        .unwrap()
        .iter()
        .filter(|c| c.status != "True")
        .map(|c| format!("{}:{}", c.type_, c.reason.clone().unwrap_or_default()))
        .collect();
    writeln!(out, "{phase} not: {}", conditions.join(" ")).unwrap();
    let init = status.init_container_statuses.unwrap_or_default();
    for container in init.iter().chain(&status.container_statuses.unwrap()) {
        let state = container.state.clone().unwrap();
        let shown = if let Some(waiting) = state.waiting {
            let message = waiting.message.map(|message| format!(" ({message})")).unwrap_or_default();
            format!("waiting {}{message}", waiting.reason.unwrap())
        } else if let Some(terminated) = state.terminated {
            format!("terminated {} {}", terminated.reason.unwrap(), terminated.exit_code)
        } else {
            format!("running ready={} started={}", container.ready, container.started.unwrap())
        };
        let last = container.last_state.clone().and_then(|state| state.terminated).map(|t| t.exit_code);
        let last = last.map(|code| format!(", last {code}")).unwrap_or_default();
        writeln!(out, "{} {shown}, restarts {}{last}", container.name, container.restart_count).unwrap();
    }
    expected.assert_eq(&out);
}

const ONE: &str = "{containers: [{name: web, image: 'file://web.wasm'}]}";
const JOB: &str = "{restartPolicy: Never, containers: [{name: job, image: 'file://job.wasm'}]}";
const STEPS: &str = "
initContainers:
- {name: first, image: a}
- {name: side, image: b, restartPolicy: Always}
- {name: last, image: c}
containers: [{name: web, image: d}]";

#[test]
fn a_new_pod_gets_its_ground_first() {
    check(
        ONE,
        Wanted::Run,
        |state| state.ground = Ground::Missing,
        &expect![[r#"
        LayGround
        Pending not: PodReadyToStartContainers: Ready:ContainersNotReady ContainersReady:ContainersNotReady
        web waiting ContainerCreating, restarts 0
    "#]],
    );
    check(
        ONE,
        Wanted::Run,
        |_| {},
        &expect![[r#"
        Start(Main(0))
        Pending not: Ready:ContainersNotReady ContainersReady:ContainersNotReady
        web waiting ContainerCreating, restarts 0
    "#]],
    );
    check(
        ONE,
        Wanted::Run,
        |state| state.main[0].current = running(99),
        &expect![[r#"
        Running not: 
        web running ready=true started=true, restarts 0
    "#]],
    );
}

#[test]
fn a_crash_is_restarted_at_once_then_with_growing_delays() {
    check(
        ONE,
        Wanted::Run,
        |state| state.main[0].current = ended(1, 99),
        &expect![[r#"
        Start(Main(0))
        Running not: Ready:ContainersNotReady ContainersReady:ContainersNotReady
        web terminated Error 1, restarts 0
    "#]],
    );
    let crashed = |second: i64| {
        move |state: &mut PodState| {
            let container = &mut state.main[0];
            container.crash.count(at(60), at(60));
            container.crash.count(at(80), at(80));
            container.restarts = 2;
            container.current = ended(1, second);
        }
    };
    check(
        ONE,
        Wanted::Run,
        crashed(99),
        &expect![[r#"
        BackOff(Main(0))
        Wake(1970-01-01T00:01:59Z)
        Running not: Ready:ContainersNotReady ContainersReady:ContainersNotReady
        web waiting CrashLoopBackOff (back-off 20s restarting failed container=web pod=p_ns(u)), restarts 2, last 1
    "#]],
    );
    check(
        ONE,
        Wanted::Run,
        crashed(79),
        &expect![[r#"
        Start(Main(0))
        Running not: Ready:ContainersNotReady ContainersReady:ContainersNotReady
        web terminated Error 1, restarts 2
    "#]],
    );
}

#[test]
fn a_finished_pod_gives_back_what_it_had() {
    check(
        JOB,
        Wanted::Run,
        |state| state.main[0].current = ended(0, 99),
        &expect![[r#"
        Settle
        Succeeded not: Ready:PodCompleted ContainersReady:PodCompleted
        job terminated Completed 0, restarts 0
    "#]],
    );
    check(
        JOB,
        Wanted::Run,
        |state| state.main[0].current = ended(3, 99),
        &expect![[r#"
        Settle
        Failed not: Ready:PodFailed ContainersReady:PodFailed
        job terminated Error 3, restarts 0
    "#]],
    );
}

#[test]
fn init_containers_come_one_by_one_and_sidecars_stay() {
    check(
        STEPS,
        Wanted::Run,
        |_| {},
        &expect![[r#"
        Start(Init(0))
        Pending not: Initialized:ContainersNotInitialized Ready:ContainersNotReady ContainersReady:ContainersNotReady
        first waiting PodInitializing, restarts 0
        side waiting PodInitializing, restarts 0
        last waiting PodInitializing, restarts 0
        web waiting PodInitializing, restarts 0
    "#]],
    );
    check(
        STEPS,
        Wanted::Run,
        |state| {
            state.init[0].current = ended(0, 90);
            state.init[1].current = running(91);
        },
        &expect![[r#"
        Start(Init(2))
        Pending not: Initialized:ContainersNotInitialized Ready:ContainersNotReady ContainersReady:ContainersNotReady
        first terminated Completed 0, restarts 0
        side running ready=true started=true, restarts 0
        last waiting PodInitializing, restarts 0
        web waiting PodInitializing, restarts 0
    "#]],
    );
    check(
        STEPS,
        Wanted::Run,
        |state| {
            state.initialized = true;
            state.init[0].current = ended(0, 90);
            state.init[1].current = ended(1, 99);
            state.init[2].current = ended(0, 92);
            state.main[0].current = running(93);
        },
        &expect![[r#"
        Start(Init(1))
        Running not: Ready:ContainersNotReady ContainersReady:ContainersNotReady
        first terminated Completed 0, restarts 0
        side terminated Error 1, restarts 0
        last terminated Completed 0, restarts 0
        web running ready=true started=true, restarts 0
    "#]],
    );
}

#[test]
fn a_deletion_drains_then_stops_then_removes() {
    let gone = Wanted::Gone { by: at(130) };
    check(
        ONE,
        gone,
        |state| state.main[0].current = running(90),
        &expect![[r#"
        Drain
        Wake(1970-01-01T00:02:10Z)
        Running not: 
        web running ready=true started=true, restarts 0
    "#]],
    );
    check(
        ONE,
        gone,
        |state| {
            state.main[0].current = running(90);
            state.drain = Drain::Drained;
        },
        &expect![[r#"
        Stop { slot: Main(0), by: 1970-01-01T00:02:10Z }
        Running not: 
        web running ready=true started=true, restarts 0
    "#]],
    );
    check(
        ONE,
        Wanted::Gone { by: at(100) },
        |state| {
            state.main[0].current = running(90);
            state.main[0].running_mut().unwrap().stopping = Some(at(130));
            state.drain = Drain::Drained;
        },
        &expect![[r#"
        Kill(Main(0))
        Running not: Ready:ContainersNotReady ContainersReady:ContainersNotReady
        web running ready=false started=true, restarts 0
    "#]],
    );
    check(
        ONE,
        gone,
        |state| {
            state.main[0].current = ended(0, 99);
            state.settled = Settled::Yes;
        },
        &expect![[r#"
        Remove
        Succeeded not: PodReadyToStartContainers: Ready:PodCompleted ContainersReady:PodCompleted
        web terminated Completed 0, restarts 0
    "#]],
    );
    check(
        ONE,
        gone,
        |state| state.main[0].current = Current::Starting { before: Box::new(Current::Waiting(Waiting::turn())) },
        &expect![[r#"
        Drain
        Wake(1970-01-01T00:02:10Z)
        Running not: Ready:ContainersNotReady ContainersReady:ContainersNotReady
        web waiting ContainerCreating, restarts 0
    "#]],
    );
}

#[test]
fn an_ill_container_is_stopped_and_a_late_pod_fails() {
    check(
        ONE,
        Wanted::Run,
        |state| {
            state.main[0].current = running(90);
            let unhealthy = Unhealthy { message: String::new(), grace_seconds: Some(5) };
            state.main[0].running_mut().unwrap().unhealthy = Some(unhealthy);
        },
        &expect![[r#"
        Stop { slot: Main(0), by: 1970-01-01T00:01:45Z }
        Running not: 
        web running ready=true started=true, restarts 0
    "#]],
    );
    let late = "{activeDeadlineSeconds: 60, containers: [{name: web, image: a}]}";
    check(
        late,
        Wanted::Run,
        |state| state.main[0].current = running(90),
        &expect![[r#"
        Fail { reason: "DeadlineExceeded", message: "Pod was active on the node longer than the specified deadline" }
        Running not: 
        web running ready=true started=true, restarts 0
    "#]],
    );
}

#[test]
fn what_waits_for_a_change_is_left_alone() {
    check(
        ONE,
        Wanted::Run,
        |state| {
            let message = "configmap \"settings\" not found".into();
            let waiting = Waiting { reason: "CreateContainerConfigError", message, retry: Retry::OnChange };
            state.main[0].current = Current::Waiting(waiting);
        },
        &expect![[r#"
        Pending not: Ready:ContainersNotReady ContainersReady:ContainersNotReady
        web waiting CreateContainerConfigError (configmap "settings" not found), restarts 0
    "#]],
    );
}

#[test]
fn nothing_is_done_before_an_earlier_agents_containers_are_known() {
    let waits = &expect![[r#"
        Adopt
        Pending not: Ready:ContainersNotReady ContainersReady:ContainersNotReady
        web waiting ContainerCreating, restarts 0
    "#]];
    check(ONE, Wanted::Run, |state| state.adoption = Adoption::Needed, waits);
    check(
        ONE,
        Wanted::Gone { by: at(130) },
        |state| state.adoption = Adoption::UnderWay,
        &expect![[r#"
        Failed not: Ready:PodFailed ContainersReady:PodFailed
        web waiting ContainerCreating, restarts 0
    "#]],
    );
}

#[test]
fn a_lost_sandbox_ends_what_stood_on_it() {
    let ended_first = |state: &mut PodState| {
        state.ground = Ground::Lost;
        state.main[0].current = running(90);
    };
    check(
        ONE,
        Wanted::Run,
        ended_first,
        &expect![[r#"
        Kill(Main(0))
        Running not: PodReadyToStartContainers:
        web running ready=true started=true, restarts 0
    "#]],
    );
    check(
        ONE,
        Wanted::Run,
        |state| {
            state.ground = Ground::Lost;
            state.main[0].current = ended(137, 99);
        },
        &expect![[r#"
        LayGround
        Running not: PodReadyToStartContainers: Ready:ContainersNotReady ContainersReady:ContainersNotReady
        web terminated Error 137, restarts 0
    "#]],
    );
}

#[test]
fn a_container_that_cannot_start_has_run_and_failed() {
    let failed = |state: &mut PodState| {
        state.main[0].current = Current::Starting { before: Box::new(Current::Waiting(Waiting::turn())) };
        state.main[0].fail_to_start("no such program".into(), at(99));
    };
    check(
        JOB,
        Wanted::Run,
        failed,
        &expect![[r#"
        Settle
        Failed not: Ready:PodFailed ContainersReady:PodFailed
        job terminated StartError 128, restarts 0
    "#]],
    );
    check(
        ONE,
        Wanted::Run,
        failed,
        &expect![[r#"
        Start(Main(0))
        Running not: Ready:ContainersNotReady ContainersReady:ContainersNotReady
        web terminated StartError 128, restarts 0
    "#]],
    );
}

const DEBUGGED: &str = "
containers: [{name: web, image: a}]
ephemeralContainers: [{name: debugger, image: b, targetContainerName: web}]";

#[test]
fn an_ephemeral_container_runs_once_and_decides_nothing() {
    check(
        DEBUGGED,
        Wanted::Run,
        |state| state.main[0].current = running(90),
        &expect![[r#"
        Start(Ephemeral(0))
        Running not: 
        web running ready=true started=true, restarts 0
    "#]],
    );
    check(
        DEBUGGED,
        Wanted::Run,
        |state| {
            state.main[0].current = running(90);
            state.ephemeral[0].current = ended(1, 99);
        },
        &expect![[r#"
        Running not: 
        web running ready=true started=true, restarts 0
    "#]],
    );
}

/// A status round trip: what this agent wrote is what the next one starts from.
#[test]
fn the_next_agent_takes_up_what_the_status_tells() {
    let mut pod = pod(STEPS);
    let mut state = PodState::recover(&pod, &blueprint(&pod), at(0));
    state.ground = Ground::Ready;
    state.initialized = true;
    state.init[0].current = ended(0, 10);
    state.init[1].current = running(11);
    state.init[2].current = ended(0, 12);
    state.main[0].current = running(13);
    state.main[0].restarts = 4;
    let spec = blueprint(&pod);
    let facts = Facts {
        pod: &pod,
        before: None,
        spec: &spec,
        full_name: "p",
        state: &state,
        wanted: Wanted::Run,
        host_ip: "10.0.0.1",
        now: at(20),
    };
    pod.status = Some(status(&facts));
    let after = PodState::recover(&pod, &blueprint(&pod), at(50));
    assert!(after.initialized);
    assert_eq!(after.init[0].ended().unwrap().code, 0);
    let lost = after.main[0].ended().unwrap();
    assert_eq!((lost.code, lost.reason.as_str(), lost.started_at), (255, "Unknown", Some(at(13))));
    assert_eq!((after.main[0].restarts, after.main[0].next_instance()), (4, 5));
    let mut ready = after;
    ready.ground = Ground::Ready;
    let spec = blueprint(&pod);
    let desired = Desired { spec: &spec, wanted: Wanted::Run };
    let steps = format!("{:?}", plan(&desired, &ready, at(50)));
    assert_eq!(steps, format!("{:?}", [Slot::Init(1), Slot::Main(0)].map(super::plan::Step::Start)));
}

/// Others' fields and conditions stay, and an unchanged status is no write.
#[test]
fn a_merge_keeps_what_is_not_ours() {
    let pod = pod(ONE);
    let state = PodState::recover(&pod, &blueprint(&pod), at(0));
    let spec = blueprint(&pod);
    let facts = Facts {
        pod: &pod,
        before: None,
        spec: &spec,
        full_name: "p",
        state: &state,
        wanted: Wanted::Run,
        host_ip: "10.0.0.1",
        now: at(20),
    };
    let computed = status(&facts);
    let mut current = serde_json::to_value(&pod).unwrap();
    current["status"] = serde_json::json!({
        "qosClass": "BestEffort", "resize": "x", "reason": "Old", "nominatedNodeName": "n",
        "conditions": [{"type": "example.com/gate", "status": "True"}, {"type": "Ready", "status": "True"}],
    });
    let merged = merge(&current, &computed).unwrap();
    assert_eq!(merged["status"]["qosClass"], "BestEffort");
    assert_eq!(merged["status"]["resize"], "x");
    assert_eq!(merged["status"]["nominatedNodeName"], "n");
    assert!(merged["status"].get("reason").is_none());
    let types: Vec<&str> =
        merged["status"]["conditions"].as_array().unwrap().iter().map(|c| c["type"].as_str().unwrap()).collect();
    assert_eq!(types.iter().filter(|type_| **type_ == "Ready").count(), 1);
    assert!(types.contains(&"example.com/gate"));
    assert_eq!(merge(&merged, &computed), None);
}
