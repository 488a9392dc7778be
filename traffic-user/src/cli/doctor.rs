//! `traffic doctor`: facts of this host, which meter would be used and why, each with its remedy.

use std::{path::Path, process::ExitCode};

use anyhow::Result;
use nix::unistd::AccessFlags;
use serde::Serialize;

use super::{Common, host, print, proxy::ProxyArgs, stats};
use crate::{
    accounting::{
        ident::{Group, Hook, MeterKind, shown},
        proxy::ApiState,
    },
    daemon::{Question, ask, unix_time},
    ledger::Reader,
    meter::{
        self, Holder, MeterError,
        devices::{Facts, Wanted, choose},
        ebpf::{self, OBJECT},
        host as facts,
        listening::listening,
        proxy::{Latest, ProxyMeter},
    },
    proxy_config::advice,
    view::json::{JSON_VERSION, time},
};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Folder in cgroup2 to try the cgroup meter at. Without it: its root
    #[arg(long, value_name = "PATH")]
    cgroup: Option<std::path::PathBuf>,
    #[command(flatten)]
    proxy: ProxyArgs,
}

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Status {
    Ok,
    Info,
    Fail,
}

#[derive(Debug, Serialize)]
struct Check {
    name: &'static str,
    status: Status,
    found: String,
    remedy: Option<String>,
    /// To be added to the proxy's config.
    #[serde(skip_serializing_if = "Option::is_none")]
    paste: Option<serde_json::Value>,
}

impl Check {
    fn ok(name: &'static str, found: impl Into<String>) -> Self {
        Self { name, status: Status::Ok, found: found.into(), remedy: None, paste: None }
    }

    fn info(name: &'static str, found: impl Into<String>, remedy: &str) -> Self {
        let remedy = (!remedy.is_empty()).then(|| remedy.to_owned());
        Self { name, status: Status::Info, found: found.into(), remedy, paste: None }
    }

    fn fail(
        name: &'static str,
        found: impl Into<String>,
        remedy: impl Into<Option<String>>,
    ) -> Self {
        Self { name, status: Status::Fail, found: found.into(), remedy: remedy.into(), paste: None }
    }

    fn failed(name: &'static str, error: MeterError) -> Self {
        let remedy = error.remedy();
        Self::fail(name, format!("{:#}", anyhow::Error::from(error)), remedy)
    }
}

#[derive(Serialize)]
struct Document<'a> {
    jsonversion: &'static str,
    host: String,
    version: &'static str,
    meter: Option<&'static str>,
    checks: &'a [Check],
}

pub(super) fn run(common: &Common, args: &Args) -> Result<ExitCode> {
    let asked = asked(common);
    let (meter, meters) = meters(common, args);
    let mut checks = vec![Check::ok("kernel", facts::kernel()), object(), capabilities(meter)];
    checks.extend(meters);
    checks.push(cgroup2());
    checks.push(bpffs(common));
    checks.extend(devices(common));
    checks.push(ports(common));
    checks.push(pins(common));
    checks.push(leftovers(common));
    checks.push(ledger(common));
    checks.extend(proxy(common, args));
    let failed = checks.iter().any(|check| check.status == Status::Fail);
    if common.json {
        let document = Document {
            jsonversion: JSON_VERSION,
            host: host(),
            version: env!("CARGO_PKG_VERSION"),
            meter: meter.map(MeterKind::name),
            checks: &checks,
        };
        print(&format!("{}\n", serde_json::to_string(&document)?))?;
    } else {
        print(&text((meter, asked), &checks))?;
    }
    Ok(ExitCode::from(u8::from(failed)))
}

/// `meter` is what would count, and what the configuration asks for.
fn text((meter, asked): (Option<MeterKind>, Option<MeterKind>), checks: &[Check]) -> String {
    let mut text = String::new();
    for Check { name, status, found, remedy, paste } in checks {
        let mark = match status {
            Status::Ok => "ok  ",
            Status::Info => "-   ",
            Status::Fail => "FAIL",
        };
        text.push_str(&format!("{mark}  {name:<12}  {found}\n"));
        if let Some(remedy) = remedy {
            text.push_str(&format!("                    remedy: {remedy}\n"));
        }
        if let Some(Ok(paste)) = paste.as_ref().map(serde_json::to_string_pretty) {
            text.push_str(&format!("add to the proxy's config:\n{paste}\n"));
        }
    }
    let place = match meter.or(asked) {
        Some(MeterKind::Ebpf(hook)) => format!("at {}", hook.name()),
        Some(kind) => format!("with rules of {}", kind.name()),
        None => "here".to_owned(),
    };
    let why = match (meter, asked) {
        (_, Some(_)) => ", as the configuration asks",
        (Some(MeterKind::Nft | MeterKind::Iptables), None) => ", because eBPF cannot run here",
        (_, None) => "",
    };
    let can = if meter.is_some() { "would" } else { "cannot" };
    text.push_str(&format!("\n`traffic run` {can} count {place}{why}.\n"));
    text
}

