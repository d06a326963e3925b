//! How fast failed pods are replaced: 10 s after the first failure, twice as long after each further one, at most 6
//! minutes; a success ends that.

use crate::pods;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use state::Object;
use std::sync::Arc;

/// Pause after the first failure.
const PAUSE_SECONDS: i64 = 10;
/// The longest pause.
const PAUSE_SECONDS_MAX: i64 = 360;

/// When the next pod may be made; `None` for now.
pub(super) fn next_at(pods: &[Arc<Object>], now: Timestamp) -> Option<Timestamp> {
    let phase = |pod: &Object| pod.view::<Pod>().map_or("", pods::phase).to_owned();
    let ends = |wanted: &str| {
        let ended = pods.iter().filter(|pod| phase(pod) == wanted);
        ended.map(|pod| ended_at(pod)).collect::<Vec<_>>()
    };
    let success = ends("Succeeded").into_iter().max();
    let failures: Vec<_> =
        ends("Failed").into_iter().filter(|at| success.is_none_or(|success| *at > success)).collect();
    let last = *failures.iter().max()?;
    let doublings = u32::try_from(failures.len() - 1).unwrap_or(0).min(10);
    let pause = (PAUSE_SECONDS << doublings).min(PAUSE_SECONDS_MAX);
    let at = last.checked_add(SignedDuration::from_secs(pause)).ok()?;
    (at > now).then_some(at)
}

/// When the last container of a pod ended; when it was made, if it does not say.
fn ended_at(pod: &Object) -> Timestamp {
    let status = pod.view::<Pod>().and_then(|pod| pod.status.as_ref());
    let containers = status.and_then(|status| status.container_statuses.as_ref()).into_iter().flatten();
    let ends = containers.filter_map(|container| {
        let terminated = container.state.as_ref()?.terminated.as_ref()?;
        Some(terminated.finished_at.as_ref()?.0)
    });
    ends.max().or(pod.meta().creation_timestamp).unwrap_or(Timestamp::UNIX_EPOCH)
}
