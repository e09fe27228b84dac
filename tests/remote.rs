//! Checkpoints and GGUF files behind URLs give the bytes that local ones give, over connections that fail.
#![cfg(all(feature = "cli", feature = "remote"))]

mod common;

use assert_cmd::cargo::CommandCargoExt;
use common::TINY_R1;
use requant::gguf::{GgufFile, Value, replace_metadata};
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A server of files in which every third answer fails: an error, or a connection cut half-way.
struct Server {
    address: String,
    served: Arc<Served>,
}

/// What a server was asked for and gave.
#[derive(Default)]
struct Served {
    requests: AtomicUsize,
    bytes: AtomicUsize,
}

impl Server {
    /// Serves the fixture below `prefix`, to those who show `token`.
    fn start(prefix: &'static str, token: Option<&'static str>, missing: &'static str) -> Self {
        Self::of(Site { root: TINY_R1.into(), prefix, token, missing })
    }

    fn of(site: Site) -> Self {
        let site = Arc::new(site);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let served = Arc::new(Served::default());
        let count = served.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (count, site) = (count.clone(), site.clone());
                // A client that leaves early ends its own connection alone.
                std::thread::spawn(move || {
                    let _ = serve(&stream, &site, &count);
                });
            }
        });
        Self { address, served }
    }

    fn requests(&self) -> usize {
        self.served.requests.load(Ordering::Relaxed)
    }
}

/// What a server has.
struct Site {
    root: PathBuf,
    prefix: &'static str,
    token: Option<&'static str>,
    missing: &'static str,
}

/// What the hub says of the files of a folder.
fn listed(root: &Path) -> Vec<u8> {
    let entry = |entry: std::fs::DirEntry| {
        let (name, data) = (entry.file_name().into_string().unwrap(), entry.metadata().unwrap());
        let kind = if data.is_dir() { "directory" } else { "file" };
        serde_json::json!({ "type": kind, "path": name, "size": data.len(), "oid": "0" })
    };
    let entries: Vec<_> = root.read_dir().unwrap().map(|found| entry(found.unwrap())).collect();
    serde_json::to_vec(&entries).unwrap()
}

fn serve(stream: &TcpStream, site: &Site, count: &Served) -> std::io::Result<()> {
    let &Site { ref root, prefix, token, missing } = site;
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
        let file = match path.starts_with("/api/models/org/") && path.ends_with("/tree/v1") {
            true => Ok(listed(root)),
            false => std::fs::read(root.join(name.trim_start_matches('/'))),
        };
        let Some(body) = file.ok().filter(|_| name.is_empty() || name != missing) else {
            write!(out, "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")?;
            continue;
        };
        let n = count.requests.fetch_add(1, Ordering::Relaxed);
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
        count.bytes.fetch_add(body.len(), Ordering::Relaxed);
    }
    Ok(())
}

