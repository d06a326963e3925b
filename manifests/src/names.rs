//! What names may be: Kubernetes' syntax checks and their exact texts. Every check answers with all that is wrong; an
//! empty list is a pass.

/// Longest DNS label, label value, name part.
pub const LABEL_BYTES_MAX: usize = 63;
/// Longest DNS subdomain.
pub const SUBDOMAIN_BYTES_MAX: usize = 253;
/// Longest name of a port.
const PORT_NAME_BYTES_MAX: usize = 15;

const LABEL: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start \
    and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is \
    '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
const LABEL_1035: &str = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an \
    alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for \
    validation is '[a-z]([-a-z0-9]*[a-z0-9])?')";
const SUBDOMAIN: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', \
    and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is \
    '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const WILDCARD: &str = "a wildcard DNS-1123 subdomain must start with '*.', followed by a valid DNS subdomain, which must \
    consist of lower case alphanumeric characters, '-' or '.' and end with an alphanumeric character (e.g. \
    '*.example.com', regex used for validation is \
    '\\*\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const QUALIFIED: &str = "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an \
    alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is \
    '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
const LABEL_VALUE: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', \
    and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for \
    validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";
const CONFIG_KEY: &str = "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  \
    or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')";
const ENV: &str = "a valid environment variable name must consist only of printable ASCII characters other than '='";

fn too_long(bytes_max: usize) -> String {
    format!("must be no more than {bytes_max} bytes")
}

fn is_lower(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit()
}

fn is_label(name: &str) -> bool {
    let bytes = name.as_bytes();
    let ends = |byte: Option<&u8>| byte.is_some_and(|byte| is_lower(*byte));
    ends(bytes.first()) && ends(bytes.last()) && bytes.iter().all(|byte| is_lower(*byte) || *byte == b'-')
}

fn is_subdomain(name: &str) -> bool {
    name.split('.').all(is_label)
}

fn is_name_part(name: &str) -> bool {
    let bytes = name.as_bytes();
    let ends = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    let inner = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    ends(bytes.first()) && ends(bytes.last()) && bytes.iter().all(inner)
}

/// What is wrong with a text that must be of a form and a length.
fn check(name: &str, bytes_max: usize, is_of_form: bool, form: &str) -> Vec<String> {
    let mut faults = Vec::new();
    if name.len() > bytes_max {
        faults.push(too_long(bytes_max));
    }
    if !is_of_form {
        faults.push(form.to_owned());
    }
    faults
}

/// A DNS label (RFC 1123): names of containers, namespaces, volumes.
pub fn dns_label(name: &str) -> Vec<String> {
    check(name, LABEL_BYTES_MAX, is_label(name), LABEL)
}

/// A DNS label that starts with a letter (RFC 1035): names of Services.
pub fn dns_label_1035(name: &str) -> Vec<String> {
    let starts = name.bytes().next().is_some_and(|byte| byte.is_ascii_lowercase());
    check(name, LABEL_BYTES_MAX, starts && is_label(name), LABEL_1035)
}

/// A DNS subdomain (RFC 1123): names of nearly everything.
pub fn dns_subdomain(name: &str) -> Vec<String> {
    check(name, SUBDOMAIN_BYTES_MAX, is_subdomain(name), SUBDOMAIN)
}

/// A DNS subdomain behind `*.`: hosts of an Ingress.
pub fn wildcard_subdomain(name: &str) -> Vec<String> {
    let is_wildcard = name.strip_prefix("*.").is_some_and(is_subdomain);
    check(name, SUBDOMAIN_BYTES_MAX, is_wildcard, WILDCARD)
}

/// A qualified name: keys of labels and annotations, `example.com/MyName`.
pub fn qualified(name: &str) -> Vec<String> {
    let mut faults = Vec::new();
    let mut parts = name.split('/');
    let (name, prefix) = match (parts.next(), parts.next(), parts.next()) {
        (Some(name), None, _) => (name, None),
        (Some(prefix), Some(name), None) => (name, Some(prefix)),
        _ => {
            return vec![format!(
                "a qualified name {QUALIFIED} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')"
            )];
        }
    };
    match prefix {
        Some("") => faults.push("prefix part must be non-empty".into()),
        Some(prefix) => faults.extend(dns_subdomain(prefix).into_iter().map(|fault| format!("prefix part {fault}"))),
        None => {}
    }
    if name.is_empty() {
        faults.push("name part must be non-empty".into());
    } else if name.len() > LABEL_BYTES_MAX {
        faults.push(format!("name part {}", too_long(LABEL_BYTES_MAX)));
    }
    if !is_name_part(name) {
        faults.push(format!("name part {QUALIFIED}"));
    }
    faults
}

