//! `traffic history`: what the host, a group, a port or a user moved, period by period.

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Result, bail};
use clap::ValueEnum;

use super::{
    Common,
    books::{Books, When, Whose, columns},
    file, print,
};
use crate::{
    accounting::{
        history::{HistoryReport, rows, series},
        period::{Period, range::Last},
        usage::Usage,
    },
    view::{bucket::Format, history, plot},
};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    pub(super) asked: Question,
    #[command(flatten)]
    form: Form,
}

/// What of the history is wanted.
#[derive(Debug, clap::Args)]
pub(super) struct Question {
    /// Length of a line
    #[arg(value_enum, default_value = "day")]
    period: PeriodChoice,
    #[command(flatten)]
    when: When,
    #[command(flatten)]
    whose: Whose,
}

/// How a report is written.
#[derive(Debug, clap::Args)]
pub(super) struct Form {
    /// Write CSV
    #[arg(long, conflicts_with_all = ["txt", "json"])]
    csv: bool,
    /// Write plain text without bars
    #[arg(long, conflicts_with = "json")]
    txt: bool,
    /// Draw it into an SVG file as well
    #[arg(long, value_name = "FILE")]
    pub(super) plot: Option<PathBuf>,
}

impl Form {
    /// Draws a report where that was asked for, and writes it.
    pub(super) fn put(
        &self,
        common: &Common,
        picture: impl FnOnce() -> Result<String>,
        text: impl FnOnce(Option<Format>) -> Result<String>,
    ) -> Result<ExitCode> {
        if let Some(path) = &self.plot {
            let picture = picture()?;
            if path.extension().is_some_and(|ending| !ending.eq_ignore_ascii_case("svg")) {
                let path = path.to_string_lossy().escape_debug().to_string();
                bail!("cannot draw {path}: pictures are SVG\n  remedy: let its name end in .svg");
            }
            file::write(&common.state, Some(path), |to| Ok(to.write_all(picture.as_bytes())?))?;
        }
        print(&text(self.format(common))?)?;
        Ok(ExitCode::SUCCESS)
    }

    /// `None` is a table for whoever looks.
    pub(super) fn format(&self, common: &Common) -> Option<Format> {
        match (common.json, self.csv, self.txt) {
            (true, _, _) => Some(Format::Json),
            (_, true, _) => Some(Format::Csv),
            (_, _, true) => Some(Format::Txt),
            (false, false, false) => None,
        }
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum PeriodChoice {
    /// Five minutes, as long as they are kept
    #[value(name = "5min")]
    Minutes,
    /// An hour
    Hour,
    /// A day
    Day,
    /// A week from Monday on
    Week,
    /// A month of the calendar
    Month,
    /// A month from the billing day on
    Billing,
}

impl PeriodChoice {
    /// Which it is, and how many are shown where nothing was asked for.
    const fn usual(self) -> Last {
        let (period, count) = match self {
            Self::Minutes => (Period::Minutes, 24),
            Self::Hour => (Period::Hour, 24),
            Self::Day => (Period::Day, 30),
            Self::Week => (Period::Week, 12),
            Self::Month => (Period::Month, 12),
            Self::Billing => (Period::Billing, 12),
        };
        Last { count, period }
    }
}

pub(super) fn run(common: &Common, args: &Args) -> Result<ExitCode> {
    let report = gather(common, &args.asked)?;
    args.form.put(common, || Ok(plot::history(&report)?), |format| text(&report, format))
}

/// Reads it from the ledger.
pub(super) fn gather(common: &Common, asked: &Question) -> Result<HistoryReport> {
    let books = Books::open(common, &asked.when)?;
    let usual = asked.period.usual();
    let span = books.span(&asked.when, usual)?;
    let subjects = books.whose(&asked.whose)?;
    let rows = rows(&books.terms.calendar, usual.period, span, books.extent, books.now);
    let spans: Vec<_> = rows.iter().map(|row| row.span).collect();
    let mut booked: Vec<Vec<Usage>> = vec![Vec::new(); spans.len()];
    books.reader.at_once(|reader| -> Result<()> {
        for who in &subjects {
            for (all, own) in booked.iter_mut().zip(reader.history(&who.subject, &spans)?) {
                all.extend(own);
            }
        }
        Ok(())
    })?;
    Ok(HistoryReport {
        taken_at: books.now,
        host: books.host,
        terms: books.terms,
        period: usual.period,
        asked: span,
        subjects,
        series: series(&rows, &booked),
    })
}

/// As it is written.
pub(super) fn text(report: &HistoryReport, format: Option<Format>) -> Result<String> {
    Ok(match format {
        Some(Format::Json) => format!("{}\n", history::json(report)?),
        Some(Format::Csv) => history::csv(report),
        Some(Format::Txt) => history::table(report, None),
        None => history::table(report, columns()),
    })
}
