//! Images and registries, and an engine that is not there.

use runtime::docker::Health;
use runtime::{Docker, DockerError, PullError};

use super::bench::*;

#[tokio::test(flavor = "multi_thread")]
async fn images_that_are_here() {
    let Some(bench) = bench().await else { return };
    let image = bench.docker.has_image(IMAGE).await.unwrap().unwrap();
    assert!(
        image.id.starts_with("sha256:") && image.size_bytes > 0 && image.tags.contains(&IMAGE.to_owned()),
        "{image:?}"
    );
    assert_eq!(image.command.last().unwrap(), "echo from the image");
    assert_eq!(bench.docker.has_image(&image.id).await.unwrap().unwrap().id, image.id);
    assert_eq!(bench.docker.has_image("coracle.test/no-such").await.unwrap(), None);
    for name in ["Upper/Case", "a b", "../containers/json", ""] {
        let error = bench.docker.has_image(name).await.unwrap_err();
        assert_eq!((error.reason(), &error), ("InvalidImageName", &DockerError::InvalidImage { image: name.into() }));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pulls_that_fail_say_why() {
    let Some(bench) = bench().await else { return };
    let error = bench.docker.pull("a b", None).await.unwrap_err();
    assert_eq!(error.reason(), "InvalidImageName");
    // Nobody listens there.
    let image = "127.0.0.1:1/a/b:c";
    let error = bench.docker.pull(image, None).await.unwrap_err();
    assert!(matches!(&error, PullError::Registry { detail, .. } if detail.contains("refused")), "{error}");
    assert_eq!(error.reason(), "ErrImagePull");
    // All who wait for one pull hear the same.
    let pulls = futures::future::join_all((0..8).map(|_| bench.docker.pull(image, None))).await;
    assert!(pulls.iter().all(|pulled| pulled.as_ref().unwrap_err() == &error), "{pulls:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn pulls_from_a_registry() {
    let Some(bench) = bench().await else { return };
    let registry = Registry::start();
    let image = format!("127.0.0.1:{}/some/busybox:1", registry.port);
    cli(&["tag", IMAGE, &image]);
    until("the registry takes it", async || cli(&["push", &image]).contains("digest: sha256:")).await;
    cli(&["rmi", &image]);
    assert_eq!(bench.docker.has_image(&image).await.unwrap(), None);

    let pulls = futures::future::join_all((0..4).map(|_| bench.docker.pull(&image, None))).await;
    let pulled = pulls[0].clone().unwrap();
    assert!(pulls.iter().all(|other| other.as_ref() == Ok(&pulled)), "{pulls:?}");
    assert!(pulled.tags.contains(&image), "{pulled:?}");
    let repository = image.trim_end_matches(":1");
    let digest = pulled.digests.iter().find(|digest| digest.starts_with(repository)).unwrap();
    assert_eq!(bench.docker.pull(digest, None).await.unwrap().id, pulled.id);

    let error = bench.docker.pull(&format!("{repository}:2"), None).await.unwrap_err();
    assert!(matches!(&error, PullError::NotFound { detail, .. } if detail.contains("not found")), "{error}");
    cli(&["rmi", &image, digest]);
}

/// A registry on loopback, gone when dropped.
struct Registry {
    process: std::process::Child,
    port: u16,
    _dir: tempfile::TempDir,
}

impl Registry {
    fn start() -> Registry {
        let dir = tempfile::tempdir().unwrap();
        let port = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port();
        let config = format!(
            "version: 0.1\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: '127.0.0.1:{port}'}}\n",
            dir.path().display()
        );
        let path = dir.path().join("config.yml");
        std::fs::write(&path, config).unwrap();
        let process = std::process::Command::new("docker-registry")
            .arg("serve")
            .arg(path)
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .expect("package docker-registry");
        Registry { process, port, _dir: dir }
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_engine() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config("000000000000", "ct0", [10, 99, 99]);
    for endpoint in
        [format!("unix://{}/none.sock", dir.path().display()), "tcp://127.0.0.1:1".to_owned(), "ssh://h".to_owned()]
    {
        config.endpoint = Some(endpoint.clone());
        let docker = Docker::new(config.clone());
        assert_eq!(*docker.health().borrow(), Health::Unknown);
        let shutdown = tokio_util::sync::CancellationToken::new();
        let watching = tokio::spawn(docker.clone().watch(shutdown.clone()));
        let mut health = docker.health();
        let down = health.wait_for(|health| *health != Health::Unknown);
        let down = tokio::time::timeout(LONG, down).await.unwrap().unwrap().clone();
        assert!(matches!(&down, Health::Down { reason } if reason.starts_with("cannot reach Docker")), "{down:?}");
        let error = docker.pods().await.unwrap_err();
        assert!(matches!(error, DockerError::Unreachable { .. }), "{endpoint}: {error}");
        shutdown.cancel();
        watching.await.unwrap();
    }
}
