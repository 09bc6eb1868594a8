//! Which steps are kept. The log is told first ([`EntryKind::Retain`]), then folders go: a reader that finds a folder
//! missing finds the reason in the log, and a stale writer cannot remove anything because it cannot tell the log.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures::TryStreamExt;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{Error as StoreError, ObjectMeta, ObjectStoreExt};

use pleach_base::{Result, Timestamp};

use crate::keys::folder_generation;
use crate::line::Line;
use crate::record::{EntryKind, LogEntry};
use crate::writer::Writer;

/// Which steps are kept. Besides: the newest step and the newest one whose gate passed are always kept.
#[derive(Clone, Debug, PartialEq)]
pub struct Retention {
    /// The newest so many.
    pub last: u32,
    /// The best one by a metric.
    pub best: Option<Best>,
    /// Nothing younger is removed.
    pub min_age: Duration,
}

/// The best step by a metric, among those whose gate passed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Best {
    /// Its name in [`LogEntry::metrics`].
    pub metric: String,
    /// Whether the lowest value is the best.
    pub lowest: bool,
}

impl Best {
    /// The lowest for a loss or perplexity, the highest for anything else.
    #[must_use]
    pub fn by(metric: &str) -> Self {
        let name = metric.rsplit('/').next().unwrap_or(metric);
        Self { metric: metric.to_owned(), lowest: matches!(name, "loss" | "perplexity") }
    }

    /// The best of `steps`; of equals the newest.
    fn of<'a>(&self, steps: &[&'a LogEntry]) -> Option<&'a LogEntry> {
        let sign = if self.lowest { -1.0 } else { 1.0 };
        let scored = steps.iter().filter(|entry| entry.publishable).filter_map(|entry| {
            let value = entry.metrics.get(&self.metric).filter(|value| value.is_finite())?;
            Some((sign * value, *entry))
        });
        scored.max_by(|a, b| a.0.total_cmp(&b.0).then(a.1.seq.cmp(&b.1.seq))).map(|(_, entry)| entry)
    }
}

impl Retention {
    /// The folders to give up, in the order of the log.
    fn give_up(&self, line: &Line, now: Timestamp) -> Vec<String> {
        let steps: Vec<&LogEntry> = line.reached.iter().collect();
        let mut kept: BTreeSet<u64> = BTreeSet::new();
        kept.extend(steps.iter().rev().take(self.last.max(1) as usize).map(|entry| entry.seq));
        kept.extend(steps.iter().rev().find(|entry| entry.publishable).map(|entry| entry.seq));
        kept.extend(self.best.as_ref().and_then(|best| best.of(&steps)).map(|entry| entry.seq));
        let old = |at: Timestamp| now.0.saturating_sub(at.0) >= millis(self.min_age);
        let named = line.reached.iter().chain(&line.left);
        let mut given_up: Vec<&LogEntry> =
            named.filter(|entry| !kept.contains(&entry.seq) && old(entry.at_ms)).collect();
        given_up.sort_by_key(|entry| entry.seq);
        given_up.into_iter().filter_map(|entry| entry.folder.clone()).collect()
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

impl Writer {
    /// Removes what `policy` does not keep and returns the folders that were removed. Steps that a later generation
    /// went back behind are removed as well, and folders that an earlier generation left without a log entry.
    ///
    /// # Errors
    /// `STORE_FENCED`: nothing was removed. Store errors: what is left over goes with the next call.
    pub async fn retain(&mut self, policy: &Retention, now: Timestamp) -> Result<Vec<String>> {
        if self.line.is_none() {
            self.line = Some(self.task.line(self.next - 1).await?);
        }
        let line = self.line.as_ref();
        let given_up = line.map(|line| policy.give_up(line, now)).unwrap_or_default();
        if !given_up.is_empty() {
            let kept = line.map(|line| line.without(&given_up));
            let mut entry = self.blank(EntryKind::Retain);
            entry.removed = given_up;
            entry.kept = kept;
            self.append(entry).await?;
        }
        let mut removed = Vec::new();
        for (folder, objects) in self.leftovers(policy, now).await? {
            self.remove(&folder, objects).await?;
            removed.push(folder);
        }
        Ok(removed)
    }

    /// Folders with objects in them that the log gave up or never named. What an entry gave up that was not read, since a
    /// later one sums it up, is treated as if it had never been named.
    async fn leftovers(&self, policy: &Retention, now: Timestamp) -> Result<BTreeMap<String, Vec<Path>>> {
        let nothing = Line::default();
        let line = self.line.as_ref().unwrap_or(&nothing);
        let mut found = self.step_folders().await?;
        found.retain(|folder, objects| {
            !line.names(folder) && (line.gone.contains(folder) || self.is_abandoned(folder, objects, policy, now))
        });
        Ok(found.into_iter().map(|(folder, metas)| (folder, metas.into_iter().map(|m| m.location).collect())).collect())
    }

    /// A folder without a log entry may be somebody's commit under way. An earlier generation cannot commit any more
    /// once this one has fenced; the age covers clocks and names that repeat.
    fn is_abandoned(&self, folder: &str, objects: &[ObjectMeta], policy: &Retention, now: Timestamp) -> bool {
        let name = folder.rsplit('/').next().unwrap_or(folder);
        let earlier = folder_generation(name).is_some_and(|generation| generation < self.fence().generation.0);
        let newest = objects.iter().map(|meta| meta.last_modified.timestamp_millis()).max().unwrap_or(0);
        let age = now.0.saturating_sub(u64::try_from(newest).unwrap_or(0));
        earlier && age >= millis(policy.min_age)
    }

    async fn step_folders(&self) -> Result<BTreeMap<String, Vec<ObjectMeta>>> {
        let steps = self.task.keys.steps();
        let mut listed = self.task.objects().list(Some(&steps));
        let mut folders: BTreeMap<String, Vec<ObjectMeta>> = BTreeMap::new();
        while let Some(meta) = listed.try_next().await.map_err(|e| self.task.sort("cannot list", &steps, e))? {
            let below = meta.location.prefix_match(&steps).and_then(|mut parts| parts.next());
            if let Some(name) = below.map(|part| part.as_ref().to_owned()) {
                folders.entry(format!("steps/{name}")).or_default().push(meta);
            }
        }
        Ok(folders)
    }

    async fn remove(&self, folder: &str, objects: Vec<Path>) -> Result<()> {
        for key in objects {
            match self.task.objects().delete(&key).await {
                Ok(()) | Err(StoreError::NotFound { .. }) => {}
                Err(error) => return Err(self.task.sort("cannot delete", &key, error)),
            }
        }
        if self.task.store.is_local {
            // On S3 a folder is nothing but its objects. Here it stays, unless somebody puts something into it.
            if let Ok(path) = LocalFileSystem::new().path_to_filesystem(&self.task.keys.folder(folder)) {
                let _ = tokio::fs::remove_dir(path).await;
            }
        }
        tracing::debug!(folder, "removed a step");
        Ok(())
    }
}
