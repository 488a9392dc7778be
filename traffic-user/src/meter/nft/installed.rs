//! Rules that count without a daemon: read, and taken off.

use std::{path::Path, sync::Arc};

use super::{
    about::{About, Entry},
    apply,
    kernel::Kernel,
    names, not_foreign, now,
    parse::{Family, Tables},
    ruleset, size_of, snapshot, tool,
};
use crate::{
    accounting::reading::{Snapshot, Window},
    meter::error::MeterError,
};

/// Rules of ours that are in place, whoever set them, opened for reading.
pub struct Installed {
    persist: bool,
    families: &'static [Family],
}

impl Installed {
    /// `None` when there are none in this network namespace, or none of this boot.
    ///
    /// # Errors
    ///
    /// [`MeterError::ForeignRules`] when a table of our name is not ours, [`MeterError::Denied`]
    /// without CAP_NET_ADMIN.
    pub fn open() -> Result<Option<Self>, MeterError> {
        let found = look(&mut Kernel::open()?, &Family::OURS)?;
        let found = found.filter(|(_, about)| about.is_of_this_boot());
        Ok(found.map(|(_, about)| Self { persist: about.persist, families: &Family::OURS }))
    }

    /// Rules that an earlier build set in another form, which the next run takes off. `None` also where they
    /// were loaded from a listing: they have the numbers of another time.
    ///
    /// # Errors
    ///
    /// As [`open`](Self::open).
    pub fn open_former() -> Result<Option<Self>, MeterError> {
        let found = look(&mut Kernel::open()?, &Family::FORMER)?;
        let found = found.filter(|(tables, about)| {
            let loaded = tables.iter().any(|(family, table)| ruleset::is_loaded(*family, table));
            about.is_of_this_boot() && !loaded
        });
        Ok(found.map(|(_, about)| Self { persist: about.persist, families: &Family::FORMER }))
    }

    /// Whether they were left to go on without a process. Without one that runs, the others are what a
    /// killed run left.
    pub const fn persist(&self) -> bool {
        self.persist
    }

    /// Reads all counters. Resets and repairs nothing: where something is missing, the snapshot has a
    /// gap. In rules of an earlier build nobody looks for that.
    ///
    /// # Errors
    ///
    /// [`MeterError::Netlink`], and [`MeterError::OtherRules`] when the rules went after
    /// [`open`](Self::open).
    pub fn read(&self) -> Result<Snapshot, MeterError> {
        let begin = now();
        let (tables, about) = look(&mut Kernel::open()?, self.families)?.ok_or_else(|| {
            MeterError::OtherRules { what: names(self.families), reason: "are gone".into() }
        })?;
        let (counts, lost) = if self.families == Family::FORMER {
            (ruleset::counts(&tables), false)
        } else {
            let wanted = ruleset::wanted(&about, size_of(&tables));
            let (lost, counts) = ruleset::compare(&wanted, about.epoch, &tables);
            (counts, !lost.is_empty())
        };
        let window = Window { begin, end: now() };
        Ok(snapshot(&about, &counts, window, about.gap || lost))
    }
}

/// Our tables of these families, when they are there and say whose counters are whose.
fn look(kernel: &mut Kernel, families: &[Family]) -> Result<Option<(Tables, About)>, MeterError> {
    let tables = of_our_name(kernel, families)?;
    not_foreign(&tables)?;
    Ok(ruleset::about(&tables).map(|about| (tables, about)))
}

/// Tables of our name. One of the form that earlier builds had is somebody's whom we do not meet any more,
/// unless it carries our comment.
pub(super) fn of_our_name(kernel: &mut Kernel, families: &[Family]) -> Result<Tables, MeterError> {
    let mut tables = kernel.tables(families)?.tables;
    tables.retain(|family, table| !Family::FORMER.contains(family) || ruleset::is_marked(table));
    Ok(tables)
}

/// Whether the table `filter` of `iptables-nft` is there for this version of IP, or a chain in it.
pub(in crate::meter) fn has_filter(ipv6: bool, chain: Option<&str>) -> Result<bool, MeterError> {
    Kernel::open()?.has_filter(ipv6, chain)
}

/// Whether the table `filter` of `iptables-nft` has any chain for this version of IP.
pub(in crate::meter) fn filter_has_chains(ipv6: bool) -> Result<bool, MeterError> {
    Kernel::open()?.filter_has_chains(ipv6)
}

/// Takes a chain without rules away from the table `filter` of `iptables-nft`, or the table when nothing is in
/// it.
pub(in crate::meter) fn remove_filter(ipv6: bool, chain: Option<&str>) -> Result<(), MeterError> {
    Kernel::open()?.remove_filter(ipv6, chain)
}

