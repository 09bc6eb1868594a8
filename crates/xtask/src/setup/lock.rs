//! One at a time: a lock file that the system releases when its holder ends, however it ends.

use std::fs::{self, File, TryLockError};
use std::path::Path;

use anyhow::{Context, Result};

use crate::ui;

/// Held until dropped.
pub(crate) struct Lock {
    _file: File,
}

impl Lock {
    /// Takes the lock `NAME.lock` of a folder, waiting for another holder.
    pub(crate) fn take(folder: &Path, name: &str) -> Result<Self> {
        fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
        let path = folder.join(format!("{name}.lock"));
        let file = File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                ui::say("waiting", format!("for another run that holds {}", path.display()));
                file.lock().with_context(|| format!("cannot lock {}", path.display()))?;
            }
            Err(TryLockError::Error(error)) => {
                return Err(error).with_context(|| format!("cannot lock {}", path.display()));
            }
        }
        Ok(Self { _file: file })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_holder_waits_for_the_first() {
        let dir = tempfile::tempdir().unwrap();
        let first = Lock::take(dir.path(), "x").unwrap();
        let folder = dir.path().to_owned();
        let second = std::thread::spawn(move || Lock::take(&folder, "x").map(|_| ()));
        std::thread::sleep(std::time::Duration::from_millis(100));
        assert!(!second.is_finished(), "two holders at once");
        drop(first);
        second.join().unwrap().unwrap();
    }
}
