//! `grpc`: one call of `grpc.health.v1.Health/Check` over HTTP/2 without TLS. Its two messages have one field each, so they are
//! written and read here by hand.

use super::Doors;
use crate::container::chain;
use crate::ground::Ground;
use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Version, header};
use http_body_util::BodyExt;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use k8s_openapi::api::core::v1::GRPCAction;
use netproxy::Body;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

/// Bytes of an answer that are read; a health answer has a handful.
const ANSWER_BYTES_MAX: usize = 16 << 10;
/// Between two tries to connect.
const RETRY: Duration = Duration::from_millis(50);
/// gRPC's own numbers for how a call ended.
const CODES: [&str; 17] = [
    "OK",
    "Canceled",
    "Unknown",
    "InvalidArgument",
    "DeadlineExceeded",
    "NotFound",
    "AlreadyExists",
    "PermissionDenied",
    "ResourceExhausted",
    "FailedPrecondition",
    "Aborted",
    "OutOfRange",
    "Unimplemented",
    "Internal",
    "Unavailable",
    "DataLoss",
    "Unauthenticated",
];
const UNIMPLEMENTED: usize = 12;

/// Asks within `timeout`.
///
/// # Errors
/// In the kubelet's words.
pub async fn ask(
    action: &GRPCAction,
    address: IpAddr,
    ground: &Ground,
    doors: &Doors,
    timeout: Duration,
) -> Result<(), String> {
    let port = u16::try_from(action.port).map_err(|_| "couldn't find port".to_owned())?;
    let at = SocketAddr::new(address, port);
    let until = Instant::now() + timeout;
    let request = request(at, action.service.as_deref().unwrap_or_default())?;
    let (response, _connection) = match doors.get(port) {
        Some(door) => {
            let answer = tokio::time::timeout_at(until, door.call(request)).await;
            let answer =
                answer.map_err(|_| slow(timeout))?.map_err(|error| failed("Unavailable", &error.to_string()))?;
            (answer, None)
        }
        None => {
            let (mut sender, connection) = connect(at, ground, until, timeout).await?;
            let answer = tokio::time::timeout_at(until, sender.send_request(request)).await;
            let answer = answer.map_err(|_| slow(timeout))?.map_err(|error| failed("Unavailable", &chain(&error)))?;
            (answer.map(|body| body.map_err(Into::into).boxed_unsync()), Some(connection))
        }
    };
    match tokio::time::timeout_at(until, read(response)).await {
        Ok(read) => judge(read?),
        Err(_) => Err(slow(timeout)),
    }
}

fn slow(timeout: Duration) -> String {
    format!("timeout: health rpc did not complete within {timeout:?}")
}

fn failed(code: &str, description: &str) -> String {
    format!("error: health rpc probe failed: rpc error: code = {code} desc = {description}")
}

/// A connection, tried for as long as there is time.
async fn connect(
    at: SocketAddr,
    ground: &Ground,
    until: Instant,
    timeout: Duration,
) -> Result<(http2::SendRequest<Body>, AbortOnDropHandle<()>), String> {
    let trying = async {
        loop {
            if let Ok(stream) = ground.connect(&at.ip().to_string(), at.port()).await
                && let Ok((sender, connection)) =
                    http2::Builder::new(TokioExecutor::new()).handshake(TokioIo::new(stream)).await
            {
                let driver = tokio::spawn(async move { drop(connection.await) });
                return (sender, AbortOnDropHandle::new(driver));
            }
            tokio::time::sleep(RETRY).await;
        }
    };
    let late = || format!("timeout: failed to connect service \"{at}\" within {timeout:?}: context deadline exceeded");
    tokio::time::timeout_at(until, trying).await.map_err(|_| late())
}

/// `HealthCheckRequest { service }` in a gRPC frame.
fn request(at: SocketAddr, service: &str) -> Result<Request<Body>, String> {
    let mut message = BytesMut::new();
    if !service.is_empty() {
        message.put_u8(1 << 3 | 2);
        put_varint(&mut message, service.len() as u64);
        message.put_slice(service.as_bytes());
    }
    let mut frame = BytesMut::new();
    frame.put_u8(0);
    frame.put_u32(u32::try_from(message.len()).map_err(|error| error.to_string())?);
    frame.put_slice(&message);
    Request::post(format!("http://{at}/grpc.health.v1.Health/Check"))
        .version(Version::HTTP_2)
        .header(header::CONTENT_TYPE, "application/grpc")
        .header(header::TE, "trailers")
        .header(header::USER_AGENT, HeaderValue::from_static("kube-probe/1.36"))
        .body(netproxy::full(frame.freeze()))
        .map_err(|error| error.to_string())
}

fn put_varint(out: &mut BytesMut, mut value: u64) {
    while value >= 0x80 {
        out.put_u8(value as u8 | 0x80);
        value >>= 7;
    }
    out.put_u8(value as u8);
}

/// What came back.
struct Answer {
    http: StatusCode,
    /// `grpc-status` and `grpc-message`, from the trailers or, of a call without an answer, from the head.
    code: Option<usize>,
    description: String,
    message: Bytes,
}

