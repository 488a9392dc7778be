//! Programs onto devices and cgroups, and off again.

mod adopt;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use aya::{
    Ebpf,
    programs::{
        SchedClassifier, TcAttachType,
        links::Link as _,
        tc::{NlOptions, SchedClassifierLink, TcAttachOptions},
    },
};
use traffic_ebpf::abi::programs;

use super::{
    Hook,
    clsact::{self, Place, Side},
    link::{Link, cgroup_number},
    load, qdisc,
};
use crate::accounting::ident::shown;
use crate::meter::{
    devices::{self, Device, LinkKind},
    error::{MeterError, cause, chain},
};

pub(super) use adopt::{counts_another_cgroup, is_broken};

/// The only filter of ours at its priority.
const HANDLE: u32 = 1;

/// What keeps a program on its place.
#[derive(Debug)]
enum Held {
    /// A link, which ends with its descriptor unless it is pinned.
    Link(Link),
    /// A filter that is taken off when this is dropped.
    Filter(Option<SchedClassifierLink>),
}

/// Both sides of one device.
#[derive(Debug)]
struct OnDevice {
    device: Device,
    held: Vec<Held>,
    made_qdisc: bool,
}

/// A device that could not be attached to.
#[derive(Debug)]
struct Refused {
    /// What was told of it.
    why: String,
    tries: u32,
    last: Instant,
}

/// After so many tries a device has to wait: trying itself makes news of the device.
const TRIES: u32 = 3;
/// For so long.
const WAIT: Duration = Duration::from_secs(1);

impl Refused {
    fn waits(&self) -> bool {
        self.tries >= TRIES && self.last.elapsed() < WAIT
    }
}

/// Everything that is attached.
#[derive(Debug)]
pub(super) struct Attachments {
    hook: Hook,
    /// Folder of the pinned links: what is attached stays when we end.
    pins: Option<PathBuf>,
    devices: BTreeMap<u32, OnDevice>,
    cgroup: Vec<Link>,
    /// Another run has counted before, and devices were not looked at since.
    adopted: bool,
    /// Some bytes are known not to have been seen.
    missed: bool,
    /// Why, as far as it was not told yet.
    losses: Vec<String>,
    /// Devices that could not be attached to.
    refused: BTreeMap<u32, Refused>,
}

impl Attachments {
    pub(super) fn new(hook: Hook, pins: Option<PathBuf>) -> Self {
        Self {
            hook,
            pins,
            devices: BTreeMap::new(),
            cgroup: Vec::new(),
            adopted: false,
            missed: false,
            losses: Vec::new(),
            refused: BTreeMap::new(),
        }
    }

    /// Takes note that packets were missed, and why.
    fn lose(&mut self, what: String) {
        self.missed = true;
        self.losses.push(what);
    }

    /// What was lost since this was last asked, for people.
    pub(super) fn losses(&mut self) -> Vec<String> {
        std::mem::take(&mut self.losses)
    }

    /// Devices that are counted now.
    pub(super) fn devices(&self) -> impl Iterator<Item = &Device> {
        self.devices.values().map(|on| &on.device)
    }

    /// Whether a program of ours was off its place for a while.
    pub(super) fn missed(&self) -> bool {
        self.missed
    }

    /// Numbers of those of the devices on which what we attached does not stand any more. Notes that
    /// packets were missed, which has to be said before anything is put back; so, too, when an earlier run
    /// did not count on a device, because nobody did since it ended.
    pub(super) fn look(&mut self, wanted: &[Device]) -> BTreeSet<u32> {
        let mut lost = BTreeSet::new();
        for device in wanted {
            match self.devices.get(&device.index) {
                // A bond has the kind of the first device that joins it.
                Some(on) if on.device.link != device.link => {
                    self.lose(format!(
                        "{} begins its packets otherwise than before: those until now are not in groups",
                        shown(&device.name)
                    ));
                    lost.insert(device.index);
                }
                // What went with its device is not lost, even when the news of that is still on its way.
                Some(on) if !self.stands(on) && devices::is_there(device.index) => {
                    // Somebody took it off: put it back, and say so.
                    self.lose(format!(
                        "our {} on {} was taken off by another program: putting it back",
                        if self.hook == Hook::Tc { "filter" } else { "link" },
                        shown(&device.name),
                    ));
                    lost.insert(device.index);
                }
                Some(_) => {}
                // Of one that the programs do not understand nothing was promised.
                None if self.adopted && program_for(device, Side::Input).is_ok() => {
                    self.lose(format!(
                        "nothing counted on {} since the last run",
                        shown(&device.name)
                    ));
                }
                None => {}
            }
        }
        self.adopted = false;
        lost
    }

