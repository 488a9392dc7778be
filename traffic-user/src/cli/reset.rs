//! `traffic reset`: a new zero, at the proxy and in our own report. Asks first.

use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use serde_json::json;

use super::{
    Common, agreed, print,
    proxy::ProxyArgs,
    run::{ledger_options, state},
    stats::poll,
};
use crate::{
    accounting::{ident::shown, payload::Polls, tick::Cursors},
    daemon::{
        AskedProxy, ProxyPlace, Question, Whose, ask, is_known, joined, names, reset_alone, zero,
    },
    ledger::{LedgerError, Reader},
    meter::{self, host::boot_id, proxy::ProxyMeter},
    view::json::JSON_VERSION,
};

#[derive(Debug, clap::Args)]
#[command(group(clap::ArgGroup::new("whose").required(true)))]
pub(super) struct Args {
    /// One user, by email
    #[arg(long, value_name = "EMAIL", group = "whose")]
    user: Option<String>,
    /// The group that has this port, and its users
    #[arg(long, value_name = "PORT", group = "whose", value_parser = clap::value_parser!(u16).range(1..))]
    port: Option<u16>,
    /// Everybody
    #[arg(long, group = "whose")]
    all: bool,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
    #[command(flatten)]
    proxy: ProxyArgs,
}

/// The group that has a port, and its users: for the menu.
pub(super) fn port(common: &Common, port: u16) -> Result<()> {
    let proxy = ProxyArgs::default();
    let args = Args { user: None, port: Some(port), all: false, yes: false, proxy };
    run(common, &args).map(drop)
}

pub(super) fn run(common: &Common, args: &Args) -> Result<ExitCode> {
    let whose = match (&args.user, args.port) {
        (Some(user), _) => Whose::User(user.clone()),
        (None, Some(port)) => Whose::Port(port),
        (None, None) => Whose::All,
    };
    let subject = match &whose {
        Whose::User(user) => format!("user {}", shown(user)),
        Whose::Port(port) => format!("port {port} and its users"),
        Whose::All => "all users and groups".to_owned(),
    };
    if !args.yes && !agreed(&format!("Set the numbers of {subject} to zero?"))? {
        return tell(common, &whose, false, "nothing was reset");
    }
    // A proxy that was named may be another than the daemon's.
    if !args.proxy.is_named()
        && let Some(said) = ask(&common.state, &Question::Reset(whose.clone()))?
    {
        return tell(common, &whose, true, &format!("{subject}: {said}"));
    }
    if let Some(said) = alone(common, args, &whose)? {
        return tell(common, &whose, true, &format!("{said} (no daemon was asked)"));
    }
    // No daemon and no ledger, or another proxy than theirs: it alone has numbers.
    let place = args.proxy.place(common)?.context("no proxy is to be looked for")?;
    let config = place.config()?;
    let good = config.as_ref().and_then(|config| config.good());
    let Some(address) = place.address(good) else {
        bail!(
            "no API of a proxy is known\n  remedy: name it with --api, or the proxy's config with --proxy-config"
        );
    };
    let typed = common.config.ports.clone().unwrap_or_default();
    let inbounds = good.map(|good| joined(&good.inbounds, &typed)).unwrap_or_default();
    is_known(inbounds.iter().map(|inbound| &inbound.group), &whose)?;
    let said = zero(address, names(&inbounds, &whose)).said()?;
    tell(common, &whose, true, &format!("{subject}: {said} (no daemon was asked)"))
}

/// Says what became of it.
fn tell(common: &Common, whose: &Whose, reset: bool, said: &str) -> Result<ExitCode> {
    if common.json {
        let (user, port) = match whose {
            Whose::User(user) => (Some(user), None),
            Whose::Port(port) => (None, Some(port)),
            Whose::All => (None, None),
        };
        let document = json!({
            "jsonversion": JSON_VERSION,
            "user": user,
            "port": port,
            "reset": reset,
            "said": said,
        });
        print(&format!("{document}\n"))?;
    } else {
        print(&format!("{said}\n"))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// In the place of a daemon, where there is a ledger. A proxy that was named may be another than that of the
/// ledger, which must not be mixed up.
fn alone(common: &Common, args: &Args, whose: &Whose) -> Result<Option<String>> {
    if common.config.ledger == Some(false) {
        return Ok(None);
    }
    let named = args.proxy.is_named();
    let opened = match Reader::open(&common.state) {
        // Whoever may not look into the ledger may still reset a proxy that he names.
        Err(LedgerError::Denied { .. }) if named => None,
        other => other?,
    };
    let Some(reader) = opened else { return Ok(None) };
    let _lock = match state(common) {
        // A daemon runs, and takes it for a reset by another reader.
        Err(_) if named => return Ok(None),
        other => other?,
    };
    let proxy = match args.proxy.place(common)? {
        Some(place) => asked(common, &place)?,
        None => None,
    };
    if named && !is_of_ledger(&reader.cursors()?, proxy.as_ref()) {
        return Ok(None);
    }
    let kernel = meter::installed(&common.pins)?.map(|(snapshot, _)| snapshot);
    if kernel.is_none() && proxy.is_none() {
        bail!(
            "nothing counts now: no daemon runs, no rules or pins of ours are there, and no API of a proxy is known\n  remedy: start `traffic run`; what was counted is in `traffic history`"
        );
    }
    let books = (common.state.as_path(), ledger_options(&common.config)?);
    reset_alone(books, kernel, proxy, whose).map(Some)
}

/// Whether it is certainly the proxy that the ledger read last.
fn is_of_ledger(cursors: &Cursors, proxy: Option<&AskedProxy>) -> bool {
    let cursor = cursors.proxy.as_ref().filter(|cursor| cursor.boot == boot_id());
    let (Some(cursor), Some(proxy)) = (cursor, proxy) else { return false };
    Polls::resumed(cursor.kept.clone()).is_of_this_life(&proxy.poll)
}

/// Asks the proxy what it has counted; `None` without an API.
fn asked(common: &Common, place: &ProxyPlace) -> Result<Option<AskedProxy>> {
    let config = place.config()?;
    let good = config.as_ref().and_then(|config| config.good());
    let Some(address) = place.address(good) else { return Ok(None) };
    let typed = common.config.ports.clone().unwrap_or_default();
    let latest = poll(ProxyMeter::new(address.clone()))?;
    let Some(poll) = latest.snapshot else {
        let reason = latest.health.and_then(|health| health.reason).unwrap_or_default();
        bail!(
            "the proxy's API does not answer, so nothing was reset: {reason}\n  remedy: start the proxy, or leave it out with --no-proxy"
        );
    };
    Ok(Some(AskedProxy {
        address,
        inbounds: good.map(|good| joined(&good.inbounds, &typed)).unwrap_or_default(),
        uncounted: good.map(|good| good.unreported.clone()).unwrap_or_default(),
        poll: (*poll).clone(),
    }))
}
