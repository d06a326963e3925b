//! `get --watch`: the objects of one resource, then every change to them, until interrupted.

use futures::StreamExt;
use serde_json::{Value, json};

use super::client::{TABLE, with_query};
use super::failure::{Result, fail};
use super::get::{GetArgs, as_table, several_kinds};
use super::output::table;
use super::output::tabs::Grid;
use super::output::{self, Format, Printer};
use super::session::{Selection, Session, Target};

/// Carries it out, for as long as `--request-timeout` allows.
pub async fn run(session: &Session, args: &GetArgs, format: Format) -> Result<()> {
    match session.client.timeout() {
        None => watch(session, args, format).await,
        Some(limit) => tokio::time::timeout(limit, watch(session, args, format)).await.unwrap_or(Ok(())),
    }
}

async fn watch(session: &Session, args: &GetArgs, format: Format) -> Result<()> {
    let targets = session.targets(&args.words, &args.selection()).await?;
    if several_kinds(&targets) {
        return fail("you may only specify a single resource type");
    }
    if targets.len() > 1 {
        return fail("watch is only supported on individual resources and resource collections");
    }
    let Some(target) = targets.into_iter().next() else { return fail("Required resource not specified.") };
    let (collection, selection) = as_collection(&target, args.selection());
    let mut view = View {
        args,
        target: collection.clone(),
        grid: Grid::default(),
        header_is_due: !args.no_headers,
        columns: Value::Null,
        printer: Printer::new(format, &args.output),
    };
    let human = view.printer.is_human();
    let accept = if human { TABLE } else { "application/json" };
    // One object that is not there is an error, not an empty watch.
    if target.name.is_some() {
        session.client.get(&target.path()).await?;
    }
    let mut list = session.list_as(&collection, &selection, 0, accept, &[]).await?;
    let mut revision = list["metadata"]["resourceVersion"].as_str().unwrap_or("0").to_string();
    view.columns = list["columnDefinitions"].clone();
    if !args.watch_only {
        view.show_list(&mut list)?;
    }
    loop {
        let mut query = selection.query();
        query.push(("watch", "true".into()));
        query.push(("resourceVersion", revision.clone()));
        query.push(("allowWatchBookmarks", "true".into()));
        let mut events = session.client.watch(&with_query(&collection.path(), &query), accept).await?;
        while let Some(event) = events.next().await {
            let event = event?;
            if let Some(seen) = revision_of(&event["object"]) {
                revision = seen;
            }
            if event["type"] != "BOOKMARK" {
                view.show_event(event)?;
            }
        }
        // The server ends long watches; kubectl's `get -w` goes on from where it was.
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    }
}

/// One object is watched as the collection with a field selector for its name.
pub fn as_collection(target: &Target, mut selection: Selection) -> (Target, Selection) {
    if let Some(name) = &target.name {
        selection.field_selector = Some(format!("metadata.name={name}"));
    }
    (Target { name: None, ..target.clone() }, selection)
}

/// The revision of an object, or of the rows of a table.
pub fn revision_of(object: &Value) -> Option<String> {
    let own = object["metadata"]["resourceVersion"].as_str().filter(|text| !text.is_empty());
    let rows = object["rows"].as_array().and_then(|rows| rows.last());
    own.or_else(|| rows.and_then(|row| row["object"]["metadata"]["resourceVersion"].as_str())).map(str::to_string)
}

struct View<'a> {
    args: &'a GetArgs,
    target: Target,
    grid: Grid,
    header_is_due: bool,
    /// The columns of the first table: later ones may leave them out.
    columns: Value,
    printer: Printer,
}

impl View<'_> {
    fn show_list(&mut self, list: &mut Value) -> Result<()> {
        if self.printer.is_human() {
            return self.show_table(list.take(), "ADDED");
        }
        let resource = self.target.resource.clone();
        for item in super::session::items_of(list.take(), &resource) {
            self.show_object("ADDED", item)?;
        }
        Ok(())
    }

    fn show_event(&mut self, mut event: Value) -> Result<()> {
        let kind = event["type"].as_str().unwrap_or_default().to_string();
        let object = event["object"].take();
        if self.printer.is_human() { self.show_table(object, &kind) } else { self.show_object(&kind, object) }
    }

    fn show_table(&mut self, table: Value, event: &str) -> Result<()> {
        let wide = matches!(self.printer.format(), Format::Wide);
        let mut options = self.args.table_options(&self.target.resource, wide, false);
        options.no_headers = !self.header_is_due;
        options.event = self.args.output_watch_events.then(|| format!("{event:<8}"));
        let mut table = as_table(table, &self.target);
        match table["columnDefinitions"].as_array() {
            Some(columns) if !columns.is_empty() => self.columns = table["columnDefinitions"].clone(),
            _ => table["columnDefinitions"] = self.columns.clone(),
        }
        let text = table::text(&table, &options, &mut self.grid);
        if !text.is_empty() {
            self.header_is_due = false;
            output::out(&text);
        }
        Ok(())
    }

    fn show_object(&mut self, event: &str, object: Value) -> Result<()> {
        if self.args.output_watch_events {
            return self.printer.print(&json!({"type": event, "object": object}), "");
        }
        self.printer.print(&object, "")
    }
}
