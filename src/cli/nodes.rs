//! `taint`.

use serde_json::{Value, json};

use super::failure::{Result, fail};
use super::mutate::{self, MutateArgs};
use super::session::Session;

/// Flags of `taint`.
#[derive(Debug, clap::Args)]
pub struct TaintArgs {
    /// nodes NAME ..., then KEY=VALUE:EFFECT or KEY:EFFECT- or KEY- ...
    pub words: Vec<String>,
    #[command(flatten)]
    common: MutateArgs,
    /// Allow taints to be overwritten
    #[arg(long)]
    overwrite: bool,
}

#[derive(Debug, PartialEq, Eq)]
struct Taint {
    key: String,
    value: String,
    effect: String,
}

/// Carries out `taint`.
pub async fn taint(session: &Session, args: TaintArgs) -> Result<()> {
    let start = args.words.iter().position(|word| word.contains([':', '=']) || word.ends_with('-'));
    let (targets, changes) = args.words.split_at(start.unwrap_or(args.words.len()));
    if changes.is_empty() {
        return fail("at least one taint update is required");
    }
    let changes = parse(changes)?;
    let (found, failures) = args.common.objects(session, "taint", targets).await?;
    if found.iter().any(|found| found.target.resource.kind != "Node") {
        return fail("invalid resource type, only node types are supported");
    }
    let done = match (args.overwrite, changes.0.is_empty(), changes.1.is_empty()) {
        (true, ..) | (_, false, false) => "modified",
        (_, true, _) => "untainted",
        _ => "tainted",
    };
    let change = |object: &mut Value| apply(object, &changes, args.overwrite);
    mutate::each(session, &args.common, found, failures, change, |found, _| {
        format!("{} {done}", found.target.full_name())
    })
    .await
}

/// Taints to set, and taints to remove (an empty effect means any).
fn parse(words: &[String]) -> Result<(Vec<Taint>, Vec<Taint>)> {
    let (mut set, mut remove) = (Vec::new(), Vec::new());
    for word in words {
        let (text, removes) = match word.strip_suffix('-') {
            Some(text) => (text, true),
            None => (word.as_str(), false),
        };
        let (pair, effect) = text.split_once(':').unwrap_or((text, ""));
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let taint = Taint { key: key.into(), value: value.into(), effect: effect.into() };
        if removes {
            remove.push(taint);
            continue;
        }
        if effect.is_empty() {
            return fail(format!("invalid taint spec: {word}"));
        }
        if !matches!(effect, "NoSchedule" | "PreferNoSchedule" | "NoExecute") {
            return fail(format!("invalid taint effect: {effect}, unsupported taint effect"));
        }
        set.push(taint);
    }
    Ok((set, remove))
}

fn apply(node: &mut Value, (set, remove): &(Vec<Taint>, Vec<Taint>), overwrite: bool) -> Result<()> {
    let name = super::session::name_of(node).to_string();
    let mut taints = node["spec"]["taints"].as_array().cloned().unwrap_or_default();
    let same = |known: &Value, taint: &Taint| {
        known["key"] == taint.key && (taint.effect.is_empty() || known["effect"] == taint.effect)
    };
    for taint in remove {
        let before = taints.len();
        taints.retain(|known| !same(known, taint));
        if taints.len() == before {
            let effect = if taint.effect.is_empty() { String::new() } else { format!(":{}", taint.effect) };
            return fail(format!("taint {:?} not found", format!("{}{effect}", taint.key)));
        }
    }
    for taint in set {
        let mut wanted = json!({"key": taint.key, "effect": taint.effect});
        if !taint.value.is_empty() {
            wanted["value"] = taint.value.clone().into();
        }
        match taints.iter_mut().find(|known| same(known, taint)) {
            Some(known) if *known == wanted => {}
            Some(_) if !overwrite => {
                return fail(format!(
                    "node {name} already has {} taint(s) with same effect(s) and --overwrite is false",
                    taint.key
                ));
            }
            Some(known) => *known = wanted,
            None => taints.push(wanted),
        }
    }
    match taints.is_empty() {
        true => drop(node["spec"].as_object_mut().map(|spec| spec.remove("taints"))),
        false => node["spec"]["taints"] = taints.into(),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn taints() {
        let node = || json!({"metadata": {"name": "n"}, "spec": {"taints": [{"key": "a", "effect": "NoSchedule"}]}});
        let check = |words: &[&str], overwrite, expected: &str| {
            let words: Vec<String> = words.iter().map(|word| word.to_string()).collect();
            let mut node = node();
            let done = parse(&words).and_then(|changes| apply(&mut node, &changes, overwrite));
            let text = done.map_or_else(|failure| failure.message(), |()| node["spec"]["taints"].to_string());
            assert_eq!(text, expected, "{words:?}");
        };
        check(&["a-"], false, "null");
        check(&["a:NoSchedule-"], false, "null");
        check(&["b-"], false, "error: taint \"b\" not found");
        check(
            &["a=x:NoSchedule"],
            false,
            "error: node n already has a taint(s) with same effect(s) and --overwrite is false",
        );
        check(&["a=x:NoSchedule"], true, r#"[{"effect":"NoSchedule","key":"a","value":"x"}]"#);
        check(&["b:Nonsense"], false, "error: invalid taint effect: Nonsense, unsupported taint effect");
    }
}
