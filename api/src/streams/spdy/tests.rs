//! Two ends of a connection in memory, and an end of bytes.

use super::frame::{Encoder, Frame};
use super::{Connection, Gone, Headers, Limits, Side, Stream};
use bytes::{Bytes, BytesMut};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

fn pair(limits: &Limits) -> (Connection, Connection) {
    let (near, far) = tokio::io::duplex(64 * 1024);
    let client = Connection::start(near, Side::Client, limits.clone()).unwrap();
    (client, Connection::start(far, Side::Server, limits.clone()).unwrap())
}

fn headers() -> Headers {
    Headers::new([("streamType", "data")])
}

async fn opened(client: &Connection, server: &mut Connection) -> (Stream, Stream) {
    let opener = client.opener();
    let (near, far) = tokio::join!(opener.open(headers(), false), async {
        let stream = server.next().await.unwrap();
        stream.accept();
        stream
    });
    (near.unwrap(), far)
}

#[tokio::test]
async fn halves_end_apart() {
    let (client, mut server) = pair(&Limits::default());
    let (near, far) = opened(&client, &mut server).await;
    assert_eq!((near.id(), far.id(), far.headers().get("streamtype")), (1, 1, Some("data")));
    let ((mut near_reading, near_writing), (mut far_reading, far_writing)) = (near.split(), far.split());
    near_writing.write(Bytes::from_static(b"question")).await.unwrap();
    near_writing.finish().await.unwrap();
    assert_eq!(near_writing.write(Bytes::from_static(b"more")).await, Err(Gone));
    assert_eq!(far_reading.read().await, Some(Ok(Bytes::from_static(b"question"))));
    assert_eq!(far_reading.read().await, None);
    far_writing.write(Bytes::from_static(b"answer")).await.unwrap();
    // what was written and ended arrives although nobody holds the stream any more
    far_writing.finish().await.unwrap();
    drop((far_reading, far_writing));
    assert_eq!(near_reading.read().await, Some(Ok(Bytes::from_static(b"answer"))));
    assert_eq!(near_reading.read().await, None);
}

#[tokio::test]
async fn a_dropped_stream_is_broken_off() {
    let (client, mut server) = pair(&Limits::default());
    let (near, far) = opened(&client, &mut server).await;
    let (mut reading, writing) = near.split();
    drop(far);
    assert_eq!(reading.read().await, Some(Err(Gone)));
    writing.gone().await;
    assert_eq!(writing.write(Bytes::from_static(b"x")).await, Err(Gone));
    // and so is one that is not taken
    let opener = client.opener();
    let (refused, ()) = tokio::join!(opener.open(headers(), false), async { drop(server.next().await) });
    assert!(refused.is_err());
    drop(server);
    client.closed().await;
}

#[tokio::test]
async fn a_stream_that_is_not_read_holds_its_writer_back() {
    let limits = Limits { stream_bytes_max: 64 * 1024, ..Limits::default() };
    let (client, mut server) = pair(&limits);
    let (near, far) = opened(&client, &mut server).await;
    let (_near_reading, writing) = near.split();
    let (mut reading, _far_writing) = far.split();
    let total = 4 * 1024 * 1024;
    let writer = tokio::spawn(async move {
        for _ in 0..total / 65536 {
            writing.write(vec![1; 65536].into()).await.unwrap();
        }
        writing.finish().await.unwrap();
        writing
    });
    tokio::task::yield_now().await;
    assert!(!writer.is_finished());
    let mut read = 0;
    while let Some(bytes) = reading.read().await {
        read += bytes.unwrap().len();
    }
    assert_eq!(read, total);
    drop(writer.await.unwrap());
}

#[tokio::test]
async fn streams_are_counted() {
    let limits = Limits { streams_max: 2, ..Limits::default() };
    let (client, mut server) = pair(&limits);
    let first = opened(&client, &mut server).await;
    let second = opened(&client, &mut server).await;
    assert!(client.opener().open(headers(), false).await.is_err());
    drop(first);
    let taking = tokio::spawn(async move {
        let mut taken = Vec::new();
        while let Some(stream) = server.next().await {
            stream.accept();
            taken.push(stream);
        }
    });
    // the server hears of the drop in its time, and refuses until then
    let third = loop {
        if let Ok(stream) = client.opener().open(headers(), false).await {
            break stream;
        }
    };
    assert_eq!(third.id() % 2, 1);
    drop((second, client));
    taking.await.unwrap();
}

#[tokio::test]
async fn pings_are_answered_and_silence_ends() {
    let limits =
        Limits { ping_interval: Duration::from_millis(20), idle_time_max: Duration::ZERO, ..Limits::default() };
    let (mut near, far) = tokio::io::duplex(1024);
    let server = Connection::start(far, Side::Server, Limits::default()).unwrap();
    let (mut encoder, mut bytes) = (Encoder::new().unwrap(), BytesMut::new());
    encoder.encode(&Frame::Ping { id: 9 }, &mut bytes).unwrap();
    near.write_all(&bytes).await.unwrap();
    let mut answer = vec![0; bytes.len()];
    near.read_exact(&mut answer).await.unwrap();
    assert_eq!(answer, bytes);
    drop(server);
    let (_near, far) = tokio::io::duplex(1024);
    let server = Connection::start(far, Side::Server, limits).unwrap();
    server.closed().await;
}

#[tokio::test]
async fn what_is_no_spdy_ends_the_connection() {
    for bytes in [
        &b"GET / HTTP/1.1\r\nHost: x\r\n\r\n and so on"[..],
        b"\x80\x02\0\x01\0\0\0\0",
        b"\x80\x03\0\x01\0\0\0\x0c01234567890x",
    ] {
        let (mut near, far) = tokio::io::duplex(1024);
        let server = Connection::start(far, Side::Server, Limits::default()).unwrap();
        near.write_all(bytes).await.unwrap();
        near.shutdown().await.unwrap();
        server.closed().await;
    }
    // numbers that may not be: refused, and the connection goes on
    let (mut near, far) = tokio::io::duplex(64 * 1024);
    let mut server = Connection::start(far, Side::Server, Limits::default()).unwrap();
    let (mut encoder, mut bytes) = (Encoder::new().unwrap(), BytesMut::new());
    for id in [0, 2, 3, 3, 1, 5] {
        let begin = Frame::SynStream { id, fin: false, unidirectional: false, headers: headers() };
        encoder.encode(&begin, &mut bytes).unwrap();
    }
    near.write_all(&bytes).await.unwrap();
    assert_eq!((server.next().await.unwrap().id(), server.next().await.unwrap().id()), (3, 5));
}

#[tokio::test]
async fn who_asks_and_never_reads_is_cut_off() {
    let (mut near, far) = tokio::io::duplex(1024);
    let server = Connection::start(far, Side::Server, Limits::default()).unwrap();
    let (mut encoder, mut bytes) = (Encoder::new().unwrap(), BytesMut::new());
    for _ in 0..20_000 {
        encoder.encode(&Frame::Ping { id: 1 }, &mut bytes).unwrap();
    }
    // it fails when the server has had enough
    let _ = near.write_all(&bytes).await;
    server.closed().await;
}
