//! The kernel's meter: eBPF programs at tcx, tc or a cgroup.
//!
//! [`EbpfMeter`] counts for as long as it lives, or, where it was told to persist, for as long as its
//! pins do. [`Pinned`] reads such pins without any daemon. aya and the mapping of the counters are
//! used below this module and nowhere else.

mod attach;
mod clean;
mod clsact;
mod kept;
mod link;
mod load;
mod mapping;
mod maps;
mod namespace;
mod pinned;
mod pins;
mod qdisc;
mod slots;
mod sys;
mod trial;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use aya::Ebpf;
use traffic_ebpf::abi::{self, ABI_VERSION, LANES, MAGIC, MAX_SLOTS, Meta, hook, skip};

use self::{attach::Attachments, kept::Kept, load::Parameters, maps::Maps, pins::Pins};
use super::{
    devices::{Choice, Device, Facts, Wanted},
    error::{MeterError, chain},
    host,
};
use crate::accounting::{
    ident::{Group, Groups},
    reading::{Coverage, Snapshot},
};
use crate::fault;

pub use crate::accounting::ident::Hook;
pub use clean::{clean, clean_left};
pub use load::adds_atomically;
pub use pinned::Pinned;
pub use pins::DEFAULT_PINS;
pub use trial::try_all;

/// The compiled programs; empty when this binary was built without an eBPF tool chain.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/traffic-ebpf"));

/// Slots of the smallest set of maps. A few hundred KiB, and room for groups that come later.
const LEAST_SLOTS: u32 = 1024;

const fn hook_number(hook: Hook) -> u32 {
    match hook {
        Hook::Tcx => hook::TCX,
        Hook::Tc => hook::TC,
        Hook::Cgroup => hook::CGROUP,
    }
}

fn hook_from(number: u32) -> Option<Hook> {
    Hook::ALL.into_iter().find(|hook| hook_number(*hook) == number)
}

/// How to count.
#[derive(Clone, Debug)]
pub struct Options {
    /// `None` takes the best that works.
    pub hook: Option<Hook>,
    /// Folder in cgroup2 for [`Hook::Cgroup`]; `None` is its root.
    pub cgroup: Option<PathBuf>,
    /// Devices that are to be counted, as [`count_on`](EbpfMeter::count_on) will say: with them the best hook
    /// is chosen.
    pub wanted: Wanted,
    /// Go on counting when this process ends, and take over what an earlier one left.
    pub persist: bool,
    /// Folder of the pins on bpffs.
    pub pins: PathBuf,
    /// Log each packet.
    pub log: bool,
    /// Whether packets were missed before a new epoch begins.
    pub gap: bool,
}

/// The running meter.
pub struct EbpfMeter {
    // Dropped in this order: first nothing is attached any more, then the programs and maps go.
    attachments: Attachments,
    maps: Maps,
    ebpf: Ebpf,
    hook: Hook,
    passed_over: Vec<(Hook, String)>,
    log: Option<aya_log::EbpfLogger<&'static dyn log::Log>>,
    gap_noted: bool,
    /// Devices to count on, as was said last.
    wanted: Vec<Device>,
    /// The cgroup to count at.
    cgroup: Option<PathBuf>,
    /// Pins that this start made: they go when it fails.
    made: Option<Pins>,
    /// What is pinned; `None` when it goes with this process.
    kept: Option<Kept>,
}

