//! `rollout history` and `rollout undo`: the revisions of a Deployment are the ReplicaSets it owns.

use http::Method;
use serde_json::{Map, Value, json};

use super::client::{Media, with_query};
use super::dry_run::DryRun;
use super::failure::{Failure, Result, all_of, fail};
use super::output::{self, Format, OutputArgs, Printer, tabs};
use super::rollout::WhichArgs;
use super::session::{Found, Selection, Session, Target, items_of, name_of};

const REVISION: &str = "deployment.kubernetes.io/revision";
const CHANGE_CAUSE: &str = "kubernetes.io/change-cause";
const TEMPLATE_HASH: &str = "pod-template-hash";
/// Annotations that belong to the Deployment as it is and not to one of its revisions.
const KEPT: [&str; 6] = [
    super::apply::LAST_APPLIED,
    REVISION,
    "deployment.kubernetes.io/revision-history",
    "deployment.kubernetes.io/desired-replicas",
    "deployment.kubernetes.io/max-replicas",
    "deprecated.deployment.rollback.to",
];

/// Flags of `rollout history`.
#[derive(Debug, clap::Args)]
pub struct HistoryArgs {
    #[command(flatten)]
    which: WhichArgs,
    #[command(flatten)]
    output: OutputArgs,
    /// See the details, including podTemplate of the revision specified
    #[arg(long, default_value_t = 0, allow_hyphen_values = true)]
    revision: i64,
}

/// Flags of `rollout undo`.
#[derive(Debug, clap::Args)]
pub struct UndoArgs {
    #[command(flatten)]
    which: WhichArgs,
    #[command(flatten)]
    output: OutputArgs,
    /// The revision to rollback to; 0 is the last one
    #[arg(long, default_value_t = 0, allow_hyphen_values = true)]
    to_revision: i64,
    /// "none", "server" or "client"
    #[arg(long, default_value = "none", num_args = 0..=1, require_equals = true, default_missing_value = "unchanged")]
    dry_run: DryRun,
}

