//! Rules that multi-v2ray leaves behind, told from an admin's by their exact form.
//!
//! Its rule in OUTPUT has no target and counts a source port: that is its signature. Its rule in INPUT
//! accepts a port as an admin's may, and is taken for its only beside the signature of the same port: as many
//! as there are of those, from the head, where it inserts them. Any more may be an admin's.

use std::cmp::Reverse;

use super::{
    Family, MeterError,
    parse::{Chain, Rule, Table},
    rules::{range, transport},
    tool::{self, Backend},
};
use crate::accounting::ident::Transport;

/// A rule that multi-v2ray made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForeignRule {
    /// IPv4 or IPv6.
    pub family: Family,
    /// Where it is.
    pub backend: Backend,
    /// `INPUT` or `OUTPUT`.
    pub chain: &'static str,
    /// Which port.
    pub port: u16,
    /// TCP or UDP, never both.
    pub transport: Transport,
    /// Packets that it counted.
    pub packets: u64,
    /// Bytes of them, from the IP header on.
    pub bytes: u64,
    /// The rule as a person would write it.
    pub text: String,
    /// Why the port may be open to the world only because of it.
    pub opens: Option<String>,
    /// Which of several alike in its chain, from 0.
    nth: usize,
}

/// What was found that has the form of multi-v2ray's rules.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ForeignRules {
    /// Those that it made.
    pub rules: Vec<ForeignRule>,
    /// Those that accept a port as its do and are too many for its signatures: an admin may have made them.
    pub spared: Vec<ForeignRule>,
}

/// Finds the rules that multi-v2ray left, in both families and back ends. Changes nothing.
///
/// # Errors
///
/// [`MeterError::Denied`], [`MeterError::Tool`].
pub fn foreign() -> Result<ForeignRules, MeterError> {
    let mut all = ForeignRules::default();
    for tool in tool::all() {
        let ForeignRules { rules, spared } = in_table(&tool.filter()?, tool.family, tool.backend);
        all.rules.extend(rules);
        all.spared.extend(spared);
    }
    Ok(all)
}

/// Removes these rules, and gives those that were there. Those of one table go together.
///
/// # Errors
///
/// The first table that could not be changed; what could be removed before is removed.
pub fn remove_foreign(rules: &[ForeignRule]) -> Result<Vec<ForeignRule>, MeterError> {
    let mut removed = Vec::new();
    for tool in tool::all() {
        let of_tool =
            |rule: &&ForeignRule| (rule.family, rule.backend) == (tool.family, tool.backend);
        let wanted: Vec<&ForeignRule> = rules.iter().filter(of_tool).collect();
        if wanted.is_empty() {
            continue;
        }
        let places = places(&tool.filter()?, &wanted);
        let lines: Vec<String> =
            places.iter().map(|(chain, place, _)| format!("-D {chain} {place}")).collect();
        tool.change(&lines)?;
        removed.extend(places.into_iter().rev().map(|(_, _, rule)| rule.clone()));
    }
    Ok(removed)
}

/// Chain and place from 1 of those that are still there, from the end of each chain.
fn places<'a>(
    table: &Table,
    wanted: &[&'a ForeignRule],
) -> Vec<(&'static str, usize, &'a ForeignRule)> {
    let mut places = Vec::new();
    for chain in ["OUTPUT", "INPUT"] {
        let alike = |rule: &ForeignRule| (rule.chain, rule.port, rule.transport);
        let Some(found) = table.chain(chain) else { continue };
        for (place, _, port, transport, nth) in of_form(found, chain) {
            let key = (chain, port, transport);
            let rule = wanted.iter().find(|rule| alike(rule) == key && rule.nth == nth);
            places.extend(rule.map(|rule| (rule.chain, place, *rule)));
        }
    }
    places.sort_unstable_by_key(|(chain, place, _)| Reverse((*chain, *place)));
    places
}

