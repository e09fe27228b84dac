//! GGUF and safetensors files in and out, checkpoints to edit, and the program to run on them.
//! Nothing here is shared with the program: what a test writes, the program has to understand.
#![allow(dead_code)]

use assert_cmd::cargo::CommandCargoExt;
use serde_json::{Map, Value as Json, json};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

pub const FIXTURES: &str = "tests/fixtures";
pub const TINY_R1: &str = "tests/fixtures/tiny-r1";
pub const BF16: &str = "tests/fixtures/reference/tiny-r1-bf16.gguf";
pub const HELDOUT: &str = "tests/fixtures/text/heldout.txt";

/// A metadata value.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(u8),
    Str(Vec<u8>),
    /// Id of the elements' type, and the elements.
    Array(u32, Vec<Value>),
    U64(u64),
    I64(i64),
    F64(f64),
}

impl Value {
    pub fn str(text: &str) -> Self {
        Self::Str(text.as_bytes().to_vec())
    }

    pub fn id(&self) -> u32 {
        match self {
            Self::U8(_) => 0,
            Self::I8(_) => 1,
            Self::U16(_) => 2,
            Self::I16(_) => 3,
            Self::U32(_) => 4,
            Self::I32(_) => 5,
            Self::F32(_) => 6,
            Self::Bool(_) => 7,
            Self::Str(_) => 8,
            Self::Array(..) => 9,
            Self::U64(_) => 10,
            Self::I64(_) => 11,
            Self::F64(_) => 12,
        }
    }

    fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::U8(n) | Self::Bool(n) => out.push(*n),
            Self::I8(n) => out.extend(n.to_le_bytes()),
            Self::U16(n) => out.extend(n.to_le_bytes()),
            Self::I16(n) => out.extend(n.to_le_bytes()),
            Self::U32(n) => out.extend(n.to_le_bytes()),
            Self::I32(n) => out.extend(n.to_le_bytes()),
            Self::F32(n) => out.extend(n.to_le_bytes()),
            Self::U64(n) => out.extend(n.to_le_bytes()),
            Self::I64(n) => out.extend(n.to_le_bytes()),
            Self::F64(n) => out.extend(n.to_le_bytes()),
            Self::Str(bytes) => string(bytes, out),
            Self::Array(id, values) => {
                out.extend(id.to_le_bytes());
                out.extend((values.len() as u64).to_le_bytes());
                values.iter().for_each(|value| value.write(out));
            }
        }
    }

    fn read(id: u32, from: &mut Bytes) -> Self {
        match id {
            0 => Self::U8(from.take::<1>()[0]),
            1 => Self::I8(i8::from_le_bytes(from.take())),
            2 => Self::U16(u16::from_le_bytes(from.take())),
            3 => Self::I16(i16::from_le_bytes(from.take())),
            4 => Self::U32(from.u32()),
            5 => Self::I32(i32::from_le_bytes(from.take())),
            6 => Self::F32(f32::from_le_bytes(from.take())),
            7 => Self::Bool(from.take::<1>()[0]),
            8 => Self::Str(from.string()),
            9 => {
                let (id, n) = (from.u32(), from.u64());
                Self::Array(id, (0..n).map(|_| Self::read(id, from)).collect())
            }
            10 => Self::U64(from.u64()),
            11 => Self::I64(i64::from_le_bytes(from.take())),
            12 => Self::F64(f64::from_le_bytes(from.take())),
            _ => panic!("value type {id}"),
        }
    }
}

fn string(bytes: &[u8], out: &mut Vec<u8>) {
    out.extend((bytes.len() as u64).to_le_bytes());
    out.extend(bytes);
}

struct Bytes<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Bytes<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        self.at += N;
        self.bytes[self.at - N..self.at].try_into().unwrap()
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take())
    }

    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.take())
    }

    fn string(&mut self) -> Vec<u8> {
        let n = self.u64() as usize;
        self.at += n;
        self.bytes[self.at - n..self.at].to_vec()
    }
}

/// A tensor of a GGUF file.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    pub name: String,
    /// Innermost first.
    pub dims: Vec<u64>,
    /// Id of its type.
    pub ty: u32,
    pub data: Vec<u8>,
}

/// A GGUF file.
#[derive(Clone, Debug, PartialEq)]
pub struct Gguf {
    pub version: u32,
    pub keys: Vec<(String, Value)>,
    pub tensors: Vec<Tensor>,
}

