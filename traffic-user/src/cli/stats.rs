//! `traffic stats`: what kernel and proxy say of groups and users, merged.
//!
//! A daemon that runs is asked, because it has watched both from the beginning. Without one the totals of
//! both are joined once, which is exact only if both began together; the report says so.

use std::{process::ExitCode, thread, time::Duration};

use anyhow::{Context as _, Result, bail};
use clap::ValueEnum;

use super::{Common, dump, host, print, proxy::ProxyArgs, summary};
use crate::{
    accounting::{attribute::once, proxy::Inbound, reading::Snapshot, report::Dump, zeros::Zeros},
    config::interval,
    daemon::{ProxyPlace, Question, api_document, api_report, ask, joined, online, unix_time},
    meter::{
        self,
        proxy::{Latest, ProxyMeter},
    },
    view::{
        self,
        stats::{self, ApiDocument, Beside, Document, Part},
    },
};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// What to show. Without it: all of it
    #[arg(value_enum)]
    part: Option<PartChoice>,
    /// Write CSV
    #[arg(long, conflicts_with_all = ["txt", "json"])]
    csv: bool,
    /// Write plain text, one value a line
    #[arg(long, conflicts_with = "json")]
    txt: bool,
    /// Show it again and again
    #[arg(long, value_name = "TIME", value_parser = interval)]
    watch: Option<Duration>,
    #[command(flatten)]
    proxy: ProxyArgs,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum PartChoice {
    /// One line a user
    User,
    /// One line a group
    Group,
    /// The totals
    Total,
}

impl PartChoice {
    const fn part(self) -> Part {
        match self {
            Self::User => Part::Users,
            Self::Group => Part::Groups,
            Self::Total => Part::Total,
        }
    }
}

pub(super) fn run(common: &Common, args: &Args) -> Result<ExitCode> {
    let part = args.part.map(PartChoice::part).unwrap_or_default();
    let unit = common.config.unit.unwrap_or_default();
    loop {
        let mut document = gather(common, args)?;
        // CSV and plain text do not show it. What is counted now can be told without it, so its troubles are only
        // mentioned.
        let ledger = if args.csv || args.txt { Ok(None) } else { summary::gather(common) };
        let ledger = ledger.unwrap_or_else(|error| {
            tracing::warn!("the ledger is left out: {error:#}");
            None
        });
        document.ledger = ledger.as_ref().map(view::summary::json).transpose()?;
        let text = if common.json {
            format!("{}\n", document.json()?)
        } else if args.csv {
            stats::csv(&document, part)
        } else if args.txt {
            stats::plain(&document, part, unit)
        } else {
            let table = stats::table(&document, part, unit);
            match &ledger {
                Some(ledger) => format!("{table}\n{}", view::summary::table(ledger)),
                None => table,
            }
        };
        print(&text)?;
        let Some(pause) = args.watch else {
            return Ok(ExitCode::SUCCESS);
        };
        if !common.json && !args.csv {
            print("\n")?;
        }
        thread::sleep(pause);
    }
}

fn gather(common: &Common, args: &Args) -> Result<Document> {
    merged(common, &args.proxy, dump::installed(&common.pins)?)
}

/// The merged report of what rules count, even where pins count as well; groups that were reset from their
/// `zeros` on.
pub(super) fn of_rules(common: &Common, proxy: &ProxyArgs, zeros: &Zeros) -> Result<Document> {
    let rules = meter::rules_installed()?.map(|mut snapshot| {
        zeros.apply(&mut snapshot);
        Dump { host: host(), snapshot, devices: Vec::new(), passed_over: Vec::new() }
    });
    merged(common, proxy, rules)
}

fn merged(common: &Common, proxy: &ProxyArgs, kernel: Option<Dump>) -> Result<Document> {
    // A proxy that was named may be another than the daemon's.
    if !proxy.is_named()
        && let Some(text) = ask(&common.state, &Question::Stats)?
    {
        return serde_json::from_str(&text).context("the daemon's answer is not understood");
    }
    let Some(place) = proxy.place(common)? else {
        bail!("no daemon runs, and no proxy is to be looked for: nothing can be merged");
    };
    alone(common, &place, kernel.as_ref())
}

