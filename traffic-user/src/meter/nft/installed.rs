//! Rules that count without a daemon: read, and taken off.

use std::{collections::HashSet, fmt::Write as _, path::Path, sync::Arc};

use super::{
    about::{About, Entry},
    apply, counts,
    kernel::{Kernel, TABLE},
    not_foreign, now,
    parse::Found,
    ruleset, size_of, snapshot, tool,
};
use crate::{
    accounting::{
        ident::{Group, PortRange},
        reading::{Snapshot, Window},
    },
    meter::error::MeterError,
};

/// Rules of ours that are in place, whoever set them, opened for reading.
pub struct Installed {
    persist: bool,
}

impl Installed {
    /// `None` when there are none in this network namespace, or none of this boot.
    ///
    /// # Errors
    ///
    /// [`MeterError::ForeignRules`] when the table of our name is not ours, [`MeterError::Denied`]
    /// without CAP_NET_ADMIN.
    pub fn open() -> Result<Option<Self>, MeterError> {
        let found = look(&mut Kernel::open()?)?.filter(|(_, about)| about.is_of_this_boot());
        Ok(found.map(|(_, about)| Self { persist: about.persist }))
    }

    /// Whether they were left to go on without a process. Without one that runs, the others are what a
    /// killed run left.
    pub const fn persist(&self) -> bool {
        self.persist
    }

    /// Reads all counters. Resets and repairs nothing: where something is missing, the snapshot has a
    /// gap.
    ///
    /// # Errors
    ///
    /// [`MeterError::Netlink`], and [`MeterError::OtherRules`] when the rules went after
    /// [`open`](Self::open).
    pub fn read(&self) -> Result<Snapshot, MeterError> {
        let begin = now();
        let (found, about) = look(&mut Kernel::open()?)?.ok_or(MeterError::OtherRules {
            what: format!("the nft table inet {TABLE}"),
            reason: "are gone".into(),
        })?;
        let lost = ruleset::lost(&ruleset::wanted(&about, size_of(&found)), Some(&found));
        let window = Window { begin, end: now() };
        Ok(snapshot(&about, &counts(&found), window, about.gap || !lost.is_empty()))
    }
}

/// Our table, when it is there and says whose counters are whose.
fn look(kernel: &mut Kernel) -> Result<Option<(Found, About)>, MeterError> {
    let Some(found) = kernel.table()? else {
        return Ok(None);
    };
    not_foreign(&found)?;
    Ok(ruleset::about(&found).map(|about| (found, about)))
}

/// Whether `iptables-nft` has a chain of this name for this version of IP; no where that cannot be told.
pub(in crate::meter) fn has_filter_chain(ipv6: bool, name: &str) -> bool {
    Kernel::open().and_then(|mut kernel| kernel.has_filter_chain(ipv6, name)).unwrap_or(false)
}

/// Takes off what a killed run or an earlier boot left: nobody goes on with it. With `persist` also what was
/// left to go on.
pub(in crate::meter) fn clean_left(persist: bool) -> Result<(), MeterError> {
    let mut kernel = Kernel::open()?;
    match look(&mut kernel)? {
        Some((_, about)) if persist || !about.goes_on() => remove(&tool()?, &mut kernel),
        Some(_) | None => Ok(()),
    }
}

/// Takes our table off; nothing where there is none.
pub(super) fn remove(tool: &Path, kernel: &mut Kernel) -> Result<(), MeterError> {
    let Some(found) = kernel.table()? else {
        return Ok(());
    };
    not_foreign(&found)?;
    apply(tool, "remove the nft rules", &format!("delete table inet {TABLE}\n"))
}

/// Takes off all of ours in this network namespace and nothing else. Gives a line for each thing; with
/// `dry_run` only says them.
///
/// # Errors
///
/// [`MeterError::ForeignRules`] when the table of our name is not ours, or somebody put something into
/// it; nothing is removed then.
pub fn clean(dry_run: bool) -> Result<Vec<String>, MeterError> {
    let mut kernel = Kernel::open()?;
    let Some(found) = kernel.table()? else {
        return Ok(Vec::new());
    };
    not_foreign(&found)?;
    if !dry_run {
        remove(&tool()?, &mut kernel)?;
    }
    let groups = match ruleset::about(&found) {
        Some(about) => format!("{} groups", about.entries.len()),
        None => "groups that are not known any more".to_owned(),
    };
    Ok(vec![format!("nft table inet {TABLE} ({groups}, {} counters)", found.counters.len())])
}

/// Takes one port off our rules. A group of nothing else goes with its numbers; one of several ports
/// goes on with the others. Gives a line for each group; with `dry_run` only says them.
///
/// # Errors
///
/// As [`clean`].
pub fn clean_port(port: u16, dry_run: bool) -> Result<Vec<String>, MeterError> {
    let mut kernel = Kernel::open()?;
    let Some((found, about)) = look(&mut kernel)? else {
        return Ok(Vec::new());
    };
    let mut said = Vec::new();
    let mut entries = Vec::new();
    // Another set of ports is another group, whose counters begin at zero: with the old ones it would be
    // charged again for all that they have.
    let mut next = about.entries.iter().map(|entry| entry.id).max().map_or(0, |id| id + 1);
    for entry in &about.entries {
        if !entry.group.ports().any(|own| own == port) {
            entries.push(entry.clone());
            continue;
        }
        let ports = entry.group.ports_text();
        match without(&entry.group, port) {
            Some(group) => {
                said.push(format!("port {port} of the nft counters of {ports}"));
                entries.push(Entry { id: next, group: Arc::new(group), watched: entry.watched });
                next += 1;
            }
            None => said.push(format!("nft counters of port {port}")),
        }
    }
    if said.is_empty() || dry_run {
        return Ok(said);
    }
    let rest = About { entries, ..about };
    let (mut script, _) = ruleset::change(&about, &rest, size_of(&found));
    let stay: HashSet<String> = ruleset::counters(&rest).collect();
    for name in ruleset::counters(&about).filter(|name| !stay.contains(name)) {
        let _ = writeln!(script, "delete counter inet {TABLE} {name}");
    }
    apply(&tool()?, "remove nft rules", &script)?;
    Ok(said)
}

/// The group without one of its ports; `None` when nothing is left.
fn without(group: &Group, port: u16) -> Option<Group> {
    let ranges = group.ranges().iter().flat_map(|range| {
        let (first, last) = (range.first(), range.last());
        if port < first || port > last {
            return [Some(*range), None];
        }
        let below = port.checked_sub(1).and_then(|end| PortRange::new(first, end));
        let above = port.checked_add(1).and_then(|begin| PortRange::new(begin, last));
        [below, above]
    });
    let ranges = ranges.flatten().collect();
    Group::new(ranges, group.transport(), group.name().map(str::to_owned)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_taken_out_of_the_middle_and_off_the_ends() {
        let rest = |group: &str, port| {
            without(&group.parse().unwrap(), port).map(|group| group.to_string())
        };
        assert_eq!(rest("443", 443), None);
        assert_eq!(rest("443+8443=web", 443).as_deref(), Some("8443=web"));
        assert_eq!(rest("1-9/udp", 5).as_deref(), Some("1-4+6-9/udp"));
        assert_eq!(rest("1-9", 1).as_deref(), Some("2-9"));
        assert_eq!(rest("65534-65535", 65535).as_deref(), Some("65534"));
    }
}
