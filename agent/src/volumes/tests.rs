//! Whole pods' volumes in directories of their own: worlds in, files and refusals out.

use super::emptydir::Measured;
use super::*;
use crate::fields::PodFacts;
use k8s_openapi::api::core::v1::Pod;
use serde_json::Value;
use state::{Object, Revision, World};
use std::os::unix::fs::{MetadataExt, PermissionsExt as _};
use std::sync::Arc;

/// A world of YAML documents.
fn world(yaml: &str) -> World {
    let mut world = World::default();
    for (number, document) in yaml.split("---\n").enumerate() {
        let mut value: Value = serde_yaml::from_str(document).unwrap();
        let text = |field: &str| value[field].as_str().unwrap().to_owned();
        let resource = manifests::by_kind(&text("apiVersion"), &text("kind")).unwrap().resource();
        if value["metadata"]["uid"].is_null() {
            value["metadata"]["uid"] = format!("uid-{number}").into();
        }
        world.put(Arc::new(Object::encode(resource, Revision(number as u64 + 1), value).unwrap()));
    }
    world
}

/// Lays the volumes of the pod `p` of a world in `root/pods/uid`.
fn lay_pod(root: &Path, world: &World) -> Result<Volumes, String> {
    let object = world.get(&state::Key::of::<Pod>("n", "p")).unwrap();
    let pod = object.view::<Pod>().unwrap();
    let facts = PodFacts { pod_ip: String::new(), host_ip: String::new(), allocatable: BTreeMap::new() };
    let source = Source { pod, namespace: "n", world, facts: &facts };
    let laid = lay(&root.join("pods/uid"), pod.spec.as_ref().unwrap(), source, Timestamp::now());
    laid.map_err(|(volume, error)| error.event(&volume))
}

fn pod(volumes: &str, more: &str) -> String {
    format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: p, namespace: n, uid: uid}}, spec: {{nodeName: a, automountServiceAccountToken: \
         false, containers: []{more}, volumes: [{volumes}]}}}}\n"
    )
}

fn storage(root: &Path) -> String {
    let dir = storage_dir(root).display().to_string();
    format!(
        "---
{{apiVersion: v1, kind: Node, metadata: {{name: a, labels: {{kubernetes.io/hostname: a}}}}}}
---
{{apiVersion: v1, kind: PersistentVolumeClaim, metadata: {{name: bound, namespace: n}}, spec: {{volumeName: pv, accessModes: [ReadWriteOnce]}},
  status: {{phase: Bound}}}}
---
{{apiVersion: v1, kind: PersistentVolumeClaim, metadata: {{name: far, namespace: n}}, spec: {{volumeName: far, accessModes: [ReadWriteOnce]}},
  status: {{phase: Bound}}}}
---
{{apiVersion: v1, kind: PersistentVolumeClaim, metadata: {{name: pending, namespace: n}}, spec: {{}}, status: {{phase: Pending}}}}
---
{{apiVersion: v1, kind: PersistentVolume, metadata: {{name: pv, annotations: {{pv.kubernetes.io/provisioned-by: coracle.dev/local-path}}}},
  spec: {{local: {{path: {dir}/pv}}, claimRef: {{namespace: n, name: bound}}}}}}
---
{{apiVersion: v1, kind: PersistentVolume, metadata: {{name: far}}, spec: {{local: {{path: /x}}, claimRef: {{namespace: n, name: far}},
  nodeAffinity: {{required: {{nodeSelectorTerms: [{{matchExpressions: [{{key: kubernetes.io/hostname, operator: In, values: [b]}}]}}]}}}}}}}}
"
    )
}

