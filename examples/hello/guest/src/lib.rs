//! An HTTP component (`wasi:http/proxy`): greets with the pod's name, echoes what it is sent, says that it is well.
//!
//! The host makes a fresh instance for each request, so nothing here outlives one.

use wasip2::exports::http::incoming_handler::Guest;
use wasip2::http::types::{
    Fields, IncomingBody, IncomingRequest, Method, OutgoingBody, OutgoingResponse, ResponseOutparam,
};
use wasip2::io::streams::StreamError;

/// How much is moved from the request to the response at once.
const CHUNK_BYTES: u64 = 64 * 1024;

struct Hello;

wasip2::http::proxy::export!(Hello);

impl Guest for Hello {
    fn handle(request: IncomingRequest, out: ResponseOutparam) {
        let target = request.path_with_query().unwrap_or_else(|| "/".to_owned());
        let path = target.split('?').next().unwrap_or("/");
        match (request.method(), path) {
            (_, "/healthz") => answer(out, 200, "ok\n"),
            (Method::Post | Method::Put, "/echo" | "/hello/echo") => echo(&request, out),
            (_, "/echo" | "/hello/echo") => answer(out, 405, "POST or PUT a body and it comes back\n"),
            (Method::Get | Method::Head, _) => {
                let pod = std::env::var("HOSTNAME").unwrap_or_else(|_| "a pod without a name".to_owned());
                answer(out, 200, &format!("Hello from {pod}! You asked for {target}\n"));
            }
            _ => answer(out, 405, "method not allowed\n"),
        }
    }
}

fn answer(out: ResponseOutparam, status: u16, text: &str) {
    let body = start(out, status, "text/plain; charset=utf-8");
    if let Ok(stream) = body.write() {
        // A write may carry at most 4096 bytes; a client that has gone away needs no answer.
        for piece in text.as_bytes().chunks(4096) {
            if stream.blocking_write_and_flush(piece).is_err() {
                return;
            }
        }
    }
    let _ = OutgoingBody::finish(body, None);
}

/// Sends the request's body back as it arrives, without holding more than a chunk of it.
fn echo(request: &IncomingRequest, out: ResponseOutparam) {
    let kind = request.headers().get("content-type").into_iter().next();
    let kind =
        kind.and_then(|value| String::from_utf8(value).ok()).unwrap_or_else(|| "application/octet-stream".into());
    let Ok(incoming) = request.consume() else { return answer(out, 500, "the body is gone\n") };
    let body = start(out, 200, &kind);
    if copy(&incoming, &body).is_ok() {
        let _ = OutgoingBody::finish(body, None);
    }
    // Dropped without `finish`, the response is broken off: the client sees that something is missing.
}

fn copy(from: &IncomingBody, to: &OutgoingBody) -> Result<(), StreamError> {
    let (Ok(from), Ok(to)) = (from.stream(), to.write()) else { return Err(StreamError::Closed) };
    loop {
        match to.blocking_splice(&from, CHUNK_BYTES) {
            Ok(_) => to.flush()?,
            Err(StreamError::Closed) => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}

fn start(out: ResponseOutparam, status: u16, kind: &str) -> OutgoingBody {
    let headers = Fields::new();
    headers.set("content-type", &[kind.as_bytes().to_vec()]).expect("a valid header");
    let response = OutgoingResponse::new(headers);
    response.set_status_code(status).expect("a valid status");
    let body = response.body().expect("the first call to body");
    ResponseOutparam::set(out, Ok(response));
    body
}
