//! The proxy beside the kernel: its config is followed, its counters are read on a thread of their own,
//! and both meters are merged at each tick.
//!
//! Nothing here waits for the proxy: what it has not said yet comes with a later tick.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result};
use tokio::time::timeout;

use crate::{
    accounting::{
        attribute::Merge,
        ident::{Group, Groups, shown},
        payload::PayloadDeltas,
        proxy::{
            ApiHealth, ApiState, CounterName, Inbound, ProxySnapshot, Subject as Counted, Way,
        },
        reading::Snapshot,
        stats::ApiReport,
        subject::Subject,
        tick::State,
        usage::Event,
    },
    meter::{
        chain,
        listening::listening,
        proxy::{Address, Latest, ProxyMeter, Watch, boot_time},
    },
    proxy_config::{ProxyConfig, Watched, find_all},
    view::stats::{ApiDocument, Beside, Document, EventDocument},
};

use super::control::Whose;

/// How long the last report waits for the proxy.
const LAST_POLL: Duration = Duration::from_millis(500);
/// Events that are kept to be shown.
const EVENTS: usize = 100;

/// Where to look for a proxy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ProxyPlace {
    /// Named by somebody, so that they must be there. Empty: look in the usual places.
    pub(crate) files: Vec<PathBuf>,
    /// Wins over what the config says.
    pub(crate) api: Option<Address>,
}

impl ProxyPlace {
    /// The config that is meant, read once; `None` when there is none.
    ///
    /// One that was only found belongs to a proxy that runs if something listens on its ports: packages
    /// install a config for a proxy that nobody starts.
    pub(crate) fn config(&self) -> Result<Option<Watched>> {
        if !self.files.is_empty() {
            let mut config = Watched::new(self.files.clone());
            if let Some(Err(error)) = config.poll() {
                let remedy = error.remedy();
                return Err(anyhow::anyhow!("{}\n  remedy: {remedy}", chain(error)));
            }
            return Ok(Some(config));
        }
        for files in find_all() {
            let mut config = Watched::new(files);
            if let Some(Err(error)) = config.poll() {
                tracing::info!(error = chain(error), "a config that was found is not used");
            }
            if config.good().is_some_and(is_in_use) {
                return Ok(Some(config));
            }
        }
        Ok(None)
    }

    /// Whether a config or an API was named, and not only looked for.
    pub(crate) fn is_named(&self) -> bool {
        !self.files.is_empty() || self.api.is_some()
    }

    /// Where its API is.
    pub(crate) fn address(&self, config: Option<&ProxyConfig>) -> Option<Address> {
        let of_config = || {
            let address = config?.api.as_ref()?.address.as_ref()?;
            // What a config says is checked as what is typed.
            address.to_string().parse().ok()
        };
        self.api.clone().or_else(of_config)
    }
}

fn is_in_use(config: &ProxyConfig) -> bool {
    let open = listening().map(Groups::unchecked).unwrap_or_default();
    config.inbounds.iter().any(|inbound| open.meets(&inbound.group))
}

/// Puts groups that were named by hand in the place of inbounds that they mean: those with the same name,
/// and those whose ports they hold all.
pub(crate) fn joined(inbounds: &[Inbound], typed: &Groups) -> Vec<Inbound> {
    inbounds
        .iter()
        .map(|inbound| {
            let means = |group: &&Group| {
                let same_name = group.name().is_some() && group.name() == inbound.group.name();
                same_name || group.covers(&inbound.group)
            };
            let group = typed.iter().find(means).unwrap_or(&inbound.group).clone();
            Inbound { group, ..inbound.clone() }
        })
        .collect()
}

/// An inbound whose ports were named by hand in part, so that neither can stand for the other.
fn torn<'a>(inbounds: &'a [Inbound], watched: &Groups) -> Option<&'a Inbound> {
    let is_watched = |group: &Group| watched.iter().any(|own| own.same_ports(group));
    inbounds.iter().find(|inbound| !is_watched(&inbound.group))
}