/// The number of the revision that a Deployment or ReplicaSet is; 0 if it says none.
pub fn revision_of(object: &Value) -> i64 {
    object["metadata"]["annotations"][REVISION].as_str().and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// The ReplicaSets of a Deployment, oldest revision first.
async fn revisions(session: &Session, found: &Found) -> Result<Vec<Value>> {
    if found.target.resource.kind != "Deployment" {
        return fail(format!("no history viewer has been implemented for {:?}", found.target.resource.kind));
    }
    let resource = session.resource("replicasets.apps").await?;
    let target =
        Target { resource: resource.clone(), namespace: found.target.namespace.clone(), name: None, manifest: None };
    let list = session.list(&target, &Selection::default(), super::session::CHUNK_OBJECTS).await?;
    let uid = &found.object["metadata"]["uid"];
    let owned = |set: &Value| {
        set["metadata"]["ownerReferences"]
            .as_array()
            .into_iter()
            .flatten()
            .any(|owner| owner["uid"] == *uid && owner["controller"] == true)
    };
    let mut sets: Vec<Value> = items_of(list, &resource).into_iter().filter(owned).collect();
    sets.sort_by_key(revision_of);
    Ok(sets)
}

/// Carries out `rollout history`.
pub async fn history(session: &Session, args: HistoryArgs) -> Result<()> {
    if args.revision < 0 {
        return fail("revision must be a positive integer");
    }
    let format = args.output.format(false)?;
    let (found, mut failures) = args.which.objects(session, "rollout history").await?;
    for found in found {
        let shown = async {
            let sets = revisions(session, &found).await?;
            if !matches!(format, Format::Human) {
                let chosen = chosen(&sets, args.revision)?.cloned();
                let object = chosen.unwrap_or_else(|| output::list_of(sets));
                return Printer::new(format.clone(), &args.output).print(&object, "");
            }
            let name = found.target.full_name();
            match chosen(&sets, args.revision)? {
                Some(set) => {
                    let template = super::describe::pod_template_text(&set["spec"]["template"]);
                    output::line(&format!("{name} with revision #{}\n{template}", args.revision));
                }
                None => output::line(&format!("{name} \n{}", table(&sets))),
            }
            Ok(())
        };
        failures.extend(shown.await.err());
    }
    all_of(failures)
}

fn chosen(sets: &[Value], revision: i64) -> Result<Option<&Value>> {
    if revision == 0 {
        return Ok(None);
    }
    match sets.iter().find(|set| revision_of(set) == revision) {
        Some(set) => Ok(Some(set)),
        None => fail("unable to find the specified revision"),
    }
}

fn table(sets: &[Value]) -> String {
    if sets.is_empty() {
        return "No rollout history found.".to_string();
    }
    let mut text = String::from("REVISION\tCHANGE-CAUSE\n");
    for set in sets {
        let cause = set["metadata"]["annotations"][CHANGE_CAUSE].as_str().filter(|text| !text.is_empty());
        text += &format!("{}\t{}\n", revision_of(set), cause.unwrap_or("<none>"));
    }
    tabs::align(&text, 2)
}

/// Carries out `rollout undo`.
pub async fn undo(session: &Session, args: UndoArgs) -> Result<()> {
    if args.to_revision < 0 {
        return fail("revision must be a positive integer");
    }
    let (found, mut failures) = args.which.objects(session, "rollout undo").await?;
    let mut printer = Printer::new(args.output.format(false)?, &args.output);
    for found in found {
        let done = async {
            let sets = revisions(session, &found).await?;
            let words = match rollback(&found.object, &sets, args.to_revision)? {
                Rollback::Nothing(why) => why,
                Rollback::Patch(_) if args.dry_run == DryRun::Client => "rolled back".to_string(),
                Rollback::Patch(patch) => {
                    let query: Vec<_> = args.dry_run.parameter().into_iter().collect();
                    let path = with_query(&found.target.path(), &query);
                    session.client.send(Method::PATCH, &path, Media::JsonPatch, &patch).await?;
                    "rolled back".to_string()
                }
            };
            printer.print(&found.object, &format!("{} {words}{}", found.target.full_name(), args.dry_run.suffix()))
        };
        failures.extend(done.await.err());
    }
    all_of(failures)
}

enum Rollback {
    Nothing(String),
    Patch(Value),
}

/// What takes a Deployment back to one of its revisions; 0 is the one before the present one.
fn rollback(deployment: &Value, sets: &[Value], revision: i64) -> Result<Rollback> {
    let name = name_of(deployment);
    let set = match revision {
        0 if sets.len() < 2 => return fail(format!("no rollout history found for deployment {name:?}")),
        0 => &sets[sets.len() - 2],
        _ => match sets.iter().find(|set| revision_of(set) == revision) {
            Some(set) => set,
            None => return Err(Failure::Text(format!("unable to find specified revision {revision} in history"))),
        },
    };
    if deployment["spec"]["paused"] == true {
        return fail(format!(
            "you cannot rollback a paused deployment; resume it first with 'kubectl rollout resume deployment/{name}' and try again"
        ));
    }
    let mut template = set["spec"]["template"].clone();
    if let Some(labels) = template["metadata"]["labels"].as_object_mut() {
        labels.remove(TEMPLATE_HASH);
    }
    if template == deployment["spec"]["template"] {
        return Ok(Rollback::Nothing(format!(
            "skipped rollback (current template already matches revision {})",
            revision_of(set)
        )));
    }
    let empty = Map::new();
    let of = |object: &Value| object["metadata"]["annotations"].as_object().unwrap_or(&empty).clone();
    let mut annotations: Map<String, Value> =
        of(deployment).into_iter().filter(|(key, _)| KEPT.contains(&key.as_str())).collect();
    annotations.extend(of(set).into_iter().filter(|(key, _)| !KEPT.contains(&key.as_str())));
    Ok(Rollback::Patch(json!([
        {"op": "replace", "path": "/spec/template", "value": template},
        // "add" replaces too, and does not fail where there is none yet.
        {"op": "add", "path": "/metadata/annotations", "value": annotations},
    ])))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(revision: &str, image: &str) -> Value {
        json!({"metadata": {"annotations": {REVISION: revision, "who": revision}},
               "spec": {"template": {"metadata": {"labels": {"app": "web", TEMPLATE_HASH: "x"}}, "spec": image}}})
    }

    #[test]
    fn rolling_back() {
        let deployment = json!({"metadata": {"name": "web", "annotations": {REVISION: "3", "other": "x"}},
            "spec": {"template": {"metadata": {"labels": {"app": "web"}}, "spec": "c"}}});
        let sets = [set("1", "a"), set("2", "b"), set("3", "c")];
        let show = |revision| match rollback(&deployment, &sets, revision) {
            Ok(Rollback::Patch(patch)) => patch.to_string(),
            Ok(Rollback::Nothing(why)) => why,
            Err(failure) => failure.message(),
        };
        assert!(show(0).contains(r#""spec":"b""#));
        assert!(!show(1).contains(TEMPLATE_HASH));
        assert!(show(1).contains(r#"{"deployment.kubernetes.io/revision":"3","who":"1"}"#), "{}", show(1));
        assert_eq!(show(3), "skipped rollback (current template already matches revision 3)");
        assert_eq!(show(9), "error: unable to find specified revision 9 in history");
        assert_eq!(table(&sets[..1]), "REVISION  CHANGE-CAUSE\n1         <none>\n");
    }
}