/// Elements and bytes of a block, by the id of its type.
pub fn block(ty: u32) -> Option<(u64, u64)> {
    Some(match ty {
        0 => (1, 4),
        1 | 25 | 30 => (1, 2),
        2 => (32, 18),
        3 => (32, 20),
        6 => (32, 22),
        7 => (32, 24),
        8 => (32, 34),
        9 => (32, 36),
        10 => (256, 84),
        11 => (256, 110),
        12 => (256, 144),
        13 => (256, 176),
        14 => (256, 210),
        16 => (256, 66),
        17 => (256, 74),
        18 => (256, 98),
        19 => (256, 50),
        20 => (32, 18),
        21 => (256, 110),
        22 => (256, 82),
        23 => (256, 136),
        24 => (1, 1),
        26 => (1, 4),
        27 | 28 => (1, 8),
        29 => (256, 56),
        34 => (256, 54),
        35 => (256, 66),
        39 => (32, 17),
        _ => return None,
    })
}

impl Gguf {
    /// Reads a file as its keys say. A tensor of an unknown type has what there is up to the next.
    pub fn read(path: &Path) -> Self {
        let bytes = std::fs::read(path).unwrap();
        let mut from = Bytes { bytes: &bytes, at: 0 };
        assert_eq!(&from.take::<4>(), b"GGUF");
        let (version, n_tensors, n_keys) = (from.u32(), from.u64(), from.u64());
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        let keys: Vec<(String, Value)> = (0..n_keys)
            .map(|_| {
                let key = text(from.string());
                let id = from.u32();
                (key, Value::read(id, &mut from))
            })
            .collect();
        let heads: Vec<(String, Vec<u64>, u32, u64)> = (0..n_tensors)
            .map(|_| {
                let (name, n) = (text(from.string()), from.u32());
                let dims = (0..n).map(|_| from.u64()).collect();
                (name, dims, from.u32(), from.u64())
            })
            .collect();
        let mut file = Self { version, keys, tensors: Vec::new() };
        let data = (from.at as u64).next_multiple_of(file.alignment());
        let ends: Vec<u64> = heads.iter().map(|head| head.3).chain([bytes.len() as u64]).collect();
        for (i, (name, dims, ty, offset)) in heads.into_iter().enumerate() {
            let n = match block(ty) {
                Some((len, size)) => dims.iter().product::<u64>() / len * size,
                None => {
                    ends[i + 1].saturating_sub(if i + 2 == ends.len() { data } else { 0 }) - offset
                }
            };
            let start = (data + offset) as usize;
            let data = bytes[start..start + n as usize].to_vec();
            file.tensors.push(Tensor { name, dims, ty, data });
        }
        file
    }

    /// What `general.alignment` says.
    pub fn alignment(&self) -> u64 {
        match self.get("general.alignment") {
            Some(Value::U32(n @ 1..)) => u64::from(*n),
            _ => 32,
        }
    }

    pub fn get(&self, key: &str) -> Option<&Value> {
        self.keys.iter().find(|(known, _)| known == key).map(|(_, value)| value)
    }

    /// Sets a key, in its place where it is there.
    pub fn set(&mut self, key: &str, value: Value) -> &mut Self {
        match self.keys.iter_mut().find(|(known, _)| known == key) {
            Some((_, old)) => *old = value,
            None => self.keys.push((key.to_owned(), value)),
        }
        self
    }

    pub fn tensor(&self, name: &str) -> Option<&Tensor> {
        self.tensors.iter().find(|t| t.name == name)
    }

    pub fn bytes(&self) -> Vec<u8> {
        let alignment = self.alignment() as usize;
        let mut out = b"GGUF".to_vec();
        out.extend(self.version.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.keys.len() as u64).to_le_bytes());
        for (key, value) in &self.keys {
            string(key.as_bytes(), &mut out);
            out.extend(value.id().to_le_bytes());
            value.write(&mut out);
        }
        let mut data = Vec::new();
        for t in &self.tensors {
            string(t.name.as_bytes(), &mut out);
            out.extend((t.dims.len() as u32).to_le_bytes());
            t.dims.iter().for_each(|d| out.extend(d.to_le_bytes()));
            out.extend(t.ty.to_le_bytes());
            out.extend((data.len() as u64).to_le_bytes());
            data.extend(&t.data);
            data.resize(data.len().next_multiple_of(alignment), 0);
        }
        out.resize(out.len().next_multiple_of(alignment), 0);
        out.extend(data);
        out
    }

    pub fn write(&self, path: &Path) {
        std::fs::write(path, self.bytes()).unwrap();
    }
}

