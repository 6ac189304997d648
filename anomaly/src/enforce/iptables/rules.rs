//! The text that iptables speaks: what `iptables-save -c` prints and
//! `iptables-restore` reads. Pure; nothing here runs a program.
//!
//! A rule is ours when it consists of exactly what we write and nothing else. A rule
//! that merely carries our comment but also says `-p tcp`, say, is somebody's own.

use std::collections::{BTreeSet, HashSet};
use std::fmt::Write as _;
use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// The comment that marks a rule as ours.
pub(super) const COMMENT: &str = "anomaly";

/// IPv4 or IPv6: each has programs, tables and a set of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Family {
    V4,
    V6,
}

impl Family {
    pub const BOTH: [Self; 2] = [Self::V4, Self::V6];

    pub const fn of(prefix: &IpNet) -> Self {
        match prefix {
            IpNet::V4(_) => Self::V4,
            IpNet::V6(_) => Self::V6,
        }
    }

    /// The program, and the start of its companions' names (`-save`, `-restore`).
    pub const fn program(self) -> &'static str {
        match self {
            Self::V4 => "iptables",
            Self::V6 => "ip6tables",
        }
    }

    /// Name of our set. Sets live in a network namespace, and so does one anomaly.
    pub const fn set(self) -> &'static str {
        match self {
            Self::V4 => "anomaly4",
            Self::V6 => "anomaly6",
        }
    }

    /// The word of `ipset create`.
    pub const fn inet(self) -> &'static str {
        match self {
            Self::V4 => "inet",
            Self::V6 => "inet6",
        }
    }

    /// Every address.
    pub fn everything(self) -> IpNet {
        match self {
            Self::V4 => IpNet::V4(Ipv4Net::default()),
            Self::V6 => IpNet::V6(Ipv6Net::default()),
        }
    }
}

/// A table of iptables that rules of ours can be in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Table {
    Filter,
    Raw,
}

impl Table {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Filter => "filter",
            Self::Raw => "raw",
        }
    }
}

/// A chain that gets our rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Chain {
    pub table: Table,
    pub name: &'static str,
}

/// What is for this host itself.
pub(super) const INPUT: Chain = Chain { table: Table::Filter, name: "INPUT" };
/// What Docker forwards to published containers; INPUT never sees it.
pub(super) const DOCKER_USER: Chain = Chain { table: Table::Filter, name: "DOCKER-USER" };
/// Everything that comes in, before connection tracking.
pub(super) const PREROUTING: Chain = Chain { table: Table::Raw, name: "PREROUTING" };

/// What one of our rules drops.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum What {
    /// One prefix.
    Prefix(IpNet),
    /// Everything in the family's set.
    Set(Family),
}

impl What {
    /// The rule without its chain: matches, mark and target, exactly the user's
    /// `-s IP/32 -j DROP` with our comment.
    pub fn spec(&self) -> Vec<String> {
        let mut spec: Vec<String> = match self {
            Self::Prefix(prefix) => vec!["-s".into(), prefix.to_string()],
            Self::Set(family) => {
                ["-m", "set", "--match-set", family.set(), "src"].into_iter().map(String::from).collect()
            }
        };
        spec.extend(["-m", "comment", "--comment", COMMENT, "-j", "DROP"].map(String::from));
        spec
    }

    /// Reads a rule's words; `None` when it is not ours.
    fn read(words: &[String], family: Family) -> Option<Self> {
        let (mut source, mut set, mut marked, mut drops) = (None, false, false, false);
        let mut rest = words;
        loop {
            rest = match rest.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
                [] => break,
                ["-s", text, ..] => {
                    source = Some(prefix(text)?);
                    &rest[2..]
                }
                ["-m", "comment", "--comment", COMMENT, ..] => {
                    marked = true;
                    &rest[4..]
                }
                ["-m", "set", "--match-set", name, "src", ..] if *name == family.set() => {
                    set = true;
                    &rest[5..]
                }
                ["-j", "DROP", ..] => {
                    drops = true;
                    &rest[2..]
                }
                _ => return None,
            };
        }
        if !marked || !drops {
            return None;
        }
        match (source, set) {
            (Some(prefix), false) if Family::of(&prefix) == family => Some(Self::Prefix(prefix)),
            (None, true) => Some(Self::Set(family)),
            // A prefix of length 0 is not printed.
            (None, false) => Some(Self::Prefix(family.everything())),
            _ => None,
        }
    }
}

/// A rule of ours as it stands in a chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rule {
    /// Its chain; not only one of those that we write to.
    pub chain: String,
    pub what: What,
    pub packets: u64,
    pub bytes: u64,
    /// The kernel's number of it, where the kernel itself was asked.
    pub handle: Option<u64>,
}

