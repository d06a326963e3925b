//! Generic ephemeral volumes: a claim per pod and volume, made from the pod's own template and gone with the pod.

use super::tell_once;
use crate::{Controller, Cx, Outcome, ownership};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use serde_json::json;
use state::record::Note;
use state::storage::claims;
use state::{Change, Event, Key, Object, World, Write};

const NAME: &str = "ephemeral-volume-controller";

/// The controller. Its keys are pods.
pub struct EphemeralClaims;

impl Controller for EphemeralClaims {
    fn name(&self) -> &'static str {
        NAME
    }

    fn wakes(&self, event: &Event, _world: &World) -> Vec<Key> {
        if event.key().is::<PersistentVolumeClaim>() && event.change == Change::Deleted {
            return ownership::controllers_of::<Pod>(event);
        }
        let spec = event.object.view::<Pod>().filter(|_| event.key().is::<Pod>()).and_then(|pod| pod.spec.as_ref());
        let has = spec.is_some_and(|spec| spec.volumes.iter().flatten().any(|volume| volume.ephemeral.is_some()));
        if has && event.change != Change::Deleted { vec![event.key().clone()] } else { Vec::new() }
    }

    fn reconcile(&self, cx: &mut Cx<'_>, key: &Key) -> Outcome {
        let alive = |pod: &&std::sync::Arc<Object>| !pod.is_deleting() && !crate::pods::is_finished(pod);
        let Some(pod) = cx.world.get(key).filter(alive).cloned() else { return Outcome::default() };
        let Some(spec) = pod.view::<Pod>().and_then(|pod| pod.spec.as_ref()) else { return Outcome::default() };
        let wanted = claims(&pod.meta().name, spec).into_iter().filter(|used| used.is_ephemeral);
        let writes = wanted.filter_map(|used| {
            let name = Key::of::<PersistentVolumeClaim>(&key.namespace, &used.claim);
            match cx.world.get(&name) {
                Some(claim) if claim.controller().is_some_and(|owner| owner.uid == pod.meta().uid) => None,
                Some(_) => {
                    let message = format!(
                        "PVC \"{}/{}\" was not created for pod \"{}/{}\" (pod is not owner)",
                        key.namespace, used.claim, key.namespace, key.name
                    );
                    tell_once(cx.world, &mut cx.stamp, &pod, &Note::warning(NAME, "FailedBinding", &message))
                }
                None => make(cx, &pod, &used.volume, name),
            }
        });
        Outcome { writes: writes.collect(), again_at: None }
    }
}

fn make(cx: &mut Cx<'_>, pod: &Object, volume: &str, key: Key) -> Option<Write> {
    let value = pod.value();
    let volumes = value["spec"]["volumes"].as_array()?;
    let template = &volumes.iter().find(|own| own["name"] == volume)?["ephemeral"]["volumeClaimTemplate"];
    let mut claim = json!({
        "apiVersion": "v1", "kind": "PersistentVolumeClaim",
        "metadata": {
            "name": &*key.name, "namespace": &*key.namespace, "ownerReferences": [ownership::reference::<Pod>(pod)],
        },
        "spec": template["spec"],
    });
    for field in ["labels", "annotations"] {
        if template["metadata"][field].is_object() {
            claim["metadata"][field] = template["metadata"][field].clone();
        }
    }
    let kind = manifests::by_kind("v1", "PersistentVolumeClaim")?;
    (kind.default)(&mut claim);
    cx.stamp.complete(&mut claim, kind.counts_generation);
    Some(Write::create(key, claim))
}