/// A tensor of a safetensors file: dtype, shape (outermost first), bytes.
pub type StTensor = (String, Vec<u64>, Vec<u8>);

/// A safetensors file: tensors by name, in the order of the header.
#[derive(Clone, Debug, Default)]
pub struct St {
    pub metadata: Option<Json>,
    pub tensors: Vec<(String, StTensor)>,
}

impl St {
    pub fn read(path: &Path) -> Self {
        let bytes = std::fs::read(path).unwrap();
        let n = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let header: Map<String, Json> = serde_json::from_slice(&bytes[8..8 + n]).unwrap();
        let mut file = Self::default();
        for (name, entry) in header {
            if name == "__metadata__" {
                file.metadata = Some(entry);
                continue;
            }
            let number = |v: &Json| v.as_u64().unwrap();
            let at = |i: usize| 8 + n + number(&entry["data_offsets"][i]) as usize;
            let shape = entry["shape"].as_array().unwrap().iter().map(number).collect();
            let dtype = entry["dtype"].as_str().unwrap().to_owned();
            file.tensors.push((name, (dtype, shape, bytes[at(0)..at(1)].to_vec())));
        }
        file
    }

    pub fn get(&self, name: &str) -> Option<&StTensor> {
        self.tensors.iter().find(|(known, _)| known == name).map(|(_, t)| t)
    }

    pub fn get_mut(&mut self, name: &str) -> &mut StTensor {
        &mut self.tensors.iter_mut().find(|(known, _)| known == name).unwrap().1
    }

    pub fn set(&mut self, name: &str, dtype: &str, shape: &[u64], data: Vec<u8>) {
        let tensor = (dtype.to_owned(), shape.to_vec(), data);
        match self.tensors.iter_mut().find(|(known, _)| known == name) {
            Some((_, old)) => *old = tensor,
            None => self.tensors.push((name.to_owned(), tensor)),
        }
    }

    pub fn remove(&mut self, name: &str) {
        self.tensors.retain(|(known, _)| known != name);
    }

    pub fn write(&self, path: &Path) {
        let mut header = Map::new();
        header.extend(self.metadata.clone().map(|m| ("__metadata__".to_owned(), m)));
        let mut at = 0;
        for (name, (dtype, shape, data)) in &self.tensors {
            let end = at + data.len();
            let entry = json!({ "dtype": dtype, "shape": shape, "data_offsets": [at, end] });
            header.insert(name.clone(), entry);
            at = end;
        }
        let mut header = Json::Object(header).to_string().into_bytes();
        header.resize(header.len().next_multiple_of(8), b' ');
        let mut out = (header.len() as u64).to_le_bytes().to_vec();
        out.extend(header);
        self.tensors.iter().for_each(|(_, (_, _, data))| out.extend(data));
        std::fs::write(path, out).unwrap();
    }
}

/// A folder of its own for a test, with the program to run in it.
pub struct Bench {
    dir: tempfile::TempDir,
}

/// What the program said, with its exit code.
#[derive(Debug)]
pub struct Said {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Said {
    #[track_caller]
    pub fn ok(self) -> Self {
        assert_eq!(self.code, Some(0), "{self:#?}");
        self
    }

    /// Exit code 1 or 2, and every word in the error.
    #[track_caller]
    pub fn fails(self, words: &[&str]) -> Self {
        assert!(matches!(self.code, Some(1 | 2)), "{self:#?}");
        self.says(words)
    }

    /// Every word on standard error.
    #[track_caller]
    pub fn says(self, words: &[&str]) -> Self {
        for word in words {
            assert!(self.unfolded().contains(word), "no `{word}` in {self:#?}");
        }
        self
    }

    /// Standard error with each line of a plan on one line.
    pub fn unfolded(&self) -> String {
        self.stderr.replace("\n           ", " ")
    }

    /// Lines that begin with `warning:`.
    pub fn warnings(&self) -> Vec<&str> {
        self.stderr.lines().filter(|line| line.starts_with("warning:")).collect()
    }

