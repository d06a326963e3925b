//! `coracle image`: Wasm images into a registry, and the store of the node on this machine, which a master hands on.
//!
//! Unlike the other verbs it needs no API server: the store is a directory, which a running node may use at the same
//! time. Deliberately absent: pushing container images, for which Docker has its own verbs.

use std::io::Read;
use std::path::{Path, PathBuf};

use agent::images::{
    Credential, ImageError, ImageLimits, Images, Parsed, Reference, Source, Stored, docker_config, parse, push_file,
};
use jiff::Timestamp;
use serde_json::json;

use super::duration;
use super::failure::{Failure, Result, all_of, fail, usage};
use super::output::{gojson, line, out, tabs};

/// A password, or a file of passwords.
const SECRET_BYTES_MAX: u64 = 1 << 20;

/// What can be done with images.
#[derive(Debug, clap::Subcommand)]
pub enum ImageCommand {
    /// Upload a Wasm program, a file or an image of the node's store, to a registry
    Push(PushArgs),
    /// Bring an image into the node's store, on the master for all nodes: a .wasm file, an OCI image layout in a tar, or a file of docker save
    Import(ImportArgs),
    /// List the images of the node's store
    #[command(visible_alias = "ls")]
    List(ListArgs),
    /// Remove images from the node's store
    Rm(RmArgs),
}

/// Where the node's store is.
#[derive(Debug, clap::Args)]
pub struct StoreArgs {
    /// Folder that holds the server's state [default: /var/lib/coracle, or $XDG_DATA_HOME/coracle when not root]
    #[arg(short = 'd', long, env = "CORACLE_DATA_DIR", value_name = "DIR")]
    data_dir: Option<PathBuf>,
}

/// Arguments of `push`.
#[derive(Debug, clap::Args)]
pub struct PushArgs {
    /// A .wasm file, or an image of the node's store
    #[arg(value_name = "FILE|IMAGE")]
    source: String,
    /// Where it goes
    #[arg(value_name = "REGISTRY/NAME:TAG")]
    target: String,
    /// Username for the registry
    #[arg(short = 'u', long)]
    username: Option<String>,
    /// Take the password from stdin
    #[arg(long)]
    password_stdin: bool,
    /// Path of the file with credentials of registries [default: ~/.docker/config.json]
    #[arg(long, value_name = "FILE")]
    authfile: Option<PathBuf>,
    #[command(flatten)]
    store: StoreArgs,
}

/// Arguments of `import`.
#[derive(Debug, clap::Args)]
pub struct ImportArgs {
    /// The file
    file: PathBuf,
    /// The image's name
    #[arg(value_name = "NAME:TAG")]
    name: String,
    #[command(flatten)]
    store: StoreArgs,
}

/// Arguments of `list`.
#[derive(Debug, clap::Args)]
pub struct ListArgs {
    /// Output format: json
    #[arg(short = 'o', long)]
    output: Option<String>,
    #[command(flatten)]
    store: StoreArgs,
}

/// Arguments of `rm`.
#[derive(Debug, clap::Args)]
pub struct RmArgs {
    /// Names of images
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
    #[command(flatten)]
    store: StoreArgs,
}

/// Carries out one of them.
pub async fn run(command: ImageCommand) -> Result<()> {
    match command {
        ImageCommand::Push(args) => push(args).await,
        ImageCommand::Import(args) => import(args).await,
        ImageCommand::List(args) => list(args).await,
        ImageCommand::Rm(args) => remove(args).await,
    }
}

async fn push(args: PushArgs) -> Result<()> {
    let target = registry_name(&args.target)?;
    let Some(tag) = target.tag().filter(|_| target.digest().is_none()) else {
        return usage("image push", format!("{:?}: want a tag, not a digest", args.target));
    };
    let credentials = credentials(&args, &target)?;
    line(&format!("The push refers to repository [{}]", target.repository()));
    let pushed = match source_file(&args.source) {
        Some(file) => push_file(&file, &target, &credentials).await,
        None => open(&args.store)?.push(&args.source, &target, &credentials).await,
    };
    let pushed = pushed.map_err(failure)?;
    line(&format!("{}: Pushed", short(&pushed.layer)));
    line(&format!("{tag}: digest: {} size: {}", pushed.digest, pushed.manifest_bytes));
    Ok(())
}

