//! Reads files that requant wrote with an independent GGUF implementation, the `gguf-rs` crate.
//!
//! It stands apart from the package's own tests because `gguf-rs` turns on a feature of
//! `serde_json` (`arbitrary_precision`) for everything that is built with it. The tests below are
//! all there is.

#[cfg(test)]
mod tests {
    use gguf_rs::{ByteOrder, FILE_MAGIC_GGUF_LE, GGUFContainer};
    use requant::convert::{Plan, RunOptions, Settings};
    use requant::gguf::{Array, GgufFile, Value};
    use requant::model::{CheckpointModel, Mtp};
    use requant::quant::QuantType;
    use requant::recipe::FileType;
    use std::io::{BufReader, Read};
    use std::path::Path;

    /// A value as `gguf-rs` shows it.
    fn json(value: &Value) -> serde_json::Value {
        match value {
            Value::U32(n) => (*n).into(),
            Value::F32(x) => serde_json::json!(x),
            Value::Bool(flag) => flag.is_on().into(),
            Value::String(s) => s.to_string().into(),
            Value::Array(Array::String(list)) => list.iter().map(|s| s.to_string()).collect(),
            Value::Array(Array::I32(list)) => list.iter().copied().collect(),
            other => panic!("a type that the converter does not write: {other:?}"),
        }
    }

    #[test]
    fn an_independent_reader_sees_the_same_file() {
        let dir = tempfile::tempdir().unwrap();
        let model = CheckpointModel::open(Path::new("../fixtures/tiny-r1"), Mtp::Drop).unwrap();
        for file_type in [FileType::BF16, FileType::Q8_0, FileType::Q4_K_M] {
            let settings = Settings { threads: 2, check: true, ..Settings::new(file_type) };
            let path = dir.path().join(file_type.to_string());
            let plan = Plan::of_checkpoint(&model, &settings).unwrap();
            plan.run(&model, &path, RunOptions::default(), &()).unwrap();

            let ours = GgufFile::open(&path).unwrap();
            let mut file = BufReader::new(std::fs::File::open(&path).unwrap());
            // The container expects the magic number to have been read.
            let mut magic = [0; 4];
            file.read_exact(&mut magic).unwrap();
            assert_eq!(i32::from_le_bytes(magic), FILE_MAGIC_GGUF_LE);
            let mut container = GGUFContainer::new(ByteOrder::LE, Box::new(file), u64::MAX);
            let theirs = container.decode().unwrap();

            assert_eq!(theirs.metadata().len(), ours.metadata().len());
            for (key, value) in ours.metadata().iter() {
                assert_eq!(theirs.metadata()[key], json(value), "{key}");
            }
            assert_eq!(theirs.tensors().len(), ours.tensors().len());
            for (theirs, ours) in theirs.tensors().iter().zip(ours.tensors()) {
                assert_eq!(theirs.name, ours.name);
                assert_eq!(theirs.kind, ours.ty.id());
                assert_eq!(theirs.offset, ours.offset);
                let n = ours.dims.len();
                assert_eq!(theirs.shape[..n], ours.dims);
                assert!(theirs.shape[n..].iter().all(|&d| d == 1));
                // Its block size of BF16 is wrong.
                if ours.ty != QuantType::BF16 {
                    assert_eq!(theirs.size, ours.n_bytes(), "{}", ours.name);
                }
            }
        }
    }
}
