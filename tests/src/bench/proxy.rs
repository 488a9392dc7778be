//! Part (e): many users of a proxy. What reading and merging takes, whether the kernel's tick waits for
//! an API that hangs, and what asking for each counter by a process of its own takes.

mod asking;
mod merging;
mod spacing;

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    process,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use traffic_user::proxy_config::{self, ProxyConfig};

pub(super) use self::merging::{asked, kernel};
use super::{
    Plan,
    lab::{DEVICE, Lab},
    report::Section,
};
use crate::stats_server::{Kind, StatsServer};

/// Users of an inbound.
pub(super) const EACH: u16 = 20;
/// Users that the targets are about, in 500 inbounds.
pub(super) const PROMISED: u16 = 10_000;
/// Port of the first inbound; the others follow it.
pub(super) const FIRST_PORT: u16 = 20_001;

/// Measures and reports.
pub(super) fn measure(plan: &Plan) -> Result<Vec<Section>> {
    let lab = Lab::new()?;
    lab.ns.ip(&format!("route add default via 10.9.0.2 dev {DEVICE}\n"));
    lab.ns.run(|| {
        Ok(vec![
            merging::measure(plan).context("read and merge")?,
            asking::measure(plan).context("ask for each counter")?,
            spacing::measure(plan).context("tick beside an API")?,
        ])
    })
}

/// A proxy as far as it is seen from outside: its config, and an API that says what its users moved.
pub(super) struct Proxy {
    pub(super) users: u16,
    server: StatsServer,
    file: PathBuf,
    pub(super) config: ProxyConfig,
}

impl Proxy {
    /// One in this thread's network namespace. Its counters are there, and stand at 0.
    pub(super) fn new(users: u16) -> Result<Self> {
        // The least that answers the same questions as any other.
        let server = StatsServer::new(Kind::V2ray4);
        let name = format!("traffic-bench-{}-{users}.json", process::id());
        let file = std::env::temp_dir().join(name);
        let text = config(users, server.address().port()).to_string();
        let written = fs::write(&file, text);
        let mut proxy = Self { users, server, file, config: ProxyConfig::default() };
        written.with_context(|| format!("write {}", proxy.file.display()))?;
        proxy.config = proxy_config::load(std::slice::from_ref(&proxy.file))?;
        ensure!(
            proxy.config.inbounds.len() == usize::from(users.div_ceil(EACH)),
            "the config has {} inbounds",
            proxy.config.inbounds.len()
        );
        for user in 0..users {
            proxy.server.user(&email(user), 0, 0);
        }
        for inbound in inbounds(users) {
            proxy.server.inbound(&tag(inbound), 0, 0);
        }
        Ok(proxy)
    }

    fn address(&self) -> SocketAddr {
        self.server.address()
    }

    /// For `--proxy-config`.
    pub(super) fn file(&self) -> Result<&str> {
        self.file.to_str().context("a folder for temporary files with a name in UTF-8")
    }

    /// Every user has moved more. Says how much it was, all in all.
    fn move_on(&self) -> u64 {
        self.move_on_by(moved)
    }

    /// Every user has moved so much more, uplink and downlink. Says how much it was, all in all.
    pub(super) fn move_on_by(&self, moved: impl Fn(u16) -> (i64, i64)) -> u64 {
        let mut all = 0;
        for inbound in inbounds(self.users) {
            let (mut up, mut down) = (0, 0);
            for user in users_of(inbound, self.users) {
                let (more_up, more_down) = moved(user);
                self.server.user(&email(user), more_up, more_down);
                up += more_up;
                down += more_down;
            }
            self.server.inbound(&tag(inbound), up, down);
            all += up + down;
        }
        all.cast_unsigned()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // Without it there is nothing to remove.
        let _ = fs::remove_file(&self.file);
    }
}

pub(super) fn inbounds(users: u16) -> impl Iterator<Item = u16> {
    0..users.div_ceil(EACH)
}

pub(super) fn users_of(inbound: u16, users: u16) -> impl Iterator<Item = u16> {
    let first = inbound * EACH;
    first..(first + EACH).min(users)
}

/// As the ledger's generator names them, so that what is moved here has a history there.
pub(super) fn email(user: u16) -> String {
    format!("user-{}@example.org", user + 1)
}

pub(super) fn tag(inbound: u16) -> String {
    format!("inbound-{inbound:03}")
}

/// What a user moves at a time, uplink and downlink: everyone something else.
pub(super) fn moved(user: u16) -> (i64, i64) {
    (1000 + i64::from(user), 50_000 + 7 * i64::from(user))
}

/// All ports, as `--ports` takes them.
fn ports(users: u16) -> String {
    let ports = inbounds(users).map(|inbound| format!("{}/tcp", FIRST_PORT + inbound));
    ports.collect::<Vec<_>>().join(",")
}

/// The config of a V2Ray with its API on this port of the loopback.
fn config(users: u16, api: u16) -> Value {
    let mut all = vec![json!({
        "tag": "api", "listen": Ipv4Addr::LOCALHOST, "port": api, "protocol": "dokodemo-door",
        "settings": {"address": Ipv4Addr::LOCALHOST},
    })];
    all.extend(inbounds(users).map(|inbound| {
        let clients: Vec<_> = users_of(inbound, users)
            .map(|user| {
                json!({
                    "id": format!("{user:08x}-1111-4111-8111-111111111111"),
                    "alterId": 0, "email": email(user), "level": 0,
                })
            })
            .collect();
        json!({
            "tag": tag(inbound), "port": FIRST_PORT + inbound, "protocol": "vmess",
            "settings": {"clients": clients}, "streamSettings": {"network": "tcp"},
        })
    }));
    json!({
        "stats": {},
        "api": {"tag": "api", "services": ["HandlerService", "StatsService"]},
        "policy": {
            "levels": {"0": {"statsUserUplink": true, "statsUserDownlink": true}},
            "system": {"statsInboundUplink": true, "statsInboundDownlink": true},
        },
        "inbounds": all,
        "outbounds": [{"tag": "direct", "protocol": "freedom"}],
        "routing": {"rules": [
            {"type": "field", "inboundTag": ["api"], "outboundTag": "api"},
        ]},
    })
}
