//! Links under `.pleach/`.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use anyhow::{Context, Result, bail};

/// Makes `link` point at `target`, atomically; what is not a link is never replaced.
pub(crate) fn point(link: &Path, target: &Path) -> Result<()> {
    match fs::symlink_metadata(link) {
        Ok(meta) if meta.file_type().is_symlink() => {
            if fs::read_link(link).is_ok_and(|old| old == target) {
                return Ok(());
            }
        }
        Ok(_) if link == target => return Ok(()),
        Ok(_) => bail!("{} is not a link made by setup; move it away first", link.display()),
        Err(_) => {}
    }
    let folder = link.parent().context("a link has a folder")?;
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let fresh = link.with_extension(format!("new{}", std::process::id()));
    symlink(target, &fresh).with_context(|| format!("cannot create {}", fresh.display()))?;
    fs::rename(&fresh, link).with_context(|| format!("cannot replace {}", link.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_is_made_and_moved_but_a_folder_of_the_users_stays() {
        let dir = tempfile::tempdir().unwrap();
        let link = dir.path().join("sub/link");
        point(&link, Path::new("/one")).unwrap();
        assert_eq!(fs::read_link(&link).unwrap(), Path::new("/one"));
        point(&link, Path::new("/two")).unwrap();
        assert_eq!(fs::read_link(&link).unwrap(), Path::new("/two"));

        let own = dir.path().join("own");
        fs::create_dir(&own).unwrap();
        let error = point(&own, Path::new("/two")).unwrap_err().to_string();
        assert!(error.contains("not a link"), "{error}");
        assert!(own.is_dir());
    }
}
