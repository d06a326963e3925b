//! `set image` and `set env`: changes to the containers of pods and pod templates.

use http::Method;
use serde_json::{Value, json};

use super::client::{Media, with_query};
use super::dry_run::DryRun;
use super::failure::{Failure, Result, all_of, fail};
use super::mutate::{MutateArgs, merge_difference};
use super::output::{self, Printer};
use super::session::{Found, Session};
use super::words::split_changes;

/// What can be set.
#[derive(Debug, clap::Subcommand)]
pub enum SetCommand {
    /// Update the image of a pod template
    Image {
        /// TYPE NAME or TYPE/NAME, then CONTAINER=IMAGE ...
        words: Vec<String>,
        #[command(flatten)]
        common: MutateArgs,
    },
    /// Update environment variables on a pod template
    Env {
        /// TYPE NAME or TYPE/NAME, then NAME=VALUE or NAME- ...
        words: Vec<String>,
        #[command(flatten)]
        common: MutateArgs,
        /// The names of containers to change; wildcards are not available
        #[arg(short = 'c', long = "containers", default_value = "*")]
        containers: String,
        /// Display the environment of the selected containers
        #[arg(long)]
        list: bool,
        /// Name of a ConfigMap or Secret from which to inject variables: configmap/NAME or secret/NAME
        #[arg(long)]
        from: Option<String>,
        /// Prefix to put before the names that come with --from
        #[arg(long)]
        prefix: Option<String>,
    },
}

/// Carries it out.
pub async fn run(session: &Session, command: SetCommand) -> Result<()> {
    match command {
        SetCommand::Image { words, common } => {
            let (words, changes) = split_changes(&words);
            if changes.is_empty() {
                return fail("at least one image update is required");
            }
            let (found, failures) = common.objects(session, "set image", &words).await?;
            each(session, &common, found, failures, "image updated", |spec| set_images(spec, &changes)).await
        }
        SetCommand::Env { words, common, containers, list, from, prefix } => {
            let (words, changes) = split_changes(&words);
            if changes.is_empty() && from.is_none() && !list {
                return fail("at least one environment variable must be provided");
            }
            let imported = match &from {
                Some(from) => import(session, from, prefix.as_deref().unwrap_or_default()).await?,
                None => Vec::new(),
            };
            let (found, failures) = common.objects(session, "set env", &words).await?;
            if list {
                found.iter().for_each(list_env);
                return all_of(failures);
            }
            each(session, &common, found, failures, "env updated", |spec| {
                set_env(spec, &containers, &changes, &imported)
            })
            .await
        }
    }
}

/// Where the pod's spec is in an object of this kind.
fn pod_spec<'a>(kind: &str, object: &'a mut Value) -> Option<&'a mut Value> {
    let spec = match kind {
        "Pod" => object.get_mut("spec"),
        "CronJob" => object.pointer_mut("/spec/jobTemplate/spec/template/spec"),
        _ => object.pointer_mut("/spec/template/spec"),
    };
    spec.filter(|spec| spec.is_object())
}

async fn each(
    session: &Session,
    args: &MutateArgs,
    found: Vec<Found>,
    mut failures: Vec<Failure>,
    done: &str,
    change: impl Fn(&mut Value) -> Result<()>,
) -> Result<()> {
    let mut printer = Printer::new(args.output.format(false)?, &args.output);
    for found in found {
        let result = async {
            let mut wanted = found.object.clone();
            let Some(spec) = pod_spec(&found.target.resource.kind, &mut wanted) else {
                return fail(format!("{} has no pod template", found.target.full_name()));
            };
            change(spec)?;
            let Some(patch) = merge_difference(&found.object, &wanted) else { return Ok(()) };
            let object = if args.local || args.dry_run == DryRun::Client {
                wanted
            } else {
                let query: Vec<_> = args.dry_run.parameter().into_iter().collect();
                let path = with_query(&found.target.path(), &query);
                session.client.send(Method::PATCH, &path, Media::MergePatch, &patch).await?
            };
            printer.print(&object, &format!("{} {done}{}", found.target.full_name(), args.dry_run.suffix()))
        };
        failures.extend(result.await.err());
    }
    all_of(failures)
}

