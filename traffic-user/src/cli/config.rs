//! `traffic config check`: whether a configuration can be used, and what it sets.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Result;
use clap::Subcommand;
use serde::Serialize;
use serde_json::{Map, Value};

use super::{CHECKS, Global, print};
use crate::{
    config::{Config, ConfigError, DEFAULT_CONFIG, Mistake, Setting},
    view::json::JSON_VERSION,
};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Say whether a configuration can be used, and what it sets; or all that is wrong with it
    Check {
        /// Which file. Without it: the one that --config names, or /etc/traffic/traffic.toml
        #[arg(value_name = "FILE")]
        file: Option<PathBuf>,
    },
}

#[derive(Serialize)]
struct Document {
    jsonversion: &'static str,
    path: String,
    /// False where there is none, and defaults hold.
    present: bool,
    good: bool,
    settings: Map<String, Value>,
    mistakes: Vec<MistakeDocument>,
}

#[derive(Serialize)]
struct MistakeDocument {
    line: usize,
    what: String,
}

pub(super) fn run(global: &Global, args: Args) -> Result<ExitCode> {
    let What::Check { file } = args.what;
    let named = file.or_else(|| global.config.clone());
    let path = named.clone().unwrap_or_else(|| DEFAULT_CONFIG.into());
    let present = named.is_some() || path.exists();
    let read = Config::load(named.as_deref(), CHECKS);
    let code = ExitCode::from(if read.is_ok() { 0 } else { 2 });
    if global.json {
        let document = document(&path, present, read)?;
        print(&format!("{}\n", serde_json::to_string(&document)?))?;
        return Ok(code);
    }
    print(&text(&path, present, &read?))?;
    Ok(code)
}

fn text(path: &Path, present: bool, config: &Config) -> String {
    let path = path.to_string_lossy().escape_debug().to_string();
    if !present {
        return format!("{path} is not there: defaults hold\n");
    }
    let settings = config.settings();
    let mut text = match settings.len() {
        0 => format!("{path} is good and sets nothing: defaults hold\n"),
        _ => format!("{path} is good and sets:\n"),
    };
    for (key, value) in settings {
        text.push_str(&format!("  {key} = {value}\n"));
    }
    text
}

/// # Errors
///
/// When the file cannot be read: then nothing is known of it.
fn document(path: &Path, present: bool, read: Result<Config, ConfigError>) -> Result<Document> {
    let (config, mistakes) = match read {
        Ok(config) => (config, Vec::new()),
        Err(ConfigError::Wrong { mistakes, .. }) => (Config::default(), mistakes),
        Err(error) => return Err(error.into()),
    };
    let value = |setting| match setting {
        Setting::Text(text) => Value::from(text),
        Setting::Texts(texts) => Value::from(texts),
        Setting::Switch(value) => Value::from(value),
        Setting::Number(number) => Value::from(number),
    };
    let settings = config.settings().into_iter();
    Ok(Document {
        jsonversion: JSON_VERSION,
        path: path.to_string_lossy().into_owned(),
        present,
        good: mistakes.is_empty(),
        settings: settings.map(|(key, setting)| (key.to_owned(), value(setting))).collect(),
        mistakes: mistakes
            .into_iter()
            .map(|Mistake { line, what }| MistakeDocument { line, what })
            .collect(),
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        accounting::{
            period::{Counting, Unit},
            retention::Retention,
        },
        meter::ebpf::DEFAULT_PINS,
        state,
    };

    const EXAMPLE: &str = include_str!("../../../contrib/traffic.toml");

    /// The example with the keys in force that it shows.
    fn in_force() -> String {
        let key = |line: &str| line.starts_with(|c: char| c.is_ascii_lowercase());
        EXAMPLE
            .lines()
            .map(|line| line.strip_prefix('#').filter(|rest| key(rest)).unwrap_or(line))
            .map(|line| format!("{line}\n"))
            .collect()
    }

    #[test]
    fn the_example_explains_every_key_and_sets_none() {
        assert_eq!(Config::parse(EXAMPLE, CHECKS), Ok(Config::default()));
        let example = Config::parse(&in_force(), CHECKS).unwrap();
        // One does not go with iface, and is shown in its own words.
        assert!(EXAMPLE.contains("Example: cgroup = "));
        let mut shown: Vec<_> = example.settings().into_iter().map(|(key, _)| key).collect();
        shown.insert(3, "cgroup");
        let unknown = Config::parse("nothing = 1", CHECKS).unwrap_err().remove(0).what;
        let (_, keys) = unknown.split_once("there are ").unwrap();
        assert_eq!(shown.join(", "), keys);
    }

    #[test]
    fn the_defaults_of_the_example_are_those_of_the_program() {
        let example = Config::parse(&in_force(), CHECKS).unwrap();
        let want = Config {
            meter: Some(None),
            interval: Some(Duration::from_secs(10)),
            persist: Some(false),
            pins: Some(DEFAULT_PINS.into()),
            state: Some(state::DEFAULT.into()),
            ledger: Some(true),
            proxy: Some(true),
            billing_day: Some(1),
            counting: Some(Counting::default()),
            unit: Some(Unit::default()),
            // Shown as examples.
            ports: example.ports.clone(),
            iface: example.iface.clone(),
            cgroup: example.cgroup.clone(),
            output: example.output,
            proxy_config: example.proxy_config.clone(),
            api: example.api.clone(),
            time_zone: example.time_zone.clone(),
            keep_minutes: example.keep_minutes,
            keep_hours: example.keep_hours,
            keep_days: example.keep_days,
        };
        assert_eq!(example, want);
        assert_eq!(example.retention(), Retention::default());
        // Whatever is only an example is called one, just above.
        let without_default =
            ["ports", "iface", "cgroup", "output", "proxy_config", "api", "time_zone"];
        let mut before = "";
        for line in EXAMPLE.lines() {
            if let Some((key, _)) = line.strip_prefix('#').and_then(|line| line.split_once(" = ")) {
                let example = before.ends_with("Example:");
                assert_eq!(example, without_default.contains(&key), "{key}");
            }
            before = line;
        }
    }

    #[test]
    fn a_file_that_cannot_be_read_is_no_document() {
        let read = Config::load(Some(Path::new("/nowhere")), CHECKS);
        assert!(document(Path::new("/nowhere"), true, read).is_err());
    }
}
