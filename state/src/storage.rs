//! What claims, volumes and classes are to each other: read by the binder, the scheduler, a node's slice and the node alike.
//!
//! Pure questions about typed objects. Deliberately absent: deciding (`controllers::volume`, `scheduler`), disks (`agent`).

use crate::{Key, World, selects};
use k8s_openapi::api::core::v1::{
    Node, NodeSelectorRequirement, NodeSelectorTerm, PersistentVolume, PersistentVolumeClaim, Pod, PodSpec,
};
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use std::collections::BTreeMap;

/// The provisioner every node has: a directory of its own.
pub const LOCAL_PATH: &str = "coracle.dev/local-path";
/// Annotation of a Node: the directory in which its [`LOCAL_PATH`] volumes lie.
pub const STORAGE_PATH: &str = "coracle.dev/storage-path";
/// Annotation of a claim: the node for which a volume is to be made.
pub const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
/// Annotation of a volume: who made it.
pub const PROVISIONED_BY: &str = "pv.kubernetes.io/provisioned-by";
/// Finalizer of a volume that is bound.
pub const VOLUME_PROTECTION: &str = "kubernetes.io/pv-protection";
/// Finalizer of a claim that a pod uses.
pub const CLAIM_PROTECTION: &str = "kubernetes.io/pvc-protection";
/// Access mode of a claim that one pod of the cluster may use.
pub const SINGLE_POD: &str = "ReadWriteOncePod";
/// Annotations of the class of claims that name none.
const DEFAULT_CLASS: [&str; 2] =
    ["storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class"];
/// Label by which a volume says on which node it lies.
const HOSTNAME: &str = "kubernetes.io/hostname";

/// A claim that a pod uses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClaimUse {
    /// Name of the pod's volume.
    pub volume: String,
    /// Name of the claim.
    pub claim: String,
    /// Whether the claim is made for the pod.
    pub is_ephemeral: bool,
    /// Whether the pod may not write.
    pub read_only: bool,
}

/// The claims that a pod of this name uses.
pub fn claims(pod: &str, spec: &PodSpec) -> Vec<ClaimUse> {
    let of = |volume: &k8s_openapi::api::core::v1::Volume| {
        let name = volume.name.clone();
        if let Some(source) = &volume.persistent_volume_claim {
            let (claim, read_only) = (source.claim_name.clone(), source.read_only == Some(true));
            return Some(ClaimUse { volume: name, claim, is_ephemeral: false, read_only });
        }
        volume.ephemeral.as_ref()?;
        let claim = format!("{pod}-{name}");
        Some(ClaimUse { volume: name, claim, is_ephemeral: true, read_only: false })
    };
    spec.volumes.iter().flatten().filter_map(of).collect()
}

/// The keys of the claims that a pod uses.
pub fn claim_keys(pod: &Pod) -> Vec<Key> {
    let (Some(name), Some(spec)) = (&pod.metadata.name, &pod.spec) else { return Vec::new() };
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    claims(name, spec).iter().map(|used| Key::of::<PersistentVolumeClaim>(namespace, &used.claim)).collect()
}

/// The class of a claim; `None` when it names none, empty when it wants none.
pub fn class_of_claim(claim: &PersistentVolumeClaim) -> Option<&str> {
    let old = claim.metadata.annotations.as_ref().and_then(|all| all.get("volume.beta.kubernetes.io/storage-class"));
    old.map(String::as_str).or_else(|| claim.spec.as_ref()?.storage_class_name.as_deref())
}

/// The class of a volume; empty when it has none.
pub fn class_of_volume(volume: &PersistentVolume) -> &str {
    let old = volume.metadata.annotations.as_ref().and_then(|all| all.get("volume.beta.kubernetes.io/storage-class"));
    old.map(String::as_str).or_else(|| volume.spec.as_ref()?.storage_class_name.as_deref()).unwrap_or_default()
}

/// The class of claims that name none: of several, the youngest.
pub fn default_class(world: &World) -> Option<&str> {
    let is_default = |class: &&std::sync::Arc<crate::Object>| {
        DEFAULT_CLASS.iter().any(|name| class.meta().annotations.get(*name).is_some_and(|value| value == "true"))
    };
    let classes = world.all::<StorageClass>(None).filter(is_default);
    let best = classes.max_by_key(|class| (class.meta().creation_timestamp, std::cmp::Reverse(&class.meta().name)));
    best.map(|class| class.meta().name.as_str())
}

/// Whether a class binds its claims only when a pod needs them.
pub fn waits_for_consumer(class: &StorageClass) -> bool {
    class.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer")
}

/// An annotation of a claim or a volume.
pub fn annotation<'a>(annotations: Option<&'a BTreeMap<String, String>>, name: &str) -> Option<&'a str> {
    annotations?.get(name).map(String::as_str).filter(|value| !value.is_empty())
}

/// The name of the volume a claim is bound to or asks for.
pub fn volume_name(claim: &PersistentVolumeClaim) -> Option<&str> {
    claim.spec.as_ref()?.volume_name.as_deref().filter(|name| !name.is_empty())
}

/// Whether a claim is bound.
pub fn is_bound(claim: &PersistentVolumeClaim) -> bool {
    let phase = claim.status.as_ref().and_then(|status| status.phase.as_deref());
    phase == Some("Bound") && volume_name(claim).is_some()
}

/// Whether a volume is reserved for, or bound to, this claim.
pub fn belongs(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let Some(reference) = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref()) else { return false };
    reference.name == claim.metadata.name
        && reference.namespace == claim.metadata.namespace
        && reference.uid.as_deref().is_none_or(|uid| uid.is_empty() || Some(uid) == claim.metadata.uid.as_deref())
}