/// Everything that is to be watched: what was named by hand, then the inbounds.
pub(crate) fn watched(inbounds: &[Inbound], typed: &Groups) -> Groups {
    let more: Vec<Group> = inbounds.iter().map(|inbound| inbound.group.clone()).collect();
    typed.extended_by(&more)
}

/// The proxy, and what both meters said of it.
pub(crate) struct Proxy {
    place: ProxyPlace,
    config: Option<Watched>,
    typed: Groups,
    interval: Duration,
    watch: Option<(Address, Watch)>,
    /// The merge does not know yet what the config says.
    unconfigured: bool,
    /// Boot time after which a poll must have begun to be looked at.
    after: i128,
    /// Resets under way: what a poll says while they last is neither before nor after.
    resets: u32,
    /// Boot time since when traffic is accounted for.
    watched_since: i128,
    /// The same as Unix time.
    since: i128,
    /// Which life of the report.
    epoch: u64,
    state: Option<&'static str>,
    events: VecDeque<EventDocument>,
    /// Those that the ledger is to have as well.
    unbooked: Vec<Event>,
}

impl Proxy {
    /// Looks for the proxy. `None` when there is none.
    ///
    /// # Errors
    ///
    /// When a config was named that cannot be used.
    pub(crate) fn find(
        place: ProxyPlace,
        typed: Groups,
        interval: Duration,
        now: i128,
    ) -> Result<Option<Self>> {
        let config = place.config()?;
        if config.is_none() && place.api.is_none() {
            return Ok(None);
        }
        let boot = boot_time();
        let proxy = Self {
            place,
            config,
            typed,
            interval,
            watch: None,
            unconfigured: true,
            after: i128::MIN,
            resets: 0,
            epoch: epoch(now),
            watched_since: boot,
            since: now,
            state: None,
            events: VecDeque::new(),
            unbooked: Vec::new(),
        };
        proxy.groups_with(&proxy.typed)?;
        Ok(Some(proxy))
    }

    /// What is to be watched.
    pub(crate) fn groups(&self) -> Groups {
        watched(&self.inbounds(), &self.typed)
    }

    /// What is to be watched if these groups are named by hand.
    ///
    /// # Errors
    ///
    /// When they cannot stand beside the inbounds.
    pub(super) fn groups_with(&self, typed: &Groups) -> Result<Groups> {
        let inbounds = self.good().map(|config| joined(&config.inbounds, typed));
        let inbounds = inbounds.unwrap_or_default();
        let groups = watched(&inbounds, typed);
        if let Some(inbound) = torn(&inbounds, &groups) {
            anyhow::bail!(
                "--ports names a part of the ports {} of an inbound\n  remedy: name all of them, or leave them out",
                inbound.group
            );
        }
        Ok(groups)
    }

    /// Goes on with other groups named by hand, and with another time between polls.
    pub(super) fn take_over(&mut self, typed: Groups, interval: Duration) {
        self.typed = typed;
        self.unconfigured = true;
        if self.interval != interval {
            self.interval = interval;
            self.watch = None;
        }
        self.watch_or_say();
    }

    fn watch_or_say(&mut self) {
        if let Err(error) = self.watch() {
            tracing::warn!(error = format!("{error:#}"), "the proxy's API is not read");
        }
    }

    fn good(&self) -> Option<&ProxyConfig> {
        self.config.as_ref()?.good()
    }

    fn inbounds(&self) -> Vec<Inbound> {
        self.good().map(|config| joined(&config.inbounds, &self.typed)).unwrap_or_default()
    }

    /// Tells the merge what the config says, if it does not know yet.
    pub(super) fn configure(&mut self, state: &mut State) {
        state.watch_proxy(self.watched_since);
        if std::mem::take(&mut self.unconfigured) {
            let inbounds = self.inbounds();
            let uncounted = self.good().map(|config| config.unreported.clone()).unwrap_or_default();
            state.merge_mut().configure(&inbounds, &uncounted);
        }
    }

    /// Reads its counters from now on. Begins before the first tick, so that a proxy that is slow to
    /// answer has had its time.
    pub(crate) fn watch(&mut self) -> Result<()> {
        let address = self.place.address(self.good());
        if self.watch.as_ref().map(|(at, _)| at) == address.as_ref() {
            return Ok(());
        }
        self.watch = None;
        if let Some(address) = address {
            let watch = ProxyMeter::new(address.clone())
                .spawn(self.interval)
                .context("users are not told apart")?;
            self.watch = Some((address, watch));
        }
        Ok(())
    }

