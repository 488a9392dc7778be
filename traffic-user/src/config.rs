//! The configuration file: what it may say, and all that is wrong with it at once.
//!
//! TOML. Where a key and an option of the command line mean the same, the option wins.
//! `contrib/traffic.toml` explains every key.

mod settings;
mod values;

use std::{
    fmt,
    fs::File,
    io::{self, Read as _},
    path::{Path, PathBuf},
    time::Duration,
};

use jiff::tz::TimeZone;
use toml::de::{DeTable, DeValue};

use crate::accounting::{
    ident::{GroupError, Groups, Hook, MeterKind},
    period::{Counting, Unit},
    retention::{Keep, Retention},
};

pub use settings::Setting;
pub use values::{Output, interval};

/// Read when it is there and no other is named.
pub const DEFAULT_CONFIG: &str = "/etc/traffic/traffic.toml";

/// Every key there is.
const KEYS: [&str; 20] = [
    "ports",
    "iface",
    "meter",
    "cgroup",
    "interval",
    "output",
    "persist",
    "pins",
    "state",
    "ledger",
    "proxy",
    "proxy_config",
    "api",
    "time_zone",
    "billing_day",
    "counting",
    "unit",
    "keep_minutes",
    "keep_hours",
    "keep_days",
];

/// What only those who use a value know about it.
#[derive(Clone, Copy, Debug)]
pub struct Checks {
    /// Most groups that can be watched at once.
    pub most_groups: usize,
    /// Whether these are globs of devices; what is wrong with them otherwise.
    pub iface: fn(&[String]) -> Result<(), String>,
    /// Whether an API can be there; what is wrong with it otherwise.
    pub api: fn(&str) -> Result<(), String>,
}

/// What the file sets. Every value can be used as it is; what it leaves out is `None`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// What to count.
    pub ports: Option<Groups>,
    /// Globs of devices.
    pub iface: Option<Vec<String>>,
    /// Who counts; `Some(None)` is `auto`.
    pub meter: Option<Option<MeterKind>>,
    /// Folder in cgroup2.
    pub cgroup: Option<PathBuf>,
    /// Time between ticks.
    pub interval: Option<Duration>,
    /// What to write at each tick.
    pub output: Option<Output>,
    /// Go on counting when the daemon ends.
    pub persist: Option<bool>,
    /// Folder on bpffs.
    pub pins: Option<PathBuf>,
    /// State folder.
    pub state: Option<PathBuf>,
    /// Whether to keep totals there.
    pub ledger: Option<bool>,
    /// Whether to look for a proxy at all.
    pub proxy: Option<bool>,
    /// The proxy's configuration: files, or a folder of them.
    pub proxy_config: Option<Vec<PathBuf>>,
    /// Where the proxy's API listens, in the place of what its configuration says.
    pub api: Option<String>,
    /// Where days, weeks and months begin.
    pub time_zone: Option<TimeZone>,
    /// Day on which a billing month begins, 1 to 31.
    pub billing_day: Option<u8>,
    /// What the provider counts.
    pub counting: Option<Counting>,
    /// What the provider means by a gigabyte.
    pub unit: Option<Unit>,
    /// How long buckets of 5 minutes are kept.
    pub keep_minutes: Option<Keep>,
    /// How long buckets of an hour are kept.
    pub keep_hours: Option<Keep>,
    /// How long buckets of a day are kept.
    pub keep_days: Option<Keep>,
}

/// One thing that is wrong, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// Line in the file, from 1.
    pub line: usize,
    /// What is wrong, with its key.
    pub what: String,
}

/// The file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It cannot be read.
    #[error("cannot read the configuration {}", .path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// The system's answer.
        #[source]
        cause: io::Error,
    },
    /// It says what it may not; all of it.
    #[error("the configuration {} is wrong:{}", .path.display(), Lines(.mistakes))]
    Wrong {
        /// Which file.
        path: PathBuf,
        /// In the order of the file.
        mistakes: Vec<Mistake>,
    },
}

