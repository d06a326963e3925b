//! The guestbook's face: an HTTP component that shows a page and passes entries to and from the store.
//!
//! It keeps nothing itself. Its title comes from a ConfigMap as an environment variable, its words of welcome from a file of
//! that ConfigMap, the token that may delete entries from a Secret.

mod page;

use std::env;
use wasip2::exports::http::incoming_handler::Guest;
use wasip2::http::types::{IncomingRequest, Method, ResponseOutparam};
use web::{Answer, Entry};

struct Frontend;

wasip2::http::proxy::export!(Frontend);

impl Guest for Frontend {
    fn handle(request: IncomingRequest, out: ResponseOutparam) {
        route(&request).unwrap_or_else(|answer| answer).send(out);
    }
}

fn route(request: &IncomingRequest) -> Result<Answer, Answer> {
    let path = web::path(request);
    match (request.method(), path.as_str()) {
        (Method::Get, "/healthz") => Ok(Answer::text(200, "ok")),
        (Method::Get, "/") => show(),
        (Method::Get, "/entries") => ask_store(&Method::Get, "/entries", &[]),
        (Method::Post, "/entries") => write(request),
        (Method::Delete, "/entries") => delete(request, &path),
        (Method::Delete, _) if path.starts_with("/entries/") => delete(request, &path),
        (_, "/" | "/entries") => Err(Answer::text(405, "method not allowed")),
        _ => Err(Answer::text(404, "no such page")),
    }
}

/// Passes a request to the store, whose answer, refusals among them, is ours.
fn ask_store(method: &Method, path: &str, body: &[u8]) -> Result<Answer, Answer> {
    let store = env::var("STORE").unwrap_or_else(|_| "guestbook-store".to_owned());
    match web::call(method, &store, path, body) {
        Ok((204, _)) => Ok(Answer { status: 204, headers: Vec::new(), body: Vec::new() }),
        Ok((status @ 200..=299, body)) => Ok(Answer::json(status, body)),
        Ok((status, body)) => Err(Answer::new(status, "text/plain; charset=utf-8", body)),
        Err(error) => {
            eprintln!("cannot reach the store at {store}: {error}");
            Err(Answer::text(502, format!("cannot reach the store: {error}")))
        }
    }
}

fn show() -> Result<Answer, Answer> {
    let entries = ask_store(&Method::Get, "/entries", &[])?;
    let entries: Vec<Entry> =
        serde_json::from_slice(&entries.body).map_err(|error| Answer::text(502, format!("the store said: {error}")))?;
    let title = env::var("TITLE").unwrap_or_else(|_| "Guestbook".to_owned());
    let welcome = env::var_os("WELCOME_FILE").and_then(|file| std::fs::read_to_string(file).ok()).unwrap_or_default();
    let pod = env::var("HOSTNAME").unwrap_or_default();
    Ok(Answer::new(200, "text/html; charset=utf-8", page::render(&title, &welcome, &pod, &entries)))
}

/// Takes an entry as JSON, or as the page's form, which is led back to the page.
fn write(request: &IncomingRequest) -> Result<Answer, Answer> {
    let body = web::body(request)?;
    let kind = web::header(request, "content-type").unwrap_or_default();
    if !kind.starts_with("application/x-www-form-urlencoded") {
        return ask_store(&Method::Post, "/entries", &body);
    }
    let entry = page::form(&body);
    let entry = serde_json::to_vec(&entry).map_err(|error| Answer::text(400, error.to_string()))?;
    ask_store(&Method::Post, "/entries", &entry)?;
    Ok(Answer::text(303, "written").with("location", "/"))
}

fn delete(request: &IncomingRequest, path: &str) -> Result<Answer, Answer> {
    let token = env::var("ADMIN_TOKEN").ok().filter(|token| !token.is_empty());
    let token = token.ok_or_else(|| Answer::text(403, "nobody may delete: there is no ADMIN_TOKEN"))?;
    let given = web::header(request, "authorization").unwrap_or_default();
    let given = given.strip_prefix("Bearer ").unwrap_or_default();
    if !same(given.as_bytes(), token.as_bytes()) {
        return Err(Answer::text(401, "deleting needs the admin's token").with("www-authenticate", "Bearer"));
    }
    ask_store(&Method::Delete, path, &[])
}

/// Compares without telling by its time how much was right.
fn same(one: &[u8], other: &[u8]) -> bool {
    one.len() == other.len() && one.iter().zip(other).fold(0, |differing, (a, b)| differing | (a ^ b)) == 0
}
