//! What `iptables-save -c` writes, as values, and values as what `iptables-restore` reads.
//!
//! By structure: a line is cut into words as the tools themselves do it, with quotes and escapes. Pure.

/// One table with its chains, in the order in which they were listed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Table {
    /// Its name.
    pub(super) name: String,
    /// Its chains.
    pub(super) chains: Vec<Chain>,
}

/// A chain and its rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Chain {
    /// Its name.
    pub(super) name: String,
    /// What becomes of a packet at its end; `None` for a chain that was made by somebody.
    pub(super) policy: Option<String>,
    /// Its rules, in their order.
    pub(super) rules: Vec<Rule>,
}

/// A rule and what it counted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rule {
    /// Packets that matched.
    pub(super) packets: u64,
    /// Bytes of them, from the IP header on.
    pub(super) bytes: u64,
    /// All behind the name of the chain, without quotes and escapes.
    pub(super) words: Vec<String>,
}

/// A line that is nothing `iptables-save` writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Unread {
    /// Which, from 1.
    pub(super) line: usize,
    /// What it says.
    pub(super) text: String,
}

impl Table {
    /// One of its chains.
    pub(super) fn chain(&self, name: &str) -> Option<&Chain> {
        self.chains.iter().find(|chain| chain.name == name)
    }

    /// Whether somebody put anything into it: a rule, a chain, a policy other than to accept.
    pub(super) fn is_filled(&self) -> bool {
        self.chains.iter().any(|chain| {
            !chain.rules.is_empty() || chain.policy.as_ref().is_none_or(|policy| policy != "ACCEPT")
        })
    }
}

impl Rule {
    /// The rule as a person would write it.
    pub(super) fn text(&self, chain: &str) -> String {
        let words: Vec<String> = self.words.iter().map(|word| quoted(word)).collect();
        format!("-A {chain} {}", words.join(" ")).trim_end().to_owned()
    }

    /// Where it sends a packet: the word behind `-j` or `-g`.
    pub(super) fn target(&self) -> Option<&str> {
        let at = self.words.iter().position(|word| word == "-j" || word == "-g")?;
        self.words.get(at + 1).map(String::as_str)
    }
}

/// All tables in a listing.
///
/// # Errors
///
/// The first line that cannot be read: half of the rules would look like rules that are gone.
pub(super) fn tables(save: &str) -> Result<Vec<Table>, Unread> {
    let mut tables: Vec<Table> = Vec::new();
    let mut open = false;
    for (index, line) in save.lines().enumerate() {
        let unread = || Unread { line: index + 1, text: line.to_owned() };
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if let Some(name) = line.strip_prefix('*') {
            if open {
                return Err(unread());
            }
            tables.push(Table { name: name.to_owned(), chains: Vec::new() });
            open = true;
            continue;
        }
        let table = tables.last_mut().filter(|_| open).ok_or_else(unread)?;
        if line == "COMMIT" {
            open = false;
        } else if let Some(rest) = line.strip_prefix(':') {
            table.chains.push(chain(rest).ok_or_else(unread)?);
        } else {
            let (name, rule) = rule(line).ok_or_else(unread)?;
            let chain = table.chains.iter_mut().find(|chain| chain.name == name);
            chain.ok_or_else(unread)?.rules.push(rule);
        }
    }
    if open {
        let line = save.lines().count();
        return Err(Unread { line, text: "the end before COMMIT".to_owned() });
    }
    Ok(tables)
}

/// `INPUT ACCEPT [12:3456]`.
fn chain(text: &str) -> Option<Chain> {
    let mut words = text.split_ascii_whitespace();
    let (name, policy) = (words.next()?, words.next()?);
    let policy = (policy != "-").then(|| policy.to_owned());
    Some(Chain { name: name.to_owned(), policy, rules: Vec::new() })
}

/// `[12:3456] -A INPUT -p tcp …`; the counters may be absent.
fn rule(line: &str) -> Option<(String, Rule)> {
    let (packets, bytes, rest) = match line.strip_prefix('[') {
        Some(rest) => {
            let (counts, rest) = rest.split_once(']')?;
            let (packets, bytes) = counts.split_once(':')?;
            (number(packets)?, number(bytes)?, rest)
        }
        None => (0, 0, line),
    };
    let mut words = words(rest)?.into_iter();
    if words.next()? != "-A" {
        return None;
    }
    let name = words.next()?;
    Some((name, Rule { packets, bytes, words: words.collect() }))
}

/// Digits alone: `parse` would take a sign as well.
pub(super) fn number<T: std::str::FromStr>(text: &str) -> Option<T> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if digits { text.parse().ok() } else { None }
}

/// Cuts a line into words as `iptables-restore` does. `None` when a quote is left open.
pub(super) fn words(text: &str) -> Option<Vec<String>> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let (mut quote, mut escape) = (false, false);
    for c in text.chars() {
        if escape {
            word.get_or_insert_default().push(c);
            escape = false;
        } else if quote && c == '\\' {
            escape = true;
        } else if c == '"' {
            quote = !quote;
            word.get_or_insert_default();
        } else if !quote && matches!(c, ' ' | '\t') {
            words.extend(word.take());
        } else {
            word.get_or_insert_default().push(c);
        }
    }
    words.extend(word);
    (!quote).then_some(words)
}

/// A word as a listing writes it: between quotes where it needs them.
pub(super) fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-.,:/+%@!=".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    let mut text = String::with_capacity(word.len() + 2);
    text.push('"');
    for c in word.chars() {
        if matches!(c, '"' | '\\') {
            text.push('\\');
        }
        text.push(c);
    }
    text.push('"');
    text
}

#[cfg(test)]
mod tests;