fn containers_of(spec: &mut Value) -> Vec<&mut Value> {
    let Some(map) = spec.as_object_mut() else { return Vec::new() };
    map.iter_mut()
        .filter(|(key, _)| matches!(key.as_str(), "containers" | "initContainers"))
        .filter_map(|(_, list)| list.as_array_mut())
        .flatten()
        .collect()
}

fn set_images(spec: &mut Value, changes: &[String]) -> Result<()> {
    for change in changes {
        let Some((name, image)) = change.split_once('=') else { return fail(format!("invalid image spec: {change}")) };
        let mut hit = false;
        for container in containers_of(spec) {
            if name == "*" || container["name"] == name {
                container["image"] = image.into();
                hit = true;
            }
        }
        if !hit {
            return fail(format!("unable to find container named {name:?}"));
        }
    }
    Ok(())
}

fn set_env(spec: &mut Value, which: &str, changes: &[String], imported: &[Value]) -> Result<()> {
    let mut hit = false;
    for container in containers_of(spec) {
        if which != "*" && !which.split(',').any(|name| container["name"] == name) {
            continue;
        }
        hit = true;
        let mut env = container["env"].as_array().cloned().unwrap_or_default();
        let put = |env: &mut Vec<Value>, entry: Value| match env.iter_mut().find(|known| known["name"] == entry["name"])
        {
            Some(known) => *known = entry,
            None => env.push(entry),
        };
        imported.iter().for_each(|entry| put(&mut env, entry.clone()));
        for change in changes {
            match change.split_once('=') {
                Some((name, value)) => put(&mut env, json!({"name": name, "value": value})),
                None => {
                    let name = change.trim_end_matches('-');
                    env.retain(|known| known["name"] != name);
                }
            }
        }
        match env.is_empty() {
            true => drop(container.as_object_mut().map(|map| map.remove("env"))),
            false => container["env"] = env.into(),
        }
    }
    if hit { Ok(()) } else { fail(format!("does not have any containers matching {which:?}")) }
}

/// References to all keys of a ConfigMap or Secret.
async fn import(session: &Session, from: &str, prefix: &str) -> Result<Vec<Value>> {
    let targets = session.targets(&[from.to_string()], &Default::default()).await?;
    let Some(target) = targets.first().filter(|target| target.name.is_some()) else {
        return fail(format!("unsupported resource {from:?} in --from, expected configmap/NAME or secret/NAME"));
    };
    let reference = match target.resource.kind.as_str() {
        "ConfigMap" => "configMapKeyRef",
        "Secret" => "secretKeyRef",
        _ => return fail(format!("unsupported resource specified in --from: {from}")),
    };
    let object = session.client.get(&target.path()).await?;
    let keys = object["data"].as_object().into_iter().flatten();
    Ok(keys
        .map(|(key, _)| {
            let name: String = format!("{prefix}{key}").to_uppercase().replace(['-', '.'], "_");
            json!({"name": name, "valueFrom": {reference: {"key": key, "name": target.name}}})
        })
        .collect())
}

fn list_env(found: &Found) {
    let mut object = found.object.clone();
    let kind = &found.target.resource.kind;
    let Some(spec) = pod_spec(kind, &mut object) else { return };
    for container in containers_of(spec) {
        output::line(&format!(
            "# {kind} {}, container {}",
            found.target.name.as_deref().unwrap_or_default(),
            container["name"].as_str().unwrap_or_default()
        ));
        for entry in container["env"].as_array().into_iter().flatten() {
            let name = entry["name"].as_str().unwrap_or_default();
            match entry["value"].as_str() {
                Some(value) => output::line(&format!("{name}={value}")),
                None if entry["valueFrom"].is_null() => output::line(&format!("{name}=")),
                None => output::line(&format!("# {name} from {}", output::gojson::compact(&entry["valueFrom"]))),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes() {
        let mut spec = json!({"containers": [{"name": "a", "image": "x", "env": [{"name": "E", "value": "1"}]}]});
        set_images(&mut spec, &["a=y:2".into()]).unwrap();
        set_env(&mut spec, "*", &["E-".into(), "F=2".into()], &[]).unwrap();
        assert_eq!(spec["containers"][0], json!({"name": "a", "image": "y:2", "env": [{"name": "F", "value": "2"}]}));
        assert!(set_images(&mut spec, &["b=y".into()]).is_err());
    }
}