impl EbpfMeter {
    /// Loads the programs and begins (or goes on) to count `groups`; on devices only once
    /// [`count_on`](Self::count_on) names them.
    ///
    /// # Errors
    ///
    /// [`MeterError::Denied`] names the capability that is missing; [`MeterError::Unsupported`] says
    /// why no hook works; [`MeterError::OtherPins`] when pins of another kind are in the way; and
    /// whatever the kernel says. Nothing is left attached then.
    pub fn start(options: &Options, groups: &Groups) -> Result<Self, MeterError> {
        if OBJECT.is_empty() {
            return Err(MeterError::Stub);
        }
        let missing = host::missing_capabilities();
        if !missing.is_empty() {
            let capability = missing.join(", ");
            return Err(MeterError::Denied { doing: "count in the kernel", capability });
        }
        let pins = Pins::new(&options.pins);
        let mut meter = match found_pins(options, &pins)? {
            Some(found) => Self::adopt(options, &pins, found, groups)?,
            None => Self::fresh(options, &pins, groups)?,
        };
        if options.persist {
            let held = Kept::hold(&pins)
                .inspect_err(|error| tracing::warn!(%error, "pins that vanish stay away"));
            meter.kept = held.ok();
        }
        if options.log {
            meter.log = aya_log::EbpfLogger::init(&mut meter.ebpf)
                .inspect_err(|error| tracing::warn!(%error, "packets are not logged"))
                .ok();
        }
        Ok(meter)
    }

    fn fresh(options: &Options, pins: &Pins, groups: &Groups) -> Result<Self, MeterError> {
        // Before its file system, which is missed there as well.
        if !sys::has_bpf() {
            return Err(load::no_bpf());
        }
        if options.persist {
            pins.prepare()?;
        }
        clean_left()?;
        let started = Self::fresh_in(options, pins, groups);
        if started.is_err() && options.persist {
            // Half a set would look like a whole one at the next start.
            let _ = pins.remove(false);
        }
        started
    }

    fn fresh_in(options: &Options, pins: &Pins, groups: &Groups) -> Result<Self, MeterError> {
        let slots = slots_for(groups.len());
        let folder = options.persist.then(|| pins.maps());
        let load = |hook| {
            load::object(Parameters { hook, slots, log: options.log, pins: folder.as_deref() })
        };
        // tcx and tc share programs and globals; a cgroup wants atomic adds.
        let first = options.hook.unwrap_or(Hook::Tcx);
        let mut ebpf = load(first)?;
        fault::die_at("maps-pinned");
        let (hook, passed_over) = match options.hook {
            Some(hook) => (hook, Vec::new()),
            None => trial::best_hook(&mut ebpf, options.cgroup.as_deref(), &options.wanted)?,
        };
        if (hook == Hook::Cgroup) != (first == Hook::Cgroup) {
            drop(ebpf);
            if options.persist {
                pins.remove(false)?;
                pins.prepare()?;
            }
            ebpf = load(hook)?;
        }
        let meta = Meta { gap: u32::from(options.gap), ..describe(hook, slots)? };
        let mut maps = Maps::take(&mut ebpf, meta)?;
        maps.watch(groups)?;
        let links = options.persist.then(|| pins.links());
        let mut meter = Self {
            attachments: Attachments::new(hook, links),
            maps,
            ebpf,
            hook,
            passed_over,
            log: None,
            gap_noted: false,
            wanted: Vec::new(),
            cgroup: None,
            made: options.persist.then(|| pins.clone()),
            kept: None,
        };
        meter.enter_cgroup(options)?;
        Ok(meter)
    }

    /// Goes on with pinned maps. The programs of this version take the place of the old ones.
    fn adopt(
        options: &Options,
        pins: &Pins,
        found: Maps,
        groups: &Groups,
    ) -> Result<Self, MeterError> {
        pins.prepare()?;
        let hook = hook_from(found.meta().hook).unwrap_or(Hook::Tcx);
        let present = Facts::gather()?.devices;
        let mut attachments = Attachments::new(hook, Some(pins.links()));
        let fits = found.fits(groups);
        let (ebpf, maps) = if found.meta().abi == ABI_VERSION
            && found.meta().stripes == load::stripes()?
            && fits
            && !pins.next().exists()
        {
            let slots = found.meta().slots;
            drop(found);
            let folder = pins.maps();
            let parameters =
                Parameters { hook, slots, log: options.log, pins: Some(folder.as_path()) };
            let mut ebpf = load::object(parameters)?;
            let maps = Maps::take(&mut ebpf, describe(hook, slots)?)?;
            attachments.adopt(&mut ebpf, &present)?;
            (ebpf, maps)
        } else {
            let room = if fits { groups.len() } else { groups.len() + found.used() };
            carry_over(options, pins, &found, &mut attachments, &present, hook, room)?
        };
        let mut meter = Self {
            attachments,
            maps,
            ebpf,
            hook,
            passed_over: Vec::new(),
            log: None,
            gap_noted: false,
            wanted: Vec::new(),
            cgroup: None,
            made: None,
            kept: None,
        };
        meter.note_gap()?;
        meter.maps.watch(groups)?;
        meter.enter_cgroup(options)?;
        Ok(meter)
    }

