//! Volumes of the built-in class whose claim is gone: their directory is removed, then their object goes.
//!
//! Driven by changes of the volumes' objects; what fails is told and tried again. A directory without an object is never
//! touched: it may be somebody's data. Deliberately absent: volumes of any other maker.

use super::{claims, remove};
use crate::body::Body;
use k8s_openapi::api::core::v1::PersistentVolume;
use state::storage::{self, LOCAL_PATH, VOLUME_PROTECTION};
use state::{Key, Object, Write, rfc3339};
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// First and longest delay between tries.
const RETRY: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(60);

/// What is to be done about a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Task {
    /// Remove the directory, then the object.
    Remove(PathBuf),
    /// The directory stays; the object may go.
    LetGo,
    /// The object names a directory that is not this node's to remove.
    Refuse(String),
}

/// What is to be done about a volume, if anything: it is this node's, released or to be deleted, and not bound. Pure.
fn task(object: &Object, node: &str, data_dir: &Path) -> Option<Task> {
    let volume = object.view::<PersistentVolume>().filter(|volume| storage::lives_on(volume, node))?;
    let spec = volume.spec.as_ref()?;
    let phase = volume.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default();
    let is_held = object.meta().finalizers.iter().any(|finalizer| finalizer == LOCAL_PATH);
    let deletes = spec.persistent_volume_reclaim_policy.as_deref() == Some("Delete");
    match (phase, object.is_deleting()) {
        ("Bound", _) => return None,
        ("Released", _) if deletes => {}
        (_, true) if is_held && deletes => {}
        (_, true) if is_held => return Some(Task::LetGo),
        _ => return None,
    }
    let named = spec.local.as_ref().map(|local| local.path.as_str()).unwrap_or_default();
    let own = claims::storage_dir(data_dir).join(&*object.key().name);
    if own != Path::new(named) {
        return Some(Task::Refuse(format!("{named:?} is not the directory of this volume on this node")));
    }
    Some(Task::Remove(own))
}

/// Volumes that are being looked after.
#[derive(Clone, Default)]
pub struct Reclaim {
    busy: Arc<Mutex<HashSet<String>>>,
}

impl Reclaim {
    /// Looks at a volume that has changed.
    pub fn look(&self, body: &Arc<Body>, object: &Arc<Object>) {
        let uid = object.meta().uid.clone();
        let due = task(object, &body.config.node_name, &body.config.data_dir).is_some();
        if !due || !self.begin(&uid) {
            return;
        }
        let (own, body, key) = (self.clone(), body.clone(), object.key().clone());
        tokio::spawn(async move {
            loop {
                reclaim(&body, &key).await;
                own.end(&uid);
                // a change that came just before the end was not looked at
                let world = body.world();
                let left =
                    world.get(&key).and_then(|volume| task(volume, &body.config.node_name, &body.config.data_dir));
                if left.is_none() || world.by_uid(&uid).is_none() || !own.begin(&uid) {
                    return;
                }
                tokio::time::sleep(RETRY).await;
            }
        });
    }

    fn begin(&self, uid: &str) -> bool {
        self.busy.lock().unwrap_or_else(PoisonError::into_inner).insert(uid.to_owned())
    }

    fn end(&self, uid: &str) {
        self.busy.lock().unwrap_or_else(PoisonError::into_inner).remove(uid);
    }
}

/// Until there is nothing more to do.
async fn reclaim(body: &Body, key: &Key) {
    let mut delay = RETRY;
    loop {
        let Some(object) = body.world().get(key).cloned() else { return };
        let Some(task) = task(&object, &body.config.node_name, &body.config.data_dir) else { return };
        let failure = match task {
            Task::Remove(path) => {
                let removed = tokio::task::spawn_blocking(move || remove::tree(&path)).await;
                match removed {
                    Ok(Ok(())) => None,
                    Ok(Err(error)) => Some(error.to_string()),
                    Err(panic) => Some(panic.to_string()),
                }
            }
            Task::LetGo => None,
            Task::Refuse(why) => Some(why),
        };
        match failure {
            Some(why) => body.recorder.warning(&object, "VolumeFailedDelete", &why),
            // refused when somebody else wrote it in the meantime: the newer one is looked at
            None if body.uplink.write(vec![farewell(&object)]).await.is_ok() => return,
            None => {}
        }
        tokio::time::sleep(delay).await;
        delay = (delay * 2).min(RETRY_MAX);
    }
}

/// The write that lets a volume go.
fn farewell(object: &Object) -> Write {
    let mut value = object.value();
    let metadata = &mut value["metadata"];
    if let Some(finalizers) = metadata["finalizers"].as_array_mut() {
        finalizers.retain(|own| own != LOCAL_PATH && own != VOLUME_PROTECTION);
    }
    if metadata["deletionTimestamp"].is_null() {
        metadata["deletionTimestamp"] = rfc3339(jiff::Timestamp::now()).into();
    }
    Write::update(object, value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn volume(phase: &str, policy: &str, path: &str, more: Value) -> Object {
        let mut value = json!({
            "metadata": {"name": "pvc-1", "uid": "u", "annotations": {storage::PROVISIONED_BY: LOCAL_PATH},
                "finalizers": [VOLUME_PROTECTION, LOCAL_PATH]},
            "spec": {"persistentVolumeReclaimPolicy": policy, "local": {"path": path}, "nodeAffinity": {"required":
                {"nodeSelectorTerms": [{"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": ["a"]}]}]}}},
            "status": {"phase": phase},
        });
        for (field, part) in more.as_object().into_iter().flatten() {
            value["metadata"][field] = part.clone();
        }
        Object::encode(manifests::Resource::of::<PersistentVolume>(), state::Revision(1), value).unwrap()
    }

    #[test]
    fn only_what_is_released_and_ours_is_removed() {
        let data = Path::new("/data");
        let gone = json!({"deletionTimestamp": "2026-01-01T00:00:00Z"});
        let own = "/data/storage/pvc-1";
        let remove = Some(Task::Remove(own.into()));
        let cases = [
            ("Released", "Delete", own, json!({}), remove.clone()),
            ("Bound", "Delete", own, gone.clone(), None),
            ("Released", "Retain", own, json!({}), None),
            ("Released", "Retain", own, gone.clone(), Some(Task::LetGo)),
            ("Available", "Delete", own, gone, remove),
            ("Available", "Delete", own, json!({}), None),
            ("Released", "Delete", own, json!({"annotations": {}}), None),
        ];
        for (phase, policy, path, more, expected) in cases {
            assert_eq!(task(&volume(phase, policy, path, more), "a", data), expected, "{phase} {policy}");
        }
        assert_eq!(task(&volume("Released", "Delete", own, json!({})), "b", data), None);
        let foreign = task(&volume("Released", "Delete", "/etc", json!({})), "a", data);
        assert!(matches!(foreign, Some(Task::Refuse(_))));
        assert_eq!(farewell(&volume("Released", "Delete", own, json!({}))).value, None, "nothing holds it any more");
    }
}
