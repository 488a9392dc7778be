//! One question for all counters, beside one process for each counter.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use nix::sys::{
    resource::{UsageWho, getrusage},
    time::TimeVal,
};
use serde_json::json;

use super::{
    super::{
        Plan,
        chart::Chart,
        lab,
        report::{Section, Table},
        stats::{Estimate, Rounds, number},
    },
    PROMISED, Proxy, email,
    merging::{Reader, Took},
};

/// A way to learn what users moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Way {
    /// Ours, of [`PROMISED`] users.
    OursOfMany,
    /// Ours, of as many users as the others are asked about.
    OursOfFew,
    /// `v2ctl api StatsService.GetStats` for each counter.
    Processes,
}

impl Way {
    const ALL: [Self; 3] = [Self::OursOfMany, Self::OursOfFew, Self::Processes];

    fn name(self, asked: u16) -> String {
        match self {
            Self::OursOfMany => format!("traffic, {} users", number(PROMISED.into())),
            Self::OursOfFew => format!("traffic, {asked} users"),
            Self::Processes => format!("v2ctl, {asked} users"),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Quantity {
    /// Time of day.
    Time,
    /// Processor time.
    Work,
}

type Cell = (Quantity, Way);

/// Measures and reports.
pub(super) fn measure(plan: &Plan) -> Result<Section> {
    let (many, few) = (Proxy::new(PROMISED)?, Proxy::new(plan.asked_users)?);
    let (mut of_many, mut of_few) = (Reader::new(&many)?, Reader::new(&few)?);
    let mut rounds = Rounds::default();
    for round in 0..plan.asking_rounds {
        let tick = round + 1;
        let mut record = |way, users: u16, time: Duration, work: Duration| {
            let each = |all: Duration| all.as_secs_f64() * 1e6 / f64::from(users);
            rounds.record((Quantity::Time, way), round, each(time));
            rounds.record((Quantity::Work, way), round, each(work));
        };
        let mut ours = |way, users, took: Took| record(way, users, took.time, took.work());
        ours(Way::OursOfMany, many.users, of_many.next(tick)?);
        ours(Way::OursOfFew, few.users, of_few.next(tick)?);
        let (time, work) = processes(&few)?;
        record(Way::Processes, few.users, time, work);
    }
    Ok(report(&rounds, plan.asked_users))
}

/// Asks for both counters of each user, as multi-v2ray does.
fn processes(proxy: &Proxy) -> Result<(Duration, Duration)> {
    let server = format!("--server={}", proxy.address());
    let (begin, before) = (Instant::now(), work_of_children()?);
    for user in 0..proxy.users {
        for way in ["uplink", "downlink"] {
            let counter = format!("user>>>{}>>>traffic>>>{way}", email(user));
            let question = format!(r#"name: "{counter}" reset: false"#);
            let answer =
                lab::run(&["v2ctl", "api", &server, "StatsService.GetStats", &question], "")?;
            let value = proxy.server.value(&counter).unwrap_or(0).to_string();
            ensure!(answer.split_whitespace().any(|word| word == value), "{counter}: {answer}");
        }
    }
    Ok((begin.elapsed(), work_of_children()?.saturating_sub(before)))
}

/// Processor time of the children that have ended.
fn work_of_children() -> Result<Duration> {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
    let of = |time: TimeVal| {
        Duration::new(time.tv_sec().unsigned_abs(), 0)
            + Duration::from_micros(time.tv_usec().unsigned_abs())
    };
    Ok(of(usage.user_time()) + of(usage.system_time()))
}

fn report(rounds: &Rounds<Cell>, asked: u16) -> Section {
    let of = |quantity, way| rounds.of(&(quantity, way));
    let text =
        |estimate: Option<Estimate>| estimate.map(|estimate| estimate.text()).unwrap_or_default();
    let times = |quantity, way| {
        let ratio = rounds.ratio(&(quantity, way), &(quantity, Way::OursOfFew));
        ratio.map(|ratio| number(ratio.median)).unwrap_or_default()
    };
    let rows = Way::ALL
        .iter()
        .map(|&way| {
            vec![
                way.name(asked),
                text(of(Quantity::Time, way)),
                times(Quantity::Time, way),
                text(of(Quantity::Work, way)),
                times(Quantity::Work, way),
            ]
        })
        .collect();
    let few = Way::OursOfFew.name(asked);
    let head = ["way of asking", "us a user", "", "processor us a user", ""].map(str::to_owned);
    let head = head.map(|cell| if cell.is_empty() { format!("times {few}") } else { cell });
    let json = Way::ALL
        .iter()
        .map(|&way| {
            json!({
                "way": way.name(asked),
                "us_per_user": of(Quantity::Time, way).map(|us| us.json()),
                "cpu_us_per_user": of(Quantity::Work, way).map(|us| us.json()),
            })
        })
        .collect();
    let value = |quantity, way| of(quantity, way).map(|us| us.median);
    Section {
        name: "proxy-asking",
        title: "One question, or a process for each counter".to_owned(),
        method:
            "multi-v2ray starts `v2ctl api StatsService.GetStats` for each counter, two a user; \
                 its own script and shell are not counted here. Ours is a whole tick from the \
                 question to the JSON, with the merge. Both ask the same server, whose processor \
                 time is not counted."
                .to_owned(),
        tables: vec![Table { title: "By user".to_owned(), head: head.to_vec(), rows }],
        charts: vec![Chart {
            file: "proxy-asking",
            title: "Learning what one user moved".to_owned(),
            unit: "us",
            logarithmic: true,
            series: vec!["time".to_owned(), "processor time".to_owned()],
            groups: Way::ALL
                .iter()
                .map(|&way| {
                    let values = vec![value(Quantity::Time, way), value(Quantity::Work, way)];
                    (way.name(asked), values)
                })
                .collect(),
        }],
        json,
        targets: Vec::new(),
    }
}