    fn enter_cgroup(&mut self, options: &Options) -> Result<(), MeterError> {
        if self.hook != Hook::Cgroup {
            return Ok(());
        }
        let path = cgroup_path(options.cgroup.as_deref())?;
        self.attachments.put_on_cgroup(&mut self.ebpf, &path)?;
        self.cgroup = Some(path);
        Ok(())
    }

    /// Counts on the chosen devices and no others. At a cgroup, where devices do not matter, does
    /// nothing. Gives what could not be attached; the rest counts.
    pub fn count_on(&mut self, choice: &Choice) -> Vec<MeterError> {
        if self.hook == Hook::Cgroup {
            return Vec::new();
        }
        self.wanted.clone_from(&choice.devices);
        self.attach()
    }

    /// Counts on the devices that are wanted. What was missed is noted before it is put right, so that even
    /// a run that is killed in between has said so.
    fn attach(&mut self) -> Vec<MeterError> {
        let lost = self.attachments.look(&self.wanted);
        let noted = self.note_gap();
        let mut errors = self.attachments.sync(&mut self.ebpf, &self.wanted, &lost);
        errors.extend(noted.and_then(|()| self.note_gap()).err());
        errors
    }

    /// Puts back what was taken off without any news of it: a link, or a cgroup with what was at it.
    fn mend(&mut self) -> Result<(), MeterError> {
        if self.attachments.is_lost() {
            for error in self.attach() {
                tracing::warn!(error = chain(&error), "a device is not counted");
            }
        }
        if let Some(path) = self.cgroup.clone()
            && self.attachments.has_lost_cgroup(&path)
        {
            self.note_gap()?;
            self.attachments.leave_cgroup();
            // Tried at each tick: the cgroup may not have been made again yet.
            if let Err(error) = self.attachments.put_on_cgroup(&mut self.ebpf, &path) {
                tracing::debug!(error = chain(&error), "the cgroup is not counted");
            }
        }
        if let Some(kept) = &mut self.kept {
            kept.mend(self.maps.meta().epoch, &self.attachments);
        }
        Ok(())
    }

    /// Writes to the maps that packets were missed.
    fn note_gap(&mut self) -> Result<(), MeterError> {
        if self.attachments.missed() && !self.gap_noted {
            self.maps.set_meta(|meta| meta.gap = 1)?;
            self.gap_noted = true;
        }
        Ok(())
    }

    /// Takes off what this start attached and pinned, because it cannot go on. What an earlier one
    /// left to count goes on.
    pub fn give_up(self) {
        let made = self.made.clone();
        drop(self);
        if let Some(Err(error)) = made.map(|pins| pins.remove(false)) {
            tracing::warn!(%error, "pins stay behind");
        }
    }

    /// Watches these groups and no others. Groups that stay do not miss a packet.
    ///
    /// # Errors
    ///
    /// [`MeterError::Full`] when they do not fit in the slots that are left; nothing changes then.
    pub fn watch(&mut self, groups: &Groups) -> Result<(), MeterError> {
        self.maps.watch(groups)
    }

    /// Groups that are watched now.
    pub fn watched(&self) -> impl Iterator<Item = &Arc<Group>> {
        self.maps.watched()
    }

    /// The hook in use.
    pub fn hook(&self) -> Hook {
        self.hook
    }

    /// Hooks that `auto` would have preferred, and why they are not used.
    pub fn passed_over(&self) -> &[(Hook, String)] {
        &self.passed_over
    }

