//! One setup at a time per user: a lock file that the system releases when its holder ends, however it ends.

use std::fs::{self, File, TryLockError};

use anyhow::{Context, Result};

use crate::paths::Paths;
use crate::ui;

/// Held until dropped.
pub(crate) struct Lock {
    _file: File,
}

impl Lock {
    /// Takes the lock `NAME.lock` of the cache folder, waiting for another holder.
    pub(crate) fn take(paths: &Paths, name: &str) -> Result<Self> {
        fs::create_dir_all(&paths.cache).with_context(|| format!("cannot create {}", paths.cache.display()))?;
        let path = paths.cache.join(format!("{name}.lock"));
        let file = File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                ui::say("waiting", format!("for another setup that holds {}", path.display()));
                file.lock().with_context(|| format!("cannot lock {}", path.display()))?;
            }
            Err(TryLockError::Error(error)) => {
                return Err(error).with_context(|| format!("cannot lock {}", path.display()));
            }
        }
        Ok(Self { _file: file })
    }
}
