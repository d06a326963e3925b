//! What the two halves of the guestbook share: the entry they pass, and short ways to speak `wasi:http`.

use serde::{Deserialize, Serialize};
use wasip2::http::outgoing_handler;
use wasip2::http::types::{
    ErrorCode, Fields, IncomingBody, IncomingRequest, Method, OutgoingBody, OutgoingRequest, OutgoingResponse,
    ResponseOutparam, Scheme,
};
use wasip2::io::streams::StreamError;

/// No body that the guestbook reads is longer.
pub const BODY_BYTES_MAX: usize = 4 << 20;

/// What somebody wrote.
#[derive(Serialize, Deserialize)]
pub struct Entry {
    /// Given by the store; ids sort by the time of writing.
    #[serde(default)]
    pub id: String,
    #[serde(default)]
    pub name: String,
    pub message: String,
}

/// An answer with its whole body at hand.
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(&'static str, String)>,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn new(status: u16, content_type: &str, body: impl Into<Vec<u8>>) -> Self {
        Self { status, headers: vec![("content-type", content_type.to_owned())], body: body.into() }
    }

    pub fn text(status: u16, text: impl Into<String>) -> Self {
        Self::new(status, "text/plain; charset=utf-8", text.into() + "\n")
    }

    pub fn json(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self::new(status, "application/json", body)
    }

    pub fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    pub fn send(self, out: ResponseOutparam) {
        let headers = Fields::new();
        for (name, value) in self.headers {
            headers.append(name, value.as_bytes()).expect("our own headers are valid");
        }
        let response = OutgoingResponse::new(headers);
        response.set_status_code(self.status).expect("a valid status");
        let body = response.body().expect("the first call to body");
        ResponseOutparam::set(out, Ok(response));
        // A client that has gone away needs no answer.
        let _ = write(body, &self.body);
    }
}

/// The path without its query.
pub fn path(request: &IncomingRequest) -> String {
    let target = request.path_with_query().unwrap_or_default();
    target.split('?').next().unwrap_or_default().to_owned()
}

/// A request's header, when it is there and is text.
pub fn header(request: &IncomingRequest, name: &str) -> Option<String> {
    String::from_utf8(request.headers().get(name).into_iter().next()?).ok()
}

/// The whole body of a request, or the answer that says why not.
pub fn body(request: &IncomingRequest) -> Result<Vec<u8>, Answer> {
    let body = request.consume().map_err(|()| Answer::text(500, "the body is gone"))?;
    read(&body).map_err(|error| match error {
        ReadError::TooLong => Answer::text(413, "the body is too long"),
        ReadError::BrokenOff => Answer::text(400, "the body ended early"),
    })
}

/// Sends a request to another service and waits for the whole answer: status and body.
pub fn call(method: &Method, authority: &str, path: &str, body: &[u8]) -> Result<(u16, Vec<u8>), String> {
    let headers = Fields::new();
    headers.set("content-type", &[b"application/json".to_vec()]).map_err(|error| error.to_string())?;
    headers.set("content-length", &[body.len().to_string().into_bytes()]).map_err(|error| error.to_string())?;
    let request = OutgoingRequest::new(headers);
    request.set_method(method).map_err(|()| "not a method")?;
    request.set_scheme(Some(&Scheme::Http)).map_err(|()| "not a scheme")?;
    request.set_authority(Some(authority)).map_err(|()| format!("not an authority: {authority:?}"))?;
    request.set_path_with_query(Some(path)).map_err(|()| format!("not a path: {path:?}"))?;
    let outgoing = request.body().map_err(|()| "the body is taken")?;

    let said = |error: ErrorCode| error.to_string();
    let response = outgoing_handler::handle(request, None).map_err(said)?;
    write(outgoing, body).map_err(|error| error.to_string())?;
    response.subscribe().block();
    let response = response.get().and_then(Result::ok).ok_or("no response")?.map_err(said)?;
    let incoming = response.consume().map_err(|()| "the answer is gone")?;
    let answer = read(&incoming).map_err(|_| "the answer is too long or ended early")?;
    Ok((response.status(), answer))
}

enum ReadError {
    TooLong,
    BrokenOff,
}

fn read(body: &IncomingBody) -> Result<Vec<u8>, ReadError> {
    let stream = body.stream().map_err(|()| ReadError::BrokenOff)?;
    let mut bytes = Vec::new();
    loop {
        match stream.blocking_read(64 * 1024) {
            Ok(piece) if bytes.len() + piece.len() > BODY_BYTES_MAX => return Err(ReadError::TooLong),
            Ok(piece) => bytes.extend(piece),
            Err(StreamError::Closed) => return Ok(bytes),
            Err(StreamError::LastOperationFailed(_)) => return Err(ReadError::BrokenOff),
        }
    }
}

fn write(body: OutgoingBody, bytes: &[u8]) -> Result<(), StreamError> {
    let stream = body.write().map_err(|()| StreamError::Closed)?;
    // A write may carry at most 4096 bytes.
    for piece in bytes.chunks(4096) {
        stream.blocking_write_and_flush(piece)?;
    }
    drop(stream);
    OutgoingBody::finish(body, None).map_err(|_| StreamError::Closed)
}
