//! Ways of counting, put in place and taken away again.

use std::{os::fd::OwnedFd, path::Path};

use anyhow::{Context as _, Result, bail, ensure};
use traffic_ebpf::abi::PARTS;
use traffic_user::{
    accounting::ident::{Group, Groups, Transport},
    meter::{
        Before,
        devices::{Choice, Wanted},
        ebpf::{EbpfMeter, Hook, Options},
        iptables::IptablesMeter,
        nft::NftMeter,
    },
};

use super::{
    kernel::{Kind, Program},
    lab::{self, Lab},
    rules,
};

/// A way of counting, or of not counting.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Way {
    /// Nothing: what the others are compared with.
    None,
    /// Nothing once more. What it seems to add is the error of the method.
    NoneAgain,
    /// A tcx program that does nothing: the cost of the hook.
    Empty,
    /// Ours at tcx.
    Tcx,
    /// Ours at clsact.
    Tc,
    /// Ours at a cgroup.
    Cgroup,
    /// Ours with nftables rules.
    NftMeter,
    /// Ours with iptables rules, in the back end nft, which can be taken away again.
    IptablesMeter,
    /// One nftables rule with a counter, for one of the ports.
    NftRule,
    /// An nftables set with a counter for each port.
    NftSet,
    /// iptables over nftables, two rules a port and direction.
    IptablesNft,
    /// iptables as it was, two rules a port and direction. Once used, its hooks stay until the
    /// network namespace ends.
    IptablesLegacy,
}

impl Way {
    /// For people and for the JSON report.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::None => "nothing",
            Self::NoneAgain => "nothing, again (A/A)",
            Self::Empty => "empty program at tcx",
            Self::Tcx => "traffic at tcx",
            Self::Tc => "traffic at tc (clsact)",
            Self::Cgroup => "traffic at a cgroup",
            Self::NftMeter => "traffic with nft",
            Self::IptablesMeter => "traffic with iptables",
            Self::NftRule => "nft, a single rule",
            Self::NftSet => "nft, a set with counters",
            Self::IptablesNft => "iptables-nft",
            Self::IptablesLegacy => "iptables-legacy",
        }
    }

    /// Whether it can be taken off and put back in a moment, so that it is timed in turns with nothing.
    pub(super) const fn is_quick(self) -> bool {
        matches!(self, Self::None | Self::NoneAgain | Self::Empty | Self::Tcx | Self::Tc)
    }

    /// Puts it in place in this thread's network namespace.
    pub(super) fn install(self, lab: &Lab, ports: &[u16], cgroup: &Path) -> Result<Installed> {
        let nft = |rules: String| lab::run(&["nft", "-f", "-"], &rules).map(|_| Installed::Nft);
        let installed = match self {
            Self::None | Self::NoneAgain => Ok(Installed::Nothing),
            Self::Empty => empty(lab.device.index),
            Self::Tcx => ours(lab, ports, Hook::Tcx, cgroup),
            Self::Tc => ours(lab, ports, Hook::Tc, cgroup),
            Self::Cgroup => ours(lab, ports, Hook::Cgroup, cgroup),
            Self::NftMeter => Ok(Installed::OursNft(Box::new(NftMeter::start(
                &groups(ports)?,
                false,
                Before::default(),
            )?))),
            Self::IptablesMeter => {
                // Where the host's rules are, there are ours.
                lab::run(&["iptables-nft-restore"], "*filter\n:BENCH - [0:0]\nCOMMIT\n")?;
                let meter = IptablesMeter::start(&groups(ports)?, false, Before::default())?;
                Ok(Installed::OursIptables(Box::new(meter)))
            }
            Self::NftRule => nft(rules::nft_rule(ports.last().copied().unwrap_or(1))),
            Self::NftSet => nft(rules::nft_set(ports)),
            Self::IptablesNft => iptables("nft", ports),
            Self::IptablesLegacy => iptables("legacy", ports),
        };
        installed.with_context(|| format!("count with: {}", self.name()))
    }
}

