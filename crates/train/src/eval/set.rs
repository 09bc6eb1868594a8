//! What is evaluated, prepared once: encoded rows, or distinct texts with the queries' passages among them.

use std::collections::BTreeMap;

use pleach_data::{Content, Encoded, Example};

/// Rows to evaluate on: the same on every rank.
#[derive(Clone, Debug)]
pub enum EvalSet {
    /// Rows with token or class labels.
    Rows(Vec<Example>),
    /// Queries among candidates.
    Retrieval(Retrieval),
}

/// Queries and candidates as distinct token sequences.
#[derive(Clone, Debug, Default)]
pub struct Retrieval {
    /// Every distinct sequence, in order of first use.
    pub(super) texts: Vec<Encoded>,
    /// The task of each text, when rows name theirs; else empty.
    pub(super) tasks: Vec<u32>,
    /// Index of each query's text.
    pub(super) queries: Vec<usize>,
    /// Index of each candidate's text, each once.
    pub(super) candidates: Vec<usize>,
    /// For each query the place of its passage among the candidates.
    pub(super) gold: Vec<i64>,
}

impl EvalSet {
    /// Labelled rows by the groups of their classes; other rows are left out.
    pub(crate) fn by_class(&self, splits: &[Vec<u32>]) -> Vec<Vec<Example>> {
        let mut found = vec![Vec::new(); splits.len()];
        let Self::Rows(rows) = self else { return found };
        for row in rows {
            let Content::Classification { label, .. } = &row.content else { continue };
            if let Some(split) = splits.iter().position(|split| split.contains(label)) {
                found[split].push(row.clone());
            }
        }
        found
    }

    /// Evaluates on labelled rows.
    #[must_use]
    pub fn rows(examples: Vec<Example>) -> Self {
        Self::Rows(examples)
    }

    /// Ranks the passage of each of `pairs` among the passages of `pairs` and of `more`. Equal passages are one
    /// candidate.
    #[must_use]
    pub fn retrieval(pairs: Vec<Example>, more: Vec<Example>) -> Self {
        let mut set = Retrieval::default();
        let mut texts = BTreeMap::new();
        let mut places = BTreeMap::new();
        let queries_from = pairs.len();
        for (index, example) in pairs.into_iter().chain(more).enumerate() {
            let (Content::Pair { query, passage }, task) = (example.content, example.row_task) else { continue };
            let passage = set.text(&mut texts, passage, task);
            let place = *places.entry(passage).or_insert_with(|| {
                set.candidates.push(passage);
                set.candidates.len() as i64 - 1
            });
            if let Some(query) = query.filter(|_| index < queries_from) {
                let query = set.text(&mut texts, query, task);
                set.queries.push(query);
                set.gold.push(place);
            }
        }
        Self::Retrieval(set)
    }

    /// Rows, or queries.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::Rows(rows) => rows.len(),
            Self::Retrieval(retrieval) => retrieval.queries.len(),
        }
    }

    /// Nothing to evaluate.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Number of a text of a task.
type Known = BTreeMap<(Vec<u32>, Option<u32>), usize>;

impl Retrieval {
    fn text(&mut self, known: &mut Known, text: Encoded, task: Option<u32>) -> usize {
        *known.entry((text.ids.clone(), task)).or_insert_with(|| {
            self.texts.push(text);
            self.tasks.extend(task);
            self.texts.len() - 1
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(query: Option<u32>, passage: u32) -> Example {
        let text = |id| Encoded { ids: vec![id], type_ids: vec![0] };
        Example {
            sample_id: 0,
            row_task: None,
            content: Content::Pair { query: query.map(text), passage: text(passage) },
        }
    }

    #[test]
    fn equal_passages_are_one_candidate() {
        let pairs = vec![pair(Some(1), 10), pair(Some(2), 11), pair(Some(3), 10)];
        let more = vec![pair(None, 11), pair(Some(9), 12), pair(None, 2)];
        let EvalSet::Retrieval(set) = EvalSet::retrieval(pairs, more) else { panic!("a retrieval set") };
        let id = |index: usize| set.texts[index].ids[0];
        assert_eq!(set.candidates.iter().map(|c| id(*c)).collect::<Vec<_>>(), [10, 11, 12, 2]);
        assert_eq!(set.queries.iter().map(|q| id(*q)).collect::<Vec<_>>(), [1, 2, 3], "9 is a candidate's query");
        assert_eq!(set.gold, [0, 1, 0]);
        assert_eq!(set.texts.len(), 6, "the text 2 is query and candidate, and is embedded once");
    }
}
