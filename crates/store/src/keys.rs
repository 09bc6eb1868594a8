//! Names of objects. No other module, and no other crate, builds one.

use object_store::path::Path;

use pleach_base::{Fence, JobId, Step, TaskName, Tenant};

/// The keys of one task.
#[derive(Clone, Debug)]
pub(crate) struct Keys {
    root: Path,
}

impl Keys {
    /// Below `<root>/<tenant>/<job>/<task>`. Characters that could leave the folder are percent-encoded.
    pub(crate) fn new(root: &Path, tenant: &Tenant, job: &JobId, task: &TaskName) -> Self {
        Self { root: root.clone().join(tenant.as_str()).join(job.as_str()).join(task.as_str()) }
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn log(&self) -> Path {
        self.root.clone().join("log")
    }

    pub(crate) fn entry(&self, seq: u64) -> Path {
        self.log().join(format!("{seq:010}.json"))
    }

    pub(crate) fn latest(&self) -> Path {
        self.root.clone().join("latest.json")
    }

    pub(crate) fn steps(&self) -> Path {
        self.root.clone().join("steps")
    }

    /// A file of a folder that a log entry or [`folder_name`] names.
    pub(crate) fn file(&self, folder: &str, name: &str) -> Path {
        self.folder(folder).join(name)
    }

    pub(crate) fn folder(&self, folder: &str) -> Path {
        folder.split('/').fold(self.root.clone(), Path::join)
    }
}

/// `steps/00001000-g0007`; a further `attempt` of the same generation at the same step adds `-2`, `-3`, ...
pub(crate) fn folder_name(step: Step, fence: Fence, attempt: u32) -> String {
    let base = format!("steps/{:08}-g{:04}", step.0, fence.generation.0);
    if attempt == 1 { base } else { format!("{base}-{attempt}") }
}

/// `ledger/000002/00000101-00000200-g0007.parquet`: epoch, first and last step, the writer's generation. A further
/// `attempt` adds `-2`, `-3`, ...
pub(crate) fn chunk_name(epoch: u64, from: Step, to: Step, fence: Fence, attempt: u32) -> String {
    let base = format!("ledger/{epoch:06}/{:08}-{:08}-g{:04}", from.0, to.0, fence.generation.0);
    if attempt == 1 { format!("{base}.parquet") } else { format!("{base}-{attempt}.parquet") }
}

/// The generation that owns a step folder, from its name below `steps/`.
pub(crate) fn folder_generation(name: &str) -> Option<u64> {
    name.split('-').nth(1)?.strip_prefix('g')?.parse().ok()
}

/// The number of a log entry, from its file name.
pub(crate) fn entry_seq(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(".json")?;
    (digits.len() >= 10 && digits.bytes().all(|b| b.is_ascii_digit())).then(|| digits.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;
    use pleach_base::{Generation, Term};

    #[test]
    fn keys_follow_the_documented_layout() {
        let keys = Keys::new(&Path::from("pre/fix"), &"acme".into(), &"desk".into(), &"tone".into());
        let fence = Fence { term: Term(2), generation: Generation(7) };
        assert_eq!(keys.entry(412).as_ref(), "pre/fix/acme/desk/tone/log/0000000412.json");
        assert_eq!(keys.latest().as_ref(), "pre/fix/acme/desk/tone/latest.json");
        let folder = folder_name(Step(1000), fence, 1);
        assert_eq!(keys.file(&folder, "x").as_ref(), "pre/fix/acme/desk/tone/steps/00001000-g0007/x");
        assert_eq!(folder_name(Step(1000), fence, 2), "steps/00001000-g0007-2");
        let chunk = chunk_name(2, Step(101), Step(200), fence, 1);
        assert_eq!(
            keys.folder(&chunk).as_ref(),
            "pre/fix/acme/desk/tone/ledger/000002/00000101-00000200-g0007.parquet"
        );
        assert_eq!(chunk_name(2, Step(101), Step(200), fence, 2), "ledger/000002/00000101-00000200-g0007-2.parquet");
        assert_eq!(folder_generation("00001000-g0007-2"), Some(7));
        assert_eq!((entry_seq("0000000412.json"), entry_seq("412.json"), entry_seq("x")), (Some(412), None, None));
    }

    #[test]
    fn a_name_cannot_leave_its_folder() {
        let keys = Keys::new(&Path::from("root"), &"..".into(), &"a/b".into(), &"t".into());
        assert_eq!(keys.root().as_ref(), "root/%2E%2E/a%2Fb/t");
    }
}
