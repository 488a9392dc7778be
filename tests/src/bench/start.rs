//! Part (d): from exec to the first count, and the memory of the process and of its maps.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};

use super::{
    Plan,
    lab::{DEVICE, Lab},
    report::{Section, Table, Target},
    stats::{Estimate, Rounds, number},
};

/// Watched groups.
const GROUPS: [u16; 2] = [1, 4096];
/// Ticks after which the memory is looked at.
const TICKS: usize = 3;

const MOST_MILLISECONDS: f64 = 300.0;
const MOST_MIB: f64 = 20.0;

/// Measures and reports.
pub(super) fn measure(plan: &Plan) -> Result<Section> {
    let binary = binary()?;
    let lab = Lab::new()?;
    lab.ns.ip(&format!("route add default via 10.9.0.2 dev {DEVICE}\n"));
    let mut rounds = Rounds::default();
    let mut memory = BTreeMap::new();
    lab.ns.run(|| {
        for round in 0..plan.start_rounds {
            for groups in GROUPS {
                let time = first_count(&binary, groups)?;
                rounds.record(groups, round, time.as_secs_f64() * 1e3);
            }
        }
        for groups in GROUPS {
            memory.insert(groups, Memory::of_run(&binary, groups)?);
        }
        anyhow::Ok(())
    })?;
    Ok(report(&rounds, &memory))
}

/// `traffic`, as `cargo xtask bench` says or as cargo put it beside this program.
fn binary() -> Result<PathBuf> {
    let path = match std::env::var_os("TRAFFIC_BIN") {
        Some(path) => PathBuf::from(path),
        None => std::env::current_exe()?.with_file_name("traffic"),
    };
    ensure!(path.is_file(), "no program {}: build it with `cargo xtask build`", path.display());
    Ok(path)
}

/// A `traffic run` that is ended when this value goes.
struct Running {
    child: Child,
    lines: BufReader<std::process::ChildStdout>,
}

impl Running {
    /// Starts it in this thread's network namespace, where one device has a default route.
    fn start(binary: &Path, groups: u16, more: &[&str]) -> Result<Self> {
        let ports: Vec<String> = (1..=groups).map(|port| port.to_string()).collect();
        let mut child = Command::new(binary)
            .args(["run", "--output", "json", "--no-ledger", "--ports"])
            .arg(ports.join(","))
            .args(more)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .with_context(|| format!("start {}", binary.display()))?;
        let stdout = child.stdout.take().context("a pipe was asked for")?;
        Ok(Self { child, lines: BufReader::new(stdout) })
    }

    fn document(&mut self) -> Result<Value> {
        let mut line = String::new();
        self.lines.read_line(&mut line)?;
        serde_json::from_str(&line).with_context(|| format!("understand what it wrote: {line}"))
    }

    fn pid(&self) -> Result<Pid> {
        Ok(Pid::from_raw(i32::try_from(self.child.id())?))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Ok(pid) = self.pid() {
            // It may have ended by itself.
            let _ = kill(pid, Signal::SIGTERM);
        }
        // What it still writes may be more than a pipe holds, and then it would wait for a reader.
        let _ = io::copy(&mut self.lines, &mut io::sink());
        if let Err(error) = self.child.wait() {
            eprintln!("left behind: a running traffic: {error}");
        }
    }
}

/// From exec to its first document.
fn first_count(binary: &Path, groups: u16) -> Result<Duration> {
    let begin = Instant::now();
    let mut running = Running::start(binary, groups, &["--count", "1"])?;
    let document = running.document()?;
    let time = begin.elapsed();
    let devices = document["devices"].as_object().map_or(0, serde_json::Map::len);
    ensure!(devices == 1, "it counts on {devices} devices: {document}");
    Ok(time)
}

/// KiB of a running process.
#[derive(Clone, Debug)]
struct Memory {
    resident: u64,
    most: u64,
    /// By name, as the kernel charges them.
    maps: BTreeMap<String, u64>,
}

