//! The ports of an inbound: `443`, `"443"`, `"1000-2000"`, `"443,8443"`, `"env:PORT"`, or a list.

use super::{
    findings::Findings,
    json::{Kind, Node},
    shown,
};
use crate::accounting::ident::PortRange;

/// Gives the value of an environment variable, if it is set.
pub(super) type Env<'e> = dyn Fn(&str) -> Option<String> + 'e;

/// The ranges that a `port` names. `None` when they are not known, which is then said.
pub(super) fn ranges(
    node: Node<'_>,
    env: &Env<'_>,
    findings: &mut Findings,
) -> Option<Vec<PortRange>> {
    let entries = if node.kind() == Kind::List { findings.list(node) } else { vec![node] };
    let mut ranges = Vec::new();
    let mut known = true;
    for entry in entries {
        let Some(text) = entry.digits().map(str::to_owned).or_else(|| entry.text()) else {
            findings.mistake(entry, "this is no port: write 443, \"443,8443\" or \"1000-2000\"");
            known = false;
            continue;
        };
        for piece in text.split(',').map(str::trim).filter(|piece| !piece.is_empty()) {
            let read = match piece.strip_prefix("env:") {
                Some(name) => variable(name, env).map_err(|what| findings.problem(entry, what)),
                None => range(piece)
                    .map(|range| vec![range])
                    .map_err(|what| findings.mistake(entry, what)),
            };
            match read {
                Ok(more) => ranges.extend(more),
                Err(()) => known = false,
            }
        }
    }
    if known && ranges.is_empty() {
        findings
            .mistake(node, "there is no port in this: write 443, \"443,8443\" or \"1000-2000\"");
    }
    (known && !ranges.is_empty()).then_some(ranges)
}

/// The ports in an environment variable. What is in it is not quoted: it may be anything.
fn variable(name: &str, env: &Env<'_>) -> Result<Vec<PortRange>, String> {
    let name_shown = shown(name);
    let Some(value) = env(name) else {
        return Err(format!(
            "the port is in the environment variable {name_shown}, which is not set here, so this \
             inbound is not counted: set it for this program as it is set for the proxy"
        ));
    };
    let pieces = value.split(',').map(str::trim).filter(|piece| !piece.is_empty());
    match pieces.map(range).collect::<Result<Vec<_>, _>>() {
        Ok(ranges) if !ranges.is_empty() => Ok(ranges),
        _ => Err(format!(
            "the environment variable {name_shown} holds no port, so this inbound is not counted: \
             set it for this program as it is set for the proxy"
        )),
    }
}

/// A port or a range of ports.
///
/// # Errors
///
/// What is wrong with it. Only a piece of digits and signs is quoted.
pub(super) fn range(piece: &str) -> Result<PortRange, String> {
    let harmless = |byte: u8| byte.is_ascii_digit() || b"-+. eE".contains(&byte);
    let quoted = if piece.len() <= 24 && piece.bytes().all(harmless) {
        format!("`{piece}`")
    } else {
        "this".to_owned()
    };
    let (first, last) = piece.split_once('-').unwrap_or((piece, piece));
    let port = |text: &str| {
        let text = text.trim();
        if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(format!("{quoted} is no port: write a number from 1 to 65535, or a range"));
        }
        match text.parse() {
            Ok(0) => Err(format!("{quoted}: with port 0 nobody can tell the port: write one")),
            Ok(port) => Ok(port),
            Err(_) => Err(format!("{quoted} is out of range: ports are 1 to 65535")),
        }
    };
    let (first, last) = (port(first)?, port(last)?);
    PortRange::new(first, last)
        .ok_or_else(|| format!("{quoted} is the wrong way round: write the smaller port first"))
}