    /// Devices that are counted now; none at a cgroup.
    pub fn devices(&self) -> impl Iterator<Item = &Device> {
        self.attachments.devices()
    }

    /// Reads all counters. Resets nothing. Links that were taken off are put back, and the gap is said; so are
    /// pins.
    ///
    /// # Errors
    ///
    /// [`MeterError::Map`].
    pub fn read(&mut self) -> Result<Snapshot, MeterError> {
        self.mend()?;
        self.maps.snapshot(self.hook.name(), coverage(self.maps.meta()))
    }

    /// Sums of all counters of all groups, as words, into a buffer that is used again: what
    /// [`read`](Self::read) costs without making a snapshot. For measurements.
    ///
    /// # Errors
    ///
    /// [`MeterError::Map`].
    pub fn sum_into(&self, sums: &mut Vec<u64>) -> Result<(), MeterError> {
        self.maps.sum_into(sums)
    }

    /// Why packets were missed since this was last asked, for people.
    pub fn losses(&mut self) -> Vec<String> {
        self.attachments.losses()
    }

    /// Hands what the programs logged to the `log` facade.
    pub fn flush_log(&mut self) {
        if let Some(log) = &mut self.log {
            log.flush();
        }
    }
}

/// Puts programs and maps of this version in the place of pinned ones with another ABI or too little
/// room, and adds up both. Picks up where a change-over that was cut short stopped.
fn carry_over(
    options: &Options,
    pins: &Pins,
    older: &Maps,
    attachments: &mut Attachments,
    present: &[Device],
    hook: Hook,
    room: usize,
) -> Result<(Ebpf, Maps), MeterError> {
    let folder = pins.next();
    pins::make_folder(&folder)?;
    let begun = Maps::pinned(&folder).ok().map(|maps| *maps.meta());
    let slots = match begun {
        Some(meta) => meta.slots,
        None => {
            // A set without a description was given up before anything used it.
            for name in abi::maps::PINNED {
                let _ = std::fs::remove_file(folder.join(name));
            }
            slots_for(room).max(older.meta().slots)
        }
    };
    let parameters = Parameters { hook, slots, log: options.log, pins: Some(&folder) };
    let mut ebpf = load::object(parameters)?;
    let fresh = Meta {
        epoch: older.meta().epoch,
        since: older.meta().since,
        gap: older.meta().gap,
        carry: abi::carry::PENDING,
        ..describe(hook, slots)?
    };
    let mut maps = Maps::take(&mut ebpf, fresh)?;
    maps.inherit(older)?;
    attachments.adopt(&mut ebpf, present)?;
    // From here on nothing adds to the older maps.
    sys::wait_for_running_programs();
    fault::die_at("before carrying over");
    maps.carry_over(older)?;
    fault::die_at("after carrying over");
    pins.promote_next()?;
    tracing::info!(
        from_abi = older.meta().abi,
        abi = ABI_VERSION,
        slots,
        "counters carried over to new maps"
    );
    Ok((ebpf, maps))
}

/// Pinned maps that a start may go on with. `None` when it begins anew.
fn found_pins(options: &Options, pins: &Pins) -> Result<Option<Maps>, MeterError> {
    // A change-over that ended before its last step.
    let next = Maps::pinned(&pins.next()).ok();
    if next.is_some_and(|next| next.meta().carry == abi::carry::DONE) {
        pins.promote_next()?;
    }
    let exist = match pins.exist() {
        // Nor could they be taken over, or left.
        Err(MeterError::Denied { .. }) if !options.persist => false,
        exist => exist?,
    };
    if !exist {
        if options.persist && pins.have_links() {
            return Err(MeterError::OtherPins {
                path: pins.root().into(),
                reason: "are not whole: META is missing".into(),
            });
        }
        if options.persist {
            pins.forget_begun();
        }
        return Ok(None);
    }
    if !pins.have_links() && Maps::is_begun(&pins.maps()) {
        if options.persist {
            pins.forget_begun();
        }
        return Ok(None);
    }
    let found = Maps::pinned(&pins.maps())?;
    let other = |reason: String| MeterError::OtherPins { path: pins.root().into(), reason };
    let meta = found.meta();
    if !namespace::are_one(meta.netns, namespace::this()?) {
        return if options.persist {
            Err(other("count another network namespace".into()))
        } else {
            Ok(None)
        };
    }
    if !options.persist {
        return Err(other("go on counting; run with --persist to take them over".into()));
    }
    match (hook_from(meta.hook), options.hook) {
        (Some(found), Some(wanted)) if found != wanted => {
            let (found, wanted) = (found.name(), wanted.name());
            return Err(other(format!("count at {found}, and --meter {wanted} was asked for")));
        }
        (Some(Hook::Cgroup), _) => {
            let path = cgroup_path(options.cgroup.as_deref())?;
            let number = link::cgroup_number(&path).unwrap_or(0);
            if attach::counts_another_cgroup(&pins.links(), number) {
                return Err(other(format!("count at another cgroup than {}", path.display())));
            }
        }
        _ => {}
    }
    Ok(Some(found))
}

