//! After a pod or container was made: wait until it runs, attach to it, and read its log instead if it was faster than we.
//!
//! `run -i` and `debug -i` share this.

use std::time::Duration;

use futures::{AsyncReadExt, StreamExt};
use serde_json::Value;

use super::attach::{Wish, attach};
use super::client::with_query;
use super::failure::{Failure, Result, Status, fail};
use super::output;
use super::session::{Session, name_of};
use super::stream::target;

/// How much of a log is read at once.
const PIECE_BYTES: usize = 64 << 10;
/// How long is waited before a watch that the server ended is asked for again.
const WATCH_AGAIN: Duration = Duration::from_millis(500);

/// Waits until `is_it` holds for the pod, and gives it as it is then. A pod that is deleted meanwhile is a failure.
pub async fn wait_for(
    session: &Session,
    pod: &Value,
    limit: Option<Duration>,
    mut is_it: impl FnMut(&Value) -> bool,
) -> Result<Value> {
    let object = target::path(session, pod, "");
    let collection = object.rsplit_once('/').map(|(collection, _)| collection).unwrap_or_default();
    let waiting = async {
        loop {
            // The state as it is comes first, so nothing between two watches is missed.
            let now = session.client.get(&object).await?;
            if is_it(&now) {
                return Ok(now);
            }
            let query = [
                ("watch", "true".to_string()),
                ("resourceVersion", now["metadata"]["resourceVersion"].as_str().unwrap_or_default().to_string()),
                ("fieldSelector", format!("metadata.name={}", name_of(pod))),
            ];
            let mut events = session.client.watch(&with_query(collection, &query), "application/json").await?;
            while let Some(Ok(mut event)) = events.next().await {
                if event["type"] == "DELETED" {
                    return Err(Failure::Refused(Box::new(Status {
                        reason: "NotFound".into(),
                        message: format!("pods {:?} not found", name_of(pod)),
                        details: Value::Null,
                    })));
                }
                if is_it(&event["object"]) {
                    return Ok(event["object"].take());
                }
            }
            tokio::time::sleep(WATCH_AGAIN).await;
        }
    };
    match limit {
        None => waiting.await,
        Some(limit) => match tokio::time::timeout(limit, waiting).await {
            Ok(done) => done,
            Err(_) => fail("timed out waiting for the condition"),
        },
    }
}

/// Attaches to a container that runs; what cannot be attached to has a log.
pub async fn attach_or_read(session: &Session, pod: &Value, container: &str, wish: Wish) -> Result<()> {
    let is_over = status_of(pod, container).is_some_and(|status| status["state"]["terminated"].is_object());
    if is_over || target::is_over(pod) {
        return read_log(session, pod, container).await;
    }
    match attach(session, pod, Some(container), wish).await {
        Ok(()) => Ok(()),
        // Those are the program's own words, or all was said.
        Err(failure @ (Failure::Terminated(_) | Failure::Exit(_))) => Err(failure),
        Err(failure) => {
            let message = failure.message();
            let message = message.strip_prefix("error: ").unwrap_or(&message);
            eprintln!("warning: couldn't attach to pod/{}, falling back to streaming logs: {message}", name_of(pod));
            read_log(session, pod, container).await
        }
    }
}

async fn read_log(session: &Session, pod: &Value, container: &str) -> Result<()> {
    let path = with_query(&target::path(session, pod, "log"), &[("container", container.to_string())]);
    let mut stream = session.client.stream(&path, "*/*").await?;
    let mut buffer = vec![0; PIECE_BYTES];
    loop {
        let count =
            stream.read(&mut buffer).await.map_err(|error| Failure::Text(format!("error reading the log: {error}")))?;
        if count == 0 {
            return Ok(());
        }
        output::bytes(&buffer[..count]);
    }
}

/// The status of a container of any kind, if there is one yet.
pub fn status_of<'a>(pod: &'a Value, container: &str) -> Option<&'a Value> {
    let lists = ["containerStatuses", "initContainerStatuses", "ephemeralContainerStatuses"];
    lists
        .into_iter()
        .flat_map(|list| pod["status"][list].as_array().into_iter().flatten())
        .find(|status| status["name"] == container)
}

/// Whether a container runs or has run.
pub fn has_started(pod: &Value, container: &str) -> bool {
    status_of(pod, container).is_some_and(|status| {
        let state = &status["state"];
        state["running"].is_object() || state["terminated"].is_object() || status["lastState"]["terminated"].is_object()
    })
}

/// Whether the pod is ready, or over.
pub fn is_ready_or_over(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array().into_iter().flatten();
    let is_ready =
        conditions.into_iter().any(|condition| condition["type"] == "Ready" && condition["status"] == "True");
    target::is_over(pod) || (pod["status"]["phase"] == "Running" && is_ready)
}

/// What the end of a pod means for us: its program's exit code becomes ours.
pub fn outcome_of(pod: &Value, namespace: &str) -> Result<()> {
    let name = name_of(pod);
    match pod["status"]["phase"].as_str().unwrap_or_default() {
        "Succeeded" => Ok(()),
        "Failed" => {
            let terminated = &pod["status"]["containerStatuses"][0]["state"]["terminated"];
            match terminated["exitCode"].as_i64().and_then(|code| i32::try_from(code).ok()) {
                Some(code) if code != 0 => {
                    let text = |key: &str| terminated[key].as_str().unwrap_or_default();
                    eprintln!("pod {namespace}/{name} terminated ({})\n{}", text("reason"), text("message"));
                    Err(Failure::Exit(Failure::Terminated(code).exit_code()))
                }
                _ => fail(format!("pod {namespace}/{name} failed with unknown exit code")),
            }
        }
        phase => fail(format!("pod {namespace}/{name} left in phase {phase}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn how_a_pod_ended() {
        let check = |status: Value, code: u8, message: &str| {
            let pod = json!({"metadata": {"name": "p"}, "status": status});
            let (found_code, found) =
                outcome_of(&pod, "n").map_or_else(|f| (f.exit_code(), f.message()), |()| (0, String::new()));
            assert_eq!((found_code, found.as_str()), (code, message));
        };
        let failed = |code: i64| json!({"phase": "Failed", "containerStatuses": [{"state": {"terminated": {"exitCode": code}}}]});
        check(json!({"phase": "Succeeded"}), 0, "");
        check(failed(3), 3, "");
        check(failed(0), 1, "error: pod n/p failed with unknown exit code");
        check(json!({"phase": "Failed"}), 1, "error: pod n/p failed with unknown exit code");
        check(json!({"phase": "Running"}), 1, "error: pod n/p left in phase Running");
    }

    #[test]
    fn when_to_attach() {
        let pod = |state: Value| json!({"status": {"ephemeralContainerStatuses": [{"name": "d", "state": state}]}});
        assert!(has_started(&pod(json!({"running": {}})), "d"));
        assert!(has_started(&pod(json!({"terminated": {}})), "d"));
        assert!(!has_started(&pod(json!({"waiting": {}})), "d"));
        assert!(!has_started(&pod(json!({"running": {}})), "x"));
        let ready = json!({"status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}});
        assert!(is_ready_or_over(&ready));
        assert!(!is_ready_or_over(&json!({"status": {"phase": "Running"}})));
        assert!(is_ready_or_over(&json!({"status": {"phase": "Failed"}})));
    }
}
