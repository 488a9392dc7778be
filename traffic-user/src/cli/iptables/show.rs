//! `traffic iptables [port|user|total]`: the numbers.

use std::process::ExitCode;

use anyhow::{Result, bail};

use super::super::{Common, host, print, proxy::ProxyArgs, stats};
use crate::{
    accounting::{
        reading::Layer,
        rules::{Family, RulesReport},
        zeros::Zeros,
    },
    ledger::{LedgerError, Reader},
    meter,
    view::rules,
};

#[derive(Clone, Debug, Default, clap::Args)]
pub(super) struct Args {
    /// IPv4 only
    #[arg(long, conflicts_with = "ipv6")]
    ipv4: bool,
    /// IPv6 only
    #[arg(long)]
    ipv6: bool,
    /// Write CSV
    #[arg(long, conflicts_with = "txt")]
    csv: bool,
    /// Write plain text, one value a line
    #[arg(long)]
    txt: bool,
    #[command(flatten)]
    proxy: ProxyArgs,
}

impl Args {
    /// Whether nothing was asked for in particular.
    pub(super) const fn is_plain(&self) -> bool {
        !(self.ipv4 || self.ipv6 || self.csv || self.txt || self.proxy.is_named())
    }

    const fn family(&self) -> Option<Family> {
        match (self.ipv4, self.ipv6) {
            (true, _) => Some(Family::Ipv4),
            (_, true) => Some(Family::Ipv6),
            _ => None,
        }
    }
}

/// Which report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Port,
    User,
    Total,
}

pub(super) fn run(common: &Common, part: Part, args: &Args) -> Result<ExitCode> {
    if common.json && (args.csv || args.txt) {
        bail!("--json, --csv and --txt exclude one another: choose one");
    }
    let text = match part {
        Part::User => users(common, args)?,
        Part::Port | Part::Total => numbers(common, part, args)?,
    };
    print(&text)?;
    Ok(ExitCode::SUCCESS)
}

fn numbers(common: &Common, part: Part, args: &Args) -> Result<String> {
    let Some(snapshot) = meter::rules_installed()? else {
        bail!("{NO_RULES}");
    };
    let report = RulesReport::new(host(), snapshot, args.family(), &zeros(common));
    let total = part == Part::Total;
    Ok(match (common.json, args.csv, args.txt) {
        (true, ..) if total => format!("{}\n", rules::total_json(&report)?),
        (true, ..) => format!("{}\n", rules::ports_json(&report)?),
        (_, true, _) if total => rules::total_csv(&report),
        (_, true, _) => rules::ports_csv(&report),
        (_, _, true) if total => rules::total_txt(&report),
        (_, _, true) => rules::ports_txt(&report),
        _ if total => rules::total_table(&report),
        _ => rules::ports_table(&report),
    })
}

/// Where groups that were reset begin. Without a ledger nothing was.
fn zeros(common: &Common) -> Zeros {
    let read = || -> Result<_, LedgerError> {
        Reader::open(&common.state)?.map(|reader| reader.cursors()).transpose()
    };
    match read() {
        Ok(cursors) => cursors.unwrap_or_default().zeros,
        Err(error) => {
            let error = format!("{:#}", anyhow::Error::from(error));
            tracing::warn!(
                error,
                "what was reset is not known: all is shown since the rules were set"
            );
            Zeros::default()
        }
    }
}

fn users(common: &Common, args: &Args) -> Result<String> {
    if args.family().is_some() {
        bail!(
            "the proxy does not say over which version of IP a user came, so his share of one cannot be told\n  remedy: leave --ipv4 and --ipv6 out, or see `traffic iptables port`"
        );
    }
    let Some(snapshot) = meter::rules_installed()? else {
        bail!("{NO_RULES}");
    };
    let zeros = zeros(common);
    let document = match stats::of_rules(common, &args.proxy, &zeros) {
        // A daemon that counts with eBPF knows nothing of these rules.
        Ok(document) if document.layer.as_deref() == Some(Layer::L3Skb.name()) => Some(document),
        Ok(_) => None,
        Err(error) => {
            tracing::warn!("who moved what is not known: {error:#}");
            None
        }
    };
    let report = RulesReport::new(host(), snapshot, None, &zeros);
    let rows = match &document {
        Some(document) => rules::by_user(document),
        None => rules::by_nobody(&report),
    };
    Ok(match (common.json, args.csv, args.txt) {
        (true, ..) => format!("{}\n", rules::users_json(&report, document.as_ref(), &rows)?),
        (_, true, _) => rules::users_csv(&rows),
        (_, _, true) => rules::users_txt(&rows),
        _ => rules::users_table(&rows),
    })
}

const NO_RULES: &str = "no rules of ours count here\n  remedy: start `traffic run --meter nft` or `--meter iptables` (with --persist they stay); where eBPF counts, `traffic dump` and `traffic stats` show its numbers";
