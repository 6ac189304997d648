//! One log line, as bytes, to a [`Record`] that borrows from it.
//!
//! The parser never fails a client for a broken neighbour field: as long as an
//! address can be read, there is a record. It does not decide anything and
//! knows no windows.

mod chunk;
mod combined;
mod cure;
#[cfg(test)]
mod differential;
mod fallback;
mod format;
mod found;
mod ipv6;
mod prefix;
mod scan;
mod value;

use crate::time::Timestamp;
pub use anomaly_engine::record::{Extension, LINES_AT_ONCE, Record};
pub(crate) use cure::{FORMAT, cure, is_object, why};
use format::Keys;
pub use format::{FieldMap, Format};
use found::Found;

/// Why a line gave no record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reject {
    /// Blank line.
    Empty,
    /// Longer than the limit for a line.
    TooLong,
    /// Not a JSON object (`[]`, `null`, plain text, cut in two), and no address can be read.
    NotAnObject,
    /// No `source_ip`.
    NoAddress,
    /// `source_ip` is there but no address.
    BadAddress,
    /// No line before it had a time either, so there is no time to file it under.
    NoTime,
}

impl Reject {
    /// Every reason, in the order of their values.
    pub const ALL: [Self; 6] =
        [Self::Empty, Self::TooLong, Self::NotAnObject, Self::NoAddress, Self::BadAddress, Self::NoTime];

    /// What is wrong with such lines.
    pub const fn words(self) -> &'static str {
        match self {
            Self::Empty => "blank lines only",
            Self::TooLong => "lines that are too long",
            Self::NotAnObject => "lines that are no JSON object",
            Self::NoAddress => "no source_ip",
            Self::BadAddress => "source_ip is no address",
            Self::NoTime => "no timestamp",
        }
    }
}

/// A line longer than this is [`Reject::TooLong`]: 1 MiB.
pub const MAX_LINE_BYTES: usize = 1 << 20;

/// What lines have given.
#[derive(Clone, Copy, Debug)]
pub enum Parsed<'a> {
    /// The records of neighbouring lines.
    Records(&'a [Record<'a>]),
    /// The line that gave none.
    Rejected(Reject, &'a [u8]),
}

/// Parses lines; holds what makes it fast: the last stamp, the keys of the last line, and a
/// buffer for strings with escapes.
///
/// Lines of the usual form (one flat object, no escapes) are scanned in place; all other JSON goes through
/// serde_json; what is not JSON is searched for what can still be read. The first two agree on
/// everything that serde_json accepts. In detail:
/// - `source_ip` and `peer` are one address, without port, zone, brackets or list.
/// - `timestamp` is ISO 8601 with a zone, or seconds since the epoch. `msec` refines it where both name
///   the same second, and replaces it where it cannot be read.
/// - Numbers are digits, bare or quoted.
/// - Of a key that is there twice the first one counts, and the record is damaged.
/// - Keys inside nested objects are other keys, unless a [`FieldMap`] names them.
#[derive(Debug)]
pub struct Parser {
    /// `None` for the combined format.
    keys: Option<Keys>,
    shape: scan::Shape,
    clock: value::Clock,
    decoded: fallback::Decoded,
    last: Option<Timestamp>,
}

impl Default for Parser {
    fn default() -> Self {
        Self::with_format(&Format::default())
    }
}

impl Parser {
    /// A parser of what `nginx/log_format.conf` writes, that has seen nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// A parser of another format. Keys inside objects (Caddy) cost about three times as much as flat ones.
    pub fn with_format(format: &Format) -> Self {
        Self {
            keys: match format {
                Format::Json(map) => Some(Keys::new(map)),
                Format::Combined => None,
            },
            shape: scan::Shape::default(),
            clock: value::Clock::default(),
            decoded: fallback::Decoded::default(),
            last: None,
        }
    }

    /// Parses one line without its newline.
    ///
    /// # Errors
    /// [`Reject`] when no client address (or no time at all) can be read.
    pub fn parse<'a>(&'a mut self, line: &'a [u8]) -> Result<Record<'a>, Reject> {
        if line.len() > MAX_LINE_BYTES {
            return Err(Reject::TooLong);
        }
        let mut record = Record::BLANK;
        let mut found = Found::new(&mut record);
        if self.scan(line, &mut found) != Some(line.len()) {
            record = Record::BLANK;
            found = match &self.keys {
                _ if line.trim_ascii().is_empty() => return Err(Reject::Empty),
                Some(keys) => fallback::read(line, keys, &mut self.clock, &mut self.decoded, &mut record),
                None => combined::read(line, &mut self.clock, &mut record),
            };
        }
        found.conclude(&mut self.last)?;
        Ok(record)
    }

