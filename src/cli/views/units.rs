//! Numbers as people read them.

use crate::gguf::{Array, Value};

/// Bytes with a binary unit: `18.4 MiB`.
pub fn bytes(n: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if n < 1024 {
        return format!("{n} B");
    }
    let mut value = n as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// `1 file`, `3 files`.
pub fn of(n: usize, what: &str) -> String {
    let s = if n == 1 { "" } else { "s" };
    format!("{n} {what}{s}")
}

/// A count with a decimal unit: `671.0 B`.
pub fn count(n: f64) -> String {
    const UNITS: [&str; 5] = ["", " K", " M", " B", " T"];
    let mut value = n;
    let mut unit = 0;
    while value >= 999.95 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    if unit == 0 { format!("{value:.0}") } else { format!("{value:.1}{}", UNITS[unit]) }
}

/// A metadata value in short: arrays and long strings by their beginnings.
pub fn value(value: &Value) -> String {
    const SHOWN: usize = 60;
    let shown = match value {
        Value::String(text) => format!("{text:?}"),
        Value::Array(array) => {
            let elements = match array {
                Array::String(list) => list.iter().take(3).map(|s| format!("{s:?}")).collect(),
                Array::I32(list) => list.iter().take(8).map(i32::to_string).collect(),
                Array::U32(list) => list.iter().take(8).map(u32::to_string).collect(),
                Array::F32(list) => list.iter().take(8).map(f32::to_string).collect(),
                _ => Vec::new(),
            };
            return format!("[{}, … {} in all]", elements.join(", "), array.len());
        }
        Value::U8(n) => n.to_string(),
        Value::I8(n) => n.to_string(),
        Value::U16(n) => n.to_string(),
        Value::I16(n) => n.to_string(),
        Value::U32(n) => n.to_string(),
        Value::I32(n) => n.to_string(),
        Value::F32(x) => x.to_string(),
        Value::Bool(flag) => flag.is_on().to_string(),
        Value::U64(n) => n.to_string(),
        Value::I64(n) => n.to_string(),
        Value::F64(x) => x.to_string(),
    };
    match shown.char_indices().nth(SHOWN) {
        Some((at, _)) => format!("{}…", &shown[..at]),
        None => shown,
    }
}

/// `3 min 20 s`.
pub fn duration(seconds: f64) -> String {
    let s = seconds.ceil() as u64;
    match (s / 3600, s / 60 % 60, s % 60) {
        (0, 0, s) => format!("{s} s"),
        (0, m, s) => format!("{m} min {s} s"),
        (h, m, _) => format!("{h} h {m} min"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_counts_round_to_the_next_unit() {
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1024), "1.0 KiB");
        assert_eq!(bytes((1 << 20) - 1), "1.0 MiB");
        assert_eq!(bytes(u64::MAX), "16384.0 PiB");
        assert_eq!(count(999.0), "999");
        assert_eq!(count(671_026_419_200.0), "671.0 B");
    }
}
