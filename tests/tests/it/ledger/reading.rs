//! Those who read while a daemon writes: other processes, users without rights, and the verbs that show what
//! is booked beside what is counted now.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    os::unix::fs::{PermissionsExt as _, chown},
    path::PathBuf,
    time::{SystemTime, UNIX_EPOCH},
};

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use traffic_tests::{
    daemon::{Answer, Site, binary},
    document::Traffic,
    need,
    stats_server::{Kind, StatsServer},
    wait,
};
use traffic_user::{accounting::subject::Subject, ledger::Reader};

use super::{
    super::{
        lifecycle::{Load, start},
        schema::keeps_to,
    },
    Folder, NOBODY, booked, events_of, reader,
};

const API: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 10_085);
const ALICE: &str = "alice@example.com";

/// A copy of the program that anybody may start, wherever the workspace lies.
fn for_everybody(site: &Site) -> (Folder, PathBuf) {
    let folder = Folder(site.state.with_extension("program"));
    fs::create_dir(&folder.0).expect("make a folder");
    let program = folder.0.join("traffic");
    fs::copy(binary(), &program).expect("copy the program");
    for path in [&folder.0, &program] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("let anybody in");
    }
    (folder, program)
}

#[test]
fn a_user_without_rights_reads_steadily_while_the_daemon_writes_and_takes_nothing_from_it() {
    need!(Root, Bpf, Object, Netns, Tool("ip"), Tool("setpriv"));
    let (site, load) = (Site::new(), Load::new());
    fs::create_dir(&site.state).expect("make the state folder");
    fs::set_permissions(&site.state, fs::Permissions::from_mode(0o750)).expect("protect it");
    chown(&site.state, None, Some(NOBODY)).expect("give it to a group");
    let (_folder, program) = for_everybody(&site);
    let daemon = start(&site, &load, "tcx", &["--no-proxy"]);
    load.begin();
    load.goes_on();
    wait::until("something in the ledger", || {
        let answer = site.run(&load.host, &["history", "--json"]);
        (answer.code == Some(0)).then_some(())
    });
    let id = NOBODY.to_string();
    let read = |group: &str, args: &[&str]| {
        let mut command = load.host.command("setpriv");
        command.args(["--reuid", &id, "--regid", group, "--clear-groups"]).arg(&program);
        Answer::of(command.arg("--state").arg(&site.state).args(args))
    };
    let packets = |layer: &Value| layer["input_packets"].as_u64().expect("packets");
    let mut last = [0; 3];
    for _ in 0..10 {
        let history = read(&id, &["history", "--json", "--port", "5000"]).json();
        let top = read(&id, &["top", "groups", "--json"]).json();
        let export = read(&id, &["export", "json", "buckets", "--port", "5000"]).json();
        let buckets = export["buckets"].as_array().expect("buckets");
        let now = [
            packets(&history["layers"][0]["total"]),
            packets(&top["layers"][0]["places"][0]),
            buckets.iter().map(packets).sum(),
        ];
        assert!(now.iter().zip(last).all(|(now, last)| *now >= last), "{now:?} after {last:?}");
        last = now;
        load.goes_on();
    }
    // Short report and events as well; and nothing for whoever is not in the group.
    for args in [&["--json"][..], &["export", "csv", "events"], &["top", "ports", "--csv"]] {
        assert_eq!(read(&id, args).code, Some(0), "{args:?}");
    }
    let denied = read("54322", &["history"]);
    assert_eq!(denied.code, Some(2), "{denied:?}");
    assert!(denied.stderr.contains("no right to open the ledger"), "{denied:?}");
    let sent = load.pause();
    assert_eq!(daemon.messages(), "");
    daemon.stop();
    assert_eq!(booked(&site, "5000/udp"), sent);
    let history = read(&id, &["history", "--json", "--port", "5000"]).json();
    assert_eq!(packets(&history["layers"][0]["total"]), sent.input_packets);
}

