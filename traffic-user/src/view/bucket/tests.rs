//! Lines as they are written.

use super::*;
use crate::accounting::{
    reading::{Coverage, Layer, Traffic},
    subject::Subject,
    usage::{Level, Usage},
};

fn bucket(email: &str) -> Bucket {
    let traffic = Traffic { input_bytes: 1, output_bytes: 2, ..Traffic::default() };
    Bucket {
        level: Level::Minutes,
        span: Span { begin: 300, end: 600 },
        subject: Subject::User(email.into()),
        name: None,
        usage: Usage { layer: Layer::Payload, traffic, coverage: Coverage::Complete },
    }
}

#[track_caller]
fn written(format: Format, buckets: &[Bucket]) -> String {
    let terms = Terms::default();
    let about =
        About { taken_at: 900, host: "vps1", terms: &terms, span: Span { begin: 0, end: 900 } };
    let mut writer = Writer::buckets(Vec::new(), format, about).unwrap();
    buckets.iter().for_each(|bucket| writer.bucket(bucket).unwrap());
    String::from_utf8(writer.finish().unwrap()).unwrap()
}

const HEAD: &str = "{\"jsonversion\":\"1\",\"kind\":\"buckets\",\"taken_at\":\"1970-01-01T00:15:00Z\",\"host\":\"vps1\",\"time_zone\":\"UTC\",\"billing_day\":1,\"counting\":\"both\",\"from\":\"1970-01-01T00:00:00Z\",\"to\":\"1970-01-01T00:15:00Z\",\"buckets\":[";

#[test]
fn one_by_one_they_are_one_document() {
    let line = |email| {
        format!(
            "\n{{\"level\":\"5min\",\"from\":\"1970-01-01T00:05:00Z\",\"to\":\"1970-01-01T00:10:00Z\",\"kind\":\"user\",\"key\":\"{email}\",\"name\":null,\"layer\":\"payload\",\"input_bytes\":1,\"output_bytes\":2,\"input_packets\":null,\"output_packets\":null,\"total_bytes\":3,\"billed_bytes\":3,\"coverage\":\"complete\"}}"
        )
    };
    let (a, b) = (line("a"), line("b"));
    assert_eq!(written(Format::Json, &[]), format!("{HEAD}]}}\n"));
    assert_eq!(written(Format::Json, &[bucket("a"), bucket("b")]), format!("{HEAD}{a},{b}\n]}}\n"));
}

#[test]
fn lines_and_texts_are_safe_to_look_at() {
    let csv = written(Format::Csv, &[bucket("@x\u{1b}")]);
    let want = "\"5min\",\"1970-01-01T00:05:00Z\",\"1970-01-01T00:10:00Z\",\"user\",\"'@x\\u{1b}\",\"\",\"payload\",1,2,,,3,3,\"complete\"";
    assert_eq!(csv.lines().nth(1), Some(want));
    assert_eq!(csv.lines().count(), 2);
    let want = "1970-01-01T00:05:00Z 5min user a\\u{1b}b payload: 1 in, 2 out\n";
    assert_eq!(written(Format::Txt, &[bucket("a\u{1b}b")]), want);
}

#[test]
fn events_are_lines_too() {
    let event = Event {
        at: 1_500_000_000,
        kind: "gap".into(),
        subject: Some(Subject::User("=a".into())),
        what: "was away".into(),
    };
    let terms = Terms::default();
    let about = About { taken_at: 9, host: "h", terms: &terms, span: Span { begin: 0, end: 9 } };
    let written = |format| {
        let mut writer = Writer::events(Vec::new(), format, about).unwrap();
        writer.event(&event).unwrap();
        String::from_utf8(writer.finish().unwrap()).unwrap()
    };
    assert_eq!(
        written(Format::Csv),
        "\"at\",\"kind\",\"subject_kind\",\"subject\",\"what\"\n\"1970-01-01T00:00:01.500Z\",\"gap\",\"user\",\"'=a\",\"was away\"\n"
    );
    assert_eq!(written(Format::Txt), "1970-01-01T00:00:01Z gap: was away\n");
    assert!(written(Format::Json).contains("\"events\":[\n{\"at\":\"1970-01-01T00:00:01.500Z\""));
}

#[test]
fn what_can_not_be_written_is_an_error() {
    struct Full;
    impl Write for Full {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::StorageFull.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let terms = Terms::default();
    let about = About { taken_at: 9, host: "h", terms: &terms, span: Span { begin: 0, end: 9 } };
    for format in [Format::Json, Format::Csv, Format::Txt] {
        let mut writer = match Writer::buckets(Full, format, about) {
            Ok(writer) => writer,
            Err(error) => {
                assert_eq!(error.kind(), io::ErrorKind::StorageFull);
                continue;
            }
        };
        let failed = (0..10_000).find_map(|_| writer.bucket(&bucket("a")).err());
        assert!(failed.is_some(), "{format:?}");
    }
}