/// One table, as printed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Saved {
    /// Every chain there is.
    pub chains: BTreeSet<String>,
    /// The rules that are ours, in order, doubles included.
    pub rules: Vec<Rule>,
}

impl Saved {
    /// Reads what `iptables-save -c` printed of one table. Rules it does not understand are
    /// somebody else's; but the table must be there from its first line to its last.
    ///
    /// # Errors
    /// In words, when that is not a table: `iptables-save` also ends well when it could not list it.
    pub fn read(text: &str, family: Family, table: Table) -> Result<Self, String> {
        let mut saved = Self::default();
        let (mut begun, mut whole) = (false, false);
        for line in text.lines() {
            if let Some(name) = line.strip_prefix('*') {
                begun = name == table.as_str();
            } else if line == "COMMIT" {
                whole |= begun;
            } else if let Some(chain) = line.strip_prefix(':') {
                saved.chains.extend(chain.split_whitespace().next().map(String::from));
            } else if let Some(rule) = rule(line, family) {
                saved.rules.push(rule);
            } else if !(line.is_empty() || line.starts_with(['#', '['])) {
                return Err(format!("this line of its is not understood: {}", shortened(line)));
            }
        }
        if whole {
            return Ok(saved);
        }
        let usual = ["# Generated by", "# Completed on", "# Warning"];
        let told = text.lines().find(|line| line.starts_with('#') && !usual.iter().any(|u| line.starts_with(u)));
        Err(match (told, begun) {
            (Some(line), _) => shortened(line.trim_start_matches(['#', ' '])),
            (None, true) => "what it printed is cut off".into(),
            (None, false) => "it printed nothing of the table".into(),
        })
    }

    /// What `chain` has rules for.
    pub fn in_chain(&self, chain: Chain) -> HashSet<What> {
        self.rules.iter().filter(|rule| rule.chain == chain.name).map(|rule| rule.what).collect()
    }
}

fn shortened(line: &str) -> String {
    line.chars().take(200).collect()
}

/// `[packets:bytes] -A CHAIN ...`
fn rule(line: &str, family: Family) -> Option<Rule> {
    // Cheap first: most lines of a busy host are not ours.
    if !line.contains(COMMENT) {
        return None;
    }
    let (counters, rest) = line.strip_prefix('[')?.split_once("] -A ")?;
    let (packets, bytes) = counters.split_once(':')?;
    let words = words(rest)?;
    let (chain, spec) = words.split_first()?;
    Some(Rule {
        chain: chain.clone(),
        what: What::read(spec, family)?,
        packets: packets.parse().ok()?,
        bytes: bytes.parse().ok()?,
        handle: None,
    })
}

/// Splits a line at blanks as iptables-restore does: double quotes hold a word together, and a
/// backslash in them makes the next character plain. `None` when a quote is not closed.
fn words(line: &str) -> Option<Vec<String>> {
    let mut words = Vec::new();
    let mut chars = line.chars().peekable();
    while let Some(&c) = chars.peek() {
        if c.is_whitespace() {
            chars.next();
            continue;
        }
        let mut word = String::new();
        let mut quoted = false;
        while let Some(c) = chars.next_if(|c| quoted || !c.is_whitespace()) {
            match c {
                '"' => quoted = !quoted,
                '\\' if quoted => word.push(chars.next()?),
                c => word.push(c),
            }
        }
        if quoted {
            return None;
        }
        words.push(word);
    }
    Some(words)
}

/// A prefix as iptables and ipset print it: with or without a length, in old versions with a mask.
pub(super) fn prefix(text: &str) -> Option<IpNet> {
    let Some((address, length)) = text.split_once('/') else {
        return text.parse::<IpAddr>().ok().map(IpNet::from);
    };
    let address: IpAddr = address.parse().ok()?;
    match length.parse::<u8>() {
        Ok(length) => IpNet::new(address, length).ok(),
        Err(_) => IpNet::with_netmask(address, length.parse().ok()?).ok(),
    }
    .map(|prefix| prefix.trunc())
}

/// One change to a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Edit {
    pub action: Action,
    pub what: What,
}

/// What is done to a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// At the head of the chain, before anything that would accept the packet.
    Insert,
    /// The first rule that reads so.
    Delete,
}

impl Action {
    pub const fn flag(self) -> &'static str {
        match self {
            Self::Insert => "-I",
            Self::Delete => "-D",
        }
    }
}

