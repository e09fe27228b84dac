//! Checkpoints behind URLs give the bytes that local ones give, over connections that fail.
#![cfg(all(feature = "cli", feature = "remote"))]

mod common;

use assert_cmd::cargo::CommandCargoExt;
use common::TINY_R1;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A server of files in which every third answer fails: an error, or a connection cut half-way.
struct Server {
    address: String,
    requests: Arc<AtomicUsize>,
}

impl Server {
    /// Serves the fixture below `prefix`, to those who show `token`.
    fn start(prefix: &'static str, token: Option<&'static str>, missing: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let requests = Arc::new(AtomicUsize::new(0));
        let count = requests.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let count = count.clone();
                // A client that leaves early ends its own connection alone.
                std::thread::spawn(move || {
                    let _ = serve(&stream, prefix, token, missing, &count);
                });
            }
        });
        Self { address, requests }
    }
}

fn serve(
    stream: &TcpStream,
    prefix: &str,
    token: Option<&str>,
    missing: &str,
    count: &AtomicUsize,
) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream).lines();
    let mut out = stream;
    while let Some(Ok(request)) = lines.next() {
        let mut range = None;
        let mut authorized = token.is_none();
        for header in lines.by_ref().map_while(Result::ok).take_while(|h| !h.is_empty()) {
            let header = header.to_ascii_lowercase();
            if let Some(bytes) = header.strip_prefix("range: bytes=") {
                let (first, last) = bytes.split_once('-').unwrap();
                range = Some((first.parse::<usize>().unwrap(), last.parse::<usize>().unwrap()));
            }
            authorized |= token.is_some_and(|t| header == format!("authorization: bearer {t}"));
        }
        if !authorized {
            write!(out, "HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n")?;
            continue;
        }
        let path = request.split(' ').nth(1).unwrap();
        let name = path.strip_prefix(prefix).unwrap_or("");
        let file = std::fs::read(Path::new(TINY_R1).join(name.trim_start_matches('/')));
        let Some(body) = file.ok().filter(|_| name != missing) else {
            write!(out, "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")?;
            continue;
        };
        let n = count.fetch_add(1, Ordering::Relaxed);
        if n % 6 == 2 {
            write!(out, "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n")?;
            continue;
        }
        let size = body.len();
        let tag = "ETag: \"1\"\r\nLast-Modified: Wed, 21 Oct 2015 07:28:00 GMT";
        let body = match range {
            Some((first, last)) => {
                let last = last.min(size - 1);
                let length = last - first + 1;
                write!(
                    out,
                    "HTTP/1.1 206 Partial Content\r\n{tag}\r\nContent-Length: {length}\r\n\
                     Content-Range: bytes {first}-{last}/{size}\r\n\r\n"
                )?;
                &body[first..=last]
            }
            None => {
                write!(out, "HTTP/1.1 200 OK\r\n{tag}\r\nContent-Length: {size}\r\n\r\n")?;
                &body[..]
            }
        };
        if n % 6 == 5 {
            return out.write_all(&body[..body.len() / 2]);
        }
        out.write_all(body)?;
    }
    Ok(())
}

fn convert(url: &str, output: &Path, variables: &[(&str, &str)]) -> (bool, String) {
    let run = Command::cargo_bin("requant")
        .unwrap()
        .args(["convert", url, output.to_str().unwrap(), "-t", "Q4_K_M"])
        .env_remove("HF_TOKEN")
        .env("HF_HOME", "/nonexistent")
        .envs(variables.iter().copied())
        .output()
        .unwrap();
    (run.status.success(), String::from_utf8(run.stderr).unwrap())
}

#[test]
fn a_server_with_faults_gives_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let [local, remote, hub] = ["local", "remote", "hub"].map(|name| dir.path().join(name));
    assert!(convert(TINY_R1, &local, &[]).0);
    let server = Server::start("/models/tiny-r1", None, "");
    let (done, err) = convert(&format!("{}/models/tiny-r1/", server.address), &remote, &[]);
    assert!(done, "{err}");
    assert!(server.requests.load(Ordering::Relaxed) > 6, "some must have failed");
    let expected = std::fs::read(&local).unwrap();
    assert!(std::fs::read(&remote).unwrap() == expected);

    let server = Server::start("/org/tiny-r1/resolve/v1", Some("s3cret"), "");
    let endpoint = [("HF_ENDPOINT", server.address.as_str()), ("HF_TOKEN", "s3cret")];
    let (done, err) = convert("hf://org/tiny-r1@v1", &hub, &endpoint);
    assert!(done, "{err}");
    assert!(std::fs::read(&hub).unwrap() == expected);

    let other = dir.path().join("other");
    let (done, err) = convert("hf://org/tiny-r1@v1", &other, &[endpoint[0], ("HF_TOKEN", "wr0ng")]);
    assert!(!done && err.contains("hf://org/tiny-r1@v1/config.json"), "{err}");
    assert!(!err.contains("wr0ng") && !other.exists());
}

#[test]
fn what_is_not_there_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out.gguf");
    let shard = "/model-00002-of-00003.safetensors";
    assert!(Path::new(TINY_R1).join(&shard[1..]).exists());
    let server = Server::start("/x", None, shard);
    let url = format!("{}/x", server.address);
    let (done, err) = convert(&url, &out, &[]);
    assert!(!done && err.contains(&format!("{url}{shard}")), "{err}");
    for (url, expected) in [
        ("hf://tiny", "hf://organization/name"),
        ("ftp://host/x", "s3://"),
        (&*format!("{}/nothing", server.address), "nothing/config.json"),
    ] {
        let (done, err) = convert(url, &out, &[]);
        assert!(!done && err.contains(expected), "{err}");
    }
    assert!(!out.exists());
}
