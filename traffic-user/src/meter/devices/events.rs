//! News of devices, default routes and filters.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use futures_util::StreamExt as _;
use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_packet_route::{RouteNetlinkMessage, tc::TcAttribute};
use rtnetlink::{Handle, MulticastGroup, new_multicast_connection};
use tokio::{task::JoinHandle, time::timeout};

use super::{Facts, default_routes, devices, is_default, is_there, outputs};
use crate::meter::error::{MeterError, cause};

/// Messages that follow one another so closely are of one event.
const TOGETHER: Duration = Duration::from_millis(5);
/// However many follow, news is not held back for longer.
const HELD_BACK: Duration = Duration::from_millis(20);
/// A look that failed is repeated after so long, whatever comes.
const AGAIN: Duration = Duration::from_secs(1);
/// Some default routes go without a word, with their address or what they lead to: of any news that comes so
/// long after they were listed, they are listed again.
const OLD: Duration = Duration::from_secs(60);
/// So often a list of devices is asked for that leaves out one that is there.
const LISTS: u32 = 5;

type Message = NetlinkMessage<RouteNetlinkMessage>;
type Messages = futures_channel::mpsc::UnboundedReceiver<(Message, rtnetlink::sys::SocketAddr)>;

/// News of devices, default routes and filters of this network namespace.
#[derive(Debug)]
pub struct Events {
    news: futures_channel::mpsc::UnboundedReceiver<Result<Facts, MeterError>>,
    tasks: [JoinHandle<()>; 2],
}

impl Events {
    /// Listens from now on, and gives how things stand. Needs a tokio runtime.
    ///
    /// # Errors
    ///
    /// [`MeterError::Netlink`].
    pub async fn listen() -> Result<(Self, Facts), MeterError> {
        let groups = [
            MulticastGroup::Link,
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv6Route,
            MulticastGroup::Tc,
        ];
        let (connection, handle, mut messages) =
            new_multicast_connection(&groups).map_err(|error| MeterError::Netlink {
                doing: "listen for changes of devices",
                cause: cause(error),
            })?;
        let connection = tokio::spawn(connection);
        let mut view = View { handle, facts: Facts::default(), listed: Instant::now() };
        let facts = view.look(true).await.map_err(|error| {
            connection.abort();
            not_listed(error)
        })?;
        // A task of its own: whoever waits for news may stop waiting at any time, and none is lost.
        let (sender, news) = futures_channel::mpsc::unbounded();
        let watch = async move {
            let mut failed = false;
            loop {
                let change = changed(&mut messages, &view.facts.default_routes);
                let change = match timeout(if failed { AGAIN } else { Duration::MAX }, change).await
                {
                    Ok(None) => break,
                    // What was missed before is not in the news.
                    _ if failed => Change::of_routes(),
                    Ok(Some(change)) => change,
                    Err(_) => continue,
                };
                // At once: the list of all routes may be long, and packets do not wait.
                if !change.added.is_subset(&view.facts.default_routes) {
                    view.facts.default_routes.extend(&change.added);
                    if view.look_at_devices().await.is_ok()
                        && sender.unbounded_send(Ok(view.facts.clone())).is_err()
                    {
                        break;
                    }
                }
                let looked = view.look(change.routes).await.map_err(not_listed);
                let is_known = failed && looked.is_err();
                failed = looked.is_err();
                if !is_known && sender.unbounded_send(looked).is_err() {
                    break;
                }
            }
        };
        Ok((Self { news, tasks: [connection, tokio::spawn(watch)] }, facts))
    }

    /// Waits until something changed, and gives the new facts. `None` when the kernel closed the
    /// connection. Nothing is lost when the wait is given up.
    ///
    /// # Errors
    ///
    /// [`MeterError::Netlink`] when they cannot be had, which is told once: they are news as soon as they can.
    pub async fn next(&mut self) -> Result<Option<Facts>, MeterError> {
        self.news.next().await.transpose()
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

fn not_listed(error: rtnetlink::Error) -> MeterError {
    MeterError::Netlink { doing: "list devices and routes", cause: cause(error) }
}

/// What was seen last.
struct View {
    handle: Handle,
    facts: Facts,
    /// When routes were.
    listed: Instant,
}

impl View {
    /// Devices, and where they may have changed or are old, `routes`.
    async fn look(&mut self, routes: bool) -> Result<Facts, rtnetlink::Error> {
        self.look_at_devices().await?;
        if routes || self.listed.elapsed() >= OLD {
            self.facts.default_routes = default_routes(&self.handle).await?;
            self.listed = Instant::now();
        }
        Ok(self.facts.clone())
    }

    async fn look_at_devices(&mut self) -> Result<(), rtnetlink::Error> {
        let mut found = devices(&self.handle).await?;
        for _ in 1..LISTS {
            // On kernels before 6.9 a device that goes away while they are listed takes another off the list.
            let missed = self.facts.devices.iter().any(|before| {
                !found.iter().any(|device| device.index == before.index) && is_there(before.index)
            });
            if !missed {
                break;
            }
            found = devices(&self.handle).await?;
        }
        self.facts.devices = found;
        Ok(())
    }
}

/// What is to be looked at again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Change {
    /// Default routes, too. A router has a million routes, and lists them all.
    routes: bool,
    /// Numbers of devices that got a default route.
    added: BTreeSet<u32>,
}

impl Change {
    /// Everything.
    fn of_routes() -> Self {
        Self { routes: true, ..Self::default() }
    }