struct Lines<'a>(&'a [Mistake]);

impl fmt::Display for Lines<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0
            .iter()
            .try_for_each(|mistake| write!(f, "\n  line {}: {}", mistake.line, mistake.what))
    }
}

impl ConfigError {
    /// What to do about it; `None` where each mistake says it.
    pub fn remedy(&self) -> Option<&'static str> {
        match self {
            Self::Read { .. } => Some("name a file of text that can be read with --config"),
            Self::Wrong { .. } => None,
        }
    }
}

/// Longer than 65,535 groups with their names.
const MOST_BYTES: u64 = 16 << 20;

/// The text of a file, which may be a pipe, but no endless one.
fn read(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(MOST_BYTES + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MOST_BYTES {
        let what = format!("longer than {} MiB: is it the right file?", MOST_BYTES >> 20);
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, what));
    }
    Ok(text)
}

impl Config {
    /// Reads the file at `path`; without one, [`DEFAULT_CONFIG`] where it is there.
    ///
    /// # Errors
    ///
    /// [`ConfigError`].
    pub fn load(path: Option<&Path>, checks: Checks) -> Result<Self, ConfigError> {
        let (path, named) = match path {
            Some(path) => (path, true),
            None => (Path::new(DEFAULT_CONFIG), false),
        };
        match read(path) {
            Ok(text) => Self::parse(&text, checks)
                .map_err(|mistakes| ConfigError::Wrong { path: path.into(), mistakes }),
            Err(error) if !named && error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(cause) => Err(ConfigError::Read { path: path.into(), cause }),
        }
    }

    /// Reads the text of a file.
    ///
    /// # Errors
    ///
    /// Everything that is wrong with it.
    pub fn parse(text: &str, checks: Checks) -> Result<Self, Vec<Mistake>> {
        let line = |at: usize| 1 + text.bytes().take(at).filter(|byte| *byte == b'\n').count();
        let table = DeTable::parse(text).map_err(|error| {
            let at = error.span().map_or(0, |span| span.start);
            vec![Mistake { line: line(at), what: error.message().to_owned() }]
        })?;
        let mut config = Self::default();
        let mut mistakes = Vec::new();
        for (key, value) in table.get_ref() {
            let name = key.get_ref();
            if let Err(what) = config.set(name, value.get_ref(), checks) {
                let what = format!("{}: {what}", name.escape_debug());
                mistakes.push(Mistake { line: line(key.span().start), what });
            }
        }
        for (key, what) in config.contradictions() {
            let at = table.get_ref().iter().find(|(name, _)| name.get_ref() == key);
            let at = at.map_or(0, |(name, _)| name.span().start);
            mistakes.push(Mistake { line: line(at), what: format!("{key}: {what}") });
        }
        mistakes.sort_by_key(|mistake| mistake.line);
        if mistakes.is_empty() { Ok(config) } else { Err(mistakes) }
    }