async fn import(args: ImportArgs) -> Result<()> {
    let name = registry_name(&args.name)?;
    let stored = open(&args.store)?.import(&args.file, &name).await.map_err(failure)?;
    line(&format!("Loaded image: {}", stored.reference));
    let data_dir = data_dir(&args.store)?;
    if data_dir.join("agent/identity").exists() && !data_dir.join("server").exists() {
        eprintln!("Warning: this machine is no master: the image is for pods of this node only");
    }
    Ok(())
}

async fn list(args: ListArgs) -> Result<()> {
    let json = match args.output.as_deref() {
        None => false,
        Some("json") => true,
        Some(other) => {
            return fail(format!(
                "unable to match a printer suitable for the output format {other:?}, allowed formats are: json"
            ));
        }
    };
    let found = open(&args.store)?.list().await.map_err(failure)?;
    if !json {
        out(&tabs::grid(&rows(&found, Timestamp::now())));
        return Ok(());
    }
    let items = found.iter().map(|stored| {
        json!({
            "reference": stored.reference,
            "digest": stored.digest,
            "program": format!("sha256:{}", stored.blob),
            "size": stored.bytes,
            "created": stored.created,
            "source": stored.source,
            "content": stored.content,
        })
    });
    line(&gojson::pretty(&items.collect()));
    Ok(())
}

async fn remove(args: RmArgs) -> Result<()> {
    let images = open(&args.store)?;
    let mut failures = Vec::new();
    for image in &args.images {
        match images.remove(image).await {
            Ok(removed) => {
                line(&format!("Untagged: {}", removed.untagged));
                if let Some(deleted) = removed.deleted {
                    line(&format!("Deleted: {deleted}"));
                }
            }
            Err(error) => failures.push(failure(error)),
        }
    }
    all_of(failures)
}

fn data_dir(args: &StoreArgs) -> Result<PathBuf> {
    match &args.data_dir {
        Some(data_dir) => Ok(data_dir.clone()),
        None => crate::cluster::default_data_dir().map_err(|error| Failure::Text(format!("{error:#}"))),
    }
}

fn open(args: &StoreArgs) -> Result<Images> {
    Images::open(&data_dir(args)?.join("agent/images"), ImageLimits::default()).map_err(failure)
}

/// A file if it is there or can be nothing else; else the name of an image.
fn source_file(source: &str) -> Option<PathBuf> {
    if let Some(path) = source.strip_prefix("file://") {
        return Some(path.into());
    }
    let is_path = source.starts_with(['/', '.']) || source.ends_with(".wasm") || Path::new(source).is_file();
    (is_path && !source.contains("://")).then(|| source.into())
}

fn registry_name(image: &str) -> Result<Reference> {
    match parse(image).map_err(failure)? {
        Parsed::Registry(reference) => Ok(reference),
        Parsed::File(_) | Parsed::Https(_) => fail(format!("{image:?} is not a name in a registry: want NAME:TAG")),
    }
}

/// The user's word first, then the file's.
fn credentials(args: &PushArgs, target: &Reference) -> Result<Vec<Credential>> {
    match (&args.username, args.password_stdin) {
        (None, false) => from_file(args.authfile.as_deref()),
        (None, true) => usage("image push", "--password-stdin needs --username"),
        (Some(_), false) => usage("image push", "--username needs --password-stdin"),
        (Some(username), true) => {
            let mut password = String::new();
            let read = std::io::stdin().lock().take(SECRET_BYTES_MAX).read_to_string(&mut password);
            read.map_err(|error| Failure::Text(format!("read the password from stdin: {error}")))?;
            let password = password.trim_end_matches(['\r', '\n']).to_owned();
            Ok(vec![Credential { server: target.host().to_owned(), username: username.clone(), password }])
        }
    }
}

fn from_file(given: Option<&Path>) -> Result<Vec<Credential>> {
    let Some(path) = given.map(Path::to_owned).or_else(docker_config_path) else { return Ok(Vec::new()) };
    let mut text = Vec::new();
    match std::fs::File::open(&path) {
        Ok(file) => file.take(SECRET_BYTES_MAX).read_to_end(&mut text),
        Err(error) if given.is_none() && error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => Err(error),
    }
    .map_err(|error| Failure::Text(format!("read {}: {error}", path.display())))?;
    docker_config(&text).map_err(|detail| Failure::Text(format!("{}: {detail}", path.display())))
}