/// What a daemon that runs says of the ledger, else whether it can be read.
fn ledger(common: &Common) -> Check {
    const NAME: &str = "ledger";
    match ask(&common.state, &Question::Ledger) {
        Ok(Some(said)) => return Check::ok(NAME, said),
        // It says what helps as well.
        Err(error) => return Check::fail(NAME, format!("{error:#}"), None),
        Ok(None) => {}
    }
    let holder = Holder::of_this_netns();
    let other = match holder {
        None => "no daemon runs".to_owned(),
        Some(Holder { pid, books: Some(books) }) => {
            let here = std::path::absolute(&common.state).is_ok_and(|state| state == books);
            let books = books.to_string_lossy().escape_debug().to_string();
            if here {
                let gone = if common.state.is_dir() { "does not answer in" } else { "has lost" };
                let found = format!(
                    "nothing is booked: the daemon that runs (process {pid}) {gone} its state folder {books}"
                );
                let remedy = "make the folder again, or put it back: what was counted is kept in memory, and booked then";
                return Check::fail(NAME, found, Some(remedy.to_owned()));
            }
            format!("the daemon that runs (process {pid}) books in {books}")
        }
        Some(Holder { pid, books: None }) => {
            format!("the daemon that runs (process {pid}) keeps no ledger")
        }
    };
    let read = Reader::open(&common.state)
        .and_then(|reader| reader.map(|reader| reader.extent()).transpose());
    match read {
        Ok(None) if common.config.ledger == Some(false) => {
            Check::info(NAME, "the configuration asks for none", "")
        }
        Ok(None) => match cannot_be_written(&common.state) {
            None => Check::info(NAME, "there is none yet", "`traffic run` begins one"),
            Some(error) => {
                let found = format!(
                    "there is none, and none can be begun in {}: {error}",
                    shown(&common.state.display().to_string())
                );
                let remedy = "name another folder with --state, or make this one writable";
                Check::fail(NAME, found, Some(remedy.to_owned()))
            }
        },
        Ok(Some(None)) => Check::ok(NAME, "nothing is booked yet"),
        Ok(Some(Some(extent))) => {
            // The last bucket goes on for minutes.
            let last = time((i128::from(extent.end) * 1_000_000_000).min(unix_time()));
            Check::ok(NAME, format!("booked until {last}; {other}"))
        }
        Err(error) => {
            let remedy = error.remedy();
            Check::fail(NAME, format!("{:#}", anyhow::Error::from(error)), remedy)
        }
    }
}

/// Why nothing can be written in a folder, or where it is to be made.
fn cannot_be_written(folder: &Path) -> Option<nix::errno::Errno> {
    let there = folder.ancestors().find(|path| path.as_os_str().is_empty() || path.exists())?;
    let there = if there.as_os_str().is_empty() { Path::new(".") } else { there };
    nix::unistd::access(there, AccessFlags::W_OK | AccessFlags::X_OK).err()
}

fn object() -> Check {
    if OBJECT.is_empty() {
        Check::failed("programs", MeterError::Stub)
    } else {
        Check::ok("programs", format!("{} KiB of eBPF inside", OBJECT.len() / 1024))
    }
}

/// What is missing fails only where nothing counts without it.
fn capabilities(meter: Option<MeterKind>) -> Check {
    const NAME: &str = "capabilities";
    let missing = facts::missing_capabilities();
    if missing.is_empty() {
        return Check::ok(NAME, "CAP_NET_ADMIN, CAP_BPF and CAP_PERFMON (or CAP_SYS_ADMIN)");
    }
    let denied =
        MeterError::Denied { doing: "count in the kernel", capability: missing.join(", ") };
    match meter {
        None => Check::failed(NAME, denied),
        Some(_) => Check::info(NAME, denied.to_string(), &denied.remedy().unwrap_or_default()),
    }
}

