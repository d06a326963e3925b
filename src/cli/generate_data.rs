//! The data of `create configmap` and `create secret generic`: literals, files, directories, env files.

use base64::Engine;
use serde_json::{Map, Value, json};

use super::failure::{Failure, Result, fail};

/// The flags that say where data comes from.
#[derive(Debug, Default, clap::Args)]
pub struct DataArgs {
    /// A key and its value: key=value
    #[arg(long)]
    from_literal: Vec<String>,
    /// A file, a directory, or key=file
    #[arg(long)]
    from_file: Vec<String>,
    /// A file of lines key=value
    #[arg(long)]
    from_env_file: Vec<String>,
}

impl DataArgs {
    /// A ConfigMap; what is not UTF-8 goes to `binaryData`.
    pub fn config_map(&self, name: &str) -> Result<Value> {
        let mut object = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}});
        for (key, bytes) in self.entries()? {
            match String::from_utf8(bytes) {
                Ok(text) => object["data"][key] = text.into(),
                Err(error) => object["binaryData"][key] = secret_value(error.as_bytes()),
            }
        }
        Ok(object)
    }

    /// A Secret.
    pub fn secret(&self, name: &str) -> Result<Value> {
        let mut object = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}});
        let data: Map<String, Value> =
            self.entries()?.into_iter().map(|(key, bytes)| (key, secret_value(&bytes))).collect();
        if !data.is_empty() {
            object["data"] = data.into();
        }
        Ok(object)
    }

    fn entries(&self) -> Result<Vec<(String, Vec<u8>)>> {
        let has_others = !self.from_file.is_empty() || !self.from_literal.is_empty();
        if !self.from_env_file.is_empty() && has_others {
            return fail("from-env-file cannot be combined with from-file or from-literal");
        }
        let mut entries: Vec<(String, Vec<u8>)> = Vec::new();
        for literal in &self.from_literal {
            let Some((key, value)) = literal.split_once('=').filter(|(key, _)| !key.is_empty()) else {
                return fail(format!("invalid literal source {literal}, expected key=value"));
            };
            add(&mut entries, key, value.as_bytes().to_vec())?;
        }
        for source in &self.from_file {
            let (key, path) = match source.split_once('=') {
                Some((key, path)) if !key.is_empty() && !path.is_empty() => (Some(key), path),
                Some(_) => return fail(format!("invalid file source {source}, expected key=file")),
                None => (None, source.as_str()),
            };
            self.add_path(&mut entries, key, path)?;
        }
        for file in &self.from_env_file {
            let text = read(file)?;
            for line in String::from_utf8_lossy(&text).lines() {
                let line = line.trim_start();
                if line.is_empty() || line.starts_with('#') {
                    continue;
                }
                let (key, value) = line.split_once('=').map_or_else(
                    // A bare name takes its value from the environment.
                    || (line, std::env::var(line).unwrap_or_default()),
                    |(key, value)| (key, value.to_string()),
                );
                add(&mut entries, key, value.into_bytes())?;
            }
        }
        Ok(entries)
    }

    fn add_path(&self, entries: &mut Vec<(String, Vec<u8>)>, key: Option<&str>, path: &str) -> Result<()> {
        let file = std::path::Path::new(path);
        if !file.is_dir() {
            let own = file.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            return add(entries, key.unwrap_or(&own), read(path)?);
        }
        if key.is_some() {
            return fail(format!("cannot give a key name for a directory path: {path}"));
        }
        let mut files: Vec<_> = std::fs::read_dir(file)
            .map_err(|error| Failure::Text(super::output::go_io_error(path, &error)))?
            .filter_map(|entry| entry.ok().map(|entry| entry.path()))
            .filter(|path| path.is_file())
            .collect();
        files.sort();
        for file in files {
            let name = file.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            add(entries, &name, read(&file.display().to_string())?)?;
        }
        Ok(())
    }
}

fn read(file: &str) -> Result<Vec<u8>> {
    std::fs::read(file)
        .map_err(|error| Failure::Text(format!("error reading {file}: {}", super::output::go_io_error(file, &error))))
}

fn add(entries: &mut Vec<(String, Vec<u8>)>, key: &str, value: Vec<u8>) -> Result<()> {
    let is_key = !key.is_empty() && key.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'));
    if !is_key {
        return fail(format!(
            "{key:?} is not a valid key name: a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')"
        ));
    }
    if entries.iter().any(|(known, _)| known == key) {
        return fail(format!("cannot add key {key:?}, another key by that name already exists"));
    }
    entries.push((key.to_string(), value));
    Ok(())
}

/// Bytes as a Secret carries them.
pub fn secret_value(bytes: &[u8]) -> Value {
    base64::engine::general_purpose::STANDARD.encode(bytes).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(args: DataArgs, expected: &str) {
        let text = args.config_map("c").map_or_else(|failure| failure.message(), |object| object["data"].to_string());
        assert_eq!(text, expected);
    }

    #[test]
    fn sources() {
        let literals = |list: &[&str]| DataArgs {
            from_literal: list.iter().map(|text| text.to_string()).collect(),
            ..Default::default()
        };
        check(literals(&["a=b=c", "d="]), r#"{"a":"b=c","d":""}"#);
        check(literals(&["a"]), "error: invalid literal source a, expected key=value");
        check(literals(&["a=1", "a=2"]), "error: cannot add key \"a\", another key by that name already exists");
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("x.conf"), "hi\n").unwrap();
        let files = DataArgs { from_file: vec![directory.path().display().to_string()], ..Default::default() };
        check(files, r#"{"x.conf":"hi\n"}"#);
        let env = directory.path().join("env");
        std::fs::write(&env, "# no\nA=1\n\nB=x y\n").unwrap();
        check(
            DataArgs { from_env_file: vec![env.display().to_string()], ..Default::default() },
            r#"{"A":"1","B":"x y"}"#,
        );
    }
}
