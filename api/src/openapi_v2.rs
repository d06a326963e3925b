//! The least of OpenAPI v2 that kubectl 1.27 asks for before it sends anything: that PATCH of each kind takes the
//! parameter `fieldValidation`. In protobuf (gnostic's `openapi.v2.Document`), the only form kubectl reads it in.
//!
//! Deliberately absent: definitions. What needs schemas (`explain`, newer kubectls) reads OpenAPI v3.

use manifests::Kind;

/// Media type that clients ask for.
pub const ACCEPTED: &str = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";
/// Media type that they are answered with: Go does not parse the other one.
pub const CONTENT_TYPE: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";

// Field numbers of gnostic's OpenAPIv2.proto, by message.
const DOCUMENT_SWAGGER: u32 = 1;
const DOCUMENT_INFO: u32 = 2;
const DOCUMENT_PATHS: u32 = 8;
const INFO_TITLE: u32 = 1;
const INFO_VERSION: u32 = 2;
const PATHS_PATH: u32 = 2;
const NAMED_NAME: u32 = 1;
const NAMED_VALUE: u32 = 2;
const PATH_ITEM_PATCH: u32 = 8;
const OPERATION_PARAMETERS: u32 = 8;
const OPERATION_EXTENSION: u32 = 13;
const PARAMETERS_ITEM_PARAMETER: u32 = 1;
const PARAMETER_NON_BODY: u32 = 2;
const NON_BODY_QUERY: u32 = 3;
const QUERY_IN: u32 = 2;
const QUERY_NAME: u32 = 4;
const QUERY_TYPE: u32 = 6;
const ANY_YAML: u32 = 2;

/// The document, for all kinds.
pub fn document(git_version: &str) -> Vec<u8> {
    let mut document = Vec::new();
    put(&mut document, DOCUMENT_SWAGGER, b"2.0");
    let mut info = Vec::new();
    put(&mut info, INFO_TITLE, b"Kubernetes");
    put(&mut info, INFO_VERSION, git_version.as_bytes());
    put(&mut document, DOCUMENT_INFO, &info);
    let paths: Vec<u8> = manifests::kinds().iter().flat_map(path).collect();
    put(&mut document, DOCUMENT_PATHS, &paths);
    document
}

/// One kind's path, as a field of the message of paths.
fn path(kind: &Kind) -> Vec<u8> {
    let root = if kind.group.is_empty() { "/api".to_owned() } else { format!("/apis/{}", kind.group) };
    let namespace = if kind.namespaced { "namespaces/{namespace}/" } else { "" };
    let url = format!("{root}/{}/{namespace}{}/{{name}}", kind.version, kind.plural);
    let mut operation = Vec::new();
    for parameter in ["dryRun", "fieldManager", "fieldValidation"] {
        let mut query = Vec::new();
        put(&mut query, QUERY_IN, b"query");
        put(&mut query, QUERY_NAME, parameter.as_bytes());
        put(&mut query, QUERY_TYPE, b"string");
        let nested = [NON_BODY_QUERY, PARAMETER_NON_BODY, PARAMETERS_ITEM_PARAMETER];
        put(&mut operation, OPERATION_PARAMETERS, &wrap(query, &nested));
    }
    let mut extension = Vec::new();
    put(&mut extension, NAMED_NAME, b"x-kubernetes-group-version-kind");
    let yaml = format!("group: {:?}\nkind: {}\nversion: {}\n", kind.group, kind.kind, kind.version);
    put(&mut extension, NAMED_VALUE, &wrap(yaml.into_bytes(), &[ANY_YAML]));
    put(&mut operation, OPERATION_EXTENSION, &extension);
    let mut named = Vec::new();
    put(&mut named, NAMED_NAME, url.as_bytes());
    put(&mut named, NAMED_VALUE, &wrap(operation, &[PATH_ITEM_PATCH]));
    wrap(named, &[PATHS_PATH])
}

/// Puts bytes into a message of one field, that into another, and so on outwards.
fn wrap(bytes: Vec<u8>, fields: &[u32]) -> Vec<u8> {
    fields.iter().fold(bytes, |inner, field| {
        let mut outer = Vec::new();
        put(&mut outer, *field, &inner);
        outer
    })
}

/// Writes a length-delimited field.
fn put(message: &mut Vec<u8>, field: u32, bytes: &[u8]) {
    varint(message, (u64::from(field) << 3) | 2);
    varint(message, bytes.len() as u64);
    message.extend_from_slice(bytes);
}

fn varint(message: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        message.push((number as u8 & 0x7f) | 0x80);
        number >>= 7;
    }
    message.push(number as u8);
}
