//! Where a run took place: without it a number says little.

use std::{fs, process::Command};

use nix::sys::utsname::uname;
use serde_json::{Map, Value};

use crate::need;

/// What may change a result and is not ours.
#[derive(Clone, Debug)]
pub struct Machine {
    /// UTC.
    pub date: String,
    /// Short, with `-dirty` where files differ from it.
    pub commit: String,
    facts: Vec<(&'static str, String)>,
}

impl Machine {
    /// Asks the kernel and the tools. What cannot be known is left out.
    pub fn look() -> Self {
        let date = first_line("date", &["-u", "+%Y-%m-%d %H:%M UTC"]).unwrap_or_default();
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
        let describe = ["-C", source, "describe", "--always", "--dirty", "--exclude=*"];
        let commit = first_line("git", &describe).unwrap_or_else(|| "unknown".to_owned());
        let mut facts = Vec::new();
        let mut fact = |name, value: Option<String>| facts.extend(value.map(|value| (name, value)));
        fact(
            "kernel",
            uname().ok().map(|names| {
                let text = |text: &std::ffi::OsStr| text.to_string_lossy().into_owned();
                format!("{} {}", text(names.release()), text(names.machine()))
            }),
        );
        fact("processor", processor());
        let cores = std::thread::available_parallelism();
        fact("cores", cores.ok().map(|cores| cores.to_string()));
        fact("memory", memory());
        fact("virtual", hypervisor());
        fact("iptables", first_line("iptables", &["--version"]));
        fact("nft", first_line("nft", &["--version"]));
        fact("ip", first_line("ip", &["-V"]));
        Self { date, commit, facts }
    }

    /// Names and values for people.
    pub fn lines(&self) -> impl Iterator<Item = (&str, &str)> {
        self.facts.iter().map(|(name, value)| (*name, value.as_str()))
    }

    /// For programs.
    pub fn json(&self) -> Value {
        let mut map: Map<String, Value> = self
            .facts
            .iter()
            .map(|(name, value)| ((*name).to_owned(), Value::from(value.as_str())))
            .collect();
        map.insert("date".into(), self.date.as_str().into());
        map.insert("commit".into(), self.commit.as_str().into());
        Value::Object(map)
    }
}

fn first_line(tool: &str, args: &[&str]) -> Option<String> {
    let output = Command::new(need::tool(tool)?).args(args).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().next()?.trim().to_owned();
    (output.status.success() && !line.is_empty()).then_some(line)
}

fn value_of(file: &str, key: &str) -> Option<String> {
    let text = fs::read_to_string(file).ok()?;
    text.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        (name.trim() == key).then(|| value.trim().to_owned())
    })
}

fn processor() -> Option<String> {
    let model = value_of("/proc/cpuinfo", "model name")?;
    let family = value_of("/proc/cpuinfo", "cpu family").unwrap_or_default();
    let number = value_of("/proc/cpuinfo", "model").unwrap_or_default();
    Some(format!("{model} (family {family}, model {number})"))
}

fn memory() -> Option<String> {
    let total = value_of("/proc/meminfo", "MemTotal")?;
    let kib: u64 = total.strip_suffix(" kB")?.parse().ok()?;
    Some(format!("{} GiB", (kib + (1 << 19)) >> 20))
}

fn hypervisor() -> Option<String> {
    let flags = value_of("/proc/cpuinfo", "flags")?;
    let inside = flags.split(' ').any(|flag| flag == "hypervisor");
    Some(if inside { "yes" } else { "no" }.to_owned())
}
