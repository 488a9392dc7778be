//! What is attached in a namespace: to see that a test leaves exactly what it should.

use std::{fs, path::Path, time::Instant};

use aya::programs::{SchedClassifier, TcAttachType};

use crate::{netns::NetNs, wait};

/// Everything on the tc hooks of a namespace's devices, one line each: `eth0 in tcx NAME`,
/// `eth0 out filter NAME`, `eth0 clsact`. Sorted. `tc` names its own by a file: they are `pinned`.
///
/// # Panics
///
/// When the kernel does not tell.
pub fn attached(ns: &NetNs) -> Vec<String> {
    let mut found = Vec::new();
    for device in devices(ns) {
        for (side, kind) in [("in", TcAttachType::Ingress), ("out", TcAttachType::Egress)] {
            let programs = ns
                .run(|| SchedClassifier::query_tcx(&device, kind))
                .map_or_else(|_| Vec::new(), |(_, programs)| programs);
            for program in programs {
                let name = program.name_as_str().unwrap_or("?");
                found.push(format!("{device} {side} tcx {name}"));
            }
        }
        let qdiscs = ns.sh(&["tc", "qdisc", "show", "dev", &device]);
        if !qdiscs.lines().any(|line| line.starts_with("qdisc clsact")) {
            continue;
        }
        found.push(format!("{device} clsact"));
        for (side, parent) in [("in", "ingress"), ("out", "egress")] {
            let filters = ns.sh(&["tc", "filter", "show", "dev", &device, parent]);
            for line in filters.lines() {
                // `filter protocol all pref 2 bpf chain 0 handle 0x1 traffic_eth_in direct-action …`
                let mut words = line.split(' ').skip_while(|word| *word != "handle");
                if let Some(name) = words.nth(2) {
                    let name = if name.contains('[') { "pinned" } else { name };
                    found.push(format!("{device} {side} filter {name}"));
                }
            }
        }
    }
    found.sort();
    found
}

/// Names of the devices of a namespace.
fn devices(ns: &NetNs) -> Vec<String> {
    let text =
        ns.run(|| fs::read_to_string("/proc/thread-self/net/dev")).expect("read the devices");
    text.lines().filter_map(|line| Some(line.split_once(':')?.0.trim().to_owned())).collect()
}

/// Files that are left below a folder of pins; none when it is gone.
pub fn pins(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let Ok(entries) = fs::read_dir(folder) else {
        return found;
    };
    for path in entries.flatten().map(|entry| entry.path()) {
        if path.is_dir() {
            found.extend(pins(&path));
        } else {
            found.push(path.display().to_string());
        }
    }
    found.sort();
    found
}

/// Asserts that neither programs, filters, qdiscs nor pins are left. The kernel takes a link off a
/// moment after its last pin or descriptor is gone, so this waits for it.
///
/// # Panics
///
/// When something stays.
#[track_caller]
pub fn nothing(ns: &NetNs, folder: &Path) {
    assert_eq!(pins(folder), Vec::<String>::new(), "left pinned");
    assert!(!folder.exists(), "{} is left", folder.display());
    let mut left = Vec::new();
    let end = Instant::now() + wait::DEADLINE;
    while Instant::now() < end {
        left = attached(ns);
        if left.is_empty() {
            return;
        }
    }
    panic!("left on the devices: {left:?}");
}
