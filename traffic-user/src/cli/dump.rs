//! `traffic dump`: the counters as they stand, once, read from their pins without any daemon.

use std::{
    io::{self, Write as _},
    path::Path,
    process::ExitCode,
};

use anyhow::{Context as _, Result, bail};

use super::{Common, host, print};
use crate::{
    accounting::report::{DeviceReport, Dump},
    meter::ebpf::Pinned,
    view::{json, table},
};

pub(super) fn run(common: &Common) -> Result<ExitCode> {
    let Some(report) = pinned(&common.pins)? else {
        bail!(
            "nothing is counted under {}\n  remedy: start `traffic run --persist`, or see a run without it by `traffic run --output json`",
            common.pins.display()
        );
    };
    if common.json {
        let mut stdout = io::BufWriter::new(io::stdout().lock());
        json::dump(&mut stdout, &report, None)
            .and_then(|()| stdout.flush())
            .context("cannot write to stdout")?;
    } else {
        print(&table::dump(&report))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// What is counted under the pins; `None` when nothing is.
pub(super) fn pinned(folder: &Path) -> Result<Option<Dump>> {
    let Some(pinned) = Pinned::open(folder)? else {
        return Ok(None);
    };
    let hook = pinned.hook().name();
    let devices = pinned
        .devices()?
        .into_iter()
        .map(|device| DeviceReport { name: device.name, link_header: device.link_header, hook })
        .collect();
    let snapshot = pinned.read()?;
    Ok(Some(Dump { host: host(), snapshot, devices, passed_over: Vec::new() }))
}