impl Memory {
    fn of_run(binary: &Path, groups: u16) -> Result<Self> {
        let mut running = Running::start(binary, groups, &["--interval", "50ms"])?;
        for _ in 0..TICKS {
            running.document()?;
        }
        let process = PathBuf::from("/proc").join(running.pid()?.to_string());
        let status = fs::read_to_string(process.join("status"))?;
        let of = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let value = line.and_then(|line| line.trim().strip_suffix(" kB"));
            value
                .and_then(|value| value.trim().parse().ok())
                .with_context(|| format!("{name} of the process"))
        };
        Ok(Self {
            resident: of("VmRSS:")?,
            most: of("VmHWM:")?,
            maps: maps(&process.join("fdinfo"))?,
        })
    }

    fn map_total(&self) -> u64 {
        self.maps.values().sum()
    }
}

/// The BPF maps that a process has open: their size, by their kind and dimensions.
fn maps(fdinfo: &Path) -> Result<BTreeMap<String, u64>> {
    let mut by_id = BTreeMap::new();
    for entry in fs::read_dir(fdinfo)? {
        // One that is closed meanwhile does not count.
        let Ok(text) = fs::read_to_string(entry?.path()) else {
            continue;
        };
        let fields: BTreeMap<&str, &str> = text
            .lines()
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.trim(), value.trim()))
            .collect();
        if let (Some(id), Some(bytes)) = (fields.get("map_id"), fields.get("memlock")) {
            let field = |name: &str| fields.get(name).copied().unwrap_or("?");
            let name = format!(
                "type {}, {} x {} bytes",
                field("map_type"),
                field("max_entries"),
                field("value_size")
            );
            by_id.insert((*id).to_owned(), (name, bytes.parse::<u64>()? / 1024));
        }
    }
    ensure!(!by_id.is_empty(), "no BPF map is open");
    let mut maps = BTreeMap::new();
    for (name, kib) in by_id.into_values() {
        *maps.entry(name).or_insert(0) += kib;
    }
    Ok(maps)
}

fn mib(kib: u64) -> String {
    let kib = u32::try_from(kib).unwrap_or(u32::MAX);
    format!("{:.1}", f64::from(kib) / 1024.0)
}

fn report(rounds: &Rounds<u16>, memory: &BTreeMap<u16, Memory>) -> Section {
    let start = |groups: u16| rounds.of(&groups);
    let rows = memory
        .iter()
        .map(|(groups, memory)| {
            vec![
                number((*groups).into()),
                start(*groups).map(|time| time.text()).unwrap_or_default(),
                mib(memory.resident),
                mib(memory.most),
                mib(memory.map_total()),
            ]
        })
        .collect();
    let head = ["groups", "start to first count, ms", "resident, MiB", "most, MiB", "maps, MiB"];
    let json = memory
        .iter()
        .map(|(groups, memory)| {
            json!({
                "groups": groups,
                "first_count_ms": start(*groups).map(|time| time.json()),
                "resident_kib": memory.resident,
                "most_kib": memory.most,
                "maps_kib": memory.maps,
            })
        })
        .collect();
    let slowest = GROUPS
        .into_iter()
        .filter_map(|groups| Some((groups, start(groups)?)))
        .max_by(|(_, a): &(u16, Estimate), (_, b)| a.median.total_cmp(&b.median));
    let largest = memory.iter().max_by_key(|(_, memory)| memory.most);
    let mut targets = Vec::new();
    targets.extend(largest.map(|(groups, memory)| Target {
        promise: "memory of the process: at most 20 MiB".to_owned(),
        measured: format!("{} MiB ({} groups)", mib(memory.most), number((*groups).into())),
        kept: mib(memory.most).parse().is_ok_and(|most: f64| most <= MOST_MIB),
    }));
    targets.extend(slowest.map(|(groups, time)| Target {
        promise: "start to first count: at most 300 ms after exec".to_owned(),
        measured: format!("{} ms ({} groups)", time.text(), number(groups.into())),
        kept: time.median <= MOST_MILLISECONDS,
    }));
    Section {
        name: "start",
        title: "Start and memory".to_owned(),
        method: "`traffic run --output json` is started in a network namespace with a default \
                 route; the time is from before the start of the process to its first document. \
                 Memory is looked at after three ticks; maps are what the kernel charges for them."
            .to_owned(),
        tables: vec![Table {
            title: "By watched groups of one port".to_owned(),
            head: head.map(str::to_owned).to_vec(),
            rows,
        }],
        charts: Vec::new(),
        json,
        targets,
    }
}
