//! What nobody needs any more: pods that are no more, containers that newer ones have replaced, images nobody uses.
//!
//! As with the kubelet an image goes only when the disk is filling up, the least recently used first, and then any image
//! of the engine that no container refers to, whoever made the container.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use bollard::models::{ContainerSummary, ContainerSummaryStateEnum, ImageSummary};
use bollard::query_parameters::{ListContainersOptions, ListImagesOptions, RemoveImageOptions};
use jiff::{SignedDuration, Timestamp};

use super::error::{Cause, DockerError, cause, engine};
use super::find::label;
use super::spec::{Collected, ImageLimits};
use super::{Docker, KIND_CONTAINER, LABEL_ATTEMPT, LABEL_CONTAINER, LABEL_KIND, LABEL_POD_UID, pause};

/// An image stays at least this long after it was pulled or asked for: its container may be about to be made.
const IMAGE_REST: SignedDuration = SignedDuration::from_mins(2);
/// Of one container, the newest attempt and the one before it stay, for `logs --previous`.
const ATTEMPTS_KEPT: usize = 2;

impl Docker {
    /// Removes what nobody needs: of pods that are not known everything, of the others what newer attempts have replaced, and
    /// images above the limits. `is_known` is asked only of pods that have been found, so that one which begins meanwhile is
    /// never taken for one that is no more.
    pub async fn collect(
        &self,
        is_known: impl Fn(&str) -> bool,
        limits: ImageLimits,
    ) -> Result<Collected, DockerError> {
        let mut collected = Collected::default();
        let mut kept: HashMap<(String, String), Vec<ContainerSummary>> = HashMap::new();
        let mut gone = HashSet::new();
        for container in self.list([], true).await? {
            let Some(uid) = label(&container, LABEL_POD_UID) else { continue };
            if !is_known(&uid) {
                gone.insert(uid);
            } else if label(&container, LABEL_KIND).as_deref() == Some(KIND_CONTAINER) {
                let name = label(&container, LABEL_CONTAINER).unwrap_or_default();
                kept.entry((uid, name)).or_default().push(container);
            }
        }
        for uid in gone {
            self.remove_pod(&uid).await?;
            collected.pods.push(uid);
        }
        collected.pods.sort();
        for containers in kept.into_values() {
            collected.containers += self.remove_superseded(containers, ATTEMPTS_KEPT).await?;
        }
        self.collect_images(limits, &mut collected).await?;
        Ok(collected)
    }

    /// After a start: only the predecessor of `attempt` stays.
    pub(super) async fn forget_superseded(&self, uid: &str, name: &str, attempt: u32) {
        if attempt == 0 {
            return;
        }
        let labels = [format!("{LABEL_POD_UID}={uid}"), format!("{LABEL_CONTAINER}={name}")];
        let forgetting = async { self.remove_superseded(self.list(labels, true).await?, ATTEMPTS_KEPT).await };
        if let Err(error) = forgetting.await {
            tracing::debug!(%error, "cannot remove containers that were replaced");
        }
    }

    async fn remove_superseded(
        &self,
        mut containers: Vec<ContainerSummary>,
        keep: usize,
    ) -> Result<usize, DockerError> {
        containers.sort_by_key(|container| std::cmp::Reverse(attempt(container)));
        let mut removed = 0;
        for container in containers.iter().skip(keep) {
            let over = matches!(
                container.state,
                Some(
                    ContainerSummaryStateEnum::EXITED
                        | ContainerSummaryStateEnum::DEAD
                        | ContainerSummaryStateEnum::CREATED
                )
            );
            if let (true, Some(id)) = (over, &container.id) {
                self.remove(id).await?;
                removed += 1;
            }
        }
        Ok(removed)
    }

    async fn collect_images(&self, limits: ImageLimits, collected: &mut Collected) -> Result<(), DockerError> {
        let client = self.0.connection.client()?;
        let root = client.info().await.map_err(engine("describe itself"))?.docker_root_dir.unwrap_or_default();
        let Some(disk) = Disk::of(Path::new(&root)) else { return Ok(()) };
        let percent = disk.percent();
        collected.disk_percent = Some(percent);
        if percent < limits.high_percent {
            return Ok(());
        }
        let excess = disk.above(limits.low_percent);
        let all = ListContainersOptions { all: true, ..Default::default() };
        let containers = client.list_containers(Some(all)).await.map_err(engine("list containers"))?;
        let mut needed: HashSet<String> = containers.into_iter().filter_map(|container| container.image_id).collect();
        needed.extend(self.image_id(&pause::image()).await?);
        let images = client.list_images(None::<ListImagesOptions>).await.map_err(engine("list images"))?;
        let uses = self.0.uses.of(|id| images.iter().any(|image| image.id == id));
        for image in unneeded(images, &needed, &uses, Timestamp::now()) {
            if collected.image_bytes >= excess {
                break;
            }
            if self.remove_image(&image).await? {
                collected.image_bytes += u64::try_from(image.size).unwrap_or(0);
                collected.images.push(image.repo_tags.into_iter().next().unwrap_or(image.id));
            }
        }
        Ok(())
    }

