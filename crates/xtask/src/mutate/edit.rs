//! Applying a mutation: exact texts that occur once, and the way back.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::list::Mutation;

/// The files that a mutation changes: as they are, and as they become.
#[derive(Debug)]
pub(super) struct Changed(BTreeMap<PathBuf, (String, String)>);

/// Makes the changed texts; writes nothing.
///
/// # Errors
/// When a text is not there, or occurs more than once: the sources have moved on, and so must the mutation.
pub(super) fn apply(root: &Path, mutation: &Mutation) -> Result<Changed> {
    let mut files: BTreeMap<PathBuf, (String, String)> = BTreeMap::new();
    for edit in &mutation.edits {
        let path = root.join(&edit.file);
        if !files.contains_key(&path) {
            let text = fs::read_to_string(&path).with_context(|| format!("{}: {}", mutation.name, edit.file))?;
            files.insert(path.clone(), (text.clone(), text));
        }
        let Some((_, text)) = files.get_mut(&path) else { continue };
        match text.matches(&edit.find).count() {
            1 => *text = text.replacen(&edit.find, &edit.replace, 1),
            0 => bail!("{}: {} no longer holds the text\n{}", mutation.name, edit.file, edit.find),
            many => bail!("{}: {} holds the text {many} times\n{}", mutation.name, edit.file, edit.find),
        }
    }
    Ok(Changed(files))
}

impl Changed {
    /// Writes the changed texts; dropping what is returned writes the first ones again.
    pub(super) fn write(&self) -> Result<Restored<'_>> {
        let restored = Restored(self);
        for (path, (_, changed)) in &self.0 {
            fs::write(path, changed).with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(restored)
    }
}

/// Takes a mutation back when dropped.
#[derive(Debug)]
pub(super) struct Restored<'a>(&'a Changed);

impl Drop for Restored<'_> {
    fn drop(&mut self) {
        for (path, (original, _)) in &self.0.0 {
            // Should this fail, the next preparation of the copy finds the difference.
            let _ = fs::write(path, original);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mutate::list::Edit;
    use crate::mutate::trial::Watch;

    fn mutation(find: &str) -> Mutation {
        let edit = Edit { file: "a.rs".to_owned(), find: find.to_owned(), replace: "X".to_owned() };
        let watch = Watch { package: "p".to_owned(), ..Watch::default() };
        Mutation { name: "m".to_owned(), invariant: String::new(), what: String::new(), edits: vec![edit], watch }
    }

    #[test]
    fn a_text_is_changed_and_put_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.rs");
        fs::write(&path, "one two three").unwrap();
        let changed = apply(folder.path(), &mutation("two")).unwrap();
        {
            let _restored = changed.write().unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), "one X three");
        }
        assert_eq!(fs::read_to_string(&path).unwrap(), "one two three");
    }

    #[test]
    fn a_text_that_is_gone_or_not_alone_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("a.rs"), "one one").unwrap();
        let error = apply(folder.path(), &mutation("two")).unwrap_err().to_string();
        assert!(error.contains("no longer holds"), "{error}");
        let error = apply(folder.path(), &mutation("one")).unwrap_err().to_string();
        assert!(error.contains("2 times"), "{error}");
        assert!(apply(&folder.path().join("elsewhere"), &mutation("one")).is_err());
    }
}
