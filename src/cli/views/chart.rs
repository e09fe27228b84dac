//! Pictures in SVG with axes that several models share, each in its own colour.

use super::markup::escape;
use std::fmt::Write;
use std::ops::Range;

/// Where axes lie in a picture, in its own units.
#[derive(Clone, Copy)]
pub struct Frame {
    pub left: f64,
    pub right: f64,
    pub top: f64,
    pub bottom: f64,
    /// Width of the whole picture.
    pub width: f64,
    /// Whether lines stand above the numbers of the horizontal axis.
    pub has_uprights: bool,
}

/// Width and height of a figure.
pub const SIZE: (f64, f64) = (640.0, 240.0);
/// That of figures.
pub const FIGURE: Frame = Frame {
    left: 64.0,
    right: SIZE.0 - 8.0,
    top: 10.0,
    bottom: SIZE.1 - 32.0,
    width: SIZE.0,
    has_uprights: false,
};
/// Numbers below an axis, at most.
const LABELS: usize = 16;
/// Colours that there are; the style sheet has as many.
const COLOURS: usize = 8;

/// A picture with a caption.
pub fn figure(out: &mut String, caption: &str, draw: impl FnOnce(&mut String)) {
    let (width, height) = SIZE;
    let _ = write!(
        out,
        "<figure><svg viewBox=\"0 0 {width} {height}\" role=\"img\" aria-label=\"{caption}\">"
    );
    draw(out);
    let _ = write!(out, "</svg><figcaption>{caption}</figcaption></figure>");
}

/// Which colour is whose.
pub fn legend(out: &mut String, names: &[String]) {
    *out += "<ul class=\"legend\">";
    for (i, name) in names.iter().enumerate() {
        let _ = write!(out, "<li class=\"{}\">{}", colour(i), escape(name));
    }
    *out += "</ul>";
}

/// The class of a model's colour; after the last one lines are dashed.
fn colour(i: usize) -> String {
    let dashed = if i / COLOURS % 2 == 1 { " dashed" } else { "" };
    format!("m{}{dashed}", i % COLOURS)
}

/// Powers of ten that enclose values.
#[derive(Clone, Copy)]
pub struct Decades(i32, i32);

impl Decades {
    /// Of the values above 0.
    pub fn of(values: impl Iterator<Item = f64>) -> Self {
        let positive = values.filter(|v| *v > 0.0 && v.is_finite());
        let (low, high) =
            positive.fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(v), h.max(v)));
        if low > high {
            return Self(-1, 0);
        }
        let low = low.log10().floor() as i32;
        Self(low, (high.log10().ceil() as i32).max(low + 1))
    }

    /// The height of a value.
    fn place(self, frame: Frame, value: f64) -> f64 {
        let part = (value.max(1e-300).log10() - f64::from(self.0)) / f64::from(self.1 - self.0);
        frame.bottom - part.clamp(0.0, 1.0) * (frame.bottom - frame.top)
    }

    /// Lines and numbers.
    fn draw(self, out: &mut String, frame: Frame) {
        let Frame { left, right, .. } = frame;
        // Of many decades, some.
        let step = ((self.1 - self.0) / 8 + 1) as usize;
        for power in (self.0..=self.1).step_by(step) {
            let y = self.place(frame, 10f64.powi(power));
            let _ = write!(
                out,
                "<line class=\"grid\" x1=\"{left}\" x2=\"{right}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>\
                 <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">1e{power}</text>",
                left - 8.0,
                y + 4.0
            );
        }
    }
}

/// A horizontal axis.
#[derive(Clone, Copy)]
pub struct Across {
    low: f64,
    high: f64,
    unit: &'static str,
    /// Between numbers, at least.
    step: f64,
}

impl Across {
    /// From one number to another.
    pub fn new(range: Range<f64>, unit: &'static str) -> Self {
        Self { low: range.start, high: range.end.max(range.start + 1e-9), unit, step: 0.0 }
    }

    /// Of numbered things, each with a place of its own.
    pub fn of_numbers(n: usize) -> Self {
        Self { step: 1.0, ..Self::new(-0.5..n as f64 - 0.5, "") }
    }

    fn place(self, frame: Frame, value: f64) -> f64 {
        let part = (value - self.low) / (self.high - self.low);
        frame.left + part * (frame.right - frame.left)
    }

    /// Of sizes, with some room on both sides.
    fn around(sizes: impl Iterator<Item = f64>, unit: &'static str) -> Self {
        let (low, high) =
            sizes.fold((f64::INFINITY, 0.0f64), |(l, h), size| (l.min(size), h.max(size)));
        let margin = (0.08 * (high - low)).max(0.02 * high);
        Self::new((low - margin).max(0.0)..high + margin, unit)
    }

