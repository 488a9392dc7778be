//! What is left in the kernel, and what is not, when `traffic` ends in one way or another.
//!
//! Nobody else uses BPF in this machine: after a clean end there is no program, map or link at all.

use aya::{
    maps::loaded_maps,
    programs::{loaded_links, loaded_programs},
};
use serde_json::json;
use traffic_tests::{
    daemon::Site,
    document::{Document, Traffic},
    leaks, wait,
};

use crate::{
    load::{self, Datagrams},
    pair::{Pair, assert_counted},
};

/// Programs, maps and links in the kernel.
fn objects() -> [usize; 3] {
    [loaded_programs().count(), loaded_maps().count(), loaded_links().count()]
}

/// What `traffic clean` says that it would remove, or has removed.
fn clean(pair: &Pair, site: &Site, more: &[&str]) -> serde_json::Value {
    let mut args = vec!["clean", "--json"];
    args.extend(more);
    site.run(&pair.server.ns, &args).json()["removed"].clone()
}

#[track_caller]
fn assert_nothing_left(pair: &Pair, site: &Site) {
    assert_eq!(clean(pair, site, &["--dry-run"]), json!([]), "what is left");
    assert_eq!(leaks::attached(&pair.server.ns), Vec::<String>::new(), "what is attached");
    // The kernel lets go of them a moment after their last user.
    wait::until("no program, map or link in the kernel", || (objects() == [0; 3]).then_some(()));
    assert!(!site.pins.exists(), "{} is left", site.pins.display());
}

fn some(pair: &Pair) -> Traffic {
    load::udp((&pair.server, &pair.client), false, &[10, 1000], Datagrams::Whole)
}

/// A signal: the last document is exact, and nothing is left.
pub(crate) fn stop(hook: &str) {
    let (pair, site) = (Pair::new(), Site::new());
    let daemon = pair.count(&site, hook, &[]);
    let sent = some(&pair);
    assert_counted(&daemon.stop(), hook, &[("udp4", sent)]);
    assert_nothing_left(&pair, &site);
}

/// `kill -9`: what a filter leaves is removed by the next start, which counts from zero, or by
/// `traffic clean`. Links leave nothing.
pub(crate) fn kill(hook: &str) {
    let (pair, site) = (Pair::new(), Site::new());
    let daemon = pair.count(&site, hook, &[]);
    some(&pair);
    daemon.kill();
    if hook == "tc" {
        let left = clean(&pair, &site, &["--dry-run"]);
        assert_eq!(left.as_array().map(Vec::len), Some(3), "two filters and a qdisc: {left}");
    } else {
        assert_nothing_left(&pair, &site);
    }

    let daemon = pair.count(&site, hook, &[]);
    let sent = some(&pair);
    assert_counted(&daemon.stop(), hook, &[("udp4", sent)]);
    assert_nothing_left(&pair, &site);

    pair.count(&site, hook, &[]).kill();
    clean(&pair, &site, &[]);
    assert_nothing_left(&pair, &site);
}

/// `--persist`: counting goes on through `kill -9`, a start and a stop, in one epoch.
pub(crate) fn persist(hook: &str) {
    let (pair, site) = (Pair::new(), Site::new());
    let dump = || Document(site.run(&pair.server.ns, &["dump", "--json"]).json());

    let mut daemon = pair.count(&site, hook, &["--persist"]);
    let mut sent = some(&pair);
    let seen = daemon.fresh();
    assert_counted(&seen, hook, &[("udp4", sent)]);
    let epoch = seen.text("epoch").to_owned();
    daemon.kill();

    sent += some(&pair);
    let seen = dump();
    assert_counted(&seen, hook, &[("udp4", sent)]);
    assert_eq!(seen.text("epoch"), epoch, "the epoch after kill -9");

    let daemon = pair.count(&site, hook, &["--persist"]);
    sent += some(&pair);
    let seen = daemon.stop();
    assert_counted(&seen, hook, &[("udp4", sent)]);
    assert_eq!(seen.text("epoch"), epoch, "the epoch after the next start");

    sent += some(&pair);
    assert_counted(&dump(), hook, &[("udp4", sent)]);
    clean(&pair, &site, &[]);
    assert_nothing_left(&pair, &site);
}
