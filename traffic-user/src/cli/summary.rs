//! `traffic` without a verb: today, this billing month and since ever.

use std::{process::ExitCode, sync::Arc};

use anyhow::{Result, bail};

use super::{
    Common,
    books::{When, find, now},
    host, print,
};
use crate::{
    accounting::{
        history::{Standing, StandingLine, SummaryReport, Terms, Who, bills, rank},
        period::{Period, Span},
        subject::{Subject, SubjectKind},
        usage::{By, Usage},
    },
    ledger::Reader,
    view::summary,
};

/// Users that are shown; `top users` shows more.
const MOST_USERS: usize = 10;
/// Events that are shown.
const MOST_EVENTS: usize = 3;

pub(super) fn run(common: &Common) -> Result<ExitCode> {
    let Some(report) = gather(common)? else {
        bail!(
            "there is no ledger in {}\n  remedy: `traffic run` begins one; --state names another folder; `traffic --help` lists the verbs",
            common.state.to_string_lossy().escape_debug()
        );
    };
    if common.json {
        print(&format!("{}\n", summary::json(&report)?))?;
    } else {
        print(&summary::table(&report))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Reads it from the ledger; `None` where there is none yet.
pub(super) fn gather(common: &Common) -> Result<Option<SummaryReport>> {
    let Some((reader, terms)) = find(common, &When::default())? else {
        return Ok(None);
    };
    read(&reader, terms, host(), now()?).map(Some)
}

/// As of one tick, so that the numbers belong together.
fn read(reader: &Reader, terms: Terms, host: String, now: i64) -> Result<SummaryReport> {
    reader.at_once(|reader| read_at_once(reader, terms, host, now))
}

fn read_at_once(reader: &Reader, terms: Terms, host: String, now: i64) -> Result<SummaryReport> {
    let today = terms.calendar.period(Period::Day, now);
    let billing = terms.calendar.period(Period::Billing, now);
    let extent = reader.extent()?;
    let spans = [&[today, billing, Span::ALL][..], &bills(&terms, extent)].concat();
    let line = |subject: Subject, name: Option<Arc<str>>, usages: Vec<Vec<Usage>>| {
        let mut usages = usages.into_iter();
        let mut next = || usages.next().unwrap_or_default();
        let (today, billing, ever) = (next(), next(), next());
        let standing = Standing { today, billing, ever, months: usages.collect() };
        StandingLine { who: Who { subject, name }, standing }
    };
    let mut lines = Vec::new();
    for kind in [SubjectKind::Host, SubjectKind::Relay, SubjectKind::Group] {
        let all = reader.booked(kind, &spans)?.into_iter();
        lines.extend(all.map(|booked| line(booked.subject, booked.name, booked.usages)));
    }
    let mut users = Vec::new();
    let mut active_users = 0;
    let layers = reader.layers(SubjectKind::User, billing)?;
    if let Some(layer) = layers.into_iter().min_by_key(|layer| rank(*layer)) {
        let ranking = reader.top(SubjectKind::User, layer, billing, By::Total, MOST_USERS)?;
        active_users = ranking.subjects;
        for place in ranking.places {
            // Few of many: each is looked up, and the others are not read.
            let one = |span: &Span| -> Result<_> {
                Ok(reader.history(&place.subject, &[*span])?.pop().unwrap_or_default())
            };
            let usages = spans.iter().map(one).collect::<Result<_>>()?;
            users.push(line(place.subject, place.name, usages));
        }
    }
    let past = Span { end: now + 1, ..today };
    let hours: Vec<Span> = terms.calendar.periods(Period::Hour, past).collect();
    let booked = reader.history(&Subject::Host, &hours)?;
    let bytes = |hour: &Vec<Usage>| {
        let first = hour.iter().min_by_key(|usage| rank(usage.layer));
        first.map_or(0, |usage| usage.traffic.bytes())
    };
    Ok(SummaryReport {
        taken_at: now,
        host,
        today,
        billing,
        extent,
        lines,
        users,
        active_users,
        hours: booked.iter().map(bytes).collect(),
        events: reader.events(past, MOST_EVENTS)?,
        terms,
    })
}
