//! What the benches of log lines share: the lines of a log in memory, and the bare parse that ours is compared with.

/// The six keys, and nothing done with them: what serde_json alone takes.
#[derive(serde::Deserialize)]
struct SixKeys<'a> {
    #[serde(borrow)]
    source_ip: &'a str,
    #[serde(borrow)]
    timestamp: &'a str,
    #[serde(borrow)]
    method: &'a str,
    #[serde(borrow)]
    path: &'a str,
    #[serde(borrow)]
    status: &'a str,
    #[serde(borrow)]
    response_size: &'a str,
}

/// Parses a line with serde_json alone, and hides from the compiler that nobody looks at what comes of it.
pub fn parse_bare(line: &[u8]) {
    let SixKeys { source_ip, timestamp, method, path, status, response_size } =
        serde_json::from_slice(line).expect("a line of the bench's log");
    std::hint::black_box((source_ip, timestamp, method, path, status, response_size));
}

/// Hands over every line without its newline.
pub fn each_line<'a>(log: &'a [u8], mut each: impl FnMut(&'a [u8])) {
    let mut start = 0;
    for newline in memchr::memchr_iter(b'\n', log) {
        each(&log[start..newline]);
        start = newline + 1;
    }
}
