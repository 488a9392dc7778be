//! Whether the kernel's tick waits for a proxy's API.

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

use super::{
    super::{
        Plan,
        report::{Section, Table, Target},
        running::{Running, binary, parse},
        stats::{Estimate, Random, Rounds, median},
    },
    PROMISED, Proxy, ports,
};
use crate::stats_server::Behaviour;

const INTERVAL: &str = "100ms";
/// Milliseconds that the worst tick may come later because of an API that hangs.
const MOST_LATER: f64 = 10.0;
const DAY: f64 = 86_400_000.0;

/// What there is beside the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Api {
    None,
    Answers,
    Hangs,
}

impl Api {
    const ALL: [Self; 3] = [Self::None, Self::Answers, Self::Hangs];

    const fn name(self) -> &'static str {
        match self {
            Self::None => "no proxy",
            Self::Answers => "an API that answers",
            Self::Hangs => "an API that hangs",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Quantity {
    Median,
    Worst,
}

type Cell = (Quantity, Api);

/// Measures and reports.
pub(super) fn measure(plan: &Plan) -> Result<Section> {
    let proxy = Proxy::new(PROMISED)?;
    let mut rounds = Rounds::default();
    for round in 0..plan.spacing_rounds {
        let mut apis = Api::ALL;
        Random::new(round).shuffle(&mut apis);
        for api in apis {
            let spacings = spacings(&proxy, api, plan.spacing_ticks).context(api.name())?;
            let worst = spacings.iter().copied().fold(0.0, f64::max);
            rounds.record((Quantity::Worst, api), round, worst);
            rounds.record((Quantity::Median, api), round, median(&spacings).context("no ticks")?);
        }
    }
    Ok(report(&rounds))
}

/// Milliseconds between the readings of one run.
fn spacings(proxy: &Proxy, api: Api, ticks: u32) -> Result<Vec<f64>> {
    let ports = ports(proxy.users);
    let mut arguments = match api {
        Api::None => vec!["--no-proxy", "--ports", &ports],
        Api::Answers | Api::Hangs => vec!["--proxy-config", proxy.file()?],
    };
    let count = (ticks + 1).to_string();
    arguments.extend(["--interval", INTERVAL, "--count", &count]);
    proxy.server.behave(match api {
        Api::Hangs => Behaviour::Hang,
        Api::None | Api::Answers => Behaviour::Answer,
    });
    let before = proxy.server.questions().len();
    let mut running = Running::start(&binary()?, &arguments)?;
    let mut times = Vec::new();
    let mut line = String::new();
    for _ in 0..=ticks {
        line = running.line()?;
        let taken = line.split_once(r#""taken_at":""#).map(|(_, rest)| rest);
        let taken = taken.and_then(millisecond).with_context(|| format!("no time in {line}"))?;
        times.push(taken);
    }
    let asked = proxy.server.questions().len() - before;
    let document = parse(&line)?;
    let state = document["stats"]["api"]["state"].as_str();
    let as_meant = match api {
        Api::None => asked == 0 && document.get("stats").is_none(),
        Api::Answers => state == Some("ok"),
        // It is slow once it has had its time.
        Api::Hangs => asked > 0 && matches!(state, None | Some("slow")),
    };
    ensure!(as_meant, "the API was asked {asked} times and is {state:?}");
    let spacing = |pair: &[f64]| (pair[1] - pair[0]).rem_euclid(DAY);
    Ok(times.windows(2).map(spacing).collect())
}

/// Millisecond of the day of a time that begins like `2026-11-24T14:08:14.123Z`.
fn millisecond(time: &str) -> Option<f64> {
    let clock = time.get(11..23)?;
    let mut parts = clock.split(':').map(str::parse::<f64>);
    let mut next = || parts.next()?.ok();
    let (hours, minutes, seconds) = (next()?, next()?, next()?);
    Some((((hours * 60.0 + minutes) * 60.0 + seconds) * 1e3).round())
}

fn report(rounds: &Rounds<Cell>) -> Section {
    let of = |quantity, api| rounds.of(&(quantity, api));
    let text = |estimate: Option<Estimate>| estimate.map(|ms| ms.text()).unwrap_or_default();
    let rows = Api::ALL
        .iter()
        .map(|&api| {
            vec![
                api.name().to_owned(),
                text(of(Quantity::Median, api)),
                text(of(Quantity::Worst, api)),
            ]
        })
        .collect();
    let json = Api::ALL
        .iter()
        .map(|&api| {
            json!({
                "beside": api.name(),
                "users": PROMISED,
                "median_ms": of(Quantity::Median, api).map(|ms| ms.json()),
                "worst_ms": of(Quantity::Worst, api).map(|ms| ms.json()),
            })
        })
        .collect();
    let later = rounds.over(&(Quantity::Worst, Api::Hangs), &(Quantity::Worst, Api::None));
    let target = later.map(|later| Target {
        promise: "an API that hangs delays no tick: the worst at most 10 ms later than without a \
                  proxy"
            .to_owned(),
        measured: format!("{} ms", later.text()),
        kept: later.median <= MOST_LATER,
    });
    Section {
        name: "proxy-ticks",
        title: "Ticks beside a slow API".to_owned(),
        method: format!(
            "`traffic run --interval {INTERVAL} --output json` with 500 groups; with a proxy, 10,000 \
             users as well. Times are those at which the kernel's counters were read, in ms from one \
             to the next: the median of a run and its worst, and of these the medians over runs."
        ),
        tables: vec![Table {
            title: "ms from tick to tick".to_owned(),
            head: ["beside the kernel", "median", "worst"].map(str::to_owned).to_vec(),
            rows,
        }],
        charts: Vec::new(),
        json,
        targets: target.into_iter().collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_a_millisecond_of_its_day() {
        assert_eq!(millisecond("2026-11-24T14:08:14.123Z\","), Some(50_894_123.0));
        assert_eq!(millisecond("2026-11-24T00:00:00.000Z"), Some(0.0));
        assert_eq!(millisecond("2026-11-24T"), None);
        assert_eq!(millisecond("2026-11-24 at five past ten"), None);
    }
}