/// The value of a label.
pub fn label_value(value: &str) -> Vec<String> {
    check(value, LABEL_BYTES_MAX, value.is_empty() || is_name_part(value), LABEL_VALUE)
}

/// The name of an environment variable.
pub fn env(name: &str) -> Vec<String> {
    if name.is_empty() {
        return vec!["environment variable name must be non-empty".into()];
    }
    let is_printable = name.bytes().all(|byte| (b' '..=b'~').contains(&byte) && byte != b'=');
    if is_printable { Vec::new() } else { vec![ENV.into()] }
}

/// A key of a ConfigMap or Secret, which may become a file's name.
pub fn config_key(key: &str) -> Vec<String> {
    let is_of_form =
        !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'));
    let mut faults = check(key, SUBDOMAIN_BYTES_MAX, is_of_form, CONFIG_KEY);
    match key {
        "." => faults.push("must not be '.'".into()),
        ".." => faults.push("must not be '..'".into()),
        _ if key.starts_with("..") => faults.push("must not start with '..'".into()),
        _ => {}
    }
    faults
}

/// The name of a container's port (RFC 6335).
pub fn port(name: &str) -> Vec<String> {
    let mut faults = Vec::new();
    if name.len() > PORT_NAME_BYTES_MAX {
        faults.push(too_long(PORT_NAME_BYTES_MAX));
    }
    if name.is_empty() || !name.bytes().all(|byte| is_lower(byte) || byte == b'-') {
        faults.push("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)".into());
    }
    if !name.bytes().any(|byte| byte.is_ascii_lowercase()) {
        faults.push("must contain at least one letter (a-z)".into());
    }
    if name.contains("--") {
        faults.push("must not contain consecutive hyphens".into());
    }
    if name.starts_with('-') || name.ends_with('-') {
        faults.push("must not begin or end with a hyphen".into());
    }
    faults
}

/// A port's number.
pub fn port_number(number: i64) -> Vec<String> {
    if (1..=65535).contains(&number) { Vec::new() } else { vec!["must be between 1 and 65535, inclusive".into()] }
}

/// An object's name that is one segment of a path and nothing more: names of RBAC's kinds.
pub fn path_segment(name: &str) -> Vec<String> {
    let mut faults = Vec::new();
    if name == "." || name == ".." {
        faults.push(format!("may not be '{name}'"));
    }
    for part in ["/", "%"] {
        if name.contains(part) {
            faults.push(format!("may not contain '{part}'"));
        }
    }
    faults
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_pass_or_not() {
        type Case = (fn(&str) -> Vec<String>, &'static [&'static str], &'static [&'static str]);
        let cases: [Case; 8] = [
            (dns_label, &["a", "my-name", "123-abc"], &["", "-a", "a-", "A", "a.b", "a_b"]),
            (dns_label_1035, &["a", "a1"], &["1a", ""]),
            (dns_subdomain, &["a.b", "1.2"], &["a..b", ".a", "a.", "a.-b"]),
            (wildcard_subdomain, &["*.foo.com"], &["*", "*.", "foo.com", "*.*.a"]),
            (qualified, &["a", "A_b.c", "x.io/name"], &["", "/a", "a/", "a/b/c", "-a", "X/a"]),
            (label_value, &["", "a", "A.b_c-1"], &["-", "a b", "a/b"]),
            (config_key, &["a", ".a", "A_b-c.d"], &["", ".", "..", "..a", "a/b", "a b"]),
            (port, &["http", "a-1"], &["", "80", "a--b", "-a", "averyveryverylong", "A"]),
        ];
        for (check, good, bad) in cases {
            for name in good {
                assert_eq!(check(name), Vec::<String>::new(), "{name:?}");
            }
            for name in bad {
                assert_ne!(check(name), Vec::<String>::new(), "{name:?}");
            }
        }
        assert_eq!(dns_label(&"a".repeat(64)), ["must be no more than 63 bytes"]);
    }
}