    /// Looks whether its config changed. Gives what is to be watched then.
    pub(super) fn follow_config(&mut self, now: i128) -> Option<Groups> {
        let changed = match self.config.as_mut()?.poll()? {
            Ok(_) => Ok(()),
            Err(error) => Err(chain(error)),
        };
        match changed {
            Err(error) => {
                tracing::warn!(%error, "the proxy's config is not used: the last good one stays");
                self.event(now, "config-broken", error, None);
                None
            }
            Ok(()) => {
                self.unconfigured = true;
                self.watch_or_say();
                let groups = self.groups();
                let what = format!("the proxy's config changed: {} groups", groups.len());
                self.event(now, "config-changed", what, None);
                Some(groups)
            }
        }
    }

    /// Keeps an event, for the ledger too.
    fn event(&mut self, at: i128, kind: &'static str, what: String, subject: Option<Subject>) {
        self.happened(Event { at, kind: kind.to_owned(), subject, what });
    }

    /// Shows an event beside the proxy's own, and keeps it for the ledger.
    pub(super) fn happened(&mut self, event: Event) {
        self.show(EventDocument::new(event.at, &event.kind, event.what.clone()));
        self.unbooked.push(event);
    }

    /// Keeps an event to be shown. One that comes again and again is kept once.
    fn show(&mut self, event: EventDocument) {
        let same = |last: &EventDocument| (&last.kind, &last.what) == (&event.kind, &event.what);
        if self.events.back().is_some_and(same) {
            return;
        }
        self.events.push_back(event);
        if self.events.len() > EVENTS {
            self.events.pop_front();
        }
    }

    /// A poll that was not given before.
    pub(super) fn poll(&mut self) -> Option<Arc<ProxySnapshot>> {
        let fresh = |poll: &Arc<_>| self.resets == 0 && begin_of(poll) > self.after;
        let poll = self.latest().snapshot.filter(fresh)?;
        self.after = poll.boot.end;
        Some(poll)
    }

    /// Takes note of what a tick found in a poll, and of how the API is.
    pub(super) fn took(&mut self, payload: Option<&PayloadDeltas>, now: i128) {
        if let Some(payload) = payload {
            for anomaly in &payload.anomalies {
                self.show(EventDocument::of_anomaly(now, anomaly));
            }
            for (gap, count) in payload.causes() {
                self.show(EventDocument::of_gaps(now, gap, count));
            }
        }
        if let Some(ApiHealth { state, reason, .. }) = self.latest().health
            && self.state.replace(state.name()) != Some(state.name())
        {
            let reason = reason.map(|reason| format!(": {reason}")).unwrap_or_default();
            let what = format!("the proxy's API is {}{reason}", state.name());
            self.event(now, "api", what, None);
        }
    }

