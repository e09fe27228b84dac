//! Round trips, and every attack on the reader that has a name.

use super::*;
use crate::io::{Disk, LocalDisk, part_path};
use crate::quant::QuantType;
use std::path::Path;

fn sample_metadata() -> Metadata {
    let mut metadata = Metadata::new();
    metadata.set("general.architecture", "test");
    metadata.set("u8", 1u8);
    metadata.set("i8", -1i8);
    metadata.set("u16", 2u16);
    metadata.set("i16", -2i16);
    metadata.set("u32", 3u32);
    metadata.set("i32", -3i32);
    metadata.set("f32", 0.5f32);
    metadata.set("bool", true);
    metadata.set("u64", 4u64);
    metadata.set("i64", -4i64);
    metadata.set("f64", f64::INFINITY);
    metadata.set("bools", vec![true, false]);
    metadata.set("numbers", vec![1i32, -2]);
    metadata.set("strings", ["a".to_owned(), String::new()].into_iter().collect::<Value>());
    metadata.set("cut", Value::String(b"caf\xc3".into()));
    metadata.set("empty", Vec::<f32>::new());
    metadata
}

fn sample_layout() -> Layout {
    let tensors = [
        ("a.weight", vec![32, 3, 1], QuantType::Q8_0),
        ("b.bias", vec![5], QuantType::F32),
        ("c.weight", vec![256, 2, 2], QuantType::Q4_K),
    ];
    let tensors = tensors.map(|(name, dims, ty)| (name.to_owned(), dims, ty));
    Layout::new(&sample_metadata(), tensors).unwrap()
}

/// A complete small file.
fn sample() -> Vec<u8> {
    let layout = sample_layout();
    let mut bytes = layout.header().to_vec();
    bytes.resize(layout.file_size() as usize, 7);
    bytes
}

fn open_bytes(bytes: &[u8]) -> Result<GgufFile, GgufError> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), bytes).unwrap();
    GgufFile::open(file.path())
}

/// A header with one key and one tensor, each as given.
fn crafted(key: &[u8], tensor: &[u8], data: usize) -> Vec<u8> {
    let mut bytes = b"GGUF".to_vec();
    bytes.extend(3u32.to_le_bytes());
    bytes.extend(u64::from(!tensor.is_empty()).to_le_bytes());
    bytes.extend(u64::from(!key.is_empty()).to_le_bytes());
    bytes.extend(key);
    bytes.extend(tensor);
    bytes.resize(bytes.len().next_multiple_of(32), 0);
    bytes.resize(bytes.len() + data, 0);
    bytes
}

fn key(name: &str, id: u32, value: &[u8]) -> Vec<u8> {
    let mut bytes = (name.len() as u64).to_le_bytes().to_vec();
    bytes.extend(name.as_bytes());
    bytes.extend(id.to_le_bytes());
    bytes.extend(value);
    bytes
}

fn tensor(name: &str, dims: &[u64], id: u32, offset: u64) -> Vec<u8> {
    let mut bytes = (name.len() as u64).to_le_bytes().to_vec();
    bytes.extend(name.as_bytes());
    bytes.extend((dims.len() as u32).to_le_bytes());
    dims.iter().for_each(|d| bytes.extend(d.to_le_bytes()));
    bytes.extend(id.to_le_bytes());
    bytes.extend(offset.to_le_bytes());
    bytes
}

#[track_caller]
fn refused(bytes: &[u8], because: &str) {
    let error = open_bytes(bytes).expect_err(because).to_string();
    assert!(error.contains(because), "`{error}` does not say `{because}`");
}

#[test]
fn what_is_written_is_read_back() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("out.gguf");
    let layout = sample_layout();
    let writer = Writer::open(&LocalDisk, &path, &layout).unwrap();
    for i in (0..layout.n_tensors()).rev() {
        let half = layout.n_bytes(i) / 2;
        writer.write_at(i, half, &vec![i as u8 + 1; (layout.n_bytes(i) - half) as usize]).unwrap();
        writer.write_at(i, 0, &vec![i as u8 + 1; half as usize]).unwrap();
    }
    assert!(!path.exists(), "the name is taken only when the file is complete");
    let mut half = [0; 8];
    writer.read_at(0, 4, &mut half).unwrap();
    assert_eq!(half, [1; 8]);
    writer.sync().unwrap();
    LocalDisk.rename(&part_path(&path), &path).unwrap();
    let file = GgufFile::open(&path).unwrap();
    assert_eq!(file.metadata(), &sample_metadata());
    assert_eq!(file.file_size(), layout.file_size());
    assert_eq!(file.tensors()[0].dims, [32, 3], "trailing dimensions of 1 are left out");
    for i in 0..file.tensors().len() {
        assert_eq!(file.data_offset() + file.tensors()[i].offset, layout.offset(i));
        assert!(file.tensor_data(i).iter().all(|&b| b == i as u8 + 1));
    }
    assert_eq!(file.find("c.weight"), Some(2));
}

