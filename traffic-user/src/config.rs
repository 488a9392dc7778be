//! The configuration file: what it may say, and all that is wrong with it at once.
//!
//! TOML. Every key has a command line option of the same name, which wins.

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use jiff::SignedDuration;
use toml::de::{DeTable, DeValue};

use crate::accounting::ident::{GroupError, Groups, Hook};

/// Read when it is there and no other is named.
pub const DEFAULT_CONFIG: &str = "/etc/traffic/traffic.toml";

const SHORTEST: Duration = Duration::from_millis(10);
const LONGEST: Duration = Duration::from_secs(24 * 3600);
const KEYS: [&str; 11] = [
    "ports",
    "iface",
    "meter",
    "cgroup",
    "interval",
    "persist",
    "pins",
    "state",
    "proxy",
    "proxy_config",
    "api",
];

/// What the file sets. Every value can be used as it is; what it leaves out is `None`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// What to count.
    pub ports: Option<Groups>,
    /// Globs of devices.
    pub iface: Option<Vec<String>>,
    /// Which hook; `Some(None)` is `auto`.
    pub meter: Option<Option<Hook>>,
    /// Folder in cgroup2.
    pub cgroup: Option<PathBuf>,
    /// Time between ticks.
    pub interval: Option<Duration>,
    /// Go on counting when the daemon ends.
    pub persist: Option<bool>,
    /// Folder on bpffs.
    pub pins: Option<PathBuf>,
    /// State folder.
    pub state: Option<PathBuf>,
    /// Whether to look for a proxy at all.
    pub proxy: Option<bool>,
    /// The proxy's configuration: files, or a folder of them.
    pub proxy_config: Option<Vec<PathBuf>>,
    /// Where the proxy's API listens, in the place of what its configuration says.
    pub api: Option<String>,
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

impl Config {
    /// Reads the file at `path`; without one, [`DEFAULT_CONFIG`] where it is there.
    ///
    /// # Errors
    ///
    /// [`ConfigError`].
    pub fn load(path: Option<&Path>, most_groups: usize) -> Result<Self, ConfigError> {
        let (path, named) = match path {
            Some(path) => (path, true),
            None => (Path::new(DEFAULT_CONFIG), false),
        };
        match fs::read_to_string(path) {
            Ok(text) => Self::parse(&text, most_groups)
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
    pub fn parse(text: &str, most_groups: usize) -> Result<Self, Vec<Mistake>> {
        let line = |at: usize| 1 + text.bytes().take(at).filter(|byte| *byte == b'\n').count();
        let table = DeTable::parse(text).map_err(|error| {
            let at = error.span().map_or(0, |span| span.start);
            vec![Mistake { line: line(at), what: error.message().to_owned() }]
        })?;
        let mut config = Self::default();
        let mut mistakes = Vec::new();
        for (key, value) in table.get_ref() {
            let name = key.get_ref();
            if let Err(what) = config.set(name, value.get_ref(), most_groups) {
                let what = format!("{}: {what}", name.escape_debug());
                mistakes.push(Mistake { line: line(key.span().start), what });
            }
        }
        mistakes.sort_by_key(|mistake| mistake.line);
        if mistakes.is_empty() { Ok(config) } else { Err(mistakes) }
    }

    fn set(&mut self, key: &str, value: &DeValue<'_>, most_groups: usize) -> Result<(), String> {
        match key {
            "ports" => self.ports = Some(groups(value, most_groups)?),
            "iface" => self.iface = Some(texts(value)?),
            "meter" => self.meter = Some(hook(text(value)?)?),
            "cgroup" => self.cgroup = Some(text(value)?.into()),
            "interval" => self.interval = Some(interval(text(value)?)?),
            "persist" => self.persist = Some(switch(value)?),
            "pins" => self.pins = Some(text(value)?.into()),
            "state" => self.state = Some(text(value)?.into()),
            "proxy" => self.proxy = Some(switch(value)?),
            "proxy_config" => {
                let paths: Vec<PathBuf> = texts(value)?.into_iter().map(Into::into).collect();
                if paths.is_empty() {
                    return Err("name a file, or write proxy = false".into());
                }
                self.proxy_config = Some(paths);
            }
            "api" => self.api = Some(text(value)?.to_owned()),
            _ => return Err(format!("no such key; there are {}", KEYS.join(", "))),
        }
        Ok(())
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

fn hook(name: &str) -> Result<Option<Hook>, String> {
    if name == "auto" {
        return Ok(None);
    }
    Hook::ALL
        .into_iter()
        .find(|hook| hook.name() == name)
        .map(Some)
        .ok_or_else(|| "write auto, tcx, tc or cgroup".to_owned())
}

/// Reads a time between ticks, such as `500ms`, `10s` or `1m`.
///
/// # Errors
///
/// What to write instead.
pub fn interval(text: &str) -> Result<Duration, String> {
    let parsed: SignedDuration =
        text.parse().map_err(|_| "write a time such as 500ms, 10s or 1m".to_owned())?;
    let duration = Duration::try_from(parsed).map_err(|_| "a time is not negative".to_owned())?;
    if (SHORTEST..=LONGEST).contains(&duration) {
        Ok(duration)
    } else {
        Err("a tick takes 10ms to 24h".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_is_read() {
        let config = Config::parse(
            "ports = ['443=web', '8443/tcp']\niface = 'eth*'\nmeter = 'tc'\ncgroup = '/c'\n\
             interval = '10s'\npersist = true\npins = '/p'\nstate = '/s'\nproxy = true\n\
             proxy_config = ['/a', '/b']\napi = '[::1]:80'\n",
            10,
        )
        .unwrap();
        assert_eq!(config.ports.unwrap().len(), 2);
        assert_eq!(config.iface.unwrap(), ["eth*"]);
        assert_eq!(config.meter, Some(Some(Hook::Tc)));
        assert_eq!(config.cgroup, Some("/c".into()));
        assert_eq!(config.interval, Some(Duration::from_secs(10)));
        assert_eq!(config.persist, Some(true));
        assert_eq!((config.pins, config.state), (Some("/p".into()), Some("/s".into())));
        assert_eq!(config.proxy, Some(true));
        assert_eq!(config.proxy_config, Some(vec!["/a".into(), "/b".into()]));
        assert_eq!(config.api.as_deref(), Some("[::1]:80"));
    }

    #[test]
    fn all_mistakes_are_told_with_their_lines() {
        let text = "port = 1\nports = '443,443'\n\ninterval = '0s'\npersist = 'yes'\nmeter = 'x'\n";
        let mistakes = Config::parse(text, 10).unwrap_err();
        let lines: Vec<_> = mistakes.iter().map(|mistake| mistake.line).collect();
        assert_eq!(lines, [1, 2, 4, 5, 6]);
        assert!(mistakes[0].what.starts_with("port: no such key"), "{mistakes:?}");
        assert!(mistakes[1].what.contains("443"), "{mistakes:?}");
    }

    #[test]
    fn a_text_that_is_no_toml_is_told_with_its_line() {
        let mistakes = Config::parse("ports = '1'\niface = [\n", 10).unwrap_err();
        assert_eq!(mistakes.len(), 1);
        assert!(mistakes[0].line >= 2, "{mistakes:?}");
    }
}