/// A way that is in place.
pub(super) enum Installed {
    /// Nothing.
    Nothing,
    /// A program, held by its links.
    Links { program: Program, links: Option<[OwnedFd; 2]> },
    /// Ours.
    Ours(Box<EbpfMeter>),
    /// Ours, with its table.
    OursNft(Box<NftMeter>),
    /// Ours, with its chains.
    OursIptables(Box<IptablesMeter>),
    /// A table.
    Nft,
    /// Rules of this back end.
    Iptables(&'static str),
}

impl Installed {
    /// Packets and bytes that entered and were counted; `None` where nothing counts.
    pub(super) fn counted(&mut self) -> Result<Option<(u64, u64)>> {
        match self {
            Self::Nothing | Self::Links { .. } => Ok(None),
            Self::Ours(meter) => {
                let mut words = Vec::new();
                meter.sum_into(&mut words)?;
                // Parts of what enters and of what leaves take turns.
                let part = words.len().div_ceil(PARTS as usize).max(1);
                let entered = || words.chunks(part).step_by(2).flatten();
                Ok(Some((entered().skip(1).step_by(2).sum(), entered().step_by(2).sum())))
            }
            Self::OursNft(meter) => {
                let total = meter.read()?.total();
                Ok(Some((total.input_packets, total.input_bytes)))
            }
            Self::OursIptables(meter) => {
                let total = meter.read()?.total();
                Ok(Some((total.input_packets, total.input_bytes)))
            }
            Self::Nft => {
                let text = lab::run(&["nft", "-j", "list", "ruleset"], "")?;
                Ok(Some(rules::nft_counted(&serde_json::from_str(&text)?)))
            }
            Self::Iptables(back_end) => {
                let save = format!("iptables-{back_end}-save");
                let text = lab::run(&[save.as_str(), "-c"], "")?;
                Ok(Some(rules::iptables_counted(&text)))
            }
        }
    }

    /// Takes one that is [quick](Way::is_quick) off for a moment, or puts it back.
    pub(super) fn set(&mut self, lab: &Lab, on: bool) -> Result<()> {
        match self {
            Self::Nothing => {}
            Self::Links { program, links } => {
                if links.is_some() != on {
                    *links = on.then(|| program.attach_tcx(lab.device.index)).transpose()?;
                }
            }
            Self::Ours(meter) => {
                let choice = if on { lab::only(&lab.device) } else { Choice::default() };
                if let Some(error) = meter.count_on(&choice).into_iter().next() {
                    return Err(error.into());
                }
                let attached = meter.devices().count();
                ensure!(attached == usize::from(on), "attached to {attached} devices");
            }
            _ => bail!("rules are not taken off for a moment"),
        }
        Ok(())
    }

    /// Takes it away.
    pub(super) fn remove(self) -> Result<()> {
        match self {
            Self::Nothing | Self::Links { .. } | Self::Ours(_) | Self::OursNft(_) => {}
            Self::OursIptables(meter) => {
                drop(meter);
                // The chains that iptables itself has made would stay at their hooks.
                lab::run(&["nft", "flush", "ruleset"], "")?;
            }
            Self::Nft | Self::Iptables("nft") => {
                lab::run(&["nft", "flush", "ruleset"], "")?;
            }
            // Its hooks stay; the namespace goes.
            Self::Iptables(_) => {}
        }
        Ok(())
    }
}

fn empty(ifindex: u32) -> Result<Installed> {
    let program = Program::empty(Kind::Classifier)?;
    let links = Some(program.attach_tcx(ifindex)?);
    Ok(Installed::Links { program, links })
}

/// Groups of one port each.
pub(super) fn groups(ports: &[u16]) -> Result<Groups> {
    let groups = ports.iter().filter_map(|port| Group::single(*port, Transport::Both)).collect();
    Ok(Groups::new(groups, ports.len())?)
}

/// How ours is started.
pub(super) fn options(hook: Hook, cgroup: &Path) -> Options {
    Options {
        hook: Some(hook),
        cgroup: Some(cgroup.into()),
        wanted: Wanted::default(),
        persist: false,
        // Nothing is pinned, and nothing that others pinned is looked at.
        pins: format!("/sys/fs/bpf/traffic-bench-{}", std::process::id()).into(),
        log: false,
        gap: false,
    }
}

fn ours(lab: &Lab, ports: &[u16], hook: Hook, cgroup: &Path) -> Result<Installed> {
    let mut meter = EbpfMeter::start(&options(hook, cgroup), &groups(ports)?)?;
    let failed = meter.count_on(&lab::only(&lab.device));
    if let Some(error) = failed.into_iter().next() {
        return Err(error.into());
    }
    let attached = meter.devices().count();
    ensure!(
        hook == Hook::Cgroup || attached == 1,
        "attached to {attached} devices in the place of one"
    );
    Ok(Installed::Ours(Box::new(meter)))
}

fn iptables(back_end: &'static str, ports: &[u16]) -> Result<Installed> {
    let restore = format!("iptables-{back_end}-restore");
    lab::run(&[&restore], &rules::iptables(ports))?;
    Ok(Installed::Iptables(back_end))
}
