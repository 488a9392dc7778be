//! Programs onto devices and cgroups, and off again.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    os::fd::AsFd as _,
    path::{Path, PathBuf},
};

use aya::{
    Ebpf,
    programs::{
        CgroupAttachMode, CgroupSkbAttachType, LinkOrder, SchedClassifier, TcAttachType,
        links::{FdLink, Link as _},
        tc::{NlOptions, SchedClassifierLink, TcAttachOptions},
    },
};
use traffic_ebpf::abi::programs;

use super::{
    Hook,
    clsact::{self, Side},
    load, qdisc, sys,
};
use crate::meter::{
    devices::{Device, LinkKind},
    error::{MeterError, cause},
};

/// The only filter of ours at its priority.
const HANDLE: u32 = 1;

/// What keeps a program on its place.
#[derive(Debug)]
enum Held {
    /// A link that ends with its descriptor.
    Link(FdLink),
    /// A link pinned at this path; it stays when we end.
    Pinned(PathBuf),
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

/// Everything that is attached.
#[derive(Debug)]
pub(super) struct Attachments {
    hook: Hook,
    /// Folder of the pinned links: what is attached stays when we end.
    pins: Option<PathBuf>,
    devices: BTreeMap<u32, OnDevice>,
    cgroup: Vec<Held>,
    /// What could not be read to the end: some bytes were not seen.
    missed: bool,
}

impl Attachments {
    pub(super) fn new(hook: Hook, pins: Option<PathBuf>) -> Self {
        Self { hook, pins, devices: BTreeMap::new(), cgroup: Vec::new(), missed: false }
    }

    /// Devices that are counted now.
    pub(super) fn devices(&self) -> impl Iterator<Item = &Device> {
        self.devices.values().map(|on| &on.device)
    }

    /// Whether a program of ours was off its place for a while.
    pub(super) fn missed(&self) -> bool {
        self.missed
    }

    /// Counts on these devices and no others. Gives what could not be attached.
    pub(super) fn sync(&mut self, ebpf: &mut Ebpf, wanted: &[Device]) -> Vec<MeterError> {
        let mut errors = Vec::new();
        let keep: BTreeSet<u32> = wanted.iter().map(|device| device.index).collect();
        let gone: Vec<u32> =
            self.devices.keys().copied().filter(|index| !keep.contains(index)).collect();
        for index in gone {
            if let Some(on) = self.devices.remove(&index) {
                self.take_off(on);
            }
        }
        for device in wanted {
            if let Some(on) = self.devices.get_mut(&device.index) {
                on.device.clone_from(device);
                if self.hook == Hook::Tc && !filters_stand(device.index) {
                    // Somebody deleted the qdisc or our filter: put it back, and say so.
                    self.missed = true;
                    tracing::warn!(
                        device = device.name,
                        "our filter was taken off by another program: putting it back"
                    );
                    if let Some(on) = self.devices.remove(&device.index) {
                        forget_filters(on);
                    }
                    // A side that still stands would be counted by two filters.
                    if let Err(error) = take_off_ours(device) {
                        errors.push(error);
                    }
                } else {
                    continue;
                }
            }
            match self.put_on(ebpf, device) {
                Ok(on) => {
                    self.devices.insert(device.index, on);
                }
                Err(error) => errors.push(error),
            }
        }
        errors
    }

    fn put_on(&self, ebpf: &mut Ebpf, device: &Device) -> Result<OnDevice, MeterError> {
        let mut on = OnDevice { device: device.clone(), held: Vec::new(), made_qdisc: false };
        if self.hook == Hook::Tc {
            on.made_qdisc = qdisc::make(device)?;
        }
        for side in Side::BOTH {
            let name = program_for(device, side)?;
            let program = load::classifier(ebpf, name)?;
            let held = match (self.hook, &self.pins) {
                (Hook::Tc, _) => filter(program, device, side)?,
                (_, None) => Held::Link(tcx(program, device, side)?),
                (_, Some(folder)) => {
                    let path = folder.join(format!("tcx_{}_{}", device.index, side.name()));
                    let link = tcx(program, device, side)?;
                    link.pin(&path).map_err(|error| attach_error(device, "tcx", error))?;
                    Held::Pinned(path)
                }
            };
            on.held.push(held);
        }
        Ok(on)
    }

