//! The layer table of ARCHITECTURE.md, held against what cargo says.
#![allow(clippy::unwrap_used)] // a test says what is wrong by panicking

use serde_json::Value;
use std::collections::BTreeSet;
use std::process::Command;

/// Which crates of ours a crate may import.
const TABLE: [(&str, &[&str]); 12] = [
    ("manifests", &[]),
    ("state", &["manifests"]),
    ("scheduler", &["manifests", "state"]),
    ("controllers", &["manifests", "state"]),
    ("store", &["manifests", "state"]),
    ("sync", &["manifests", "state"]),
    ("runtime", &["manifests"]),
    ("netproxy", &["manifests"]),
    ("api", &["manifests", "state", "store"]),
    ("server", &["api", "controllers", "manifests", "scheduler", "state", "store", "sync"]),
    ("agent", &["controllers", "manifests", "netproxy", "runtime", "state", "store", "sync"]),
    ("coracle", &["agent", "api", "manifests", "server", "state", "sync"]),
];
/// Crates with IO that the minds must do without.
const NOT_IN_MINDS: [&str; 3] = ["tokio", "hyper", "redb"];
/// A crate that only one of ours may name.
const ONLY_IN: [(&str, &str); 4] =
    [("wasmtime", "runtime"), ("wasmtime-wasi", "runtime"), ("redb", "store"), ("hickory-proto", "netproxy")];

fn packages() -> Vec<Value> {
    let cargo = std::env::var("CARGO").unwrap();
    let output = Command::new(cargo).args(["metadata", "--format-version=1", "--no-deps"]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    metadata["packages"].as_array().unwrap().clone()
}

fn dependencies(package: &Value) -> BTreeSet<String> {
    let list = package["dependencies"].as_array().unwrap().iter();
    let normal = list.filter(|dependency| dependency["kind"].is_null());
    normal.map(|dependency| dependency["name"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn crates_import_downward_only() {
    let packages = packages();
    let ours: BTreeSet<String> = packages.iter().map(|p| p["name"].as_str().unwrap().to_owned()).collect();
    for package in &packages {
        let name = package["name"].as_str().unwrap();
        let Some((_, allowed)) = TABLE.iter().find(|(row, _)| *row == name) else {
            assert!(["benches", "xtask"].contains(&name), "{name} has no row in the layer table");
            continue;
        };
        let imported: Vec<String> = dependencies(package).intersection(&ours).cloned().collect();
        for dependency in imported {
            assert!(allowed.contains(&&*dependency), "{name} may not import {dependency}");
        }
    }
}

#[test]
fn minds_do_no_io_and_foreign_crates_stop_at_their_hand() {
    for package in packages() {
        let name = package["name"].as_str().unwrap().to_owned();
        let imported = dependencies(&package);
        if ["manifests", "state", "scheduler", "controllers"].contains(&&*name) {
            for foreign in NOT_IN_MINDS {
                assert!(!imported.contains(foreign), "{name} may not use {foreign}");
            }
        }
        for (foreign, hand) in ONLY_IN {
            assert!(name == hand || name == "benches" || !imported.contains(foreign), "{name} may not use {foreign}");
        }
    }
}