/// Rules of exactly its form in a chain: place from 1, the rule, its port and transport, and which of
/// several alike it is.
fn of_form<'a>(chain: &'a Chain, name: &str) -> Vec<(usize, &'a Rule, u16, Transport, usize)> {
    let mut found: Vec<(usize, &Rule, u16, Transport, usize)> = Vec::new();
    for (index, rule) in chain.rules.iter().enumerate() {
        if let Some((port, transport)) = form(rule, name) {
            let alike = found.iter().filter(|other| (other.2, other.3) == (port, transport));
            let nth = alike.count();
            found.push((index + 1, rule, port, transport, nth));
        }
    }
    found
}

/// Port and transport of a rule of its form.
fn form(rule: &Rule, chain: &str) -> Option<(u16, Transport)> {
    let (p, protocol, m, module, option, port) = match (chain, rule.words.as_slice()) {
        ("INPUT", [p, protocol, m, module, option, port, j, target])
            if j == "-j" && target == "ACCEPT" && option == "--dport" =>
        {
            (p, protocol, m, module, option, port)
        }
        ("OUTPUT", [p, protocol, m, module, option, port]) if option == "--sport" => {
            (p, protocol, m, module, option, port)
        }
        _ => return None,
    };
    let _ = option;
    if p != "-p" || m != "-m" || protocol != module {
        return None;
    }
    let transport = match protocol.as_str() {
        "tcp" => Transport::Tcp,
        "udp" => Transport::Udp,
        _ => return None,
    };
    let range = range(port)?;
    (range.first() == range.last() && !port.contains(':')).then_some((range.first(), transport))
}

/// Its rules in one table.
fn in_table(table: &Table, family: Family, backend: Backend) -> ForeignRules {
    let (Some(input), Some(output)) = (table.chain("INPUT"), table.chain("OUTPUT")) else {
        return ForeignRules::default();
    };
    let signatures = of_form(output, "OUTPUT");
    let signed = |port, transport| {
        signatures.iter().filter(|own| (own.2, own.3) == (port, transport)).count()
    };
    let (accepts, others): (Vec<_>, Vec<_>) = of_form(input, "INPUT")
        .into_iter()
        .filter(|(_, _, port, transport, _)| signed(*port, *transport) > 0)
        .partition(|(_, _, port, transport, nth)| *nth < signed(*port, *transport));
    let give =
        |chain: &'static str, found: &(usize, &Rule, u16, Transport, usize), opens| ForeignRule {
            family,
            backend,
            chain,
            port: found.2,
            transport: found.3,
            packets: found.1.packets,
            bytes: found.1.bytes,
            text: found.1.text(chain),
            opens,
            nth: found.4,
        };
    let mut rules = Vec::new();
    for found in &accepts {
        let going: Vec<usize> = accepts
            .iter()
            .filter(|other| (other.2, other.3) == (found.2, found.3))
            .map(|other| other.0)
            .collect();
        let opens = opens(table, input, &going, found.0, (found.2, found.3 == Transport::Tcp));
        rules.push(give("INPUT", found, opens));
    }
    rules.extend(signatures.iter().map(|found| give("OUTPUT", found, None)));
    ForeignRules { rules, spared: others.iter().map(|found| give("INPUT", found, None)).collect() }
}

/// How a rule's conditions stand to new connections from anywhere to a port.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Matches {
    Every,
    Some,
    None,
}

