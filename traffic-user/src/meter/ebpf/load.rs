//! The embedded object to programs in the kernel.

use std::{fs, path::Path, thread};

use aya::{
    Ebpf, EbpfLoader,
    programs::{CgroupSkb, ProgramError, ProgramFd, SchedClassifier},
};
use nix::{
    sched::{CloneFlags, unshare},
    sys::resource::{RLIM_INFINITY, Resource, getrlimit, setrlimit},
    unistd::chroot,
};
use traffic_ebpf::abi::{PARTS, globals, maps, programs};

use super::{Hook, OBJECT};
use crate::meter::{
    error::{MeterError, cause},
    host,
};

/// Bytes of the log's ring buffer while nothing is logged: the least there can be.
const SILENT_LOG: u32 = 4096;

/// How the programs are to be loaded.
#[derive(Clone, Copy, Debug)]
pub(super) struct Parameters<'a> {
    pub(super) hook: Hook,
    /// Slots in each stripe of the counters.
    pub(super) slots: u32,
    /// Log each packet.
    pub(super) log: bool,
    /// Folder of the pinned maps: those that are there are used, the others are made and pinned.
    pub(super) pins: Option<&'a Path>,
}

/// Stripes of the counters: one for each possible CPU, and one for what is carried over.
pub(super) fn stripes() -> Result<u32, MeterError> {
    let cpus = aya::util::nr_cpus().map_err(|(file, error)| MeterError::File {
        doing: "read",
        path: file.into(),
        cause: error,
    })?;
    Ok(u32::try_from(cpus).unwrap_or(u32::MAX - 1) + 1)
}

/// Makes or opens the maps and prepares the programs, without loading any.
pub(super) fn object(parameters: Parameters<'_>) -> Result<Ebpf, MeterError> {
    if OBJECT.is_empty() {
        return Err(MeterError::Stub);
    }
    // Kernels before 5.11 charge maps to this limit. Without CAP_SYS_RESOURCE it stays as it is, and
    // on a newer kernel that does not matter.
    if let Err(error) = setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY) {
        tracing::debug!(%error, "RLIMIT_MEMLOCK stays as it is");
    }
    let Parameters { hook, slots, log, pins } = parameters;
    let entries = stripes()?.saturating_mul(slots).saturating_mul(PARTS);
    let atomic = u8::from(adds_atomically(hook));
    let level: u8 = if log { 4 } else { 0 };
    let mut loader = loader();
    loader
        .map_max_entries(maps::COUNTERS, entries)
        .map_max_entries(maps::GROUPS, slots)
        .override_global(globals::SLOTS, &slots, true)
        .override_global(globals::ATOMIC, &atomic, true)
        .override_global(globals::LOG_LEVEL, &level, true);
    if !log {
        loader.map_max_entries("AYA_LOGS", SILENT_LOG);
    }
    if let Some(folder) = pins {
        for name in maps::PINNED {
            loader.map_pin_path(name, folder.join(name));
        }
    }
    loader.load(OBJECT).map_err(|error| {
        if denied(&error) {
            return not_allowed("create the eBPF maps", &host::missing_capabilities(), limit());
        }
        if says(&error, &[libc::ENOSYS]) { no_bpf() } else { MeterError::Object(cause(error)) }
    })
}

/// What is said where the kernel was built without any of it.
pub(super) fn no_bpf() -> MeterError {
    let reason = "this kernel has no bpf() system call (CONFIG_BPF_SYSCALL)".to_owned();
    MeterError::Unsupported { feature: "counting with eBPF", reason }
}

/// Why the kernel does not permit it: a capability, or where none is missing the limit that kernels before
/// 5.11 charge maps and programs to.
fn not_allowed(doing: &'static str, missing: &[&str], limit: u64) -> MeterError {
    if missing.is_empty() && limit != RLIM_INFINITY {
        return MeterError::LockedMemory { doing, limit };
    }
    let capability = if missing.is_empty() { "CAP_BPF".to_owned() } else { missing.join(", ") };
    MeterError::Denied { doing, capability }
}

/// Bytes of memory that this process may lock.
fn limit() -> u64 {
    getrlimit(Resource::RLIMIT_MEMLOCK).map_or(RLIM_INFINITY, |(soft, _)| soft)
}

/// So many signals may come while one program is loaded.
const SIGNALS: u32 = 100;

/// Why a program was not loaded.
fn refused(name: &'static str, error: ProgramError) -> MeterError {
    if denied(&error) && host::missing_capabilities().is_empty() && limit() != RLIM_INFINITY {
        return not_allowed("load the eBPF programs", &[], limit());
    }
    MeterError::Load { name, cause: cause(error) }
}

/// A loader that does not know the kernel's own types.
///
/// It reads them when it is made, which takes 9 MB and a good part of the start, and has no way not to;
/// our programs ask for none. So it is made where it finds none: by a thread whose root is an empty
/// folder. Where that is not allowed, it reads them and forgets them.
fn loader() -> EbpfLoader<'static> {
    let elsewhere = || {
        let hidden = unshare(CloneFlags::CLONE_FS).and_then(|()| chroot("/proc/self/fdinfo"));
        if let Err(error) = hidden {
            tracing::debug!(%error, "the kernel's types are read");
        }
        EbpfLoader::new()
    };
    let mut loader = thread::spawn(elsewhere).join().unwrap_or_else(|_| EbpfLoader::new());
    loader.btf(None);
    loader
}

