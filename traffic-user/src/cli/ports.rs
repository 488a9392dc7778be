//! `traffic ports`: all configured ports with their traffic.

use std::process::ExitCode;

use anyhow::Result;

use super::{Common, MOST_GROUPS, dump, groups, host, print, proxy::ProxyArgs};
use crate::{
    accounting::{
        ident::{Group, Groups},
        report::PortReport,
    },
    daemon::{joined, unix_time, watched},
    meter::listening::listening,
    view::{json, table},
};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Ports to show as well, as for `traffic run`
    #[arg(long, value_name = "LIST", value_parser = groups)]
    ports: Option<Groups>,
    #[command(flatten)]
    proxy: ProxyArgs,
}

pub(super) fn run(common: &Common, args: &Args) -> Result<ExitCode> {
    let dump = dump::installed(&common.pins)?;
    let typed = args.ports.clone().or_else(|| common.config.ports.clone()).unwrap_or_default();
    let config = match args.proxy.place(common)? {
        Some(place) => place.config()?,
        None => None,
    };
    let inbounds = match config.as_ref().and_then(|config| config.good()) {
        Some(config) => joined(&config.inbounds, &typed),
        None => Vec::new(),
    };
    let inbound =
        |group: &Group| inbounds.iter().find(|inbound| inbound.group.same_ports(group)).cloned();
    let listening = listening()?;
    let open = Groups::new(listening.clone(), MOST_GROUPS)?;
    let mut reports = Vec::new();
    if let Some(dump) = &dump {
        for (key, reading) in dump.keys().into_iter().zip(dump.snapshot.groups.iter()) {
            reports.push(PortReport {
                group: (*reading.group).clone(),
                key,
                inbound: inbound(&reading.group),
                traffic: Some(reading.lanes.total()),
                listening: Some(open.meets(&reading.group)),
                watched: reading.watched,
            });
        }
    }
    // What is configured or listens, but is not counted: nothing was measured, which is not zero.
    let counted = Groups::unchecked(reports.iter().map(|report| report.group.clone()).collect());
    let mut more: Vec<Group> = watched(&inbounds, &typed).iter().cloned().collect();
    more.extend(listening);
    let all = counted.extended_by(&more);
    for group in all.iter().skip(counted.len()) {
        reports.push(PortReport {
            key: all.key(group),
            inbound: inbound(group),
            traffic: None,
            listening: Some(open.meets(group)),
            watched: false,
            group: group.clone(),
        });
    }
    let meter = dump.as_ref().map(|dump| dump.snapshot.meter);
    if common.json {
        print(&format!("{}\n", json::ports(&host(), unix_time(), meter, &reports)?))?;
    } else {
        print(&table::ports(meter, &reports))?;
    }
    Ok(ExitCode::SUCCESS)
}
