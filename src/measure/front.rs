//! Which of several models nothing beats.

/// Points, each a size and a loss, that no other beats: none is as small and as good, and better in one of the
/// two. Of points that are the same, all are on the front.
///
/// ```
/// let points = [(8.0, 0.001), (4.0, 0.02), (5.0, 0.03), (2.0, 0.4)];
/// assert_eq!(requant::measure::front(&points), [true, true, false, true]);
/// ```
pub fn front(points: &[(f64, f64)]) -> Vec<bool> {
    let beats = |a: &(f64, f64), b: &(f64, f64)| a.0 <= b.0 && a.1 <= b.1 && a != b;
    points.iter().map(|point| !points.iter().any(|other| beats(other, point))).collect()
}
