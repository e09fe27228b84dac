//! Models of one family and what they cost for their size, as a picture of its own.

use super::report::escape;
use std::fmt::Write;

/// A model in the picture.
pub struct Point {
    /// What is written beside it.
    pub name: String,
    /// Bits per weight.
    pub bits: f64,
    /// Mean KL divergence from the reference, and its standard error.
    pub kl: (f64, f64),
    /// Whether no other is as small and as good.
    pub is_on_front: bool,
}

/// Width and height, and room for the scales on the left and at the bottom.
const SIZE: (f64, f64) = (720.0, 420.0);
const MARGIN: (f64, f64) = (72.0, 48.0);
/// Room at the other sides.
const RIM: f64 = 24.0;

const STYLE: &str = "\
.paper{fill:#fff}text{fill:#57606a;font:13px system-ui,sans-serif}.name{fill:#1b1f24}.grid{stroke:#d0d7de}\
.front{stroke:#0b62d6;stroke-width:2;fill:none}.on{fill:#0b62d6;stroke:#0b62d6}.off{fill:#fff;stroke:#57606a}\
@media(prefers-color-scheme:dark){.paper{fill:#0d1117}text{fill:#9198a1}.name{fill:#e6edf3}.grid{stroke:#30363d}\
.front{stroke:#58a6ff}.on{fill:#58a6ff;stroke:#58a6ff}.off{fill:#0d1117;stroke:#9198a1}}";

/// Draws them: mean KL divergence, on a logarithmic scale, over bits per weight. What nothing beats is joined.
pub fn picture(points: &[Point]) -> String {
    let mut out = String::new();
    let (width, height) = SIZE;
    let title = "Mean KL divergence over bits per weight";
    let _ = write!(
        out,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" role=\"img\" \
         aria-label=\"{title}\"><style>{STYLE}</style>\
         <rect class=\"paper\" width=\"{width}\" height=\"{height}\"/>"
    );
    let across = linear(&mut out, points);
    let down = logarithmic(&mut out, points);
    let _ = write!(
        out,
        "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">bits per weight</text>\
         <text x=\"16\" y=\"{:.1}\" text-anchor=\"middle\" transform=\"rotate(-90 16 {3:.1})\">\
         mean KL divergence, nats</text>",
        (MARGIN.0 + width - RIM) / 2.0,
        height - 8.0,
        (height - MARGIN.1 + RIM) / 2.0,
        (height - MARGIN.1 + RIM) / 2.0
    );
    let mut front: Vec<&Point> = points.iter().filter(|point| point.is_on_front).collect();
    front.sort_by(|a, b| a.bits.total_cmp(&b.bits));
    let line: Vec<String> = front
        .iter()
        .map(|point| format!("{:.1},{:.1}", across(point.bits), down(point.kl.0)))
        .collect();
    let _ = write!(out, "<polyline class=\"front\" points=\"{}\"/>", line.join(" "));
    for point in points {
        let (x, y) = (across(point.bits), down(point.kl.0));
        let (value, error) = point.kl;
        let class = if point.is_on_front { "on" } else { "off" };
        // Names lie above the curve, those at the right edge below it.
        let (at, above, anchor) = match x > width - 110.0 {
            true => (x - 7.0, -16.0, "end"),
            false => (x + 7.0, 6.0, "start"),
        };
        let _ = write!(
            out,
            "<line class=\"{class}\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{:.1}\" y2=\"{:.1}\"/>\
             <circle class=\"{class}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4\"><title>{name}: {:.3} bits per \
             weight, {value:.6} ± {error:.6}</title></circle>\
             <text class=\"name\" x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"{anchor}\">{name}</text>",
            down(value + error),
            down(value - error),
            point.bits,
            y - above,
            name = escape(&point.name),
        );
    }
    out += "</svg>\n";
    out
}

/// The scale at the bottom, in whole bits; gives the place of a value.
fn linear(out: &mut String, points: &[Point]) -> impl Fn(f64) -> f64 + use<> {
    let bits = || points.iter().map(|point| point.bits);
    let low = bits().fold(f64::INFINITY, f64::min).floor();
    let high = bits().fold(low + 1.0, f64::max).ceil();
    let span = SIZE.0 - RIM - MARGIN.0;
    let place = move |x: f64| MARGIN.0 + (x - low) / (high - low) * span;
    let bottom = SIZE.1 - MARGIN.1;
    let step = ((high - low) / 16.0).ceil().max(1.0);
    let mut at = low;
    while at <= high {
        let x = place(at);
        let _ = write!(
            out,
            "<line class=\"grid\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{RIM}\" y2=\"{bottom:.1}\"/>\
             <text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{at}</text>",
            bottom + 16.0
        );
        at += step;
    }
    place
}

/// The scale at the left, in powers of ten; gives the place of a value.
fn logarithmic(out: &mut String, points: &[Point]) -> impl Fn(f64) -> f64 + use<> {
    let logs = || points.iter().map(|point| point.kl.0).filter(|kl| *kl > 0.0).map(f64::log10);
    let low = logs().fold(f64::INFINITY, f64::min).floor();
    let low = if low.is_finite() { low } else { -1.0 };
    let high = logs().fold(low + 1.0, f64::max).ceil();
    let bottom = SIZE.1 - MARGIN.1;
    let place = move |y: f64| {
        let part = (y.max(1e-300).log10() - low) / (high - low);
        bottom - part.clamp(0.0, 1.0) * (bottom - RIM)
    };
    for power in low as i32..=high as i32 {
        let y = place(10f64.powi(power));
        let _ = write!(
            out,
            "<line class=\"grid\" x1=\"{}\" x2=\"{}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>\
             <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            MARGIN.0,
            SIZE.0 - RIM,
            MARGIN.0 - 8.0,
            y + 4.0,
            10f64.powi(power)
        );
    }
    place
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_has_every_model_and_joins_what_nothing_beats() {
        let point = |name: &str, bits, kl, is_on_front| {
            let (name, kl) = (name.to_owned(), (kl, 0.1 * kl));
            Point { name, bits, kl, is_on_front }
        };
        let points = [
            point("Q8_0", 8.5, 0.0004, true),
            point("<Q4>", 4.8, 0.02, true),
            point("Q4_0", 4.9, 0.05, false),
            point("same", 3.0, 0.0, true),
        ];
        let svg = picture(&points);
        assert!(svg.contains("&lt;Q4&gt;: 4.800 bits per weight, 0.020000 ± 0.002000"), "{svg}");
        assert_eq!(svg.matches("<circle class=\"on\"").count(), 3);
        let line =
            svg.split("class=\"front\" points=\"").nth(1).unwrap().split('"').next().unwrap();
        let down: Vec<(f64, f64)> = line
            .split(' ')
            .map(|pair| pair.split_once(',').unwrap())
            .map(|(x, y)| (x.parse().unwrap(), y.parse().unwrap()))
            .collect();
        // From left to right, in the frame; a value of 0 lies on its lower edge.
        assert!(down.is_sorted_by(|a, b| a.0 < b.0) && down.len() == 3, "{line}");
        assert!(down.iter().all(|(x, y)| (72.0..=696.0).contains(x) && (24.0..=372.0).contains(y)));
        assert_eq!(down[0].1, 372.0);
    }
}
