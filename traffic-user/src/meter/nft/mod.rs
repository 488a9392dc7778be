//! The fallback's first meter: rules of nftables that only count.
//!
//! Two tables of ours, `ip traffic` and `ip6 traffic`, hold a counter for each group, lane and direction;
//! see [`ruleset`]. They are changed by one `nft -f`, which happens as a whole or not at all, and read over
//! netlink. Rules of others are neither read nor touched.

mod about;
mod installed;
mod kernel;
mod parse;
mod ruleset;
mod trial;

use std::{
    collections::{HashMap, HashSet},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use self::{
    about::About,
    kernel::{Kernel, TABLE},
    parse::{Count, Family, Found, Tables},
    ruleset::Place,
};
use super::{error::MeterError, host, kernel::Before};
use crate::{
    accounting::{
        ident::{Group, Groups},
        reading::{Coverage, Epoch, GroupReading, Lanes, Layer, Snapshot, Window},
    },
    run,
};

pub use installed::{Installed, clean, clean_port};
pub(super) use installed::{
    clean_former, clean_left, filter_has_chains, has_filter, remove_filter,
};
pub use trial::try_here;

/// As the outputs write it.
const NAME: &str = "nft";
/// `nft` has this long for a change; a host with very many rules needs seconds.
const DEADLINE: Duration = Duration::from_secs(30);

/// The running meter.
///
/// It works in the network namespace of the thread that uses it, which must be the same one each time.
pub struct NftMeter {
    tool: PathBuf,
    kernel: Kernel,
    about: About,
    /// Room of the maps.
    size: u32,
    /// The generation of the host's rules in which ours were seen to be whole.
    whole: Option<u32>,
    /// What the last reading said.
    last: Counts,
    lost: Vec<String>,
    /// Whether this start made the tables.
    made: bool,
    /// Whether the tables go with this value.
    temporary: bool,
}

/// What the counters say, by entry and place.
type Counts = ruleset::Counts;

impl NftMeter {
    /// Begins to count `groups`. With `persist` the rules stay when this value goes. A start that finds rules
    /// of this boot, left so or by a run that was killed, goes on with them in the same epoch.
    ///
    /// Where the rules were damaged since they were booked, what is left of them begins another epoch with
    /// what it has counted after that.
    ///
    /// # Errors
    ///
    /// [`MeterError::NoTool`] without nft, [`MeterError::Denied`] without CAP_NET_ADMIN,
    /// [`MeterError::Unsupported`] without nf_tables for both versions of IP,
    /// [`MeterError::ForeignRules`] when a table of our name is not ours, [`MeterError::OtherRules`] when
    /// ours count for a run with `persist` and this is none. Nothing is changed then.
    pub fn start(groups: &Groups, persist: bool, before: Before<'_>) -> Result<Self, MeterError> {
        let tool = tool()?;
        let mut kernel = Kernel::open()?;
        let found = kernel.tables(&Family::OURS)?;
        not_foreign(&found.tables)?;
        let former = installed::of_our_name(&mut kernel, &Family::FORMER)?;
        not_foreign(&former)?;
        let about = ruleset::about(&found.tables);
        for (tables, about) in
            [(&found.tables, about.as_ref()), (&former, ruleset::about(&former).as_ref())]
        {
            if !persist && about.is_some_and(About::goes_on) {
                return Err(MeterError::OtherRules {
                    what: names(tables.keys()),
                    reason: "go on counting; run with --persist to take them over".into(),
                });
            }
        }
        let mut lost = Vec::new();
        match about {
            // Left to go on, or by a run that was killed: nobody has booked all that they counted.
            Some(about) if about.is_of_this_boot() => {
                let mut meter = Self::adopt(tool, kernel, about, &found, before.booked)?;
                meter.make(groups, persist)?;
                meter.temporary = !persist;
                return Ok(meter);
            }
            Some(_) => tracing::info!("nft rules of an earlier boot are replaced"),
            None if found.tables.is_empty() => {}
            None => lost.push("the notes in the chain about".into()),
        }
        let gap = before.gap || !lost.is_empty();
        let (epoch, since, boot) = (host::random(), seconds(), host::boot_id());
        let about = About { epoch, since, boot, persist, gap, entries: Vec::new() };
        let about = about.watching(groups);
        let size = ruleset::size_for(&about);
        let script = ruleset::script(&about, size, &HashMap::new());
        set(&tool, "set the nft rules", &script)?;
        Ok(Self {
            tool,
            kernel,
            about,
            size,
            whole: None,
            last: HashMap::new(),
            lost,
            made: true,
            temporary: !persist,
        })
    }

    /// Goes on with the rules of an earlier process, as if it had read them last when it was booked.
    fn adopt(
        tool: PathBuf,
        kernel: Kernel,
        about: About,
        found: &Found,
        booked: Option<&Snapshot>,
    ) -> Result<Self, MeterError> {
        let size = size_of(&found.tables);
        let wanted = ruleset::wanted(&about, size);
        let (lost, left) = ruleset::compare(&wanted, about.epoch, &found.tables);
        let booked = booked.filter(|last| last.meter == NAME && last.epoch.0 == about.epoch);
        let last = match booked {
            Some(last) => ruleset::counts_in(last, &about),
            None => ruleset::counts(&found.tables),
        };
        let mut meter = Self {
            tool,
            kernel,
            about,
            size,
            whole: lost.is_empty().then_some(found.generation),
            last,
            lost: Vec::new(),
            made: false,
            temporary: false,
        };
        if !lost.is_empty() {
            meter.put_back(lost, &left)?;
        }
        Ok(meter)
    }

    /// Watches these groups and no others, in one step. Groups that stay do not miss a packet.
    ///
    /// # Errors
    ///
    /// [`MeterError::Tool`], and [`MeterError::ForeignRules`] when somebody put something into our tables;
    /// the rules are as they were then.
    pub fn watch(&mut self, groups: &Groups) -> Result<(), MeterError> {
        self.make(groups, self.about.persist)
    }

    /// Watches these groups, and says in the tables whether they are to go on without a process.
    fn make(&mut self, groups: &Groups, persist: bool) -> Result<(), MeterError> {
        let to = |about: &About| About { persist, ..about.watching(groups) };
        if to(&self.about) == self.about {
            return Ok(());
        }
        self.check()?;
        // A chain that is written anew would lose what somebody put into it.
        not_foreign(&self.kernel.tables(&Family::OURS)?.tables)?;
        // A repair begins an epoch with other entries.
        let to = to(&self.about);
        let (script, size) = ruleset::change(&self.about, &to, self.size);
        apply(&self.tool, "change the nft rules", &script)?;
        self.about = to;
        self.size = size;
        self.whole = None;
        Ok(())
    }

    /// Groups that are watched now.
    pub fn watched(&self) -> impl Iterator<Item = &Arc<Group>> {
        self.about.watched().map(|entry| &entry.group)
    }

    /// Reads all counters. Resets nothing. Rules that are gone are put back; the snapshot is then the
    /// first one of another epoch.
    ///
    /// # Errors
    ///
    /// [`MeterError::Netlink`], and what putting back fails with.
    pub fn read(&mut self) -> Result<Snapshot, MeterError> {
        let begin = now();
        let mut counts = match self.check()? {
            Some(counts) => counts,
            None => read(&mut self.kernel)?,
        };
        let lost = self.set_back(&counts);
        if lost > 0 {
            let words = vec![format!("{lost} counters were set back or removed")];
            self.put_back(words, &counts)?;
            counts = read(&mut self.kernel)?;
        }
        let window = Window { begin, end: now() };
        let snapshot = snapshot(&self.about, &counts, window, self.about.gap);
        self.last = counts;
        Ok(snapshot)
    }

    /// What was gone and was put back since this was last asked, for people.
    pub fn losses(&mut self) -> Vec<String> {
        std::mem::take(&mut self.lost)
    }

    /// Takes off what this start made, because it cannot go on. What an earlier one left goes on.
    pub fn give_up(mut self) {
        self.temporary = self.made;
    }

    /// Looks whether ours are all there, if anybody changed any rule of the host since the last look.
    /// Gives the counters where they were listed on the way.
    fn check(&mut self) -> Result<Option<Counts>, MeterError> {
        let generation = self.kernel.generation()?;
        if self.whole == Some(generation) {
            return Ok(None);
        }
        let found = self.kernel.tables(&Family::OURS)?;
        let wanted = ruleset::wanted(&self.about, self.size);
        let (lost, left) = ruleset::compare(&wanted, self.about.epoch, &found.tables);
        if lost.is_empty() {
            self.whole = Some(found.generation);
            return Ok(Some(left));
        }
        not_foreign(&found.tables)?;
        self.put_back(lost, &left)?;
        Ok(None)
    }

    /// Puts both tables back and begins another epoch. What the counters that are left have counted since
    /// the last reading is where the new ones begin, so that it is not lost.
    fn put_back(&mut self, lost: Vec<String>, left: &Counts) -> Result<(), MeterError> {
        let mut about =
            About { epoch: host::random(), since: seconds(), gap: true, ..self.about.clone() };
        let fresh = |(key, count): (&(u32, Place), &Count)| {
            (*key, since(*count, self.last.get(key).copied().unwrap_or_default()))
        };
        let begin: Counts =
            left.iter().map(fresh).filter(|(_, count)| *count != Count::default()).collect();
        let unread: HashSet<u32> = begin.keys().map(|(id, _)| *id).collect();
        about.entries.retain(|entry| entry.watched || unread.contains(&entry.id));
        let begin =
            begin.iter().map(|(key, count)| (ruleset::counter(key.0, key.1), *count)).collect();
        let size = ruleset::size_for(&about);
        let script = ruleset::script(&about, size, &begin);
        apply(&self.tool, "put the nft rules back", &script)?;
        self.about = about;
        self.size = size;
        self.whole = None;
        self.last.clear();
        self.lost.extend(lost);
        Ok(())
    }

    /// How many counters are smaller than at the last reading, or not there.
    fn set_back(&self, counts: &Counts) -> usize {
        let fell = |(key, last): &(&(u32, Place), &Count)| {
            counts.get(key).is_none_or(|now| now.bytes < last.bytes || now.packets < last.packets)
        };
        self.last.iter().filter(fell).count()
    }
}

impl Drop for NftMeter {
    fn drop(&mut self) {
        if self.temporary
            && let Err(error) = installed::remove(&self.tool, &mut self.kernel)
        {
            tracing::warn!(%error, "nft rules stay behind");
        }
    }
}

/// What was counted after `last`. A counter that fell was set back to zero in between.
fn since(now: Count, last: Count) -> Count {
    match (now.packets.checked_sub(last.packets), now.bytes.checked_sub(last.bytes)) {
        (Some(packets), Some(bytes)) => Count { packets, bytes },
        _ => now,
    }
}

fn tool() -> Result<PathBuf, MeterError> {
    run::find(&["nft"]).ok_or(MeterError::NoTool { meter: NAME, tools: "nft" })
}

/// As nft writes them.
fn names<'a>(families: impl IntoIterator<Item = &'a Family>) -> String {
    let names: Vec<_> =
        families.into_iter().map(|family| format!("{} {TABLE}", family.name())).collect();
    match names.as_slice() {
        [one] => format!("the nft table {one}"),
        several => format!("the nft tables {}", several.join(" and ")),
    }
}

