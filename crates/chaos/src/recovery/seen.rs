//! What the feed logs showed, and when.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Result;

use crate::feed::{Feeds, Fence, Line};

/// A generation as its members told of it.
#[derive(Clone, Debug, Default)]
pub(super) struct Generation {
    /// When each member was ready to go on, in order, and from which step.
    pub(super) ready: Vec<(Duration, u64)>,
    /// First sight of the rows of each step.
    pub(super) fed: BTreeMap<u64, Duration>,
}

#[derive(Debug)]
pub(super) struct Seen {
    feeds: Feeds,
    pub(super) generations: BTreeMap<Fence, Generation>,
}

impl Seen {
    pub(super) fn of(feeds: Feeds) -> Self {
        Self { feeds, generations: BTreeMap::new() }
    }

    pub(super) fn look(&mut self, now: Duration) -> Result<()> {
        for line in self.feeds.more()? {
            self.add(&line, now);
        }
        Ok(())
    }

    fn add(&mut self, line: &Line, now: Duration) {
        let generation = self.generations.entry(line.fence()).or_default();
        match line {
            Line::Fed(fed) => {
                generation.fed.entry(fed.step).or_insert(now);
            }
            Line::Resume(resume) => generation.ready.push((now, resume.step)),
        }
    }

    /// The newest generation.
    pub(super) fn newest(&self) -> Fence {
        self.generations.last_key_value().map_or((0, 0), |(fence, _)| *fence)
    }

    /// The first generation after `fence` in which so many members are ready: its fence, when the last of them was, and the step
    /// that it goes on from.
    pub(super) fn formed(&self, after: Fence, world: usize) -> Option<(Fence, Duration, u64)> {
        let later = self.generations.iter().filter(|(fence, _)| **fence > after);
        later
            .filter_map(|(fence, generation)| {
                let (at, step) = *generation.ready.get(world.checked_sub(1)?)?;
                Some((*fence, at, step))
            })
            .next()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::feed::Resume;

    fn resume(generation: u64, step: u64) -> Line {
        Line::Resume(Resume { task: "t".into(), step, term: 1, generation, source: "memory".into() })
    }

    #[test]
    fn a_generation_is_formed_when_all_its_members_are_ready() {
        let mut seen = Seen::of(Feeds::of(std::path::Path::new("nowhere")));
        let ms = Duration::from_millis;
        for (generation, step, at) in [(1, 0, 1), (1, 0, 2), (2, 7, 10), (3, 7, 20), (3, 7, 30)] {
            seen.add(&resume(generation, step), ms(at));
        }
        assert_eq!(seen.formed((1, 1), 1), Some(((1, 2), ms(10), 7)));
        assert_eq!(seen.formed((1, 1), 2), Some(((1, 3), ms(30), 7)));
        assert_eq!(seen.formed((1, 1), 3), None);
        assert_eq!(seen.newest(), (1, 3));
    }
}
