//! `events`: what happened, oldest first; of everything, of one object, or as it happens.

use futures::StreamExt;
use serde_json::Value;

use super::client::with_query;
use super::duration;
use super::failure::{Result, fail};
use super::output::tabs::Grid;
use super::output::{self, OutputArgs, Printer};
use super::session::{Selection, Session, Target, items_of, namespace_of};

/// Flags of `events`.
#[derive(Debug, clap::Args)]
pub struct EventsArgs {
    #[command(flatten)]
    output: OutputArgs,
    /// Events of all namespaces
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// Only events of this object: TYPE/NAME
    #[arg(long = "for")]
    about: Option<String>,
    /// Only events of these types: Normal, Warning
    #[arg(long, value_delimiter = ',')]
    types: Vec<String>,
    /// After listing, watch for more
    #[arg(short = 'w', long)]
    watch: bool,
    /// Don't print headers
    #[arg(long)]
    no_headers: bool,
    /// Return large lists in chunks; 0 disables it
    #[arg(long, default_value_t = super::session::CHUNK_OBJECTS)]
    chunk_size: u64,
}

/// When an event was seen last.
pub fn last_seen(event: &Value) -> Option<&str> {
    ["/series/lastObservedTime", "/lastTimestamp", "/eventTime", "/firstTimestamp", "/metadata/creationTimestamp"]
        .into_iter()
        .find_map(|path| event.pointer(path).and_then(Value::as_str).filter(|text| !text.is_empty()))
}

/// `5m (x3 over 10m)`, as tables of events show it.
pub fn seen(event: &Value, now: jiff::Timestamp) -> String {
    let first = ["/firstTimestamp", "/eventTime", "/metadata/creationTimestamp"]
        .into_iter()
        .find_map(|path| event.pointer(path).and_then(Value::as_str).filter(|text| !text.is_empty()));
    let last = duration::since(last_seen(event), now);
    let count = event.pointer("/series/count").and_then(Value::as_i64).or(event["count"].as_i64()).unwrap_or(1);
    if count > 1 { format!("{last} (x{count} over {})", duration::since(first, now)) } else { last }
}

/// Carries it out.
pub async fn run(session: &Session, args: EventsArgs) -> Result<()> {
    let resource = session.resource("events").await?;
    let mut selection = Selection { all_namespaces: args.all_namespaces, ..Default::default() };
    if let Some(about) = &args.about {
        let targets = session.targets(std::slice::from_ref(about), &Selection::default()).await?;
        let Some(target) = targets.into_iter().next().filter(|target| target.name.is_some()) else {
            return fail(format!("--for must be in resource/name form, not {about:?}"));
        };
        let name = target.name.unwrap_or_default();
        selection.field_selector = Some(format!(
            "involvedObject.kind={},involvedObject.name={name},involvedObject.apiVersion={}",
            target.resource.kind,
            target.resource.api_version()
        ));
    }
    if args.types.iter().any(|kind| !matches!(kind.to_lowercase().as_str(), "normal" | "warning")) {
        return fail("valid --types are Normal or Warning");
    }
    let namespace = (!args.all_namespaces).then(|| session.namespace.clone());
    let target = Target { resource: resource.clone(), namespace, name: None, manifest: None };
    let list = session.list(&target, &selection, args.chunk_size).await?;
    let revision = list["metadata"]["resourceVersion"].as_str().unwrap_or_default().to_string();
    let wanted = |event: &Value| {
        args.types.is_empty()
            || args.types.iter().any(|kind| event["type"].as_str().unwrap_or_default().eq_ignore_ascii_case(kind))
    };
    let mut events: Vec<Value> = items_of(list, &resource).into_iter().filter(wanted).collect();
    events.sort_by_key(|event| last_seen(event).unwrap_or_default().to_string());
    let mut printer = Printer::new(args.output.format(false)?, &args.output);
    if !printer.is_human() {
        return printer.print(&output::list_of(events), "");
    }
    if events.is_empty() && !args.watch {
        match args.all_namespaces {
            true => eprintln!("No events found."),
            false => eprintln!("No events found in {} namespace.", session.namespace),
        }
        return Ok(());
    }
    let mut grid = Grid::default();
    let mut rows = Vec::new();
    if !args.no_headers {
        let header = ["LAST SEEN", "TYPE", "REASON", "OBJECT", "MESSAGE"].map(str::to_string);
        rows.push(if args.all_namespaces {
            [&["NAMESPACE".to_string()], &header[..]].concat()
        } else {
            header.to_vec()
        });
    }
    let now = jiff::Timestamp::now();
    rows.extend(events.iter().map(|event| row(event, now, args.all_namespaces)));
    output::out(&grid.print(&rows));
    if !args.watch {
        return Ok(());
    }
    let mut query = selection.query();
    query.extend([("watch", "true".to_string()), ("resourceVersion", revision)]);
    let mut stream = session.client.watch(&with_query(&target.path(), &query), "application/json").await?;
    while let Some(event) = stream.next().await {
        let event = event?;
        if event["type"] != "DELETED" && event["type"] != "BOOKMARK" && wanted(&event["object"]) {
            output::out(&grid.print(&[row(&event["object"], jiff::Timestamp::now(), args.all_namespaces)]));
        }
    }
    Ok(())
}

fn row(event: &Value, now: jiff::Timestamp, with_namespace: bool) -> Vec<String> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_string();
    let about = &event["involvedObject"];
    let mut row = Vec::new();
    if with_namespace {
        row.push(namespace_of(event).unwrap_or_default().to_string());
    }
    row.extend([
        seen(event, now),
        text(&event["type"]),
        text(&event["reason"]),
        format!("{}/{}", text(&about["kind"]), text(&about["name"])),
        output::table::printable(text(&event["message"]).trim()),
    ]);
    row
}
