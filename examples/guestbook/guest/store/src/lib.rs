//! The guestbook's store: an HTTP component that keeps entries as files in a volume.
//!
//! Instances live for one request and several run at once, so all that lasts is in the volume, one file an entry: it is
//! written beside the others and appears whole by a rename. Its name, which begins with the time, is the entry's id.

use std::io::{self, ErrorKind};
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};
use std::{env, fs};
use wasip2::exports::http::incoming_handler::Guest;
use wasip2::http::types::{IncomingRequest, Method, ResponseOutparam};
use wasip2::random::random::get_random_u64;
use web::{Answer, Entry};

const ENTRIES_MAX: usize = 1000;
const NAME_CHARS_MAX: usize = 100;
const MESSAGE_CHARS_MAX: usize = 1000;

struct Store;

wasip2::http::proxy::export!(Store);

impl Guest for Store {
    fn handle(request: IncomingRequest, out: ResponseOutparam) {
        let answer = route(&request).unwrap_or_else(|error| {
            eprintln!("{}: {error}", web::path(&request));
            Answer::text(500, format!("the store failed: {error}"))
        });
        answer.send(out);
    }
}

fn route(request: &IncomingRequest) -> io::Result<Answer> {
    let path = web::path(request);
    match (request.method(), path.as_str(), path.strip_prefix("/entries/")) {
        (Method::Get, "/healthz", _) => ids().map(|_| Answer::text(200, "ok")),
        (Method::Get, "/entries", _) => list(),
        (Method::Post, "/entries", _) => add(request),
        (Method::Delete, "/entries", _) => clear(),
        (Method::Delete, _, Some(id)) => remove(id),
        (_, "/entries", _) | (_, _, Some(_)) => Ok(Answer::text(405, "method not allowed")),
        _ => Ok(Answer::text(404, "no such path")),
    }
}

/// A directory of the volume, made when it is not there yet.
fn directory(name: &str) -> io::Result<PathBuf> {
    let volume: PathBuf = env::var_os("DATA_DIR").unwrap_or_else(|| "/data".into()).into();
    let directory = volume.join(name);
    fs::create_dir_all(&directory)?;
    Ok(directory)
}

fn file(id: &str) -> io::Result<PathBuf> {
    Ok(directory("entries")?.join(id))
}

/// The ids of all entries, oldest first.
fn ids() -> io::Result<Vec<String>> {
    let directory = directory("entries")?;
    let mut tries_left = 10;
    loop {
        let names: io::Result<Vec<String>> =
            fs::read_dir(&directory)?.map(|found| Ok(found?.file_name().to_string_lossy().into_owned())).collect();
        match names {
            // WASI looks at each file while it lists them, and fails if one has just been removed.
            Err(error) if error.kind() == ErrorKind::NotFound && tries_left > 0 => tries_left -= 1,
            Err(error) => return Err(error),
            Ok(mut names) => {
                names.sort();
                return Ok(names);
            }
        }
    }
}

fn list() -> io::Result<Answer> {
    let mut body = String::from("[");
    for id in ids()? {
        let entry = match fs::read_to_string(file(&id)?) {
            Ok(entry) => entry,
            // Removed since it was listed.
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        if body.len() > 1 {
            body.push(',');
        }
        body.push_str(&entry);
    }
    body.push(']');
    Ok(Answer::json(200, body))
}

fn add(request: &IncomingRequest) -> io::Result<Answer> {
    let body = match web::body(request) {
        Ok(body) => body,
        Err(answer) => return Ok(answer),
    };
    let mut entry: Entry = match serde_json::from_slice(&body) {
        Ok(entry) => entry,
        Err(error) => return Ok(Answer::text(400, format!("not an entry: {error}"))),
    };
    if entry.message.trim().is_empty() {
        return Ok(Answer::text(422, "an entry needs a message"));
    }
    if entry.name.chars().count() > NAME_CHARS_MAX || entry.message.chars().count() > MESSAGE_CHARS_MAX {
        return Ok(Answer::text(422, "the name or the message is too long"));
    }
    if ids()?.len() >= ENTRIES_MAX {
        return Ok(Answer::text(507, "the guestbook is full"));
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_err(io::Error::other)?;
    entry.id = format!("{:013}-{:016x}", now.as_millis(), get_random_u64());
    let text = serde_json::to_string(&entry).map_err(io::Error::other)?;
    let unfinished = directory("unfinished")?.join(&entry.id);
    fs::write(&unfinished, &text)?;
    fs::rename(&unfinished, file(&entry.id)?)?;
    println!("added {}", entry.id);
    Ok(Answer::json(201, text))
}

fn remove(id: &str) -> io::Result<Answer> {
    // Nothing but an id may become part of a path.
    if id.is_empty() || !id.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-') {
        return Ok(Answer::text(404, "no such entry"));
    }
    match fs::remove_file(file(id)?) {
        Ok(()) => Ok(Answer { status: 204, headers: Vec::new(), body: Vec::new() }),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Answer::text(404, "no such entry")),
        Err(error) => Err(error),
    }
}

fn clear() -> io::Result<Answer> {
    for id in ids()? {
        remove(&id)?;
    }
    Ok(Answer { status: 204, headers: Vec::new(), body: Vec::new() })
}
