//! Where results will be written, looked at before anything runs.

use crate::io::{folder, unnamed};
use anyhow::{Context, bail};
use std::path::Path;

/// Sees to it that a file can be written there: makes its folder where that one's parent exists, and looks
/// whether the system lets files be made in it.
pub fn prepare(path: &Path) -> anyhow::Result<()> {
    if path.is_dir() {
        bail!("{}: is a folder; give the name of a file", path.display());
    }
    prepare_folder(path)?;
    unnamed(folder(path)).with_context(|| folder(path).display().to_string())?;
    Ok(())
}

/// As [`prepare`], of a file that may only be there already if it may be replaced.
pub fn prepare_new(path: &Path, force: bool) -> anyhow::Result<()> {
    match path.exists() && !force {
        true => bail!("{} exists; choose another name or give --force", path.display()),
        false => prepare(path),
    }
}

/// Makes the folder of a file or folder that will be written, where that one's parent exists.
pub fn prepare_folder(path: &Path) -> anyhow::Result<()> {
    let folder = folder(path);
    if folder.is_dir() {
        return Ok(());
    }
    let parent = crate::io::folder(folder);
    if !parent.is_dir() {
        bail!("{}: there is no folder {}", path.display(), parent.display());
    }
    std::fs::create_dir(folder).with_context(|| folder.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_folder_is_made_and_not_two() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        prepare(&at("new/report.html")).unwrap();
        assert!(at("new").is_dir() && std::fs::read_dir(at("new")).unwrap().count() == 0);
        let error = prepare(&at("a/b/report.html")).unwrap_err().to_string();
        assert!(error.contains("there is no folder") && !at("a").exists(), "{error}");
        assert!(prepare(&at("new")).unwrap_err().to_string().contains("is a folder"));
        std::fs::write(at("old"), "").unwrap();
        assert!(prepare_new(&at("old"), false).is_err() && prepare_new(&at("old"), true).is_ok());
        assert!(prepare(&at("old/report.html")).is_err());
    }
}