/// The meter that the configuration asks for. A path in cgroup2 says which is meant.
fn asked(common: &Common) -> Option<MeterKind> {
    let at_a_cgroup = common.config.cgroup.is_some().then_some(MeterKind::Ebpf(Hook::Cgroup));
    common.config.meter.flatten().or(at_a_cgroup)
}

/// What would count, and how each meter does here. One that the configuration asks for is taken, or none.
fn meters(common: &Common, args: &Args) -> (Option<MeterKind>, Vec<Check>) {
    const fn name(kind: MeterKind) -> &'static str {
        match kind {
            MeterKind::Ebpf(Hook::Tcx) => "hook tcx",
            MeterKind::Ebpf(Hook::Tc) => "hook tc",
            MeterKind::Ebpf(Hook::Cgroup) => "hook cgroup",
            MeterKind::Nft => "nft",
            MeterKind::Iptables => "iptables",
        }
    }
    let asked = asked(common);
    let cgroup = args.cgroup.as_deref().or(common.config.cgroup.as_deref());
    let trials = meter::try_all(cgroup);
    let chosen = match asked {
        None => facts::choose(&trials).ok().map(|(kind, _)| kind),
        Some(asked) => trials
            .iter()
            .find_map(|(kind, tried)| (*kind == asked && tried.is_ok()).then_some(asked)),
    };
    let by = if asked.is_some() { "the configuration" } else { "auto" };
    let checks = trials
        .into_iter()
        .map(|(kind, result)| match result {
            Ok(()) => {
                let chosen =
                    if Some(kind) == chosen { format!("; chosen by {by}") } else { String::new() };
                let adds = match kind {
                    MeterKind::Ebpf(hook) if ebpf::adds_atomically(hook) => "; adds are atomic",
                    _ => "",
                };
                Check::ok(name(kind), format!("works{chosen}{adds}"))
            }
            Err(reason) if chosen.is_some() => Check::info(name(kind), reason, ""),
            Err(reason) => Check::fail(name(kind), reason, None),
        })
        .collect();
    (chosen, checks)
}

fn cgroup2() -> Check {
    match facts::cgroup2() {
        Some(path) => Check::ok("cgroup2", format!("at {}", path.display())),
        None => Check::info("cgroup2", "not mounted", "needed for --meter cgroup only"),
    }
}

fn bpffs(common: &Common) -> Check {
    if ebpf::is_on_bpffs(&common.pins) {
        Check::ok("bpffs", format!("{} can hold pins", common.pins.display()))
    } else {
        Check::info(
            "bpffs",
            format!("{} is not on bpffs", common.pins.display()),
            "needed for --persist only, which mounts it at /sys/fs/bpf",
        )
    }
}

fn devices(common: &Common) -> Vec<Check> {
    let gathered = match Facts::gather() {
        Ok(gathered) => gathered,
        Err(error) => return vec![Check::failed("devices", error)],
    };
    // The configuration was read with the same check.
    let wanted = Wanted::new(common.config.iface.as_deref().unwrap_or_default());
    let choice = choose(&gathered, &wanted.unwrap_or_default());
    let mut checks: Vec<Check> = choice
        .devices
        .iter()
        .map(|device| {
            let header = match device.link_header {
                0 => "no link header".to_owned(),
                bytes => format!("link header of {bytes} bytes"),
            };
            Check::ok("device", format!("{} ({header})", shown(&device.name)))
        })
        .collect();
    for (name, reason) in choice.left_out {
        checks.push(Check::info("device", format!("{} left out: {reason}", shown(&name)), ""));
    }
    for pattern in choice.unmatched {
        let found = format!("none is called {}, as the configuration asks", shown(&pattern));
        checks.push(Check::info("device", found, "look at iface in the configuration"));
    }
    if checks.is_empty() {
        checks.push(Check::info(
            "device",
            "none has a default route",
            "counting begins when one does; --iface names others",
        ));
    }
    checks
}

fn ports(common: &Common) -> Check {
    if let Some(groups) = &common.config.ports {
        return Check::ok("ports", format!("the configuration names {}", some_of(groups.iter())));
    }
    match listening() {
        Ok(groups) if groups.is_empty() => Check::info(
            "ports",
            "nothing listens here that others can reach",
            "name them with --ports",
        ),
        Ok(groups) => Check::ok("ports", format!("listening: {}", some_of(groups.iter()))),
        Err(error) => Check::failed("ports", error),
    }
}

