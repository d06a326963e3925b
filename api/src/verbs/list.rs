//! GET of a collection: at one revision, whole or page by page.

use super::fresh_world;
use crate::body::{self, Answer};
use crate::front::Call;
use crate::negotiate::{Format, Shape};
use crate::query::RevisionMatch;
use crate::render;
use crate::selection::Selection;
use crate::status::Status;
use crate::table::{self, Include};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};
use state::{Object, Revision, World};
use std::sync::Arc;

/// Where the next page begins, and in which world.
struct Continue {
    /// Revision of the world; `None` to go on in the current one, whatever changed.
    revision: Option<Revision>,
    namespace: String,
    name: String,
}

impl Continue {
    fn parse(token: &str) -> Result<Self, Status> {
        let bad = || Status::bad_request("continue key is not valid");
        let bytes = URL_SAFE_NO_PAD.decode(token.trim_end_matches('=')).map_err(|_| bad())?;
        let value: Value = serde_json::from_slice(&bytes).map_err(|_| bad())?;
        let revision = value["rv"].as_i64().ok_or_else(bad)?;
        let (namespace, name) = value["start"].as_str().and_then(|start| start.split_once('/')).ok_or_else(bad)?;
        let revision = u64::try_from(revision).ok().map(Revision);
        Ok(Self { revision, namespace: namespace.to_owned(), name: name.to_owned() })
    }

    fn after(revision: Option<Revision>, last: &Object) -> String {
        let rv = revision.map_or(-1, |revision| revision.0 as i64);
        let start = format!("{}/{}", last.key().namespace, last.key().name);
        URL_SAFE_NO_PAD.encode(json!({"v": "meta.k8s.io/v1", "rv": rv, "start": start}).to_string())
    }
}

/// A page of a list.
struct Page {
    objects: Vec<Arc<Object>>,
    revision: Revision,
    next: Option<String>,
    remaining: Option<usize>,
}

pub(super) async fn list(call: &Call) -> Result<Answer, Status> {
    let selection = Selection::of(call)?;
    let page = page(call, &selection).await?;
    let mut meta = json!({"resourceVersion": page.revision.to_string()});
    if let Some(next) = page.next {
        meta["continue"] = next.into();
    }
    if let Some(remaining) = page.remaining {
        meta["remainingItemCount"] = remaining.into();
    }
    if call.wanted.shape == Shape::Table {
        let include = Include::of(&call.query)?;
        let values: Vec<Value> = page.objects.iter().map(|object| object.value()).collect();
        return Ok(render::written(call, 200, &table::table(call.kind, &values, meta, include, true, call.api.now())));
    }
    if call.wanted.shape == Shape::Metadata {
        let items: Vec<Value> = page.objects.iter().map(|object| render::metadata_only(&object.value())).collect();
        let list = json!({"kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1", "metadata": meta, "items": items});
        return Ok(render::written(call, 200, &list));
    }
    let (kind, version) = (format!("{}List", call.kind.kind), call.kind.api_version());
    if call.wanted.format == Format::Yaml {
        let items: Vec<Value> = page.objects.iter().map(|object| object.value()).collect();
        let list = json!({"kind": kind, "apiVersion": version, "metadata": meta, "items": items});
        return Ok(render::written(call, 200, &list));
    }
    let head = format!(r#"{{"kind":"{kind}","apiVersion":"{version}","metadata":{meta},"items":["#);
    Ok(body::answer(200, "application/json", body::list(head, page.objects, "]}\n")))
}

async fn page(call: &Call, selection: &Selection) -> Result<Page, Status> {
    let limit = usize::try_from(call.query.number("limit")?.unwrap_or(0)).unwrap_or(0);
    let from = call.query.get("continue").map(Continue::parse).transpose()?;
    let (world, is_consistent) = world(call, from.as_ref()).await?;
    let mut objects = Vec::new();
    let mut next = None;
    let mut remaining = None;
    let resource = call.resource();
    let mut candidates = world.list(&resource, selection.namespace()).skip_while(|object| {
        let begins =
            |from: &Continue| (&*object.key().namespace, &*object.key().name) <= (&*from.namespace, &*from.name);
        from.as_ref().is_some_and(begins)
    });
    while let Some(object) = candidates.by_ref().find(|object| selection.takes(object)) {
        if limit > 0 && objects.len() == limit {
            let last: Option<&Arc<Object>> = objects.last();
            next = last.map(|last| Continue::after(is_consistent.then(|| world.revision()), last));
            remaining = selection.is_everything().then(|| candidates.by_ref().count() + 1);
            break;
        }
        objects.push(object.clone());
    }
    drop(candidates);
    if next.is_some() && is_consistent {
        call.api.snapshots.keep(&world);
    }
    Ok(Page { objects, revision: world.revision(), next, remaining })
}

/// The world that is listed, and whether all pages of the list are of the same one.
async fn world(call: &Call, from: Option<&Continue>) -> Result<(Arc<World>, bool), Status> {
    let wanted = call.query.revision()?;
    if let Some(from) = from {
        if wanted.is_some_and(|wanted| wanted.0 != 0) {
            return Err(Status::bad_request("specifying resource version is not allowed when using continue"));
        }
        let Some(revision) = from.revision else { return Ok((call.api.world(), false)) };
        return at(call, revision).map(|world| (world, true)).ok_or_else(|| too_old(from));
    }
    if call.query.revision_match()? == Some(RevisionMatch::Exact)
        && let Some(wanted) = wanted
    {
        fresh_world(call, Some(wanted)).await?;
        let exact = at(call, wanted).map(|world| (world, true));
        return exact.ok_or_else(|| Status::expired("The resourceVersion for the provided list is too old."));
    }
    Ok((fresh_world(call, wanted).await?, true))
}

fn at(call: &Call, revision: Revision) -> Option<Arc<World>> {
    let world = call.api.world();
    if world.revision() == revision { Some(world) } else { call.api.snapshots.at(revision) }
}

/// 410, with a token to go on inconsistently.
fn too_old(from: &Continue) -> Status {
    let start = format!("{}/{}", from.namespace, from.name);
    let token = URL_SAFE_NO_PAD.encode(json!({"v": "meta.k8s.io/v1", "rv": -1, "start": start}).to_string());
    let mut status = Status::expired(
        "The provided continue parameter is too old to display a consistent list result. You can start a new list \
         without the continue parameter, or use the continue token in this response to retrieve the remainder of the \
         results. Continuing with the provided token results in an inconsistent list - objects that were created, \
         modified, or deleted between the time the first chunk was returned and now may show up in the list.",
    );
    status.list_meta = Some(json!({"continue": token}));
    status
}
