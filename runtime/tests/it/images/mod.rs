//! Wasm images against a real registry (`docker-registry`), and a TLS server that hands out tokens and redirects.

mod origin;
mod registry;
mod tls;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use registry::{Registry, container_image, layer, wasm};
use runtime::images::{
    Content, Credential, ImageError, ImageLimits, Images, Kind, Parsed, PullPolicy, Reference, RegistryConfig, parse,
    push_file,
};
use serde_json::json;
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;
use tls::TlsServer;

use PullPolicy::{Always, IfNotPresent, Never};

/// A store of its own.
struct Node {
    images: Images,
    dir: TempDir,
}

impl Node {
    fn new() -> Node {
        Node::with(ImageLimits::default(), RegistryConfig::default())
    }

    fn with(limits: ImageLimits, registries: RegistryConfig) -> Node {
        let dir = tempfile::tempdir().unwrap();
        Node { images: Images::open_with(dir.path(), limits, registries, None).unwrap(), dir }
    }

    fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }

    async fn push(&self, bytes: &[u8], target: &str) -> String {
        let file = self.file("app.wasm", bytes);
        push_file(&file, &reference(target), &[]).await.unwrap().digest
    }

    /// Nothing half-written is left.
    fn assert_clean(&self) {
        assert_eq!(std::fs::read_dir(self.dir.path().join("tmp")).unwrap().count(), 0);
    }

    async fn bytes(&self, image: &str, policy: PullPolicy) -> Vec<u8> {
        std::fs::read(self.images.pull(image, policy, &[]).await.unwrap().path).unwrap()
    }
}

fn reference(image: &str) -> Reference {
    let Parsed::Registry(reference) = parse(image).unwrap() else { panic!("{image}") };
    reference
}

fn credential(server: &str, password: &str) -> Credential {
    Credential { server: server.into(), username: "user".into(), password: password.into() }
}

/// Reason and whole text, with the parts that differ from run to run replaced.
fn told(error: &ImageError, replace: &[(&str, &str)]) -> String {
    let mut text = format!("{}: {error}", error.reason());
    let mut cause = std::error::Error::source(error);
    while let Some(found) = cause {
        text = format!("{text}: {found}");
        cause = found.source();
    }
    replace.iter().fold(text, |text, (from, to)| text.replace(from, to))
}