    fn set(&mut self, key: &str, value: &DeValue<'_>, checks: Checks) -> Result<(), String> {
        match key {
            "ports" => self.ports = Some(groups(value, checks.most_groups)?),
            "iface" => {
                let globs = texts(value)?;
                (checks.iface)(&globs)?;
                self.iface = Some(globs);
            }
            "meter" => self.meter = Some(meter(text(value)?)?),
            "cgroup" => self.cgroup = Some(folder(value)?),
            "interval" => self.interval = Some(interval(text(value)?)?),
            "output" => self.output = Some(values::output(value)?),
            "persist" => self.persist = Some(switch(value)?),
            "pins" => self.pins = Some(folder(value)?),
            "state" => self.state = Some(folder(value)?),
            "ledger" => self.ledger = Some(switch(value)?),
            "proxy" => self.proxy = Some(switch(value)?),
            "proxy_config" => {
                let paths: Vec<PathBuf> = texts(value)?.into_iter().map(Into::into).collect();
                if paths.is_empty() {
                    return Err("name a file, or write proxy = false".into());
                }
                self.proxy_config = Some(paths);
            }
            "api" => {
                let api = text(value)?;
                (checks.api)(api)?;
                self.api = Some(api.to_owned());
            }
            "time_zone" => self.time_zone = Some(values::time_zone(text(value)?)?),
            "billing_day" => self.billing_day = Some(values::day(value)?),
            "counting" => self.counting = Some(values::counting(value)?),
            "unit" => self.unit = Some(values::unit(value)?),
            "keep_minutes" => {
                self.keep_minutes = Some(values::keep(text(value)?, values::LEAST_MINUTES)?);
            }
            "keep_hours" => {
                self.keep_hours = Some(values::keep(text(value)?, values::LEAST_HOURS)?);
            }
            "keep_days" => self.keep_days = Some(values::keep(text(value)?, values::LEAST_DAYS)?),
            _ => return Err(format!("no such key; there are {}", KEYS.join(", "))),
        }
        Ok(())
    }

    /// How long buckets are kept: what the file says, else the default.
    pub fn retention(&self) -> Retention {
        let default = Retention::default();
        Retention {
            minutes: self.keep_minutes.unwrap_or(default.minutes),
            hours: self.keep_hours.unwrap_or(default.hours),
            days: self.keep_days.unwrap_or(default.days),
        }
    }

    /// Keys whose values do not go together.
    fn contradictions(&self) -> Vec<(&'static str, &'static str)> {
        let Retention { minutes, hours, days } = self.retention();
        let mut found = Vec::new();
        if minutes > hours {
            let key = if self.keep_hours.is_some() { "keep_hours" } else { "keep_minutes" };
            found.push((key, "an hour is kept for less time than the 5 minutes that made it"));
        }
        if hours > days {
            let key = if self.keep_days.is_some() { "keep_days" } else { "keep_hours" };
            found.push((key, "a day is kept for less time than the hours that made it"));
        }
        let at_a_cgroup = MeterKind::Ebpf(Hook::Cgroup);
        let meter = self.meter.flatten();
        if self.cgroup.is_some() && meter.is_some_and(|meter| meter != at_a_cgroup) {
            found.push(("cgroup", "goes with the meter cgroup, and another one is named"));
        }
        if self.iface.is_some() && (self.cgroup.is_some() || meter == Some(at_a_cgroup)) {
            let what = "does not go with the meter cgroup, which counts sockets wherever their packets pass";
            found.push(("iface", what));
        }
        found
    }
}

fn switch(value: &DeValue<'_>) -> Result<bool, String> {
    match value {
        DeValue::Boolean(value) => Ok(*value),
        _ => Err("write true or false".into()),
    }
}

fn text<'a>(value: &'a DeValue<'_>) -> Result<&'a str, String> {
    match value {
        DeValue::String(text) => Ok(text),
        _ => Err("write a text in quotes".into()),
    }
}

fn folder(value: &DeValue<'_>) -> Result<PathBuf, String> {
    match text(value)? {
        "" => Err("name a folder".into()),
        path => Ok(path.into()),
    }
}

fn texts(value: &DeValue<'_>) -> Result<Vec<String>, String> {
    match value {
        DeValue::String(text) => Ok(vec![text.to_string()]),
        DeValue::Array(list) => {
            list.iter().map(|entry| text(entry.get_ref()).map(str::to_owned)).collect()
        }
        _ => Err("write a text or a list of texts".into()),
    }
}

fn groups(value: &DeValue<'_>, most: usize) -> Result<Groups, String> {
    let joined = texts(value)?.join(",");
    Groups::parse(&joined, most).map_err(|error: GroupError| error.to_string())
}

