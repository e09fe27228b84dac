//! A checkpoint whose config.json, index and shard are any bytes, cut out of the input at lines of
//! three dashes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use requant::model::{CheckpointModel, Mtp};
use requant::source::Source;

fuzz_target!(|data: &[u8]| {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let mut rest = data;
    for name in ["config.json", "model.safetensors.index.json", "model.safetensors"] {
        let cut = rest.windows(5).position(|w| w == b"\n---\n");
        let (part, after) = match cut {
            Some(at) => (&rest[..at], &rest[at + 5..]),
            None => (rest, &[][..]),
        };
        if !part.is_empty() {
            std::fs::write(dir.path().join(name), part).unwrap();
        }
        rest = after;
    }
    if let Ok(model) = CheckpointModel::open(dir.path(), Mtp::Keep) {
        for (i, meta) in model.tensors().iter().enumerate() {
            let n = meta.n_per_row() as usize;
            if meta.n_rows() > 0 && n < 1 << 20 {
                let _ = model.read_rows(i, 0, &mut vec![0.0; n]);
            }
        }
    }
});