    /// Whether there is something to put on of which no news comes: links, unlike filters, end without any, and
    /// what was refused is tried again. A link whose device has gone away is not lost, and of that there will be
    /// news.
    pub(super) fn is_lost(&self) -> bool {
        let is_off = |on: &OnDevice| !self.stands(on) && devices::is_there(on.device.index);
        self.refused.values().any(|refused| !refused.waits())
            || (self.hook == Hook::Tcx && self.devices.values().any(is_off))
    }

    fn stands(&self, on: &OnDevice) -> bool {
        match self.hook {
            Hook::Tc => filters_stand(on.device.index),
            Hook::Tcx | Hook::Cgroup => on.held.iter().all(|held| match held {
                Held::Link(link) => stands_on(link, on.device.index),
                Held::Filter(_) => true,
            }),
        }
    }

    /// Counts on these devices and no others, and puts back what is `lost`. Gives what could not be
    /// attached, unless that was so for the same reason the last time.
    pub(super) fn sync(
        &mut self,
        ebpf: &mut Ebpf,
        wanted: &[Device],
        lost: &BTreeSet<u32>,
    ) -> Vec<MeterError> {
        let mut errors = Vec::new();
        let keep: BTreeSet<u32> = wanted.iter().map(|device| device.index).collect();
        let gone: Vec<u32> =
            self.devices.keys().copied().filter(|index| !keep.contains(index)).collect();
        self.refused.retain(|index, _| keep.contains(index));
        for index in gone {
            if let Some(on) = self.devices.remove(&index) {
                self.take_off(on);
            }
        }
        for device in wanted {
            if let Some(on) = self.devices.get_mut(&device.index) {
                on.device.clone_from(device);
                if !lost.contains(&device.index) {
                    continue;
                }
                // A side that still stands would be counted by two programs.
                match self.devices.remove(&device.index) {
                    // What nothing is put on again keeps nothing of ours.
                    Some(on) if program_for(device, Side::Input).is_err() => self.take_off(on),
                    Some(on) => forget_filters(on).into_iter().for_each(Link::end),
                    None => {}
                }
                if self.hook == Hook::Tc
                    && let Err(error) = take_off_ours(device)
                {
                    errors.push(error);
                }
            }
            if self.refused.get(&device.index).is_some_and(Refused::waits) {
                continue;
            }
            match self.put_on(ebpf, device) {
                Ok(on) => {
                    self.refused.remove(&device.index);
                    self.devices.insert(device.index, on);
                }
                Err(error) => {
                    let why = chain(&error);
                    let before = self.refused.get(&device.index);
                    let is_known = before.is_some_and(|before| before.why == why);
                    let tries = before.map_or(1, |before| before.tries.saturating_add(1));
                    let refused = Refused { why, tries, last: Instant::now() };
                    self.refused.insert(device.index, refused);
                    if is_known {
                        continue;
                    }
                    // Of a device that the programs do not understand nothing was promised.
                    let understood = !matches!(error, MeterError::LinkType { .. });
                    if understood && devices::is_there(device.index) {
                        self.lose(format!("{} is not counted", shown(&device.name)));
                    }
                    errors.push(error);
                }
            }
        }
        errors
    }