    /// Round numbers below the picture.
    fn draw(self, out: &mut String, frame: Frame) {
        let span = self.high - self.low;
        let least = (span / 8.0).max(self.step).max(f64::MIN_POSITIVE);
        let power = 10f64.powf(least.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].map(|times| times * power);
        let step = step.into_iter().find(|step| *step >= least).unwrap_or(power);
        let first = (self.low / step).ceil() as i64;
        for i in (first..).take_while(|&i| i as f64 * step <= self.high + 1e-9).take(LABELS) {
            let value = i as f64 * step;
            let digits = (-step.log10().floor()).max(0.0) as usize;
            let (x, Frame { top, bottom, .. }) = (self.place(frame, value), frame);
            if frame.has_uprights {
                let _ = write!(
                    out,
                    "<line class=\"grid\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{top}\" y2=\"{bottom}\"/>"
                );
            }
            let _ = write!(
                out,
                "<text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">{value:.digits$}{}</text>",
                x.clamp(frame.left, frame.width - 26.0),
                bottom + 22.0,
                self.unit
            );
        }
    }
}

/// One line for each model.
pub fn curves(out: &mut String, across: Across, models: &[Vec<(f64, f64)>]) {
    let decades = Decades::of(models.iter().flatten().map(|point| point.1));
    decades.draw(out, FIGURE);
    across.draw(out, FIGURE);
    for (i, points) in models.iter().enumerate() {
        let line = points.iter().map(|&(x, y)| (across.place(FIGURE, x), decades.place(FIGURE, y)));
        joined(out, &format!("curve {}", colour(i)), line);
    }
}

/// A line through places.
fn joined(out: &mut String, class: &str, places: impl Iterator<Item = (f64, f64)>) {
    let places: Vec<String> = places.map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
    let _ = write!(out, "<polyline class=\"{class}\" points=\"{}\"/>", places.join(" "));
}

/// As [`curves`], with a mark and what it says at each point.
pub fn marked(
    out: &mut String,
    across: Across,
    models: &[Vec<(f64, f64)>],
    say: impl Fn(usize, usize) -> String,
) {
    curves(out, across, models);
    let decades = Decades::of(models.iter().flatten().map(|point| point.1));
    for (i, points) in models.iter().enumerate() {
        for (j, &(x, y)) in points.iter().enumerate() {
            let (x, y) = (across.place(FIGURE, x), decades.place(FIGURE, y));
            mark(out, &colour(i), x, y, &say(i, j));
        }
    }
}

fn mark(out: &mut String, class: &str, x: f64, y: f64, text: &str) {
    let _ = write!(
        out,
        "<circle class=\"mark {class}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\"><title>{}</title></circle>",
        escape(text)
    );
}

/// A model in a picture of what it costs.
pub struct Point {
    /// What it is called; nothing where that is of no interest.
    pub name: String,
    /// How large it is.
    pub size: f64,
    /// What it costs.
    pub cost: f64,
    /// The standard error of that.
    pub error: f64,
    /// Whether nothing is as small and costs as little.
    pub is_on_front: bool,
}

/// Points with their errors over size, and what each says. What is on the front is joined. Classes say which
/// model a mark is of, and whether it is on the front.
pub fn over_size(
    out: &mut String,
    frame: Frame,
    unit: &'static str,
    points: &[Point],
    say: impl Fn(&Point) -> String,
) {
    let across = Across::around(points.iter().map(|point| point.size), unit);
    let ends = points.iter().flat_map(|p| [p.cost - p.error, p.cost, p.cost + p.error]);
    let decades = Decades::of(ends);
    decades.draw(out, frame);
    across.draw(out, frame);
    let mut front: Vec<&Point> = points.iter().filter(|point| point.is_on_front).collect();
    front.sort_by(|a, b| a.size.total_cmp(&b.size));
    let at = |p: &Point| (across.place(frame, p.size), decades.place(frame, p.cost));
    joined(out, "front", front.into_iter().map(at));
    let places: Vec<(f64, f64)> = points.iter().map(at).collect();
    let mut taken: Vec<Space> = places.iter().map(|&place| Space::of_mark(place)).collect();
    for (i, (point, &(x, y))) in points.iter().zip(&places).enumerate() {
        let class = format!("{} {}", colour(i), if point.is_on_front { "on" } else { "off" });
        let [top, bottom] =
            [point.cost + point.error, point.cost - point.error].map(|v| decades.place(frame, v));
        let _ = write!(
            out,
            "<line class=\"curve {class}\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{top:.1}\" y2=\"{bottom:.1}\"/>"
        );
        mark(out, &class, x, y, &say(point));
        if !point.name.is_empty() {
            taken.push(name(out, frame, (x, y), &point.name, &taken));
        }
    }
}

