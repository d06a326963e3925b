//! Ephemeral containers for `kubectl debug`, and live usage for `kubectl top`.

use crate::harness::{Busybox, Room, kubectls, until};

#[test]
fn debug_puts_a_busybox_into_the_pods_namespaces() {
    let Some(room) = Room::enter("debug") else { return };
    room.apply(
        r#"
apiVersion: v1
kind: Pod
metadata: {name: target}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - {name: wasm, image: PROBE, args: [http, "8000"]}
  - {name: busybox, image: BUSYBOX, command: [httpd, -f, -p, "8080", -h, /www]}
"#,
    );
    room.wait("pod/target", "condition=Ready");
    let image = format!("--image={}", Busybox::image());
    for (number, client) in kubectls().iter().enumerate() {
        let name = format!("debugger-{number}");
        let line = "wget -qO- http://localhost:8000/debug; wget -qO- http://localhost:8080/; ps; sleep 1";
        let arguments = ["debug", "target", "-i", &image, "--target=busybox", "-c", &name, "--", "sh", "-c", line];
        let output = room.client(client, &arguments, b"\n");
        let log = room.kubectl(&["logs", "target", "-c", &name]);
        assert!(log.contains("wasm answers /debug\nhello from busybox\n"), "{log}\n{output:?}");
        assert!(log.contains("httpd -f"), "the target's processes are seen: {log}");
        let state = format!("{{.status.ephemeralContainerStatuses[?(@.name==\"{name}\")].state.terminated.exitCode}}");
        room.until_field("pod/target", &state, "0");
    }
    assert_eq!(room.field("pod/target", "{.status.containerStatuses[*].restartCount}"), "0 0");
    assert_eq!(room.field("pod/target", "{.status.phase}"), "Running");
}

#[test]
fn top_tells_what_both_kinds_use() {
    let Some(room) = Room::enter("top") else { return };
    room.apply(
        r#"
apiVersion: v1
kind: Pod
metadata: {name: spinners}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - {name: wasm, image: PROBE, args: [spin]}
  - {name: busybox, image: BUSYBOX, command: [sh, -c, "while true; do :; done"]}
---
apiVersion: v1
kind: Pod
metadata: {name: idle}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{name: wasm, image: PROBE, args: [sleep]}]
"#,
    );
    room.wait("pod/spinners", "condition=Ready");
    room.wait("pod/idle", "condition=Ready");
    for client in &kubectls() {
        let cells = until("both have been measured", || {
            let output = room.client(client, &["top", "pod", "--containers", "--no-headers"], b"");
            let text = String::from_utf8(output.stdout).unwrap();
            let rows: Vec<Vec<String>> =
                text.lines().map(|line| line.split_whitespace().map(str::to_owned).collect()).collect();
            let millis = |pod: &str, container: &str| -> Option<u64> {
                let row = rows.iter().find(|row| row[0] == pod && row[1] == container)?;
                row[2].strip_suffix('m')?.parse().ok()
            };
            let cells = (millis("spinners", "wasm")?, millis("spinners", "busybox")?, millis("idle", "wasm")?);
            (cells.0 > 50 && cells.1 > 50).then_some(cells)
        });
        // how much each got is the machine's business: it is busy with other tests
        assert!(cells.2 < cells.0.min(cells.1), "the idle one is idle: {cells:?}");
        let output = room.client(client, &["top", "node"], b"");
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.contains("node") && text.contains('%'), "{text}");
    }
    assert!(room.coracle(&["top", "pod"]).contains("spinners"));
}