/// A time zone in which it is about noon, so that no day ends while a test runs.
fn zone_at_noon() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a time").as_secs();
    let hour = i64::try_from(now / 3600 % 24).expect("an hour");
    // The names of these zones have the sign turned round.
    match hour - 12 {
        0 => "Etc/GMT".to_owned(),
        ahead => format!("Etc/GMT{ahead:+}"),
    }
}

#[test]
fn the_short_report_and_stats_show_today_this_month_and_since_ever_from_the_ledger() {
    need!(Root, Bpf, Object, Netns, Tool("ip"));
    let (site, load) = (Site::new(), Load::new());
    let fake = StatsServer::inside(&load.host, Kind::V2ray4, API);
    fs::create_dir(&site.state).expect("make the state folder");
    let config = site.state.join("traffic.toml");
    let zone = zone_at_noon();
    let text = format!("time_zone = '{zone}'\napi = '{API}'\nunit = 'GB'\ncounting = 'output'\n");
    fs::write(&config, text).expect("write the configuration");
    let config = config.to_str().expect("a path of ours is text");
    let ask = |args: &[&str]| {
        let answer = site.run(&load.host, &[&["--config", config], args].concat());
        assert_eq!(answer.code, Some(0), "{answer:?}");
        answer
    };
    // None yet: the short report has nothing to show, and `stats` is without it.
    let none = site.run(&load.host, &["--config", config]);
    assert_eq!(none.code, Some(2));
    assert!(none.stderr.contains("there is no ledger in"), "{none:?}");
    assert_eq!(ask(&["stats", "--json"]).json()["ledger"], Value::Null);

    let daemon = start(&site, &load, "tcx", &["--config", config]);
    load.begin();
    load.goes_on();
    fake.user(ALICE, 300, 70_000);
    let sent = load.pause();
    let user = || reader(&site).totals(&Subject::User(ALICE.into())).ok();
    wait::until("all in the ledger", || {
        let payload = user()?.iter().any(|usage| usage.traffic.output_bytes == 70_000);
        (payload && booked(&site, "5000/udp") == sent).then_some(())
    });
    let short = ask(&["--json"]).json();
    keeps_to("summary", &short);
    let stats = ask(&["stats", "--json"]).json();
    keeps_to("stats", &stats);
    for document in [&short, &stats["ledger"]] {
        assert_eq!(document["time_zone"], zone, "{document}");
        let group = line(&document["subjects"], "5000/udp");
        for span in ["today", "billing", "ever"] {
            assert_eq!(traffic(&group[span][0]), sent, "{span}: {group}");
            let user = &line(&document["users"], ALICE)[span];
            let payload = user.as_array().expect("layers").iter();
            let payload = payload.filter(|usage| usage["layer"] == "payload");
            let moved: Vec<_> = payload.map(|usage| usage["output_bytes"].as_u64()).collect();
            assert_eq!(moved, [Some(70_000)], "{span}: {user}");
        }
    }
    let table = ask(&[]).stdout;
    for word in ["5000/udp", ALICE, "TODAY", "SINCE ", "counted: output alone", "70.00 kB"] {
        assert!(table.contains(word), "no {word} in\n{table}");
    }
    let table = ask(&["stats"]).stdout;
    for word in ["API: v2ray ok", "TODAY", "counted: output alone"] {
        assert!(table.contains(word), "no {word} in\n{table}");
    }
    daemon.stop();
    // Without a daemon as well.
    assert_eq!(ask(&["--json"]).json()["users"], short["users"]);
}

fn line<'a>(lines: &'a Value, key: &str) -> &'a Value {
    let lines = lines.as_array().expect("lines");
    lines.iter().find(|line| line["key"] == key).unwrap_or_else(|| panic!("no {key} in {lines:?}"))
}

fn traffic(usage: &Value) -> Traffic {
    let number = |key: &str| usage[key].as_u64().unwrap_or_else(|| panic!("no {key} in {usage}"));
    Traffic {
        input_bytes: number("input_bytes"),
        input_packets: number("input_packets"),
        output_bytes: number("output_bytes"),
        output_packets: number("output_packets"),
    }
}

