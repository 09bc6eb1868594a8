//! Where the user's caches are kept.

use std::ffi::OsString;
use std::path::PathBuf;

/// `$XDG_CACHE_HOME/pleach/NAME`, else `~/.cache/pleach/NAME`; `None` when the environment names neither. As the XDG
/// specification says, a path that is not absolute counts as none.
#[must_use]
pub fn cache_folder(name: &str) -> Option<PathBuf> {
    below(std::env::var_os("XDG_CACHE_HOME"), std::env::var_os("HOME"), name)
}

fn below(cache: Option<OsString>, home: Option<OsString>, name: &str) -> Option<PathBuf> {
    let absolute = |text: Option<OsString>| text.map(PathBuf::from).filter(|path| path.is_absolute());
    let base = absolute(cache).or_else(|| Some(absolute(home)?.join(".cache")))?;
    Some(base.join("pleach").join(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_names_it_by_an_absolute_path() {
        let found = |cache: &str, home: &str| below(Some(cache.into()), Some(home.into()), "data");
        assert_eq!(found("/c", "/home/me"), Some("/c/pleach/data".into()));
        assert_eq!(found("", "/home/me"), Some("/home/me/.cache/pleach/data".into()));
        assert_eq!(found("relative", "/home/me"), Some("/home/me/.cache/pleach/data".into()));
        assert_eq!(found("", ""), None);
    }
}
