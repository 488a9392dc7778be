//! `traffic doctor`: facts of this host, which meter would be used and why, each with its remedy.

use std::process::ExitCode;

use anyhow::Result;
use serde::Serialize;

use super::{Common, host, print, proxy::ProxyArgs, stats};
use crate::{
    accounting::{
        ident::{Hook, MeterKind, shown},
        proxy::ApiState,
    },
    daemon::{Question, ask},
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
    let (meter, meters) = meters(args);
    let mut checks = vec![Check::ok("kernel", facts::kernel()), object(), capabilities(meter)];
    checks.extend(meters);
    checks.push(cgroup2());
    checks.push(bpffs(common));
    checks.extend(devices());
    checks.push(ports());
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
        print(&text(meter, &checks))?;
    }
    Ok(ExitCode::from(u8::from(failed)))
}

fn text(meter: Option<MeterKind>, checks: &[Check]) -> String {
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
    match meter {
        Some(MeterKind::Ebpf(hook)) => {
            text.push_str(&format!("\n`traffic run` would count at {}.\n", hook.name()));
        }
        Some(kind) => text.push_str(&format!(
            "\n`traffic run` would count with rules of {}, because eBPF cannot run here.\n",
            kind.name()
        )),
        None => text.push_str("\n`traffic run` cannot count here.\n"),
    }
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
        Ok(None) => Check::info(NAME, "there is none yet", "`traffic run` begins one"),
        Ok(Some(None)) => Check::ok(NAME, "nothing is booked yet"),
        Ok(Some(Some(extent))) => {
            let last = time(i128::from(extent.end) * 1_000_000_000);
            Check::ok(NAME, format!("booked until {last}; {other}"))
        }
        Err(error) => {
            let remedy = error.remedy();
            Check::fail(NAME, format!("{:#}", anyhow::Error::from(error)), remedy)
        }
    }
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

fn meters(args: &Args) -> (Option<MeterKind>, Vec<Check>) {
    const fn name(kind: MeterKind) -> &'static str {
        match kind {
            MeterKind::Ebpf(Hook::Tcx) => "hook tcx",
            MeterKind::Ebpf(Hook::Tc) => "hook tc",
            MeterKind::Ebpf(Hook::Cgroup) => "hook cgroup",
            MeterKind::Nft => "nft",
            MeterKind::Iptables => "iptables",
        }
    }
    let trials = meter::try_all(args.cgroup.as_deref());
    let chosen = facts::choose(&trials).ok().map(|(kind, _)| kind);
    let checks = trials
        .into_iter()
        .map(|(kind, result)| match result {
            Ok(()) => {
                let by_auto = if Some(kind) == chosen { "; chosen by auto" } else { "" };
                let adds = match kind {
                    MeterKind::Ebpf(hook) if ebpf::adds_atomically(hook) => "; adds are atomic",
                    _ => "",
                };
                Check::ok(name(kind), format!("works{by_auto}{adds}"))
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

fn devices() -> Vec<Check> {
    let gathered = match Facts::gather() {
        Ok(gathered) => gathered,
        Err(error) => return vec![Check::failed("devices", error)],
    };
    let choice = choose(&gathered, &Wanted::DefaultRoutes);
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
    if checks.is_empty() {
        checks.push(Check::info(
            "device",
            "none has a default route",
            "counting begins when one does; --iface names others",
        ));
    }
    checks
}

fn ports() -> Check {
    match listening() {
        Ok(groups) if groups.is_empty() => Check::info(
            "ports",
            "nothing listens here that others can reach",
            "name them with --ports",
        ),
        Ok(groups) => {
            let shown: Vec<_> = groups.iter().take(12).map(ToString::to_string).collect();
            let more = groups.len().saturating_sub(shown.len());
            let more = if more == 0 { String::new() } else { format!(" and {more} more") };
            Check::ok("ports", format!("listening: {}{more}", shown.join(", ")))
        }
        Err(error) => Check::failed("ports", error),
    }
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
