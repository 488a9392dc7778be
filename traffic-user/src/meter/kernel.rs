//! The kernel's meters as one: eBPF programs, and where they cannot run, rules of nftables or iptables.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    devices::{self, Choice, Device, Wanted},
    ebpf::{self, EbpfMeter, Pinned},
    error::{MeterError, chain},
    host::{self, Reasons, Trial},
    iptables::{self, IptablesMeter},
    nft::{self, NftMeter},
    takeover::{self, Handover, Left},
};
use crate::accounting::{
    ident::{Group, Groups, Hook, MeterKind},
    reading::Snapshot,
    relay::Devices,
};

/// How to count.
#[derive(Clone, Debug)]
pub struct Options {
    /// `None` takes the best that works.
    pub kind: Option<MeterKind>,
    /// Folder in cgroup2 for the cgroup hook; `None` is its root.
    pub cgroup: Option<PathBuf>,
    /// Devices that are to be counted, as [`count_on`](Meter::count_on) will say: with them the best meter is
    /// chosen.
    pub wanted: Wanted,
    /// Go on counting when this process ends, and take over what an earlier one left.
    pub persist: bool,
    /// Folder of the pins on bpffs.
    pub pins: PathBuf,
    /// Log each packet; eBPF only.
    pub log: bool,
    /// Whether what an earlier run left to count is [`gone`], so that a new epoch begins with a gap.
    pub gap: bool,
}

impl Options {
    fn ebpf(&self, hook: Option<Hook>) -> ebpf::Options {
        let Self { kind: _, cgroup, wanted, persist, pins, log, gap } = self.clone();
        ebpf::Options { hook, cgroup, wanted, persist, pins, log, gap }
    }
}

/// What was there before rules begin to count.
#[derive(Clone, Copy, Debug, Default)]
pub struct Before<'a> {
    /// What was last made use of, of this kind of meter.
    pub booked: Option<&'a Snapshot>,
    /// Whether what an earlier run left to count is gone.
    pub gap: bool,
}

/// A running meter of the kernel's bytes.
pub struct Meter {
    source: Source,
    passed_over: Reasons,
    /// Devices whose own counters are read beside rules.
    beside: Vec<Device>,
    /// Where another kind of meter may have left something to count, as long as nobody looked.
    left: Option<Left>,
}

/// Adding a source makes the compiler list every place to think about.
enum Source {
    Ebpf(Box<EbpfMeter>),
    Nft(NftMeter),
    Iptables(IptablesMeter),
}

impl Meter {
    /// Begins, or with `persist` goes on, to count `groups`; on devices only once
    /// [`count_on`](Self::count_on) names them.
    ///
    /// `booked` are the readings up to which all that was counted is in the ledger. Rules that were damaged
    /// since then lose nothing of what the rest of them has counted.
    ///
    /// The caller holds the [`Lock`](super::Lock) of this network namespace: without it the next start takes
    /// rules of a run without `persist` for those of a killed one, and goes on with them.
    ///
    /// # Errors
    ///
    /// With `auto`, whatever a meter that could work has against it; where none can, all reasons
    /// together. Nothing is left attached or set then.
    pub fn start(
        options: &Options,
        groups: &Groups,
        booked: &[&Snapshot],
    ) -> Result<Self, MeterError> {
        let (source, passed_over) = match options.kind {
            Some(kind) => (Source::start(kind, options, groups, booked)?, Vec::new()),
            None => Source::best(options, groups, booked)?,
        };
        let left = Some(Left { pins: options.pins.clone(), persist: options.persist });
        Ok(Self { source, passed_over, beside: Vec::new(), left })
    }

    /// Counts on the chosen devices and no others; rules count wherever they are, and
    /// [`own_counters`](Self::own_counters) are those of the chosen ones. Gives what could not be attached;
    /// the rest counts.
    pub fn count_on(&mut self, choice: &Choice) -> Vec<MeterError> {
        match &mut self.source {
            Source::Ebpf(meter) => meter.count_on(choice),
            Source::Nft(_) | Source::Iptables(_) => {
                self.beside.clone_from(&choice.devices);
                Vec::new()
            }
        }
    }

