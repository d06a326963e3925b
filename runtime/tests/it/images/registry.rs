//! `docker-registry` on a free port with a directory of its own, and what is put into it.

use std::io::Write as _;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Method, Request};
use http_body_util::{BodyExt as _, Full};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::sha256;

/// `user` with the password `s3cret`, as bcrypt has it.
const HTPASSWD: &str = "user:$2b$05$abcdefghijklmnopqrstuuLK7U1u6pVRmL7L1BBM2aS35PSZnDXlK\n";

pub struct Registry {
    pub host: String,
    dir: TempDir,
    child: Child,
}

/// A program that is like no other number's, of always the same size.
pub fn wasm(number: u8) -> Vec<u8> {
    let mut bytes = b"\0asm\x01\0\0\0\0\x83\x20\x01x".to_vec();
    bytes.extend(std::iter::repeat_n(number, 4097));
    bytes
}

/// A container image before it is anywhere.
pub struct ContainerImage {
    config: Vec<u8>,
    layers: Vec<Vec<u8>>,
}

pub fn container_image((os, architecture): (&str, &str), run: &Value, layers: &[&Vec<u8>]) -> ContainerImage {
    let config = json!({"os": os, "architecture": architecture, "config": run, "rootfs": {"type": "layers"}});
    let config = serde_json::to_vec(&config).unwrap();
    ContainerImage { config, layers: layers.iter().map(|layer| (*layer).clone()).collect() }
}

impl ContainerImage {
    fn manifest(&self, annotations: &Value) -> Vec<u8> {
        let layers: Vec<Value> = self
            .layers
            .iter()
            .map(|layer| {
                json!({"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": sha256(layer),
                    "size": layer.len()})
            })
            .collect();
        let config = json!({"mediaType": "application/vnd.oci.image.config.v1+json", "digest": sha256(&self.config),
            "size": self.config.len()});
        let manifest = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": config, "layers": layers, "annotations": annotations});
        serde_json::to_vec(&manifest).unwrap()
    }
}

fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, bytes) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, *bytes).unwrap();
    }
    builder.into_inner().unwrap()
}

