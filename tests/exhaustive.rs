//! Decoding, over the whole of every domain that is finite: each code with each scale byte, each bit
//! pattern of a half float. The decoders here are the format's words and nothing else; they share no
//! code with the crate.

use requant::quant::{Guide, QuantType};

/// A half float's value, from its fields.
fn half(bits: u16) -> f32 {
    let (sign, e, m) = (bits >> 15, i32::from(bits >> 10 & 31), f32::from(bits & 1023));
    let value = match e {
        31 if m == 0.0 => f32::INFINITY,
        31 => f32::NAN,
        0 => m / 1024.0 * 2f32.powi(-14),
        _ => (1.0 + m / 1024.0) * 2f32.powi(e - 15),
    };
    if sign == 1 { -value } else { value }
}

/// Bits `at..at + n` of a byte.
fn bits(byte: u8, at: u32, n: u32) -> u8 {
    byte >> at & ((1 << n) - 1)
}

fn f16_at(block: &[u8], at: usize) -> f32 {
    half(u16::from_le_bytes([block[at], block[at + 1]]))
}

/// Decodes blocks and compares every value, as bits unless it is no number.
#[track_caller]
fn same(ty: QuantType, bytes: &[u8], expected: impl Fn(&[u8], usize) -> f32) {
    let (len, size) = (ty.block_len(), ty.block_bytes());
    let mut found = vec![0f32; bytes.len() / size * len];
    ty.decode_rows(bytes, len, &mut found).unwrap();
    for (block, values) in bytes.chunks_exact(size).zip(found.chunks_exact(len)) {
        for (i, &value) in values.iter().enumerate() {
            let expected = expected(block, i);
            let equal =
                value.to_bits() == expected.to_bits() || value.is_nan() && expected.is_nan();
            assert!(equal, "{ty} element {i} of {block:02x?}: {value:e}, expected {expected:e}");
        }
    }
}

/// Codes of a block for which every value of a byte stands at some place.
fn all_codes(n: usize, from: usize) -> impl Iterator<Item = u8> {
    // An odd step passes every byte, and no two places of a block hold the same by design.
    (0..n).map(move |i| ((from * n + i) * 91) as u8)
}

#[test]
fn half_floats() {
    let all: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
    same(QuantType::F16, &all, |b, _| f16_at(b, 0));
    let bf16 = |b: &[u8], _| f32::from_bits(u32::from(u16::from_le_bytes([b[0], b[1]])) << 16);
    same(QuantType::BF16, &all, bf16);
}

#[test]
fn every_scale_of_the_legacy_types_with_every_code() {
    // Scale, and for some a minimum behind it, over all half floats; the other at a few values.
    let pairs = (0..=u16::MAX).flat_map(|d| [(d, 0x2e66u16), (0x2e66, d), (d, d.rotate_left(5))]);
    let build = |codes: usize, minimum: bool| -> Vec<u8> {
        let mut out = Vec::new();
        for (i, (d, m)) in pairs.clone().enumerate() {
            out.extend(d.to_le_bytes());
            if minimum {
                out.extend(m.to_le_bytes());
            }
            out.extend(all_codes(codes, i));
        }
        out
    };
    let nibble = |q: &[u8], i: usize| bits(q[i % 16], 4 * (i / 16) as u32, 4);
    let fifth = |h: &[u8], i: usize| bits(h[i / 8], (i % 8) as u32, 1) << 4;
    same(QuantType::Q4_0, &build(16, false), |b, i| {
        (f32::from(nibble(&b[2..], i)) - 8.0) * f16_at(b, 0)
    });
    same(QuantType::Q4_1, &build(16, true), |b, i| {
        f32::from(nibble(&b[4..], i)) * f16_at(b, 0) + f16_at(b, 2)
    });
    same(QuantType::Q5_0, &build(20, false), |b, i| {
        (f32::from(nibble(&b[6..], i) | fifth(&b[2..], i)) - 16.0) * f16_at(b, 0)
    });
    same(QuantType::Q5_1, &build(20, true), |b, i| {
        f32::from(nibble(&b[8..], i) | fifth(&b[4..], i)) * f16_at(b, 0) + f16_at(b, 2)
    });
    same(QuantType::Q8_0, &build(32, false), |b, i| f32::from(b[2 + i] as i8) * f16_at(b, 0));
    const VALUES: [i8; 16] =
        [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];
    same(QuantType::IQ4_NL, &build(16, false), |b, i| {
        f16_at(b, 0) * f32::from(VALUES[usize::from(nibble(&b[2..], i))])
    });
}

