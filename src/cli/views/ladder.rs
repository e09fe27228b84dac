//! Models of one family and what they cost for their size, as a picture of its own.

use super::chart::{Frame, Point, over_size};
use std::fmt::Write;

/// Width and height.
const SIZE: (f64, f64) = (720.0, 420.0);
const FRAME: Frame = Frame {
    left: 72.0,
    right: SIZE.0 - 24.0,
    top: 24.0,
    bottom: SIZE.1 - 48.0,
    width: SIZE.0,
    has_uprights: true,
};

const STYLE: &str = "\
.paper{fill:#fff}text{fill:#57606a;font:13px system-ui,sans-serif}.name{fill:#1b1f24}.grid{stroke:#d0d7de}\
.front{stroke:#0b62d6;stroke-width:2;fill:none}.on{fill:#0b62d6;stroke:#0b62d6}.off{fill:#fff;stroke:#57606a}\
@media(prefers-color-scheme:dark){.paper{fill:#0d1117}text{fill:#9198a1}.name{fill:#e6edf3}.grid{stroke:#30363d}\
.front{stroke:#58a6ff}.on{fill:#58a6ff;stroke:#58a6ff}.off{fill:#0d1117;stroke:#9198a1}}";

/// Draws models: mean KL divergence, on a logarithmic scale, over bits per weight. What nothing beats is joined.
/// No models, no picture.
pub fn picture(points: &[Point]) -> Option<String> {
    if points.is_empty() {
        return None;
    }
    let mut out = String::new();
    let (width, height) = SIZE;
    let title = "Mean KL divergence over bits per weight";
    let _ = write!(
        out,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" role=\"img\" \
         aria-label=\"{title}\"><style>{STYLE}</style>\
         <rect class=\"paper\" width=\"{width}\" height=\"{height}\"/>\
         <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">bits per weight</text>\
         <text x=\"16\" y=\"{2:.1}\" text-anchor=\"middle\" transform=\"rotate(-90 16 {2:.1})\">\
         mean KL divergence, nats</text>",
        (FRAME.left + FRAME.right) / 2.0,
        height - 8.0,
        (FRAME.top + FRAME.bottom) / 2.0,
    );
    let says = |p: &Point| {
        let name = if p.name.is_empty() { String::new() } else { format!("{}: ", p.name) };
        let error = if p.error > 0.0 { format!(" ± {:.6}", p.error) } else { String::new() };
        format!("{name}{:.3} bits per weight, {:.6}{error}", p.size, p.cost)
    };
    over_size(&mut out, FRAME, "", points, says);
    Some(out + "</svg>\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_has_every_model_and_joins_what_nothing_beats() {
        let point = |name: &str, bits, kl, is_on_front| Point {
            name: name.to_owned(),
            size: bits,
            cost: kl,
            error: 0.1 * kl,
            is_on_front,
        };
        let points = [
            point("Q8_0", 8.5, 0.0004, true),
            point("<Q4>", 4.8, 0.02, true),
            point("Q4_0", 4.9, 0.05, false),
            point("same", 3.0, 0.0, true),
        ];
        let svg = picture(&points).unwrap();
        assert!(svg.contains("&lt;Q4&gt;: 4.800 bits per weight, 0.020000 ± 0.002000"), "{svg}");
        let on_front = |mark: &&str| mark.split('"').next().unwrap().ends_with(" on");
        assert_eq!(svg.split("<circle class=\"").skip(1).filter(on_front).count(), 3);
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

    #[test]
    fn nothing_has_no_picture() {
        assert_eq!(picture(&[]), None);
    }
}