/// Whether anything in the chain of causes is the kernel's "operation not permitted".
pub(super) fn denied(error: &(dyn std::error::Error + 'static)) -> bool {
    says(error, &[libc::EPERM, libc::EACCES])
}

/// Whether anything in the chain of causes is one of these answers of the kernel.
fn says(error: &(dyn std::error::Error + 'static), answers: &[i32]) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        let io = error.downcast_ref::<std::io::Error>();
        let answer = io.and_then(std::io::Error::raw_os_error);
        if answer.is_some_and(|answer| answers.contains(&answer)) {
            return true;
        }
        next = error.source();
    }
    false
}

/// Loads the tc program of this name, unless it is loaded already.
pub(super) fn classifier<'e>(
    ebpf: &'e mut Ebpf,
    name: &'static str,
) -> Result<&'e mut SchedClassifier, MeterError> {
    let failed = |error| MeterError::Load { name, cause: error };
    let program = ebpf.program_mut(name).ok_or(MeterError::Stub)?;
    let program: &mut SchedClassifier =
        program.try_into().map_err(|error| failed(cause::<ProgramError>(error)))?;
    if program.fd().is_err() {
        unhurried(|| program.load()).map_err(|error| refused(name, error))?;
    }
    Ok(program)
}

/// Tries again what a signal hurried: the kernel gives the verifier up for it, and the loader tries only once more.
fn unhurried(mut load: impl FnMut() -> Result<(), ProgramError>) -> Result<(), ProgramError> {
    for _ in 0..SIGNALS {
        match load() {
            Err(error) if says(&error, &[libc::EAGAIN]) => {}
            done => return done,
        }
    }
    load()
}

/// Loads the cgroup program of this name, unless it is loaded already.
pub(super) fn cgroup_skb<'e>(
    ebpf: &'e mut Ebpf,
    name: &'static str,
) -> Result<&'e mut CgroupSkb, MeterError> {
    let failed = |error| MeterError::Load { name, cause: error };
    let program = ebpf.program_mut(name).ok_or(MeterError::Stub)?;
    let program: &mut CgroupSkb =
        program.try_into().map_err(|error| failed(cause::<ProgramError>(error)))?;
    if program.fd().is_err() {
        unhurried(|| program.load()).map_err(|error| refused(name, error))?;
    }
    Ok(program)
}

/// A descriptor of a program that is loaded.
pub(super) fn descriptor<'p>(
    program: Result<&'p ProgramFd, ProgramError>,
    name: &'static str,
) -> Result<&'p ProgramFd, MeterError> {
    program.map_err(|error| MeterError::Load { name, cause: cause(error) })
}

/// Loads every program of the object, which a hook alone does not need: for `doctor` and tests.
pub(super) fn all(ebpf: &mut Ebpf) -> Result<(), MeterError> {
    for name in
        [programs::ETHERNET_IN, programs::ETHERNET_OUT, programs::BARE_IN, programs::BARE_OUT]
    {
        classifier(ebpf, name)?;
    }
    for name in [programs::CGROUP_IN, programs::CGROUP_OUT] {
        cgroup_skb(ebpf, name)?;
    }
    Ok(())
}

/// Whether a program at this hook can be interrupted on its own CPU by another of them, so that its adds
/// must be atomic: at a cgroup always (a softirq interrupts a process), at a device where softirqs are
/// threads, of which one may push another aside in the middle of an add.
pub fn adds_atomically(hook: Hook) -> bool {
    hook == Hook::Cgroup || preempt_rt()
}

/// Whether this is a kernel with `PREEMPT_RT`.
fn preempt_rt() -> bool {
    let says = |file, word: &str| {
        fs::read_to_string(file)
            .is_ok_and(|text| text.split_ascii_whitespace().any(|one| one == word))
    };
    // The file is that of kernels with the patches; the others say it in their version alone.
    says("/sys/kernel/realtime", "1") || says("/proc/sys/kernel/version", "PREEMPT_RT")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_permitted_names_the_capability_or_the_limit() {
        let said = |missing: &[&str], limit| {
            let error = not_allowed("create the eBPF maps", missing, limit);
            (error.to_string(), error.remedy().unwrap_or_default())
        };
        let (text, remedy) = said(&[], 65_536);
        assert!(text.contains("RLIMIT_MEMLOCK allows 65536 bytes"), "{text}");
        assert!(remedy.contains("ulimit -l") && remedy.contains("LimitMEMLOCK="), "{remedy}");
        assert!(said(&["CAP_BPF"], 65_536).0.contains("CAP_BPF is missing"));
        assert!(said(&[], RLIM_INFINITY).0.contains("CAP_BPF is missing"));
    }
}