/// Twice the value of an E2M1 code.
fn e2m1(code: u8) -> f32 {
    let (e, m) = (bits(code, 1, 2), f32::from(bits(code, 0, 1)));
    let value = if e == 0 { m } else { (2.0 + m) * 2f32.powi(i32::from(e) - 1) };
    // The table has no negative zero.
    if code > 8 { -value } else { value }
}

#[test]
fn every_scale_byte_of_fp4_with_every_code() {
    let scales = (0..=u8::MAX).flat_map(|e| (0..4).map(move |i| (e, i)));
    let mx: Vec<u8> =
        scales.clone().flat_map(|(e, i)| std::iter::once(e).chain(all_codes(16, i))).collect();
    same(QuantType::MXFP4, &mx, |b, i| {
        e2m1(bits(b[1 + i % 16], 4 * (i / 16) as u32, 4)) * 2f64.powi(i32::from(b[0]) - 128) as f32
    });
    let nv: Vec<u8> = scales
        .flat_map(|(e, i)| [e, !e, e.rotate_left(1), e ^ 0x55].into_iter().chain(all_codes(32, i)))
        .collect();
    same(QuantType::NVFP4, &nv, |b, i| {
        let (group, j) = (i / 16, i % 16);
        let (e, m) = (bits(b[group], 3, 4), f32::from(bits(b[group], 0, 3)));
        let scale = match (e, b[group]) {
            (_, 127) => 0.0,
            (0, _) => m / 8.0 * 2f32.powi(-6),
            _ => (1.0 + m / 8.0) * 2f32.powi(i32::from(e) - 7),
        };
        e2m1(bits(b[4 + 8 * group + j % 8], 4 * (j / 8) as u32, 4)) * (scale / 2.0)
    });
}

/// Halves that super-blocks are scaled with: ordinary, tiny, negative, large.
const HALVES: [u16; 6] = [0x2e66, 0x0001, 0x8401, 0xb555, 0x7bff, 0x0000];

/// Blocks with every pair of bytes among `scales` ones of scales somewhere, under each of the halves.
fn super_blocks(
    before: usize,
    scales: usize,
    behind: usize,
    halves: usize,
    first: bool,
) -> Vec<u8> {
    let mut out = Vec::new();
    for (h, &half) in HALVES.iter().enumerate() {
        for i in 0..256usize {
            let pair: Vec<u8> = [half, HALVES[(h + 1) % 6]][..halves]
                .iter()
                .flat_map(|h| h.to_le_bytes())
                .collect();
            if first {
                out.extend(&pair);
            }
            out.extend(all_codes(before, i));
            // Steps that are odd and differ by place: over 256 blocks each place holds every byte.
            out.extend((0..scales).map(|j| (i * (2 * j + 1) + 37 * j) as u8));
            out.extend(all_codes(behind, i + 1));
            if !first {
                out.extend(&pair);
            }
        }
    }
    out
}

/// Scale and minimum of a group of Q4_K and Q5_K, by the diagram in `quant/k_min.rs`.
fn six_bits(b: &[u8], j: usize) -> (f32, f32) {
    let (s, m) = match j {
        0..4 => (bits(b[j], 0, 6), bits(b[j + 4], 0, 6)),
        _ => (
            bits(b[j + 4], 0, 4) | bits(b[j - 4], 6, 2) << 4,
            bits(b[j + 4], 4, 4) | bits(b[j], 6, 2) << 4,
        ),
    };
    (f32::from(s), f32::from(m))
}