    /// What happened to the proxy since this was last asked, for the ledger.
    pub(super) fn take_events(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.unbooked)
    }

    fn latest(&self) -> Latest {
        self.watch.as_ref().map(|(_, watch)| watch.latest()).unwrap_or_default()
    }

    /// How things stand.
    pub(super) fn document(&self, host: &str, snapshot: &Snapshot, merge: &Merge) -> Document {
        let api = self.latest();
        let report = merge.report(snapshot.window.end, api_report(&api));
        Document::new(
            &report,
            Beside {
                host,
                epoch: Some(self.epoch),
                since: Some(self.since),
                meter: Some((snapshot.meter, snapshot.layer)),
                online: online(&api),
                api: api_document(&api, self.watch.is_some()),
                events: self.events.iter().cloned().collect(),
            },
        )
    }

    /// Where its API is, if anywhere.
    pub(super) fn address(&self) -> Option<Address> {
        self.watch.as_ref().map(|(address, _)| address.clone())
    }

    /// Whether it is the proxy whose API this is.
    pub(super) fn reads(&self, api: &str) -> bool {
        self.address().is_some_and(|own| own.to_string() == api)
    }

    /// The counters that are somebody's; `None` for all.
    pub(super) fn names(&self, whose: &Whose) -> Option<Vec<CounterName>> {
        names(&self.inbounds(), whose)
    }

    /// Looks at no poll until [`counters_were_reset`](Self::counters_were_reset).
    pub(super) fn hold_polls(&mut self) {
        self.resets += 1;
    }

    /// Takes note that these counters are zero at the proxy: charges what they were. `boot` is a boot
    /// time after that.
    pub(super) fn counters_were_reset(
        &mut self,
        state: &mut State,
        values: &[(CounterName, i64)],
        boot: i128,
    ) {
        state.counters_were_reset(values);
        // A poll that was under way may have been answered before.
        self.after = self.after.max(boot);
        self.resets = self.resets.saturating_sub(1);
    }

    /// Asks for a poll and waits for it, but not for long: what was moved until now is in the last
    /// report then.
    pub(super) async fn last_poll(&mut self) {
        let Some((_, watch)) = &mut self.watch else {
            return;
        };
        let now = boot_time();
        watch.refresh();
        let fresh = async {
            loop {
                let latest = watch.changed().await;
                let answers = latest.health.is_some_and(|health| health.state == ApiState::Ok);
                if !answers || latest.snapshot.is_some_and(|poll| poll.boot.begin >= now) {
                    return;
                }
            }
        };
        let _late = timeout(LAST_POLL, fresh).await;
    }

    /// Begins numbers of ours anew. What is booked stays: in the ledger this is an event.
    pub(super) fn begin_anew(&mut self, state: &mut State, whose: &Whose, now: i128) {
        self.epoch = epoch(now);
        let (what, subject) = match whose {
            Whose::User(email) => {
                state.merge_mut().reset_user(email);
                let what = format!("numbers of user {} begin anew", shown(email));
                (what, Some(Subject::User(email.as_str().into())))
            }
            Whose::Port(port) => {
                state.merge_mut().reset_port(*port);
                let watched = self.groups();
                let group = watched.iter().find(|group| group.ports().any(|one| one == *port));
                (format!("numbers of port {port} begin anew"), group.map(Subject::group))
            }
            Whose::All => {
                *state.merge_mut() = Merge::default();
                self.unconfigured = true;
                self.configure(state);
                self.since = now;
                ("all numbers begin anew".to_owned(), None)
            }
        };
        self.event(now, "reset", what, subject);
    }
}

/// The counters that are somebody's; `None` for all.
pub(crate) fn names(inbounds: &[Inbound], whose: &Whose) -> Option<Vec<CounterName>> {
    let both =
        |subject: &Counted| Way::ALL.map(|way| CounterName { subject: subject.clone(), way });
    match whose {
        Whose::All => None,
        Whose::User(email) => Some(both(&Counted::User(email.as_str().into())).to_vec()),
        Whose::Port(port) => {
            let of_port = |inbound: &&Inbound| inbound.group.ports().any(|one| one == *port);
            let here: Vec<&Inbound> = inbounds.iter().filter(of_port).collect();
            let elsewhere: HashSet<&Arc<str>> = inbounds
                .iter()
                .filter(|inbound| !of_port(inbound))
                .flat_map(|inbound| &inbound.users.emails)
                .collect();
            // One who is elsewhere as well has one counter for both: it is not this port's to reset.
            let users = here
                .iter()
                .flat_map(|inbound| &inbound.users.emails)
                .filter(|email| !elsewhere.contains(email))
                .map(|email| Counted::User(Arc::clone(email)));
            let tags = here.iter().filter_map(|inbound| inbound.tag.clone()).map(Counted::Inbound);
            Some(tags.chain(users).flat_map(|subject| both(&subject)).collect())
        }
    }
}

/// What the core is told of an API.
pub(crate) fn api_report(latest: &Latest) -> ApiReport {
    let health = latest.health.as_ref();
    ApiReport {
        state: health.map_or("disabled", |health| health.state.name()),
        since: health.map(|health| health.since),
        product: latest.identity.and_then(|identity| identity.product),
        uptime: latest.snapshot.as_ref().and_then(|poll| poll.uptime),
    }
}