    fn join(&mut self, other: Self) {
        self.routes |= other.routes;
        self.added.extend(other.added);
    }
}

/// Waits for a change and what belongs to it. `None` when the connection is closed.
async fn changed(messages: &mut Messages, default_routes: &BTreeSet<u32>) -> Option<Change> {
    let mut change = loop {
        let (message, _) = messages.next().await?;
        if let Some(change) = change_of(&message, default_routes) {
            break change;
        }
    };
    let more = async {
        while let Ok(Some((message, _))) = timeout(TOGETHER, messages.next()).await {
            change.join(change_of(&message, default_routes).unwrap_or_default());
        }
    };
    // Routes that change all the time do not hold a device up.
    let _ = timeout(HELD_BACK, more).await;
    Some(change)
}

/// Routers change thousands of routes a second; only default ones are ours.
fn change_of(message: &Message, default_routes: &BTreeSet<u32>) -> Option<Change> {
    match &message.payload {
        NetlinkPayload::InnerMessage(inner) => match inner {
            RouteNetlinkMessage::NewRoute(route) if is_default(route) => {
                Some(Change { routes: true, added: outputs(route).into_iter().collect() })
            }
            RouteNetlinkMessage::DelRoute(route) if is_default(route) => Some(Change::of_routes()),
            // A device that goes down takes its routes with it, and of IPv4 not a word is said.
            RouteNetlinkMessage::NewLink(link) | RouteNetlinkMessage::DelLink(link) => {
                let routes = default_routes.contains(&link.header.index);
                Some(Change { routes, ..Change::default() })
            }
            RouteNetlinkMessage::DelQueueDiscipline(_)
            | RouteNetlinkMessage::DelTrafficFilter(_) => Some(Change::default()),
            // One can be put in the place of ours.
            RouteNetlinkMessage::NewTrafficFilter(filter) => filter
                .attributes
                .iter()
                .any(|nla| matches!(nla, TcAttribute::Kind(kind) if kind == "bpf"))
                .then(Change::default),
            _ => None,
        },
        // The socket's buffer ran over: anything may have changed.
        NetlinkPayload::Overrun(_) | NetlinkPayload::Error(_) => Some(Change::of_routes()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::NetlinkHeader;
    use netlink_packet_route::{
        link::LinkMessage,
        route::{RouteAttribute, RouteMessage, RouteType},
    };

    use super::*;

    #[track_caller]
    fn check(message: RouteNetlinkMessage, routes: Option<bool>, added: &[u32]) {
        let payload = NetlinkPayload::InnerMessage(message);
        let message = NetlinkMessage::new(NetlinkHeader::default(), payload);
        let change = routes.map(|routes| Change { routes, added: added.iter().copied().collect() });
        assert_eq!(change_of(&message, &BTreeSet::from([3])), change);
    }

    fn link(index: u32) -> LinkMessage {
        let mut link = LinkMessage::default();
        link.header.index = index;
        link
    }

    fn route(prefix: u8) -> RouteMessage {
        let mut route = RouteMessage::default();
        route.header.destination_prefix_length = prefix;
        route.header.kind = RouteType::Unicast;
        route.attributes.push(RouteAttribute::Oif(7));
        route
    }

    #[test]
    fn routes_are_listed_for_news_of_default_routes_and_their_devices_alone() {
        use RouteNetlinkMessage::{DelLink, DelRoute, NewLink, NewRoute};
        check(NewRoute(route(24)), None, &[]);
        check(DelRoute(route(24)), None, &[]);
        check(NewRoute(route(0)), Some(true), &[7]);
        check(DelRoute(route(1)), Some(true), &[]);
        check(NewLink(link(4)), Some(false), &[]);
        check(DelLink(link(4)), Some(false), &[]);
        check(NewLink(link(3)), Some(true), &[]);
        check(DelLink(link(3)), Some(true), &[]);
    }
}