/// Why the port may be closed without the rule at `own`, where all at `going` go. `None` when it surely
/// stays as it is.
fn opens(
    table: &Table,
    input: &Chain,
    going: &[usize],
    own: usize,
    packet: (u16, bool),
) -> Option<String> {
    let mut doubt: Option<String> = None;
    for (index, rule) in input.rules.iter().enumerate() {
        let place = index + 1;
        if going.contains(&place) {
            continue;
        }
        let matches = matches(rule, packet);
        let after = place > own;
        match (rule.target(), matches) {
            (_, Matches::None) | (None, _) => {}
            (Some("ACCEPT"), Matches::Every) => return doubt,
            (Some("DROP" | "REJECT"), Matches::Every) if after => {
                return Some(format!("without it, {} closes the port", rule.text("INPUT")));
            }
            (Some("DROP" | "REJECT"), Matches::Every) => return None,
            (Some("ACCEPT"), Matches::Some) => {}
            (Some(target), _) if after && may_block(table, target, 0) => {
                let text = rule.text("INPUT");
                doubt.get_or_insert_with(|| format!("without it, {text} may close the port"));
            }
            (Some(_), _) => {}
        }
    }
    let policy = input.policy.as_deref().unwrap_or("ACCEPT");
    if policy == "ACCEPT" {
        return doubt;
    }
    Some(format!("without it, the policy {policy} of INPUT closes the port"))
}

/// Whether a target may end a packet. What is not known may.
fn may_block(table: &Table, target: &str, depth: usize) -> bool {
    if matches!(target, "ACCEPT" | "LOG" | "NFLOG" | "MARK" | "CONNMARK" | "RETURN") {
        return false;
    }
    let Some(chain) = table.chain(target).filter(|_| depth < 16) else { return true };
    chain.rules.iter().filter_map(Rule::target).any(|target| may_block(table, target, depth + 1))
}

