//! What has to be there before anything else: file systems, modules; and the end of it all.

use std::{
    fs::{self, File},
    io,
    process::ExitCode,
};

use nix::{
    errno::Errno,
    kmod::{ModuleInitFlags, finit_module},
    mount::{MsFlags, mount},
    sys::{
        reboot::{RebootMode, reboot},
        termios::tcdrain,
    },
};

/// Where the archive has the modules, numbered in the order to load them.
const MODULES: &str = "/modules";

/// Mounts what a system has mounted, and loads all modules.
pub(crate) fn prepare() {
    for (kind, place) in [
        ("proc", "/proc"),
        ("sysfs", "/sys"),
        ("devtmpfs", "/dev"),
        ("tmpfs", "/run"),
        ("cgroup2", "/sys/fs/cgroup"),
        ("bpf", "/sys/fs/bpf"),
    ] {
        mount(Some(kind), place, Some(kind), MsFlags::empty(), None::<&str>)
            .unwrap_or_else(|err| panic!("mount {kind} on {place}: {err}"));
    }
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").expect("read the release");
    println!("info: kernel={}", release.trim());
    load_modules();
}

/// One that the machine has no hardware for may fail; who needs it says so.
fn load_modules() {
    let entries = fs::read_dir(MODULES).expect("read the folder of modules");
    let mut paths: Vec<_> = entries.map(|entry| entry.expect("an entry").path()).collect();
    paths.sort();
    for path in paths {
        let file = File::open(&path).unwrap_or_else(|err| panic!("open {}: {err}", path.display()));
        match finit_module(&file, c"", ModuleInitFlags::empty()) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(err) => println!("info: module {} is not loaded: {err}", path.display()),
        }
    }
}

/// Turns the machine off. Comes back only when that fails.
pub(crate) fn power_off() -> ExitCode {
    // The line before this one must get to the other side.
    if let Err(err) = tcdrain(io::stdout()) {
        println!("info: drain the console: {err}");
    }
    match reboot(RebootMode::RB_POWER_OFF) {
        Ok(never) => match never {},
        Err(err) => {
            println!("info: turn the machine off: {err}");
            ExitCode::FAILURE
        }
    }
}
