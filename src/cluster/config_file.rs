//! `--config FILE`: a YAML file whose keys are the flags' names. Its entries go before the flags of the command line, so
//! that a flag given there wins, and lists add up.

use anyhow::{Context, Result, bail};
use serde_yaml::Value;
use std::ffi::OsString;

/// Bytes of a configuration file: far more than it has flags.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// The command line with the entries of its `--config` file, if it names one, put in as flags.
pub fn with_config_file(mut arguments: Vec<OsString>) -> Result<Vec<OsString>> {
    if arguments.get(1).is_none_or(|verb| verb != "server" && verb != "agent") {
        return Ok(arguments);
    }
    let Some(file) = named(&arguments) else { return Ok(arguments) };
    let shown = file.to_string_lossy().into_owned();
    let read = || -> std::io::Result<String> {
        use std::io::Read;
        let mut text = String::new();
        std::fs::File::open(&file)?.take(FILE_BYTES_MAX).read_to_string(&mut text)?;
        Ok(text)
    };
    let text = read().with_context(|| format!("--config: read {shown}"))?;
    let entries: serde_yaml::Mapping =
        serde_yaml::from_str(&text).with_context(|| format!("--config: {shown} is not a mapping of flags"))?;
    let mut flags = Vec::new();
    for (key, value) in entries {
        let Value::String(key) = key else { bail!("--config: {shown}: keys are names of flags") };
        push(&mut flags, &key, value).with_context(|| format!("--config: {shown}: {key}"))?;
    }
    arguments.splice(2..2, flags);
    Ok(arguments)
}

fn named(arguments: &[OsString]) -> Option<OsString> {
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        let text = argument.to_string_lossy();
        if text == "--config" || text == "-c" {
            return rest.next().cloned();
        }
        if let Some(file) = text.strip_prefix("--config=") {
            return Some(file.into());
        }
    }
    std::env::var_os("CORACLE_CONFIG")
}

fn push(flags: &mut Vec<OsString>, key: &str, value: Value) -> Result<()> {
    match value {
        Value::Bool(true) => flags.push(format!("--{key}").into()),
        Value::Bool(false) | Value::Null => {}
        Value::String(text) => flags.push(format!("--{key}={text}").into()),
        Value::Number(number) => flags.push(format!("--{key}={number}").into()),
        Value::Sequence(items) => {
            for item in items {
                push(flags, key, item)?;
            }
        }
        Value::Mapping(_) | Value::Tagged(_) => bail!("is a value or a list of values"),
    }
    Ok(())
}