    /// Both sides of a device, or neither.
    fn put_on(&self, ebpf: &mut Ebpf, device: &Device) -> Result<OnDevice, MeterError> {
        // One that the programs do not understand is left as it is.
        for side in Side::BOTH {
            load::classifier(ebpf, program_for(device, side)?)?;
        }
        let mut on = OnDevice { device: device.clone(), held: Vec::new(), made_qdisc: false };
        if self.hook == Hook::Tc {
            on.made_qdisc = qdisc::make(device)?;
        }
        match self.put_on_sides(ebpf, &mut on) {
            Ok(()) => Ok(on),
            Err(error) => {
                self.take_off(on);
                Err(error)
            }
        }
    }

    fn put_on_sides(&self, ebpf: &mut Ebpf, on: &mut OnDevice) -> Result<(), MeterError> {
        let device = &on.device;
        for side in Side::BOTH {
            let name = program_for(device, side)?;
            let program = load::classifier(ebpf, name)?;
            let held = match self.hook {
                Hook::Tc => filter(program, device, side)?,
                Hook::Tcx | Hook::Cgroup => {
                    let program = load::descriptor(program.fd(), name)?;
                    let link = Link::tcx(program.as_fd(), device.index, side)
                        .and_then(|link| {
                            self.kept(link, &format!("tcx_{}_{}", device.index, side.name()))
                        })
                        .map_err(|error| attach_error(device, "tcx", said("tcx", error)))?;
                    Held::Link(link)
                }
            };
            on.held.push(held);
        }
        if self.hook == Hook::Tc {
            self.note_filters(device);
        }
        Ok(())
    }

    /// Pins a link, if what is attached is to stay.
    fn kept(&self, link: Link, name: &str) -> io::Result<Link> {
        match &self.pins {
            None => Ok(link),
            Some(folder) => link.pin(folder.join(name)),
        }
    }

    /// Counts at this cgroup and all below it, unless what was adopted does.
    pub(super) fn put_on_cgroup(&mut self, ebpf: &mut Ebpf, path: &Path) -> Result<(), MeterError> {
        if !self.cgroup.is_empty() {
            return Ok(());
        }
        let failed = |error: io::Error| MeterError::Attach {
            target: shown(&path.display().to_string()),
            hook: "cgroup",
            cause: cause(said("cgroup", error)),
        };
        let cgroup = File::open(path)
            .map_err(|_| MeterError::NoCgroup { path: path.display().to_string() })?;
        for side in Side::BOTH {
            let name = cgroup_program(side);
            let program = load::cgroup_skb(ebpf, name)?;
            let program = load::descriptor(program.fd(), name)?;
            let link = Link::cgroup(program.as_fd(), cgroup.as_fd(), side)
                .and_then(|link| self.kept(link, &cgroup_pin(side)))
                .map_err(failed)?;
            self.cgroup.push(link);
        }
        Ok(())
    }

    /// Whether the links do not lead to the cgroup at this path any more: it was removed, perhaps made
    /// again, or somebody took one off. Notes that packets were missed.
    pub(super) fn has_lost_cgroup(&mut self, path: &Path) -> bool {
        let number = cgroup_number(path).ok();
        let stand = number.is_some_and(|number| {
            self.cgroup.len() == Side::BOTH.len()
                && self.cgroup.iter().all(|link| stands_at(link, number))
        });
        if !stand && !self.cgroup.is_empty() {
            self.lose(format!(
                "our link at {} was taken off, or the cgroup made anew: counting begins there again",
                shown(&path.display().to_string())
            ));
        }
        self.missed |= !stand;
        !stand
    }

    /// How many pins and notes of what is attached are not there.
    pub(super) fn unpinned(&self) -> usize {
        let links = self.links().filter(|link| link.missing_pin().is_some()).count();
        links + self.devices().filter(|device| self.lacks_note(device)).count()
    }

    /// Puts them back.
    pub(super) fn pin_again(&self) -> Result<(), (PathBuf, io::Error)> {
        self.links().try_for_each(Link::pin_again)?;
        if self.hook == Hook::Tc {
            self.devices().for_each(|device| self.note_filters(device));
        }
        Ok(())
    }