#[test]
fn names_that_cannot_become_an_output_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("out.gguf");
    assert!(Writer::check(&path, false).is_ok());
    std::fs::write(&path, "mine").unwrap();
    assert!(matches!(Writer::check(&path, false), Err(GgufError::Exists { .. })));
    assert!(Writer::check(&path, true).is_ok());
    assert!(Writer::check(dir.path(), true).is_err());
    assert!(Writer::check(&dir.path().join("none/out.gguf"), true).is_err());
}

/// The files of a model in three parts, two tensors of which are in the last two.
fn parts(dir: &Path, keys: impl Fn(u16) -> Split) -> Vec<std::path::PathBuf> {
    let write = |no: u16| {
        let mut metadata = if no == 0 { sample_metadata() } else { Metadata::new() };
        keys(no).write(&mut metadata);
        let tensor = (no > 0).then(|| (format!("{no}.weight"), vec![32, 1], QuantType::Q8_0));
        let layout = Layout::new(&metadata, tensor).unwrap();
        let mut bytes = layout.header().to_vec();
        bytes.resize(layout.file_size() as usize, 7);
        let path = split_path(&dir.join("m.gguf"), no.into(), 3);
        std::fs::write(&path, bytes).unwrap();
        path
    };
    (0..3).map(write).collect()
}

#[test]
fn a_split_model_is_opened_by_its_first_file() {
    let dir = tempfile::tempdir().unwrap();
    let good = |no| Split { no, count: 3, n_tensors: 2 };
    let paths = parts(dir.path(), good);
    assert!(paths[2].ends_with("m-00003-of-00003.gguf"));
    let files = open_all(&paths[0]).unwrap();
    assert_eq!(files.len(), 3);
    assert_eq!(files[2].tensors()[0].name, "2.weight");

    let refused = |path: &Path, because: &str| {
        let error = open_all(path).expect_err(because).to_string();
        assert!(error.contains(because), "`{error}` does not say `{because}`");
    };
    refused(&paths[1], "m-00001-of-00003.gguf");
    let renamed = dir.path().join("renamed.gguf");
    std::fs::copy(&paths[0], &renamed).unwrap();
    refused(&renamed, "-00001-of-00003.gguf");
    std::fs::copy(&paths[2], &paths[1]).unwrap();
    refused(&paths[0], "not those of this model");
    std::fs::remove_file(&paths[1]).unwrap();
    refused(&paths[0], "missing");
    parts(dir.path(), |no| Split { n_tensors: 3, ..good(no) });
    refused(&paths[0], "announces 3 tensors, its parts hold 2");
}

#[test]
fn the_reference_converters_header_is_laid_out_alike() {
    let path = Path::new("tests/fixtures/reference/tiny-r1-bf16.gguf");
    let file = GgufFile::open(path).unwrap();
    assert_eq!(file.tensors().len(), 52);
    assert_eq!(file.metadata().str("general.name").unwrap(), Some("Tiny R1"));
    let tensors = file.tensors().iter().map(|t| (t.name.clone(), t.dims.clone(), t.ty));
    let layout = Layout::new(file.metadata(), tensors).unwrap();
    let bytes = std::fs::read(path).unwrap();
    assert!(bytes.starts_with(layout.header()));
    assert_eq!(bytes.len() as u64, layout.file_size());
}

#[test]
fn truncation_anywhere_is_an_error() {
    let bytes = sample();
    assert!(open_bytes(&bytes).is_ok());
    let data_end = sample_layout().offset(2) + sample_layout().n_bytes(2);
    for length in 0..data_end as usize {
        assert!(open_bytes(&bytes[..length]).is_err(), "{length} bytes were accepted");
    }
}

#[test]
fn absurd_lengths_are_refused_without_allocating() {
    let huge = u64::MAX.to_le_bytes();
    for at in [8, 16] {
        let mut bytes = sample();
        bytes[at..at + 8].copy_from_slice(&huge);
        refused(&bytes, "ends inside");
    }
    refused(&crafted(&key("s", 8, &huge), &[], 0), "metadata key `s`");
    for element in [0u32, 5, 8, 12] {
        let mut array = element.to_le_bytes().to_vec();
        array.extend(huge);
        refused(&crafted(&key("a", 9, &array), &[], 64), "metadata key `a`");
    }
}

#[test]
fn keys_that_break_the_format_are_named() {
    let mut nested = 9u32.to_le_bytes().to_vec();
    nested.extend(0u64.to_le_bytes());
    refused(&crafted(&key("n", 9, &nested), &[], 0), "`n`: is an array of arrays");
    refused(&crafted(&key("t", 13, &[0; 8]), &[], 0), "`t`: has the unknown type id 13");
    refused(&crafted(&key("", 0, &[0]), &[], 0), "key 0 is empty");
    for bad in [0u32, 3] {
        let alignment = key("general.alignment", 4, &bad.to_le_bytes());
        refused(&crafted(&alignment, &[], 0), "power of two");
    }
    let mut twice = crafted(&[key("k", 0, &[0]), key("k", 0, &[0])].concat(), &[], 0);
    twice[16] = 2;
    refused(&twice, "`k`: stands twice");
}

