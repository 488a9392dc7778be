//! Who is connected, as newer versions of Xray tell.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use super::{counters::text, wire::xray::OnlineIpEntry};

/// A user with a connection that is open, or was a moment ago.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OnlineUser {
    /// By email, as the counters name him.
    pub email: Arc<str>,
    /// From where he is connected, each with when it was last seen: seconds of Unix time.
    pub addresses: BTreeMap<IpAddr, i64>,
}

/// The name of a user in an answer: bare, or as `user>>>EMAIL>>>online`.
pub(super) fn email(name: &[u8]) -> Arc<str> {
    let name = text(name);
    let bare = name.strip_prefix("user>>>").and_then(|name| name.strip_suffix(">>>online"));
    bare.unwrap_or(&name).into()
}

/// The addresses of an answer. What is no address is left out.
pub(super) fn addresses(entries: &[OnlineIpEntry]) -> BTreeMap<IpAddr, i64> {
    let read = |entry: &OnlineIpEntry| {
        let text = std::str::from_utf8(&entry.ip).ok()?;
        let bare = text.trim_start_matches('[').trim_end_matches(']');
        Some((bare.parse().ok()?, entry.last_seen))
    };
    entries.iter().filter_map(read).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn emails_are_found_bare_or_in_a_name() {
        assert_eq!(&*email(b"a@x"), "a@x");
        assert_eq!(&*email(b"user>>>a>>>b@x>>>online"), "a>>>b@x");
        assert_eq!(&*email(b"user>>>\xff@x>>>online"), "\\xff@x");
    }

    #[test]
    fn what_is_no_address_takes_no_others_away() {
        let entry = |ip: &[u8], last_seen| OnlineIpEntry { ip: ip.to_vec(), last_seen };
        let found = addresses(&[
            entry(b"10.0.0.1", 5),
            entry(b"nonsense", 6),
            entry(b"\xff", 7),
            entry(b"[2001:db8::1]", 8),
        ]);
        let want = [("10.0.0.1", 5), ("2001:db8::1", 8)]
            .map(|(ip, seen)| (ip.parse().unwrap(), seen))
            .into_iter()
            .collect();
        assert_eq!(found, want);
    }
}
