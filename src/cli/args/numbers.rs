//! Numbers as people write them.

use std::time::Duration;

/// `40G`, `40GB` and `40GiB`; what has no unit of its own is decimal, as llama-gguf-split counts.
pub fn decimal_size(text: &str) -> Result<u64, String> {
    size(text, 1000)
}

/// As [`decimal_size`], and what has no unit of its own is binary, as memory is counted.
pub fn binary_size(text: &str) -> Result<u64, String> {
    size(text, 1024)
}

/// Units are powers of `base`, those of `40GiB` of 1024, those of `40GB` of 1000.
fn size(text: &str, base: u64) -> Result<u64, String> {
    let example = "write for example 40G, 40GiB or 512M";
    let text = text.replace(' ', "");
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = text[digits.len()..].to_ascii_uppercase();
    let (unit, base) = match (unit.strip_suffix("IB"), unit.strip_suffix('B')) {
        (Some(unit), _) => (unit, 1024),
        (None, Some(unit)) => (unit, if unit.is_empty() { base } else { 1000 }),
        (None, None) => (&*unit, base),
    };
    let power = match unit {
        "" => 0,
        "K" => 1,
        "M" => 2,
        "G" => 3,
        "T" => 4,
        unit => return Err(format!("unknown unit `{unit}`; {example}")),
    };
    let not_a_size = || format!("not a size; {example}");
    let unit: u64 = base.pow(power);
    let bytes = match digits.parse::<u64>() {
        Ok(n) => n.checked_mul(unit),
        Err(_) => {
            let n: f64 = digits.parse().map_err(|_| not_a_size())?;
            Some((n * unit as f64) as u64).filter(|_| n.is_finite() && n * (unit as f64) < 1e18)
        }
    };
    bytes.filter(|&bytes| bytes > 0).ok_or_else(not_a_size)
}

/// A share of a whole, more than none: `5%` or `0.05`.
pub fn share(text: &str) -> Result<f64, String> {
    let (number, unit) = match text.strip_suffix('%') {
        Some(percent) => (percent, 100.0),
        None => (text, 1.0),
    };
    let number: Option<f64> = number.trim().parse().ok();
    match number {
        Some(n) if n > 0.0 && n <= unit => Ok(n / unit),
        Some(n) if n > 1.0 && n <= 100.0 => {
            Err(format!("more than everything; write {n}% or {}", n / 100.0))
        }
        _ => Err("not a share; write for example 5% or 0.05".to_owned()),
    }
}

/// A share less than everything.
pub fn part(text: &str) -> Result<f64, String> {
    let share = share(text)?;
    (share < 1.0).then_some(share).ok_or_else(|| "write for example 2%".to_owned())
}

/// A probability that is more than a guess.
pub fn confidence(text: &str) -> Result<f64, String> {
    let found = share(text)?;
    let is_inside = found > 0.5 && found < 1.0;
    is_inside.then_some(found).ok_or_else(|| "not between 0.5 and 1".to_owned())
}

/// A number above 0.
pub fn positive(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|x: &f64| *x > 0.0 && x.is_finite()).ok_or("not above 0".to_owned())
}

/// `90s`, `30m`, `1h 30m`.
pub fn time(text: &str) -> Result<Duration, String> {
    let time = humantime::parse_duration(text).ok().filter(|time| !time.is_zero());
    time.ok_or("write for example 90s, 30m or 2h".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_the_units_of_their_kind() {
        assert_eq!(decimal_size("40G"), Ok(40_000_000_000));
        assert_eq!(binary_size("4g"), Ok(4 << 30));
        assert_eq!(decimal_size("40GiB"), Ok(40 << 30));
        assert_eq!(binary_size("40 GB"), Ok(40_000_000_000));
        assert_eq!(binary_size("1.5G"), Ok(3 << 29));
        assert_eq!(decimal_size("12"), Ok(12));
        for bad in ["", "G", "0", "1X", "-1", "99999999999G", "nan", "1e30G"] {
            assert!(decimal_size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn shares_are_parts_of_one_or_percent() {
        assert_eq!((share("95%"), share("0.5")), (Ok(0.95), Ok(0.5)));
        assert_eq!(share("1"), Ok(1.0));
        assert!(share("95").unwrap_err().contains("write 95% or 0.95"));
        for bad in ["0", "-1", "101%", "x", "nan"] {
            assert!(share(bad).is_err(), "{bad}");
        }
        assert!(part("100%").is_err() && part("2%") == Ok(0.02));
        assert!(confidence("0.3").is_err() && confidence("99%") == Ok(0.99));
        assert!(confidence("99").unwrap_err().contains("99%"));
    }
}
