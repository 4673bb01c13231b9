#!/usr/bin/env bash
# A PUT without a body leaves ureq as a body in chunks: "Transfer-Encoding: chunked", the head in one write and the empty
# chunk after it. curl sends neither a length nor a chunk. A small server that answers when the head is there and closes
# has unread bytes then, so that its TCP resets the connection and the answer may be lost: the way in which one asks the
# metadata service of a cloud for a token.
#
# ureq 3.5.2 from crates.io. Seen in November 2026:
#   PUT of ():                          transfer-encoding: chunked
#   PUT of () with content-length: 0:   content-length: 0
#
# Exit status: 0 where it behaves so, 1 where it does not. Takes a minute; needs cargo.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
cargo init --quiet --name put --vcs none
cargo add --quiet ureq@=3.5.2 --no-default-features
cat >src/main.rs <<'RS'
use std::io::{Read, Write};
use std::net::TcpListener;

/// How the body of a PUT is framed, as the server reads it.
fn framing(headers: &[(&str, &str)]) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let (mut text, mut buffer) = (Vec::new(), [0; 4096]);
        while !text.windows(4).any(|end| end == b"\r\n\r\n") {
            let n = stream.read(&mut buffer).unwrap();
            text.extend_from_slice(&buffer[..n]);
        }
        // What else the client sends, so that this server's end is no reset.
        stream.set_read_timeout(Some(std::time::Duration::from_millis(300))).unwrap();
        let _ = stream.read(&mut buffer);
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").unwrap();
        String::from_utf8(text).unwrap().to_lowercase()
    });
    let mut request = ureq::http::Request::builder().method("PUT").uri(&url);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    ureq::run(request.body(()).unwrap()).unwrap();
    let head = server.join().unwrap();
    let found = head.lines().filter(|line| line.starts_with("transfer-encoding") || line.starts_with("content-length"));
    found.collect::<Vec<_>>().join(", ")
}

fn main() {
    let (plain, told) = (framing(&[]), framing(&[("content-length", "0")]));
    println!("PUT of (): {plain}\nPUT of () with content-length: 0: {told}");
    std::process::exit(i32::from(plain != "transfer-encoding: chunked" || told != "content-length: 0"));
}
RS
cargo run --quiet
