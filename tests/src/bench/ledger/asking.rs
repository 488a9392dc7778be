//! Questions to a ledger of many users: by the library, and by the verbs as a person asks them.

use std::{path::Path, process::Command, time::Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use traffic_user::{
    accounting::{
        reading::Layer,
        subject::{Subject, SubjectKind},
        usage::{By, Span, Usage},
    },
    ledger::Reader,
};

use super::{
    super::{
        chart::Chart,
        proxy::email,
        report::{Section, Table, Target},
        running::{binary, parse},
        stats::{Estimate, Rounds, number},
    },
    Books, DAY, Extent, Folder, ms, now,
};

/// Days that are asked about.
const MONTH: i64 = 30;
const MOST_HISTORY: f64 = 20.0;
const MOST_TOP: f64 = 200.0;

/// Who answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Asked {
    /// The library: the ledger is opened and asked.
    History,
    Top,
    /// The verb: from exec to the end of the process.
    HistoryVerb,
    TopVerb,
    /// A process that only says its version.
    Nothing,
}

impl Asked {
    const ALL: [Self; 5] =
        [Self::History, Self::HistoryVerb, Self::Top, Self::TopVerb, Self::Nothing];

    const fn name(self) -> &'static str {
        match self {
            Self::History => "month of a user, library",
            Self::HistoryVerb => "month of a user, verb",
            Self::Top => "top users of a month, library",
            Self::TopVerb => "top users of a month, verb",
            Self::Nothing => "a process that asks nothing",
        }
    }
}

/// Milliseconds of each way.
pub(super) type Answers = Rounds<Asked>;

/// How many users there are, the bytes of the first ones, and of all.
type Ranking = (usize, Vec<u64>, u64);

/// A ledger and what it is asked.
pub(super) struct Questions<'a> {
    folder: &'a Folder,
    users: u16,
    /// The last days of the ledger.
    month: Vec<Span>,
    /// What the verbs mean by `--last 30d`.
    last: Span,
    top: Ranking,
}

impl<'a> Questions<'a> {
    /// About a month that ends here.
    pub(super) fn new(folder: &'a Folder, extent: Extent, end: i64) -> Result<Self> {
        let day = |ago: i64| Span { begin: end - ago * DAY, end: end - (ago - 1) * DAY };
        let month: Vec<_> = (1..=MONTH).rev().map(day).collect();
        let today = now()?.div_euclid(DAY) * DAY;
        let last = Span { begin: today - (MONTH - 1) * DAY, end: today + DAY };
        let top = ranking(folder, whole(&month), 10)?;
        ensure!(top.0 == usize::from(extent.users), "{} users are ranked", top.0);
        Ok(Self { folder, users: extent.users, month, last, top })
    }

    /// Asks in every way in every round, each time about another user.
    pub(super) fn measure(&self, rounds: u32) -> Result<Answers> {
        let (binary, state) = (binary()?, self.folder.text()?);
        let mut answers = Answers::default();
        for round in 0..rounds {
            let email = email(u16::try_from(round * 7919 % u32::from(self.users))?);
            let subject = Subject::User(email.as_str().into());
            let mut record =
                |asked, begin: Instant| answers.record(asked, round, ms(begin.elapsed()));

            let begin = Instant::now();
            let history = reader(self.folder)?.history(&subject, &self.month)?;
            record(Asked::History, begin);
            let found: Vec<u64> = history.iter().map(|usages| payload(usages)).collect();
            ensure!(found.iter().all(|bytes| *bytes > 0), "{email} has {found:?}");

            let begin = Instant::now();
            let ranking = ranking(self.folder, whole(&self.month), 10)?;
            record(Asked::Top, begin);
            ensure!(ranking == self.top, "{ranking:?} is not {:?}", self.top);

            let begin = Instant::now();
            let args = ["history", "day", "--last", "30d", "--user", &email];
            let document = ask(&binary, state, &args)?;
            record(Asked::HistoryVerb, begin);
            let wanted = reader(self.folder)?.history(&subject, &[self.last])?;
            let wanted: u64 = wanted.iter().map(|usages| payload(usages)).sum();
            let layer = &document["layers"][0];
            ensure!(
                layer["layer"] == "payload" && layer["total"]["total_bytes"] == wanted,
                "{wanted} bytes of {email} are not in {document}"
            );

            let begin = Instant::now();
            let document = ask(&binary, state, &["top", "users", "--last", "30d"])?;
            record(Asked::TopVerb, begin);
            let layer = &document["layers"][0];
            let places = layer["places"].as_array().context("no places")?;
            let found: Vec<u64> =
                places.iter().filter_map(|place| place["total_bytes"].as_u64()).collect();
            let wanted = self::ranking(self.folder, self.last, 10)?.1;
            ensure!(
                layer["subjects"] == u64::from(self.users) && found == wanted,
                "{wanted:?} is not in {document}"
            );

            let begin = Instant::now();
            let output = Command::new(&binary).arg("--version").output()?;
            record(Asked::Nothing, begin);
            ensure!(output.status.success(), "traffic --version: {}", output.status);
        }
        Ok(answers)
    }
}

