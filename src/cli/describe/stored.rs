//! Things that only hold data: Namespaces, ConfigMaps, Secrets, ServiceAccounts.

use base64::Engine;
use serde_json::Value;

use super::page::{Page, each, or_none, text};

/// A Namespace's page.
pub fn namespace(page: &mut Page, object: &Value) {
    page.head(object);
    page.field(0, "Status", text(&object["status"]["phase"]));
    page.wants_events = false;
}

fn sorted(map: &Value) -> Vec<(&String, &Value)> {
    let mut pairs: Vec<(&String, &Value)> = map.as_object().into_iter().flatten().collect();
    pairs.sort_by_key(|(key, _)| key.as_str());
    pairs
}

/// How many bytes a base64 text stands for.
fn byte_count(value: &Value) -> usize {
    base64::engine::general_purpose::STANDARD.decode(text(value)).map_or(0, |bytes| bytes.len())
}

/// A ConfigMap's page: the data as it is.
pub fn config_map(page: &mut Page, object: &Value) {
    page.head(object);
    page.raw("\nData\n====\n");
    for (key, value) in sorted(&object["data"]) {
        page.raw(&format!("{key}:\n----\n{}\n\n", text(value)));
    }
    page.raw("\nBinaryData\n====\n");
    for (key, value) in sorted(&object["binaryData"]) {
        page.raw(&format!("{key}: {} bytes\n", byte_count(value)));
    }
    page.raw("\n");
}

/// A Secret's page: only how much data there is.
pub fn secret(page: &mut Page, object: &Value) {
    page.head(object);
    page.raw(&format!("\nType:\t{}\n\nData\n====\n", text(&object["type"])));
    for (key, value) in sorted(&object["data"]) {
        page.field(0, key, format!("{} bytes", byte_count(value)));
    }
    page.wants_events = false;
}

/// A ServiceAccount's page.
pub fn service_account(page: &mut Page, object: &Value) {
    page.head(object);
    for (title, field) in [("Image pull secrets", "imagePullSecrets"), ("Mountable secrets", "secrets")] {
        let names: Vec<&str> = each(&object[field]).map(|entry| text(&entry["name"])).collect();
        page.field(0, title, or_none(names.first().copied().unwrap_or_default()));
        names.iter().skip(1).for_each(|name| page.line(0, format!("\t{name}")));
    }
    page.field(0, "Tokens", "<none>");
}
