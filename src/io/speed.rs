//! What work costs here: processor time, which others on the machine do not change, and the speed of disks.

use super::disk::{Disk, write_all};
use super::output::{beside, part_path};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Bytes that are read or written to learn how fast that is.
const TRIAL: u64 = 64 << 20;
/// Bytes of a read or a write.
const PIECE: u64 = 4 << 20;

/// Whose processor time is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clock {
    /// That of all threads of the process.
    Process,
    /// That of the calling thread.
    Thread,
}

/// Processor time that work takes.
pub fn processor_time<T>(clock: Clock, work: impl FnOnce() -> T) -> (T, Duration) {
    let started = now(clock);
    let found = work();
    (found, now(clock).saturating_sub(started))
}

#[cfg(unix)]
fn now(clock: Clock) -> Duration {
    use rustix::time::{ClockId, clock_gettime};
    let time = clock_gettime(match clock {
        Clock::Process => ClockId::ProcessCPUTime,
        Clock::Thread => ClockId::ThreadCPUTime,
    });
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec as u32)
}

/// Where the system tells no processor time, time it is.
#[cfg(not(unix))]
fn now(_: Clock) -> Duration {
    use std::sync::OnceLock;
    static FIRST: OnceLock<Instant> = OnceLock::new();
    FIRST.get_or_init(Instant::now).elapsed()
}

/// Bytes a second that come from local files, from places all over them: from the system's cache where they
/// are in it. `None` where none can be read.
pub fn read_rate(files: &[(PathBuf, u64)]) -> Option<f64> {
    let total: u64 = files.iter().map(|(_, size)| size).sum();
    let piece = PIECE.min(total);
    let n = (TRIAL / PIECE).min(total.checked_div(piece)?);
    let mut bytes = vec![0; piece as usize];
    let (mut read, started) = (0, Instant::now());
    for i in 0..n {
        let mut at = (total - piece) / n * i;
        let (path, size) = files.iter().find(|(_, size)| {
            let inside = at < *size;
            at -= if inside { 0 } else { *size };
            inside
        })?;
        let part = &mut bytes[..piece.min(size - at) as usize];
        super::read_exact_at(&File::open(path).ok()?, part, at).ok()?;
        read += part.len();
    }
    Some(read as f64 / started.elapsed().as_secs_f64())
}

/// Bytes a second that a file takes beside `output` until they are on disk. `None` where none can be written.
pub fn write_rate(disk: &dyn Disk, output: &Path) -> Option<f64> {
    let path = part_path(&beside(output, ".speed"));
    let part = disk.open(&path).ok()?;
    let started = Instant::now();
    // Zeros might be written without being.
    let bytes: Vec<u8> = (0..PIECE).map(|i| ((i * i) >> 3) as u8).collect();
    let written = (0..TRIAL / PIECE).try_for_each(|i| write_all(part.as_ref(), &bytes, i * PIECE));
    let written = written.and_then(|()| part.sync());
    let seconds = started.elapsed().as_secs_f64();
    // What is left over costs room alone.
    let _ = disk.remove(&path);
    written.ok().map(|()| TRIAL as f64 / seconds)
}

#[cfg(test)]
mod tests {
    use super::super::disk::LocalDisk;
    use super::super::small::Small;
    use super::*;

    #[cfg(unix)]
    #[test]
    fn processor_time_is_that_of_work_and_not_of_waiting() {
        let wait = || std::thread::sleep(Duration::from_millis(60));
        let (_, waited) = processor_time(Clock::Thread, wait);
        assert!(waited < Duration::from_millis(30), "{waited:?}");
        let work = || (0..20_000_000u64).fold(1u64, |a, b| std::hint::black_box(a ^ b));
        let (_, worked) = processor_time(Clock::Thread, work);
        assert!(worked > Duration::from_millis(1), "{worked:?}");
    }

    #[test]
    fn rates_are_measured_and_nothing_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let names = ["a", "b", "c"].map(|name| dir.path().join(name));
        let files: Vec<(PathBuf, u64)> = (names.into_iter().zip([3 << 20, 1, 9 << 20]))
            .map(|(path, size)| {
                std::fs::write(&path, vec![1; size]).unwrap();
                (path, size as u64)
            })
            .collect();
        assert!(read_rate(&files).unwrap() > 0.0);
        assert_eq!(read_rate(&[]), None);
        assert_eq!(read_rate(&[(dir.path().join("none"), 5)]), None);
        let output = dir.path().join("model.gguf");
        assert!(write_rate(&LocalDisk, &output).unwrap() > 0.0);
        assert_eq!(write_rate(&Small::new(1000), &output), None);
        assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 3);
    }
}
