//! `traffic ports`: all configured ports with their traffic.

use std::{
    process::ExitCode,
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::Result;

use super::{Common, MOST_GROUPS, dump, groups, host, print};
use crate::{
    accounting::{
        ident::{Group, Groups},
        report::PortReport,
    },
    meter::listening::listening,
    view::{json, table},
};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Ports to show as well, as for `traffic run`
    #[arg(long, value_name = "LIST", value_parser = groups)]
    ports: Option<Groups>,
}

pub(super) fn run(common: &Common, args: &Args) -> Result<ExitCode> {
    let dump = dump::pinned(&common.pins)?;
    let listening = listening()?;
    let open = Groups::new(listening.clone(), MOST_GROUPS)?;
    let mut reports = Vec::new();
    if let Some(dump) = &dump {
        for (key, reading) in dump.keys().into_iter().zip(&dump.snapshot.groups) {
            reports.push(PortReport {
                group: (*reading.group).clone(),
                key,
                traffic: Some(reading.lanes.total()),
                listening: Some(open.meets(&reading.group)),
                watched: reading.watched,
            });
        }
    }
    // What is configured or listens, but is not counted: nothing was measured, which is not zero.
    let counted = Groups::unchecked(reports.iter().map(|report| report.group.clone()).collect());
    let mut more: Vec<Group> = args.ports.iter().flat_map(|ports| ports.iter().cloned()).collect();
    more.extend(listening);
    let all = counted.extended_by(&more);
    for group in all.iter().skip(counted.len()) {
        reports.push(PortReport {
            key: all.key(group),
            traffic: None,
            listening: Some(open.meets(group)),
            watched: false,
            group: group.clone(),
        });
    }
    let meter = dump.as_ref().map(|dump| dump.snapshot.meter);
    if common.json {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos());
        let taken_at = i128::try_from(now).unwrap_or(i128::MAX);
        print(&format!("{}\n", json::ports(&host(), taken_at, meter, &reports)?))?;
    } else {
        print(&table::ports(meter, &reports))?;
    }
    Ok(ExitCode::SUCCESS)
}