    /// Parses lines with their newlines (the last one may lack its), and hands over in their order what they give.
    pub fn parse_all(&mut self, mut lines: &[u8], on_parsed: &mut impl FnMut(Parsed<'_>)) {
        while !lines.is_empty() {
            lines = &lines[self.parse_some(lines, LINES_AT_ONCE, on_parsed)..];
        }
    }

    /// The same of no more than `at_most` lines, nor [`LINES_AT_ONCE`]; how many bytes they take.
    pub fn parse_some(&mut self, lines: &[u8], at_most: usize, on_parsed: &mut impl FnMut(Parsed<'_>)) -> usize {
        let at_most = at_most.min(LINES_AT_ONCE);
        let mut usual = Vec::with_capacity(at_most);
        let mut rest = lines;
        for _ in 0..at_most {
            // Where a line of the usual form ends is known when it has been read; any other's newline is looked for. The record is
            // written where it stays: what was written in parts is slow to copy as a whole right after.
            usual.push(Record::BLANK);
            if let Some(record) = usual.last_mut() {
                let mut found = Found::new(record);
                if let Some(len) = self.scan(rest, &mut found)
                    && found.conclude(&mut self.last).is_ok()
                {
                    rest = &rest[len..];
                    continue;
                }
            }
            usual.pop();
            if rest.is_empty() {
                break;
            }
            if !usual.is_empty() {
                on_parsed(Parsed::Records(&usual));
                usual.clear();
            }
            let (line, behind) = rest.split_at(memchr::memchr(b'\n', rest).unwrap_or(rest.len()));
            on_parsed(match &self.parse(line) {
                Ok(record) => Parsed::Records(std::slice::from_ref(record)),
                Err(reject) => Parsed::Rejected(*reject, line),
            });
            rest = behind.get(1..).unwrap_or_default();
        }
        if !usual.is_empty() {
            on_parsed(Parsed::Records(&usual));
        }
        lines.len() - rest.len()
    }

    /// Reads the line that `text` begins with where it is of the usual form; how many bytes it takes with its newline. What it
    /// says borrows from the text alone.
    fn scan<'a>(&mut self, text: &'a [u8], found: &mut Found<'_, 'a>) -> Option<usize> {
        let keys = self.keys.as_ref().filter(|keys| keys.flat)?;
        let len = scan::scan(text, keys, &mut self.shape, &mut self.clock, found)?;
        (len <= MAX_LINE_BYTES).then_some(len)
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    const USUAL: &str = r#"{"source_ip":"203.0.113.7","timestamp":"2026-04-27T10:25:51+01:00","method":"GET","path":"/a?b=c","status":"404","response_size":"153"}"#;

    fn parse(line: &str) -> Result<Record<'static>, Reject> {
        parse_bytes(line.as_bytes())
    }

    fn parse_bytes(line: &[u8]) -> Result<Record<'static>, Reject> {
        let parser = Box::leak(Box::new(Parser::new()));
        let line: &'static [u8] = Box::leak(line.to_vec().into_boxed_slice());
        // So that a line without a stamp has a time too.
        parser.last = Some(Timestamp::EPOCH);
        parser.parse(line)
    }

