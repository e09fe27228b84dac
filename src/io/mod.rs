//! Files, without knowing what is in them: read at places, written under a name that says that they
//! are not complete, and kept in step with journals.
//!
//! Writing goes through [`Disk`], so that tests can put one in its place that is full or fails.

mod blob;
mod disk;
mod error;
mod journal;
mod machine;
mod mapping;
mod output;
#[cfg(test)]
pub(crate) mod small;
mod speed;

pub(crate) use blob::read_exact_at;
pub use blob::{Blob, LocalFile};
#[cfg(feature = "eval")]
pub(crate) use disk::unnamed;
pub use disk::{Disk, LocalDisk, Part, free_disk};
pub(crate) use disk::{read_all, write_all};
pub use error::IoError;
pub(crate) use journal::Journal;
pub use machine::{Memory, memory, processors};
pub(crate) use mapping::{Mapping, open};
#[cfg(feature = "eval")]
pub(crate) use output::Sequence;
pub use output::{Output, write};
pub(crate) use output::{beside, complete, folder, give_name, part_path};
pub use speed::{Clock, processor_time, read_rate, write_rate};