#[test]
fn claims_are_used_or_waited_for_in_the_kubelets_words() {
    let root = tempfile::tempdir().unwrap();
    let volume = |claim: &str| format!("{{name: v, persistentVolumeClaim: {{claimName: {claim}}}}}");
    let answer = |volumes: &str| lay_pod(root.path(), &world(&(pod(volumes, "") + &storage(root.path()))));
    let laid = answer(&volume("bound")).unwrap();
    assert_eq!(laid["v"].path, storage_dir(root.path()).join("pv"));
    std::fs::write(laid["v"].path.join("file"), "kept").unwrap();
    let error = |volumes: &str| answer(volumes).unwrap_err();
    let waiting = "Unable to attach or mount volumes: unmounted volumes=[v], unattached volumes=[], failed to process volumes=[v]: \
                   error processing PVC n/";
    assert_eq!(error(&volume("pending")), format!("{waiting}pending: PVC is not bound"));
    assert_eq!(error(&volume("none")), format!("{waiting}none: persistentvolumeclaim \"none\" not found"));
    let elsewhere = "MountVolume.NodeAffinity check failed for volume \"far\" : no matching NodeSelectorTerms";
    assert_eq!(error(&volume("far")), elsewhere);
    assert!(error("{name: v, csi: {driver: x}}").contains("volumes of type csi are not supported by this node"));
    assert!(
        error("{name: v, emptyDir: {medium: HugePages}}").contains("storage medium \"HugePages\" is not supported")
    );
    let token = "{name: v, projected: {sources: [{serviceAccountToken: {path: token}}]}}";
    assert!(error(token).contains("projected source serviceAccountToken is not supported by this node"));
    let secret = "MountVolume.SetUp failed for volume \"v\" : secret \"s\" not found";
    assert_eq!(error("{name: v, secret: {secretName: s}}"), secret);
    teardown(&root.path().join("pods/uid")).unwrap();
    assert!(!root.path().join("pods/uid").exists());
    assert_eq!(std::fs::read_to_string(storage_dir(root.path()).join("pv/file")).unwrap(), "kept");
}

#[test]
fn memory_is_memory_and_a_limit_is_measured() {
    let root = tempfile::tempdir().unwrap();
    let volumes = "{name: m, emptyDir: {medium: Memory, sizeLimit: 1Mi}}, {name: d, emptyDir: {sizeLimit: 64Ki}}";
    let world = world(&pod(volumes, ""));
    let laid = lay_pod(root.path(), &world).unwrap();
    let again = lay_pod(root.path(), &world).unwrap();
    assert_eq!(laid, again);
    let magic = |path: &Path| rustix::fs::statfs(path).unwrap().f_type;
    assert_eq!(magic(&laid["m"].path), magic(Path::new("/dev/shm")));
    assert_eq!(std::fs::metadata(&laid["m"].path).unwrap().mode() & 0o777, 0o777);
    let spec = world.view::<Pod>("n", "p").unwrap().spec.clone().unwrap();
    assert_eq!(emptydir::measure(&spec, &laid), Measured::Within);
    std::fs::create_dir(laid["d"].path.join("sub")).unwrap();
    std::fs::write(laid["d"].path.join("sub/file"), [7; 100_000]).unwrap();
    let over = Measured::Over("Usage of EmptyDir volume \"d\" exceeds the limit \"64Ki\". ".into());
    assert_eq!(emptydir::measure(&spec, &laid), over);
    if mountpoints::may_mount() {
        assert!(std::fs::write(laid["m"].path.join("large"), vec![7; 2 << 20]).is_err(), "the kernel holds the limit");
    }
    teardown(&root.path().join("pods/uid")).unwrap();
    assert!(!laid["m"].path.exists());
    assert_eq!(mountpoints::below(root.path()).unwrap(), Vec::<PathBuf>::new());
    assert_eq!(emptydir::measure(&spec, &laid), Measured::Gone);
}

#[test]
fn a_group_may_read_what_is_projected_and_write_the_rest() {
    if !rustix::process::geteuid().is_root() {
        return println!("not run: needs root");
    }
    let root = tempfile::tempdir().unwrap();
    let volumes = "{name: e, emptyDir: {}}, {name: c, configMap: {name: c, defaultMode: 256}}, {name: v, persistentVolumeClaim: {claimName: bound}}";
    let config = "---\n{apiVersion: v1, kind: ConfigMap, metadata: {name: c, namespace: n}, data: {key: text}}\n";
    let text = pod(volumes, ", securityContext: {fsGroup: 2000}") + config + &storage(root.path());
    let laid = lay_pod(root.path(), &world(&text)).unwrap();
    let seen = |path: PathBuf| {
        let meta = std::fs::metadata(path).unwrap();
        (meta.gid(), meta.permissions().mode() & 0o7777)
    };
    assert_eq!(seen(laid["e"].path.clone()), (2000, 0o2777));
    assert_eq!(seen(laid["v"].path.clone()), (2000, 0o2777));
    assert_eq!(seen(laid["c"].path.join("key")), (2000, 0o440));
    let first = std::fs::read_link(laid["c"].path.join("..data")).unwrap();
    lay_pod(root.path(), &world(&text)).unwrap();
    assert_eq!(std::fs::read_link(laid["c"].path.join("..data")).unwrap(), first, "nothing was written again");
}
