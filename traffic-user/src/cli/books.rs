//! What all verbs that read the ledger share: which ledger, from when to when, and whose numbers.

use std::sync::Once;

use anyhow::{Context as _, Result, bail};
use jiff::tz::TimeZone;

use super::{Common, host};
use crate::{
    accounting::{
        history::{Terms, Who},
        ident::shown,
        period::{
            self, Calendar, Span, ZoneError,
            range::{Asked, Last},
        },
        subject::{Subject, SubjectKind},
        usage::Known,
    },
    config::Config,
    daemon::unix_time,
    ledger::Reader,
};

/// Names that an error lists at most.
const MOST_NAMES: usize = 5;

#[derive(Clone, Debug, Default, clap::Args)]
pub(super) struct When {
    /// Where it begins: 2026-11-24, 2026-11-24T13:00, 2026-11, 2026-W48, today or yesterday
    #[arg(long, value_name = "DATE")]
    from: Option<String>,
    /// Where it ends; a date, week or month is in it with its whole length. Without it: now
    #[arg(long, value_name = "DATE")]
    to: Option<String>,
    /// So much until now, the present one included: 30d, 12h, 4w, 6mo, 1y or 90min
    #[arg(long, value_name = "TIME", conflicts_with_all = ["from", "to"], allow_hyphen_values = true)]
    last: Option<Last>,
    /// Where days begin: a name such as Europe/Berlin, or an offset. Without it: the configured zone
    #[arg(long, value_name = "ZONE", value_parser = zone, allow_hyphen_values = true)]
    time_zone: Option<TimeZone>,
    /// Day on which a billing month begins, 1 to 31. Without it: the configured one
    #[arg(long, value_name = "DAY")]
    billing_day: Option<u8>,
}

fn zone(text: &str) -> Result<TimeZone, ZoneError> {
    period::zone(text)
}

#[derive(Clone, Debug, Default, clap::Args)]
#[group(multiple = false)]
pub(super) struct Whose {
    /// Of one user
    #[arg(long, value_name = "EMAIL")]
    user: Option<String>,
    /// Of the groups that have this port
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    port: Option<u16>,
    /// Of one group, by its name or its ports
    #[arg(long, value_name = "NAME")]
    group: Option<String>,
    /// Of what was seen on no watched port
    #[arg(long)]
    relay: bool,
}

impl Whose {
    /// Whether anybody was named.
    pub(super) const fn is_named(&self) -> bool {
        self.user.is_some() || self.port.is_some() || self.group.is_some() || self.relay
    }
}

/// An open ledger, and how its numbers are wanted.
pub(super) struct Books {
    pub(super) reader: Reader,
    pub(super) terms: Terms,
    pub(super) host: String,
    /// Seconds of Unix time.
    pub(super) now: i64,
    /// From the first booking to the end of the last.
    pub(super) extent: Span,
}

/// Where days begin: as configured, else where this host is. One without a zone counts in UTC.
pub(super) fn own_zone(config: &Config) -> TimeZone {
    static SAID: Once = Once::new();
    let system = || TimeZone::try_system().ok().filter(|zone| !zone.is_unknown());
    config.time_zone.clone().or_else(system).unwrap_or_else(|| {
        if let Some(named) = std::env::var_os("TZ").filter(|named| !named.is_empty()) {
            let named = shown(&named.to_string_lossy());
            SAID.call_once(|| {
                tracing::warn!(
                    "TZ is `{named}`, which is no time zone: days begin as in UTC; write a name such as Europe/Berlin"
                );
            });
        }
        TimeZone::UTC
    })
}

/// The ledger of this host; `None` where there is none yet.
pub(super) fn find(common: &Common, when: &When) -> Result<Option<(Reader, Terms)>> {
    let config = &common.config;
    let zone = when.time_zone.clone().unwrap_or_else(|| own_zone(config));
    let day = when.billing_day.or(config.billing_day).unwrap_or(1);
    let terms = Terms {
        calendar: Calendar::new(zone, day)?,
        counting: config.counting.unwrap_or_default(),
        unit: config.unit.unwrap_or_default(),
    };
    Ok(Reader::open(&common.state)?.map(|reader| (reader, terms)))
}

impl Books {
    pub(super) fn open(common: &Common, when: &When) -> Result<Self> {
        match Self::opened(common, when)? {
            (books, true) => Ok(books),
            (_, false) => bail!(
                "the ledger in {} is empty: nothing was booked yet\n  remedy: let `traffic run` count for a while",
                folder(common)
            ),
        }
    }

    /// A ledger in which nothing is booked yet may have events.
    pub(super) fn open_for_events(common: &Common, when: &When) -> Result<Self> {
        Ok(Self::opened(common, when)?.0)
    }

    /// Says whether anything is booked in it.
    fn opened(common: &Common, when: &When) -> Result<(Self, bool)> {
        let Some((reader, terms)) = find(common, when)? else {
            bail!(
                "there is no ledger in {}\n  remedy: `traffic run` begins one; --state names another folder",
                folder(common)
            );
        };
        let now = now()?;
        let extent = reader.extent()?;
        let booked = extent.is_some();
        let extent = extent.unwrap_or(Span { begin: now, end: now });
        Ok((Self { reader, terms, host: host(), now, extent }, booked))
    }

