//! `get`: objects as tables, JSON, YAML, names, templates or columns; once, or watched.

use serde_json::{Value, json};

use super::client::{TABLE, with_query};
use super::discovery::Resource;
use super::failure::{Failure, Result, all_of, fail};
use super::files::FileArgs;
use super::get_watch;
use super::output::jsonpath::Template;
use super::output::table::{self, TableOptions};
use super::output::tabs::Grid;
use super::output::{self, Format, OutputArgs, Printer};
use super::session::{Selection, Session, Target, items_of};

/// Flags of `get`.
#[derive(Debug, clap::Args)]
pub struct GetArgs {
    /// TYPE[.VERSION][.GROUP] [NAME...] or TYPE/NAME ...
    pub words: Vec<String>,
    #[command(flatten)]
    files: FileArgs,
    #[command(flatten)]
    pub(super) output: OutputArgs,
    /// If present, list the requested objects across all namespaces
    #[arg(short = 'A', long)]
    pub(super) all_namespaces: bool,
    /// Selector (label query) to filter on (e.g. -l key1=value1,key2!=value2)
    #[arg(short = 'l', long)]
    pub(super) selector: Option<String>,
    /// Selector (field query) to filter on (e.g. --field-selector key1=value1)
    #[arg(long)]
    pub(super) field_selector: Option<String>,
    /// Return large lists in chunks rather than all at once; 0 disables it
    #[arg(long, default_value_t = super::session::CHUNK_OBJECTS)]
    chunk_size: u64,
    /// If the requested object does not exist the command will return exit code 0
    #[arg(long)]
    ignore_not_found: bool,
    /// Labels that are presented as columns
    #[arg(short = 'L', long, value_delimiter = ',')]
    label_columns: Vec<String>,
    /// Don't print headers
    #[arg(long)]
    pub(super) no_headers: bool,
    /// Output watch event objects when --watch or --watch-only is used
    #[arg(long)]
    pub(super) output_watch_events: bool,
    /// Raw URI to request from the server
    #[arg(long, value_name = "URI")]
    raw: Option<String>,
    /// If true, have the server return the appropriate table output
    #[arg(long, default_value = "true", num_args = 0..=1, require_equals = true, default_missing_value = "true", action = clap::ArgAction::Set)]
    server_print: bool,
    /// List the resource type for the requested objects
    #[arg(long)]
    pub(super) show_kind: bool,
    /// Show all labels as the last column
    #[arg(long)]
    pub(super) show_labels: bool,
    /// Sort lists by this field, a JSONPath expression such as '{.metadata.name}'
    #[arg(long)]
    sort_by: Option<String>,
    /// Gets the subresource of the requested object
    #[arg(long)]
    subresource: Option<String>,
    /// After listing the requested objects, watch for changes
    #[arg(short = 'w', long)]
    pub(super) watch: bool,
    /// Watch for changes to the requested objects, without listing first
    #[arg(long)]
    pub(super) watch_only: bool,
}

/// Carries it out.
pub async fn run(session: &Session, args: GetArgs) -> Result<()> {
    if let Some(uri) = &args.raw {
        if !args.words.is_empty() || !args.files.is_empty() {
            return fail("arguments may not be passed when --raw is specified");
        }
        output::out(&session.client.text(uri).await?);
        return Ok(());
    }
    if args.words.is_empty() && args.files.is_empty() {
        return Err(Failure::Bare(
            "You must specify the type of resource to get. Use \"coracle api-resources\" for a complete list of supported resources.\n\nerror: Required resource not specified.\nUse \"coracle explain <resource>\" for a detailed description of that resource (e.g. coracle explain pods).\nSee 'coracle get -h' for help and examples".into(),
        ));
    }
    let mut format = args.output.format(true)?;
    if let Format::Columns(columns) = &mut format {
        columns.no_headers = args.no_headers;
    }
    let sort_by = args.sort_by.as_deref().map(sort_template).transpose()?;
    if args.watch || args.watch_only {
        return get_watch::run(session, &args, format).await;
    }
    let selection = args.selection();
    let (mut targets, failures) = match args.files.is_empty() {
        true => (session.targets(&args.words, &selection).await?, Vec::new()),
        false => session.file_targets(&args.files).await?,
    };
    if let Some(subresource) = &args.subresource {
        for target in &mut targets {
            let Some(name) = &mut target.name else {
                return fail("subresource can only be used when a single resource is specified");
            };
            // `path` escapes names, so the subresource travels as part of the resource's name only here.
            *name = format!("{name}/{subresource}");
        }
    }
    match format {
        Format::Human | Format::Wide => tables(session, &args, &format, targets, sort_by, failures).await,
        _ => generic(session, &args, format, targets, sort_by, failures).await,
    }
}

impl GetArgs {
    /// Which objects are meant.
    pub(super) fn selection(&self) -> Selection {
        Selection {
            selector: self.selector.clone(),
            field_selector: self.field_selector.clone(),
            all_namespaces: self.all_namespaces,
        }
    }

    /// How a table of this resource is shown; kinds are told apart when there are several.
    pub(super) fn table_options(&self, resource: &Resource, wide: bool, several_kinds: bool) -> TableOptions {
        TableOptions {
            wide,
            no_headers: self.no_headers,
            with_namespace: self.all_namespaces && resource.namespaced,
            kind_prefix: (several_kinds || self.show_kind).then(|| resource.kind_word()),
            show_labels: self.show_labels,
            label_columns: self.label_columns.clone(),
            event: None,
        }
    }

    /// What a table request asks for beside the table: whole objects only if something is read from them.
    pub(super) fn table_query(&self) -> Vec<(&'static str, String)> {
        if self.sort_by.is_some() { vec![("includeObject", "Object".to_string())] } else { Vec::new() }
    }
}