fn meter(name: &str) -> Result<Option<MeterKind>, String> {
    if name == "auto" {
        return Ok(None);
    }
    MeterKind::ALL
        .into_iter()
        .find(|kind| kind.name() == name)
        .map(Some)
        .ok_or_else(|| "write auto, tcx, tc, cgroup, nft or iptables".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHECKS: Checks = Checks {
        most_groups: 10,
        iface: |globs| {
            let wrong = globs.iter().any(|glob| glob.contains('['));
            if wrong { Err("no glob".into()) } else { Ok(()) }
        },
        api: |place| if place.contains(':') { Ok(()) } else { Err("no place".into()) },
    };

    fn parse(text: &str) -> Result<Config, Vec<Mistake>> {
        Config::parse(text, CHECKS)
    }

    #[test]
    fn every_key_is_read() {
        let config = parse(
            "ports = ['443=web', '8443/tcp']\nmeter = 'cgroup'\ncgroup = '/c'\n\
             interval = '10s'\noutput = 'none'\npersist = true\npins = '/p'\nstate = '/s'\n\
             ledger = false\nproxy = true\nproxy_config = ['/a', '/b']\napi = '[::1]:80'\n\
             time_zone = 'Asia/Shanghai'\nbilling_day = 31\ncounting = 'larger'\nunit = 'GB'\n\
             keep_minutes = '3d'\nkeep_hours = '90d'\nkeep_days = '400d'\n",
        )
        .unwrap();
        let told: Vec<_> = config.settings().into_iter().map(|(key, _)| key).collect();
        let without_iface: Vec<_> = KEYS.into_iter().filter(|key| *key != "iface").collect();
        assert_eq!(told, without_iface);
        assert_eq!(config.ports.unwrap().len(), 2);
        // It does not go with a cgroup.
        assert_eq!(parse("iface = 'eth*'").unwrap().iface.unwrap(), ["eth*"]);
        assert_eq!(config.meter, Some(Some(MeterKind::Ebpf(Hook::Cgroup))));
        assert_eq!(config.interval, Some(Duration::from_secs(10)));
        assert_eq!(config.persist, Some(true));
        assert_eq!((config.pins, config.state), (Some("/p".into()), Some("/s".into())));
        assert_eq!(config.proxy, Some(true));
        assert_eq!(config.proxy_config, Some(vec!["/a".into(), "/b".into()]));
        assert_eq!(config.api.as_deref(), Some("[::1]:80"));
        assert_eq!((config.output, config.ledger), (Some(Output::None), Some(false)));
        assert_eq!(config.time_zone, Some(TimeZone::get("Asia/Shanghai").unwrap()));
        assert_eq!((config.billing_day, config.unit), (Some(31), Some(Unit::Gb)));
        assert_eq!(config.counting, Some(Counting::Larger));
        let day = Duration::from_secs(24 * 3600);
        assert_eq!(config.keep_minutes, Some(Keep::For(3 * day)));
        assert_eq!(config.keep_hours, Some(Keep::For(90 * day)));
        assert_eq!(config.keep_days, Some(Keep::For(400 * day)));
    }

    #[test]
    fn all_mistakes_are_told_with_their_lines() {
        let text = "port = 1\nports = '443,443'\n\ninterval = '0s'\npersist = 'yes'\nmeter = 'x'\n";
        let mistakes = parse(text).unwrap_err();
        let lines: Vec<_> = mistakes.iter().map(|mistake| mistake.line).collect();
        assert_eq!(lines, [1, 2, 4, 5, 6]);
        assert!(mistakes[0].what.starts_with("port: no such key"), "{mistakes:?}");
        assert!(mistakes[1].what.contains("443"), "{mistakes:?}");
    }

    #[test]
    fn a_text_that_is_no_toml_is_told_with_its_line() {
        let mistakes = parse("ports = '1'\niface = [\n").unwrap_err();
        assert_eq!(mistakes.len(), 1);
        assert!(mistakes[0].line >= 2, "{mistakes:?}");
    }

    #[track_caller]
    fn wrong(text: &str, want: &[(usize, &str)]) {
        let mistakes = parse(text).unwrap_err();
        let fits = mistakes.len() == want.len()
            && mistakes.iter().zip(want).all(|(mistake, (line, piece))| {
                mistake.line == *line && mistake.what.contains(piece)
            });
        assert!(fits, "{text}: {mistakes:?}");
    }

    #[test]
    fn values_that_cannot_be_used_are_told_where_they_are() {
        wrong(
            "iface = 'a[b'\napi = 'here'\ntime_zone = 'Mars/Olympus'\nbilling_day = 32\n\
             counting = 'input'\nunit = 'GIB'\noutput = 'xml'\nledger = 1\nkeep_days = '2 months'\n",
            &[
                (1, "iface: no glob"),
                (2, "api: no place"),
                (3, "time_zone: no time zone"),
                (4, "billing_day: write a day from 1 to 31"),
                (5, "counting: write one of both, larger, output"),
                (6, "unit: write one of GiB, GB"),
                (7, "output: write one of table, json, none"),
                (8, "ledger: write true or false"),
                (9, "keep_days: write a time such as 48h, 60d or 8w, or forever"),
            ],
        );
        for day in ["0", "-1", "1.0", "'1'", "4294967297"] {
            wrong(&format!("billing_day = {day}"), &[(1, "write a day from 1 to 31")]);
        }
    }

    #[test]
    fn longer_buckets_are_kept_at_least_as_long() {
        wrong("\nkeep_minutes = '3d'\nkeep_hours = '2d'\n", &[(3, "keep_hours: an hour is kept")]);
        // Beside the default of the other key.
        wrong("keep_minutes = 'forever'\n", &[(1, "keep_minutes: an hour is kept")]);
        wrong("keep_hours = '90d'\nkeep_days = '80d'\n", &[(2, "keep_days: a day is kept")]);
        let kept = parse("keep_hours = 'forever'").unwrap().retention();
        assert_eq!(kept, Retention { hours: Keep::Forever, ..Retention::default() });
    }

    #[test]
    fn a_cgroup_goes_with_its_meter_and_folders_have_names() {
        let config = parse("cgroup = '/c'\nmeter = 'cgroup'\n").unwrap();
        assert_eq!(config.cgroup, Some("/c".into()));
        assert!(parse("cgroup = '/c'\nmeter = 'auto'\n").is_ok());
        wrong("meter = 'tcx'\ncgroup = '/c'\n", &[(2, "cgroup: goes with the meter cgroup")]);
        wrong("iface = 'e*'\ncgroup = '/c'\n", &[(1, "iface: does not go with the meter cgroup")]);
        wrong("meter = 'cgroup'\niface = 'e*'\n", &[(2, "iface: does not go with")]);
        assert!(parse("iface = 'e*'\nmeter = 'tcx'\n").is_ok());
        for key in ["cgroup", "pins", "state"] {
            wrong(&format!("{key} = ''"), &[(1, "name a folder")]);
        }
    }

    #[test]
    fn a_file_without_end_is_not_read_to_it() {
        let error = Config::load(Some(Path::new("/dev/zero")), CHECKS).unwrap_err();
        let ConfigError::Read { cause, .. } = error else { panic!("{error}") };
        assert!(cause.to_string().contains("longer than 16 MiB"), "{cause}");
    }

    #[test]
    fn what_is_told_of_a_file_reads_as_the_same_file() {
        let text = "ports = ['443=web', '8443/tcp']\niface = 'eth*'\ninterval = '1500ms'\n\
                    state = '/a\"b'\nbilling_day = 3\nkeep_minutes = '36h'\nmeter = 'auto'\n";
        let config = parse(text).unwrap();
        let told: String =
            config.settings().iter().map(|(key, value)| format!("{key} = {value}\n")).collect();
        assert_eq!(parse(&told).unwrap(), config, "{told}");
        let other = parse(&told.replace("1.5s", "2s").replace("billing_day = 3", "")).unwrap();
        assert_eq!(config.differing(&other), ["interval", "billing_day"]);
    }
}
