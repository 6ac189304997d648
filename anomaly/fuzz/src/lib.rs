//! What several fuzz targets share: the real server of the dashboard over the daemon made of data that the web tests use.

use std::collections::HashSet;
use std::sync::{Arc, LazyLock};

use anomaly::view::live::Live;
use ipnet::IpNet;

#[path = "../../../tests/web/client.rs"]
pub mod client;
#[path = "../../../tests/web/fake.rs"]
pub mod fake;

/// What writes over TCP need.
pub const TOKEN: &str = "a token that is long enough";

/// The one server of this process: starting another for every input would leave nothing of the time.
static SERVER: LazyLock<fake::Server> =
    LazyLock::new(|| fake::Server::start(fake::Options { token: Some(TOKEN), ..fake::Options::default() }));

/// The server, as it was when it started.
pub fn server() -> &'static fake::Server {
    SERVER.show(|live| *live = fake::picture());
    &SERVER
}

/// What is banned now.
pub fn banned(server: &fake::Server) -> HashSet<IpNet> {
    let live: Arc<Live> = server.live.borrow().clone();
    live.bans.iter().filter_map(|row| anomaly::report::parse_ip(row.decision.ip.as_deref()?)).collect()
}

/// Fails on whatever can move a cursor, forge a line or turn the writing around.
pub fn assert_inert(text: &str) {
    let bad = |c: char| {
        c.is_control() || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    assert!(!text.contains(bad), "{text:?}");
}
