//! `traffic ports`: all configured ports with their traffic.

use std::{path::Path, process::ExitCode};

use anyhow::{Context as _, Result};

use super::{Common, MOST_GROUPS, dump, groups, host, print, proxy::ProxyArgs};
use crate::{
    accounting::{
        ident::{Group, Groups},
        report::PortReport,
    },
    daemon::{Question, Read, ask, joined, unix_time, watched},
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
    // What is pinned or set, else what a daemon counts without leaving it to others.
    let read = match dump::installed(&common.pins)? {
        Some(dump) => Some(Read::of(&dump)),
        None => asked(&common.state).unwrap_or_else(|error| {
            let error = format!("{error:#}");
            tracing::warn!(error, "whether a daemon counts is not known");
            None
        }),
    };
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
    for counted in read.iter().flat_map(|read| &read.groups) {
        let group: Group = counted.group.parse()?;
        reports.push(PortReport {
            key: counted.key.clone(),
            inbound: inbound(&group),
            traffic: Some(counted.traffic()),
            listening: Some(open.meets(&group)),
            watched: counted.watched,
            group,
        });
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
    let meter = read.as_ref().map(|read| read.meter.as_str());
    if common.json {
        print(&format!("{}\n", json::ports(&host(), unix_time(), meter, &reports)?))?;
    } else {
        print(&table::ports(meter, &reports))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// What a daemon has counted; `None` where none runs.
fn asked(state: &Path) -> Result<Option<Read>> {
    let text = ask(state, &Question::Groups)?;
    text.map(|text| serde_json::from_str(&text).context("its answer is not understood")).transpose()
}