/// Joins the totals of both meters once.
fn alone(common: &Common, place: &ProxyPlace, kernel: Option<&Dump>) -> Result<Document> {
    let config = place.config()?;
    let good = config.as_ref().and_then(|config| config.good());
    let address = place.address(good);
    if good.is_none() && address.is_none() && kernel.is_none() {
        bail!(
            "no proxy was found, no daemon runs, and nothing is pinned\n  remedy: name the proxy's config with --proxy-config, or start `traffic run`"
        );
    }
    let typed = common.config.ports.clone().unwrap_or_default();
    let inbounds = good.map(|good| joined(&good.inbounds, &typed)).unwrap_or_default();
    let uncounted = good.map(|good| good.unreported.clone()).unwrap_or_default();
    let watched = address.is_some();
    let latest = match address {
        None => Latest::default(),
        Some(address) => poll(ProxyMeter::new(address))?,
    };
    let snapshot = kernel.map(|kernel| &kernel.snapshot);
    let inbounds = counted(inbounds, snapshot);
    let merge = once(snapshot, latest.snapshot.as_deref(), &inbounds, &uncounted);
    let host = host();
    let since = snapshot.and_then(|snapshot| snapshot.since);
    Ok(Document::new(
        &merge.report(unix_time(), api_report(&latest)),
        Beside {
            host: &host,
            epoch: None,
            since: since.map(|since| i128::from(since) * 1_000_000_000),
            meter: snapshot.map(|snapshot| (snapshot.meter, snapshot.layer)),
            online: online(&latest),
            // Without a config nobody knows of one.
            api: match good {
                None if !watched => ApiDocument::default(),
                _ => api_document(&latest, watched),
            },
            events: Vec::new(),
        },
    ))
}

/// Inbounds with the group that counts them: where none has exactly their ports, one that holds them all, as
/// `--ports 5000` counts an inbound of TCP.
fn counted(inbounds: Vec<Inbound>, kernel: Option<&Snapshot>) -> Vec<Inbound> {
    let groups = || {
        let groups = kernel.into_iter().flat_map(|kernel| kernel.groups.iter());
        groups.filter(|reading| reading.watched).map(|reading| &*reading.group)
    };
    let by = |inbound: Inbound| {
        let same = groups().find(|group| group.same_ports(&inbound.group));
        match same.or_else(|| groups().find(|group| group.covers(&inbound.group))) {
            Some(group) => Inbound { group: group.clone(), ..inbound },
            None => inbound,
        }
    };
    inbounds.into_iter().map(by).collect()
}

/// Asks an API once.
pub(super) fn poll(mut meter: ProxyMeter) -> Result<Latest> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    // Why it failed, if it did, is in the meter's health.
    let snapshot = runtime.block_on(meter.poll()).ok();
    let tells = snapshot.is_some() && meter.identity().is_some_and(|identity| identity.online);
    let online = match tells {
        true => runtime.block_on(meter.online_users()).ok().flatten(),
        false => None,
    };
    runtime.shutdown_background();
    Ok(Latest {
        polls: 1,
        health: meter.health().cloned(),
        identity: meter.identity(),
        snapshot: snapshot.map(Into::into),
        online: online.map(Into::into),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::accounting::{
        ident::Group,
        proxy::Users,
        reading::{Coverage, Epoch, GroupReading, Lanes, Layer, Window},
    };

    #[test]
    fn an_inbound_is_counted_by_its_own_group_or_by_one_that_holds_it() {
        let group = |text: &str| text.parse::<Group>().unwrap();
        let readings = [("5000", true), ("6000-6009/tcp", true), ("7000", false), ("80/udp", true)];
        let readings = readings.map(|(text, watched)| GroupReading {
            group: std::sync::Arc::new(group(text)),
            lanes: Lanes::default(),
            watched,
        });
        let snapshot = Snapshot {
            meter: "nft",
            layer: Layer::L3Skb,
            epoch: Epoch(7),
            since: None,
            window: Window { begin: 0, end: 0 },
            coverage: Coverage::Complete,
            groups: readings.into(),
            skipped: None,
        };
        for (inbound, by) in [
            ("5000/tcp=vm", "5000"),
            ("5000=vm", "5000"),
            ("6001/tcp", "6000-6009/tcp"),
            ("6001/udp", "6001/udp"),
            ("7000/tcp", "7000/tcp"),
            ("80/tcp", "80/tcp"),
        ] {
            let users = Users::default();
            let of = Inbound { group: group(inbound), tag: None, protocol: "vmess".into(), users };
            let of = counted(vec![of], Some(&snapshot)).remove(0);
            assert_eq!(of.group, group(by), "{inbound}");
        }
    }
}
