//! What `kubectl cp` executes in a container, answered for any Wasm program.

use std::collections::BTreeMap;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use crate::common::{Node, argv, finish, spec};
use runtime::{Container, ExecOptions, Input, Mount, Output, Session};
use tar::{Archive, Builder, EntryType, Header};

/// An HTTP component, which has no command of its own, with a writable and a read-only directory.
struct Pod {
    node: Node,
    container: Container,
}

impl Pod {
    async fn new() -> Pod {
        let node = Node::new();
        let (mut spec, _) = spec(node.guest("web.wasm").await, &["web"]);
        for (name, read_only) in [("data", false), ("config", true)] {
            let host = node.dir.path().join(name);
            std::fs::create_dir(&host).unwrap();
            spec.mounts.push(Mount::open(&host, format!("/srv/{name}"), read_only).unwrap());
        }
        let container = node.start(spec);
        Pod { node, container }
    }

    fn host(&self, path: &str) -> std::path::PathBuf {
        self.node.dir.path().join(path)
    }

    async fn run(&self, args: &[&str]) -> (Vec<u8>, String, i32) {
        collect(self.container.exec(argv(args)).await.unwrap()).await
    }

    async fn extract(&self, args: &[&str], archive: Vec<u8>) -> (String, i32) {
        let session = self.container.exec(ExecOptions { stdin: true, ..argv(args) }).await.unwrap();
        let input = session.input.clone();
        let send = async {
            for piece in archive.chunks(10_000) {
                if input.send(Input::Data(piece.to_vec().into())).await.is_err() {
                    return;
                }
            }
            let _ = input.send(Input::End).await;
        };
        let ((), (_, err, code)) = futures::join!(send, collect(session));
        (err, code)
    }
}

async fn collect(session: Session) -> (Vec<u8>, String, i32) {
    let Session { input: _client, mut output, exit } = session;
    let (mut out, mut err) = (Vec::new(), String::new());
    while let Some(piece) = output.recv().await {
        match piece {
            Output::Stdout(bytes) => out.extend_from_slice(&bytes),
            Output::Stderr(bytes) => err += &String::from_utf8_lossy(&bytes),
        }
    }
    (out, err, exit.await.unwrap())
}

/// name -> what it is
fn listed(archive: &[u8]) -> BTreeMap<String, String> {
    let mut archive = Archive::new(archive);
    let entries = archive.entries().unwrap().map(|entry| {
        let mut entry = entry.unwrap();
        let header = entry.header().clone();
        let mut content = String::new();
        entry.read_to_string(&mut content).unwrap();
        let what = match header.entry_type() {
            EntryType::Directory => format!("dir {:o}", header.mode().unwrap()),
            EntryType::Symlink => format!("-> {}", entry.link_name().unwrap().unwrap().display()),
            _ => format!("{:o} {} {content:?}", header.mode().unwrap(), header.mtime().unwrap()),
        };
        (entry.path().unwrap().display().to_string(), what)
    });
    entries.collect()
}

fn member(builder: &mut Builder<Vec<u8>>, name: &str, kind: EntryType, link: &str, content: &str) {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(0o6777);
    header.set_mtime(1_000_000_000);
    header.set_size(content.len() as u64);
    if !link.is_empty() {
        header.set_link_name_literal(link).unwrap();
    }
    // As an attacker would: names no builder takes.
    header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
    header.set_cksum();
    builder.append(&header, content.as_bytes()).unwrap();
}

#[tokio::test]
async fn a_directory_comes_out_as_an_archive() {
    let pod = Pod::new().await;
    let long = "long-".repeat(30);
    std::fs::create_dir_all(pod.host("data/a/b")).unwrap();
    std::fs::write(pod.host("data/a/file"), "content").unwrap();
    std::fs::set_permissions(pod.host("data/a/file"), std::fs::Permissions::from_mode(0o640)).unwrap();
    std::fs::File::open(pod.host("data/a/file"))
        .unwrap()
        .set_modified(std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000))
        .unwrap();
    std::fs::create_dir(pod.host("data/a/b").join(&long)).unwrap();
    symlink("/etc/passwd", pod.host("data/a/out")).unwrap();
    let (out, err, code) = pod.run(&["tar", "cf", "-", "/srv/data/a"]).await;
    assert_eq!((err.as_str(), code), ("tar: Removing leading `/' from member names\n", 0));
    let list = listed(&out);
    assert_eq!(list["srv/data/a/file"], "640 1000000000 \"content\"");
    assert_eq!(list["srv/data/a/out"], "-> /etc/passwd");
    assert!(list.contains_key(&format!("srv/data/a/b/{long}/")), "{list:?}");
    assert_eq!(list.len(), 5, "{list:?}");
    // Going on after a break gives the rest of the same bytes.
    let (rest, _, code) = pod.run(&["sh", "-c", "tar cf - /srv/data/a | tail -c+1001"]).await;
    assert_eq!((&rest[..], code), (&out[1000..], 0));
    // Directories that are only there because of the mounts below them.
    let (out, _, code) = pod.run(&["tar", "cf", "-", "/srv"]).await;
    assert_eq!(code, 0);
    assert!(listed(&out).contains_key("srv/config/"));
}