/// What a volume holds, or a claim wants, in bytes.
fn bytes(amounts: Option<&BTreeMap<String, Quantity>>) -> i128 {
    amounts.and_then(|amounts| amounts.get("storage")).and_then(manifests::quantity::bytes).unwrap_or(0)
}

/// What a volume holds, in bytes.
pub fn capacity(volume: &PersistentVolume) -> i128 {
    bytes(volume.spec.as_ref().and_then(|spec| spec.capacity.as_ref()))
}

/// What a claim wants, in bytes.
pub fn request(claim: &PersistentVolumeClaim) -> i128 {
    bytes(claim.spec.as_ref().and_then(|spec| spec.resources.as_ref()?.requests.as_ref()))
}

/// Whether a volume is large enough for a claim, and of its kind.
pub fn is_large_enough(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let filesystem = "Filesystem".to_owned();
    let wanted = claim.spec.as_ref().and_then(|spec| spec.volume_mode.as_ref()).unwrap_or(&filesystem);
    let mode = volume.spec.as_ref().and_then(|spec| spec.volume_mode.as_ref()).unwrap_or(&filesystem);
    capacity(volume) >= request(claim) && wanted == mode
}

/// Whether a volume that nobody has would do for a claim.
pub fn suits(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let (Some(spec), Some(wanted)) = (&volume.spec, &claim.spec) else { return false };
    let empty = BTreeMap::new();
    let labels = volume.metadata.labels.as_ref().unwrap_or(&empty);
    let modes = spec.access_modes.as_deref().unwrap_or_default();
    let is_free = volume.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Available");
    volume.metadata.deletion_timestamp.is_none()
        && spec.claim_ref.is_none()
        && is_free
        && is_large_enough(volume, claim)
        && class_of_volume(volume) == class_of_claim(claim).unwrap_or_default()
        && wanted.access_modes.iter().flatten().all(|mode| modes.contains(mode))
        && wanted.selector.as_ref().is_none_or(|selector| selects(selector, labels))
}

/// The smallest volume that suits a claim, among those of which `more` is true; one that is reserved for the claim goes
/// before all others.
pub fn best<'w>(
    world: &'w World,
    claim: &PersistentVolumeClaim,
    more: impl Fn(&PersistentVolume) -> bool,
) -> Option<&'w PersistentVolume> {
    let volumes = || {
        let all = world.all::<PersistentVolume>(None).filter_map(|object| object.view::<PersistentVolume>());
        all.filter(|volume| volume.metadata.deletion_timestamp.is_none()).filter(|volume| more(volume))
    };
    let reserved = volumes().find(|volume| belongs(volume, claim) && is_large_enough(volume, claim));
    reserved.or_else(|| {
        let suiting = volumes().filter(|volume| suits(volume, claim));
        suiting.min_by_key(|volume| (capacity(volume), volume.metadata.name.clone()))
    })
}

/// Whether a volume can be used on a node.
pub fn reaches(volume: &PersistentVolume, node: &Node) -> bool {
    let affinity = volume.spec.as_ref().and_then(|spec| spec.node_affinity.as_ref());
    let required = affinity.and_then(|affinity| affinity.required.as_ref());
    required.is_none_or(|required| required.node_selector_terms.iter().any(|term| term_matches(term, node)))
}

/// Whether a volume's files are a directory that this node made for it.
pub fn lives_on(volume: &PersistentVolume, node: &str) -> bool {
    let Some(spec) = &volume.spec else { return false };
    let required = spec.node_affinity.as_ref().and_then(|affinity| affinity.required.as_ref());
    let here = |term: &NodeSelectorRequirement| {
        term.key == HOSTNAME && term.operator == "In" && term.values.iter().flatten().any(|value| value == node)
    };
    let terms = required.map(|required| required.node_selector_terms.as_slice()).unwrap_or_default();
    spec.local.is_some()
        && annotation(volume.metadata.annotations.as_ref(), PROVISIONED_BY) == Some(LOCAL_PATH)
        && terms.iter().any(|term| term.match_expressions.iter().flatten().any(here))
}

/// Whether a node is what a term describes. A term that describes nothing matches nothing.
pub fn term_matches(term: &NodeSelectorTerm, node: &Node) -> bool {
    let labels = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    let label = |key: &str| node.metadata.labels.as_ref().and_then(|labels| labels.get(key)).map(String::as_str);
    let field = |key: &str| if key == "metadata.name" { node.metadata.name.as_deref() } else { None };
    !(labels.is_empty() && fields.is_empty())
        && labels.iter().all(|term| holds(term, label(&term.key)))
        && fields.iter().all(|term| holds(term, field(&term.key)))
}

fn holds(term: &NodeSelectorRequirement, own: Option<&str>) -> bool {
    let values = term.values.as_deref().unwrap_or_default();
    let among = |own: &str| values.iter().any(|value| value == own);
    let numbers = || Some((own?.parse::<i64>().ok()?, values.first()?.parse::<i64>().ok()?));
    match term.operator.as_str() {
        "In" => own.is_some_and(among),
        "NotIn" => !own.is_some_and(among),
        "Exists" => own.is_some(),
        "DoesNotExist" => own.is_none(),
        "Gt" => numbers().is_some_and(|(own, value)| own > value),
        "Lt" => numbers().is_some_and(|(own, value)| own < value),
        _ => false,
    }
}