/// From how many addresses each user is connected, if the proxy tells.
pub(crate) fn online(latest: &Latest) -> Option<HashMap<Arc<str>, usize>> {
    let users = latest.online.as_ref()?;
    Some(users.iter().map(|user| (Arc::clone(&user.email), user.addresses.len())).collect())
}

fn begin_of(poll: &ProxySnapshot) -> i128 {
    poll.boot.begin
}

/// Nanoseconds of Unix time: no two resets are at one time.
fn epoch(now: i128) -> u64 {
    u64::try_from(now).unwrap_or(0)
}

/// What is known of an API.
pub(crate) fn api_document(latest: &Latest, watched: bool) -> ApiDocument {
    let snapshot = latest.snapshot.as_ref();
    let product = latest.identity.and_then(|identity| identity.product);
    let mut document = ApiDocument {
        product: product.map(|product| product.name().to_owned()),
        uptime_seconds: snapshot.and_then(|poll| poll.uptime),
        ..ApiDocument::default()
    };
    match &latest.health {
        Some(health) => {
            document.state = Some(health.state.name().to_owned());
            document.since = Some(crate::view::json::time(health.since));
            document.reason.clone_from(&health.reason);
            document.remedy.clone_from(&health.remedy);
            if health.reason.is_some() {
                // What it said before it went away is old.
                document.uptime_seconds = None;
            }
        }
        None if !watched => {
            document.state = Some("disabled".to_owned());
            document.reason = Some("its config names no API that can be reached".to_owned());
            document.remedy =
                Some("`traffic doctor` shows what to add, and --api names one".to_owned());
        }
        None => {}
    }
    document
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::accounting::proxy::Users;

    fn inbound(ports: &str, tag: &str, emails: &[&str]) -> Inbound {
        let emails = emails.iter().map(|email| Arc::from(*email)).collect();
        Inbound {
            group: format!("{ports}={tag}").parse().unwrap(),
            tag: Some(tag.into()),
            protocol: "vmess".into(),
            users: Users { emails, ..Users::default() },
        }
    }

    fn texts(groups: &Groups) -> Vec<String> {
        groups.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn groups_named_by_hand_stand_in_for_the_inbounds_that_they_mean() {
        let inbounds = [
            inbound("443/tcp", "web", &[]),
            inbound("8443/udp", "hop", &[]),
            inbound("1080", "socks", &[]),
        ];
        // Ports that are redirected to an inbound, a range that holds one, and one that is no inbound.
        let typed = Groups::parse("443+4430/tcp=all,20000-50000/udp=hop,22", 10).unwrap();
        let joined = joined(&inbounds, &typed);
        let groups: Vec<_> = joined.iter().map(|inbound| inbound.group.to_string()).collect();
        assert_eq!(groups, ["443+4430/tcp=all", "20000-50000/udp=hop", "1080=socks"]);
        let all = texts(&watched(&joined, &typed));
        assert_eq!(all, ["443+4430/tcp=all", "20000-50000/udp=hop", "22", "1080=socks"]);
    }

    #[test]
    fn a_port_resets_its_inbound_and_those_users_who_are_nowhere_else() {
        let inbounds =
            [inbound("443", "web", &["a@x", "b@x"]), inbound("8443", "more", &["b@x", "c@x"])];
        let text = |whose: &Whose| {
            let names = names(&inbounds, whose)?;
            Some(names.iter().map(ToString::to_string).collect::<Vec<_>>())
        };
        assert_eq!(text(&Whose::All), None);
        assert_eq!(
            text(&Whose::Port(443)).unwrap(),
            [
                "inbound>>>web>>>traffic>>>uplink",
                "inbound>>>web>>>traffic>>>downlink",
                "user>>>a@x>>>traffic>>>uplink",
                "user>>>a@x>>>traffic>>>downlink",
            ]
        );
        assert_eq!(text(&Whose::User("c@x".to_owned())).unwrap().len(), 2);
        assert_eq!(text(&Whose::Port(1)).unwrap(), [""; 0]);
    }
}
