//! Pods whose containers run in Docker, with the specs of Kubernetes' tutorials and an image made here.

use crate::harness::{Room, docker, request, until};
use serde_json::{Value, json};
use std::net::SocketAddr;

#[test]
fn a_container_gets_its_command_and_environment() {
    let Some(room) = Room::enter("environment") else { return };
    room.kubectl(&["create", "configmap", "special", "--from-literal=how=very", "--from-literal=type=charm"]);
    room.kubectl(&["create", "secret", "generic", "backend", "--from-literal=user=admin"]);
    room.apply(
        r#"
apiVersion: v1
kind: Pod
metadata: {name: tell, labels: {tier: back}}
spec:
  restartPolicy: Never
  containers:
  - name: main
    image: BUSYBOX
    command: [sh, -c]
    args: ["env; pwd; echo '$(GREETING) $$(GREETING) $(NOWHERE)'; echo arg=$0,$1", first, $(NAME)]
    workingDir: /www
    resources: {requests: {memory: 32Mi, cpu: 125m}, limits: {memory: 64Mi, cpu: 250m}}
    envFrom:
    - {prefix: SPECIAL_, configMapRef: {name: special}}
    - {secretRef: {name: nowhere, optional: true}}
    env:
    - {name: NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
    - {name: SPACE, valueFrom: {fieldRef: {fieldPath: metadata.namespace}}}
    - {name: TIER, valueFrom: {fieldRef: {fieldPath: "metadata.labels['tier']"}}}
    - {name: NODE, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}
    - {name: ADDRESS, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
    - {name: MEMORY, valueFrom: {resourceFieldRef: {resource: limits.memory, divisor: 1Mi}}}
    - {name: CPU, valueFrom: {resourceFieldRef: {resource: requests.cpu, divisor: 1m}}}
    - {name: USERNAME, valueFrom: {secretKeyRef: {name: backend, key: user}}}
    - {name: GREETING, value: "Hello $(NAME)"}
"#,
    );
    room.wait("pod/tell", "jsonpath={.status.phase}=Succeeded");
    let log = room.kubectl(&["logs", "tell"]);
    let address = room.field("pod/tell", "{.status.podIP}");
    for line in [
        "NAME=tell",
        "SPACE=environment",
        "TIER=back",
        "NODE=node",
        &format!("ADDRESS={address}"),
        "MEMORY=64",
        "CPU=125",
        "USERNAME=admin",
        "SPECIAL_how=very",
        "SPECIAL_type=charm",
        "GREETING=Hello tell",
        "FROM_IMAGE=yes",
        "KUBERNETES_SERVICE_PORT=443",
        "HOSTNAME=tell",
        "/www",
        "Hello tell $(GREETING) $(NOWHERE)",
        "arg=first,tell",
    ] {
        assert!(log.lines().any(|found| found == line), "{line} is missing in\n{log}");
    }
    let status = room.get("pod/tell")["status"].clone();
    assert_eq!(status["qosClass"], "Burstable");
    let container = &status["containerStatuses"][0];
    assert!(container["containerID"].as_str().unwrap().starts_with("docker://"), "{container}");
    assert_eq!(container["state"]["terminated"]["reason"], "Completed");
    let events = room.events("pod/tell");
    for reason in ["Scheduled", "Pulled", "Created", "Started"] {
        assert!(events.contains(reason), "{reason} is missing in\n{events}");
    }
}

#[test]
fn init_containers_run_in_order_and_a_sidecar_goes_along() {
    let Some(room) = Room::enter("init") else { return };
    room.apply(
        r#"
apiVersion: v1
kind: Pod
metadata: {name: ordered}
spec:
  restartPolicy: Never
  volumes: [{name: work, emptyDir: {}}]
  initContainers:
  - {name: first, image: BUSYBOX, command: [sh, -c, "echo first >> /step/order"], volumeMounts: &mounts [{name: work, mountPath: /step}]}
  - name: side
    image: BUSYBOX
    restartPolicy: Always
    command: [sh, -c, "trap 'echo side ends; exit 0' TERM; echo side >> /step/order; while true; do sleep 0.1; done"]
    startupProbe: {exec: {command: [grep, side, /step/order]}, periodSeconds: 1}
    volumeMounts: *mounts
  - {name: second, image: BUSYBOX, command: [sh, -c, "echo second >> /step/order"], volumeMounts: *mounts}
  containers:
  - {name: main, image: BUSYBOX, command: [sh, -c, "echo main >> /step/order; cat /step/order"], volumeMounts: *mounts}
---
apiVersion: v1
kind: Pod
metadata: {name: stuck}
spec:
  restartPolicy: Never
  initContainers: [{name: fails, image: BUSYBOX, command: [sh, -c, "exit 7"]}]
  containers: [{name: main, image: BUSYBOX, command: [sleep, "1000"]}]
"#,
    );
    room.wait("pod/ordered", "jsonpath={.status.phase}=Succeeded");
    assert_eq!(room.kubectl(&["logs", "ordered", "-c", "main"]), "first\nside\nsecond\nmain\n");
    until("the sidecar was told to end", || {
        (room.try_kubectl(&["logs", "ordered", "-c", "side"]) == "side ends\n").then_some(())
    });
    room.wait("pod/stuck", "jsonpath={.status.phase}=Failed");
    let status = room.get("pod/stuck")["status"].clone();
    assert_eq!(status["initContainerStatuses"][0]["state"]["terminated"]["exitCode"], 7);
    assert_eq!(status["containerStatuses"][0]["state"]["waiting"]["reason"], "PodInitializing");
}

#[test]
fn probes_decide_on_restarts_and_readiness() {
    let Some(room) = Room::enter("probes") else { return };
    room.apply(
        r#"
apiVersion: v1
kind: Pod
metadata: {name: liveness-exec}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: liveness
    image: BUSYBOX
    args: [/bin/sh, -c, touch /tmp/healthy; sleep 2; rm -f /tmp/healthy; sleep 600]
    livenessProbe: {exec: {command: [cat, /tmp/healthy]}, periodSeconds: 1, failureThreshold: 1}
---
apiVersion: v1
kind: Pod
metadata: {name: web}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: web
    image: BUSYBOX
    command: [httpd, -f, -p, "8080", -h, /www]
    ports: [{name: http, containerPort: 8080}]
    startupProbe: {tcpSocket: {port: http}, periodSeconds: 1}
    readinessProbe: {httpGet: {path: /ready, port: http}, periodSeconds: 1, failureThreshold: 1}
    livenessProbe: {httpGet: {path: /index.html, port: http}, periodSeconds: 1}
"#,
    );
    room.until_field("pod/web", "{.status.containerStatuses[0].started}", "true");
    assert_eq!(room.field("pod/web", "{.status.containerStatuses[0].ready}"), "false");
    room.kubectl(&["exec", "web", "--", "touch", "/www/ready"]);
    room.wait("pod/web", "condition=Ready");
    room.kubectl(&["exec", "web", "--", "rm", "/www/ready"]);
    room.wait("pod/web", "condition=Ready=false");
    assert_eq!(room.field("pod/web", "{.status.containerStatuses[0].restartCount}"), "0");
    room.until_event("pod/web", "Readiness probe failed: HTTP probe failed with statuscode: 404");

    room.until_field("pod/liveness-exec", "{.status.containerStatuses[0].restartCount}", "1");
    let events = room.until_event("pod/liveness-exec", "failed liveness probe, will be restarted");
    assert!(events.contains("Liveness probe failed: cat:") && events.contains("Unhealthy"), "{events}");
}

#[test]
fn hooks_run_after_the_start_and_before_the_end() {
    let Some(room) = Room::enter("hooks") else { return };
    let kept = tempfile::tempdir().unwrap();
    room.apply(
        &r#"
apiVersion: v1
kind: Pod
metadata: {name: lifecycle}
spec:
  terminationGracePeriodSeconds: 10
  volumes: [{name: kept, hostPath: {path: KEPT, type: Directory}}]
  containers:
  - name: main
    image: BUSYBOX
    command: [sh, -c, "trap 'echo terminated >> /kept/story; exit 0' TERM; while true; do sleep 0.1; done"]
    volumeMounts: [{name: kept, mountPath: /kept}]
    lifecycle:
      postStart: {exec: {command: [sh, -c, "echo started > /kept/story"]}}
      preStop: {exec: {command: [sh, -c, "echo stopping >> /kept/story"]}}
---
apiVersion: v1
kind: Pod
metadata: {name: bad-hook}
spec:
  restartPolicy: Never
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: BUSYBOX
    command: [sleep, "1000"]
    lifecycle: {postStart: {exec: {command: ["false"]}}}
"#
        .replace("KEPT", kept.path().to_str().unwrap()),
    );
    room.wait("pod/lifecycle", "condition=Ready");
    room.kubectl(&["delete", "pod", "lifecycle"]);
    assert_eq!(std::fs::read_to_string(kept.path().join("story")).unwrap(), "started\nstopping\nterminated\n");
    room.until_event("pod/bad-hook", "FailedPostStartHook");
    room.wait("pod/bad-hook", "jsonpath={.status.phase}=Failed");
}

#[test]
fn two_containers_share_a_volume_and_localhost() {
    let Some(room) = Room::enter("shared") else { return };
    room.apply(
        r#"
apiVersion: v1
kind: Pod
metadata: {name: two, labels: {app: two}}
spec:
  volumes: [{name: shared-data, emptyDir: {}}]
  containers:
  - name: server
    image: BUSYBOX
    command: [httpd, -f, -p, "8080", -h, /usr/share/html]
    ports: [{containerPort: 8080}]
    volumeMounts: [{name: shared-data, mountPath: /usr/share/html}]
  - name: debian-container
    image: BUSYBOX
    command: [/bin/sh, -c, "echo Hello from the debian container > /pod-data/index.html; sleep 1000"]
    volumeMounts: [{name: shared-data, mountPath: /pod-data}]
---
apiVersion: v1
kind: Service
metadata: {name: two}
spec: {selector: {app: two}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Pod
metadata: {name: other}
spec: {containers: [{name: main, image: BUSYBOX, command: [sleep, "1000"]}], terminationGracePeriodSeconds: 0}
"#,
    );
    room.wait("pod/two", "condition=Ready");
    room.wait("pod/other", "condition=Ready");
    let hello = "Hello from the debian container\n";
    let over_localhost = ["exec", "two", "-c", "debian-container", "--", "wget", "-qO-", "http://localhost:8080/"];
    assert_eq!(
        until("it is served", || Some(room.try_kubectl(&over_localhost)).filter(|page| !page.is_empty())),
        hello
    );
    // from the host, from another pod by its Service's name, and through the Service from the host
    let address = room.field("pod/two", "{.status.podIP}");
    let direct = request(SocketAddr::new(address.parse().unwrap(), 8080), "two", "/").unwrap();
    assert_eq!(direct.body, hello);
    let service = room.field("service/two", "{.spec.clusterIP}");
    let through = until("the Service answers", || {
        request(SocketAddr::new(service.parse().unwrap(), 80), "two", "/").ok().filter(|reply| reply.status == 200)
    });
    assert_eq!(through.body, hello);
    for name in ["two", "two.shared.svc.cluster.local"] {
        let url = format!("http://{name}/");
        assert_eq!(room.kubectl(&["exec", "other", "--", "wget", "-qO-", &url]), hello);
    }
    assert_eq!(room.kubectl(&["exec", "two", "-c", "server", "--", "hostname"]).trim(), "two");
}

#[test]
fn the_security_context_holds() {
    let Some(room) = Room::enter("security") else { return };
    room.apply(
        r#"
apiVersion: v1
kind: Pod
metadata: {name: tight}
spec:
  restartPolicy: Never
  securityContext: {runAsUser: 1000, runAsGroup: 3000, fsGroup: 2000, supplementalGroups: [4000]}
  volumes: [{name: data, emptyDir: {}}]
  containers:
  - name: main
    image: BUSYBOX
    command: [sh, -c, "id; touch /nowhere 2>&1; touch /data/mine && ls -ln /data; grep -E '(CapBnd|NoNewPrivs|Seccomp):' /proc/self/status; echo end"]
    securityContext:
      readOnlyRootFilesystem: true
      allowPrivilegeEscalation: false
      capabilities: {drop: [ALL], add: [NET_BIND_SERVICE]}
      seccompProfile: {type: RuntimeDefault}
    volumeMounts: [{name: data, mountPath: /data}]
---
apiVersion: v1
kind: Pod
metadata: {name: loose}
spec:
  restartPolicy: Never
  containers:
  - {name: main, image: BUSYBOX, command: [sh, -c, "grep CapBnd /proc/self/status; mount -t tmpfs none /tmp && echo mounted"], securityContext: {privileged: true}}
---
apiVersion: v1
kind: Pod
metadata: {name: root-refused}
spec:
  containers:
  - {name: main, image: BUSYBOX, command: [id], securityContext: {runAsNonRoot: true}}
"#,
    );
    room.wait("pod/tight", "jsonpath={.status.phase}=Succeeded");
    let log = room.kubectl(&["logs", "tight"]);
    for part in
        ["uid=1000", "gid=3000", "2000", "4000", "Read-only file system", "NoNewPrivs:\t1", "Seccomp:\t2", "end"]
    {
        assert!(log.contains(part), "{part} is missing in\n{log}");
    }
    // bit 10 is NET_BIND_SERVICE
    assert!(log.contains("CapBnd:\t0000000000000400"), "{log}");
    assert!(log.lines().any(|line| line.ends_with("mine") && line.contains(" 1000     2000 ")), "{log}");
    if may_be_privileged() {
        room.wait("pod/loose", "jsonpath={.status.phase}=Succeeded");
        assert!(room.kubectl(&["logs", "loose"]).contains("mounted"));
    } else {
        room.until_event("pod/loose", "unable to apply caps");
    }
    let waiting = "{.status.containerStatuses[0].state.waiting.reason}";
    room.until_field("pod/root-refused", waiting, "CreateContainerConfigError");
    room.until_event("pod/root-refused", "container has runAsNonRoot and image will run as root");
}

#[test]
fn limits_become_those_of_the_kernel_and_an_eater_is_killed() {
    let Some(room) = Room::enter("limits") else { return };
    room.apply(
        r#"
apiVersion: v1
kind: Pod
metadata: {name: memory-demo-2}
spec:
  restartPolicy: Never
  containers:
  - name: main
    image: BUSYBOX
    command: [sh, -c, "echo begin; x=$(head -c 100000000 /dev/zero | tr '\\0' x); echo never"]
    resources: {requests: {memory: 8Mi}, limits: {memory: 16Mi}}
---
apiVersion: v1
kind: Pod
metadata: {name: cpu-demo}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: main
    image: BUSYBOX
    command: [sleep, "1000"]
    resources: {requests: {cpu: 500m, memory: 32Mi}, limits: {cpu: 500m, memory: 32Mi}}
"#,
    );
    room.wait("pod/memory-demo-2", "jsonpath={.status.phase}=Failed");
    let state = room.get("pod/memory-demo-2")["status"]["containerStatuses"][0]["state"]["terminated"].clone();
    assert_eq!((&state["reason"], &state["exitCode"]), (&json!("OOMKilled"), &json!(137)));
    assert_eq!(room.kubectl(&["logs", "memory-demo-2"]), "begin\n");
    room.wait("pod/cpu-demo", "condition=Ready");
    assert_eq!(room.field("pod/cpu-demo", "{.status.qosClass}"), "Guaranteed");
    let host = inspect(&container_id(&room, "cpu-demo"))["HostConfig"].clone();
    assert_eq!(host["Memory"], 32 << 20);
    assert_eq!(host["CpuShares"], 512);
    assert_eq!(host["CpuQuota"].as_i64().unwrap() * 2, host["CpuPeriod"].as_i64().unwrap());
    // whoever lacks CAP_SYS_RESOURCE can only raise it
    let own: i64 = std::fs::read_to_string("/proc/self/oom_score_adj").unwrap().trim().parse().unwrap();
    assert!([-997, own].contains(&host["OomScoreAdj"].as_i64().unwrap()), "{host}");
}

#[test]
fn a_crash_is_restarted_with_growing_pauses_and_leaves_its_last_words() {
    let Some(room) = Room::enter("crash") else { return };
    room.apply(
        r#"
apiVersion: v1
kind: Pod
metadata: {name: crash}
spec:
  containers:
  - {name: main, image: BUSYBOX, command: [sh, -c, "echo run $(date +%s%N); echo because > /dev/termination-log; exit 3"]}
---
apiVersion: v1
kind: Pod
metadata: {name: last-log}
spec:
  restartPolicy: Never
  containers:
  - {name: main, image: BUSYBOX, terminationMessagePolicy: FallbackToLogsOnError, command: [sh, -c, "echo from the log; exit 1"]}
"#,
    );
    let waiting = "{.status.containerStatuses[0].state.waiting.reason}";
    until("it has been restarted and waits", || {
        let count = room.field("pod/crash", "{.status.containerStatuses[0].restartCount}");
        (count != "0" && room.field("pod/crash", waiting) == "CrashLoopBackOff").then_some(())
    });
    let status = room.get("pod/crash")["status"]["containerStatuses"][0].clone();
    let last = &status["lastState"]["terminated"];
    assert_eq!((&last["exitCode"], &last["reason"]), (&json!(3), &json!("Error")));
    assert_eq!(last["message"], "because\n");
    room.until_event("pod/crash", "Back-off restarting failed container main in pod crash");
    // while it waits, the newest is the last run; the one before is asked for by name
    let (now, before) = (room.kubectl(&["logs", "crash"]), room.try_kubectl(&["logs", "crash", "--previous"]));
    assert!(now.starts_with("run ") && before.starts_with("run "), "{now}{before}");
    room.wait("pod/last-log", "jsonpath={.status.phase}=Failed");
    let message = "{.status.containerStatuses[0].state.terminated.message}";
    assert_eq!(room.field("pod/last-log", message).trim(), "from the log");
}

#[test]
fn workloads_run_in_docker_as_anywhere() {
    let Some(room) = Room::enter("workloads") else { return };
    room.apply(
        r#"
apiVersion: batch/v1
kind: Job
metadata: {name: pi}
spec:
  completions: 2
  parallelism: 2
  template: {spec: {restartPolicy: Never, containers: [{name: pi, image: BUSYBOX, command: [sh, -c, "echo 3.14"]}]}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: web
        image: BUSYBOX
        command: [httpd, -f, -p, "8080", -h, /www]
        ports: [{containerPort: 8080}]
        readinessProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
"#,
    );
    room.wait("job/pi", "condition=Complete");
    room.kubectl(&["rollout", "status", "deployment/web", "--timeout=100s"]);
    let service: SocketAddr = format!("{}:80", room.field("service/web", "{.spec.clusterIP}")).parse().unwrap();
    let ask = || request(service, "web", "/").ok().filter(|reply| reply.status == 200);
    assert_eq!(until("the Service answers", ask).body, "hello from busybox\n");
    room.kubectl(&["set", "env", "deployment/web", "ROUND=2"]);
    room.kubectl(&["rollout", "status", "deployment/web", "--timeout=100s"]);
    let pods = room.kubectl(&["get", "pods", "-l", "app=web", "-o", "jsonpath={.items[*].spec.containers[0].env}"]);
    assert_eq!(pods.matches("ROUND").count(), pods.matches("\"2\"").count());
    assert_eq!(until("the Service answers", ask).body, "hello from busybox\n");
}

#[test]
fn names_and_addresses_are_in_the_files_programs_read() {
    let Some(room) = Room::enter("names") else { return };
    room.apply(
        r#"
apiVersion: v1
kind: Service
metadata: {name: sub}
spec: {clusterIP: None, selector: {app: names}, ports: [{port: 80}]}
---
apiVersion: v1
kind: Pod
metadata: {name: names, labels: {app: names}}
spec:
  hostname: busybox-1
  subdomain: sub
  terminationGracePeriodSeconds: 0
  hostAliases: [{ip: 192.0.2.7, hostnames: [foo.local, bar.local]}]
  dnsConfig: {searches: [my.dns.search.suffix], options: [{name: ndots, value: "2"}, {name: edns0}]}
  containers: [{name: main, image: BUSYBOX, command: [sleep, "1000"]}]
---
apiVersion: v1
kind: Pod
metadata: {name: own-dns}
spec:
  dnsPolicy: None
  terminationGracePeriodSeconds: 0
  dnsConfig: {nameservers: [192.0.2.1], searches: [ns1.svc.cluster-domain.example]}
  containers: [{name: main, image: BUSYBOX, command: [sleep, "1000"]}]
"#,
    );
    room.wait("pod/names", "condition=Ready");
    room.wait("pod/own-dns", "condition=Ready");
    let read = |pod: &str, file: &str| room.kubectl(&["exec", pod, "--", "cat", file]);
    let address = room.field("pod/names", "{.status.podIP}");
    let hosts = read("names", "/etc/hosts");
    let own = format!("{address}\tbusybox-1.sub.names.svc.cluster.local\tbusybox-1");
    assert!(hosts.contains(&own) && hosts.contains("192.0.2.7\tfoo.local\tbar.local"), "{hosts}");
    let resolv = read("names", "/etc/resolv.conf");
    assert!(resolv.contains("search names.svc.cluster.local svc.cluster.local cluster.local"), "{resolv}");
    assert!(
        resolv.contains("my.dns.search.suffix") && resolv.contains("ndots:2") && resolv.contains("edns0"),
        "{resolv}"
    );
    let resolv = read("own-dns", "/etc/resolv.conf");
    assert!(resolv.contains("nameserver 192.0.2.1\n") && resolv.contains("ns1.svc.cluster-domain.example"), "{resolv}");
    assert_eq!(
        room.kubectl(&["exec", "names", "--", "hostname", "-f"]).trim(),
        "busybox-1.sub.names.svc.cluster.local"
    );
    let found = room.kubectl(&["exec", "names", "--", "nslookup", "busybox-1.sub.names.svc.cluster.local"]);
    assert!(found.contains(&address), "{found}");
}

#[test]
fn deadlines_host_ports_and_the_hosts_network() {
    let Some(room) = Room::enter("hosts") else { return };
    let (port, own) = (crate::harness::free_port(), crate::harness::free_port());
    room.apply(
        &r#"
apiVersion: v1
kind: Pod
metadata: {name: late}
spec:
  activeDeadlineSeconds: 2
  terminationGracePeriodSeconds: 1
  containers: [{name: main, image: BUSYBOX, command: [sleep, "1000"]}]
---
apiVersion: v1
kind: Pod
metadata: {name: ported}
spec:
  containers: [{name: main, image: BUSYBOX, command: [httpd, -f, -p, "8080", -h, /www], ports: [{containerPort: 8080, hostPort: PORT}]}]
---
apiVersion: v1
kind: Pod
metadata: {name: hosted}
spec:
  hostNetwork: true
  containers: [{name: main, image: BUSYBOX, command: [httpd, -f, -p, "127.0.0.1:OWN", -h, /www], ports: [{containerPort: OWN}]}]
"#
        .replace("PORT", &port.to_string())
        .replace("OWN", &own.to_string()),
    );
    room.wait("pod/ported", "condition=Ready");
    room.wait("pod/hosted", "condition=Ready");
    for port in [port, own] {
        let reply = until("the host answers", || {
            request(SocketAddr::from(([127, 0, 0, 1], port)), "host", "/").ok().filter(|reply| reply.status == 200)
        });
        assert_eq!(reply.body, "hello from busybox\n");
    }
    let status = room.get("pod/hosted")["status"].clone();
    assert_eq!(status["podIP"], status["hostIP"]);
    // the reason is told at once, the end when the containers have ended
    room.wait("pod/late", "jsonpath={.status.phase}=Failed");
    assert_eq!(room.field("pod/late", "{.status.reason}"), "DeadlineExceeded");
}

/// Whether this machine's root has what a privileged container is given.
fn may_be_privileged() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let caps = status.lines().find_map(|line| line.strip_prefix("CapBnd:")).unwrap();
    let caps = u64::from_str_radix(caps.trim(), 16).unwrap();
    let last: u32 = std::fs::read_to_string("/proc/sys/kernel/cap_last_cap").unwrap().trim().parse().unwrap();
    caps.count_ones() == last + 1
}

/// The Docker id of a pod's first container.
pub fn container_id(room: &crate::harness::User, pod: &str) -> String {
    let id = room.field(&format!("pod/{pod}"), "{.status.containerStatuses[0].containerID}");
    id.strip_prefix("docker://").unwrap_or_else(|| panic!("no container of Docker: {id}")).to_owned()
}

/// What Docker knows of a container.
pub fn inspect(id: &str) -> Value {
    let all: Value = serde_json::from_str(&docker(&["inspect", id])).unwrap();
    all[0].clone()
}
