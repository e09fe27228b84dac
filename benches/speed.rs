//! The speed of each type's kernels alone, on one core: prints millions of weights per second for
//! encoding without and with importances and for decoding.
//!
//! ```text
//! cargo bench --bench speed                             at this machine's best level
//! cargo bench --bench speed -- avx2                     at another one
//! cargo bench --bench speed -- avx2 benches/speed.json  recorded for docs/formats.md
//! ```
//! On an otherwise idle machine. The weights lie in the core's own cache; the best of many runs counts.

use requant::quant::QuantType;
use requant::simd::Simd;
use serde_json::{Map, Value, json};
use std::hint::black_box;
use std::time::{Duration, Instant};

const ROW: usize = 2048;
const ROWS: usize = 8;

/// Of a quarter of a second's runs the best, in millions of weights per second.
fn speed(mut run: impl FnMut()) -> u64 {
    let (start, mut best) = (Instant::now(), Duration::MAX);
    while start.elapsed() < Duration::from_millis(250) {
        let at = Instant::now();
        run();
        best = best.min(at.elapsed());
    }
    ((ROW * ROWS) as f64 / best.as_secs_f64() / 1e6).round() as u64
}

fn main() {
    // Cargo adds an option of its own.
    let mut args = std::env::args().skip(1).filter(|arg| arg != "--bench");
    let simd = match args.next() {
        Some(level) => level.parse().unwrap_or_else(|error| panic!("{error}")),
        None => Simd::detect(),
    };
    // Sums of twelve uniform numbers, near enough to Gaussian ones.
    let mut state = 1u64;
    let mut uniform = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 24) as f32
    };
    let weights: Vec<f32> =
        (0..ROW * ROWS).map(|_| ((0..12).map(|_| uniform()).sum::<f32>() - 6.0) * 0.02).collect();
    let importances: Vec<f32> = (0..ROW).map(|_| uniform() + 0.01).collect();
    let mut figures = Map::new();
    for ty in QuantType::all() {
        let Some(row_bytes) = ty.row_bytes(ROW) else { continue };
        let mut bytes = vec![0; row_bytes * ROWS];
        let mut encode = |qw: Option<&[f32]>| {
            ty.encode_rows_with(simd, &weights, ROW, qw.into(), &mut bytes).ok()?;
            Some(speed(|| {
                let weights = black_box(&weights[..]);
                ty.encode_rows_with(simd, weights, ROW, qw.into(), &mut bytes).expect("as before");
            }))
        };
        let Some(weighted) = encode(Some(&importances)) else { continue };
        let plain = encode(None);
        let mut values = vec![0.0; weights.len()];
        let decode = speed(|| {
            ty.decode_rows_with(simd, black_box(&bytes), ROW, &mut values).expect("whole rows");
        });
        let shown = plain.map_or("-".to_owned(), |v| v.to_string());
        println!("{ty:8} {simd}  encode {shown:>6}  weighted {weighted:>6}  decode {decode:>6}");
        let figure = json!({ "encode": plain, "weighted": weighted, "decode": decode });
        figures.insert(ty.to_string(), figure);
    }
    if let Some(path) = args.next() {
        let text = serde_json::to_string_pretty(&Value::Object(figures)).expect("plain numbers");
        std::fs::write(&path, text + "\n").unwrap_or_else(|error| panic!("{path}: {error}"));
    }
}