    fn links(&self) -> impl Iterator<Item = &Link> {
        let held = self.devices.values().flat_map(|on| &on.held);
        let of_devices = held.filter_map(|held| match held {
            Held::Link(link) => Some(link),
            Held::Filter(_) => None,
        });
        of_devices.chain(&self.cgroup)
    }

    /// Takes the links at a cgroup off, whatever they lead to.
    pub(super) fn leave_cgroup(&mut self) {
        self.cgroup.drain(..).for_each(Link::end);
    }

    fn take_off(&self, on: OnDevice) {
        let OnDevice { device, held, made_qdisc } = on;
        held.into_iter().for_each(release);
        self.forget_note(&device);
        if made_qdisc {
            qdisc::drop_unused(&device);
        }
    }
}

impl Drop for Attachments {
    /// Leaves nothing behind, unless what is attached is to stay.
    fn drop(&mut self) {
        for (_, on) in std::mem::take(&mut self.devices) {
            if self.pins.is_some() {
                drop(forget_filters(on));
            } else {
                self.take_off(on);
            }
        }
    }
}

/// Takes our filters off every device of this network namespace, and the qdiscs that we made.
/// Gives a line for each; with `dry_run` only says them.
pub(super) fn sweep(present: &[Device], dry_run: bool) -> Result<Vec<String>, MeterError> {
    let mut said = Vec::new();
    for device in present {
        let ours: Vec<_> =
            clsact::filters(device.index)?.into_iter().filter(clsact::Filter::is_ours).collect();
        // Before our filters go, which may be what says so.
        let made_qdisc = qdisc::is_ours(device.index);
        for filter in &ours {
            let name = filter.program.as_deref().unwrap_or_default();
            said.push(format!("filter {name} on {} ({})", shown(&device.name), filter.side.name()));
            if !dry_run {
                take_off_filter(device, filter)?;
            }
        }
        if made_qdisc && clsact::place(device.index)? == Place::Clsact {
            let others = clsact::filters(device.index)?.iter().any(|filter| !filter.is_ours());
            if !others {
                said.push(format!("clsact qdisc on {}", shown(&device.name)));
                if !dry_run {
                    qdisc::drop_unused(device);
                }
            }
        }
    }
    if !dry_run {
        qdisc::tidy(present);
    }
    Ok(said)
}

/// Takes off every filter of ours that stands on the device.
fn take_off_ours(device: &Device) -> Result<(), MeterError> {
    for filter in clsact::filters(device.index)? {
        if filter.is_ours() {
            take_off_filter(device, &filter)?;
        }
    }
    Ok(())
}

fn take_off_filter(device: &Device, filter: &clsact::Filter) -> Result<(), MeterError> {
    let link = SchedClassifierLink::attached(
        &device.name,
        attach_type(filter.side),
        filter.priority,
        filter.handle.into(),
        None,
    )
    .map_err(|error| attach_error(device, "tc", error))?;
    link.detach().map_err(|error| attach_error(device, "tc", error))
}

/// Which of the devices are counted, as the pinned links or our filters say.
pub(super) fn counted(
    hook: Hook,
    links: &Path,
    present: Vec<Device>,
) -> Result<Vec<Device>, MeterError> {
    let mut found = Vec::new();
    for device in present {
        let counted = match hook {
            Hook::Tcx => {
                let path = links.join(format!("tcx_{}_in", device.index));
                path.exists()
                    && Link::open(&path).map_or(true, |link| stands_on(&link, device.index))
            }
            Hook::Tc => clsact::filters(device.index)?.iter().any(clsact::Filter::is_ours),
            Hook::Cgroup => false,
        };
        if counted {
            found.push(device);
        }
    }
    Ok(found)
}

