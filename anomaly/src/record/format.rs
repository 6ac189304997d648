//! Which key of a JSON log says what, and the presets for the logs of other servers. The combined format, which is
//! not JSON, is read by [`super::combined`].

/// How a log is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Format {
    /// One JSON object a line.
    Json(FieldMap),
    /// The combined format of Nginx and Apache; also the common one.
    Combined,
}

/// Which key says what. A key inside an object at the top is written with a dot: `request.client_ip`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldMap {
    /// The client's address.
    pub client: String,
    /// The client's address has a port behind it (`192.0.2.1:1234`, `[2001:db8::1]:1234`).
    pub client_has_port: bool,
    /// ISO 8601 with a zone, or seconds since the epoch.
    pub time: String,
    /// The method.
    pub method: String,
    /// Path with query.
    pub path: String,
    /// HTTP status.
    pub status: String,
    /// Bytes sent.
    pub response_size: String,
    /// The TCP peer.
    pub peer: Option<String>,
    /// Seconds since the epoch with milliseconds, where `time` has none.
    pub msec: Option<String>,
}

impl Default for Format {
    fn default() -> Self {
        Self::nginx()
    }
}

impl Format {
    /// The names of the presets.
    pub const NAMES: [&str; 5] = ["nginx", "caddy", "traefik", "envoy", "combined"];

    /// The preset of a name.
    pub fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "nginx" => Self::nginx(),
            "caddy" => Self::caddy(),
            "traefik" => Self::traefik(),
            "envoy" => Self::envoy(),
            "combined" => Self::Combined,
            _ => return None,
        })
    }

    /// The name of the preset that makes a record of this line: what a log that gives none may be written in.
    pub fn guess(line: &[u8]) -> Option<&'static str> {
        let reads = |name: &&str| {
            Self::from_name(name).is_some_and(|format| super::Parser::with_format(&format).parse(line).is_ok())
        };
        Self::NAMES.into_iter().find(reads)
    }

    /// What `nginx/log_format.conf` writes (default).
    pub fn nginx() -> Self {
        Self::Json(FieldMap {
            peer: Some("peer".into()),
            msec: Some("msec".into()),
            ..FieldMap::new("source_ip", "timestamp", "method", "path", "status", "response_size")
        })
    }

    /// Caddy's access log with its default JSON encoder. `client_ip` minds Caddy's own `trusted_proxies`.
    pub fn caddy() -> Self {
        Self::Json(FieldMap {
            peer: Some("request.remote_ip".into()),
            ..FieldMap::new("request.client_ip", "ts", "request.method", "request.uri", "status", "size")
        })
    }

    /// Traefik's access log with `format: json`.
    pub fn traefik() -> Self {
        Self::Json(FieldMap::new(
            "ClientHost",
            "time",
            "RequestMethod",
            "RequestPath",
            "DownstreamStatus",
            "DownstreamContentSize",
        ))
    }

    /// Envoy with a `json_format` that has Istio's names.
    pub fn envoy() -> Self {
        Self::Json(FieldMap {
            client_has_port: true,
            ..FieldMap::new("downstream_remote_address", "start_time", "method", "path", "response_code", "bytes_sent")
        })
    }
}

impl FieldMap {
    /// These six keys, and no more.
    pub fn new(client: &str, time: &str, method: &str, path: &str, status: &str, response_size: &str) -> Self {
        Self {
            client: client.into(),
            client_has_port: false,
            time: time.into(),
            method: method.into(),
            path: path.into(),
            status: status.into(),
            response_size: response_size.into(),
            peer: None,
            msec: None,
        }
    }
}

/// The things a line can say that somebody asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Field {
    Client,
    Time,
    Method,
    Path,
    Status,
    Size,
    Peer,
    Msec,
    /// Any other key.
    Other,
}

impl Field {
    /// What every record should have; the time may be `Msec` instead.
    pub(super) const TEXTS_AND_NUMBERS: u16 =
        Self::Method.bit() | Self::Path.bit() | Self::Status.bit() | Self::Size.bit();

    /// One bit of each, none of [`Field::Other`].
    pub(super) const fn bit(self) -> u16 {
        if matches!(self, Self::Other) { 0 } else { 1 << self as u16 }
    }
}

/// A [`FieldMap`] as it is looked up: object (empty at the top), key, field.
#[derive(Clone, Debug)]
pub(super) struct Keys {
    names: Vec<(String, String, Field)>,
    pub(super) client_has_port: bool,
    /// No key is inside an object: the fast scanner and the search in broken lines can be used.
    pub(super) flat: bool,
}

impl Keys {
    pub(super) fn new(map: &FieldMap) -> Self {
        let fields = [
            (Some(&map.client), Field::Client),
            (Some(&map.time), Field::Time),
            (Some(&map.method), Field::Method),
            (Some(&map.path), Field::Path),
            (Some(&map.status), Field::Status),
            (Some(&map.response_size), Field::Size),
            (map.peer.as_ref(), Field::Peer),
            (map.msec.as_ref(), Field::Msec),
        ];
        let names: Vec<_> = fields
            .into_iter()
            .filter_map(|(path, field)| {
                let (object, key) = path?.rsplit_once('.').unwrap_or(("", path?));
                Some((object.to_owned(), key.to_owned(), field))
            })
            .collect();
        let flat = names.iter().all(|(object, _, _)| object.is_empty());
        Self { names, client_has_port: map.client_has_port, flat }
    }

    /// What a key at the top says.
    pub(super) fn field(&self, key: &[u8]) -> Field {
        self.field_in("", key)
    }

    /// What a key inside an object says.
    pub(super) fn field_in(&self, object: &str, key: &[u8]) -> Field {
        let same = |(o, k, _): &&(String, String, Field)| k.as_bytes() == key && o == object;
        self.names.iter().find(same).map_or(Field::Other, |(_, _, field)| *field)
    }

    /// The object at the top that has wanted keys inside.
    pub(super) fn object(&self, key: &[u8]) -> Option<&str> {
        if self.flat {
            return None;
        }
        self.names
            .iter()
            .find(|(object, _, _)| object.as_bytes() == key && !key.is_empty())
            .map(|(object, _, _)| object.as_str())
    }

    pub(super) fn names(&self) -> impl Iterator<Item = (&[u8], Field)> {
        self.names.iter().filter(|(object, _, _)| object.is_empty()).map(|(_, key, field)| (key.as_bytes(), *field))
    }
}