    fn address(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn the_line_that_nginx_writes() {
        let record = parse(USUAL).expect("a record");
        let time = Timestamp::parse("2026-04-27T09:25:51Z").expect("a stamp");
        let expected =
            Record { method: b"GET", status: 404, response_size: 153, ..Record::new(address("203.0.113.7"), time) }
                .with_path(b"/a?b=c");
        assert_eq!(record, expected);
        let bare = USUAL.replace(r#""404""#, "404").replace(r#""153""#, "153");
        assert_eq!(parse(&bare).as_ref(), Ok(&expected));
        let spaced = USUAL.replace(':', ": ").replace("T10: 25: 51+01: 00", "T10:25:51+01:00").replace(",\"", ", \"");
        assert_eq!(parse(&spaced).as_ref(), Ok(&expected));
        assert_eq!(parse(&format!("{USUAL}\r")).as_ref(), Ok(&expected));
    }

    #[test]
    fn a_value_may_be_quoted_in_one_line_and_bare_in_the_next() {
        let mut parser = Parser::new();
        let quoted = USUAL.replace('}', r#","a":"-","b":"x"}"#);
        let bare = quoted.replace(r#""404""#, "404").replace(r#""-""#, "0.25");
        for line in [&quoted, &bare, &quoted, &bare] {
            let mut record = Record::BLANK;
            assert_eq!(parser.scan(line.as_bytes(), &mut Found::new(&mut record)), Some(line.len()), "{line}");
            assert_eq!((record.status, record.response_size), (404, 153), "{line}");
        }
    }

    #[test]
    fn optional_keys_and_unknown_ones() {
        let more = r#","peer":"10.0.0.1","host":"example.org","user_agent":"curl \\ \"x\"","request_time":0.004,"msec":1777281951.250,"deep":{"source_ip":"9.9.9.9","list":[1,{}]}}"#;
        let record = parse(&USUAL.replace('}', more)).expect("a record");
        assert_eq!(record.peer, Some(address("10.0.0.1")));
        assert_eq!(record.time, Timestamp::from_ms(1_777_281_951_250));
        assert_eq!(record.client, address("203.0.113.7"));
        assert!(!record.damaged);
    }

    #[test]
    fn msec_refines_and_replaces_but_does_not_contradict() {
        let with = |msec: &str| parse(&USUAL.replace('}', &format!(r#","msec":"{msec}"}}"#))).expect("a record").time;
        let own = parse(USUAL).expect("a record").time;
        assert_eq!(with("1777281951.999"), Timestamp::from_ms(own.as_ms() + 999));
        assert_eq!(with("1777281952.000"), own);
        assert_eq!(with("never"), own);
        let broken = USUAL.replace("2026-04-27T10:25:51+01:00", "soon");
        let replaced = parse(&broken.replace('}', r#","msec":"1777281951.999"}"#)).expect("a record");
        assert_eq!(replaced.time, Timestamp::from_ms(1_777_281_951_999));
        assert!(!replaced.damaged);
    }

    #[test]
    fn an_address_survives_its_neighbours() {
        for (line, status) in [
            (USUAL.replace("404", "4x4"), 0),
            (USUAL.replace(r#""404""#, "null"), 0),
            (USUAL.replace(r#""404""#, "{}"), 0),
            (USUAL.replace(r#""404""#, "-1"), 0),
            (USUAL.replace(r#""/a?b=c""#, "7"), 404),
            (USUAL.replace(r#""/a?b=c""#, "[\"/\"]"), 404),
            (USUAL.replace("2026-04-27", "2026-99-27"), 404),
            (USUAL.replace(r#""153""#, "99999999999999999999999"), 404),
            (USUAL.replace("/a?b=c", r"/\x41"), 404),
            (USUAL.replace("/a?b=c", r"/\ud800"), 404),
            (USUAL[..USUAL.len() - 1].to_string(), 404),
            (USUAL[..USUAL.len() - 20].to_string(), 404),
            (USUAL[..100].to_string(), 0),
            (USUAL[..30].to_string(), 0),
            (format!("garbage {USUAL}"), 404),
            (format!("{USUAL}{USUAL}"), 404),
            (format!("\u{feff}{USUAL}"), 404),
            (r#"{"source_ip":"203.0.113.7"}"#.to_string(), 0),
        ] {
            let record = parse(&line).unwrap_or_else(|why| panic!("{why:?}: {line}"));
            assert_eq!(record.client, address("203.0.113.7"), "{line}");
            assert_eq!(record.status, status, "{line}");
            let harmless = line.starts_with("garbage") || line.contains("ud800");
            assert!(record.damaged || harmless, "{line}");
        }
    }

    #[test]
    fn raw_bytes_and_escapes_are_paths_too() {
        let mut line = USUAL.replace("/a?b=c", "/#").into_bytes();
        let hash = line.iter().position(|b| *b == b'#').expect("there");
        line[hash] = 0xff;
        let record = parse_bytes(&line).expect("a record");
        assert_eq!((record.path, record.damaged), (&b"/\xff"[..], false));
        // The same in a line that the scanner leaves to serde_json.
        line.splice(hash..hash, *br#"\"\u00e9"#);
        let record = parse_bytes(&line).expect("a record");
        assert_eq!((record.path, record.damaged), (&b"/\"\xc3\xa9\xff"[..], false));
    }

    #[test]
    fn what_gives_no_record_says_why() {
        let client = |text: &str| USUAL.replace(r#""203.0.113.7""#, text);
        for (line, why) in [
            (String::new(), Reject::Empty),
            (" \t\r".into(), Reject::Empty),
            ("[]".into(), Reject::NotAnObject),
            ("null".into(), Reject::NotAnObject),
            ("203.0.113.7 - - GET /".into(), Reject::NotAnObject),
            (USUAL[1..20].into(), Reject::NotAnObject),
            (USUAL[..22].into(), Reject::NotAnObject),
            ("{}".into(), Reject::NoAddress),
            (USUAL.replace("source_ip", "remote_addr"), Reject::NoAddress),
            (client("null"), Reject::BadAddress),
            (client("3405803783"), Reject::BadAddress),
            (client(r#""""#), Reject::BadAddress),
            (client(r#""unix:""#), Reject::BadAddress),
            (client(r#""203.0.113.7, 10.0.0.1""#), Reject::BadAddress),
            (client(r#""203.0.113.7:443""#), Reject::BadAddress),
            (client(r#""0.0.0.0/0""#), Reject::BadAddress),
            (client(r#"["203.0.113.7"]"#), Reject::BadAddress),
            ("x".repeat(MAX_LINE_BYTES + 1), Reject::TooLong),
            ("[".repeat(MAX_LINE_BYTES), Reject::NotAnObject),
            (format!("{{\"a\":{}", "[".repeat(MAX_LINE_BYTES - 5)), Reject::NotAnObject),
        ] {
            assert_eq!(parse(&line).map(|r| r.client), Err(why), "{:.80}", line);
        }
        let stampless = USUAL.replace("2026", "year");
        assert_eq!(Parser::new().parse(stampless.as_bytes()).map(|r| r.client), Err(Reject::NoTime));
    }

    #[test]
    fn a_line_without_a_stamp_has_the_time_of_the_one_before() {
        let mut parser = Parser::new();
        let time = parser.parse(USUAL.as_bytes()).expect("a record").time;
        let record = parser.parse(br#"{"source_ip":"::ffff:203.0.113.8"}"#).expect("a record");
        assert_eq!((record.time, record.client), (time, address("203.0.113.8")));
    }

    #[test]
    fn nothing_inside_a_value_passes_for_a_key() {
        let attacks = [
            r#"/\",\"source_ip\":\"6.6.6.6\",\"x\":\""#,
            r#"/\\\",\"source_ip\":\"6.6.6.6"#,
            r#"\"source_ip\":\"6.6.6.6\""#,
        ];
        for attack in attacks {
            let line = format!(
                r#"{{"path":"{attack}","timestamp":"2026-04-27T10:25:51Z","source_ip":"203.0.113.7","status":"200"}}"#
            );
            // Whole, and cut at every place from either end: never the forged address.
            assert_eq!(parse(&line).map(|r| r.client), Ok(address("203.0.113.7")));
            for cut in 0..line.len() {
                for part in [&line[..cut], &line[cut..]] {
                    if let Ok(record) = parse(part) {
                        assert_eq!(record.client, address("203.0.113.7"), "{part}");
                    }
                }
            }
        }
    }

    #[test]
    fn of_a_key_that_is_there_twice_the_first_counts() {
        let record = parse(&USUAL.replace('}', r#","source_ip":"6.6.6.6","status":"200"}"#)).expect("a record");
        assert_eq!((record.client, record.status, record.damaged), (address("203.0.113.7"), 404, true));
    }

    #[test]
    fn a_line_that_is_too_long_is_so_among_others_too() {
        let long = |bytes: usize| USUAL.replace("/a?b=c", &"/".repeat(bytes + "/a?b=c".len() - USUAL.len()));
        let text =
            [USUAL, &long(MAX_LINE_BYTES), &long(MAX_LINE_BYTES + 1), USUAL, &long(MAX_LINE_BYTES + 2)].join("\n");
        let mut got = Vec::new();
        Parser::new().parse_all(text.as_bytes(), &mut |parsed| match parsed {
            Parsed::Records(records) => got.extend(records.iter().map(|_| Ok(()))),
            Parsed::Rejected(why, line) => got.push(Err((why, line.len()))),
        });
        let rejected = |bytes| Err((Reject::TooLong, bytes));
        assert_eq!(got, [Ok(()), Ok(()), rejected(MAX_LINE_BYTES + 1), Ok(()), rejected(MAX_LINE_BYTES + 2)]);
    }

    #[test]
    fn logs_of_other_servers() {
        let caddy = r#"{"level":"info","ts":1777281951.25,"logger":"http.log.access","msg":"handled request","request":{"remote_ip":"10.0.0.1","remote_port":"41342","client_ip":"203.0.113.7","proto":"HTTP/2.0","method":"GET","host":"localhost","uri":"/a?b=c","headers":{"client_ip":["6.6.6.6"],"User-Agent":["curl \"x\""]}},"duration":0.0009,"size":153,"status":404,"resp_headers":{"Server":["Caddy"]}}"#;
        let traefik = r#"{"ClientAddr":"203.0.113.7:52316","ClientHost":"203.0.113.7","DownstreamContentSize":153,"DownstreamStatus":404,"RequestMethod":"GET","RequestPath":"/a?b=c","level":"info","msg":"","time":"2026-04-27T10:25:51+01:00"}"#;
        let envoy = r#"{"start_time":"2026-04-27T09:25:51.250Z","downstream_remote_address":"203.0.113.7:52316","method":"GET","path":"/a?b=c","response_code":404,"bytes_sent":153,"upstream_host":null}"#;
        let combined =
            r#"203.0.113.7 - a [b [27/Apr/2026:10:25:51 +0100] "GET /a?b=c HTTP/1.1" 404 153 "-" "curl \x22x\x22""#;
        let common = r#"203.0.113.7 - - [27/Apr/2026:10:25:51 +0100] "GET /a?b=c HTTP/1.1" 404 153"#;
        let own = parse(USUAL).expect("a record");
        for (name, line) in [
            ("caddy", caddy),
            ("traefik", traefik),
            ("envoy", envoy),
            ("combined", combined),
            ("combined", common),
            ("nginx", USUAL),
        ] {
            let mut parser = Parser::with_format(&Format::from_name(name).expect("a preset"));
            for _ in 0..2 {
                let record = parser.parse(line.as_bytes()).unwrap_or_else(|why| panic!("{name}: {why:?}"));
                assert_eq!(record.time.as_secs(), own.time.as_secs(), "{name}");
                let peer = (name == "caddy").then(|| address("10.0.0.1"));
                assert_eq!(record, Record { time: record.time, peer, ..own.clone() }, "{name}");
            }
        }
        assert!(Format::NAMES.iter().all(|name| Format::from_name(name).is_some()));
        assert_eq!(Format::from_name("iis"), None);
    }

    #[test]
    fn addresses_with_ports_only_where_they_are_expected() {
        let mut parser = Parser::with_format(&Format::envoy());
        for (client, expected) in [
            ("203.0.113.7:52316", Some("203.0.113.7")),
            ("[2001:db8::1]:443", Some("2001:db8::1")),
            ("[::ffff:203.0.113.7]:443", Some("203.0.113.7")),
            ("203.0.113.7", Some("203.0.113.7")),
            ("2001:db8::1", Some("2001:db8::1")),
            ("203.0.113.7:", None),
            ("203.0.113.7:x", None),
            ("[2001:db8::1", None),
            ("unix:/run/sock", None),
        ] {
            let line = format!(r#"{{"downstream_remote_address":"{client}","start_time":"2026-04-27T09:25:51Z"}}"#);
            let record = parser.parse(line.as_bytes());
            assert_eq!(record.map(|r| r.client), expected.map(address).ok_or(Reject::BadAddress), "{client}");
        }
    }

    #[test]
    fn combined_lines_that_are_not_whole() {
        let mut parser = Parser::with_format(&Format::Combined);
        let mut read = |line: &str| parser.parse(line.as_bytes()).map(|r| (r.client, r.status, r.damaged));
        let client = address("203.0.113.7");
        assert_eq!(read(r#"203.0.113.7 - - [27/Apr/2026:10:25:51 +0100] "\x16\x03" 400 157"#), Ok((client, 400, true)));
        assert_eq!(read(r#"203.0.113.7 - - [27/Apr/2026:10:25:51 +0100] "" 400 0 "-" "-""#), Ok((client, 400, true)));
        assert_eq!(read(r#"203.0.113.7 - - [27/Apr/2026:10:25:51 +0100] "GET /"#), Ok((client, 0, true)));
        assert_eq!(read("203.0.113.7 - -"), Ok((client, 0, true)));
        assert_eq!(read("203.0.113"), Err(Reject::NotAnObject));
        assert_eq!(read("example.org - - [x]"), Err(Reject::BadAddress));
        assert_eq!(read(""), Err(Reject::Empty));
    }

    #[test]
    fn keys_may_come_in_any_order_and_change_from_line_to_line() {
        let mut parser = Parser::new();
        let fields: Vec<&str> = USUAL[1..USUAL.len() - 1].split(",\"").map(|f| f.trim_start_matches('"')).collect();
        let expected = parse(USUAL).expect("a record");
        for turn in 0..fields.len() {
            let mut turned = fields.clone();
            turned.rotate_left(turn);
            let line = format!("{{\"{}}}", turned.join(",\""));
            assert_eq!(parser.parse(line.as_bytes()).as_ref(), Ok(&expected), "{line}");
        }
    }
}