fn docker_config_path() -> Option<PathBuf> {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let dir = set("DOCKER_CONFIG").or_else(|| set("HOME").map(|home| home.join(".docker")));
    dir.map(|dir| dir.join("config.json"))
}

fn failure(error: ImageError) -> Failure {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(&error);
    while let Some(found) = cause {
        text = format!("{text}: {found}");
        cause = found.source();
    }
    Failure::Text(text)
}

/// As Docker's table, with the digest that a pod can name.
fn rows(found: &[Stored], now: Timestamp) -> Vec<Vec<String>> {
    let head = ["REPOSITORY", "TAG", "DIGEST", "CREATED", "SIZE", "FROM"].map(String::from).to_vec();
    let row = |stored: &Stored| {
        let (repository, tag) = match parse(&stored.reference) {
            Ok(Parsed::Registry(reference)) => {
                (reference.familiar_repository(), reference.tag().unwrap_or("<none>").to_owned())
            }
            // A file behind an address.
            _ => (stored.reference.rsplit_once('@').map_or("", |(address, _)| address).to_owned(), "<none>".into()),
        };
        let age = format!("{} ago", duration::since(Some(&stored.created), now));
        vec![repository, tag, stored.digest.clone(), age, size(stored.bytes), from(stored.source).to_owned()]
    };
    std::iter::once(head).chain(found.iter().map(row)).collect()
}

/// Where an image came from, which says who decides about its name. A master hands on what was imported, and what is from
/// registries as they allow.
fn from(source: Source) -> &'static str {
    match source {
        Source::Imported => "import",
        Source::Master => "master",
        Source::Public | Source::Private => "registry",
    }
}

/// Twelve digits, as Docker shows them.
fn short(digest: &str) -> &str {
    let hex = digest.trim_start_matches("sha256:");
    hex.get(..12).unwrap_or(hex)
}

/// Three digits and a decimal unit: `1.23MB`.
fn size(bytes: u64) -> String {
    let (mut value, mut unit) = (bytes as f64, "B");
    for next in ["kB", "MB", "GB"] {
        if value < 1000.0 {
            break;
        }
        (value, unit) = (value / 1000.0, next);
    }
    let digits = match value {
        _ if unit == "B" => 0,
        v if v < 10.0 => 2,
        v if v < 100.0 => 1,
        _ => 0,
    };
    format!("{value:.digits$}{unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table() {
        let stored = |reference: &str, bytes, source| Stored {
            reference: reference.into(),
            digest: "sha256:0123".into(),
            blob: "4567".into(),
            bytes,
            created: "2026-01-01T00:00:00Z".into(),
            config: agent::images::ImageConfig::default(),
            source,
            content: agent::images::Content::Program,
        };
        let hex = "0".repeat(64);
        let all = [
            stored("docker.io/library/app:v1", 999, Source::Imported),
            stored("localhost:5000/a/b:latest", 1_234_567, Source::Master),
            stored(&format!("https://a.b/app.wasm@sha256:{hex}"), 25_000, Source::Public),
        ];
        let table = tabs::grid(&rows(&all, "2026-01-01T00:05:00Z".parse().unwrap()));
        expect_test::expect![[r#"
            REPOSITORY             TAG      DIGEST        CREATED   SIZE     FROM
            app                    v1       sha256:0123   5m ago    999B     import
            localhost:5000/a/b     latest   sha256:0123   5m ago    1.23MB   master
            https://a.b/app.wasm   <none>   sha256:0123   5m ago    25.0kB   registry
        "#]]
        .assert_eq(&table);
    }

    #[test]
    fn files_and_names() {
        for (source, want) in [
            ("app.wasm", Some("app.wasm")),
            ("./app", Some("./app")),
            ("file:///srv/app.wasm", Some("/srv/app.wasm")),
            ("app:v1", None),
            ("ghcr.io/a/app:v1", None),
        ] {
            assert_eq!(source_file(source), want.map(PathBuf::from), "{source}");
        }
    }
}