/// Asks a ledger whose days are all summed up.
pub(super) fn measure(extent: Extent, books: &Books) -> Result<Answers> {
    // Everything in it is what was put into it.
    let all = ranking(&books.folder, Span::ALL, 1)?.2;
    ensure!(all == books.payload, "{all} bytes are in the ledger of {}", books.payload);
    Questions::new(&books.folder, extent, books.sample.end)?.measure(extent.rounds)
}

fn whole(month: &[Span]) -> Span {
    let begin = month.first().map_or(0, |day| day.begin);
    Span { begin, end: month.last().map_or(0, |day| day.end) }
}

fn reader(folder: &Folder) -> Result<Reader> {
    Reader::open(&folder.0)?.context("no ledger is there")
}

fn payload(usages: &[Usage]) -> u64 {
    let of_payload = usages.iter().filter(|usage| usage.layer == Layer::Payload);
    of_payload.map(|usage| usage.traffic.bytes()).sum()
}

fn ranking(folder: &Folder, span: Span, most: usize) -> Result<Ranking> {
    let ranking = reader(folder)?.top(SubjectKind::User, Layer::Payload, span, By::Total, most)?;
    let places = ranking.places.iter().map(|place| place.usage.traffic.bytes()).collect();
    Ok((ranking.subjects, places, ranking.total.map_or(0, |usage| usage.traffic.bytes())))
}

fn ask(binary: &Path, state: &str, args: &[&str]) -> Result<Value> {
    let output = Command::new(binary)
        .args(args)
        .args(["--json", "--time-zone", "UTC", "--state", state])
        .output()
        .with_context(|| format!("start {}", binary.display()))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    ensure!(output.status.success(), "{}: {}", args.join(" "), text(&output.stderr));
    parse(&text(&output.stdout))
}

/// What it says: of a ledger at rest, and of one in which an hour of ticks is not summed up yet.
pub(super) fn report(extent: Extent, books: &Books, answers: &Answers, busy: &Answers) -> Section {
    let text = |answers: &Answers, asked: &Asked| {
        answers.of(asked).map(|ms: Estimate| ms.text()).unwrap_or_default()
    };
    let row =
        |asked: &Asked| vec![asked.name().to_owned(), text(answers, asked), text(busy, asked)];
    let way = |asked: &Asked| {
        json!({
            "asked": asked.name(),
            "ms": answers.of(asked).map(|ms| ms.json()),
            "while_counting_ms": busy.of(asked).map(|ms| ms.json()),
        })
    };
    let of = |who: &str, asked, limit| {
        answers.of(&asked).map(|ms| Target {
            promise: format!("ledger: {who}, at most {limit} ms"),
            measured: format!("{} ms ({} users)", ms.text(), number(extent.users.into())),
            kept: ms.median <= limit,
        })
    };
    let targets = [
        of("a month of a user of 10,000 over 400 days, library", Asked::History, MOST_HISTORY),
        of("the same by the verb, as a process", Asked::HistoryVerb, MOST_HISTORY),
        of("top of 30 days of it, library", Asked::Top, MOST_TOP),
        of("the same by the verb, as a process, payload and wire", Asked::TopVerb, MOST_TOP),
    ];
    let values = |asked: &Asked| {
        let medians = [answers, busy].map(|answers| answers.of(asked).map(|ms| ms.median));
        (asked.name().replace('`', ""), medians.to_vec())
    };
    Section {
        name: "ledger-questions",
        title: "Asking the ledger".to_owned(),
        method: format!(
            "A ledger of {} days with {} users, each active in {} hours of a day (days for all of it, \
             hours for 60 days, five minutes for two), as `ledger::generate` made it in {:.0} s. The \
             library opens it and asks, each time about another user; a ranking is of one layer. The \
             verbs, `history day --last 30d --user` and `top users --last 30d`, are processes from exec to \
             their end, with `--json --time-zone UTC`; `top` ranks by payload and by wire; one that asks \
             nothing is `--version`. The file is in the kernel's cache. Answers are compared with one \
             another and with what was put in. While counting: the same with a month that ends today, \
             of which an hour is booked with all users and not summed up yet.",
            extent.days,
            number(extent.users.into()),
            books.sample.hours,
            books.made.as_secs_f64(),
        ),
        tables: vec![Table {
            title: "ms".to_owned(),
            head: ["question", "at rest", "while counting"].map(str::to_owned).to_vec(),
            rows: Asked::ALL.iter().map(row).collect(),
        }],
        charts: vec![Chart {
            file: "ledger-questions",
            title: "Questions to a ledger of many users".to_owned(),
            unit: "ms",
            logarithmic: true,
            series: ["at rest", "while counting"].map(str::to_owned).to_vec(),
            groups: Asked::ALL.iter().map(values).collect(),
        }],
        json: json!({
            "users": extent.users,
            "days": extent.days,
            "generated_in_seconds": books.made.as_secs_f64().round(),
            "ways": Asked::ALL.iter().map(way).collect::<Vec<_>>(),
        }),
        targets: targets.into_iter().flatten().collect(),
    }
}