async fn read(response: Response<Body>) -> Result<Answer, String> {
    let (head, mut body) = response.into_parts();
    let (mut code, mut description) = outcome(&head.headers);
    let mut message = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| failed("Unavailable", &chain(error.as_ref())))?;
        match frame.into_data() {
            Ok(data) if message.len() + data.len() <= ANSWER_BYTES_MAX => message.extend_from_slice(&data),
            Ok(_) => return Err(failed("ResourceExhausted", "grpc: received message larger than max")),
            Err(frame) => {
                if let Some(trailers) = frame.trailers_ref() {
                    (code, description) = outcome(trailers);
                }
            }
        }
    }
    Ok(Answer { http: head.status, code, description, message: message.freeze() })
}

fn outcome(headers: &HeaderMap) -> (Option<usize>, String) {
    let text = |name: &str| headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
    (text("grpc-status").and_then(|code| code.parse().ok()), text("grpc-message").unwrap_or_default())
}

fn judge(answer: Answer) -> Result<(), String> {
    let Answer { http, code, description, message } = answer;
    match code {
        None if http != StatusCode::OK => {
            let code = match http.as_u16() {
                400 => "Internal",
                401 => "Unauthenticated",
                403 => "PermissionDenied",
                404 => "Unimplemented",
                429 | 502..=504 => "Unavailable",
                _ => "Unknown",
            };
            let description = format!("unexpected HTTP status code received from server: {http}");
            if code == "Unimplemented" { Err(unimplemented(&description)) } else { Err(failed(code, &description)) }
        }
        None => Err(failed("Internal", "server closed the stream without sending trailers")),
        Some(0) => match serving(&message) {
            Some(1) => Ok(()),
            Some(status) => {
                let name = match status {
                    0 => "UNKNOWN".to_owned(),
                    2 => "NOT_SERVING".to_owned(),
                    3 => "SERVICE_UNKNOWN".to_owned(),
                    other => other.to_string(),
                };
                Err(format!("service unhealthy (responded with {name:?})"))
            }
            None => Err(failed("Internal", "grpc: failed to unmarshal the received message")),
        },
        Some(UNIMPLEMENTED) => Err(unimplemented(&description)),
        Some(code) => {
            let name = CODES.get(code).map_or_else(|| format!("Code({code})"), |name| (*name).to_owned());
            Err(failed(&name, &description))
        }
    }
}

fn unimplemented(description: &str) -> String {
    format!("error: this server does not implement the grpc health protocol (grpc.health.v1.Health): {description}")
}

/// The status in a `HealthCheckResponse`, 0 if the message has none; `None` for what is no such message.
fn serving(frame: &[u8]) -> Option<u64> {
    let [0, a, b, c, d, message @ ..] = frame else { return None };
    if u32::from_be_bytes([*a, *b, *c, *d]) as usize != message.len() {
        return None;
    }
    let (mut status, mut rest) = (0, message);
    while !rest.is_empty() {
        let tag = take_varint(&mut rest)?;
        match tag & 7 {
            0 => {
                let value = take_varint(&mut rest)?;
                if tag >> 3 == 1 {
                    status = value;
                }
            }
            1 => rest = rest.get(8..)?,
            2 => {
                let length = usize::try_from(take_varint(&mut rest)?).ok()?;
                rest = rest.get(length..)?;
            }
            5 => rest = rest.get(4..)?,
            _ => return None,
        }
    }
    Some(status)
}

fn take_varint(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let (byte, left) = rest.split_first()?;
        *rest = left;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_health_answer_is_read_and_garbage_is_not() {
        for (frame, expected) in [
            (&[0, 0, 0, 0, 2, 8, 1][..], Some(1)),
            (&[0, 0, 0, 0, 2, 8, 2], Some(2)),
            (&[0, 0, 0, 0, 0], Some(0)),
            // an unknown field of each kind before the one that is known
            (&[0, 0, 0, 0, 7, 0x12, 1, 9, 0x18, 5, 8, 1], Some(1)),
            (&[], None),
            (&[1, 0, 0, 0, 0], None),
            (&[0, 0, 0, 0, 9, 8, 1], None),
            (&[0, 0, 0, 0, 1, 8], None),
            (&[0, 0, 0, 0, 3, 0x12, 200, 1], None),
            (&[0, 0, 0, 0, 11, 8, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255], None),
        ] {
            assert_eq!(serving(frame), expected, "{frame:?}");
        }
    }

    #[test]
    fn answers_are_judged_in_the_kubelets_words() {
        let judged = |http: u16, code, message: &'static [u8]| {
            let http = StatusCode::from_u16(http).unwrap();
            let message = Bytes::from_static(message);
            judge(Answer { http, code, description: "words".into(), message }).err().unwrap_or_default()
        };
        for (http, code, message, expected) in [
            (200, Some(0), &[0, 0, 0, 0, 2, 8, 1][..], ""),
            (200, Some(0), &[0, 0, 0, 0, 2, 8, 2], "service unhealthy (responded with \"NOT_SERVING\")"),
            (200, Some(5), &[], "error: health rpc probe failed: rpc error: code = NotFound desc = words"),
            (
                200,
                Some(12),
                &[],
                "error: this server does not implement the grpc health protocol (grpc.health.v1.Health): words",
            ),
            (200, Some(99), &[], "error: health rpc probe failed: rpc error: code = Code(99) desc = words"),
            (
                503,
                None,
                &[],
                "error: health rpc probe failed: rpc error: code = Unavailable desc = unexpected HTTP status code \
                 received from server: 503 Service Unavailable",
            ),
        ] {
            assert_eq!(judged(http, code, message), expected);
        }
    }
}