#[tokio::test]
async fn what_is_not_there_is_said_as_tar_says_it() {
    let pod = Pod::new().await;
    for path in ["/etc/passwd", "/srv/data/none", "/srv/data/../../etc"] {
        let (out, err, code) = pod.run(&["tar", "cf", "-", path]).await;
        assert_eq!(code, 2);
        assert!(err.contains("Cannot stat: No such file or directory"), "{path}: {err}");
        assert!(err.ends_with("tar: Exiting with failure status due to previous errors\n"), "{err}");
        assert!(listed(&out).is_empty());
    }
    let (err, code) = pod.extract(&["tar", "-xmf", "-", "-C", "/nowhere"], Vec::new()).await;
    assert_eq!(code, 2);
    assert_eq!(
        err,
        "tar: /nowhere: Cannot open: No such file or directory\ntar: Error is not recoverable: exiting now\n"
    );
    std::fs::write(pod.host("data/file"), "").unwrap();
    symlink("/etc", pod.host("data/out")).unwrap();
    for (args, want) in [
        (["test", "-d", "/srv/data"], 0),
        (["test", "-d", "/srv"], 0),
        (["test", "-d", "/srv/data/file"], 1),
        (["test", "-f", "/srv/data/file"], 0),
        (["test", "-d", "/srv/data/out"], 1),
        (["test", "-d", "/etc"], 1),
    ] {
        assert_eq!(pod.run(&args).await.2, want, "{args:?}");
    }
}

#[tokio::test]
async fn an_archive_goes_in() {
    let pod = Pod::new().await;
    let mut builder = Builder::new(Vec::new());
    let long = format!("dir/{}", "long-".repeat(40));
    member(&mut builder, "dir/", EntryType::Directory, "", "");
    member(&mut builder, "dir/file", EntryType::Regular, "", "content");
    member(&mut builder, "dir/hard", EntryType::Link, "dir/file", "");
    member(&mut builder, "dir/soft", EntryType::Symlink, "file", "");
    let mut header = Header::new_gnu();
    header.set_mode(0o600);
    header.set_size(4);
    builder.append_data(&mut header, &long, &b"long"[..]).unwrap();
    let mut header = Header::new_ustar();
    header.set_mode(0o600);
    builder.append_pax_extensions([("path", "dir/pax-é".as_bytes()), ("size", b"3")]).unwrap();
    header.set_path("x").unwrap();
    header.set_size(3);
    header.set_cksum();
    builder.append(&header, &b"pax"[..]).unwrap();
    let archive = builder.into_inner().unwrap();
    assert_eq!(pod.extract(&["tar", "xf", "-", "-C", "/srv/data"], archive.clone()).await, (String::new(), 0));
    let read = |path: &str| std::fs::read_to_string(pod.host("data").join(path)).unwrap();
    assert_eq!(read("dir/file"), "content");
    assert_eq!(read("dir/hard"), "content");
    assert_eq!(read("dir/soft"), "content");
    assert_eq!(read(&long), "long");
    assert_eq!(read("dir/pax-é"), "pax");
    let found = std::fs::metadata(pod.host("data/dir/file")).unwrap();
    assert_eq!((found.mode() & 0o7777, found.mtime(), found.nlink()), (0o777, 1_000_000_000, 2));
    // Again, as kubectl does it: over what is there, through the directory above the mounts, with new times.
    let mut builder = Builder::new(Vec::new());
    member(&mut builder, "data/dir/soft", EntryType::Regular, "", "no longer a link");
    let args = ["tar", "--no-same-permissions", "--no-same-owner", "-xmf", "-", "-C", "/srv"];
    assert_eq!(pod.extract(&args, builder.into_inner().unwrap()).await, (String::new(), 0));
    assert_eq!((read("dir/soft").as_str(), read("dir/file").as_str()), ("no longer a link", "content"));
    let found = std::fs::metadata(pod.host("data/dir/soft")).unwrap();
    assert_eq!(found.mode() & 0o7777, 0o755);
    assert!(found.mtime() > 1_000_000_000);
}

