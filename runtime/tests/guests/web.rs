//! An HTTP component with a path for everything a test wants a guest to do.

use std::sync::atomic::{AtomicU32, Ordering};
use wasip2::exports::http::incoming_handler::Guest;
use wasip2::http::outgoing_handler;
use wasip2::http::types::*;
use wasip2::io::streams::StreamError;

struct Web;

static SERVED: AtomicU32 = AtomicU32::new(0);

impl Guest for Web {
    fn handle(request: IncomingRequest, out: ResponseOutparam) {
        let path = request.path_with_query().unwrap_or_default();
        match path.as_str() {
            "/" => text(out, 200, "hello\n"),
            "/count" => text(out, 200, &SERVED.fetch_add(1, Ordering::Relaxed).to_string()),
            "/env" => text(out, 200, &format!("{:?} {:?}", std::env::vars().collect::<Vec<_>>(), std::env::args().collect::<Vec<_>>())),
            "/file" => text(out, 200, &format!("{:?}", std::fs::read_to_string("/data/file"))),
            "/log" => {
                println!("logged");
                text(out, 200, "");
            }
            "/request" => describe(request, out),
            "/echo" => echo(request, out),
            "/stream" => stream(out),
            "/late" => late(out),
            "/trap" => panic!("on purpose"),
            "/trap-late" => {
                let body = begin(out, 200, &[]);
                body.write().unwrap().blocking_write_and_flush(b"half").unwrap();
                panic!("on purpose");
            }
            "/spin" => loop {
                std::hint::black_box(0);
            },
            "/eat" => {
                let mut eaten = Vec::new();
                loop {
                    eaten.push(vec![1u8; 1 << 20]);
                    std::hint::black_box(&eaten);
                }
            }
            "/silent" => {}
            "/exit" => std::process::exit(1),
            "/fetch" => fetch(out),
            _ => text(out, 404, "no such path\n"),
        }
    }
}

fn begin(out: ResponseOutparam, status: u16, headers: &[(&str, &str)]) -> OutgoingBody {
    let fields = Fields::new();
    for (name, value) in headers {
        fields.append(name, value.as_bytes()).unwrap();
    }
    let response = OutgoingResponse::new(fields);
    response.set_status_code(status).unwrap();
    let body = response.body().unwrap();
    ResponseOutparam::set(out, Ok(response));
    body
}

fn text(out: ResponseOutparam, status: u16, text: &str) {
    let body = begin(out, status, &[("content-type", "text/plain")]);
    write(&body, text.as_bytes());
    OutgoingBody::finish(body, None).unwrap();
}

fn write(body: &OutgoingBody, bytes: &[u8]) {
    let stream = body.write().unwrap();
    for piece in bytes.chunks(4096) {
        stream.blocking_write_and_flush(piece).unwrap();
    }
}

/// What the host made of the request.
fn describe(request: IncomingRequest, out: ResponseOutparam) {
    let mut lines = vec![format!("{:?} {:?} {:?}", request.method(), request.scheme(), request.authority())];
    for (name, value) in request.headers().entries() {
        lines.push(format!("{name}: {}", String::from_utf8_lossy(&value)));
    }
    text(out, 200, &lines.join("\n"));
}

/// Sends the request's body and trailers back while they come.
fn echo(request: IncomingRequest, out: ResponseOutparam) {
    let incoming = request.consume().unwrap();
    let body = begin(out, 200, &[]);
    {
        let (from, to) = (incoming.stream().unwrap(), body.write().unwrap());
        loop {
            match from.blocking_read(4096) {
                Ok(bytes) => to.blocking_write_and_flush(&bytes).unwrap(),
                Err(StreamError::Closed) => break,
                Err(error) => panic!("{error:?}"),
            }
        }
    }
    let trailers = IncomingBody::finish(incoming);
    trailers.subscribe().block();
    let trailers = trailers.get().unwrap().unwrap().unwrap();
    let trailers = trailers.map(|fields| Fields::from_list(&fields.entries()).unwrap());
    OutgoingBody::finish(body, trailers).unwrap();
}

/// More than any buffer between guest and client holds.
fn stream(out: ResponseOutparam) {
    let body = begin(out, 200, &[]);
    write(&body, &vec![b'x'; 4 << 20]);
    OutgoingBody::finish(body, None).unwrap();
}

/// Goes on after its response.
fn late(out: ResponseOutparam) {
    text(out, 200, "soon");
    wasip2::clocks::monotonic_clock::subscribe_duration(20_000_000).block();
    println!("done after the response");
}

fn fetch(out: ResponseOutparam) {
    let request = OutgoingRequest::new(Fields::new());
    request.set_scheme(Some(&Scheme::Http)).unwrap();
    request.set_authority(Some("backend.default.svc")).unwrap();
    request.set_path_with_query(Some("/from/web")).unwrap();
    let pending = outgoing_handler::handle(request, None).unwrap();
    pending.subscribe().block();
    match pending.get().unwrap().unwrap() {
        Ok(response) => {
            let body = response.consume().unwrap();
            let stream = body.stream().unwrap();
            let mut all = Vec::new();
            while let Ok(bytes) = stream.blocking_read(4096) {
                all.extend(bytes);
            }
            text(out, 200, &format!("{} {}", response.status(), String::from_utf8_lossy(&all)));
        }
        Err(code) => text(out, 200, &format!("{code:?}")),
    }
}

wasip2::http::proxy::export!(Web);
