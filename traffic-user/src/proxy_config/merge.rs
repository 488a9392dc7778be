//! Several files become one config, as the proxies do it.

use std::sync::Arc;

use super::{
    findings::Findings,
    json::{Node, Object},
    shown,
};

/// An inbound that was not looked into yet.
pub(super) struct Entry<'a> {
    pub(super) node: Node<'a>,
    pub(super) settings: Option<Object<'a>>,
    pub(super) stream: Option<Object<'a>>,
    pub(super) listen: Option<Node<'a>>,
    /// `None` for an empty one as well.
    pub(super) tag: Option<Arc<str>>,
    pub(super) protocol: Arc<str>,
    pub(super) port: Option<Node<'a>>,
    /// Which file it is from.
    file: usize,
}

impl Entry<'_> {
    /// Whether it only passes on what comes in, as an API inbound does.
    pub(super) fn is_tunnel(&self) -> bool {
        ["dokodemo-door", "tunnel"].iter().any(|name| self.protocol.eq_ignore_ascii_case(name))
    }

    /// For messages.
    pub(super) fn name(&self) -> String {
        match &self.tag {
            Some(tag) => format!("`{}`", shown(tag)),
            None => format!("the {} inbound without a tag", shown(&self.protocol)),
        }
    }
}

/// All files as one.
#[derive(Default)]
pub(super) struct Merged<'a> {
    pub(super) inbounds: Vec<Entry<'a>>,
    pub(super) outbounds: Vec<String>,
    pub(super) api: Option<Node<'a>>,
    pub(super) stats: Option<Node<'a>>,
    pub(super) policy: Option<Node<'a>>,
    pub(super) routing: Option<Node<'a>>,
    files: usize,
}

impl<'a> Merged<'a> {
    /// Adds the next file: its inbounds behind the others, one with a tag that is there already in
    /// the place of that one; whole sections in the place of earlier ones (Xray
    /// `infra/conf/xray.go`, `Override`).
    pub(super) fn add(&mut self, root: Node<'a>, findings: &mut Findings) {
        findings.behind(root);
        let Some(object) = findings.object(root) else { return };
        self.files += 1;
        for entry in self.entries(&object, findings) {
            // Xray takes an empty tag for a tag like others here, V2Ray 5 does not. A port too many
            // does no harm, one too few would be a hole: both are kept.
            let earlier = self.inbounds.iter().position(|known| {
                known.file != entry.file && known.tag.is_some() && known.tag == entry.tag
            });
            match earlier {
                Some(index) => self.inbounds[index] = entry,
                None => self.inbounds.push(entry),
            }
        }
        for key in ["outbounds", "outboundDetour"] {
            if let Some(list) = object.get(key) {
                let outbounds = list.list().unwrap_or_default();
                self.outbounds.extend(
                    outbounds.into_iter().filter_map(|node| node.object()?.get("tag")?.text()),
                );
            }
        }
        for (section, key) in [
            (&mut self.api, "api"),
            (&mut self.stats, "stats"),
            (&mut self.policy, "policy"),
            (&mut self.routing, "routing"),
        ] {
            *section = object.get(key).or(*section);
        }
    }

    /// The inbounds of a file. `inbound`, `inboundDetour` and `port` are V2Ray's old words for them.
    fn entries(&self, object: &Object<'a>, findings: &mut Findings) -> Vec<Entry<'a>> {
        let mut nodes: Vec<Node<'a>> = object.get("inbound").into_iter().collect();
        for key in ["inboundDetour", "inbounds"] {
            if let Some(list) = object.get(key) {
                nodes.extend(findings.list(list));
            }
        }
        let mut entries: Vec<Entry<'a>> = nodes
            .into_iter()
            .filter_map(|node| {
                let object = findings.object(node)?;
                let tag = findings.word(object.get("tag")).map(Arc::from);
                let protocol = findings.word(object.get("protocol"));
                if protocol.is_none() {
                    findings.mistake(node, "this inbound has no protocol");
                }
                let protocol = Arc::from(protocol?);
                let mut section = |key| object.get(key).and_then(|node| findings.object(node));
                let (settings, stream) = (section("settings"), section("streamSettings"));
                let (listen, port) = (object.get("listen"), object.get("port"));
                let file = self.files;
                Some(Entry { node, settings, stream, listen, tag, protocol, port, file })
            })
            .collect();
        if let Some(first) = entries.first_mut() {
            first.port = first.port.or_else(|| object.get("port"));
        }
        entries
    }
}