pub fn packed(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// A packed layer.
pub fn layer(files: &[(&str, &[u8])]) -> Vec<u8> {
    packed(&tar(files))
}

pub fn oci_layout(image: &ContainerImage) -> Vec<u8> {
    let manifest = image.manifest(&json!({}));
    let entry = json!({"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": sha256(&manifest),
        "size": manifest.len()});
    let index = serde_json::to_vec(&json!({"schemaVersion": 2, "manifests": [entry]})).unwrap();
    let place = |bytes: &[u8]| sha256(bytes).replace("sha256:", "blobs/sha256/");
    let mut files = vec![("index.json".to_owned(), index), (place(&manifest), manifest)];
    files.push((place(&image.config), image.config.clone()));
    files.extend(image.layers.iter().map(|layer| (place(layer), layer.clone())));
    tar(&files.iter().map(|(name, bytes)| (name.as_str(), &bytes[..])).collect::<Vec<_>>())
}

pub fn docker_save(image: &ContainerImage) -> Vec<u8> {
    let names: Vec<String> = (0..image.layers.len()).map(|number| format!("{number}/layer.tar")).collect();
    let saved = serde_json::to_vec(&json!([{"Config": "c.json", "RepoTags": ["a:1"], "Layers": names}])).unwrap();
    let mut files = vec![("manifest.json", &saved[..]), ("c.json", &image.config)];
    files.extend(names.iter().zip(&image.layers).map(|(name, layer)| (name.as_str(), &layer[..])));
    tar(&files)
}

impl Registry {
    /// None, and a line that says so, where there is no docker-registry.
    pub fn start(with_users: bool) -> Option<Registry> {
        // The port is free when it is chosen, and may be taken by the time it is bound.
        (0..5).find_map(|_| match Registry::try_start(with_users) {
            Ok(started) => started.map(Some),
            Err(error) => {
                println!("not run: needs docker-registry (cargo xtask test): {error}");
                Some(None)
            }
        })?
    }

    fn try_start(with_users: bool) -> std::io::Result<Option<Registry>> {
        let dir = tempfile::tempdir()?;
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let host = format!("127.0.0.1:{port}");
        let place = dir.path().display();
        let mut config = format!(
            "version: 0.1\nlog: {{level: info, accesslog: {{disabled: true}}}}\n\
             storage: {{filesystem: {{rootdirectory: {place}/data}}, delete: {{enabled: true}}}}\n\
             http: {{addr: \"{host}\"}}\n"
        );
        if with_users {
            std::fs::write(dir.path().join("users"), HTPASSWD)?;
            config.push_str(&format!("auth: {{htpasswd: {{realm: test, path: {place}/users}}}}\n"));
        }
        std::fs::write(dir.path().join("config.yml"), config)?;
        let log = std::fs::File::create(dir.path().join("log"))?;
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(dir.path().join("config.yml"))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        let mut registry = Registry { host, dir, child };
        let deadline = Instant::now() + Duration::from_secs(30);
        while TcpStream::connect(&registry.host).is_err() {
            if registry.child.try_wait()?.is_some() {
                return Ok(None);
            }
            assert!(Instant::now() < deadline, "docker-registry does not answer: {}", registry.log());
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(Some(registry))
    }

    pub fn stop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    pub fn name(&self, rest: &str) -> String {
        format!("{}/{rest}", self.host)
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// How often a blob was given out.
    pub fn blob_reads(&self, digest: &str) -> usize {
        let lines = self.log();
        let reads = lines.lines().filter(|line| line.contains("response completed"));
        reads
            .filter(|line| line.contains("http.request.method=GET") && line.contains(&format!("blobs/{digest}")))
            .count()
    }

    /// Changes a byte of what the registry has stored; answers the digest of what it is now.
    pub fn damage(&self, digest: &str) -> String {
        let path = self.stored(digest);
        let mut bytes = std::fs::read(&path).unwrap();
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        sha256(&bytes)
    }

    fn stored(&self, digest: &str) -> PathBuf {
        let hex = digest.trim_start_matches("sha256:");
        let blobs = Path::new("data/docker/registry/v2/blobs/sha256");
        self.dir.path().join(blobs).join(&hex[..2]).join(hex).join("data")
    }

    /// Puts a container image there; answers its manifest's digest and size.
    pub async fn push(&self, image: &ContainerImage, annotations: &Value, name: &str) -> (String, usize) {
        let (path, tag) = name.split_once(':').unwrap();
        for blob in image.layers.iter().chain([&image.config]) {
            let answer = self.call(Method::POST, &format!("/v2/{path}/blobs/uploads/"), "", Vec::new()).await;
            let place = answer.headers()["location"].to_str().unwrap().to_owned();
            let place = place.trim_start_matches(&format!("http://{}", self.host));
            let place = format!("{place}&digest={}", sha256(blob));
            self.call(Method::PUT, &place, "application/octet-stream", blob.clone()).await;
        }
        let manifest = image.manifest(annotations);
        let kind = "application/vnd.oci.image.manifest.v1+json";
        self.call(Method::PUT, &format!("/v2/{path}/manifests/{tag}"), kind, manifest.clone()).await;
        (sha256(&manifest), manifest.len())
    }

    pub async fn push_index(&self, entries: &[Value], name: &str) {
        let (path, tag) = name.split_once(':').unwrap();
        let kind = "application/vnd.oci.image.index.v1+json";
        let index = json!({"schemaVersion": 2, "mediaType": kind, "manifests": entries});
        let text = serde_json::to_vec(&index).unwrap();
        self.call(Method::PUT, &format!("/v2/{path}/manifests/{tag}"), kind, text).await;
    }

    async fn call(&self, method: Method, path: &str, kind: &str, body: Vec<u8>) -> http::Response<Bytes> {
        let client = Client::builder(TokioExecutor::new()).build_http();
        let request = Request::builder()
            .method(method)
            .uri(format!("http://{}{path}", self.host))
            .header("content-type", kind)
            .body(Full::new(Bytes::from(body)))
            .unwrap();
        let (head, body) = client.request(request).await.unwrap().into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        assert!(head.status.is_success(), "{path}: {} {}", head.status, String::from_utf8_lossy(&body));
        http::Response::from_parts(head, body)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.stop();
    }
}
