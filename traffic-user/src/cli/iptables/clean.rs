//! `traffic iptables clean`: rules of ours, and those that multi-v2ray left behind.

use std::{
    collections::BTreeMap,
    io::{IsTerminal as _, Write as _},
    process::ExitCode,
};

use anyhow::{Result, bail};
use serde_json::json;

use super::super::{Common, agreed, clean::booked, print};
use crate::{
    meter::{
        self, Lock, MeterError,
        iptables::{self, ForeignRule, ForeignRules},
    },
    view::json::JSON_VERSION,
};

#[derive(Debug, clap::Args)]
#[command(group(clap::ArgGroup::new("which").required(true)))]
pub(super) struct Args {
    /// What our rules have for this port; a group of several goes on without it
    #[arg(value_name = "PORT", group = "which", value_parser = clap::value_parser!(u16).range(1..))]
    port: Option<u16>,
    /// All rules of ours
    #[arg(long, group = "which")]
    all: bool,
    /// Rules that multi-v2ray left: listed, and asked about one decision at a time
    #[arg(long, group = "which")]
    foreign: bool,
    /// Only say what would go
    #[arg(long)]
    dry_run: bool,
    /// Do not ask: all that is listed goes
    #[arg(long, short, conflicts_with_all = ["port", "all"])]
    yes: bool,
}

pub(super) fn run(common: &Common, args: &Args) -> Result<ExitCode> {
    // A daemon neither has these nor puts them back.
    if args.foreign {
        return foreign(common, args);
    }
    // Not under the feet of a daemon, which would put them back.
    let _lock = if args.dry_run { None } else { Some(Lock::of_this_netns(None)?) };
    let said = match args.port {
        Some(port) => rules_of(common, port, args.dry_run)?,
        None if args.dry_run => meter::clean_rules(true)?,
        None => booked(common, meter::rules_installed, || meter::clean_rules(false))?,
    };
    say(common, args.dry_run, &said, &[])?;
    Ok(ExitCode::SUCCESS)
}

/// Takes our rules of one port away and says so: for the menu.
pub(super) fn port(common: &Common, port: u16) -> Result<()> {
    let _lock = Lock::of_this_netns(None)?;
    say(common, false, &rules_of(common, port, false)?, &[])
}

fn rules_of(common: &Common, port: u16, dry_run: bool) -> Result<Vec<String>, anyhow::Error> {
    let mut said = meter::clean_rules_of(port, true)?;
    if !dry_run && !said.is_empty() {
        said = booked(common, meter::rules_installed, || meter::clean_rules_of(port, false))?;
    }
    if !said.is_empty() {
        return Ok(said);
    }
    let counted: Vec<String> = meter::rules_installed()?
        .map(|snapshot| snapshot.groups.iter().map(|reading| reading.group.ports_text()).collect())
        .unwrap_or_default();
    if counted.is_empty() {
        bail!("no rule of ours counts port {port}: there are no rules of ours here");
    }
    bail!(
        "no rule of ours counts port {port}\n  remedy: name one of those that are counted: {}",
        counted.join(" ")
    );
}

fn say(common: &Common, dry_run: bool, removed: &[String], kept: &[String]) -> Result<()> {
    if common.json {
        let document = json!({
            "jsonversion": JSON_VERSION,
            "dry_run": dry_run,
            "removed": removed,
            "kept": kept,
        });
        return print(&format!("{document}\n"));
    }
    if removed.is_empty() && kept.is_empty() {
        return print("nothing to remove is here\n");
    }
    let verb = if dry_run { "would remove" } else { "removed" };
    let mut text: String = removed.iter().map(|line| format!("{verb} {line}\n")).collect();
    text.extend(kept.iter().map(|line| format!("kept {line}\n")));
    print(&text)
}

/// What is decided about as one: the counting rules of a port, or those that open it.
struct Decision {
    question: String,
    rules: Vec<ForeignRule>,
}

fn foreign(common: &Common, args: &Args) -> Result<ExitCode> {
    let ForeignRules { rules, spared } = match iptables::foreign() {
        Ok(found) => found,
        // Without its tools there is nothing that they could have left.
        Err(MeterError::NoTool { .. }) => ForeignRules::default(),
        Err(error) => return Err(error.into()),
    };
    let lines = |rules: &[ForeignRule]| rules.iter().map(line).collect::<Vec<_>>();
    let spared: Vec<String> = spared
        .iter()
        .map(|rule| format!("{}: it may be an admin's, and nothing says otherwise", text(rule)))
        .collect();
    if args.dry_run || rules.is_empty() {
        say(common, true, &lines(&rules), &spared)?;
        return Ok(ExitCode::SUCCESS);
    }
    let (mut going, mut kept) = (Vec::new(), Vec::new());
    if args.yes {
        // Before it goes, and in every form: whoever asked for JSON may have locked himself out.
        eprint_lines(rules.iter().filter(|rule| rule.opens.is_some()))?;
        going = rules;
    } else if std::io::stdin().is_terminal() {
        for Decision { question, rules } in decisions(rules) {
            eprint_lines(&rules)?;
            if agreed(&question)? {
                going.extend(rules);
            } else {
                kept.extend(rules);
            }
        }
    } else {
        // Whoever is to decide sees all of it.
        eprint_lines(&rules)?;
        for line in &spared {
            writeln!(std::io::stderr(), "  stays: {line}")?;
        }
        bail!("each of these is asked about on a terminal\n  remedy: give --yes in scripts");
    }
    let removed = iptables::remove_foreign(&going)?;
    say(common, false, &lines(&removed), &[lines(&kept), spared].concat())?;
    Ok(ExitCode::SUCCESS)
}

fn eprint_lines<'a>(rules: impl IntoIterator<Item = &'a ForeignRule>) -> Result<()> {
    let mut stderr = std::io::stderr();
    for rule in rules {
        writeln!(stderr, "  {}", line(rule))?;
    }
    Ok(())
}

/// One rule, what it is, and what depends on it.
fn line(rule: &ForeignRule) -> String {
    match &rule.opens {
        None => text(rule),
        Some(reason) => format!("{}\n    ATTENTION: {reason}", text(rule)),
    }
}

fn text(rule: &ForeignRule) -> String {
    format!(
        "{} ({}, {}; {} packets, {} bytes)",
        rule.text,
        rule.family.name(),
        rule.backend.name(),
        rule.packets,
        rule.bytes
    )
}

fn decisions(rules: Vec<ForeignRule>) -> Vec<Decision> {
    let mut by_port: BTreeMap<(u16, bool), Vec<ForeignRule>> = BTreeMap::new();
    for rule in rules {
        by_port.entry((rule.port, rule.opens.is_some())).or_default().push(rule);
    }
    by_port
        .into_iter()
        .map(|((port, opens), rules)| {
            let question = if opens {
                format!("Remove what keeps port {port} open to the world?")
            } else {
                format!("Remove the rules of multi-v2ray for port {port}?")
            };
            Decision { question, rules }
        })
        .collect()
}