/// Exit code, standard output and standard error, with the hub at this address.
fn requant(args: &[&str], hub: &str) -> (Option<i32>, String, String) {
    let mut command = Command::cargo_bin("requant").unwrap();
    command.env_remove("HF_TOKEN").env("HF_HOME", "/nonexistent").env("HF_ENDPOINT", hub);
    let run = command.args(args).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (run.status.code(), text(run.stdout), text(run.stderr))
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
    assert!(server.requests() > 6, "some must have failed");
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

#[test]
fn gguf_files_are_read_where_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let local = "tests/fixtures/reference/tiny-r1-bf16.gguf";
    let site =
        |prefix| Site { root: "tests/fixtures/reference".into(), prefix, token: None, missing: "" };
    let server = Server::of(site("/models"));
    let url = format!("{}/models/tiny-r1-bf16.gguf", server.address);
    let inspected = |place: &str| -> serde_json::Value {
        let (code, out, err) = requant(&["inspect", place, "--json"], "");
        assert_eq!(code, Some(0), "{err}");
        serde_json::from_str(&out).unwrap()
    };
    let (mut here, mut there) = (inspected(local), inspected(&url));
    assert_eq!(server.requests(), 1, "one for the header");
    assert_eq!(there["files"], serde_json::json!([url]));
    for json in [&mut here, &mut there] {
        json["files"].take();
        json["run"].take();
    }
    assert_eq!(here, there);
    let (code, out, err) = requant(&["diff", local, &url, "-q"], "");
    assert_eq!((code, out.as_str()), (Some(0), "0 of 52 tensors differ\n"), "{err}");
    assert_eq!(requant(&["recipe", "from", &url], "").1.lines().last(), Some("default = \"BF16\""));
    let (code, out, err) = requant(&["verify", &url, "-q"], "");
    assert!(code == Some(0) && out.contains("every block finite"), "{err}");
    let [a, b] = ["a.gguf", "b.gguf"].map(|name| dir.path().join(name));
    for (source, output) in [(local, &a), (&*url, &b)] {
        let output = output.to_str().unwrap();
        let (code, _, err) = requant(&["quantize", source, output, "Q4_K_M", "-q"], "");
        assert_eq!(code, Some(0), "{err}");
    }
    assert!(std::fs::read(&a).unwrap() == std::fs::read(&b).unwrap());

    // A manifest beside it is found, and read.
    let made = dir.path().to_str().unwrap().to_owned() + "/m.gguf";
    let with = ["quantize", local, &made, "Q8_0", "--manifest", "-q"];
    assert_eq!(requant(&with, "").0, Some(0));
    let root = dir.path().to_owned();
    let beside = Server::of(Site { root, prefix: "", token: None, missing: "none" });
    let there = format!("{}/m.gguf", beside.address);
    let (code, out, err) = requant(&["verify", &there, "-q"], "");
    assert!(code == Some(0) && out.contains("/m.gguf.manifest.json was checked"), "{out}{err}");
    let manifest = format!("{made}.manifest.json");
    let other =
        std::fs::read_to_string(&manifest).unwrap().replace("\"sha256\": \"", "\"sha256\": \"0");
    std::fs::write(&manifest, other).unwrap();
    let (code, _, err) = requant(&["verify", &there, "-q"], "");
    assert!(code == Some(3) && err.contains("is not the manifest's"), "{err}");

    let server = Server::of(site("/org/repo/resolve/v1"));
    let hub = server.address.as_str();
    let (code, _, err) = requant(&["inspect", "hf://org/repo@v1/tiny-r1-bf16.gguf"], hub);
    assert_eq!(code, Some(0), "{err}");
    let (code, out, err) = requant(&["inspect", "hf://org/repo@v1", "--files"], hub);
    assert!(code == Some(0) && out.contains("19.8 MiB  tiny-r1-bf16.gguf"), "{out}{err}");
    let (_, out, _) = requant(&["inspect", "hf://org/repo@v1", "--files", "--json"], hub);
    common::validate("files", &serde_json::from_str(&out).unwrap());
    let (code, _, err) = requant(&["inspect", "hf://org/repo@v1"], hub);
    assert!(code == Some(1) && err.contains("tiny-r1-bf16.gguf; add the name"), "{err}");
    let there = "hf://org/repo@v1/tiny-r1-bf16.gguf";
    let (code, _, err) = requant(&["convert", there, "a.gguf", "-t", "Q8_0"], hub);
    assert!(code == Some(1) && err.contains("`requant quantize` takes GGUF files"), "{err}");
    let plan = |place: &str| {
        let (code, out, err) = requant(&["plan", place, "Q4_K_M", "--json"], hub);
        assert_eq!(code, Some(0), "{err}");
        let plan: serde_json::Value = serde_json::from_str(&out).unwrap();
        common::validate("plan", &plan);
        (plan["bytes"].clone(), plan["tensors"].as_array().unwrap().len())
    };
    assert_eq!(plan(there), plan(local));
    let (code, _, err) = requant(&["plan", there, "--outtype", "bf16"], hub);
    assert!(code == Some(2) && err.contains("only what `requant quantize` makes"), "{err}");
    let (code, _, err) = requant(&["inspect", "hf://org/repo@v1/other.gguf"], hub);
    assert!(code == Some(1) && err.contains("hf://org/repo@v1/other.gguf"), "{err}");
}

#[test]
fn of_a_long_header_what_is_missing_is_fetched_and_no_more() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("long.gguf");
    std::fs::copy(common::BF16, &path).unwrap();
    let mut metadata = GgufFile::open(&path).unwrap().metadata().clone();
    metadata.set("long", Value::String(vec![b'a'; 12 << 20].into()));
    replace_metadata(&path, &metadata, false).unwrap();
    let root = dir.path().to_owned();
    let server = Server::of(Site { root, prefix: "", token: None, missing: "none" });
    let url = format!("{}/long.gguf", server.address);
    let read = |place: &str| requant(&["inspect", place, "--header", "-q"], "");
    let (code, there, err) = read(&url);
    assert_eq!(code, Some(0), "{err}");
    assert_eq!(
        there.replace(&url, "FILE"),
        read(path.to_str().unwrap()).1.replace(path.to_str().unwrap(), "FILE")
    );
    let bytes = server.served.bytes.load(Ordering::Relaxed) as u64;
    assert_eq!((server.requests(), bytes), (2, path.metadata().unwrap().len()));
}

#[test]
fn parts_of_a_model_are_found_beside_its_first() {
    let dir = tempfile::tempdir().unwrap();
    let local = "tests/fixtures/reference/tiny-r1-bf16.gguf";
    let parts = dir.path().join("m");
    let split = ["split", local, parts.to_str().unwrap(), "--split-max-tensors", "20", "-q"];
    assert_eq!(requant(&split, "").0, Some(0));
    let site = |missing| Site { root: dir.path().to_owned(), prefix: "", token: None, missing };
    let server = Server::of(site("none"));
    let first = format!("{}/m-00001-of-00003.gguf", server.address);
    let (code, out, err) = requant(&["diff", local, &first, "-q"], "");
    assert_eq!((code, out.as_str()), (Some(0), "0 of 52 tensors differ\n"), "{err}");
    let second = first.replace("-00001-", "-00002-");
    assert_eq!(requant(&["inspect", &second, "--header"], "").0, Some(0));
    let server = Server::of(site("/m-00003-of-00003.gguf"));
    let first = format!("{}/m-00001-of-00003.gguf", server.address);
    let (code, _, err) = requant(&["inspect", &first], "");
    assert!(code == Some(1) && err.contains("/m-00003-of-00003.gguf: this part"), "{err}");
}
