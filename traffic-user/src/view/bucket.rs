//! The ledger's own lines, written one by one: however many there are, memory stays as it is.

use std::io::{self, Write};

use serde::Serialize;

use super::{
    books::{EventJson, Head, SpanJson, UsageJson, WhoJson},
    sheet::{self, text, word},
};
use crate::accounting::{
    history::{Terms, Who},
    ident::{escaped, shown},
    period::utc,
    usage::{Bucket, Event, Span},
};

/// How lines are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// One document.
    Json,
    /// Fields for spreadsheets.
    Csv,
    /// One line each for people.
    Txt,
}

/// What a document begins with.
#[derive(Clone, Copy, Debug)]
pub struct About<'a> {
    /// Seconds of Unix time.
    pub taken_at: i64,
    /// Name of this host.
    pub host: &'a str,
    /// How numbers and times are written.
    pub terms: &'a Terms,
    /// What was asked for.
    pub span: Span,
}

/// What is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lines {
    Buckets,
    Events,
}

/// Writes buckets or events. [`finish`](Self::finish) ends the document.
pub struct Writer<'a, W: Write> {
    to: To<W>,
    about: About<'a>,
    written: u64,
}

enum To<W: Write> {
    Json(W),
    Csv(W),
    Txt(W),
}

#[derive(Serialize)]
struct BucketJson {
    level: &'static str,
    #[serde(flatten)]
    span: SpanJson,
    #[serde(flatten)]
    who: WhoJson,
    layer: &'static str,
    #[serde(flatten)]
    usage: UsageJson,
}

impl<'a, W: Write> Writer<'a, W> {
    /// Begins a document of buckets.
    ///
    /// # Errors
    ///
    /// Those of what it writes to.
    pub fn buckets(to: W, format: Format, about: About<'a>) -> io::Result<Self> {
        Self::new(to, format, about, Lines::Buckets)
    }

    /// Begins a document of events.
    ///
    /// # Errors
    ///
    /// Those of what it writes to.
    pub fn events(to: W, format: Format, about: About<'a>) -> io::Result<Self> {
        Self::new(to, format, about, Lines::Events)
    }

    fn new(mut to: W, format: Format, about: About<'a>, lines: Lines) -> io::Result<Self> {
        let kind = match lines {
            Lines::Buckets => "buckets",
            Lines::Events => "events",
        };
        let to = match format {
            Format::Json => {
                let head = Head::new(kind, about.taken_at, about.host, about.terms);
                let head = serde_json::to_string(&head)?;
                let span = serde_json::to_string(&SpanJson::from(about.span))?;
                // The two objects as one, left open.
                let (head, span) = (head.trim_end_matches('}'), span.trim_matches(['{', '}']));
                write!(to, "{head},{span},\"{kind}\":[")?;
                To::Json(to)
            }
            Format::Csv => {
                let first = ["level", "from", "to", "kind", "key", "name", "layer"];
                let names = match lines {
                    Lines::Buckets => sheet::names(first.into_iter().chain(UsageJson::COLUMNS)),
                    Lines::Events => sheet::names(EventJson::COLUMNS),
                };
                to.write_all(names.as_bytes())?;
                To::Csv(to)
            }
            Format::Txt => To::Txt(to),
        };
        Ok(Self { to, about, written: 0 })
    }

    /// Writes one.
    ///
    /// # Errors
    ///
    /// Those of what it writes to.
    pub fn bucket(&mut self, bucket: &Bucket) -> io::Result<()> {
        let who = Who { subject: bucket.subject.clone(), name: bucket.name.clone() };
        let kind = bucket.subject.kind();
        let line = BucketJson {
            level: bucket.level.name(),
            span: bucket.span.into(),
            who: WhoJson::from(&who),
            layer: bucket.usage.layer.name(),
            usage: UsageJson::new(Some(bucket.usage), kind, self.about.terms),
        };
        match &mut self.to {
            To::Json(to) => object(to, self.written, &line)?,
            To::Csv(to) => {
                let texts = [
                    word(line.level),
                    word(utc(bucket.span.begin)),
                    word(utc(bucket.span.end)),
                    word(kind.name()),
                    text(&bucket.subject.key()),
                    text(bucket.name.as_deref().unwrap_or_default()),
                    word(line.layer),
                ];
                to.write_all(sheet::line(texts.into_iter().chain(line.usage.cells())).as_bytes())?;
            }
            To::Txt(to) => writeln!(
                to,
                "{} {} {} {} {}: {} in, {} out",
                utc(bucket.span.begin),
                line.level,
                kind.name(),
                shown(&bucket.subject.key()),
                line.layer,
                bucket.usage.traffic.input_bytes,
                bucket.usage.traffic.output_bytes
            )?,
        }
        self.written += 1;
        Ok(())
    }

    /// Writes one.
    ///
    /// # Errors
    ///
    /// Those of what it writes to.
    pub fn event(&mut self, event: &Event) -> io::Result<()> {
        let line = EventJson::from(event);
        match &mut self.to {
            To::Json(to) => object(to, self.written, &line)?,
            To::Csv(to) => to.write_all(sheet::line(line.cells()).as_bytes())?,
            To::Txt(to) => {
                let at = i64::try_from(event.at.div_euclid(1_000_000_000)).unwrap_or(i64::MAX);
                writeln!(to, "{} {}: {}", utc(at), escaped(&event.kind), event.what)?;
            }
        }
        self.written += 1;
        Ok(())
    }

    /// Ends the document and hands back what it was written to.
    ///
    /// # Errors
    ///
    /// Those of what it writes to.
    pub fn finish(self) -> io::Result<W> {
        match self.to {
            To::Json(mut to) => {
                to.write_all(if self.written == 0 { b"]}\n" } else { b"\n]}\n" })?;
                Ok(to)
            }
            To::Csv(to) | To::Txt(to) => Ok(to),
        }
    }
}

/// An element of a list, on a line of its own.
fn object(to: &mut impl Write, before: u64, value: &impl Serialize) -> io::Result<()> {
    to.write_all(if before == 0 { b"\n" } else { b",\n" })?;
    serde_json::to_writer(to, value).map_err(io::Error::from)
}

#[cfg(test)]
mod tests;