fn sort_template(text: &str) -> Result<Template> {
    Template::relaxed(text).map_err(|error| Failure::Text(error.to_string()))
}

fn path_of(target: &Target) -> String {
    // A subresource was put behind the name; its slash is one.
    match target.name.as_deref().and_then(|name| name.split_once('/')) {
        Some((name, subresource)) => {
            format!("{}/{subresource}", target.resource.path(target.namespace.as_deref(), name))
        }
        None => target.path(),
    }
}

/// One run of tables: those of the same resource share a header.
struct Group {
    resource: Resource,
    tables: Vec<Value>,
}

async fn tables(
    session: &Session,
    args: &GetArgs,
    format: &Format,
    targets: Vec<Target>,
    sort_by: Option<Template>,
    mut failures: Vec<Failure>,
) -> Result<()> {
    let mut groups: Vec<Group> = Vec::new();
    for target in &targets {
        match table_of(session, args, target).await {
            Ok(table) => match groups.last_mut() {
                Some(group) if group.resource == target.resource => group.tables.push(table),
                _ => groups.push(Group { resource: target.resource.clone(), tables: vec![table] }),
            },
            Err(failure) if args.ignore_not_found && failure.is_not_found() => {}
            Err(failure @ Failure::Unreachable { .. }) => return Err(failure),
            Err(failure) => failures.push(failure),
        }
    }
    let several_kinds = several_kinds(&targets);
    let wide = matches!(format, Format::Wide);
    let mut written = false;
    for group in &mut groups {
        let mut joined = join(std::mem::take(&mut group.tables));
        if let Some(by) = &sort_by {
            table::sort_rows(&mut joined, by);
        }
        let options = args.table_options(&group.resource, wide, several_kinds);
        let text = table::text(&joined, &options, &mut Grid::default());
        if text.is_empty() {
            continue;
        }
        if written && !args.no_headers {
            output::out("\n");
        }
        output::out(&text);
        written = true;
    }
    if !written && failures.is_empty() && !args.ignore_not_found {
        eprintln!("{}", nothing_found(session, args, &targets));
    }
    all_of(failures)
}

/// Whether the targets are of more than one resource, so that names need their kind in front.
pub(super) fn several_kinds(targets: &[Target]) -> bool {
    targets.windows(2).any(|pair| pair[0].resource != pair[1].resource)
}

/// The sentence for an empty answer.
pub(super) fn nothing_found(session: &Session, args: &GetArgs, targets: &[Target]) -> String {
    let namespaced = !targets.is_empty() && targets.iter().all(|target| target.resource.namespaced);
    if namespaced && !args.all_namespaces {
        format!("No resources found in {} namespace.", session.namespace)
    } else {
        "No resources found".to_string()
    }
}

async fn table_of(session: &Session, args: &GetArgs, target: &Target) -> Result<Value> {
    let answer = match &target.name {
        Some(_) => session.client.get_as(&with_query(&path_of(target), &args.table_query()), TABLE).await?,
        None => session.list_as(target, &args.selection(), args.chunk_size, TABLE, &args.table_query()).await?,
    };
    Ok(as_table(answer, target))
}

/// An answer that is not a table (the server does not draw this kind) as a table of names.
pub(super) fn as_table(answer: Value, target: &Target) -> Value {
    if answer["kind"] == "Table" {
        return answer;
    }
    let items = if answer["items"].is_array() { items_of(answer, &target.resource) } else { vec![answer] };
    let now = jiff::Timestamp::now();
    let rows: Vec<Value> = items
        .into_iter()
        .map(|item| {
            let age = super::duration::since(item["metadata"]["creationTimestamp"].as_str(), now);
            json!({"cells": [item["metadata"]["name"], age], "object": item})
        })
        .collect();
    json!({
        "columnDefinitions": [{"name": "Name", "format": "name", "priority": 0}, {"name": "Age", "format": "", "priority": 0}],
        "rows": rows,
    })
}

/// One table from several of the same columns.
fn join(mut tables: Vec<Value>) -> Value {
    let mut first = tables.remove(0);
    for mut table in tables {
        if let (Some(rows), Some(more)) = (first["rows"].as_array_mut(), table["rows"].as_array_mut()) {
            rows.append(more);
        }
    }
    first
}

async fn generic(
    session: &Session,
    args: &GetArgs,
    format: Format,
    targets: Vec<Target>,
    sort_by: Option<Template>,
    mut failures: Vec<Failure>,
) -> Result<()> {
    let single = targets.len() == 1 && targets[0].name.is_some();
    let mut items = Vec::new();
    for target in &targets {
        let answer = match &target.name {
            Some(_) => session.client.get(&path_of(target)).await.map(|object| vec![object]),
            None => session
                .list(target, &args.selection(), args.chunk_size)
                .await
                .map(|list| items_of(list, &target.resource)),
        };
        match answer {
            Ok(found) => items.extend(found),
            Err(failure) if args.ignore_not_found && failure.is_not_found() => {}
            Err(failure @ Failure::Unreachable { .. }) => return Err(failure),
            Err(failure) => failures.push(failure),
        }
    }
    if single && items.is_empty() {
        return all_of(failures);
    }
    if items.is_empty() && args.ignore_not_found && failures.is_empty() && targets.iter().all(|t| t.name.is_some()) {
        return Ok(());
    }
    if let Some(by) = &sort_by {
        items.sort_by(|a, b| table::order(a, b, by));
    }
    let shown = if single { items.remove(0) } else { output::list_of(items) };
    Printer::new(format, &args.output).print(&shown, "")?;
    all_of(failures)
}