#[tokio::test]
async fn an_archive_cannot_leave_its_mount() {
    let pod = Pod::new().await;
    let outside = pod.host("outside");
    std::fs::create_dir(&outside).unwrap();
    symlink(&outside, pod.host("data/absolute")).unwrap();
    symlink("../outside", pod.host("data/relative")).unwrap();
    std::fs::write(pod.host("config/file"), "kept").unwrap();
    let cases = [
        ("../outside/x", EntryType::Regular, "", "Member name contains '..'"),
        ("absolute/x", EntryType::Regular, "", "Cannot"),
        ("relative/x", EntryType::Regular, "", "Cannot"),
        ("absolute/dir/x", EntryType::Directory, "", "Cannot"),
        ("etc", EntryType::Symlink, "/etc", "Cannot create symlink to '/etc': Operation not permitted"),
        ("hard", EntryType::Link, "../outside/secret", "Member name contains '..'"),
        ("hard", EntryType::Link, "absolute/secret", "Cannot hard link"),
        ("fifo", EntryType::Fifo, "", "Cannot create special file: Operation not permitted"),
        ("device", EntryType::Block, "", "Cannot create special file: Operation not permitted"),
    ];
    std::fs::write(outside.join("secret"), "secret").unwrap();
    for (name, kind, link, want) in cases {
        let mut builder = Builder::new(Vec::new());
        member(&mut builder, name, kind, link, "");
        // What can be taken still is.
        member(&mut builder, "fine", EntryType::Regular, "", name);
        let archive = builder.into_inner().unwrap();
        let (err, code) = pod.extract(&["tar", "xf", "-", "-C", "/srv/data"], archive).await;
        assert_eq!(code, 2, "{name}");
        assert!(err.contains(want), "{name}: {err}");
        assert_eq!(std::fs::read_to_string(pod.host("data/fine")).unwrap(), name);
    }
    // A link that leads out may be made, as a guest could, and is not followed.
    let mut builder = Builder::new(Vec::new());
    member(&mut builder, "way", EntryType::Symlink, "../outside", "");
    member(&mut builder, "way/x", EntryType::Regular, "", "x");
    member(&mut builder, "/absolute-name", EntryType::Regular, "", "x");
    let (err, code) = pod.extract(&["tar", "xf", "-", "-C", "/srv/data"], builder.into_inner().unwrap()).await;
    assert_eq!(code, 2);
    assert!(err.contains("tar: way/x: Cannot"), "{err}");
    assert!(Path::exists(&pod.host("data/absolute-name")) && !Path::exists(Path::new("/absolute-name")));
    let left: Vec<_> = std::fs::read_dir(&outside).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["secret"]);
    // Read-only is read-only.
    let mut builder = Builder::new(Vec::new());
    member(&mut builder, "file", EntryType::Regular, "", "changed");
    let (err, code) = pod.extract(&["tar", "xf", "-", "-C", "/srv/config"], builder.into_inner().unwrap()).await;
    assert_eq!(code, 2);
    assert!(err.starts_with("tar: file: Cannot open: Read-only file system\n"), "{err}");
    assert_eq!(std::fs::read_to_string(pod.host("config/file")).unwrap(), "kept");
    // Not an archive at all.
    let (err, code) = pod.extract(&["tar", "xf", "-", "-C", "/srv/data"], vec![b'x'; 4096]).await;
    assert_eq!(code, 2);
    assert!(err.starts_with("tar: This does not look like a tar archive\n"), "{err}");
}

#[tokio::test]
async fn large_files_stream() {
    let pod = Pod::new().await;
    let file = std::fs::File::create(pod.host("data/big")).unwrap();
    // A hole: large without taking space.
    file.set_len(256 << 20).unwrap();
    let mut session = pod.container.exec(argv(&["tar", "cf", "-", "/srv/data/big"])).await.unwrap();
    let mut bytes = 0;
    while let Some(piece) = session.output.recv().await {
        if let Output::Stdout(piece) = piece {
            bytes += piece.len();
            assert!(piece.len() < 1 << 20);
        }
    }
    assert!(bytes >= 256 << 20);
    assert_eq!(session.exit.await.unwrap(), 0);
    // A client that goes away in the middle leaves nothing running.
    let mut session = pod.container.exec(argv(&["tar", "cf", "-", "/srv/data/big"])).await.unwrap();
    session.output.recv().await.unwrap();
    drop(session.output);
    assert_eq!(session.exit.await.unwrap(), 137);
    let session = pod.container.exec(argv(&["tar", "cf", "-", "/srv/data/big"])).await.unwrap();
    pod.container.kill();
    assert_eq!(finish(session).await.2, 137);
}