#[test]
fn tensors_that_break_the_format_are_named() {
    let with = |t: Vec<u8>| crafted(&[], &t, 1024);
    assert!(open_bytes(&with(tensor("ok", &[32, 2], 8, 0))).is_ok());
    refused(&with(tensor("t", &[33], 8, 0)), "rows of 33");
    refused(&with(tensor("t", &[1 << 40, 1 << 40], 0, 0)), "overflow");
    refused(&with(tensor("t", &[1 << 62], 0, 0)), "overflow");
    refused(&with(tensor("t", &[0, 1 << 56, 1 << 30], 0, 0)), "overflow");
    refused(&with(tensor("t", &[1; 5], 0, 0)), "5 dimensions");
    refused(&with(tensor("t", &[8], 0, 32)), "offset 32, expected 0");
    refused(&with(tensor("t", &[8], 0, u64::MAX - 3)), "expected 0");
    refused(&with(tensor("t", &[1 << 20], 0, 0)), "past the end of the file");
    refused(&with(tensor(&"n".repeat(64), &[8], 0, 0)), "64 bytes");
    for (second, because) in [("a", "stands twice"), ("b", "offset 0, expected 32")] {
        let both = [tensor("a", &[8], 0, 0), tensor(second, &[8], 0, 0)].concat();
        let mut bytes = with(both);
        bytes[8] = 2;
        refused(&bytes, because);
    }
}

#[test]
fn tensors_of_unknown_types_reach_to_the_next() {
    let both = [tensor("a", &[8], 139, 0), tensor("b", &[8, 3], 4, 64), tensor("c", &[8], 0, 96)];
    let mut bytes = crafted(&[], &both.concat(), 128);
    bytes[8] = 3;
    let file = open_bytes(&bytes).unwrap();
    let sizes: Vec<u64> = file.tensors().iter().map(TensorInfo::n_bytes).collect();
    assert_eq!(sizes, [64, 32, 32]);
    assert_eq!(file.tensors()[1].ty.to_string(), "type 4");
    for last in [90, 32] {
        let both =
            [tensor("a", &[8], 139, 0), tensor("b", &[8], 139, 64), tensor("c", &[8], 0, last)];
        let mut bytes = crafted(&[], &both.concat(), 128);
        bytes[8] = 3;
        refused(&bytes, "`c`: its data is at offset");
    }
    // At the end of the file, what is there.
    let one = crafted(&[], &tensor("a", &[1 << 40], 139, 0), 77);
    assert_eq!(open_bytes(&one).unwrap().tensors()[0].n_bytes(), 77);
}

#[test]
fn the_alignment_of_the_metadata_is_that_of_the_layout() {
    for alignment in [1u32, 8, 64, 4096, 1 << 20] {
        let mut metadata = sample_metadata();
        metadata.set("general.alignment", alignment);
        let tensors = [("a", vec![], 0), ("b", vec![3, 1, 1, 1], 32), ("c", vec![0, 7], 64)];
        let tensors = tensors.map(|(name, dims, _)| (name.to_owned(), dims, QuantType::F32));
        let layout = Layout::new(&metadata, tensors).unwrap();
        let mut bytes = layout.header().to_vec();
        bytes.resize(layout.file_size() as usize, 7);
        let file = open_bytes(&bytes).unwrap();
        assert_eq!(file.alignment(), u64::from(alignment));
        for i in 0..3 {
            assert_eq!(file.tensor_range(i).start as u64, layout.offset(i));
            assert_eq!(layout.offset(i) % u64::from(alignment), 0);
        }
    }
    let mut metadata = Metadata::new();
    for wrong in [Value::U32(24), Value::U32(0), Value::U64(32), Value::from("32")] {
        metadata.set("general.alignment", wrong);
        let none: [(String, Vec<u64>, QuantType); 0] = [];
        let error = Layout::new(&metadata, none).unwrap_err().to_string();
        assert!(error.contains("`general.alignment`") && error.contains("power of two"), "{error}");
    }
}

#[test]
fn other_files_and_versions_are_told_apart() {
    refused(b"PK\x03\x04 a zip archive of some length", "not a GGUF file, but a zip archive");
    refused(b"", "not a GGUF file, but an empty file");
    for (version, because) in [(1u32, "obsolete"), (4, "newer"), (3u32.swap_bytes(), "big-endian")]
    {
        let mut bytes = sample();
        bytes[4..8].copy_from_slice(&version.to_le_bytes());
        refused(&bytes, because);
    }
}

#[test]
fn layouts_that_cannot_be_stored_are_refused() {
    let layout = |name: &str, dims: &[u64], ty| {
        Layout::new(&Metadata::new(), [(name.to_owned(), dims.to_vec(), ty)])
    };
    assert!(layout("t", &[33], QuantType::Q8_0).is_err());
    assert!(layout("t", &[1 << 40, 1 << 40], QuantType::F32).is_err());
    assert!(layout("t", &[2; 5], QuantType::F32).is_err());
    assert!(layout(&"n".repeat(64), &[2], QuantType::F32).is_err());
}
