//! Loading: what is a program and what is not, and compiled code kept on disk.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::common::{Node, spec};
use expect_test::{Expect, expect};
use runtime::{Wasm, WasmConfig, WasmError};

async fn refused(node: &Node, bytes: &[u8], want: Expect) {
    let file = node.file("bad.wasm", bytes);
    let error = node.wasm.load(&file).await.unwrap_err().to_string();
    want.assert_eq(&error.replace(&node.dir.path().display().to_string(), ""));
}

#[tokio::test]
async fn what_is_no_program_is_refused_with_the_reason() {
    let node = Node::with(|config| config.wasm_bytes_max = 1 << 20);
    let wat = |text: &str| wat::parse_str(text).unwrap();
    refused(&node, b"", expect!["/bad.wasm is not a WebAssembly file: it is empty"]).await;
    refused(
        &node,
        b"#!/bin/sh\n",
        expect![[r"/bad.wasm is not a WebAssembly file: it does not begin with the bytes `\0asm`"]],
    )
    .await;
    refused(&node, b"\0asm\x09\0\0\0", expect!["/bad.wasm is not a WebAssembly file: unknown version in its header"])
        .await;
    refused(&node, b"\0asm\x01\0\0\0\x01\xff", expect!["/bad.wasm is not a WebAssembly file: failed to parse WebAssembly module: unexpected end-of-file (at offset 0xa)"]).await;
    refused(&node, &vec![0; (1 << 20) + 1], expect!["/bad.wasm has 1048577 bytes, more than the limit of 1048576"])
        .await;
    refused(
        &node,
        &wat("(module)"),
        expect!["/bad.wasm cannot run here: the module exports no function _start: it is not a WASI command"],
    )
    .await;
    refused(
        &node,
        &wat(r#"(module (import "env" "emscripten_memcpy" (func)) (func (export "_start")))"#),
        expect!["/bad.wasm cannot run here: module imports env::emscripten_memcpy which is not provided"],
    )
    .await;
    refused(&node, &wat("(component)"), expect!["/bad.wasm cannot run here: the component exports neither wasi:http/incoming-handler nor wasi:cli/run: it exports nothing"]).await;
    refused(
        &node,
        &wat(r#"(component (import "acme:keys/store@1.0.0" (instance (export "get" (func)))))"#),
        expect!["/bad.wasm cannot run here: component imports instance `acme:keys/store@1.0.0`, but a matching implementation was not found in the linker: instance export `get` has the wrong type: function implementation is missing"],
    )
    .await;
    refused(
        &node,
        &wat(r#"(component (import "wasi:clocks/system-clock@0.3.0" (instance (export "get-resolution" (func (result u64))))))"#),
        expect!["/bad.wasm cannot run here: it is a WASI preview 3 component, and preview 3 is switched off on this node"],
    )
    .await;
    let missing = node.wasm.load(Path::new("/nowhere/app.wasm")).await.unwrap_err();
    assert_eq!(missing.to_string(), "/nowhere/app.wasm: no such file");
    let directory = node.wasm.load(node.dir.path()).await.unwrap_err();
    assert!(directory.to_string().starts_with("cannot read "));
}

fn entries(node: &Node, extension: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(node.dir.path().join("cache")).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    paths.filter(|path| path.extension().is_some_and(|found| found == extension)).collect()
}

/// A second node on the same directory, as after a restart.
fn restarted(node: &Node) -> Wasm {
    let mut config = WasmConfig::new(node.dir.path().join("cache"), tokio::runtime::Handle::current());
    config.instances_max = 10;
    Wasm::new(config).unwrap()
}

#[tokio::test]
async fn compiled_code_is_kept_and_damage_is_noticed() {
    let node = Node::with(|config| config.instances_max = 10);
    let file = node.file("app.wasm", &wat::parse_str(r#"(module (func (export "_start")))"#).unwrap());
    let loads = (0..100).map(|_| node.wasm.load(&file));
    let programs = futures::future::try_join_all(loads).await.unwrap();
    assert!(programs.iter().all(|program| program.digest() == programs[0].digest()));
    let [entry] = &entries(&node, "cwasm")[..] else { panic!("one entry") };
    assert_eq!(fs::metadata(node.dir.path().join("cache")).unwrap().permissions().mode() & 0o777, 0o700);

    let written = fs::metadata(entry).unwrap().modified().unwrap();
    restarted(&node).load(&file).await.unwrap();
    assert_eq!(fs::metadata(entry).unwrap().modified().unwrap(), written, "mapped, not compiled");

    // A new file in its place: others still have the old one mapped.
    let mut bytes = fs::read(entry).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::remove_file(entry).unwrap();
    fs::write(entry, &bytes).unwrap();
    let again = restarted(&node).load(&file).await.unwrap();
    assert_ne!(fs::read(entry).unwrap(), bytes, "compiled again");
    let (spec, _) = spec(again, &[]);
    assert_eq!(node.start(spec).exited().await.code, 0);
}

#[tokio::test]
async fn the_least_recently_used_code_goes_first() {
    let node = Node::with(|config| config.cache_bytes_max = 40_000);
    for number in 0..4 {
        let text = format!(r#"(module (func (export "_start") (drop (i32.const {number}))))"#);
        drop(node.wat(&text).await);
        for entry in entries(&node, "cwasm") {
            // Older than anything new, in the order they came.
            let old = fs::metadata(&entry)
                .unwrap()
                .modified()
                .unwrap()
                .min(SystemTime::now() - std::time::Duration::from_secs(60));
            fs::File::open(&entry).unwrap().set_modified(old - std::time::Duration::from_secs(1)).unwrap();
        }
    }
    let total: u64 = entries(&node, "cwasm").iter().map(|entry| fs::metadata(entry).unwrap().len()).sum();
    assert!(total <= 40_000, "{total}");
    assert_eq!(entries(&node, "cwasm").len(), entries(&node, "sha256").len());
}

#[tokio::test]
async fn a_cache_that_cannot_be_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("file"), "").unwrap();
    let config = WasmConfig::new(dir.path().join("file/cache"), tokio::runtime::Handle::current());
    assert!(matches!(Wasm::new(config), Err(WasmError::Cache { .. })));
}