    /// Takes over what is attached under our pins or names, with the programs of `ebpf` in the place
    /// of the old ones. Each packet is seen by exactly one of them.
    pub(super) fn adopt(&mut self, ebpf: &mut Ebpf, present: &[Device]) -> Result<(), MeterError> {
        match self.hook {
            Hook::Tcx => self.adopt_links(ebpf, present),
            Hook::Tc => self.adopt_filters(ebpf, present),
            Hook::Cgroup => self.adopt_cgroup(ebpf),
        }
    }

    fn adopt_links(&mut self, ebpf: &mut Ebpf, present: &[Device]) -> Result<(), MeterError> {
        let Some(folder) = self.pins.clone() else {
            return Ok(());
        };
        let mut links = BTreeMap::new();
        for path in files(&folder)? {
            let parsed = path
                .file_name()
                .and_then(|name| name.to_str())
                .and_then(|name| name.strip_prefix("tcx_")?.split_once('_'))
                .and_then(|(index, side)| Some((index.parse::<u32>().ok()?, side.to_owned())));
            if let Some(key) = parsed {
                links.insert(key, path);
            }
        }
        for device in present {
            let mut held = Vec::new();
            for side in Side::BOTH {
                let Some(path) = links.remove(&(device.index, side.name().to_owned())) else {
                    continue;
                };
                let name = program_for(device, side)?;
                let program = load::classifier(ebpf, name)?;
                let descriptor = load::descriptor(program.fd(), name)?;
                let replaced = sys::open_pin(&path)
                    .and_then(|link| sys::replace_program(link.as_fd(), descriptor.as_fd()));
                match replaced {
                    Ok(()) => held.push(Held::Pinned(path)),
                    // The link outlived its device, and another got the number.
                    Err(error) => {
                        tracing::debug!(%error, device = device.name, "a pinned link leads nowhere");
                        remove(&path)?;
                    }
                }
            }
            if held.len() == Side::BOTH.len() {
                let device = device.clone();
                let on = OnDevice { device, held, made_qdisc: false };
                self.devices.insert(on.device.index, on);
            } else {
                // Half a pair counts half: begin anew for this device.
                for held in held {
                    self.missed = true;
                    release(held);
                }
            }
        }
        // Of devices that are gone.
        links.values().try_for_each(|path| remove(path))
    }

    fn adopt_filters(&mut self, ebpf: &mut Ebpf, present: &[Device]) -> Result<(), MeterError> {
        for device in present {
            let ours: Vec<_> = clsact::filters(device.index)?
                .into_iter()
                .filter(clsact::Filter::is_ours)
                .collect();
            let mut held = Vec::new();
            for found in ours {
                let name = program_for(device, found.side)?;
                let program = load::classifier(ebpf, name)?;
                let link = SchedClassifierLink::attached(
                    &device.name,
                    attach_type(found.side),
                    found.priority,
                    found.handle.into(),
                    None,
                )
                .map_err(|error| attach_error(device, "tc", error))?;
                let link = program
                    .attach_to_link(link)
                    .and_then(|id| program.take_link(id))
                    .map_err(|error| attach_error(device, "tc", error))?;
                held.push(Held::Filter(Some(link)));
            }
            if !held.is_empty() {
                let made_qdisc = qdisc::is_ours(device.index);
                self.devices
                    .insert(device.index, OnDevice { device: device.clone(), held, made_qdisc });
            }
        }
        Ok(())
    }

    fn adopt_cgroup(&mut self, ebpf: &mut Ebpf) -> Result<(), MeterError> {
        let Some(folder) = self.pins.clone() else {
            return Ok(());
        };
        for side in Side::BOTH {
            let path = folder.join(cgroup_pin(side));
            if !path.exists() {
                continue;
            }
            let (name, _) = cgroup_program(side);
            let program = load::cgroup_skb(ebpf, name)?;
            let descriptor = load::descriptor(program.fd(), name)?;
            let target = path.display().to_string();
            sys::open_pin(&path)
                .and_then(|link| sys::replace_program(link.as_fd(), descriptor.as_fd()))
                .map_err(|error| MeterError::Attach {
                    target,
                    hook: "cgroup",
                    cause: cause(error),
                })?;
            self.cgroup.push(Held::Pinned(path));
        }
        Ok(())
    }