    /// What the chosen devices have counted themselves, beside rules, which see their groups alone. `None`
    /// where programs count on devices, and without a device.
    ///
    /// # Errors
    ///
    /// [`MeterError::Netlink`].
    pub fn own_counters(&self) -> Result<Option<Devices>, MeterError> {
        if self.beside.is_empty() {
            return Ok(None);
        }
        let readings = devices::own_counters(&self.beside)?;
        Ok(Some(Devices { boot: host::boot_id(), readings }))
    }

    /// Takes off what this start attached, pinned or set, because it cannot go on. What an earlier one
    /// left to count goes on.
    pub fn give_up(self) {
        match self.source {
            Source::Ebpf(meter) => meter.give_up(),
            Source::Nft(meter) => meter.give_up(),
            Source::Iptables(meter) => meter.give_up(),
        }
    }

    /// Watches these groups and no others. Groups that stay do not miss a packet.
    ///
    /// # Errors
    ///
    /// [`MeterError::Full`] when they do not fit; or what the tools say. Nothing changes then.
    pub fn watch(&mut self, groups: &Groups) -> Result<(), MeterError> {
        match &mut self.source {
            Source::Ebpf(meter) => meter.watch(groups),
            Source::Nft(meter) => meter.watch(groups),
            Source::Iptables(meter) => meter.watch(groups),
        }
    }

    /// Groups that are watched now.
    pub fn watched(&self) -> Box<dyn Iterator<Item = &Arc<Group>> + '_> {
        match &self.source {
            Source::Ebpf(meter) => Box::new(meter.watched()),
            Source::Nft(meter) => Box::new(meter.watched()),
            Source::Iptables(meter) => Box::new(meter.watched()),
        }
    }

    /// Which meter it is.
    pub fn kind(&self) -> MeterKind {
        match &self.source {
            Source::Ebpf(meter) => MeterKind::Ebpf(meter.hook()),
            Source::Nft(_) => MeterKind::Nft,
            Source::Iptables(_) => MeterKind::Iptables,
        }
    }

    /// Meters that `auto` would have preferred, and why they are not used.
    pub fn passed_over(&self) -> &[(MeterKind, String)] {
        &self.passed_over
    }

    /// Takes the place of another kind of meter of ours that was left to count, once this one counts: on
    /// devices only when there is one. Without `persist` only that of rules which a killed run left. Looks
    /// for it until that was done once. Gives what was taken off, and why something was not: it goes on
    /// then, and is not looked for again.
    pub fn take_over(&mut self) -> (Vec<Handover>, Option<MeterError>) {
        if self.waits() {
            return (Vec::new(), None);
        }
        match self.left.take() {
            Some(left) => takeover::take_over(self, &left),
            None => (Vec::new(), None),
        }
    }

    /// Whether it is yet to take the place of what may be there, because it does not count on any device.
    pub fn waits(&self) -> bool {
        self.left.is_some() && self.kind().on_devices() && self.devices().next().is_none()
    }

    /// Devices that are counted now; none where devices do not matter.
    pub fn devices(&self) -> Box<dyn Iterator<Item = &Device> + '_> {
        match &self.source {
            Source::Ebpf(meter) => Box::new(meter.devices()),
            Source::Nft(_) | Source::Iptables(_) => Box::new(std::iter::empty()),
        }
    }

    /// Reads all counters. Resets nothing. Rules that are gone are put back: see
    /// [`losses`](Self::losses).
    ///
    /// # Errors
    ///
    /// [`MeterError::Map`], or what the tools say.
    pub fn read(&mut self) -> Result<Snapshot, MeterError> {
        match &mut self.source {
            Source::Ebpf(meter) => meter.read(),
            Source::Nft(meter) => meter.read(),
            Source::Iptables(meter) => meter.read(),
        }
    }

    /// What was found gone since this was last asked, so that packets were missed: a kind of event, and what
    /// happened, for people.
    pub fn losses(&mut self) -> Vec<(&'static str, String)> {
        let name = self.kind().name();
        let rules = |losses: Vec<String>| {
            let said = |loss| format!("{name}: rules were gone and are put back: {loss}");
            losses.into_iter().map(|loss| ("rules-lost", said(loss))).collect()
        };
        match &mut self.source {
            Source::Ebpf(meter) => {
                let said = |loss| ("gap", format!("{name}: packets were missed: {loss}"));
                meter.losses().into_iter().map(said).collect()
            }
            Source::Nft(meter) => rules(meter.losses()),
            Source::Iptables(meter) => rules(meter.losses()),
        }
    }

    /// Hands what the programs logged to the `log` facade.
    pub fn flush_log(&mut self) {
        if let Source::Ebpf(meter) = &mut self.source {
            meter.flush_log();
        }
    }
}

