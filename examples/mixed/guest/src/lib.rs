//! A front end whose back end is a container beside it in the same pod, found at `localhost`: an HTTP component that shows
//! what the back end says, and what it has written into the volume that both mount.

use wasip2::exports::http::incoming_handler::Guest;
use wasip2::http::outgoing_handler;
use wasip2::http::types::{
    ErrorCode, Fields, IncomingBody, IncomingRequest, OutgoingBody, OutgoingRequest, OutgoingResponse, ResponseOutparam,
    Scheme,
};
use wasip2::io::streams::StreamError;

/// Where the back end listens, for this pod only.
const BACK_END: &str = "localhost:8081";
/// The back end adds a line to it for each question.
const VISITS: &str = "/shared/visits";
/// No answer of the back end is longer.
const BODY_BYTES_MAX: usize = 64 * 1024;

struct Front;

wasip2::http::proxy::export!(Front);

impl Guest for Front {
    fn handle(request: IncomingRequest, out: ResponseOutparam) {
        let (status, text) = match request.path_with_query().as_deref() {
            Some("/") => page(),
            Some("/name") => (200, "a Wasm component".to_owned()),
            Some("/healthz") => (200, "ok".to_owned()),
            _ => (404, "no such page".to_owned()),
        };
        send(out, status, &text);
    }
}

fn page() -> (u16, String) {
    match ask("/cgi-bin/greet") {
        Ok(said) => {
            let visits = std::fs::read_to_string(VISITS).unwrap_or_default().lines().count();
            (200, format!("The back end says: {}\nIt was asked {visits} times.", said.trim_end()))
        }
        Err(error) => {
            eprintln!("cannot reach the back end: {error}");
            (502, format!("cannot reach the back end: {error}"))
        }
    }
}

/// GET of the back end; its answer when that is a 200.
fn ask(path: &str) -> Result<String, String> {
    let said = |error: ErrorCode| error.to_string();
    let request = OutgoingRequest::new(Fields::new());
    request.set_scheme(Some(&Scheme::Http)).map_err(|()| "not a scheme")?;
    request.set_authority(Some(BACK_END)).map_err(|()| "not an authority")?;
    request.set_path_with_query(Some(path)).map_err(|()| "not a path")?;
    let response = outgoing_handler::handle(request, None).map_err(said)?;
    response.subscribe().block();
    let response = response.get().and_then(Result::ok).ok_or("no response")?.map_err(said)?;
    let body = response.consume().map_err(|()| "the answer is gone")?;
    let text = read(&body)?;
    match response.status() {
        200 => Ok(text),
        status => Err(format!("status {status}")),
    }
}

fn read(body: &IncomingBody) -> Result<String, String> {
    let stream = body.stream().map_err(|()| "the answer is gone")?;
    let mut bytes = Vec::new();
    loop {
        match stream.blocking_read(4096) {
            Ok(piece) if bytes.len() + piece.len() > BODY_BYTES_MAX => return Err("the answer is too long".to_owned()),
            Ok(piece) => bytes.extend(piece),
            Err(StreamError::Closed) => return Ok(String::from_utf8_lossy(&bytes).into_owned()),
            Err(error) => return Err(error.to_string()),
        }
    }
}

fn send(out: ResponseOutparam, status: u16, text: &str) {
    let headers = Fields::new();
    headers.append("content-type", b"text/plain; charset=utf-8").expect("our own header is valid");
    let response = OutgoingResponse::new(headers);
    response.set_status_code(status).expect("a valid status");
    let body = response.body().expect("the first call to body");
    ResponseOutparam::set(out, Ok(response));
    // a client that has gone away needs no answer
    if let Ok(stream) = body.write() {
        let _ = stream.blocking_write_and_flush(format!("{text}\n").as_bytes());
        drop(stream);
    }
    let _ = OutgoingBody::finish(body, None);
}
