//! `traffic top`: who moved most.

use std::process::ExitCode;

use anyhow::Result;
use clap::ValueEnum;

use super::{
    Common,
    books::{Books, When, columns},
    history::Form,
};
use crate::{
    accounting::{
        history::{Field, TopReport, rank},
        period::{Period, range::Last},
        subject::SubjectKind,
        usage::By,
    },
    view::{bucket::Format, plot, top},
};

/// Asked for where nothing else is.
const USUAL: Last = Last { count: 7, period: Period::Day };

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    pub(super) asked: Question,
    #[command(flatten)]
    form: Form,
}

/// Which ranking is wanted.
#[derive(Debug, clap::Args)]
pub(super) struct Question {
    /// What is ranked
    #[arg(value_enum, default_value = "users")]
    field: FieldChoice,
    /// By what
    #[arg(long, value_enum, default_value = "total")]
    by: ByChoice,
    #[command(flatten)]
    when: When,
    /// How many places
    #[arg(long, value_name = "N", default_value = "10", value_parser = clap::value_parser!(u32).range(1..))]
    limit: u32,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum FieldChoice {
    /// Users, by payload and by their share of the wire
    Users,
    /// Groups, by name
    Groups,
    /// Groups, by their ports: a range or a list of ports is counted as one
    Ports,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum ByChoice {
    /// Both directions
    Total,
    /// What users send: input
    Up,
    /// What users get: output
    Down,
}

pub(super) fn run(common: &Common, args: &Args) -> Result<ExitCode> {
    let report = gather(common, &args.asked)?;
    args.form.put(common, || Ok(plot::top(&report)?), |format| text(&report, format))
}

/// Reads it from the ledger.
pub(super) fn gather(common: &Common, asked: &Question) -> Result<TopReport> {
    let books = Books::open(common, &asked.when)?;
    let span = books.span(&asked.when, USUAL)?;
    let (field, kind) = match asked.field {
        FieldChoice::Users => (Field::Users, SubjectKind::User),
        FieldChoice::Groups => (Field::Groups, SubjectKind::Group),
        FieldChoice::Ports => (Field::Ports, SubjectKind::Group),
    };
    let by = match asked.by {
        ByChoice::Total => By::Total,
        ByChoice::Up => By::Up,
        ByChoice::Down => By::Down,
    };
    let most = usize::try_from(asked.limit).unwrap_or(usize::MAX);
    let rankings = books.reader.at_once(|reader| {
        let mut layers = reader.layers(kind, span)?;
        layers.sort_by_key(|layer| rank(*layer));
        let ranking = |layer| Ok((layer, reader.top(kind, layer, span, by, most)?));
        layers.into_iter().map(ranking).collect::<Result<Vec<_>>>()
    })?;
    Ok(TopReport {
        taken_at: books.now,
        host: books.host,
        terms: books.terms,
        field,
        by,
        span,
        rankings,
    })
}

/// As it is written.
pub(super) fn text(report: &TopReport, format: Option<Format>) -> Result<String> {
    Ok(match format {
        Some(Format::Json) => format!("{}\n", top::json(report)?),
        Some(Format::Csv) => top::csv(report),
        Some(Format::Txt) => top::table(report, None),
        None => top::table(report, columns()),
    })
}
