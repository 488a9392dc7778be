//! Takes our rules off: all of them, or those of one port.

use std::collections::HashSet;

use super::{
    MeterError, base, host,
    rules::{self, Counting, NOTE, Note, Ours},
    tool::{self, Tool},
};
use crate::accounting::ident::{Group, shown};

/// Takes off all of ours, in both back ends and both families. Gives a line for each thing; with
/// `dry_run` only says them.
///
/// # Errors
///
/// The first thing that could not be removed. Nothing is removed where a program says before that it could
/// not; else all that could be is.
pub fn clean(dry_run: bool) -> Result<Vec<String>, MeterError> {
    if !dry_run {
        // All of it or nothing, as far as the programs can tell before.
        for tool in tool::all() {
            if let Ok(ours) = tool.ours() {
                tool.rehearse(&ours.removal())?;
            }
        }
    }
    each(dry_run, |tool, ours| {
        if !dry_run {
            tool.remove(ours)?;
        }
        Ok(said(tool, ours))
    })
}

/// Takes off what a killed run or an earlier boot left, in whatever back end: nobody goes on with it. With
/// `persist` also what was left to go on.
pub(in crate::meter) fn clean_left(persist: bool) -> Result<(), MeterError> {
    let goes_on = |note: Note| note.persist && note.boot == host::boot_id();
    let tools = tool::all();
    let note = |tool: &Tool| tool.ours().ok().and_then(|ours| ours.note);
    let notes: Vec<_> =
        tools.iter().filter_map(|tool| note(tool).map(|note| (tool.backend, note))).collect();
    let of = |backend| notes.iter().filter(move |(own, _)| *own == backend);
    each(false, |tool, ours| {
        let left = of(tool.backend).next().is_some();
        if left && (persist || !of(tool.backend).any(|(_, note)| goes_on(*note))) {
            tool.remove(ours)?;
        }
        Ok(Vec::new())
    })
    .map(drop)
}

/// Whether there is anything of ours in any back end, found out without a list of all rules where that can
/// be.
pub(in crate::meter) fn is_anything_here() -> bool {
    tool::all().iter().any(|tool| tool.may_have_ours().unwrap_or_default())
}

/// Takes one port off our rules, and with the last of them all of ours. A group of nothing else goes with its
/// numbers; one of several ports goes on with the others, as another group that begins at zero. A daemon that
/// runs puts its own back.
///
/// # Errors
///
/// As [`clean`].
pub fn clean_port(port: u16, dry_run: bool) -> Result<Vec<String>, MeterError> {
    let with_it = |text: &str| text.parse().ok().filter(|group: &Group| group.has(port));
    each(dry_run, |tool, ours| {
        let (mut lines, mut stays) = (Vec::new(), Vec::new());
        let mut seen = HashSet::new();
        for (rule, ..) in &ours.counting {
            let Some(group) = with_it(&rule.group) else {
                stays.push(rule.clone());
                continue;
            };
            let rest = group.without(port);
            if rule.ranges.iter().any(|range| range.has(port)) {
                let part = if rest.is_some() { format!("port {port} of ") } else { String::new() };
                lines.push(part + &line(tool, rule));
            }
            if seen.insert(&rule.group) {
                stays.extend(rest.iter().flat_map(Counting::of));
            }
        }
        // Of groups that were given up only what they had is there.
        let given_up = ours.carries.iter().filter(|(text, _)| !seen.contains(text));
        for (text, _) in given_up.filter(|(text, _)| with_it(text).is_some()) {
            lines.push(format!("the numbers of {} in {}", shown(text), tool.place(NOTE)));
        }
        if lines.is_empty() {
            return Ok(Vec::new());
        }
        if stays.is_empty() {
            if !dry_run {
                tool.remove(ours)?;
            }
            return Ok(said(tool, ours));
        }
        if !dry_run {
            tool.change(&ours.with(stays, |text| with_it(text).is_some()))?;
        }
        Ok(lines)
    })
}

/// Does something with ours wherever they are, or with `dry_run` only says it.
fn each(
    dry_run: bool,
    mut work: impl FnMut(&Tool, &Ours) -> Result<Vec<String>, MeterError>,
) -> Result<Vec<String>, MeterError> {
    let (mut said, mut failed) = (Vec::new(), None);
    for tool in tool::all() {
        let done = tool
            .ours_if_any()
            .and_then(|ours| if ours.is_empty() { Ok(Vec::new()) } else { work(&tool, &ours) });
        match done {
            Ok(lines) => said.extend(lines),
            Err(error) => failed = failed.or(Some(error)),
        }
    }
    let Some(error) = failed else { return Ok(said) };
    // Whoever reads the error is to know what is gone all the same.
    for line in said.iter().filter(|_| !dry_run) {
        tracing::warn!("not all could be done; this was: {line}");
    }
    Err(error)
}

fn said(tool: &Tool, ours: &Ours) -> Vec<String> {
    let rules = ours.counting.iter().map(|(rule, ..)| line(tool, rule));
    let chains = ours.chains.iter().copied().chain(base::going(ours.made(), ours.spare));
    rules.chain(chains.map(|chain| tool.place(chain))).collect()
}

/// A rule, for people.
fn line(tool: &Tool, rule: &Counting) -> String {
    let group: String = rule.group.chars().flat_map(char::escape_debug).collect();
    let transport = if rule.tcp { "tcp" } else { "udp" };
    format!("the {transport} rule of {group} in {}", tool.place(rules::chain(rule.direction)))
}

/// Takes all of ours off as well as can be: nobody is there to hear why not.
pub(super) fn take_off(tool: &Tool) {
    let done = tool.ours().and_then(|ours| tool.remove(&ours));
    if let Err(error) = done {
        tracing::warn!(%error, "iptables rules stay behind: `traffic clean` takes them off");
    }
}