fn cgroup_path(wanted: Option<&Path>) -> Result<PathBuf, MeterError> {
    let root = host::cgroup2();
    let Some(wanted) = wanted else {
        return root
            .ok_or_else(|| MeterError::NoCgroup { path: "any mount of /proc/mounts".into() });
    };
    // As the file system sees it: a path may leave its root again, or lead into it by a symbolic link.
    match wanted.canonicalize() {
        Ok(path) if path.is_dir() && host::is_in_cgroup2(&path) => Ok(path),
        _ => Err(MeterError::NoCgroup { path: wanted.display().to_string() }),
    }
}

fn slots_for(groups: usize) -> u32 {
    let groups = u32::try_from(groups).unwrap_or(MAX_SLOTS);
    // A quarter more than asked for, so that a few can come without moving to larger maps.
    groups.saturating_add(groups / 4).next_power_of_two().clamp(LEAST_SLOTS, MAX_SLOTS)
}

fn describe(hook: Hook, slots: u32) -> Result<Meta, MeterError> {
    let size = |bytes: usize| u32::try_from(bytes).unwrap_or(u32::MAX);
    let since = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    Ok(Meta {
        magic: MAGIC,
        abi: ABI_VERSION,
        epoch: host::random(),
        boot: host::boot_id(),
        since,
        slots,
        stripes: load::stripes()?,
        lanes: LANES,
        counter_size: size(abi::Count::SIZE),
        slots_used: 0,
        reasons: skip::REASONS,
        hook: hook_number(hook),
        group_size: size(abi::Group::SIZE),
        netns: namespace::this()?,
        carry: abi::carry::NONE,
        gap: 0,
    })
}

fn coverage(meta: &Meta) -> Coverage {
    if meta.gap == 0 { Coverage::Complete } else { Coverage::Gap }
}

/// Whether `path`, or the nearest folder above it that exists, is on bpffs.
pub fn is_on_bpffs(path: &Path) -> bool {
    path.ancestors().find(|path| path.is_dir()).is_some_and(pins::is_bpffs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_binary_without_programs_says_so_before_it_touches_anything() {
        if !OBJECT.is_empty() {
            eprintln!("skipped: this build has the programs inside");
            return;
        }
        let options = Options {
            hook: None,
            cgroup: None,
            wanted: Wanted::default(),
            persist: false,
            pins: DEFAULT_PINS.into(),
            log: false,
            gap: false,
        };
        let error = EbpfMeter::start(&options, &Groups::default()).err();
        assert!(matches!(error, Some(MeterError::Stub)), "{error:?}");
        assert!(error.and_then(|error| error.remedy()).is_some_and(|text| text.contains("xtask")));
    }

    #[test]
    fn there_is_room_for_a_quarter_more_and_never_more_than_a_slot_can_say() {
        assert_eq!([slots_for(0), slots_for(819), slots_for(820)], [1024, 1024, 2048]);
        assert_eq!([slots_for(60_000), slots_for(usize::MAX)], [MAX_SLOTS, MAX_SLOTS]);
    }
}
