//! What a file sets, for people who check it and to tell two of them apart.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use super::{Config, KEYS, values::written};
use crate::accounting::retention::Keep;

/// The value of a key as it was understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Setting {
    /// A text.
    Text(String),
    /// A list of texts.
    Texts(Vec<String>),
    /// Yes or no.
    Switch(bool),
    /// A whole number.
    Number(u8),
}

impl fmt::Display for Setting {
    /// As it could be written in the file; safe to print.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => write!(f, "{text:?}"),
            Self::Texts(texts) => write!(f, "{texts:?}"),
            Self::Switch(value) => write!(f, "{value}"),
            Self::Number(number) => write!(f, "{number}"),
        }
    }
}

impl Config {
    /// Each key that is set, in the order in which keys are explained.
    pub fn settings(&self) -> Vec<(&'static str, Setting)> {
        KEYS.into_iter().filter_map(|key| Some((key, self.setting(key)?))).collect()
    }

    /// Keys that the two do not set alike.
    pub fn differing(&self, other: &Self) -> Vec<&'static str> {
        KEYS.into_iter().filter(|key| self.setting(key) != other.setting(key)).collect()
    }

    fn setting(&self, key: &str) -> Option<Setting> {
        match key {
            "ports" => {
                let texts = |groups: &crate::accounting::ident::Groups| {
                    groups.iter().map(ToString::to_string).collect()
                };
                self.ports.as_ref().map(|groups| Setting::Texts(texts(groups)))
            }
            "iface" => self.iface.clone().map(Setting::Texts),
            "meter" => {
                self.meter.map(|meter| Setting::Text(meter.map_or("auto", |m| m.name()).into()))
            }
            "cgroup" => path(self.cgroup.as_ref()),
            "interval" => self.interval.map(|time| Setting::Text(format!("{time:?}"))),
            "output" => word(self.output.map(|output| output.name())),
            "persist" => self.persist.map(Setting::Switch),
            "pins" => path(self.pins.as_ref()),
            "state" => path(self.state.as_ref()),
            "ledger" => self.ledger.map(Setting::Switch),
            "proxy" => self.proxy.map(Setting::Switch),
            "proxy_config" => {
                let texts =
                    |files: &Vec<PathBuf>| files.iter().map(|file| path_text(file)).collect();
                self.proxy_config.as_ref().map(|files| Setting::Texts(texts(files)))
            }
            "api" => word(self.api.as_deref()),
            "time_zone" => word(self.time_zone.as_ref().and_then(|zone| zone.iana_name())),
            "billing_day" => self.billing_day.map(Setting::Number),
            "counting" => word(self.counting.map(|counting| counting.name())),
            "unit" => word(self.unit.map(|unit| unit.name())),
            "keep_minutes" => self.keep_minutes.map(kept),
            "keep_hours" => self.keep_hours.map(kept),
            "keep_days" => self.keep_days.map(kept),
            _ => None,
        }
    }
}

fn word(word: Option<&str>) -> Option<Setting> {
    word.map(|word| Setting::Text(word.to_owned()))
}

fn path(path: Option<&PathBuf>) -> Option<Setting> {
    path.map(|path| Setting::Text(path_text(path)))
}

fn path_text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

fn kept(keep: Keep) -> Setting {
    Setting::Text(match keep {
        Keep::Forever => "forever".to_owned(),
        Keep::For(time) => written(time),
    })
}