impl Source {
    fn start(
        kind: MeterKind,
        options: &Options,
        groups: &Groups,
        booked: &[&Snapshot],
    ) -> Result<Self, MeterError> {
        let persist = options.persist;
        let booked = booked.iter().find(|booked| booked.meter == kind.name()).copied();
        let before = Before { booked, gap: options.gap };
        Ok(match kind {
            MeterKind::Ebpf(hook) => {
                Self::Ebpf(Box::new(EbpfMeter::start(&options.ebpf(Some(hook)), groups)?))
            }
            MeterKind::Nft => Self::Nft(NftMeter::start(groups, persist, before)?),
            MeterKind::Iptables => Self::Iptables(IptablesMeter::start(groups, persist, before)?),
        })
    }

    /// The first that works, and why better ones do not.
    fn best(
        options: &Options,
        groups: &Groups,
        booked: &[&Snapshot],
    ) -> Result<(Self, Reasons), MeterError> {
        let mut reasons = Reasons::new();
        match EbpfMeter::start(&options.ebpf(None), groups) {
            Ok(meter) => {
                let passed_over = meter.passed_over().iter().cloned();
                reasons.extend(passed_over.map(|(hook, why)| (MeterKind::Ebpf(hook), why)));
                return Ok((Self::Ebpf(Box::new(meter)), reasons));
            }
            Err(error) if rules_out(&error) => {
                let why = chain(&error);
                reasons.extend(Hook::ALL.map(|hook| (MeterKind::Ebpf(hook), why.clone())));
            }
            Err(error) => return Err(error),
        }
        for kind in [MeterKind::Nft, MeterKind::Iptables] {
            match Self::start(kind, options, groups, booked) {
                Ok(source) => {
                    tracing::warn!(
                        meter = kind.name(),
                        why = reasons.first().map(|(_, why)| why.as_str()),
                        "eBPF cannot run here: rules count, in socket buffers and not as on the wire (l3-skb)"
                    );
                    return Ok((source, reasons));
                }
                Err(error) if rules_out(&error) => reasons.push((kind, chain(&error))),
                Err(error) => return Err(error),
            }
        }
        Err(none_works(reasons))
    }
}

/// Whether an error means that this kind of meter cannot work here, so that another may be tried. The
/// others mean that it could, and what to do first: so does a binary without programs, which says nothing
/// about this host.
fn rules_out(error: &MeterError) -> bool {
    matches!(
        error,
        MeterError::Denied { .. }
            | MeterError::Unsupported { .. }
            | MeterError::LockedMemory { .. }
            | MeterError::Load { .. }
            | MeterError::Object(_)
            | MeterError::NoCgroup { .. }
            | MeterError::NoTool { .. }
            | MeterError::Tool { .. }
    )
}

/// All reasons in one error. One that is the same for all hooks is said once.
fn none_works(reasons: Reasons) -> MeterError {
    let mut said: Vec<(String, String)> = Vec::new();
    for (kind, why) in reasons {
        match said.last_mut() {
            Some((names, last)) if *last == why => {
                names.push_str(", ");
                names.push_str(kind.name());
            }
            _ => said.push((kind.name().to_owned(), why)),
        }
    }
    let said: Vec<_> = said.into_iter().map(|(names, why)| format!("{names}: {why}")).collect();
    MeterError::Unsupported { feature: "counting", reason: said.join("; ") }
}

/// Tries every meter without touching anything that counts: for `doctor`.
pub fn try_all(cgroup: Option<&Path>) -> Vec<Trial> {
    let mut trials: Vec<Trial> = match ebpf::try_all(cgroup) {
        Ok(trials) => {
            trials.into_iter().map(|(hook, said)| (MeterKind::Ebpf(hook), said)).collect()
        }
        Err(error) => {
            let why = chain(&error);
            Hook::ALL.map(|hook| (MeterKind::Ebpf(hook), Err(why.clone()))).into()
        }
    };
    trials.push((MeterKind::Nft, nft::try_here()));
    trials.push((MeterKind::Iptables, iptables::try_here()));
    trials
}