fn program_for(device: &Device, side: Side) -> Result<&'static str, MeterError> {
    match (device.link, side) {
        (LinkKind::Ethernet, Side::Input) => Ok(programs::ETHERNET_IN),
        (LinkKind::Ethernet, Side::Output) => Ok(programs::ETHERNET_OUT),
        (LinkKind::Bare, Side::Input) => Ok(programs::BARE_IN),
        (LinkKind::Bare, Side::Output) => Ok(programs::BARE_OUT),
        (LinkKind::Other(arphrd), _) => {
            Err(MeterError::LinkType { device: shown(&device.name), arphrd })
        }
    }
}

fn cgroup_program(side: Side) -> &'static str {
    match side {
        Side::Input => programs::CGROUP_IN,
        Side::Output => programs::CGROUP_OUT,
    }
}

fn cgroup_pin(side: Side) -> String {
    format!("cgroup_{}", side.name())
}

fn attach_type(side: Side) -> TcAttachType {
    match side {
        Side::Input => TcAttachType::Ingress,
        Side::Output => TcAttachType::Egress,
    }
}

fn filter(program: &mut SchedClassifier, device: &Device, side: Side) -> Result<Held, MeterError> {
    let present = clsact::filters(device.index)?;
    let priority = clsact::free_priority(&present, side);
    if present.iter().any(|other| other.side == side && other.priority < priority) {
        tracing::warn!(
            device = shown(&device.name),
            side = side.name(),
            "a filter of another program stands before ours: what it decides for good is not counted"
        );
    }
    let options = NlOptions { priority, handle: HANDLE.into(), classid: None };
    let link = program
        .attach_with_options(&device.name, attach_type(side), TcAttachOptions::Netlink(options))
        .and_then(|id| program.take_link(id))
        .map_err(|error| attach_error(device, "tc", error))?;
    Ok(Held::Filter(Some(link)))
}

fn attach_error<E>(device: &Device, hook: &'static str, error: E) -> MeterError
where
    E: std::error::Error + Send + Sync + 'static,
{
    MeterError::Attach { target: shown(&device.name), hook, cause: cause(error) }
}

/// What the kernel means, where its own words do not say it.
fn said(hook: &str, error: io::Error) -> io::Error {
    let means = match (hook, error.raw_os_error()) {
        ("tcx", Some(libc::ERANGE)) => "as many programs stand at it as can: 64",
        ("cgroup", Some(libc::EPERM)) => "another program holds it for itself alone",
        _ => return error,
    };
    io::Error::new(error.kind(), means)
}

fn release(held: Held) {
    match held {
        Held::Link(link) => link.end(),
        Held::Filter(link) => {
            // Fails when the device is gone, and its filters with it.
            if let Some(Err(error)) = link.map(aya::programs::links::Link::detach) {
                tracing::debug!(%error, "a filter was gone already");
            }
        }
    }
}

/// Lets go of filters without taking them off. Gives what else was held.
fn forget_filters(on: OnDevice) -> Vec<Link> {
    let mut links = Vec::new();
    for held in on.held {
        match held {
            Held::Link(link) => links.push(link),
            Held::Filter(filter) => std::mem::forget(filter),
        }
    }
    links
}

/// Whether a link is at this device of this network namespace. A kernel that does not say is believed.
fn stands_on(link: &Link, device: u32) -> bool {
    link.is_at_device(device).unwrap_or_else(|error| {
        tracing::debug!(%error, "a link does not say where it is");
        true
    })
}

/// Whether a link is at the cgroup of this number. A kernel that does not say is believed.
fn stands_at(link: &Link, number: u64) -> bool {
    match link.target() {
        // Of the number of a cgroup, files show the lower half only on some machines.
        Ok(target) => target.is_some_and(|target| target & 0xffff_ffff == number & 0xffff_ffff),
        Err(error) => {
            tracing::debug!(%error, "a link does not say where it is");
            true
        }
    }
}

/// Whether filters of ours are on both sides of a device. A kernel that does not say is believed.
fn filters_stand(index: u32) -> bool {
    clsact::filters(index).map_or(true, |filters| {
        Side::BOTH.iter().all(|side| filters.iter().any(|f| f.side == *side && f.is_ours()))
    })
}