/// The first few, and how many more.
fn some_of<'a>(groups: impl ExactSizeIterator<Item = &'a Group>) -> String {
    let more = groups.len().saturating_sub(12);
    let named: Vec<_> = groups.take(12).map(|group| shown(&group.to_string())).collect();
    let more = if more == 0 { String::new() } else { format!(" and {more} more") };
    format!("{}{more}", named.join(", "))
}

fn pins(common: &Common) -> Check {
    match meter::installed(&common.pins) {
        Ok(None) => Check::info("persisted", "nothing", ""),
        Ok(Some((snapshot, _))) => {
            Check::ok("persisted", format!("counting goes on at {}", snapshot.meter))
        }
        Err(error) => Check::failed("persisted", error),
    }
}

fn leftovers(common: &Common) -> Check {
    // What goes on counting was asked to; only what nobody reads is left over.
    if meter::installed(&common.pins).is_ok_and(|installed| installed.is_some()) {
        return Check::info("leftovers", "not looked for while something goes on counting", "");
    }
    if let Some(Holder { pid, .. }) = Holder::of_this_netns() {
        let found = format!("not looked for while a daemon runs (process {pid})");
        return Check::info("leftovers", found, "");
    }
    match meter::clean(&common.pins, true) {
        Ok(said) if said.is_empty() => Check::ok("leftovers", "none"),
        Ok(said) => Check::info("leftovers", said.join(", "), "`traffic clean` removes them"),
        Err(error) => Check::failed("leftovers", error),
    }
}

/// The proxy's side: its config, what it counts, and whether it answers.
fn proxy(common: &Common, args: &Args) -> Vec<Check> {
    const NAME: &str = "proxy";
    let failed = |error: anyhow::Error| Check::fail(NAME, format!("{error:#}"), None);
    let place = match args.proxy.place(common) {
        Ok(Some(place)) => place,
        Ok(None) => return vec![Check::info(NAME, "not looked for", "")],
        Err(error) => return vec![failed(error)],
    };
    let config = match place.config() {
        Ok(config) => config,
        Err(error) => return vec![failed(error)],
    };
    let mut checks = Vec::new();
    let good = match &config {
        None => {
            checks.push(Check::info(
                NAME,
                "no config of a proxy that listens in the usual places",
                "name it with --proxy-config; without a proxy, ports are counted and no users",
            ));
            None
        }
        Some(config) => {
            if let Some(error) = config.error() {
                checks.push(Check::fail(NAME, error.to_string(), Some(error.remedy().to_owned())));
            }
            config.good()
        }
    };
    if let (Some(config), Some(good)) = (&config, good) {
        let paths: Vec<_> = config.paths().iter().map(|path| path.display().to_string()).collect();
        let users: usize = good.inbounds.iter().map(|inbound| inbound.users.emails.len()).sum();
        let groups = good.inbounds.len();
        let found = format!("{}: {groups} groups, {users} users", paths.join(", "));
        checks.push(Check::ok(NAME, found));
        for problem in &good.problems {
            checks.push(Check::info("config", problem.to_string(), ""));
        }
        for note in &good.notes {
            checks.push(Check::info("config", note.to_string(), ""));
        }
    }
    let address = place.address(good);
    let answer = address.map(|address| stats::poll(ProxyMeter::new(address)));
    let product = match &answer {
        Some(Ok(latest)) => latest.identity.and_then(|identity| identity.product),
        _ => None,
    };
    match answer {
        None => {}
        Some(Err(error)) => checks.push(Check::fail("api", format!("{error:#}"), None)),
        Some(Ok(latest)) => checks.extend(api(&latest)),
    }
    if let Some(advice) = good.and_then(|good| advice(good, product)) {
        checks.push(Check {
            name: "statistics",
            status: Status::Info,
            found: advice.sentences.join("; "),
            remedy: Some("add what is missing and restart the proxy".to_owned()),
            paste: advice.json,
        });
    }
    checks
}

fn api(latest: &Latest) -> Option<Check> {
    let health = latest.health.as_ref()?;
    if health.state != ApiState::Ok {
        let reason = health.reason.as_deref().unwrap_or_default();
        let found = format!("{}: {reason}", health.state.name());
        return Some(Check::fail("api", found, health.remedy.clone()));
    }
    let product = latest.identity.and_then(|identity| identity.product);
    let product = product.map_or("a proxy", |product| product.name());
    let counters = latest.snapshot.as_ref().map_or(0, |poll| poll.counters.len());
    Some(Check::ok("api", format!("{product} answers with {counters} counters")))
}
