//! `-f FILE|DIR|-`: manifests from disk or stdin, each with the place it came from.
//!
//! Deliberately absent: URLs and kustomizations; both are refused.

use std::io::Read;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::failure::{Failure, Result, fail};

/// The largest manifest file read.
const FILE_BYTES_MAX: u64 = 64 << 20;

/// The flags that name manifests.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct FileArgs {
    /// Filename or directory with the resources; `-` is stdin
    #[arg(short = 'f', long = "filename", value_delimiter = ',', value_name = "FILE")]
    pub filename: Vec<String>,
    /// Process the directory used in -f, --filename recursively
    #[arg(short = 'R', long)]
    pub recursive: bool,
    /// Process a kustomization directory (not available)
    #[arg(short = 'k', long, value_name = "DIR", hide = true)]
    pub kustomize: Option<String>,
}

impl FileArgs {
    /// Whether no file was named.
    pub fn is_empty(&self) -> bool {
        self.filename.is_empty() && self.kustomize.is_none()
    }
}

/// An object of a file.
#[derive(Debug, Clone)]
pub struct Manifest {
    /// The object; never a list.
    pub object: Value,
    /// As the user named it, or `STDIN`.
    pub file: String,
    /// Which document of the file, from 1.
    pub document: usize,
    /// The line the document starts on, from 1.
    pub line: usize,
}

impl Manifest {
    /// Where the object stands: `web.yaml, document 2, line 14`.
    pub fn place(&self) -> String {
        format!("{}, document {}, line {}", self.file, self.document, self.line)
    }
}

/// Reads all manifests in order. What cannot be read is reported and the rest goes on.
pub fn read(args: &FileArgs) -> Result<(Vec<Manifest>, Vec<Failure>)> {
    if args.kustomize.is_some() {
        return fail("-k, --kustomize is not available in this version of coracle");
    }
    let (mut manifests, mut failures) = (Vec::new(), Vec::new());
    for name in &args.filename {
        if name.starts_with("http://") || name.starts_with("https://") {
            return fail(format!(
                "reading {name:?}: URLs are not available in this version of coracle, download the file first"
            ));
        }
        let texts = match name.as_str() {
            "-" => stdin().map(|text| vec![("STDIN".to_string(), text)]),
            _ => expand(name, args.recursive).and_then(|files| files.iter().map(|file| read_file(file)).collect()),
        };
        match texts {
            Ok(texts) => {
                for (file, text) in texts {
                    failures.extend(parse(&file, &text, &mut manifests).err());
                }
            }
            Err(failure) => failures.push(failure),
        }
    }
    Ok((manifests, failures))
}

fn stdin() -> Result<String> {
    let mut bytes = Vec::new();
    std::io::stdin()
        .take(FILE_BYTES_MAX)
        .read_to_end(&mut bytes)
        .map_err(|error| Failure::Text(format!("error reading STDIN: {error}")))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn read_file(file: &Path) -> Result<(String, String)> {
    let name = file.display().to_string();
    let cannot = |error: std::io::Error| Failure::Text(format!("error reading {name:?}: {error}"));
    let mut bytes = Vec::new();
    let opened = std::fs::File::open(file).map_err(cannot)?;
    opened.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(cannot)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return fail(format!("error reading {name:?}: the file is larger than {} MiB", FILE_BYTES_MAX >> 20));
    }
    Ok((name, String::from_utf8_lossy(&bytes).into_owned()))
}

/// The files that a name means: itself, or those of a directory that look like manifests, sorted by name.
fn expand(name: &str, recursive: bool) -> Result<Vec<PathBuf>> {
    let path = Path::new(name);
    let Ok(found) = std::fs::metadata(path) else {
        return fail(format!("the path {name:?} does not exist"));
    };
    if !found.is_dir() {
        return Ok(vec![path.to_path_buf()]);
    }
    let mut files = Vec::new();
    walk(path, recursive, &mut files).map_err(|error| Failure::Text(format!("error reading {name:?}: {error}")))?;
    if files.is_empty() {
        return fail(format!("error reading [{name}]: recognized file extensions are [.json .yaml .yml]"));
    }
    Ok(files)
}

