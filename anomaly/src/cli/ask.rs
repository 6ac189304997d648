//! Asks the running daemon over its Unix socket.

use std::io::ErrorKind;
use std::os::unix::net::UnixStream;
use std::path::Path;

use anomaly::report::inert;
use anyhow::{Context, Result, bail};
use serde_json::Value;

/// What the daemon answered.
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// The body.
    pub body: Value,
}

impl Answer {
    /// The body of a good answer.
    ///
    /// # Errors
    /// What the daemon had to say against it.
    pub fn ok(self) -> Result<Value> {
        if (200..300).contains(&self.status) {
            return Ok(self.body);
        }
        let said = ["detail", "title"].iter().find_map(|key| self.body.get(key)?.as_str());
        bail!("{}", said.map_or_else(|| format!("the daemon answered {}", self.status), |said| inert(said.as_bytes())))
    }
}

/// Sends one request to the daemon behind `socket`.
///
/// # Errors
/// Says whether no daemon runs, or the socket may not be used.
pub fn ask(socket: &Path, method: reqwest::Method, path: &str, body: Option<&Value>) -> Result<Answer> {
    // The library's own error for a socket does not say why it could not be reached.
    if let Err(error) = UnixStream::connect(socket) {
        let place = socket.display();
        match error.kind() {
            ErrorKind::NotFound | ErrorKind::ConnectionRefused => {
                bail!("no daemon answers on {place}: is `anomaly run` running, with this dashboard.socket?")
            }
            ErrorKind::PermissionDenied => bail!("{place}: permission denied; be root, or in the socket's group"),
            _ => return Err(error).with_context(|| place.to_string()),
        }
    }
    // The client cannot be built without one, although nothing is encrypted on a Unix socket.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let client = reqwest::Client::builder()
            .unix_socket(socket)
            // For the same reason the host's certificates need not be read, which is most of what a command takes.
            .tls_certs_only([])
            .timeout(std::time::Duration::from_secs(30))
            .build()
            .context("the HTTP client could not be made")?;
        let mut request = client.request(method, format!("http://localhost{path}"));
        if let Some(body) = body {
            request = request.header("content-type", "application/json").body(body.to_string());
        }
        let response = request.send().await.context("the daemon did not answer")?;
        let status = response.status().as_u16();
        let bytes = response.bytes().await.context("the daemon's answer broke off")?;
        let body = if bytes.is_empty() {
            Value::Null
        } else {
            serde_json::from_slice(&bytes).context("the daemon's answer is no JSON")?
        };
        Ok(Answer { status, body })
    })
}

/// `prefix` as one segment of a path: the address, or the prefix with its slash encoded.
pub fn segment(prefix: &ipnet::IpNet) -> String {
    anomaly::report::ip_text(prefix).replace('/', "%2F")
}
