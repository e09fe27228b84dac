//! A tokenizer.json of any bytes, and text to tokens with it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use requant::tokenizer::{Tokenizer, Vocab};

fuzz_target!(|data: &[u8]| {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    std::fs::write(dir.path().join("tokenizer.json"), data).unwrap();
    let config = Default::default();
    if let Ok(vocab) = Vocab::from_checkpoint(dir.path(), &config, None) {
        if let Ok(tokenizer) = Tokenizer::from_vocab(&vocab) {
            let _ = tokenizer.encode("It was 1234 o'clock,\n  and naïve 漢字 rang.");
        }
    }
});
