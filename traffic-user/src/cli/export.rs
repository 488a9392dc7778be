//! `traffic export`: reports and the ledger's own lines, for other programs.

use std::{
    io::IsTerminal as _,
    ops::ControlFlow,
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use clap::{Subcommand, ValueEnum};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::{
    Common,
    books::{Books, When, Whose},
    file, history, top,
};
use crate::{
    accounting::usage::{Event, Level, Span},
    ledger::Wanted,
    view::bucket::{About, Format, Writer},
};

/// Who waits longer than this wants to know for how long.
const PATIENCE: Duration = Duration::from_secs(1);

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// How it is written
    #[arg(value_enum)]
    format: FormatChoice,
    #[command(subcommand)]
    what: What,
    /// Write to a file, which is there when it is complete. Without it: to stdout
    #[arg(long, short, global = true, value_name = "FILE")]
    output: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum FormatChoice {
    /// One document
    Json,
    /// Fields for spreadsheets
    Csv,
    /// Text for people
    Txt,
}

#[derive(Debug, Subcommand)]
enum What {
    /// What `traffic history` shows
    History(history::Question),
    /// What `traffic top` shows
    Top(top::Question),
    /// The buckets themselves: all, unless a time is named
    Buckets(BucketArgs),
    /// What happened: all, unless a time is named
    Events {
        #[command(flatten)]
        when: When,
        /// The last so many
        #[arg(long, value_name = "N")]
        limit: Option<usize>,
    },
}

#[derive(Debug, clap::Args)]
struct BucketArgs {
    #[command(flatten)]
    when: When,
    #[command(flatten)]
    whose: Whose,
    /// Of the host alone
    #[arg(long, conflicts_with_all = ["user", "port", "group", "relay"])]
    host: bool,
    /// Of this length. Without it: the shortest there is, so that they add up to the totals
    #[arg(long, value_enum)]
    level: Option<LevelChoice>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LevelChoice {
    /// Five minutes
    #[value(name = "5min")]
    Minutes,
    /// An hour
    Hour,
    /// A day
    Day,
}

pub(super) fn run(common: &Common, args: &Args) -> Result<ExitCode> {
    let format = match (args.format, common.json) {
        (FormatChoice::Json, _) | (_, true) => Format::Json,
        (FormatChoice::Csv, _) => Format::Csv,
        (FormatChoice::Txt, _) => Format::Txt,
    };
    match &args.what {
        What::History(asked) => {
            let text = history::text(&history::gather(common, asked)?, Some(format))?;
            whole(common, args, &text)?;
        }
        What::Top(asked) => {
            let text = top::text(&top::gather(common, asked)?, Some(format))?;
            whole(common, args, &text)?;
        }
        What::Buckets(asked) => buckets(common, args, asked, format)?,
        What::Events { when, limit } => {
            let books = Books::open_for_events(common, when)?;
            let span = books.span_of_events(when)?;
            let events = books.reader.events(span, limit.unwrap_or(usize::MAX))?;
            let span = told(span, &books, &events);
            file::write(&common.state, args.output.as_deref(), |to| {
                let mut writer = Writer::events(to, format, about(&books, span))?;
                events.iter().try_for_each(|event| writer.event(event))?;
                writer.finish()?;
                Ok(())
            })?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn whole(common: &Common, args: &Args, text: &str) -> Result<()> {
    file::write(&common.state, args.output.as_deref(), |to| Ok(to.write_all(text.as_bytes())?))
}

const fn about(books: &Books, span: Span) -> About<'_> {
    About { taken_at: books.now, host: books.host.as_str(), terms: &books.terms, span }
}

/// An open end of what was asked for, as a time that means something: from the first that is known, or to the
/// last.
fn told(asked: Span, books: &Books, events: &[Event]) -> Span {
    let second =
        |event: &Event| i64::try_from(event.at.div_euclid(1_000_000_000)).unwrap_or(i64::MAX);
    let first = events.first().map_or(books.extent.begin, second).min(books.extent.begin);
    let last = events.last().map_or(books.now, second).max(books.now);
    Span {
        begin: if asked.begin == i64::MIN { first.min(asked.end) } else { asked.begin },
        end: if asked.end == i64::MAX { last.saturating_add(1) } else { asked.end },
    }
}

/// Writes bucket by bucket: there may be many millions.
fn buckets(common: &Common, args: &Args, asked: &BucketArgs, format: Format) -> Result<()> {
    let books = Books::open(common, &asked.when)?;
    let span = books.span_or_all(&asked.when)?;
    let level = asked.level.map(|level| match level {
        LevelChoice::Minutes => Level::Minutes,
        LevelChoice::Hour => Level::Hour,
        LevelChoice::Day => Level::Day,
    });
    let subjects: Option<Vec<_>> = if asked.host || asked.whose.is_named() {
        Some(books.whose(&asked.whose)?.into_iter().map(|who| who.subject).collect())
    } else {
        None
    };
    let wanted = Wanted { level, subjects: subjects.as_deref() };
    let reached = span.within(books.extent);
    let progress = Progress::new(reached, args.output.is_some());
    file::write(&common.state, args.output.as_deref(), |to| {
        let mut writer = Writer::buckets(to, format, about(&books, span))?;
        let mut failed = None;
        books.reader.buckets(span, wanted, &mut |bucket| {
            progress.at(bucket.span.begin);
            match writer.bucket(&bucket) {
                Ok(()) => ControlFlow::Continue(()),
                Err(error) => {
                    failed = Some(error);
                    ControlFlow::Break(())
                }
            }
        })?;
        if let Some(error) = failed {
            return Err(error).context("cannot write a bucket");
        }
        writer.finish()?;
        Ok(())
    })?;
    progress.bar.finish_and_clear();
    Ok(())
}

/// How far it is, for the person who waits at the terminal.
struct Progress {
    bar: ProgressBar,
    span: Span,
    started: Instant,
    shown: std::cell::Cell<bool>,
}

impl Progress {
    fn new(span: Span, to_file: bool) -> Self {
        // Two things on one terminal would be neither.
        let shown = !to_file && std::io::stdout().is_terminal();
        let bar = ProgressBar::with_draw_target(Some(span.seconds()), ProgressDrawTarget::hidden());
        if let Ok(style) = ProgressStyle::with_template("{wide_bar} {percent} % {eta}") {
            bar.set_style(style);
        }
        Self { bar, span, started: Instant::now(), shown: shown.into() }
    }

    fn at(&self, at: i64) {
        if !self.shown.get() && self.started.elapsed() >= PATIENCE {
            self.shown.set(true);
            // Draws nothing where stderr is no terminal.
            self.bar.set_draw_target(ProgressDrawTarget::stderr());
        }
        self.bar.set_position(Span { end: at, ..self.span }.seconds());
    }
}
