//! Other metadata for an existing file: over the old head where it fits, in a new file otherwise.

use super::disk::{Disk, LocalDisk, write_all};
use super::error::GgufError;
use super::file::GgufFile;
use super::layout::Layout;
use super::metadata::Metadata;
use super::writer::{Writer, folder};
use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::path::Path;

/// Gives a file other metadata. Returns whether the tensors could stay where they are; otherwise
/// the file was written anew and replaced.
///
/// # Errors
/// A damaged file, tensors that do not lie as the reference tools lay them, a system that refuses.
pub fn replace_metadata(path: &Path, metadata: &Metadata) -> Result<bool, GgufError> {
    let file = GgufFile::open(path)?;
    let tensors = file.tensors().iter().map(|t| (t.name.clone(), t.dims.clone(), t.ty));
    let layout = Layout::new(metadata, tensors)?;
    let shift = layout.header().len() as u64;
    let usual =
        file.tensors().iter().enumerate().all(|(i, t)| layout.offset(i) == shift + t.offset)
            && file.file_size() - file.data_offset() <= layout.file_size() - shift;
    if !usual {
        let what = "its tensors do not lie one behind the other, aligned to 32 bytes; quantize it \
                    with COPY first";
        return Err(GgufError::Edit { path: path.to_owned(), what });
    }
    let old = file.data_offset();
    drop(file);
    let io = |error| GgufError::io(path, error);
    if shift == old {
        let part = LocalDisk.open(path).map_err(io)?;
        write_all(part.as_ref(), layout.header(), 0).map_err(io)?;
        part.sync().map_err(io)?;
        return Ok(true);
    }
    let part_path = Writer::part_path(path);
    let written = (|| {
        let mut from = File::open(path)?;
        from.seek(SeekFrom::Start(old))?;
        let mut to = File::create(&part_path)?;
        std::io::Write::write_all(&mut to, layout.header())?;
        // The system copies, and shares blocks where the file system can.
        std::io::copy(&mut from, &mut to)?;
        to.sync_all()?;
        std::fs::rename(&part_path, path)
    })();
    if let Err(error) = written {
        let _ = std::fs::remove_file(&part_path);
        return Err(GgufError::io(&part_path, error));
    }
    LocalDisk.sync_names(folder(path));
    Ok(false)
}