    /// Counts at this cgroup and all below it, unless it was adopted already.
    pub(super) fn put_on_cgroup(&mut self, ebpf: &mut Ebpf, path: &Path) -> Result<(), MeterError> {
        if !self.cgroup.is_empty() {
            return Ok(());
        }
        let failed = |error: Box<dyn std::error::Error + Send + Sync>| MeterError::Attach {
            target: path.display().to_string(),
            hook: "cgroup",
            cause: error,
        };
        let cgroup = File::open(path)
            .map_err(|_| MeterError::NoCgroup { path: path.display().to_string() })?;
        for side in Side::BOTH {
            let (name, attach_type) = cgroup_program(side);
            let program = load::cgroup_skb(ebpf, name)?;
            let link: FdLink = program
                // A link is never alone at its cgroup; the flag that says so is for other attachments.
                .attach(&cgroup, attach_type, CgroupAttachMode::Single)
                .and_then(|id| program.take_link(id))
                .map_err(|error| failed(cause(error)))?
                .try_into()
                .map_err(|error: aya::programs::links::LinkError| failed(cause(error)))?;
            let held = match &self.pins {
                None => Held::Link(link),
                Some(folder) => {
                    let path = folder.join(cgroup_pin(side));
                    link.pin(&path).map_err(|error| failed(cause(error)))?;
                    Held::Pinned(path)
                }
            };
            self.cgroup.push(held);
        }
        Ok(())
    }

    fn take_off(&self, on: OnDevice) {
        let OnDevice { device, held, made_qdisc } = on;
        held.into_iter().for_each(release);
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
                forget_filters(on);
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
        for filter in &ours {
            let name = filter.program.as_deref().unwrap_or_default();
            said.push(format!("filter {name} on {} ({})", device.name, filter.side.name()));
            if !dry_run {
                take_off_filter(device, filter)?;
            }
        }
        if qdisc::is_ours(device.index) && clsact::has_clsact(device.index)? {
            let others = clsact::filters(device.index)?.iter().any(|filter| !filter.is_ours());
            if !others {
                said.push(format!("clsact qdisc on {}", device.name));
                if !dry_run {
                    qdisc::drop_unused(device);
                }
            }
        }
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
            Hook::Tcx => links.join(format!("tcx_{}_in", device.index)).exists(),
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
            Err(MeterError::LinkType { device: device.name.clone(), arphrd })
        }
    }
}

fn cgroup_program(side: Side) -> (&'static str, CgroupSkbAttachType) {
    match side {
        Side::Input => (programs::CGROUP_IN, CgroupSkbAttachType::Ingress),
        Side::Output => (programs::CGROUP_OUT, CgroupSkbAttachType::Egress),
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

/// First on the hook: a program of others that ends the chain would hide what comes after it.
fn tcx(program: &mut SchedClassifier, device: &Device, side: Side) -> Result<FdLink, MeterError> {
    program
        .attach_with_options(
            &device.name,
            attach_type(side),
            TcAttachOptions::TcxOrder(LinkOrder::first()),
        )
        .and_then(|id| program.take_link(id))
        .map_err(|error| attach_error(device, "tcx", error))?
        .try_into()
        .map_err(|error: aya::programs::links::LinkError| attach_error(device, "tcx", error))
}

fn filter(program: &mut SchedClassifier, device: &Device, side: Side) -> Result<Held, MeterError> {
    let present = clsact::filters(device.index)?;
    let options = NlOptions {
        priority: clsact::free_priority(&present, side),
        handle: HANDLE.into(),
        classid: None,
    };
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
    MeterError::Attach { target: device.name.clone(), hook, cause: cause(error) }
}

fn release(held: Held) {
    match held {
        Held::Link(link) => drop(link),
        Held::Pinned(path) => {
            if let Err(error) = remove(&path) {
                tracing::warn!(%error, "a pinned link stays behind");
            }
        }
        Held::Filter(link) => {
            // Fails when the device is gone, and its filters with it.
            if let Some(Err(error)) = link.map(aya::programs::links::Link::detach) {
                tracing::debug!(%error, "a filter was gone already");
            }
        }
    }
}

/// Lets go of filters without taking them off.
fn forget_filters(on: OnDevice) {
    for held in on.held {
        if let Held::Filter(Some(link)) = held {
            std::mem::forget(link);
        }
    }
}

fn filters_stand(index: u32) -> bool {
    clsact::filters(index).is_ok_and(|filters| {
        Side::BOTH.iter().all(|side| filters.iter().any(|f| f.side == *side && f.is_ours()))
    })
}

fn files(folder: &Path) -> Result<Vec<PathBuf>, MeterError> {
    let failed = |cause| MeterError::File { doing: "read", path: folder.into(), cause };
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    entries.map(|entry| entry.map(|entry| entry.path()).map_err(failed)).collect()
}

fn remove(path: &Path) -> Result<(), MeterError> {
    fs::remove_file(path).map_err(|cause| MeterError::File {
        doing: "remove",
        path: path.into(),
        cause,
    })
}
