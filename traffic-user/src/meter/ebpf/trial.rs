//! Which hooks work here: found out by using them, not from a version number.

use std::path::Path;

use aya::{
    Ebpf,
    programs::{
        LinkOrder, SchedClassifier, TcAttachType,
        tc::{self, NlOptions, TcAttachOptions},
    },
};
use traffic_ebpf::abi::programs;

use super::{
    Hook,
    attach::Attachments,
    cgroup_path,
    clsact::{self, Place},
    load::{self, Parameters},
};
use crate::accounting::ident::shown;
use crate::meter::{
    devices::{Facts, Wanted, choose},
    error::{MeterError, chain},
    host::{self, Reasons, Trial},
};

/// The best hook that works, and why better ones do not.
pub(super) fn best_hook(
    ebpf: &mut Ebpf,
    cgroup: Option<&Path>,
    wanted: &Wanted,
) -> Result<(Hook, Reasons<Hook>), MeterError> {
    let mut trials = Vec::new();
    for hook in Hook::ALL {
        let result = try_hook(ebpf, hook, cgroup, wanted);
        let works = result.is_ok();
        trials.push((hook, result));
        if works {
            break;
        }
    }
    host::choose(&trials).map_err(|reasons| MeterError::Unsupported {
        feature: "counting with eBPF",
        reason: reasons
            .iter()
            .map(|(hook, reason)| format!("{}: {reason}", hook.name()))
            .collect::<Vec<_>>()
            .join("; "),
    })
}

fn try_hook(
    ebpf: &mut Ebpf,
    hook: Hook,
    cgroup: Option<&Path>,
    wanted: &Wanted,
) -> Result<(), String> {
    match hook {
        Hook::Tcx | Hook::Tc => {
            let program =
                load::classifier(ebpf, programs::ETHERNET_IN).map_err(|error| chain(&error))?;
            try_on_loopback(program, hook)?;
            if hook == Hook::Tc { places_are_free(wanted) } else { Ok(()) }
        }
        Hook::Cgroup => {
            load::cgroup_skb(ebpf, programs::CGROUP_IN).map_err(|error| chain(&error))?;
            let path = cgroup_path(cgroup).map_err(|error| error.to_string())?;
            Attachments::new(hook, None).put_on_cgroup(ebpf, &path).map_err(|error| chain(&error))
        }
    }
}

/// Tries every hook, and loads every program: for `doctor`.
///
/// # Errors
///
/// When not even the maps can be made.
pub fn try_all(cgroup: Option<&Path>) -> Result<Vec<Trial<Hook>>, MeterError> {
    // The kernel may be content with CAP_SYS_ADMIN where a run is not.
    let missing = host::missing_capabilities();
    if !missing.is_empty() {
        let capability = missing.join(", ");
        return Err(MeterError::Denied { doing: "count in the kernel", capability });
    }
    let parameters = Parameters { hook: Hook::Cgroup, slots: 1, log: false, pins: None };
    let mut ebpf = load::object(parameters)?;
    load::all(&mut ebpf)?;
    let mut tried = |hook| try_hook(&mut ebpf, hook, cgroup, &Wanted::DefaultRoutes);
    Ok(Hook::ALL.into_iter().map(|hook| (hook, tried(hook))).collect())
}

/// Whether every device that is to be counted can have a clsact qdisc. Devices that somebody named are
/// named in the error of attaching to them: no other hook would count on them either.
fn places_are_free(wanted: &Wanted) -> Result<(), String> {
    let Wanted::DefaultRoutes = wanted else { return Ok(()) };
    let facts = Facts::gather().map_err(|error| chain(&error))?;
    for device in choose(&facts, wanted).devices {
        if clsact::place(device.index).map_err(|error| chain(&error))? == Place::Ingress {
            let in_the_way = MeterError::QdiscInTheWay { device: shown(&device.name) };
            return Err(in_the_way.to_string());
        }
    }
    Ok(())
}

/// Tries a hook without touching any device that carries traffic: on the loopback of a network
/// namespace that exists only for this.
fn try_on_loopback(program: &mut SchedClassifier, hook: Hook) -> Result<(), String> {
    std::thread::scope(|scope| {
        let tried = scope.spawn(|| {
            if nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).is_err() {
                return ask_for_hook(hook);
            }
            let options = match hook {
                Hook::Tc => {
                    tc::qdisc_add_clsact("lo").map_err(|error| chain(&error))?;
                    TcAttachOptions::Netlink(NlOptions::default())
                }
                Hook::Tcx | Hook::Cgroup => TcAttachOptions::TcxOrder(LinkOrder::default()),
            };
            program
                .attach_with_options("lo", TcAttachType::Ingress, options)
                .and_then(|id| program.detach(id))
                .map_err(|error| chain(&error))
        });
        tried.join().unwrap_or_else(|_| Err("the trial panicked".to_owned()))
    })
}

/// Without the right to make a network namespace (CAP_SYS_ADMIN) a hook cannot be tried; the kernel
/// can still be asked whether it knows tcx, and clsact is older than any kernel that loads us.
fn ask_for_hook(hook: Hook) -> Result<(), String> {
    match hook {
        Hook::Tcx => SchedClassifier::query_tcx("lo", TcAttachType::Ingress)
            .map(drop)
            .map_err(|error| chain(&error)),
        Hook::Tc | Hook::Cgroup => Ok(()),
    }
}
