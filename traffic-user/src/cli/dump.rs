//! `traffic dump`: the counters as they stand, once, read from their pins or rules without any daemon.

use std::{
    io::{self, Write as _},
    path::Path,
    process::ExitCode,
};

use anyhow::{Context as _, Result, bail};

use super::{Common, host, print};
use crate::{
    accounting::report::{DeviceReport, Dump},
    meter,
    view::{json, table},
};

pub(super) fn run(common: &Common) -> Result<ExitCode> {
    let Some(report) = installed(&common.pins)? else {
        // Whoever may not list rules is told that, and not that there are none.
        meter::rules_installed()?;
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

/// What is counted under the pins, or by rules of ours; `None` when nothing is.
pub(super) fn installed(folder: &Path) -> Result<Option<Dump>> {
    let Some((snapshot, devices)) = meter::installed(folder)? else {
        return Ok(None);
    };
    let hook = snapshot.meter;
    let devices = devices
        .into_iter()
        .map(|device| DeviceReport { name: device.name, link_header: device.link_header, hook })
        .collect();
    Ok(Some(Dump { host: host(), snapshot, devices, passed_over: Vec::new() }))
}