/// Whatever a config of a proxy has that nobody else may know.
const SECRETS: [&str; 4] = [
    "9a2c5ad2-6b3c-4c39-9d1e-6a5c2c0f0001",
    "trojan-password-5d1e",
    "shadowsocks-password-77aa",
    "cPrivateKeyOfReality00000000000000000000000",
];

fn config_with_secrets() -> String {
    let [id, trojan, shadowsocks, key] = SECRETS;
    json!({"inbounds": [
        {"tag": "vless-in", "port": 443, "protocol": "vless",
         "settings": {"clients": [{"id": id, "email": ALICE}]},
         "streamSettings": {"security": "reality", "realitySettings": {"privateKey": key}}},
        {"tag": "trojan-in", "port": 8443, "protocol": "trojan",
         "settings": {"clients": [{"password": trojan, "email": "b@x"}]}},
        {"tag": "ss-in", "port": 8388, "protocol": "shadowsocks",
         "settings": {"method": "aes-128-gcm", "password": shadowsocks, "email": "c@x"}}]})
    .to_string()
}

#[test]
fn the_state_folder_is_for_its_group_and_no_secret_of_a_proxy_is_in_it() {
    need!(Root, Bpf, Object, Netns, Tool("ip"));
    let (site, load) = (Site::new(), Load::new());
    let folder = Folder(site.state.with_extension("proxy"));
    fs::create_dir(&folder.0).expect("make a folder");
    let config = folder.0.join("config.json");
    let whole = config_with_secrets();
    fs::write(&config, &whole).expect("write the proxy's config");
    let path = config.to_str().expect("a path of ours is text");
    let args = ["--iface", "eth0", "--meter", "tcx", "--proxy-config", path, "--persist"];
    let daemon = site.start(&load.host, &args);
    wait::until("a ledger", || Reader::open(&site.state).ok()?.map(|_| ()));
    let mut count = 0;
    let mut becomes = |text: &str, kind: &str| {
        count += 1;
        // Aside and then in its place: one that is only half written may be read as broken, too.
        let aside = folder.0.join("aside");
        fs::write(&aside, text).expect("write the proxy's config");
        fs::rename(&aside, &config).expect("put it in its place");
        wait::until(kind, || {
            let told = events_of(&site, &["config-broken", "config-changed"]);
            (told.len() >= count && told[count - 1].0 == kind).then_some(())
        });
    };
    // Cut off in the middle of each of them, and broken right there.
    for secret in SECRETS {
        let at = whole.find(secret).expect("a secret") + secret.len() / 2;
        becomes(&whole[..at], "config-broken");
        becomes(&whole.replace(&format!("\"{secret}\""), secret), "config-broken");
    }
    becomes(&whole.replace("8388", "8389"), "config-changed");
    daemon.signal(Signal::SIGKILL);
    let ended = daemon.end();
    let mode = fs::metadata(&site.state).expect("the state folder").permissions().mode();
    assert_eq!(mode & 0o7777, 0o750);
    let mut files = 0;
    for file in fs::read_dir(&site.state).expect("the state folder") {
        let file = file.expect("a file");
        // Sockets hold nothing.
        let Ok(bytes) = fs::read(file.path()) else { continue };
        files += 1;
        for secret in SECRETS {
            let half = &secret.as_bytes()[..secret.len() / 2];
            let found = bytes.windows(half.len()).any(|window| window == half);
            assert!(!found, "{secret} is in {}", file.path().display());
        }
    }
    // The ledger, what belongs to it, and a lock.
    assert!(files >= 4, "{files}");
    for secret in SECRETS {
        assert!(!ended.stderr.contains(&secret[..secret.len() / 2]), "{}", ended.stderr);
    }
    assert_eq!(site.run(&load.host, &["clean"]).code, Some(0));
}
