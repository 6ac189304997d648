//! From the host's loopback to the dashboard in the server's namespace.
//!
//! Each connection gets a thread that enters the namespace and connects there; the listener stays
//! outside. Bytes are copied as they are: the dashboard sees the same port and so the same `Host`.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};

use anyhow::{Context, Result};

use crate::lab::space::Entrance;

/// A listener that leads nowhere yet.
pub struct Forward {
    listener: TcpListener,
    wanted: u16,
    address: SocketAddr,
}

/// A listener at work, for as long as the process lives.
pub struct Led {
    wanted: u16,
    address: SocketAddr,
}

impl Forward {
    /// Listens on loopback, on `wanted` or, where that is taken, any other port.
    ///
    /// # Errors
    /// When there is no port at all.
    pub fn listen(wanted: u16) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, wanted))
            .or_else(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))
            .context("no port on loopback for the dashboard")?;
        let address = listener.local_addr()?;
        Ok(Self { listener, wanted, address })
    }

    /// Where it listens; the daemon is told to listen on the same, in its namespace.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Begins to forward into a namespace.
    pub fn lead_to(self, entrance: Entrance) -> Led {
        let led = Led { wanted: self.wanted, address: self.address };
        let address = self.address;
        std::thread::spawn(move || {
            for outside in self.listener.incoming().flatten() {
                let entrance = entrance.clone();
                std::thread::spawn(move || {
                    // A browser that goes away in the middle is nobody's business.
                    if let Ok(Ok(inside)) = entrance.within(|| TcpStream::connect(address)) {
                        let _ = join(&outside, &inside);
                    }
                });
            }
        });
        led
    }
}

impl Led {
    /// The dashboard's address for people.
    pub fn url(&self) -> String {
        format!("http://{}/", self.address)
    }

    /// What to say where the usual port was taken.
    pub fn note(&self) -> Option<String> {
        (self.address.port() != self.wanted).then(|| format!("(Port {} is taken on this machine.)", self.wanted))
    }
}

fn join(outside: &TcpStream, inside: &TcpStream) -> std::io::Result<()> {
    std::thread::scope(|scope| {
        scope.spawn(|| copy(outside, inside));
        copy(inside, outside)
    })
}

fn copy(mut from: &TcpStream, mut to: &TcpStream) -> std::io::Result<()> {
    let mut buffer = [0; 16 * 1024];
    loop {
        match from.read(&mut buffer) {
            Ok(0) | Err(_) => return to.shutdown(Shutdown::Write),
            Ok(n) => to.write_all(&buffer[..n])?,
        }
    }
}

/// A token nobody can guess.
///
/// # Errors
/// When the kernel gives no randomness.
pub fn token() -> Result<String> {
    let mut bytes = [0; 12];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes.iter().map(|b| format!("{b:02x}")).collect())
}