fn walk(directory: &Path, recursive: bool, files: &mut Vec<PathBuf>) -> std::io::Result<()> {
    let mut entries: Vec<PathBuf> =
        std::fs::read_dir(directory)?.map(|entry| entry.map(|e| e.path())).collect::<std::io::Result<_>>()?;
    entries.sort();
    for entry in entries {
        // A symbolic link to a directory is not followed, so no loop can be built.
        let is_directory = std::fs::symlink_metadata(&entry)?.is_dir();
        if is_directory && recursive {
            walk(&entry, recursive, files)?;
        } else if !is_directory && matches!(entry.extension().and_then(|e| e.to_str()), Some("json" | "yaml" | "yml")) {
            files.push(entry);
        }
    }
    Ok(())
}

/// Takes a file apart into objects; lists are opened.
fn parse(file: &str, text: &str, manifests: &mut Vec<Manifest>) -> Result<()> {
    let documents = manifests::yaml::documents(text).map_err(|error| {
        let format =
            if text.trim_start().starts_with('{') { "error converting JSON" } else { "error converting YAML to JSON" };
        Failure::Text(format!("error parsing {file}: {format}: {error}"))
    })?;
    for (at, document) in documents.into_iter().enumerate() {
        if document.value.is_null() {
            continue;
        }
        let manifest =
            Manifest { object: document.value, file: file.to_string(), document: at + 1, line: document.line };
        check(&manifest)?;
        open_list(manifest, manifests)?;
    }
    Ok(())
}

fn check(manifest: &Manifest) -> Result<()> {
    let object = &manifest.object;
    let is_missing = |field: &str| object[field].as_str().unwrap_or_default().is_empty();
    let missing: Vec<String> = ["apiVersion", "kind"]
        .into_iter()
        .filter(|field| is_missing(field))
        .map(|field| format!("{field} not set"))
        .collect();
    let problem = match missing.as_slice() {
        _ if !object.is_object() => "invalid object to validate".to_string(),
        [] => return Ok(()),
        [one] => one.clone(),
        all => format!("[{}]", all.join(", ")),
    };
    let message = format!(
        "error validating {:?}: error validating data: {problem}; if you choose to ignore these errors, turn validation off with --validate=false",
        manifest.file
    );
    Err(Failure::Text(message).located(&manifest.place()))
}

/// A `List` (or any `...List` with items) stands for its items.
fn open_list(manifest: Manifest, manifests: &mut Vec<Manifest>) -> Result<()> {
    let is_list = manifest.object["kind"].as_str().is_some_and(|kind| kind.ends_with("List"));
    match manifest.object["items"].as_array() {
        Some(items) if is_list => {
            for item in items {
                let inner = Manifest { object: item.clone(), ..manifest.clone() };
                check(&inner)?;
                manifests.push(inner);
            }
        }
        _ if manifest.object["kind"] == "List" => {}
        _ => manifests.push(manifest),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_text(text: &str) -> String {
        let mut manifests = Vec::new();
        let failure = parse("x.yaml", text, &mut manifests).err();
        let mut out: Vec<String> =
            manifests.iter().map(|m| format!("{} @ {}", m.object["metadata"]["name"], m.place())).collect();
        out.extend(failure.map(|failure| failure.message()));
        out.join("\n")
    }

    #[test]
    fn documents_and_lists() {
        let text = "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\n---\n---\napiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Pod, metadata: {name: b}}\n";
        let found = check_text(text);
        assert!(found.starts_with("\"a\" @ x.yaml, document 1, line 1\n\"b\" @ x.yaml, document "), "{found}");
    }

    #[test]
    fn what_is_wrong() {
        let missing = check_text("a: 1\n");
        assert!(missing.contains("error validating data: [apiVersion not set, kind not set]; if you"), "{missing}");
        assert!(check_text("- a\n").contains("error validating data: invalid object to validate; if you"));
        assert!(check_text("a: [\n").starts_with("error: error parsing x.yaml: error converting YAML to JSON: yaml: "));
        assert!(expand("/nonexistent/x", false).is_err());
    }
}
