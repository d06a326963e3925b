//! Volumes, the same for both kinds of container: what is in them, how they change, who may do what, and what stays.

use crate::harness::{Room, until};

#[test]
fn config_maps_secrets_and_labels_follow_their_objects() {
    let Some(room) = Room::enter("projected") else { return };
    room.kubectl(&["create", "configmap", "log-config", "--from-literal=log_level=INFO", "--from-literal=other=x"]);
    room.kubectl(&["create", "secret", "generic", "mysecret", "--from-literal=username=admin"]);
    room.apply(
        r#"
apiVersion: v1
kind: Pod
metadata: {name: both, labels: {zone: east}}
spec:
  terminationGracePeriodSeconds: 0
  volumes:
  - {name: config, configMap: {name: log-config, items: [{key: log_level, path: sub/level}]}}
  - {name: secret, secret: {secretName: mysecret, defaultMode: 0400}}
  - name: all
    projected:
      sources:
      - {configMap: {name: log-config}}
      - {secret: {name: mysecret, items: [{key: username, path: my-group/my-username, mode: 511}]}}
      - downwardAPI: {items: [{path: labels, fieldRef: {fieldPath: metadata.labels}}]}
  containers:
  - name: busybox
    image: BUSYBOX
    command: [sleep, "1000"]
    volumeMounts: &mounts
    - {name: config, mountPath: /etc/config}
    - {name: secret, mountPath: /etc/secret, readOnly: true}
    - {name: all, mountPath: /all}
  - {name: wasm, image: PROBE, args: [sleep], volumeMounts: *mounts}
"#,
    );
    room.wait("pod/both", "condition=Ready");
    let busybox = |line: &str| room.try_kubectl(&["exec", "both", "-c", "busybox", "--", "sh", "-c", line]);
    let wasm = |file: &str| room.try_kubectl(&["exec", "both", "-c", "wasm", "--", "probe", "cat", file]);
    for (file, text) in [
        ("/etc/config/sub/level", "INFO"),
        ("/etc/secret/username", "admin"),
        ("/all/log_level", "INFO"),
        ("/all/my-group/my-username", "admin"),
        ("/all/labels", "zone=\"east\""),
    ] {
        assert_eq!(busybox(&format!("cat {file}")).trim_end(), text, "{file}");
        assert_eq!(wasm(file).trim_end(), text, "{file}");
    }
    assert_eq!(busybox("stat -Lc %a /etc/secret/username /all/my-group/my-username"), "400\n777\n");
    assert!(busybox("readlink /etc/config/sub").contains("..data/sub"));

    room.kubectl(&["patch", "configmap", "log-config", "-p", r#"{"data":{"log_level":"DEBUG"}}"#]);
    room.kubectl(&["patch", "secret", "mysecret", "-p", r#"{"stringData":{"username":"root"}}"#]);
    room.kubectl(&["label", "pod", "both", "zone=west", "--overwrite"]);
    for (file, text) in
        [("/etc/config/sub/level", "DEBUG"), ("/etc/secret/username", "root"), ("/all/labels", "zone=\"west\"")]
    {
        until("busybox sees the change", || (busybox(&format!("cat {file}")).trim_end() == text).then_some(()));
        until("Wasm sees the change", || (wasm(file).trim_end() == text).then_some(()));
    }
    assert_eq!(room.field("pod/both", "{.status.containerStatuses[*].restartCount}"), "0 0");
}

#[test]
fn empty_dirs_in_memory_and_with_a_limit() {
    let Some(room) = Room::enter("empty") else { return };
    room.apply(
        r#"
apiVersion: v1
kind: Pod
metadata: {name: memory}
spec:
  restartPolicy: Never
  volumes: [{name: cache, emptyDir: {medium: Memory, sizeLimit: 8Mi}}]
  containers:
  - name: main
    image: BUSYBOX
    command: [sh, -c, "mount | grep /cache; dd if=/dev/zero of=/cache/big bs=1M count=16 2>&1; echo end"]
    volumeMounts: [{name: cache, mountPath: /cache}]
---
apiVersion: v1
kind: Pod
metadata: {name: over}
spec:
  terminationGracePeriodSeconds: 0
  volumes: [{name: cache, emptyDir: {sizeLimit: 1Mi}}]
  containers:
  - name: main
    image: BUSYBOX
    command: [sh, -c, "dd if=/dev/zero of=/cache/big bs=1M count=16; sleep 1000"]
    volumeMounts: [{name: cache, mountPath: /cache}]
"#,
    );
    room.wait("pod/memory", "jsonpath={.status.phase}=Succeeded");
    let log = room.kubectl(&["logs", "memory"]);
    assert!(log.contains("tmpfs on /cache") && log.contains("No space left on device"), "{log}");
    room.wait("pod/over", "jsonpath={.status.reason}=Evicted");
    assert!(room.field("pod/over", "{.status.message}").contains("exceeds the limit \"1Mi\""));
}

#[test]
fn host_paths_are_what_they_are_said_to_be() {
    let Some(room) = Room::enter("host-path") else { return };
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("file"), "on the host\n").unwrap();
    let host = dir.path().to_str().unwrap();
    let pod = |name: &str, path: &str, kind: &str, command: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  restartPolicy: Never\n  \
             volumes: [{{name: host, hostPath: {{path: {host}/{path}, type: {kind}}}}}]\n  containers:\n  \
             - {{name: main, image: BUSYBOX, command: [sh, -c, \"{command}\"], volumeMounts: [{{name: host, mountPath: /host}}]}}\n---\n"
        )
    };
    room.apply(&format!(
        "{}{}{}{}",
        pod("directory", "", "Directory", "cat /host/file; echo back > /host/reply"),
        pod("made", "new", "DirectoryOrCreate", "stat -c %F /host"),
        pod("single", "file", "File", "cat /host"),
        pod("wrong", "file", "Directory", "true")
    ));
    for (name, said) in [("directory", "on the host\n"), ("made", "directory\n"), ("single", "on the host\n")] {
        room.wait(&format!("pod/{name}"), "jsonpath={.status.phase}=Succeeded");
        assert_eq!(room.kubectl(&["logs", name]), said);
    }
    assert_eq!(std::fs::read_to_string(dir.path().join("reply")).unwrap(), "back\n");
    room.until_event("pod/wrong", "hostPath type check failed");
}

#[test]
fn sub_paths_and_read_only_hold_for_both_kinds() {
    let Some(room) = Room::enter("sub-path") else { return };
    room.apply(
        r#"
apiVersion: v1
kind: Pod
metadata: {name: sub}
spec:
  terminationGracePeriodSeconds: 0
  volumes: [{name: data, emptyDir: {}}]
  initContainers:
  - {name: fill, image: BUSYBOX, command: [sh, -c, "mkdir -p /d/one /d/sub; echo 1 > /d/one/file; echo secret > /d/other; ln -s ../other /d/one/up"], volumeMounts: [{name: data, mountPath: /d}]}
  containers:
  - name: busybox
    image: BUSYBOX
    command: [sleep, "1000"]
    env: &env [{name: POD_NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}]
    volumeMounts: &mounts
    - {name: data, mountPath: /one, subPath: one}
    - {name: data, mountPath: /named, subPathExpr: $(POD_NAME)}
    - {name: data, mountPath: /fixed, readOnly: true}
  - {name: wasm, image: PROBE, args: [sleep], env: *env, volumeMounts: *mounts}
---
apiVersion: v1
kind: Pod
metadata: {name: leaves}
spec:
  volumes: [{name: data, emptyDir: {}}]
  initContainers:
  - {name: fill, image: BUSYBOX, command: [ln, -s, /, /d/root], volumeMounts: [{name: data, mountPath: /d}]}
  containers:
  - {name: main, image: BUSYBOX, command: [sleep, "1000"], volumeMounts: [{name: data, mountPath: /out, subPath: root/etc}]}
"#,
    );
    room.wait("pod/sub", "condition=Ready");
    let busybox = |line: &str| room.kubectl_output(&["exec", "sub", "-c", "busybox", "--", "sh", "-c", line]);
    let wasm =
        |arguments: &[&str]| room.kubectl_output(&[&["exec", "sub", "-c", "wasm", "--", "probe"], arguments].concat());
    assert_eq!(busybox("cat /one/file").stdout, b"1\n");
    assert_eq!(wasm(&["cat", "/one/file"]).stdout, b"1\n");
    assert!(wasm(&["write", "/named/mark", "wasm was here"]).status.success());
    assert_eq!(busybox("cat /fixed/sub/mark").stdout, b"wasm was here");
    assert!(!busybox("echo x > /fixed/x").status.success());
    assert!(!wasm(&["write", "/fixed/x", "x"]).status.success());
    assert_eq!(wasm(&["list", "/fixed"]).stdout, b"[\"one\", \"other\", \"sub\"]\n");
    // a Wasm guest leaves its directory by no path and no symlink
    for way in ["/one/../../etc/passwd", "/one/up", "/../etc/passwd", "/etc/passwd", "/one/../other"] {
        let output = wasm(&["cat", way]);
        assert!(!output.status.success() && output.stdout.is_empty(), "{way}: {output:?}");
    }
    let waiting = "{.status.containerStatuses[0].state.waiting.reason}";
    room.until_field("pod/leaves", waiting, "CreateContainerConfigError");
}

#[test]
fn a_claim_gets_its_volume_when_used_and_keeps_it() {
    let Some(room) = Room::enter("claims") else { return };
    let claim = r#"
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: task-pv-claim}
spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 16Mi}}}
---
"#;
    let pod = |name: &str, image: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  restartPolicy: Never\n  \
             volumes: [{{name: store, persistentVolumeClaim: {{claimName: task-pv-claim}}}}]\n  containers:\n  \
             - {{name: main, {image}, volumeMounts: [{{name: store, mountPath: /data}}]}}\n"
        )
    };
    room.apply(claim);
    room.until_event("pvc/task-pv-claim", "WaitForFirstConsumer");
    assert_eq!(room.field("pvc/task-pv-claim", "{.status.phase}"), "Pending");
    room.apply(&pod("writer", "image: BUSYBOX, command: [sh, -c, \"echo kept > /data/file\"]"));
    room.wait("pod/writer", "jsonpath={.status.phase}=Succeeded");
    assert_eq!(room.field("pvc/task-pv-claim", "{.status.phase}"), "Bound");
    let volume = room.field("pvc/task-pv-claim", "{.spec.volumeName}");
    assert_eq!(room.field(&format!("pv/{volume}"), "{.spec.persistentVolumeReclaimPolicy}"), "Delete");
    // in use by a pod that has ended: the claim waits for the pod's deletion
    room.kubectl(&["delete", "pod", "writer"]);
    room.apply(&pod("reader", "image: PROBE, args: [cat, /data/file]"));
    room.wait("pod/reader", "jsonpath={.status.phase}=Succeeded");
    assert_eq!(room.kubectl(&["logs", "reader"]), "kept\n");
    // grown while nobody minds
    let larger = r#"{"spec":{"resources":{"requests":{"storage":"32Mi"}}}}"#;
    room.kubectl(&["patch", "pvc", "task-pv-claim", "-p", larger]);
    room.until_field("pvc/task-pv-claim", "{.status.capacity.storage}", "32Mi");
    room.kubectl(&["delete", "pod", "reader"]);
    room.kubectl(&["delete", "pvc", "task-pv-claim"]);
    until("the volume goes with its claim", || {
        room.field(&format!("pv/{volume}"), "{.metadata.name}").is_empty().then_some(())
    });
    let mut find = std::process::Command::new("find");
    find.arg(room.server().data_dir()).args(["-name", &format!("*{volume}*")]);
    until("and its files too", || find.output().unwrap().stdout.is_empty().then_some(()));
}