fn sha256(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

#[tokio::test]
async fn tags_are_resolved_by_pull_policy() {
    let Some(registry) = Registry::start(false) else { return };
    let (author, node) = (Node::new(), Node::new());
    let image = registry.name("team/app:v1");
    let never = node.images.pull(&image, Never, &[]).await.unwrap_err();
    assert_eq!(
        told(&never, &[(&registry.host, "HOST")]),
        "ErrImageNeverPull: Container image \"HOST/team/app:v1\" is not present with pull policy of Never"
    );
    let first = author.push(&wasm(1), &image).await;
    let pulled = node.images.pull(&image, IfNotPresent, &[]).await.unwrap();
    assert!(!pulled.was_present);
    assert_eq!((&pulled.digest, pulled.config.name.as_str()), (&first, "app.wasm"));
    assert_eq!(pulled.image_id, format!("{}@{first}", registry.name("team/app")));
    assert_eq!(std::fs::read(&pulled.path).unwrap(), wasm(1));
    assert!(node.images.pull(&image, Always, &[]).await.unwrap().was_present);
    // The tag moves.
    let second = author.push(&wasm(2), &image).await;
    assert_ne!(first, second);
    assert_eq!(node.bytes(&image, IfNotPresent).await, wasm(1));
    assert_eq!(node.bytes(&image, Never).await, wasm(1));
    assert_eq!(node.bytes(&image, Always).await, wasm(2));
    assert_eq!(node.bytes(&image, Never).await, wasm(2));
    // Digests do not; the program of the first is still here, and only its manifest is fetched.
    let pinned = format!("{}@{first}", registry.name("team/app"));
    assert_eq!(node.bytes(&pinned, IfNotPresent).await, wasm(1));
    assert_eq!(registry.blob_reads(&sha256(&wasm(1))), 1);
    node.assert_clean();
}

#[tokio::test]
async fn what_a_registry_does_not_give() {
    let Some(mut registry) = Registry::start(false) else { return };
    let node = Node::new();
    let image = registry.name("app:v1");
    let missing = node.images.pull(&image, Always, &[]).await.unwrap_err();
    assert_eq!(
        told(&missing, &[(&registry.host, "HOST")]),
        "ErrImagePull: failed to pull and unpack image \"HOST/app:v1\": failed to resolve reference \"HOST/app:v1\": \
         HOST/app:v1: not found"
    );
    node.push(&wasm(1), &image).await;
    let digest = sha256(b"other");
    let pinned = node.images.pull(&format!("{image}@{digest}"), Always, &[]).await.unwrap_err();
    assert!(told(&pinned, &[]).ends_with(": not found"), "{pinned}");
    registry.stop();
    // What is here goes on without the registry, unless its policy asks for it each time.
    let gone = node.images.pull(&image, Always, &[]).await.unwrap_err();
    let text = told(&gone, &[(&registry.host, "HOST")]);
    assert!(
        text.contains("failed to do request: GET \"https://HOST/v2/app/manifests/v1\": connect: connection refused"),
        "{text}"
    );
}

#[tokio::test]
async fn container_images_with_a_program_inside() {
    let Some(registry) = Registry::start(false) else { return };
    let node = Node::new();
    let (older, newer) = (layer(&[("srv/app.wasm", &wasm(1)), ("etc/x", b"")]), layer(&[("srv/app.wasm", &wasm(2))]));
    let run = json!({
        "Entrypoint": ["/srv/app.wasm", "serve"], "Cmd": ["--all"], "Env": ["A=b=c"], "WorkingDir": "/srv",
    });
    let (os, wasi) = (("wasi", "wasm"), json!({}));
    registry.push(&container_image(os, &run, &[&older, &newer]), &wasi, "old:new").await;
    let pulled = node.images.pull(&registry.name("old:new"), IfNotPresent, &[]).await.unwrap();
    assert_eq!(std::fs::read(&pulled.path).unwrap(), wasm(2));
    assert_eq!(pulled.config.name, "app.wasm");
    assert_eq!(pulled.config.entrypoint, ["/srv/app.wasm", "serve"]);
    assert_eq!(pulled.config.cmd, ["--all"]);
    assert_eq!(pulled.config.env, [("A".to_owned(), "b=c".to_owned())]);
    assert_eq!(pulled.config.working_dir.as_deref(), Some("/srv"));
    assert_eq!(node.images.kind(&registry.name("old:new"), &[]).await.unwrap(), Kind::Wasm);

    // Marked, for an engine that knows no other platform than its own.
    let marks = json!({"module.wasm.image/variant": "compat-smart"});
    let named = json!({"Entrypoint": ["app.wasm"], "WorkingDir": "/srv"});
    registry.push(&container_image(("linux", "amd64"), &named, &[&older]), &marks, "old:marked").await;
    assert_eq!(node.bytes(&registry.name("old:marked"), Always).await, wasm(1));

    let busybox = json!({"Cmd": ["sh"]});
    let plain = container_image(("linux", "amd64"), &busybox, &[&older]);
    let (plain_digest, plain_size) = registry.push(&plain, &wasi, "old:plain").await;
    assert_eq!(node.images.kind(&registry.name("old:plain"), &[]).await.unwrap(), Kind::Container);
    let refused = node.images.pull(&registry.name("old:plain"), Always, &[]).await.unwrap_err();
    let text = told(&refused, &[(&plain_digest, "DIGEST")]);
    assert!(text.ends_with("no match for platform wasi/wasm in manifest DIGEST (linux/amd64): not found"), "{text}");

    let hidden = layer(&[("srv/.wh.app.wasm", b"")]);
    registry.push(&container_image(os, &run, &[&older, &hidden]), &wasi, "old:hidden").await;
    let refused = node.images.pull(&registry.name("old:hidden"), Always, &[]).await.unwrap_err();
    assert!(told(&refused, &[]).ends_with("image: no layer has its entrypoint /srv/app.wasm"), "{refused:?}");

    // One name, several platforms.
    let (digest, size) = registry.push(&container_image(os, &run, &[&newer]), &wasi, "old:wasi").await;
    let entry = |digest: &str, size: usize, (os, architecture): (&str, &str)| {
        json!({"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest, "size": size,
            "platform": {"os": os, "architecture": architecture}})
    };
    let both = [entry(&plain_digest, plain_size, ("linux", "amd64")), entry(&digest, size, os)];
    registry.push_index(&both, "old:many").await;
    assert_eq!(node.images.kind(&registry.name("old:many"), &[]).await.unwrap(), Kind::Wasm);
    assert_eq!(node.bytes(&registry.name("old:many"), Always).await, wasm(2));
    let arm = entry(&plain_digest, plain_size, ("linux", "arm64"));
    registry.push_index(&[both[0].clone(), arm], "old:none").await;
    assert_eq!(node.images.kind(&registry.name("old:none"), &[]).await.unwrap(), Kind::Container);
    let refused = node.images.pull(&registry.name("old:none"), Always, &[]).await.unwrap_err();
    assert!(told(&refused, &[]).ends_with(" (linux/amd64, linux/arm64): not found"), "{refused:?}");
    node.assert_clean();
}

#[tokio::test]
async fn damaged_blobs_are_refused() {
    let Some(registry) = Registry::start(false) else { return };
    let (author, node) = (Node::new(), Node::new());
    let image = registry.name("app:v1");
    let manifest = author.push(&wasm(1), &image).await;
    let found = registry.damage(&sha256(&wasm(1)));
    let refused = node.images.pull(&image, Always, &[]).await.unwrap_err();
    let wanted = sha256(&wasm(1));
    let text = told(&refused, &[(&registry.host, "HOST")]);
    assert_eq!(
        text,
        format!(
            "ErrImagePull: failed to pull and unpack image \"HOST/app:v1\": layer {wanted}: unexpected digest {found}, \
             expected {wanted}"
        )
    );
    assert!(node.images.list().await.unwrap().is_empty());
    registry.damage(&manifest);
    let refused = node.images.pull(&image, Always, &[]).await.unwrap_err();
    assert_eq!(refused.reason(), "ErrImagePull");
    // A whole layer of the older layout.
    let layer = layer(&[("app.wasm", &wasm(3))]);
    let run = json!({"Entrypoint": ["/app.wasm"]});
    registry.push(&container_image(("wasi", "wasm"), &run, &[&layer]), &json!({}), "old:v1").await;
    registry.damage(&sha256(&layer));
    let refused = node.images.pull(&registry.name("old:v1"), Always, &[]).await.unwrap_err();
    assert!(told(&refused, &[]).contains(&format!("expected {}", sha256(&layer))), "{refused:?}");
    node.assert_clean();
}

#[tokio::test]
async fn basic_credentials() {
    let Some(registry) = Registry::start(true) else { return };
    let node = Node::new();
    let image = registry.name("app:v1");
    let right = [credential(&registry.host, "s3cret")];
    let file = node.file("app.wasm", &wasm(1));
    let target = reference(&image);
    let refused = push_file(&file, &target, &[]).await.unwrap_err();
    assert!(told(&refused, &[]).contains("401 Unauthorized"), "{refused:?}");
    push_file(&file, &target, &right).await.unwrap();
    for none in [&[][..], &[credential(&registry.host, "wrong")], &[credential("other.example.com", "s3cret")]] {
        let refused = node.images.pull(&image, Always, none).await.unwrap_err();
        assert_eq!(
            told(&refused, &[(&registry.host, "HOST")]),
            "ErrImagePull: failed to pull and unpack image \"HOST/app:v1\": failed to resolve reference \
             \"HOST/app:v1\": pull access denied, repository does not exist or may require authorization: \
             unexpected status from GET request to http://HOST/v2/app/manifests/v1: 401 Unauthorized: unauthorized: \
             authentication required"
        );
        assert!(node.images.kind(&target.to_string(), none).await.is_err());
    }
    assert_eq!(node.images.kind(&target.to_string(), &right).await.unwrap(), Kind::Wasm);
    // The more specific one is tried first, then the other.
    let both = [credential(&format!("{}/app", registry.host), "wrong"), right[0].clone()];
    assert!(!node.images.pull(&image, Always, &both).await.unwrap().was_present);
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_pulls_are_one() {
    let Some(registry) = Registry::start(false) else { return };
    let (author, node) = (Node::new(), Arc::new(Node::new()));
    let image = registry.name("app:v1");
    author.push(&wasm(1), &image).await;
    let pulls = (0..16).map(|number| {
        let (node, image) = (node.clone(), image.clone());
        let policy = if number % 2 == 0 { Always } else { IfNotPresent };
        tokio::spawn(async move {
            assert_eq!(node.images.kind(&image, &[]).await.unwrap(), Kind::Wasm);
            node.images.pull(&image, policy, &[]).await.unwrap().was_present
        })
    });
    let present = futures::future::join_all(pulls).await.into_iter().map(Result::unwrap);
    assert_eq!(present.filter(|present| !present).count(), 1);
    assert_eq!(registry.blob_reads(&sha256(&wasm(1))), 1);
}

#[tokio::test]
async fn the_store_is_bounded() {
    let Some(registry) = Registry::start(false) else { return };
    let bytes = wasm(1).len() as u64;
    let limits = ImageLimits { bytes_max: 2 * bytes + bytes / 2, ..ImageLimits::default() };
    let (author, node) = (Node::new(), Node::with(limits, RegistryConfig::default()));
    for number in 1..=3 {
        author.push(&wasm(number), &registry.name(&format!("app:v{number}"))).await;
    }
    let held = node.images.pull(&registry.name("app:v1"), Always, &[]).await.unwrap();
    drop(node.images.pull(&registry.name("app:v2"), Always, &[]).await.unwrap());
    let other = node.images.pull(&registry.name("app:v3"), Always, &[]).await.unwrap();
    let names = |found: Vec<runtime::images::Stored>| {
        found.into_iter().map(|stored| stored.reference.rsplit(':').next().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(names(node.images.list().await.unwrap()), ["v1", "v3"]);
    let full = node.images.pull(&registry.name("app:v2"), Always, &[]).await.unwrap_err();
    assert!(told(&full, &[]).contains("do not fit into the image store"), "{full:?}");
    drop((held, other));
    node.images.pull(&registry.name("app:v2"), Always, &[]).await.unwrap();
    let small = ImageLimits { wasm_bytes_max: bytes - 1, ..ImageLimits::default() };
    let small = Node::with(small, RegistryConfig::default());
    let refused = small.images.pull(&registry.name("app:v1"), Always, &[]).await.unwrap_err();
    assert!(told(&refused, &[]).ends_with(&format!("has more than the {} bytes that are taken", bytes - 1)));
    node.assert_clean();
    small.assert_clean();
}

#[tokio::test]
async fn files_are_imported_listed_pushed_and_removed() {
    let node = Node::new();
    let app = reference("app:v1");
    let file = node.file("hello.wasm", &wasm(1));
    let made = node.images.import(&file, &app).await.unwrap();
    assert_eq!((made.reference.as_str(), made.bytes), ("docker.io/library/app:v1", wasm(1).len() as u64));
    assert_eq!(node.bytes("app:v1", Never).await, wasm(1));
    assert_eq!(node.images.kind(&app.to_string(), &[]).await.unwrap(), Kind::Wasm);

    let layer = layer(&[("app.wasm", &wasm(2))]);
    let run = json!({"Entrypoint": ["/app.wasm"]});
    for (name, archive) in [
        ("layout.tar", registry::oci_layout(&container_image(("wasi", "wasm"), &run, &[&layer]))),
        ("save.tar", registry::docker_save(&container_image(("linux", "amd64"), &run, &[&layer]))),
        ("save.tar.gz", registry::packed(&registry::docker_save(&container_image(("wasi", "wasm"), &run, &[&layer])))),
    ] {
        let file = node.file(name, &archive);
        let imported = node.images.import(&file, &reference(&format!("x/{name}:1"))).await.unwrap();
        assert_eq!(imported.config.entrypoint, ["/app.wasm"], "{name}");
        assert_eq!(node.bytes(&format!("x/{name}:1"), IfNotPresent).await, wasm(2), "{name}");
    }
    // a container image stays one, under the given name, in whichever form it came
    let plain = json!({"Cmd": ["sh"]});
    let container = container_image(("linux", "amd64"), &plain, &[&layer]);
    let mut blobs = Vec::new();
    for (name, archive) in
        [("box.tar", registry::oci_layout(&container)), ("box.save.tar", registry::docker_save(&container))]
    {
        let imported = node.images.import(&node.file(name, &archive), &reference("x/box:1")).await.unwrap();
        assert_eq!(imported.content, Content::Archive);
        assert_eq!(node.images.kind("x/box:1", &[]).await.unwrap(), Kind::Container);
        blobs.push((imported.digest, imported.blob));
    }
    assert_eq!(blobs[0], blobs[1]);
    assert!(node.images.pull("x/box:1", IfNotPresent, &[]).await.is_err());
    node.images.remove("x/box:1").await.unwrap();
    for (name, bytes, want) in [
        ("text.tar", &b"not an image"[..], "text.tar: "),
        ("empty.wasm", b"", "neither a .wasm file, nor a tar of an OCI image layout, nor one of docker save"),
        ("cut.wasm", b"\0asm", "it is neither a Wasm module nor a component"),
    ] {
        let refused = node.images.import(&node.file(name, bytes), &app).await.unwrap_err();
        assert!(told(&refused, &[]).contains(want), "{refused:?}");
    }
    let missing = node.images.import(Path::new("/nowhere/x.wasm"), &app).await.unwrap_err();
    assert!(told(&missing, &[]).contains("No such file"), "{missing:?}");

    if let Some(registry) = Registry::start(false) {
        let target = registry.name("copies/app:v1");
        let pushed = node.images.push("app:v1", &reference(&target), &[]).await.unwrap();
        // The same file is the same image, pushed or imported.
        assert_eq!(pushed.digest, made.digest);
        assert_eq!(Node::new().bytes(&target, Always).await, wasm(1));
    }
    let removed = node.images.remove("app:v1").await.unwrap();
    assert_eq!(removed.deleted, Some(sha256(&wasm(1))));
    let absent = node.images.remove("app:v1").await.unwrap_err();
    assert_eq!(absent.to_string(), "No such image: app:v1");
    assert_eq!(node.images.list().await.unwrap().len(), 3);
    node.assert_clean();
}

#[tokio::test]
async fn files_behind_addresses() {
    let server = TlsServer::start().await;
    let (node, stranger) = (Node::with(ImageLimits::default(), server.trusted()), Node::new());
    let digest = sha256(&wasm(1));
    server.serve("/a/app.wasm", &wasm(1));
    let image = format!("{}/a/app.wasm@{digest}", server.url);
    let unknown = stranger.images.pull(&image, Always, &[]).await.unwrap_err();
    assert!(told(&unknown, &[]).contains("UnknownIssuer"), "{unknown:?}");
    assert_eq!(node.images.pull(&image, Never, &[]).await.unwrap_err().reason(), "ErrImageNeverPull");
    let pulled = node.images.pull(&image, Always, &[]).await.unwrap();
    assert_eq!((pulled.digest, pulled.config.name.as_str()), (digest.clone(), "app.wasm"));
    assert_eq!(std::fs::read(pulled.path).unwrap(), wasm(1));
    assert!(node.images.pull(&image, Always, &[]).await.unwrap().was_present);
    assert_eq!(server.requests("/a/app.wasm"), 1);

    let other = sha256(&wasm(2));
    let wrong = node.images.pull(&format!("{}/a/app.wasm@{other}", server.url), Always, &[]).await.unwrap_err();
    assert!(told(&wrong, &[]).ends_with(&format!("unexpected digest {digest}, expected {other}")), "{wrong:?}");
    server.redirect("/moved.wasm", &format!("{}/b/app.wasm", server.url));
    server.serve("/b/app.wasm", &wasm(2));
    assert_eq!(node.bytes(&format!("{}/moved.wasm@{other}", server.url), IfNotPresent).await, wasm(2));
    let third = sha256(&wasm(3));
    server.redirect("/plain.wasm", "http://127.0.0.1/app.wasm");
    server.redirect("/loop.wasm", "/loop.wasm");
    for (path, want) in [
        ("plain.wasm", "which is not https"),
        ("loop.wasm", "stopped after 5 redirects"),
        ("none.wasm", "none.wasm: not found"),
    ] {
        let refused = node.images.pull(&format!("{}/{path}@{third}", server.url), Always, &[]).await.unwrap_err();
        assert!(told(&refused, &[]).ends_with(want), "{refused:?}");
    }
    node.assert_clean();
}

#[tokio::test]
async fn tokens_are_fetched_and_not_shown_to_others() {
    let (server, elsewhere) = (TlsServer::start().await, TlsServer::start().await);
    let mut registries = server.trusted();
    registries.extra_roots.extend(elsewhere.trusted().extra_roots);
    let node = Node::with(ImageLimits::default(), registries);
    let program = wasm(7);
    let config = b"{}";
    let manifest = json!({
        "schemaVersion": 2,
        "config": {"mediaType": "application/vnd.wasm.config.v0+json", "digest": sha256(config), "size": 2},
        "layers": [{"mediaType": "application/wasm", "digest": sha256(&program), "size": program.len()}],
    });
    let manifest = serde_json::to_vec(&manifest).unwrap();
    server.serve_with_token("/v2/a/app/manifests/v1", &manifest);
    server.redirect_with_token(&format!("/v2/a/app/blobs/{}", sha256(&program)), &format!("{}/blob", elsewhere.url));
    elsewhere.serve("/blob", &program);
    let image = format!("{}/a/app:v1", server.host);
    for none in [&[][..], &[credential(&server.host, "wrong")]] {
        let refused = node.images.pull(&image, Always, none).await.unwrap_err();
        assert!(told(&refused, &[]).contains("401 Unauthorized"), "{refused:?}");
    }
    let pulled = node.images.pull(&image, Always, &[credential(&server.host, "s3cret")]).await.unwrap();
    assert_eq!(std::fs::read(pulled.path).unwrap(), program);
    assert_eq!(server.scopes(), ["repository:a/app:pull"; 3]);
    assert!(!elsewhere.saw_authorization());
}