#[test]
fn every_scale_of_the_super_blocks_with_every_code() {
    let scaled = |d: f32, s: f32, q: f32, dmin: f32, m: f32| (d * s) * q - dmin * m;
    same(QuantType::Q4_K, &super_blocks(0, 12, 128, 2, true), |b, i| {
        let (s, m) = six_bits(&b[4..16], i / 32);
        let q = bits(b[16 + 32 * (i / 64) + i % 32], 4 * (i / 32 % 2) as u32, 4);
        scaled(f16_at(b, 0), s, q.into(), f16_at(b, 2), m)
    });
    same(QuantType::Q5_K, &super_blocks(0, 12, 160, 2, true), |b, i| {
        let (s, m) = six_bits(&b[4..16], i / 32);
        let low = bits(b[48 + 32 * (i / 64) + i % 32], 4 * (i / 32 % 2) as u32, 4);
        let q = low | bits(b[16 + i % 32], (i / 32) as u32, 1) << 4;
        scaled(f16_at(b, 0), s, q.into(), f16_at(b, 2), m)
    });
    same(QuantType::Q2_K, &super_blocks(0, 16, 64, 2, false), |b, i| {
        let (s, m) = (bits(b[i / 16], 0, 4), bits(b[i / 16], 4, 4));
        let q = bits(b[16 + 32 * (i / 128) + i % 32], 2 * (i / 32 % 4) as u32, 2);
        scaled(f16_at(b, 80), s.into(), q.into(), f16_at(b, 82), m.into())
    });
    same(QuantType::Q3_K, &super_blocks(96, 12, 0, 1, false), |b, i| {
        let (j, s) = (i / 16, &b[96..108]);
        let low = bits(s[j % 8], 4 * (j / 8) as u32, 4);
        let scale = low | bits(s[8 + j % 4], 2 * (j / 4) as u32, 2) << 4;
        let q = bits(b[32 + 32 * (i / 128) + i % 32], 2 * (i / 32 % 4) as u32, 2)
            | bits(b[i % 32], (i / 32) as u32, 1) << 2;
        (f16_at(b, 108) * (f32::from(scale) - 32.0)) * (f32::from(q) - 4.0)
    });
    same(QuantType::Q6_K, &super_blocks(192, 16, 0, 1, false), |b, i| {
        let (h, l) = (i / 128, i % 128);
        let low = bits(b[64 * h + l % 64], 4 * (l / 64) as u32, 4);
        let q = low | bits(b[128 + 32 * h + l % 32], 2 * (l / 32) as u32, 2) << 4;
        (f16_at(b, 208) * f32::from(b[192 + i / 16] as i8)) * (f32::from(q) - 32.0)
    });
}

/// What every group decodes to follows from its own bytes: with a pattern of a prime period, two
/// groups, blocks or rows that changed places would not both be near what was encoded.
#[test]
fn nothing_changes_places() {
    const ROW: usize = 1024;
    let x: Vec<f32> = (0..8 * ROW)
        .map(|i| ((i * 37 % 251) as f32 - 125.0) / 40.0 * (1.0 + (i / 32 % 13) as f32))
        .collect();
    let rms = |of: &dyn Fn(usize) -> f32| -> f64 {
        let squares = (0..x.len()).map(|i| f64::from(of(i)).powi(2));
        (squares.sum::<f64>() / x.len() as f64).sqrt()
    };
    let mut seen = 0;
    for ty in QuantType::all() {
        let Some(bytes) = ty.row_bytes(ROW) else { continue };
        let (mut out, mut y) = (vec![0; 8 * bytes], vec![0f32; x.len()]);
        let importance = [1.0; ROW];
        let encoded = ty
            .encode_rows(&x, ROW, Guide::Plain, &mut out)
            .or_else(|_| ty.encode_rows(&x, ROW, Guide::Columns(&importance), &mut out));
        if encoded.is_err() {
            continue;
        }
        ty.decode_rows(&out, ROW, &mut y).unwrap();
        let bits = ty.bits_per_weight();
        // The error of so many bits, with room for types that share a scale among many or have three
        // values.
        let limit = 3.0 * 2f64.powf(-bits).max(0.002);
        let found = rms(&|i| x[i] - y[i]) / rms(&|i| x[i]);
        assert!(found < limit.min(0.75), "{ty}: {found} of {limit}");
        // And every group by itself keeps the order of magnitude of its own scale.
        for (i, (x, y)) in x.chunks(256).zip(y.chunks(256)).enumerate() {
            let norm = |v: &[f32]| v.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
            let ratio = norm(y) / norm(x);
            assert!((0.5..1.6).contains(&ratio), "{ty}, super-block {i}: {ratio}");
        }
        seen += 1;
    }
    assert!(seen >= 28, "{seen} types");
}