#[test]
fn a_volume_of_the_administrator_is_bound_and_retained() {
    let Some(room) = Room::enter("static") else { return };
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("index.html"), "Hello from Kubernetes storage\n").unwrap();
    room.apply(
        &r#"
apiVersion: v1
kind: PersistentVolume
metadata: {name: task-pv-volume}
spec:
  storageClassName: manual
  capacity: {storage: 10Gi}
  accessModes: [ReadWriteOnce]
  hostPath: {path: HOST}
---
apiVersion: v1
kind: PersistentVolume
metadata: {name: local-volume}
spec:
  storageClassName: by-hand
  capacity: {storage: 1Gi}
  accessModes: [ReadWriteOnce]
  local: {path: HOST}
  nodeAffinity: {required: {nodeSelectorTerms: [{matchExpressions: [{key: kubernetes.io/hostname, operator: In, values: [node]}]}]}}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: by-class}
spec: {storageClassName: manual, accessModes: [ReadWriteOnce], resources: {requests: {storage: 3Gi}}}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: by-name}
spec: {storageClassName: by-hand, volumeName: local-volume, accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}
---
apiVersion: v1
kind: Pod
metadata: {name: task-pv-pod}
spec:
  restartPolicy: Never
  volumes:
  - {name: a, persistentVolumeClaim: {claimName: by-class}}
  - {name: b, persistentVolumeClaim: {claimName: by-name, readOnly: true}}
  containers:
  - {name: main, image: BUSYBOX, command: [sh, -c, "cat /a/index.html /b/index.html; touch /b/x 2>&1; echo end"], volumeMounts: [{name: a, mountPath: /a}, {name: b, mountPath: /b}]}
"#
        .replace("HOST", dir.path().to_str().unwrap()),
    );
    room.wait("pod/task-pv-pod", "jsonpath={.status.phase}=Succeeded");
    let hello = "Hello from Kubernetes storage\n";
    let log = room.kubectl(&["logs", "task-pv-pod"]);
    assert!(log.starts_with(&format!("{hello}{hello}")) && log.contains("Read-only file system"), "{log}");
    room.kubectl(&["delete", "pod", "task-pv-pod"]);
    room.kubectl(&["delete", "pvc", "--all"]);
    room.until_field("pv/task-pv-volume", "{.status.phase}", "Released");
    assert!(dir.path().join("index.html").exists());
    room.kubectl(&["delete", "pv", "task-pv-volume", "local-volume"]);
    assert!(dir.path().join("index.html").exists());
    // the cluster's default class is there for whoever names none
    let default = room.kubectl(&["get", "storageclass", "-o", "wide"]);
    assert!(default.contains("(default)") && default.contains("WaitForFirstConsumer"), "{default}");
}