/// Every condition that is not understood may or may not hold.
fn matches(rule: &Rule, (port, tcp): (u16, bool)) -> Matches {
    let mut certain = true;
    let mut words = rule.words.iter().map(String::as_str).peekable();
    while let Some(word) = words.next() {
        match word {
            "-j" | "-g" => break,
            "!" => return Matches::Some,
            "-p" => match words.next() {
                Some("all") => {}
                Some(protocol) if transport(protocol) == Some(tcp) => {}
                _ => return Matches::None,
            },
            "-m" => match words.next() {
                Some("tcp" | "udp" | "multiport" | "comment") => {}
                _ => certain = false,
            },
            "--comment" => {
                words.next();
            }
            "--dport" | "--dports" => {
                let ranges = words.next().unwrap_or_default().split(',').map(range);
                let ranges: Option<Vec<_>> = ranges.collect();
                match ranges {
                    Some(ranges)
                        if ranges.iter().any(|r| r.first() <= port && port <= r.last()) => {}
                    Some(_) => return Matches::None,
                    None => certain = false,
                }
            }
            _ => certain = false,
        }
    }
    if certain { Matches::Every } else { Matches::Some }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meter::iptables::parse::tables;

    fn table(policy: &str, rules: &[&str]) -> Table {
        let mut text =
            format!("*filter\n:INPUT {policy} [0:0]\n:OUTPUT ACCEPT [0:0]\n:own - [0:0]\n");
        for rule in rules {
            text.push_str(&format!("[2:120] -A {rule}\n"));
        }
        tables(&(text + "COMMIT\n")).unwrap().remove(0)
    }

    fn found(policy: &str, rules: &[&str]) -> Vec<ForeignRule> {
        in_table(&table(policy, rules), Family::V4, Backend::Legacy).rules
    }

    const ACCEPT: &str = "INPUT -p tcp -m tcp --dport 80 -j ACCEPT";
    const SIGN: &str = "OUTPUT -p tcp -m tcp --sport 80";

    #[test]
    fn only_the_exact_form_beside_its_signature_is_its() {
        let rules = [
            ACCEPT,
            "INPUT -p tcp -m tcp --dport 8080 -j ACCEPT",
            "INPUT -p udp -m udp --dport 80 -j ACCEPT",
            "INPUT -p tcp -m tcp --dport 80 -j DROP",
            "INPUT -s 10.0.0.0/8 -p tcp -m tcp --dport 80 -j ACCEPT",
            "INPUT -p tcp -m tcp --dport 80:81 -j ACCEPT",
            "INPUT -p tcp -m tcp --dport 80 -m comment --comment mine -j ACCEPT",
            SIGN,
            "OUTPUT -p tcp -m tcp --sport 22 -j ACCEPT",
            "OUTPUT -p tcp -m tcp --dport 22",
        ];
        let texts: Vec<String> =
            found("ACCEPT", &rules).into_iter().map(|rule| rule.text).collect();
        assert_eq!(texts, [format!("-A {ACCEPT}"), format!("-A {SIGN}")]);
        assert_eq!(found("ACCEPT", &[ACCEPT]), []);
    }

    #[track_caller]
    fn closes(policy: &str, rules: &[&str], want: Option<&str>) {
        let mut rules = rules.to_vec();
        let own = rules.iter().filter(|rule| **rule == ACCEPT).count();
        rules.extend(vec![SIGN; own]);
        let opens = found(policy, &rules)[0].opens.clone();
        assert_eq!(opens.is_some(), want.is_some(), "{opens:?}");
        let said = opens.unwrap_or_default();
        assert!(said.contains(want.unwrap_or_default()), "{said}");
    }

    #[test]
    fn a_port_that_is_open_only_because_of_it_is_pointed_out() {
        closes("ACCEPT", &[ACCEPT], None);
        closes("DROP", &[ACCEPT], Some("policy DROP"));
        closes("DROP", &[ACCEPT, ACCEPT], Some("policy DROP"));
        closes("DROP", &[ACCEPT, "INPUT -p tcp -m multiport --dports 70:80,443 -j ACCEPT"], None);
        closes("DROP", &[ACCEPT, "INPUT -i lo -j ACCEPT"], Some("policy DROP"));
        closes("DROP", &[ACCEPT, "INPUT -p tcp -m tcp --dport 8080 -j ACCEPT"], Some("DROP"));
        closes("ACCEPT", &[ACCEPT, "INPUT -j REJECT"], Some("-j REJECT closes"));
        closes("ACCEPT", &[ACCEPT, "INPUT -p udp -j REJECT"], None);
        closes("ACCEPT", &[ACCEPT, "INPUT -s 10.0.0.0/8 -j DROP"], Some("may close"));
        closes("ACCEPT", &["INPUT -s 10.0.0.0/8 -j DROP", ACCEPT], None);
        closes("DROP", &["INPUT -j DROP", ACCEPT], None);
        closes("ACCEPT", &[ACCEPT, "INPUT -j own", "own -p tcp -j DROP"], Some("may close"));
        closes("ACCEPT", &[ACCEPT, "INPUT -j own", "own -p tcp -j ACCEPT"], None);
    }

    #[test]
    fn more_of_its_form_than_it_signed_may_be_an_admins() {
        let table = table("DROP", &[ACCEPT, "INPUT -j LOG", ACCEPT, SIGN]);
        let ForeignRules { rules, spared } = in_table(&table, Family::V4, Backend::Legacy);
        // Of the same words, and the one at the head goes.
        let places: Vec<usize> =
            places(&table, &[&rules[0]]).into_iter().map(|(_, place, _)| place).collect();
        assert_eq!((rules.len(), places), (2, vec![1]));
        assert_eq!(rules[0].opens, None, "the other keeps the port open");
        assert_eq!(spared.iter().map(|rule| rule.nth).collect::<Vec<_>>(), [1]);
    }

    #[test]
    fn of_several_alike_the_chosen_one_goes() {
        let table = table("ACCEPT", &[ACCEPT, "INPUT -j LOG", ACCEPT, SIGN, SIGN]);
        let rules = in_table(&table, Family::V4, Backend::Legacy).rules;
        assert_eq!(rules.len(), 4);
        let where_are = |wanted: &[&ForeignRule]| -> Vec<(&str, usize)> {
            places(&table, wanted).into_iter().map(|(chain, place, _)| (chain, place)).collect()
        };
        assert_eq!(where_are(&[&rules[1]]), [("INPUT", 3)]);
        assert_eq!(
            where_are(&[&rules[0], &rules[1], &rules[3]]),
            [("OUTPUT", 2), ("INPUT", 3), ("INPUT", 1)]
        );
    }
}