/// Takes off what a killed run or an earlier boot left: nobody goes on with it. With `persist` also what was
/// left to go on.
pub(in crate::meter) fn clean_left(persist: bool) -> Result<(), MeterError> {
    let mut kernel = Kernel::open()?;
    match look(&mut kernel, &Family::OURS)? {
        Some((tables, about)) if persist || !about.goes_on() => take_off(&tool()?, &tables),
        Some(_) | None => Ok(()),
    }
}

/// The same for rules of an earlier build, also where they do not say whose they are any more.
pub(in crate::meter) fn clean_former(persist: bool) -> Result<(), MeterError> {
    let tables = of_our_name(&mut Kernel::open()?, &Family::FORMER)?;
    let goes_on = ruleset::about(&tables).is_some_and(|about| about.goes_on());
    if tables.is_empty() || goes_on && !persist {
        return Ok(());
    }
    take_off(&tool()?, &tables)?;
    tracing::warn!("{} of an earlier version is taken off", names(tables.keys()));
    Ok(())
}

/// Takes our tables off; nothing where there are none.
pub(super) fn remove(tool: &Path, kernel: &mut Kernel) -> Result<(), MeterError> {
    take_off(tool, &kernel.tables(&Family::OURS)?.tables)
}

/// Takes these tables off, but for those that are not ours, or not ours alone: they are the error then.
fn take_off(tool: &Path, tables: &Tables) -> Result<(), MeterError> {
    let ours = tables.iter().filter(|(family, table)| ruleset::foreign(**family, table).is_none());
    let script = ruleset::removal(ours.map(|(family, _)| family));
    if !script.is_empty() {
        apply(tool, "remove the nft rules", &script)?;
    }
    not_foreign(tables)
}

/// Takes off all of ours in this network namespace and nothing else. Gives a line for each thing; with
/// `dry_run` only says them.
///
/// # Errors
///
/// [`MeterError::ForeignRules`] when a table of our name is not ours, or somebody put something into it:
/// that one stays.
pub fn clean(dry_run: bool) -> Result<Vec<String>, MeterError> {
    let mut said = Vec::new();
    let forms: [(&[Family], &str); 2] =
        [(&Family::OURS, ""), (&Family::FORMER, " of an earlier version")];
    for (families, version) in forms {
        let tables = of_our_name(&mut Kernel::open()?, families)?;
        if tables.is_empty() {
            continue;
        }
        if dry_run {
            not_foreign(&tables)?;
        } else {
            take_off(&tool()?, &tables)?;
        }
        let groups = match ruleset::about(&tables) {
            Some(about) => format!("{} groups", about.entries.len()),
            None => "groups that are not known any more".to_owned(),
        };
        let counters: usize = tables.values().map(|table| table.counters.len()).sum();
        let what = names(tables.keys());
        let what = what.strip_prefix("the ").unwrap_or(&what);
        said.push(format!("{what}{version} ({groups}, {counters} counters)"));
    }
    Ok(said)
}

/// Takes one port off our rules. A group of nothing else goes with its numbers; one of several ports
/// goes on with the others. Gives a line for each group; with `dry_run` only says them.
///
/// # Errors
///
/// As [`clean`].
pub fn clean_port(port: u16, dry_run: bool) -> Result<Vec<String>, MeterError> {
    let Some((tables, about)) = look(&mut Kernel::open()?, &Family::OURS)? else {
        return Ok(Vec::new());
    };
    let mut said = Vec::new();
    let (mut entries, mut rest) = (Vec::<Entry>::new(), Vec::<Entry>::new());
    // Another set of ports is another group, whose counters begin at zero: with the old ones it would be
    // charged again for all that they have.
    let mut next = about.entries.iter().map(|entry| entry.id).max().map_or(0, |id| id + 1);
    for entry in &about.entries {
        if !entry.group.has(port) {
            entries.push(entry.clone());
            continue;
        }
        let ports = entry.group.ports_text();
        match entry.group.without(port) {
            Some(group) => {
                said.push(format!("port {port} of the nft counters of {ports}"));
                rest.push(Entry { id: next, group: Arc::new(group), watched: entry.watched });
                next += 1;
            }
            None => said.push(format!("nft counters of port {port}")),
        }
    }
    if said.is_empty() || dry_run {
        return Ok(said);
    }
    for group in rest {
        // One that is there already, given up before, goes on where it was.
        match entries.iter_mut().find(|entry| entry.group == group.group) {
            Some(entry) => entry.watched |= group.watched,
            None => entries.push(group),
        }
    }
    if entries.iter().all(|entry| !entry.watched) {
        take_off(&tool()?, &tables)?;
        return Ok(said);
    }
    let rest = About { entries, ..about };
    let (mut script, _) = ruleset::change(&about, &rest, size_of(&tables));
    script.push_str(&ruleset::forget(&about, &rest));
    apply(&tool()?, "remove nft rules", &script)?;
    Ok(said)
}