    /// What was asked for; `usual` where that is nothing.
    pub(super) fn span(&self, when: &When, usual: Last) -> Result<Span> {
        let When { from, to, last, .. } = when.clone();
        Ok(Asked { from, to, last }.range(&self.terms.calendar, usual, self.now)?)
    }

    /// All that is booked, where nothing else was asked for.
    pub(super) fn span_or_all(&self, when: &When) -> Result<Span> {
        self.span_within(when, self.extent)
    }

    /// All that ever happened, where nothing else was asked for: also before the first booking and after the
    /// last, and while the clock was wrong.
    pub(super) fn span_of_events(&self, when: &When) -> Result<Span> {
        self.span_within(when, Span::ALL)
    }

    fn span_within(&self, when: &When, all: Span) -> Result<Span> {
        if when.from.is_none() && when.to.is_none() && when.last.is_none() {
            return Ok(all);
        }
        let day = Last { count: 1, period: period::Period::Day };
        let span = self.span(when, day)?;
        // An end alone leaves the beginning open.
        let open = when.from.is_none() && when.last.is_none();
        Ok(if open { Span { begin: all.begin.min(span.end), ..span } } else { span })
    }

    /// Whose numbers are wanted: the host's where nothing was said, or of all groups where it was never measured.
    pub(super) fn whose(&self, whose: &Whose) -> Result<Vec<Who>> {
        if let Some(email) = &whose.user {
            let subject = Subject::User(email.as_str().into());
            if self.reader.knows(&subject)? {
                return Ok(vec![Who { subject, name: None }]);
            }
            // There may be many others: they are listed for whoever mistyped, and for nobody else.
            return self.known(SubjectKind::User, &format!("user `{}`", shown(email)), |_| false);
        }
        if let Some(port) = whose.port {
            let found = |known: &Known| match &known.subject {
                Subject::Group(key) => key
                    .group()
                    .ranges()
                    .iter()
                    .any(|range| range.first() <= port && port <= range.last()),
                _ => false,
            };
            return self.known(SubjectKind::Group, &format!("group with port {port}"), found);
        }
        if let Some(name) = &whose.group {
            let found =
                |known: &Known| known.name.as_deref() == Some(name) || known.subject.key() == *name;
            return self.known(SubjectKind::Group, &format!("group `{}`", shown(name)), found);
        }
        let subject = if whose.relay { Subject::Relay } else { Subject::Host };
        // Rules see no more than their ports: where nothing else ever counted, all groups are all there is.
        if !whose.relay && self.reader.subjects(Some(SubjectKind::Host))?.is_empty() {
            let groups = self.reader.subjects(Some(SubjectKind::Group))?;
            if !groups.is_empty() {
                let who = |known: Known| Who { subject: known.subject, name: known.name };
                return Ok(groups.into_iter().map(who).collect());
            }
        }
        Ok(vec![Who { subject, name: None }])
    }

    fn known(
        &self,
        kind: SubjectKind,
        what: &str,
        wanted: impl Fn(&Known) -> bool,
    ) -> Result<Vec<Who>> {
        let all = self.reader.subjects(Some(kind))?;
        let found: Vec<Who> = all
            .iter()
            .filter(|known| wanted(known))
            .map(|known| Who { subject: known.subject.clone(), name: known.name.clone() })
            .collect();
        if !found.is_empty() {
            return Ok(found);
        }
        let name = |known: &Known| match &known.name {
            Some(name) => format!("{} ({})", shown(&known.subject.key()), shown(name)),
            None => shown(&known.subject.key()),
        };
        let mut names: Vec<String> = all.iter().take(MOST_NAMES).map(name).collect();
        if all.len() > MOST_NAMES {
            names.push(format!("and {} more", all.len() - MOST_NAMES));
        }
        let list = match kind {
            SubjectKind::User => "users",
            _ => "groups",
        };
        if names.is_empty() {
            bail!(
                "the ledger knows no {what}, and no other\n  remedy: nothing of that kind was counted yet; see `traffic doctor`"
            );
        }
        bail!(
            "the ledger knows no {what}; it knows {}\n  remedy: write one of them; `traffic top {list} --last 1y` shows the busiest",
            names.join(", ")
        )
    }
}

/// The state folder, safe to print.
fn folder(common: &Common) -> String {
    common.state.to_string_lossy().escape_debug().to_string()
}

/// Seconds of Unix time.
pub(super) fn now() -> Result<i64> {
    i64::try_from(unix_time().div_euclid(1_000_000_000)).context("the clock shows no time")
}

/// Columns of the terminal that stdout is; `None` where nobody looks.
pub(super) fn columns() -> Option<usize> {
    let terminal = std::io::IsTerminal::is_terminal(&std::io::stdout());
    let (width, _) = terminal.then(terminal_size::terminal_size).flatten()?;
    Some(usize::from(width.0))
}
