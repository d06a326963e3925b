//! Keeps the engine's health true, and hears its events.
//!
//! While the engine is up one stream of its events is open: its end is how an engine's end is noticed, so nothing is
//! polled. While it is down it is asked again, later each time.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use bollard::models::{ContainerInspectResponse, EventMessage};
use bollard::query_parameters::{EventsOptions, ListContainersOptions};
use futures::StreamExt;
use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use super::error::{DockerError, cause, chain, engine, found};
use super::lives::{CODE_KILLED, Life, state, vanished};
use super::spec::{FoundState, Health};
use super::{Docker, LABEL_OWNER};
use crate::{Exit, ExitReason};

/// The oldest API that is spoken: that of Engine 20.10.
const API_MIN: (u32, u32) = (1, 41);
/// How soon a dead engine is asked again, at first and at last.
const RETRY_MIN: Duration = Duration::from_millis(250);
const RETRY_MAX: Duration = Duration::from_secs(10);
/// An engine that was up this long is asked again at once when it is gone.
const STEADY: Duration = Duration::from_secs(30);
/// How far back events are asked for: the engine says yes to a subscription before it has made it.
const OVERLAP_SECONDS: i64 = 2;
/// How long the cause of an end may come after the end.
const CAUSE_WAIT: Duration = Duration::from_secs(1);

impl Docker {
    /// Keeps [`Docker::health`] true, makes the pod network and the sandboxes' image when the engine comes up, and wakes
    /// [`super::DockerContainer::exited`]. To be spawned once; without it no end of a container is noticed.
    pub async fn watch(self, shutdown: CancellationToken) {
        let mut retry = RETRY_MIN;
        loop {
            let since = std::time::Instant::now();
            let error = tokio::select! {
                () = shutdown.cancelled() => return,
                error = self.up() => error,
            };
            if since.elapsed() > STEADY {
                retry = RETRY_MIN;
            }
            let reason = error.to_string();
            let down = Health::Down { reason };
            self.0.health.send_if_modified(|health| {
                let news = *health != down;
                if news {
                    tracing::warn!(%error, "no Docker");
                    *health = down;
                }
                news
            });
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(retry) => retry = (retry * 2).min(RETRY_MAX),
            }
        }
    }

    /// Until the engine is gone.
    async fn up(&self) -> DockerError {
        match self.listen().await {
            Ok(()) => DockerError::unreachable("the engine ended its stream of events"),
            Err(error) => error,
        }
    }

    async fn listen(&self) -> Result<(), DockerError> {
        let client = self.0.connection.client()?;
        let version = client.version().await.map_err(engine("tell its version"))?;
        let (version, api) = (version.version.unwrap_or_default(), version.api_version.unwrap_or_default());
        let numbers = api.split_once('.').and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)));
        if numbers.is_none_or(|numbers: (u32, u32)| numbers < API_MIN) {
            let detail = format!("Docker {version} has API {api}, older than {}.{}", API_MIN.0, API_MIN.1);
            return Err(DockerError::Unsupported { detail });
        }
        self.prepare(true).await?;

        let filters = HashMap::from([
            ("type".to_owned(), vec!["container".to_owned()]),
            ("event".to_owned(), vec!["die".to_owned(), "destroy".to_owned()]),
            ("label".to_owned(), vec![self.owner_label()]),
        ]);
        let since = Some((Timestamp::now().as_second() - OVERLAP_SECONDS).to_string());
        let mut events = client.events(Some(EventsOptions { since, until: None, filters: Some(filters) }));
        let mut checking = Box::pin(self.check_all());
        let mut checked = false;
        loop {
            tokio::select! {
                done = &mut checking, if !checked => {
                    done?;
                    checked = true;
                    tracing::info!(version, api, "Docker is ready");
                    self.0.health.send_replace(Health::Ready { version: version.clone(), api: api.clone() });
                }
                event = events.next() => match event {
                    Some(Ok(event)) => self.heard(event),
                    Some(Err(error)) => return Err(DockerError::unreachable(chain(&error))),
                    None => return Ok(()),
                },
            }
        }
    }

    fn heard(&self, event: EventMessage) {
        let Some(id) = event.actor.and_then(|actor| actor.id) else { return };
        if let Some(life) = self.0.lives.get(&id) {
            let docker = self.clone();
            tokio::spawn(async move { docker.check(&life).await });
        }
    }

    /// Looks after everyone waited for: what happened while nobody listened.
    async fn check_all(&self) -> Result<(), DockerError> {
        let filters = HashMap::from([
            ("label".to_owned(), vec![self.owner_label()]),
            ("status".to_owned(), vec!["running".to_owned(), "paused".to_owned()]),
        ]);
        let options = ListContainersOptions { filters: Some(filters), ..Default::default() };
        let client = self.0.connection.client()?;
        // Taken first: one started after the list is not to be held against it.
        let lives = self.0.lives.running();
        let running = client.list_containers(Some(options)).await.map_err(engine("list containers"))?;
        let running: HashSet<String> = running.into_iter().filter_map(|container| container.id).collect();
        for life in lives.iter().filter(|life| !running.contains(&life.id)) {
            self.check(life).await;
        }
        Ok(())
    }

    /// Looks whether a container has ended. What cannot be found out now is found out when the engine is back.
    pub(super) async fn check(&self, life: &Life) {
        let _turn = self.0.checks.acquire().await;
        let Ok(client) = self.0.connection.client() else { return };
        match found(client.inspect_container(&life.id, None).await) {
            Ok(Some(inspected)) => {
                if let FoundState::Exited(exit) = state(&inspected, Timestamp::now()).0 {
                    self.ended(life, exit, &inspected).await;
                }
            }
            Ok(None) => life.ended(vanished(life.started_at(), Timestamp::now())),
            Err(error) => {
                let super::error::Cause::Refused(_, detail) = cause(error) else { return };
                tracing::warn!(container = life.id, detail, "cannot inspect a container that ended");
            }
        }
    }

    /// The engine forgets why a container was killed when containerd tells of the end before its cause; its events
    /// still tell.
    pub(super) async fn ended(&self, life: &Life, mut exit: Exit, inspected: &ContainerInspectResponse) {
        let limit = inspected.host_config.as_ref().and_then(|config| config.memory).unwrap_or(0);
        let is_unexplained = exit.code == CODE_KILLED && exit.reason == ExitReason::Error && !life.is_killed();
        if is_unexplained && limit > 0 && self.was_out_of_memory(life, &exit).await {
            exit.reason = ExitReason::OomKilled;
        }
        life.ended(exit);
    }

    async fn was_out_of_memory(&self, life: &Life, exit: &Exit) -> bool {
        let Ok(client) = self.0.connection.client() else { return false };
        let filters = HashMap::from([
            ("container".to_owned(), vec![life.id.clone()]),
            ("event".to_owned(), vec!["oom".to_owned()]),
        ]);
        let since = Some(exit.started_at.as_second().to_string());
        let until = Some((exit.finished_at.as_second() + OVERLAP_SECONDS).to_string());
        let options = EventsOptions { since, until, filters: Some(filters) };
        let event = tokio::time::timeout(CAUSE_WAIT, client.events(Some(options)).next()).await;
        matches!(event, Ok(Some(Ok(_))))
    }

    pub(super) fn owner_label(&self) -> String {
        format!("{LABEL_OWNER}={}", self.0.config.owner)
    }
}