/// Whether counters of a meter that were left to go on without a process are not there any more; eBPF has
/// them at `pins`. Those that nobody may look at are taken for there: the start says what it lacks.
pub fn gone(meter: &str, pins: &Path) -> bool {
    let is_gone = || -> Result<bool, MeterError> {
        Ok(match meter {
            "nft" => nft::Installed::open()?.is_none() && nft::Installed::open_former()?.is_none(),
            "iptables" => iptables::Installed::open()?.is_none(),
            _ => match Pinned::open(pins)? {
                Some(pinned) => !pinned.is_here()?,
                None => true,
            },
        })
    };
    is_gone().unwrap_or(false)
}

/// What goes on counting without a daemon: pins or rules, read once.
///
/// # Errors
///
/// When it is there and cannot be read. Rules that this user may not list are taken for absent here; whoever
/// says so asks [`rules_installed`].
pub fn installed(pins: &Path) -> Result<Option<(Snapshot, Vec<Device>)>, MeterError> {
    if let Some(pinned) = Pinned::open(pins)? {
        return Ok(Some((pinned.read()?, pinned.devices()?)));
    }
    match rules_installed() {
        Err(MeterError::Denied { .. }) => Ok(None),
        rules => Ok(rules?.map(|snapshot| (snapshot, Vec::new()))),
    }
}

/// What rules of ours count, whoever set them, read once.
///
/// # Errors
///
/// [`MeterError::Denied`] when this user may not list rules, so that nobody knows; and when they are there
/// and cannot be read.
pub fn rules_installed() -> Result<Option<Snapshot>, MeterError> {
    if let Some(rules) = or_no_tool(nft::Installed::open())? {
        return rules.read().map(Some);
    }
    if let Some(rules) = or_no_tool(nft::Installed::open_former())? {
        return rules.read().map(Some);
    }
    or_no_tool(iptables::Installed::open())?.map(|rules| rules.read()).transpose()
}

/// Without the tools that set rules, or the kernel's part for them, there are none.
fn or_no_tool<T>(opened: Result<Option<T>, MeterError>) -> Result<Option<T>, MeterError> {
    match opened {
        Err(MeterError::NoTool { .. } | MeterError::Unsupported { .. }) => Ok(None),
        opened => opened,
    }
}

/// Without the kernel's part for rules there are none. That the tool is missing is found out only where there
/// is something to take off.
fn or_unsupported(cleaned: Result<Vec<String>, MeterError>) -> Result<Vec<String>, MeterError> {
    match cleaned {
        Err(MeterError::Unsupported { .. }) => Ok(Vec::new()),
        cleaned => cleaned,
    }
}

/// Takes off all of ours and nothing else: pins, programs, rules. Says what; with `dry_run` only that.
///
/// # Errors
///
/// What could not be taken off. What came before it is off.
pub fn clean(pins: &Path, dry_run: bool) -> Result<Vec<String>, MeterError> {
    let mut said = ebpf::clean(pins, dry_run)?;
    said.extend(clean_rules(dry_run)?);
    Ok(said)
}

/// Takes off all rules of ours and nothing else. Says what; with `dry_run` only that.
///
/// # Errors
///
/// As [`clean`].
pub fn clean_rules(dry_run: bool) -> Result<Vec<String>, MeterError> {
    let mut said = Vec::new();
    for cleaned in [nft::clean(dry_run), iptables::clean(dry_run)] {
        said.extend(or_unsupported(cleaned)?);
    }
    Ok(said)
}

/// Takes off the rules of ours that count the group with this port. Says what; with `dry_run` only that.
///
/// # Errors
///
/// As [`clean`].
pub fn clean_rules_of(port: u16, dry_run: bool) -> Result<Vec<String>, MeterError> {
    let mut said = Vec::new();
    for cleaned in [nft::clean_port(port, dry_run), iptables::clean_port(port, dry_run)] {
        said.extend(or_unsupported(cleaned)?);
    }
    Ok(said)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_binary_without_programs_is_an_error_and_no_reason_to_count_with_rules() {
        assert!(!rules_out(&MeterError::Stub));
        let denied = MeterError::Denied { doing: "count", capability: "CAP_BPF".to_owned() };
        assert!(rules_out(&denied));
    }
}
