//! A webhook's receiving end: answers 200 to every POST and keeps what was sent.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use anyhow::Result;

use super::space::Space;

/// Listens in a namespace until the process ends.
pub struct Sink {
    port: u16,
    bodies: Arc<Mutex<Vec<String>>>,
}

impl Sink {
    /// Starts to listen on the namespace's loopback.
    ///
    /// # Errors
    /// When there is no port.
    pub fn start(space: &Space) -> Result<Self> {
        // A socket stays in the namespace it was made in; its thread need not be there.
        let listener = space.within(|| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))??;
        let port = listener.local_addr()?.port();
        let bodies = Arc::new(Mutex::new(Vec::new()));
        let kept = bodies.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if let Ok(body) = receive(&stream) {
                    kept.lock().expect("nobody panics with it").push(body);
                }
            }
        });
        Ok(Self { port, bodies })
    }

    /// Where to post.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}/", self.port)
    }

    /// All bodies so far.
    pub fn bodies(&self) -> Vec<String> {
        self.bodies.lock().expect("nobody panics with it").clone()
    }
}

fn receive(mut stream: &TcpStream) -> std::io::Result<String> {
    let mut reader = BufReader::new(stream);
    let mut length = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        if line.trim().is_empty() {
            break;
        }
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap_or(0);
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")?;
    Ok(String::from_utf8_lossy(&body).into_owned())
}
