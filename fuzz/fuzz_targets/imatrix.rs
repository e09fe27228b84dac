//! An importance matrix of any bytes, in either format.
#![no_main]

use libfuzzer_sys::fuzz_target;
use requant::imatrix::{Imatrix, Sums, Unrouted};

fuzz_target!(|data: &[u8]| {
    let file = tempfile::NamedTempFile::new_in("/dev/shm").unwrap();
    std::fs::write(file.path(), data).unwrap();
    let _ = Imatrix::open_with(file.path(), Unrouted::Shared);
    if let Ok(sums) = Sums::open(file.path(), 512) {
        let _ = sums.unreached();
        let _ = sums.means();
    }
});