/// What a mark or a name covers.
#[derive(Clone, Copy)]
struct Space {
    x: [f64; 2],
    y: [f64; 2],
}

impl Space {
    fn of_mark((x, y): (f64, f64)) -> Self {
        Self { x: [x - 3.0, x + 3.0], y: [y - 3.0, y + 3.0] }
    }

    fn meets(&self, other: &Self) -> bool {
        let meet = |a: [f64; 2], b: [f64; 2]| a[0] < b[1] && b[0] < a[1];
        meet(self.x, other.x) && meet(self.y, other.y)
    }

    fn lies_within(&self, frame: Frame) -> bool {
        self.x[0] >= frame.left
            && self.x[1] <= frame.width
            && self.y[0] >= 0.0
            && self.y[1] <= frame.bottom
    }
}

/// What a point is called, in the first place beside it that is free. Costs fall with size, so there is room above the
/// line to the right, and below it to the left.
fn name(out: &mut String, frame: Frame, (x, y): (f64, f64), name: &str, taken: &[Space]) -> Space {
    /// Of a letter, about, and of a line.
    const LETTER: (f64, f64) = (7.5, 13.0);
    let width = LETTER.0 * name.chars().count() as f64;
    let lines = (0..4).map(|line| f64::from(line) * LETTER.1);
    let places: Vec<(f64, f64)> = lines
        .flat_map(|more| {
            let (above, below) = (-5.0 - more, 16.0 + more);
            [(7.0, above), (-7.0, below), (7.0, below), (-7.0, above)]
        })
        .collect();
    let space = |&(right, down): &(f64, f64)| {
        let (near, y) = (x + right, y + down);
        let far = near + width * right.signum();
        Space { x: [near.min(far), near.max(far)], y: [y - LETTER.1, y] }
    };
    let free = |place: &&(f64, f64)| {
        let space = space(place);
        space.lies_within(frame) && !taken.iter().any(|other| space.meets(other))
    };
    let place = places.iter().find(free).unwrap_or(&places[0]);
    let anchor = if place.0 > 0.0 { "start" } else { "end" };
    let (x, y, name) = (x + place.0, y + place.1, escape(name));
    let _ = write!(
        out,
        "<text class=\"name\" x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{name}</text>"
    );
    space(place)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_enclose_what_they_show() {
        let decades = Decades::of([0.02, 0.0, 3.0].into_iter());
        assert_eq!((decades.0, decades.1), (-2, 1));
        assert!(decades.place(FIGURE, 0.02) > decades.place(FIGURE, 3.0));
        assert_eq!(decades.place(FIGURE, 0.0), FIGURE.bottom);
        let across = Across::new(2.0..9.0, " bits");
        let ends = (across.place(FIGURE, 2.0), across.place(FIGURE, 9.0));
        assert_eq!(ends, (FIGURE.left, FIGURE.right));
        let mut out = String::new();
        across.draw(&mut out, FIGURE);
        assert!(out.contains(">2 bits<") && out.contains(">9 bits<"), "{out}");
    }

    #[test]
    fn names_keep_clear_of_each_other() {
        let point = |(i, size): (usize, f64)| Point {
            name: format!("a long name {i}"),
            size,
            cost: 0.01 / size,
            error: 0.0,
            is_on_front: true,
        };
        let points: Vec<Point> =
            [4.4, 4.5, 4.6, 4.7, 8.5].into_iter().enumerate().map(point).collect();
        let mut out = String::new();
        over_size(&mut out, FIGURE, "", &points, |_| String::new());
        let of = |part: &str, key: &str| -> f64 {
            part.split(&format!("{key}=\""))
                .nth(1)
                .unwrap()
                .split('"')
                .next()
                .unwrap()
                .parse()
                .unwrap()
        };
        let spaces: Vec<Space> = (out.split("<text class=\"name\"").skip(1))
            .map(|part| {
                let (x, y, width) = (of(part, " x"), of(part, " y"), 13.0 * 7.5);
                let left = if part.contains("\"end\"") { x - width } else { x };
                Space { x: [left, left + width], y: [y - 13.0, y] }
            })
            .collect();
        assert_eq!(spaces.len(), points.len());
        for (i, a) in spaces.iter().enumerate() {
            assert!(spaces[..i].iter().all(|b| !a.meets(b)), "{out}");
        }
    }

    #[test]
    fn layers_are_numbered_in_whole_numbers() {
        let mut out = String::new();
        Across::of_numbers(3).draw(&mut out, FIGURE);
        assert_eq!(out.matches("<text").count(), 3, "{out}");
        assert!(out.contains(">0<") && out.contains(">2<"), "{out}");
    }
}