/// The input of `iptables-restore --noflush` that makes `edits` in one table, all or none. Nothing
/// in it names a chain policy or a counter, so nothing but our rules changes.
pub(super) fn restore_text<'a>(table: Table, edits: impl IntoIterator<Item = (&'a str, Edit)>) -> String {
    let mut text = format!("*{}\n", table.as_str());
    for (chain, edit) in edits {
        let _ = writeln!(text, "{} {chain} {}", edit.action.flag(), edit.what.spec().join(" "));
    }
    text.push_str("COMMIT\n");
    text
}

/// The lines of `iptables-save -c` output that show `chains`, ours and everybody's.
pub(super) fn excerpt(text: &str, chains: &[&str]) -> String {
    let of_interest = |line: &&str| {
        let chain = match line.strip_prefix(':') {
            Some(rest) => rest.split_whitespace().next(),
            None => line.split_once("-A ").and_then(|(_, rest)| rest.split_whitespace().next()),
        };
        chain.is_some_and(|chain| chains.contains(&chain))
    };
    text.lines().filter(of_interest).fold(String::new(), |mut text, line| {
        text.push_str(line);
        text.push('\n');
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().expect("a prefix")
    }

    const SAVED: &str = r#"# Generated by iptables-save v1.8.9 on Sat Nov 21 06:48:08 2026
*filter
:INPUT ACCEPT [0:0]
:DOCKER-USER - [0:0]
:anomaly - [0:0]
[7:588] -A INPUT -s 203.0.113.10/32 -m comment --comment anomaly -j DROP
[1:60] -A INPUT -s 198.51.100.0/24 -m comment --comment "anomaly" -j DROP
[9:99] -A INPUT -m set --match-set anomaly4 src -m comment --comment anomaly -j DROP
[0:0] -A INPUT -s 203.0.113.11/32 -p tcp -m comment --comment anomaly -j DROP
[0:0] -A INPUT -s 203.0.113.12/32 -m comment --comment anomaly -j ACCEPT
[0:0] -A INPUT -s 203.0.113.13/32 -j DROP
[0:0] -A INPUT -s 203.0.113.14/32 -m comment --comment "x -m comment --comment anomaly" -j DROP
[0:0] -A INPUT -s 203.0.113.15/32 -m comment --comment "anomaly \"two\"" -j DROP
[0:0] -A INPUT -m set --match-set anomaly4 dst -m comment --comment anomaly -j DROP
[0:0] -A INPUT -m set --match-set other src -m comment --comment anomaly -j DROP
[0:0] -A INPUT ! -s 203.0.113.16/32 -m comment --comment anomaly -j DROP
[0:0] -A INPUT -s 203.0.113.17/32 -j anomaly
[2:3] -A DOCKER-USER -s 203.0.113.10/32 -m comment --comment anomaly -j DROP
COMMIT
"#;

    #[test]
    fn knows_its_own_rules_and_only_those() {
        let saved = Saved::read(SAVED, Family::V4, Table::Filter).expect("a whole table");
        let rule = |chain: &str, what, packets, bytes| Rule { chain: chain.into(), what, packets, bytes, handle: None };
        assert_eq!(
            saved.rules,
            [
                rule("INPUT", What::Prefix(net("203.0.113.10/32")), 7, 588),
                rule("INPUT", What::Prefix(net("198.51.100.0/24")), 1, 60),
                rule("INPUT", What::Set(Family::V4), 9, 99),
                rule("DOCKER-USER", What::Prefix(net("203.0.113.10/32")), 2, 3),
            ]
        );
        assert!(saved.chains.contains("DOCKER-USER") && saved.chains.len() == 3);
        assert_eq!(saved.in_chain(DOCKER_USER), HashSet::from([What::Prefix(net("203.0.113.10/32"))]));
    }

    /// `iptables-save` ends with 0 each time.
    #[test]
    fn what_is_not_a_whole_table_is_not_an_empty_one() {
        let read = |text: &str| Saved::read(text, Family::V4, Table::Filter);
        let incompatible = "# Table `filter' is incompatible, use 'nft' tool.\n";
        assert_eq!(read(incompatible), Err("Table `filter' is incompatible, use 'nft' tool.".into()));
        let legacy = "# Warning: iptables-legacy tables present, use iptables-legacy-save to see them\n";
        assert_eq!(read(""), Err("it printed nothing of the table".into()));
        assert_eq!(read(legacy), Err("it printed nothing of the table".into()));
        assert_eq!(read("*raw\nCOMMIT\n"), Err("it printed nothing of the table".into()));
        for (at, _) in SAVED.match_indices('\n').filter(|(at, _)| SAVED[*at..].contains("COMMIT")) {
            assert!(read(&SAVED[..=at]).is_err(), "{}", &SAVED[..=at]);
        }
        let uncounted = SAVED.replace("[7:588] -A", "-A");
        assert!(read(&uncounted).is_err_and(|why| why.contains("-A INPUT -s 203.0.113.10/32")));
        let bases = "# Table `filter' contains incompatible base-chains, use 'nft' tool to list them.\n";
        for text in [format!("{bases}{SAVED}"), format!("{SAVED}{legacy}"), format!("*raw\nCOMMIT\n{SAVED}")] {
            assert_eq!(read(&text).expect("a whole table").rules.len(), 4);
        }
        assert_eq!(read("*filter\n:INPUT ACCEPT [0:0]\nCOMMIT\n").expect("an empty table").rules, []);
    }

    #[test]
    fn reads_back_what_it_writes() {
        for (text, family) in [
            ("192.0.2.1/32", Family::V4),
            ("192.0.2.0/24", Family::V4),
            ("2001:db8::/64", Family::V6),
            ("2001:db8::1/128", Family::V6),
        ] {
            let what = What::Prefix(net(text));
            assert_eq!(What::read(&what.spec(), family), Some(what));
        }
        assert_eq!(What::read(&What::Set(Family::V6).spec(), Family::V6), Some(What::Set(Family::V6)));
        assert_eq!(What::read(&What::Set(Family::V4).spec(), Family::V6), None, "the other family's set");
    }

    #[test]
    fn a_rule_without_a_source_drops_everything() {
        let line = "[0:0] -A INPUT -m comment --comment anomaly -j DROP";
        assert_eq!(rule(line, Family::V6).map(|r| r.what), Some(What::Prefix(net("::/0"))));
    }

    #[test]
    fn reads_prefixes_in_every_notation() {
        assert_eq!(prefix("192.0.2.1"), Some(net("192.0.2.1/32")));
        assert_eq!(prefix("192.0.2.0/255.255.255.0"), Some(net("192.0.2.0/24")));
        assert_eq!(prefix("2001:db8::1"), Some(net("2001:db8::1/128")));
        assert_eq!(prefix("::ffff:192.0.2.1/128"), Some(net("::ffff:192.0.2.1/128")));
        for bad in ["", "192.0.2.1/33", "192.0.2/24", "192.0.2.1/255.0.255.0", "; reboot", "192.0.2.1/-1"] {
            assert_eq!(prefix(bad), None, "{bad}");
        }
    }

    #[test]
    fn splits_words_as_iptables_does() {
        assert_eq!(
            words(r#" a  "b \"c\\" d"e f"g "#).as_deref(),
            Some(&["a", r#"b "c\"#, "de fg"].map(String::from)[..])
        );
        assert_eq!(words(r#"a "b"#), None);
        assert_eq!(words(r#"a "b\"#), None);
    }

    #[test]
    fn writes_one_table_for_restore() {
        let insert = Edit { action: Action::Insert, what: What::Prefix(net("192.0.2.1/32")) };
        let delete = Edit { action: Action::Delete, what: What::Set(Family::V4) };
        assert_eq!(
            restore_text(Table::Filter, [("INPUT", insert), ("DOCKER-USER", delete)]),
            "*filter\n\
             -I INPUT -s 192.0.2.1/32 -m comment --comment anomaly -j DROP\n\
             -D DOCKER-USER -m set --match-set anomaly4 src -m comment --comment anomaly -j DROP\n\
             COMMIT\n"
        );
    }

    #[test]
    fn shows_whole_chains_in_an_excerpt() {
        let text = excerpt(SAVED, &["DOCKER-USER"]);
        assert_eq!(
            text,
            ":DOCKER-USER - [0:0]\n[2:3] -A DOCKER-USER -s 203.0.113.10/32 -m comment --comment anomaly -j DROP\n"
        );
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_it_panic(text in ".{0,200}", rest in r#"[-a-z "\\/0-9.:]{0,80}"#) {
            let _ = Saved::read(&text, Family::V4, Table::Filter);
            let _ = Saved::read(&format!("*raw\n[1:2] -A INPUT --comment anomaly {rest}\nCOMMIT\n"), Family::V6, Table::Raw);
            let _ = prefix(&text);
        }

        #[test]
        fn every_ipv4_prefix_survives_a_round_trip(address: u32, length in 0u8..=32) {
            let prefix = IpNet::new(std::net::Ipv4Addr::from(address).into(), length).expect("in range").trunc();
            let line = format!("[1:2] -A INPUT {}", What::Prefix(prefix).spec().join(" "));
            proptest::prop_assert_eq!(rule(&line, Family::V4).map(|r| r.what), Some(What::Prefix(prefix)));
        }
    }
}