fn not_foreign(tables: &Tables) -> Result<(), MeterError> {
    for (family, table) in tables {
        if let Some(reason) = ruleset::foreign(*family, table) {
            return Err(MeterError::ForeignRules { what: names([family]), reason });
        }
    }
    Ok(())
}

/// Sets both tables. Kernels may have nf_tables without one version of IP, and what nft says then does not
/// tell which.
fn set(tool: &Path, doing: &'static str, script: &str) -> Result<(), MeterError> {
    let Err(error) = apply(tool, doing, script) else {
        return Ok(());
    };
    let refused = Family::OURS.map(|family| {
        let probed = run::run(tool, &["-c", "-f", "-"], &ruleset::probe(family), DEADLINE);
        probed.ok().filter(|said| !said.done()).map(|said| first_line(&said.stderr))
    });
    let (version, said) = match refused {
        [Some(said), None] => ("IPv4", said),
        [None, Some(said)] => ("IPv6", said),
        _ => return Err(error),
    };
    Err(MeterError::Unsupported {
        feature: "counting with nftables",
        reason: format!("the kernel takes no rules of nftables for {version}: {said}"),
    })
}

/// Changes rules, all at once.
fn apply(tool: &Path, doing: &'static str, script: &str) -> Result<(), MeterError> {
    let said = run::run(tool, &["-f", "-"], script, DEADLINE);
    let said = match said {
        Ok(said) if said.done() => return Ok(()),
        Ok(said) => said.stderr,
        Err(error) => error.to_string(),
    };
    Err(MeterError::Tool { doing, tool: tool.display().to_string(), said: first_line(&said) })
}

