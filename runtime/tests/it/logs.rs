//! Container logs: written by one side, read by the other.

use std::fs;
use std::path::Path;

use expect_test::expect;
use futures::StreamExt;
use jiff::Timestamp;
use runtime::logs::{LogFile, LogLimits, ReadOptions, Stream, read};

const SMALL: LogLimits = LogLimits { file_bytes_max: 300, files_max: 3 };

async fn all(dir: &Path, restarts: u32, options: ReadOptions, live: Option<LogFile>) -> String {
    let mut stream = read(dir, restarts, options, live).unwrap();
    let mut text = Vec::new();
    while let Some(chunk) = stream.next().await {
        text.extend(chunk.unwrap());
    }
    String::from_utf8(text).unwrap()
}

fn file_names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[tokio::test]
async fn lines_come_back_as_they_were_written() {
    let dir = tempfile::tempdir().unwrap();
    let log = LogFile::open(dir.path(), 0, LogLimits::default()).unwrap();
    assert_eq!(file_names(dir.path()), [""; 0], "nothing said, nothing written");
    let (out, err) = (log.stdout(), log.stderr());
    out.write(b"one\ntw");
    err.write(b"error\n");
    out.write(b"o\n\nlast");
    assert_eq!(all(dir.path(), 0, ReadOptions::default(), Some(log.clone())).await, "one\nerror\ntwo\n\n");
    log.close();
    out.write(b"too late\n");
    assert_eq!(all(dir.path(), 0, ReadOptions::default(), None).await, "one\nerror\ntwo\n\nlast\n");
    for (stream, expected) in [(Stream::Stdout, "one\ntwo\n\nlast\n"), (Stream::Stderr, "error\n")] {
        let options = ReadOptions { stream: Some(stream), ..ReadOptions::default() };
        assert_eq!(all(dir.path(), 0, options, None).await, expected);
    }
    let raw = fs::read_to_string(dir.path().join("0.log")).unwrap();
    let line = raw.lines().next().unwrap();
    assert_eq!(&line[30..], " stdout F one");
    line[..30].parse::<Timestamp>().unwrap();
}

#[tokio::test]
async fn long_lines_are_split_and_joined() {
    let dir = tempfile::tempdir().unwrap();
    let log = LogFile::open(dir.path(), 0, LogLimits::default()).unwrap();
    let long = "x".repeat(40_000);
    log.stdout().write(format!("{long}\nshort\n").as_bytes());
    log.close();
    let raw = fs::read_to_string(log.path()).unwrap();
    let tags: String = raw.lines().map(|line| &line[38..39]).collect();
    assert_eq!(tags, "PPFF");
    assert_eq!(all(dir.path(), 0, ReadOptions::default(), None).await, format!("{long}\nshort\n"));
    let stamped = all(dir.path(), 0, ReadOptions { timestamps: true, ..Default::default() }, None).await;
    assert_eq!(stamped.lines().count(), 2);
    assert_eq!(stamped.len(), 2 * 31 + 40_001 + 6);
}

#[tokio::test]
async fn options_choose() {
    let dir = tempfile::tempdir().unwrap();
    let lines: String =
        (0..10).map(|second| format!("2026-11-20T20:00:0{second}.000000000Z stdout F line {second}\n")).collect();
    let (rotated, current) = lines.split_at(lines.find("line 4\n").unwrap() + 7);
    fs::write(dir.path().join("2.log.000000"), rotated).unwrap();
    fs::write(dir.path().join("2.log"), current).unwrap();
    let get =
        async |options: ReadOptions| all(dir.path(), 2, options, None).await.replace("line ", "").replace('\n', " ");
    let default = ReadOptions::default;
    assert_eq!(get(default()).await, "0 1 2 3 4 5 6 7 8 9 ");
    assert_eq!(get(ReadOptions { tail_lines: Some(2), ..default() }).await, "8 9 ");
    assert_eq!(get(ReadOptions { tail_lines: Some(7), ..default() }).await, "3 4 5 6 7 8 9 ");
    assert_eq!(get(ReadOptions { tail_lines: Some(99), ..default() }).await, "0 1 2 3 4 5 6 7 8 9 ");
    assert_eq!(get(ReadOptions { tail_lines: Some(0), ..default() }).await, "");
    let since = Some("2026-11-20T20:00:07Z".parse().unwrap());
    assert_eq!(get(ReadOptions { since, ..default() }).await, "7 8 9 ");
    assert_eq!(get(ReadOptions { since, tail_lines: Some(1), ..default() }).await, "9 ");
    assert_eq!(get(ReadOptions { limit_bytes: Some(10), ..default() }).await, "0 lin");
    // Nobody writes it any more, so there is nothing to follow.
    assert_eq!(get(ReadOptions { follow: true, tail_lines: Some(1), ..default() }).await, "9 ");
    expect!["2026-11-20T20:00:09.000000000Z 9 "]
        .assert_eq(&get(ReadOptions { timestamps: true, tail_lines: Some(1), ..default() }).await);
    assert_eq!(all(dir.path(), 7, default(), None).await, "");
}

#[tokio::test]
async fn rotation_keeps_the_newest_files() {
    let dir = tempfile::tempdir().unwrap();
    let log = LogFile::open(dir.path(), 0, SMALL).unwrap();
    for number in 0..40 {
        log.stdout().write(format!("{number:04}\n").as_bytes());
    }
    log.close();
    let names = file_names(dir.path());
    assert!(names.len() == 3 && names[0] == "0.log", "{names:?}");
    let text = all(dir.path(), 0, ReadOptions::default(), None).await;
    assert!(text.ends_with("0038\n0039\n") && !text.contains("0000"), "{text}");
    let numbers: Vec<u32> = text.lines().map(|line| line.parse().unwrap()).collect();
    assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1), "{numbers:?}");
    // A node that comes back continues, and rotates on.
    let log = LogFile::open(dir.path(), 0, SMALL).unwrap();
    log.stdout().write(b"0040\n");
    assert!(all(dir.path(), 0, ReadOptions::default(), Some(log)).await.ends_with("0039\n0040\n"));
}

#[tokio::test]
async fn a_follower_sees_everything_across_rotations_until_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let log = LogFile::open(dir.path(), 0, LogLimits { file_bytes_max: 300, files_max: 100 }).unwrap();
    log.stdout().write(b"before\n");
    let options = ReadOptions { follow: true, ..Default::default() };
    let follower = tokio::spawn({
        let (dir, log) = (dir.path().to_owned(), log.clone());
        async move { all(&dir, 0, options, Some(log)).await }
    });
    let mut want = "before\n".to_owned();
    for number in 0..200 {
        let line = format!("{number}\n");
        log.stdout().write(line.as_bytes());
        want += &line;
        if number % 10 == 0 {
            tokio::task::yield_now().await;
        }
    }
    log.stdout().write(b"unfinished");
    log.close();
    assert_eq!(follower.await.unwrap(), want + "unfinished\n");
}

#[tokio::test]
async fn only_the_previous_instance_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    for restarts in 0..3 {
        let log = LogFile::open(dir.path(), restarts, LogLimits::default()).unwrap();
        log.stdout().write(format!("instance {restarts}\n").as_bytes());
        log.close();
    }
    assert_eq!(file_names(dir.path()), ["1.log", "2.log"]);
    assert_eq!(all(dir.path(), 1, ReadOptions::default(), None).await, "instance 1\n");
}
