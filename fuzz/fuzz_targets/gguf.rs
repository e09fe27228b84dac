//! A GGUF file of any bytes: opened, described as a model, text to tokens with its vocabulary, a
//! row decoded.
#![no_main]

use libfuzzer_sys::fuzz_target;
use requant::model::{Model, Mtp};
use requant::source::{GgufSource, Source};
use requant::tokenizer::Tokenizer;

fuzz_target!(|data: &[u8]| {
    let file = tempfile::NamedTempFile::new_in("/dev/shm").unwrap();
    std::fs::write(file.path(), data).unwrap();
    if let Ok(source) = GgufSource::open(file.path()) {
        if let Ok(tokenizer) = Tokenizer::from_metadata(source.metadata()) {
            let _ = tokenizer.encode("It was 1234 o'clock,\n  and naïve 漢字 rang.");
        }
        for (i, meta) in source.tensors().iter().enumerate() {
            let n = meta.n_per_row() as usize;
            if meta.n_rows() > 0 && n < 1 << 20 {
                let _ = source.read_rows(i, 0, &mut vec![0.0; n]);
            }
        }
    }
    if let Ok(model) = Model::open(file.path(), Mtp::Drop) {
        let _ = requant::eval::Model::new(model.hparams(), model.source());
    }
});