/// What nft says first, safe to print. The other lines repeat the rules.
fn first_line(said: &str) -> String {
    let first = said.lines().next().unwrap_or("nothing");
    first.chars().take(200).collect::<String>().escape_debug().to_string()
}

fn read(kernel: &mut Kernel) -> Result<Counts, MeterError> {
    let mut counts = Counts::new();
    kernel.counters(&mut |family, name, count| {
        if let Some(key) = ruleset::owned(family, name) {
            counts.insert(key, count);
        }
    })?;
    Ok(counts)
}

fn size_of(tables: &Tables) -> u32 {
    let maps = tables.values().flat_map(|table| &table.maps);
    maps.map(|map| map.size).min().unwrap_or(0)
}

fn snapshot(about: &About, counts: &Counts, window: Window, gap: bool) -> Snapshot {
    let mut at: HashMap<u32, usize> = HashMap::with_capacity(about.entries.len());
    let mut groups: Vec<GroupReading> = Vec::with_capacity(about.entries.len());
    for entry in &about.entries {
        at.insert(entry.id, groups.len());
        groups.push(GroupReading {
            group: Arc::clone(&entry.group),
            lanes: Lanes::default(),
            watched: entry.watched,
        });
    }
    for ((id, place), count) in counts {
        if let Some(reading) = at.get(id).and_then(|n| groups.get_mut(*n)) {
            reading.lanes.lane_mut(place.lane).add(place.direction, count.bytes, count.packets);
        }
    }
    Snapshot {
        meter: NAME,
        layer: Layer::L3Skb,
        epoch: Epoch(about.epoch),
        since: Some(about.since),
        window,
        coverage: if gap { Coverage::Gap } else { Coverage::Complete },
        groups: groups.into(),
        skipped: None,
    }
}

/// Nanoseconds of Unix time.
fn now() -> i128 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |elapsed| i128::try_from(elapsed.as_nanos()).unwrap_or(i128::MAX))
}

fn seconds() -> i64 {
    i64::try_from(now() / 1_000_000_000).unwrap_or(0)
}
