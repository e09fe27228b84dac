//! What of the machine this process may use: a container often has less than there is.

use std::path::{Path, PathBuf};

/// Memory, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// What the machine has, where the system says so.
    pub physical: Option<u64>,
    /// What the process's control group allows, or one around it, where there is such a limit.
    pub allowed: Option<u64>,
}

impl Memory {
    /// What may be used: the smaller of the two.
    pub fn usable(self) -> Option<u64> {
        self.physical.into_iter().chain(self.allowed).min()
    }
}

/// Memory that this process may use.
pub fn memory() -> Memory {
    let read = |path: &Path| std::fs::read_to_string(path).ok();
    Memory { physical: physical(), allowed: allowed(&read) }
}

/// Processors that this process may use, as its affinity and its control group have it.
pub fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

fn physical() -> Option<u64> {
    #[cfg(target_os = "linux")]
    {
        let info = rustix::system::sysinfo();
        Some(info.totalram as u64 * u64::from(info.mem_unit))
    }
    #[cfg(not(target_os = "linux"))]
    None
}

/// The least limit of the control groups that this process is in, of either version. A container may see its
/// own group as the root, whatever its name is outside.
fn allowed(read: &dyn Fn(&Path) -> Option<String>) -> Option<u64> {
    let groups = read(Path::new("/proc/self/cgroup"))?;
    let mut least = None;
    for line in groups.lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(group)) =
            (fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        let (mount, file) = match controllers {
            "" => ("/sys/fs/cgroup", "memory.max"),
            some if some.split(',').any(|name| name == "memory") => {
                ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")
            }
            _ => continue,
        };
        let group = PathBuf::from(group);
        for group in group.ancestors() {
            let folder = Path::new(mount).join(group.strip_prefix("/").unwrap_or(group));
            let limit = read(&folder.join(file)).and_then(|text| text.trim().parse().ok());
            // Without a limit, it says `max`, or the largest number of pages that there is.
            let limit = limit.filter(|&bytes: &u64| bytes < 1 << 62);
            least = least.into_iter().chain(limit).min();
        }
    }
    least
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(files: &[(&str, &str)]) -> Option<u64> {
        allowed(&|path| {
            let found = files.iter().find(|(known, _)| Path::new(known) == path);
            found.map(|(_, text)| (*text).to_owned())
        })
    }

    #[test]
    fn the_least_limit_around_a_process_counts() {
        let own = ("/proc/self/cgroup", "0::/user/job\n");
        let [job, user] = ["/sys/fs/cgroup/user/job/memory.max", "/sys/fs/cgroup/user/memory.max"];
        assert_eq!(found(&[own, (job, "max\n"), (user, "1073741824\n")]), Some(1 << 30));
        assert_eq!(found(&[own, (job, "1000\n"), (user, "1073741824\n")]), Some(1000));
        assert_eq!(found(&[own, (job, "max\n")]), None);
        // As a container sees itself.
        let root = ("/sys/fs/cgroup/memory.max", "1073741824\n");
        assert_eq!(found(&[("/proc/self/cgroup", "0::/\n"), root]), Some(1 << 30));
        let first = ("/proc/self/cgroup", "9:cpu:/\n4:memory:/docker/0a\n0::/\n");
        let limit = "/sys/fs/cgroup/memory/memory.limit_in_bytes";
        assert_eq!(found(&[first, (limit, "2147483648\n")]), Some(1 << 31));
        assert_eq!(found(&[first, (limit, "9223372036854771712\n")]), None);
        assert_eq!(found(&[]), None);
    }
}