    /// Whether it is gone. By all its names, not by force: a container may have been made of it just now.
    async fn remove_image(&self, image: &ImageSummary) -> Result<bool, DockerError> {
        let client = self.0.connection.client()?;
        let mut names: Vec<&String> = image.repo_tags.iter().filter(|name| !name.contains("<none>")).collect();
        if names.is_empty() {
            names = image.repo_digests.iter().filter(|name| !name.contains("<none>")).collect();
        }
        if names.is_empty() {
            names.push(&image.id);
        }
        for name in names {
            match client.remove_image(name, None::<RemoveImageOptions>, None).await.map_err(cause) {
                Ok(_) | Err(Cause::Refused(404, _)) => {}
                Err(Cause::Refused(_, detail)) => {
                    tracing::debug!(image = name, detail, "the image stays");
                    return Ok(false);
                }
                Err(Cause::Lost(detail)) => return Err(DockerError::Unreachable { detail }),
            }
        }
        Ok(true)
    }
}

fn attempt(container: &ContainerSummary) -> u32 {
    label(container, LABEL_ATTEMPT).and_then(|attempt| attempt.parse().ok()).unwrap_or(0)
}

/// What may go, in the order in which it should: those whose use nobody remembers first, the oldest of them first.
fn unneeded(
    images: Vec<ImageSummary>,
    needed: &HashSet<String>,
    uses: &HashMap<String, Timestamp>,
    now: Timestamp,
) -> Vec<ImageSummary> {
    let rested = |image: &ImageSummary| uses.get(&image.id).is_none_or(|used| now.duration_since(*used) >= IMAGE_REST);
    let mut images: Vec<ImageSummary> =
        images.into_iter().filter(|image| !needed.contains(&image.id) && rested(image)).collect();
    images.sort_by_key(|image| (uses.get(&image.id).copied(), image.created));
    images
}

struct Disk {
    total_bytes: u64,
    used_bytes: u64,
}

impl Disk {
    fn of(path: &Path) -> Option<Disk> {
        let found = rustix::fs::statvfs(path).ok()?;
        // as `df` has it: what only root may use, or a quota withholds, is neither used nor free
        let used = found.f_blocks.saturating_sub(found.f_bfree).saturating_mul(found.f_frsize);
        let total = used.saturating_add(found.f_bavail.saturating_mul(found.f_frsize));
        (total > 0).then_some(Disk { total_bytes: total, used_bytes: used })
    }

    fn percent(&self) -> u8 {
        u8::try_from(u128::from(self.used_bytes) * 100 / u128::from(self.total_bytes.max(1))).unwrap_or(100)
    }

    /// Bytes above so many hundredths.
    fn above(&self, percent: u8) -> u64 {
        self.used_bytes.saturating_sub(self.total_bytes / 100 * u64::from(percent))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_recently_used_goes_first() {
        let image = |id: &str, created| ImageSummary { id: id.to_owned(), created, ..Default::default() };
        let now = Timestamp::new(1_000_000, 0).unwrap();
        let ago = |minutes| now - SignedDuration::from_mins(minutes);
        let uses = [("used", ago(60)), ("older", ago(90)), ("fresh", ago(1))];
        let uses = uses.into_iter().map(|(id, at)| (id.to_owned(), at)).collect();
        let images = ["used", "fresh", "needed", "older", "young", "old"];
        let images = images.iter().map(|id| image(id, if *id == "old" { 1 } else { 2 })).collect();
        let needed = HashSet::from(["needed".to_owned()]);
        let order: Vec<String> = unneeded(images, &needed, &uses, now).into_iter().map(|image| image.id).collect();
        assert_eq!(order, ["old", "young", "older", "used"]);
    }

    #[test]
    fn disks() {
        let disk = Disk { total_bytes: 1000, used_bytes: 905 };
        assert_eq!((disk.percent(), disk.above(80), disk.above(95)), (90, 105, 0));
    }
}