    /// Standard output as JSON.
    #[track_caller]
    pub fn json(&self) -> Json {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:#?}"))
    }
}

impl Bench {
    pub fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Runs the program in the folder. A signal or a panic fails the test.
    #[track_caller]
    pub fn run(&self, args: &[&str]) -> Said {
        let Output { status, stdout, stderr } = Command::cargo_bin("requant")
            .unwrap()
            .args(args)
            .current_dir(self.dir())
            .env_remove("REQUANT_SIMD")
            .output()
            .unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        let said = Said { code: status.code(), stdout: text(stdout), stderr: text(stderr) };
        assert!(matches!(said.code, Some(0..=4)), "{args:?}: {said:#?}");
        said
    }

    /// A checkpoint of the fixtures (`tiny-r1`, `family/qwen2`, …) as a folder `name` of its own, whose
    /// files may be edited. Those without a tokenizer get that of tiny-r1.
    pub fn checkpoint(&self, fixture: &str, name: &str) -> Checkpoint {
        let from = Path::new(FIXTURES).join(fixture);
        let dir = self.path(name);
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir(&dir).unwrap();
        for from in [from.as_path(), Path::new(TINY_R1)] {
            for entry in std::fs::read_dir(from).unwrap() {
                let path = entry.unwrap().path();
                let file = path.file_name().unwrap().to_str().unwrap();
                let wanted = !from.ends_with("tiny-r1") || fixture == "tiny-r1";
                let to = dir.join(file);
                if (wanted || file.starts_with("tokenizer")) && path.is_file() && !to.exists() {
                    std::fs::write(&to, std::fs::read(&path).unwrap()).unwrap();
                }
            }
        }
        Checkpoint { dir }
    }

    /// The fixture in BF16 as the reference converter wrote it.
    pub fn bf16() -> Gguf {
        Gguf::read(Path::new(BF16))
    }
}

/// A checkpoint folder to edit.
pub struct Checkpoint {
    pub dir: PathBuf,
}

impl Checkpoint {
    pub fn path(&self, file: &str) -> PathBuf {
        self.dir.join(file)
    }

    /// Its name for the program, which runs in the folder above.
    pub fn name(&self) -> &str {
        self.dir.file_name().unwrap().to_str().unwrap()
    }

    pub fn json(&self, file: &str) -> Json {
        serde_json::from_slice(&std::fs::read(self.path(file)).unwrap()).unwrap()
    }

    pub fn write_json(&self, file: &str, json: &Json) {
        std::fs::write(self.path(file), json.to_string()).unwrap();
    }

    pub fn edit(&self, file: &str, edit: impl FnOnce(&mut Json)) -> &Self {
        let mut json = self.json(file);
        edit(&mut json);
        self.write_json(file, &json);
        self
    }

    /// Edits the tensors of a shard.
    pub fn edit_shard(&self, file: &str, edit: impl FnOnce(&mut St)) -> &Self {
        let path = self.path(file);
        let mut tensors = St::read(&path);
        edit(&mut tensors);
        tensors.write(&path);
        self
    }
}

/// A small generator of numbers (splitmix64), so that every test names its seed.
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `n`.
    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    pub fn chance(&mut self, one_in: u64) -> bool {
        self.below(one_in) == 0
    }

    pub fn pick<'a, T>(&mut self, list: &'a [T]) -> &'a T {
        &list[self.below(list.len() as u64) as usize]
    }

    pub fn bytes(&mut self, n: usize) -> Vec<u8> {
        (0..n).map(|_| self.next() as u8).collect()
    }
}

/// The value of an FP8 E4M3 byte.
pub fn e4m3(byte: u8) -> f32 {
    let (sign, e, m) = (byte >> 7, i32::from(byte >> 3 & 15), f32::from(byte & 7));
    let value = match e {
        0 => m / 8.0 * 2f32.powi(-6),
        _ => (1.0 + m / 8.0) * 2f32.powi(e - 7),
    };
    if sign == 1 { -value } else { value }
}

#[test]
fn what_is_written_is_read() {
    let bench = Bench::new();
    let mut file = Bench::bf16();
    let path = bench.path("a.gguf");
    file.set("general.alignment", Value::U32(8)).write(&path);
    assert!(Gguf::read(&path) == file);
    bench.run(&["inspect", "a.gguf"]).ok();
    let copy = bench.checkpoint("family/qwen2", "c");
    let before = St::read(&copy.path("model.safetensors")).tensors;
    copy.edit_shard("model.safetensors", |_| {});
    assert!(St::read(&copy.path("model.safetensors")).tensors == before);
}
