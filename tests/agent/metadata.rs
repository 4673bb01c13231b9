//! A metadata service on the loopback that answers as a test wants, however badly.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

pub struct Request {
    /// "GET /latest/api/token"
    pub line: String,
    headers: Vec<(String, String)>,
}

impl Request {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }
}

pub enum Answer {
    Reply(u16, String),
    Redirect(String),
    /// Takes the question and never answers.
    Hang,
    /// A byte now and then, for ever.
    Drip,
    /// A byte more than is read, and no end.
    Flood,
    /// Bytes that are no HTTP.
    Noise,
    /// Closes the connection in the middle of the body.
    Cut,
}

pub fn ok(body: &str) -> Answer {
    Answer::Reply(200, body.into())
}

type Handler = dyn Fn(&Request) -> Answer + Send + Sync;

/// Answers until the test's process ends.
pub struct Service {
    pub url: String,
    asked: Arc<AtomicUsize>,
    handler: Arc<Mutex<Arc<Handler>>>,
}

impl Service {
    pub fn start(handler: impl Fn(&Request) -> Answer + Send + Sync + 'static) -> Service {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let asked = Arc::new(AtomicUsize::new(0));
        let handler: Arc<Mutex<Arc<Handler>>> = Arc::new(Mutex::new(Arc::new(handler)));
        let (count, handlers) = (Arc::clone(&asked), Arc::clone(&handler));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let handler = Arc::clone(&*handlers.lock().unwrap());
                let count = Arc::clone(&count);
                std::thread::spawn(move || {
                    count.fetch_add(1, Ordering::Relaxed);
                    // A client that goes away in the middle is no failure of the service.
                    let _ = answer(stream.unwrap(), &*handler);
                });
            }
        });
        Service { url, asked, handler }
    }

    pub fn answers(&self, handler: impl Fn(&Request) -> Answer + Send + Sync + 'static) {
        *self.handler.lock().unwrap() = Arc::new(handler);
    }

    pub fn times_asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }
}

fn answer(stream: TcpStream, handler: &Handler) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let mut headers = Vec::new();
    loop {
        let mut header = String::new();
        if reader.read_line(&mut header)? == 0 || header.trim().is_empty() {
            break;
        }
        if let Some((name, value)) = header.split_once(':') {
            headers.push((name.to_owned(), value.trim().to_owned()));
        }
    }
    let line = line.trim_end_matches(" HTTP/1.1\r\n").to_owned();
    let mut stream = stream;
    match handler(&Request { line, headers }) {
        Answer::Reply(status, body) => write!(
            stream,
            "HTTP/1.1 {status} Something\r\nMetadata-Flavor: Google\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        ),
        Answer::Redirect(url) => {
            write!(stream, "HTTP/1.1 302 Found\r\nLocation: {url}\r\nContent-Length: 0\r\n\r\n")
        }
        Answer::Hang => {
            // Until the client hangs up.
            reader.read_to_end(&mut Vec::new()).map(drop)
        }
        Answer::Drip => {
            stream.write_all(b"HTTP/1.1 200 OK\r\nMetadata-Flavor: Google\r\nContent-Length: 100\r\n\r\n")?;
            loop {
                stream.write_all(b"T")?;
                std::thread::sleep(Duration::from_millis(200));
            }
        }
        Answer::Flood => {
            stream.write_all(b"HTTP/1.1 200 OK\r\nMetadata-Flavor: Google\r\n\r\n")?;
            stream.write_all(&[b'T'; (64 << 10) + 1])?;
            // Until the client hangs up.
            reader.read_to_end(&mut Vec::new()).map(drop)
        }
        Answer::Noise => stream.write_all(b"\x16\x03\x01 hello, who are you?\r\n\r\n"),
        Answer::Cut => {
            stream.write_all(b"HTTP/1.1 200 OK\r\nMetadata-Flavor: Google\r\nContent-Length: 100\r\n\r\nTRUE")
        }
    }
}
