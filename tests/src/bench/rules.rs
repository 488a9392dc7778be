//! Rules that count ports with iptables and nftables: what a program of theirs is given, and what the
//! counters in its answer add up to.

use std::fmt::Write as _;

use serde_json::Value;

/// Two rules a port and direction, as multi-v2ray sets them, for `iptables-restore`.
pub fn iptables(ports: &[u16]) -> String {
    let mut text =
        String::from("*filter\n:INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n");
    for port in ports {
        for transport in ["tcp", "udp"] {
            let _ = write!(
                text,
                "-A INPUT -p {transport} -m {transport} --dport {port} -j ACCEPT\n\
                 -A OUTPUT -p {transport} -m {transport} --sport {port}\n"
            );
        }
    }
    text.push_str("COMMIT\n");
    text
}

/// One rule for one UDP port, as somebody would write it by hand.
pub fn nft_rule(port: u16) -> String {
    format!(
        "table inet bench {{\n\
         chain input {{ type filter hook input priority 0; udp dport {port} counter; }}\n\
         }}\n"
    )
}

/// A set with a counter for each of the ports, for both transports and directions.
pub fn nft_set(ports: &[u16]) -> String {
    let elements: Vec<_> = ports.iter().map(|port| format!("tcp . {port}, udp . {port}")).collect();
    let elements = elements.join(", ");
    let mut text = String::from("table inet bench {\n");
    for (chain, side) in [("input", "dport"), ("output", "sport")] {
        let _ = write!(
            text,
            "set {chain}_ports {{ type inet_proto . inet_service; counter; \
             elements = {{ {elements} }}; }}\n\
             chain {chain} {{ type filter hook {chain} priority 0; \
             meta l4proto . th {side} @{chain}_ports; }}\n"
        );
    }
    text.push_str("}\n");
    text
}

/// Packets and bytes of all counters in what `nft -j list` says.
pub fn nft_counted(json: &Value) -> (u64, u64) {
    let mut sum = (0, 0);
    let mut add = |(packets, bytes): (u64, u64)| {
        sum.0 += packets;
        sum.1 += bytes;
    };
    match json {
        Value::Object(map) => {
            for (key, value) in map {
                let number = |name: &str| value.get(name).and_then(Value::as_u64);
                match (key.as_str(), number("packets"), number("bytes")) {
                    ("counter", Some(packets), Some(bytes)) => add((packets, bytes)),
                    _ => add(nft_counted(value)),
                }
            }
        }
        Value::Array(values) => values.iter().map(nft_counted).for_each(add),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
    sum
}

/// Packets and bytes of all INPUT rules in what `iptables-save -c` says.
pub fn iptables_counted(text: &str) -> (u64, u64) {
    let rule = |line: &str| {
        let (counters, rule) = line.strip_prefix('[')?.split_once("] ")?;
        let (packets, bytes) = counters.split_once(':')?;
        let input = rule.starts_with("-A INPUT ");
        input.then_some((packets.parse::<u64>().ok()?, bytes.parse::<u64>().ok()?))
    };
    text.lines().filter_map(rule).fold((0, 0), |sum, rule| (sum.0 + rule.0, sum.1 + rule.1))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_port_has_two_rules_a_direction() {
        let text = iptables(&[80, 443]);
        assert_eq!(text.matches("-A INPUT").count(), 4);
        assert_eq!(text.matches("-A OUTPUT").count(), 4);
        assert!(text.ends_with("COMMIT\n"));
    }

    #[test]
    fn counters_are_found_wherever_they_stand() {
        let set = json!({"nftables": [{"set": {"elem": [
            {"elem": {"val": 80, "counter": {"packets": 2, "bytes": 120}}},
            {"elem": {"val": 81, "counter": {"packets": 3, "bytes": 180}}},
        ]}}]});
        assert_eq!(nft_counted(&set), (5, 300));
        let rule =
            json!({"rule": {"expr": [{"match": {}}, {"counter": {"packets": 1, "bytes": 9}}]}});
        assert_eq!(nft_counted(&rule), (1, 9));
    }

    #[test]
    fn only_rules_of_input_are_summed() {
        let text = "# save\n*filter\n:INPUT ACCEPT [7:700]\n\
                    [2:120] -A INPUT -p udp -m udp --dport 80 -j ACCEPT\n\
                    [3:180] -A INPUT -p tcp -m tcp --dport 80 -j ACCEPT\n\
                    [4:240] -A OUTPUT -p tcp -m tcp --sport 80\nCOMMIT\n";
        assert_eq!(iptables_counted(text), (5, 300));
    }
}
