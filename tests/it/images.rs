//! Images: from registries with and without a password, of both kinds, and everything that may be wrong with one.

use crate::harness::{Busybox, Fleet, Registry, Room, docker, guest, request, until};
use std::net::SocketAddr;

fn pod(name: &str, image: &str, more: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  restartPolicy: Never\n  \
         terminationGracePeriodSeconds: 0\n  containers:\n  - {{name: main, image: \"{image}\", {more}}}\n"
    )
}

const WAITING: &str = "{.status.containerStatuses[0].state.waiting.reason}";

/// Waits until the pull has failed and waits for another try; what the pod's events say about it.
fn refused(room: &Room, pod: &str) -> String {
    let what = format!("pod/{pod}");
    room.until_field(&what, WAITING, "ImagePullBackOff");
    let events = room.until_event(&what, "Back-off pulling image");
    assert!(events.contains("Failed to pull image") && events.contains("Error: ErrImagePull"), "{events}");
    events
}

#[test]
fn both_kinds_come_from_a_registry_by_tag_and_digest() {
    let Some(room) = Room::enter("registry") else { return };
    let registry = Registry::open();
    let busybox = registry.push(&Busybox::image(), "team/busybox:1");
    let wasm = format!("{}/team/probe:1", registry.host());
    room.coracle(&["image", "push", "tests/it/guests/probe.wasm", &wasm]);
    room.apply(&format!(
        "{}---\n{}",
        pod("docker", &busybox, "command: [echo, from docker]"),
        pod("wasm", &wasm, "args: [args, from wasm]")
    ));
    for (name, said) in [("docker", "from docker\n"), ("wasm", "[\"args\", \"from wasm\"]\n")] {
        let what = format!("pod/{name}");
        room.wait(&what, "jsonpath={.status.phase}=Succeeded");
        assert_eq!(room.kubectl(&["logs", name]), said);
        let events = room.events(&what);
        assert!(events.contains("Pulling image") && events.contains("Successfully pulled image"), "{events}");
        assert!(room.field(&what, "{.status.containerStatuses[0].imageID}").contains("sha256:"));
    }
    let id = room.field("pod/wasm", "{.status.containerStatuses[0].imageID}");
    let digest = &id[id.find("sha256:").unwrap()..];
    let by_digest = format!("{}/team/probe@{digest}", registry.host());
    let wrong = format!("{}/team/probe@sha256:{}", registry.host(), "0".repeat(64));
    room.apply(&format!("{}---\n{}", pod("digest", &by_digest, "args: [both]"), pod("wrong", &wrong, "args: [both]")));
    room.wait("pod/digest", "jsonpath={.status.phase}=Succeeded");
    refused(&room, "wrong");
    docker(&["rmi", &busybox]);
}

#[test]
fn a_moved_tag_is_seen_by_the_policy_that_asks() {
    let Some(room) = Room::enter("moved-tag") else { return };
    let registry = Registry::open();
    let image = format!("{}/moving:v1", registry.host());
    room.coracle(&["image", "push", "tests/it/guests/probe.wasm", &image]);
    let run = |name: &str, policy: &str| {
        room.apply(&pod(name, &image, &format!("imagePullPolicy: {policy}, args: [args]")));
        room.field(&format!("pod/{name}"), "{.metadata.name}")
    };
    run("first", "IfNotPresent");
    room.wait("pod/first", "jsonpath={.status.phase}=Succeeded");
    room.coracle(&["image", "push", guest("tool.wasm").strip_prefix("file://").unwrap(), &image]);
    run("cached", "IfNotPresent");
    room.wait("pod/cached", "jsonpath={.status.phase}=Succeeded");
    run("asked", "Always");
    // the other program has no such verb
    room.wait("pod/asked", "jsonpath={.status.phase}=Failed");
    assert!(room.events("pod/cached").contains("already present on machine"));
    drop(registry);
    run("offline", "IfNotPresent");
    room.wait("pod/offline", "jsonpath={.status.phase}=Failed");
    run("deaf", "Always");
    refused(&room, "deaf");
}

#[test]
fn a_registry_with_a_password_wants_the_secret() {
    let Some(room) = Room::enter("private") else { return };
    let registry = Registry::guarded();
    let busybox = registry.push(&Busybox::image(), "private/busybox:1");
    let wasm = format!("{}/private/probe:1", registry.host());
    let credentials = room.file("config.json", &registry.docker_config());
    room.coracle(&["image", "push", "--authfile", &credentials, "tests/it/guests/probe.wasm", &wasm]);
    for (secret, password) in [("regcred", Registry::PASSWORD), ("wrong", "guess")] {
        room.kubectl(&[
            "create",
            "secret",
            "docker-registry",
            secret,
            &format!("--docker-server={}", registry.host()),
            &format!("--docker-username={}", Registry::USER),
            &format!("--docker-password={password}"),
        ]);
    }
    let with = |name: &str, image: &str, secret: &str, more: &str| {
        pod(name, image, more).replace("spec:\n", &format!("spec:\n  imagePullSecrets: [{{name: {secret}}}]\n"))
    };
    room.apply(&format!(
        "{}---\n{}---\n{}---\n{}",
        pod("docker-none", &busybox, "command: [\"true\"]"),
        pod("wasm-none", &wasm, "args: [args]"),
        with("docker-wrong", &busybox, "wrong", "command: [\"true\"]"),
        with("wasm-wrong", &wasm, "wrong", "args: [args]")
    ));
    for name in ["docker-none", "wasm-none", "docker-wrong", "wasm-wrong"] {
        let events = refused(&room, name).to_lowercase();
        assert!(
            ["unauthorized", "no basic auth", "authentication"].iter().any(|word| events.contains(word)),
            "{events}"
        );
    }
    room.apply(&format!(
        "{}---\n{}",
        with("docker", &busybox, "regcred", "command: [\"true\"]"),
        with("wasm", &wasm, "regcred", "args: [args]")
    ));
    for name in ["docker", "wasm"] {
        room.wait(&format!("pod/{name}"), "jsonpath={.status.phase}=Succeeded");
    }
    docker(&["rmi", &busybox]);
}

#[test]
fn what_cannot_be_pulled_says_why() {
    let Some(room) = Room::enter("unpullable") else { return };
    let registry = Registry::open();
    let spoiled = format!("{}/spoiled:1", registry.host());
    // one that no other test has brought to the node
    room.coracle(&["image", "push", "examples/job/pi.wasm", &spoiled]);
    registry.spoil();
    let gone = format!("{}/nowhere/app:1", registry.host());
    let nobody = format!("127.0.0.1:{}/app:1", crate::harness::free_port());
    room.apply(&format!(
        "{}---\n{}---\n{}---\n{}---\n{}",
        pod("gone", &gone, "command: [\"true\"]"),
        pod("nobody", &nobody, "command: [\"true\"]"),
        pod("spoiled", &spoiled, "args: [args]"),
        pod("never", "coracle-test/never:1", "imagePullPolicy: Never"),
        pod("invalid", "Not/A:valid:Name", "command: [\"true\"]")
    ));
    refused(&room, "gone");
    refused(&room, "nobody");
    let events = refused(&room, "spoiled");
    assert!(events.contains("digest"), "{events}");
    room.until_field("pod/never", WAITING, "ErrImageNeverPull");
    room.until_event("pod/never", "is not present with pull policy of Never");
    room.until_field("pod/invalid", WAITING, "InvalidImageName");
    room.until_event("pod/invalid", "couldn't parse image name");
}

#[test]
fn a_nodes_store_is_listed_filled_and_emptied() {
    let Some(room) = Room::enter("store") else { return };
    let dir = room.server().data_dir();
    let store = dir.to_str().unwrap();
    let image = "store.example/probe:1";
    room.coracle(&["image", "import", "--data-dir", store, "tests/it/guests/probe.wasm", image]);
    assert!(room.coracle(&["image", "list", "--data-dir", store]).contains("store.example/probe"));
    room.apply(&pod("imported", image, "imagePullPolicy: Never, args: [args, imported]"));
    room.wait("pod/imported", "jsonpath={.status.phase}=Succeeded");
    room.kubectl(&["delete", "pod", "imported"]);
    room.coracle(&["image", "rm", "--data-dir", store, image]);
    assert!(!room.coracle(&["image", "list", "--data-dir", store]).contains("store.example/probe"));
}

/// A pod of the agent's.
fn far(name: &str, image: &str, more: &str) -> String {
    pod(name, image, more).replace("spec:\n", "spec:\n  nodeName: agent-0\n") + "---\n"
}

/// A pod of the master's own node.
fn near(name: &str, image: &str, more: &str) -> String {
    pod(name, image, more).replace("spec:\n", "spec:\n  nodeName: node\n") + "---\n"
}

/// A file of a test's.
fn file(image: &str) -> String {
    image.strip_prefix("file://").unwrap().to_owned()
}

#[test]
fn what_is_imported_on_the_master_runs_on_every_node() {
    let Some(mut fleet) = Fleet::launch(1) else { return };
    let dir = fleet.server().data_dir();
    let store = dir.to_str().unwrap();
    let import = |fleet: &Fleet, file: &str, name: &str| {
        fleet.coracle(&["image", "import", "--data-dir", store, file, name]);
    };
    // no registry has ever heard of it, and the default policy of a name without a tag is Always
    import(&fleet, "tests/it/guests/probe.wasm", "site.invalid/app");
    fleet.apply(
        &(far("first", "site.invalid/app", "args: [args, one]")
            + &far("stays", "site.invalid/app", "args: [http, \"8000\"]").replace("Never", "Always")
            + &near("near", "site.invalid/app", "args: [args, two]")),
    );
    for (name, said) in [("first", "[\"args\", \"one\"]\n"), ("near", "[\"args\", \"two\"]\n")] {
        let what = format!("pod/{name}");
        fleet.wait(&what, "jsonpath={.status.phase}=Succeeded");
        assert_eq!(fleet.kubectl(&["logs", name]), said);
        let events = fleet.events(&what);
        assert!(events.contains("Pulling image") && events.contains("Successfully pulled image"), "{events}");
    }
    fleet.wait("pod/stays", "condition=Ready");
    let id = "{.status.containerStatuses[0].imageID}";
    let listed = fleet.coracle(&["image", "list", "--data-dir", store]);
    let digest = fleet.field("pod/first", id);
    assert!(listed.contains(digest.rsplit_once('@').unwrap().1), "{digest}: {listed}");
    assert_eq!(fleet.field("pod/near", id), digest);

    // the name stands for another program now: only who asks anew sees it
    import(&fleet, &file(&guest("tool.wasm")), "site.invalid/app");
    fleet.apply(
        &(far("cached", "site.invalid/app", "imagePullPolicy: IfNotPresent, args: [args]")
            + &far("asked", "site.invalid/app", "args: [args]")),
    );
    fleet.wait("pod/cached", "jsonpath={.status.phase}=Succeeded");
    assert!(fleet.events("pod/cached").contains("already present on machine"));
    // the other program has no such verb
    fleet.wait("pod/asked", "jsonpath={.status.phase}=Failed");
    assert_ne!(fleet.field("pod/asked", id), digest);

    // without its master a node starts what it has, whatever the policy
    let at: SocketAddr = format!("{}:8000", fleet.field("pod/stays", "{.status.podIP}")).parse().unwrap();
    import(&fleet, "tests/it/guests/probe.wasm", "site.invalid/app");
    fleet.apply(&far("again", "site.invalid/app", "args: [args]"));
    fleet.wait("pod/again", "jsonpath={.status.phase}=Succeeded");
    std::thread::sleep(std::time::Duration::from_secs(6)); // longer than changes are gathered before they are on disk
    fleet.agents[0].cut();
    fleet.agents[0].reboot();
    let answers = || fleet.agents[0].within(|| request(at, "pod", "/").ok());
    until("the pod runs again", answers);
    fleet.agents[0].heal();
    fleet.ready(&fleet.agents[0]);

    // what is taken away is not there any more for who asks
    fleet.coracle(&["image", "rm", "--data-dir", store, "site.invalid/app"]);
    fleet.apply(&far("late", "site.invalid/app", "args: [args]"));
    fleet.until_field("pod/late", WAITING, "ImagePullBackOff");
    fleet.wait("pod/stays", "condition=Ready");
}

#[test]
fn a_container_image_is_imported_and_loaded_into_docker() {
    let Some(room) = Room::enter("archive") else { return };
    let dir = room.server().data_dir();
    let store = dir.to_str().unwrap();
    let image = format!("site.invalid/box-{}:1", std::process::id());
    let saved = room.path("box.tar");
    docker(&["save", "--output", &saved, &Busybox::image()]);
    room.coracle(&["image", "import", "--data-dir", store, &saved, &image]);
    let echo = "imagePullPolicy: Always, command: [echo, from an archive]";
    for name in ["boxed", "again"] {
        room.apply(&pod(name, &image, echo));
        let what = format!("pod/{name}");
        room.wait(&what, "jsonpath={.status.phase}=Succeeded");
        assert_eq!(room.kubectl(&["logs", name]), "from an archive\n");
        assert!(room.events(&what).contains("Successfully pulled image"));
    }
    room.coracle(&["image", "rm", "--data-dir", store, &image]);
    room.apply(&pod("gone", &image, echo));
    refused(&room, "gone");
    room.kubectl(&["delete", "pod", "--all", "--wait=false"]);
    docker(&["rmi", "--force", &image]);
}

#[test]
fn the_master_hands_on_what_it_has_from_a_registry() {
    let Some(fleet) = Fleet::launch(1) else { return };
    // which the agent's machine cannot reach
    let registry = Registry::open();
    let image = format!("{}/team/probe:1", registry.host());
    fleet.coracle(&["image", "push", "tests/it/guests/probe.wasm", &image]);
    let policy = |policy: &str| format!("imagePullPolicy: {policy}, args: [args]");
    fleet.apply(&near("near", &image, &policy("Always")));
    fleet.wait("pod/near", "jsonpath={.status.phase}=Succeeded");
    fleet.apply(&(far("asks", &image, &policy("Always")) + &far("takes", &image, &policy("IfNotPresent"))));
    fleet.wait("pod/takes", "jsonpath={.status.phase}=Succeeded");
    assert!(fleet.events("pod/takes").contains("Successfully pulled image"));
    fleet.until_field("pod/asks", WAITING, "ImagePullBackOff");
}
