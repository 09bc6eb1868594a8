//! What a row of ready ids says of its tokens beside their ids: what is predicted, where segments of a document begin,
//! which tokens are no text and what they bring with them.

use serde_json::{Map, Value};

use crate::batch::IGNORE;
use crate::fields::brief;
use crate::row::Fault;

/// Fields of a row that are read beside `input_ids`, for language modelling.
pub(crate) const FIELDS: [&str; 4] = ["labels", "segment_ids", "modality_ids", "features"];

/// Marks of one sequence: a list has one entry a token, or none where there is nothing to say.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Marks {
    /// What a position is predicted as, [`IGNORE`] where nothing is; its own id when empty.
    pub labels: Vec<i64>,
    /// Number of the segment of the document that a token is in, never falling; one segment when empty.
    pub segments: Vec<i64>,
    /// Number of a token's modality; 0, text, when empty.
    pub modality: Vec<i64>,
    /// Features of the tokens that are no text, in order, each of `width` numbers.
    pub features: Vec<f32>,
    /// Numbers of one token's features.
    pub width: usize,
}

/// What marks a task's adapter understands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Understood {
    /// Rows may be documents of several segments.
    pub segments: bool,
    /// For each modality by number the tokens of one item, 0 where any number will do; empty when all is text.
    pub modalities: Vec<usize>,
    /// Width of features.
    pub width: usize,
}

impl Marks {
    /// Reads those of a row of `ids`; `None` when it has none.
    pub(crate) fn read(
        row: &Map<String, Value>,
        ids: &[u32],
        vocab: u32,
        may: &Understood,
    ) -> Result<Option<Self>, Fault> {
        let given = |name: &str| row.get(name).filter(|value| !value.is_null());
        if FIELDS.iter().all(|name| given(name).is_none()) {
            return Ok(None);
        }
        let list = |name: &str| given(name).map(|value| whole(name, value, ids.len())).transpose();
        let marks = Self {
            labels: list("labels")?.unwrap_or_default(),
            segments: list("segment_ids")?.unwrap_or_default(),
            modality: list("modality_ids")?.unwrap_or_default(),
            ..Self::default()
        };
        if let Some(label) = marks.labels.iter().find(|id| **id != IGNORE && !(0..i64::from(vocab)).contains(*id)) {
            return Err(Fault::row(format!("field `labels` has {label}, neither -100 nor a token id below {vocab}")));
        }
        if !may.segments && !marks.segments.is_empty() {
            return Err(Fault::row("field `segment_ids`: the adapter knows of no segments"));
        }
        if marks.segments.windows(2).any(|pair| pair[1] < pair[0]) {
            return Err(Fault::row("field `segment_ids`: a number falls"));
        }
        marks.items(may)?;
        let others = marks.others(0..ids.len());
        let features = given("features").map(|value| features(value, others, may.width)).transpose()?;
        if features.is_none() && others > 0 {
            return Err(Fault::row(format!("field `features` is missing, and {others} tokens are no text")));
        }
        Ok(Some(Self { features: features.unwrap_or_default(), width: may.width, ..marks }))
    }

    /// Every item of a modality has its tokens, one behind the other.
    fn items(&self, may: &Understood) -> Result<(), Fault> {
        let kinds = may.modalities.len().max(1) as i64;
        if let Some(other) = self.modality.iter().find(|number| !(0..kinds).contains(*number)) {
            return Err(Fault::row(format!(
                "field `modality_ids` has {other}, and the adapter has {kinds} modalities"
            )));
        }
        for run in self.modality.chunk_by(|a, b| a == b) {
            let each = may.modalities.get(run[0] as usize).copied().unwrap_or(0);
            if each > 0 && run.len() % each != 0 {
                let (n, number) = (run.len(), run[0]);
                return Err(Fault::row(format!(
                    "field `modality_ids`: {n} tokens of modality {number} are not whole items of {each}"
                )));
            }
        }
        Ok(())
    }

    /// How many of these tokens are no text.
    pub(crate) fn others(&self, tokens: std::ops::Range<usize>) -> usize {
        self.modality.get(tokens).unwrap_or_default().iter().filter(|number| **number != 0).count()
    }

    /// Cuts them at a number of tokens.
    pub(crate) fn truncate(&mut self, most: usize) -> Result<(), Fault> {
        if self.others(most..self.modality.len()) > 0 {
            return Err(Fault::row(format!("tokens that are no text lie behind the {most} of max_length")));
        }
        self.labels.truncate(most);
        self.segments.truncate(most);
        self.modality.truncate(most);
        Ok(())
    }
}

/// One whole number a token.
fn whole(name: &str, value: &Value, length: usize) -> Result<Vec<i64>, Fault> {
    let wrong =
        || Fault::row(format!("field `{name}` is {}, not one number for each of {length} tokens", brief(value)));
    let items = value.as_array().filter(|items| items.len() == length).ok_or_else(wrong)?;
    items.iter().map(|item| item.as_i64().ok_or_else(wrong)).collect()
}

/// `rows` lists of `width` numbers.
fn features(value: &Value, rows: usize, width: usize) -> Result<Vec<f32>, Fault> {
    let wrong = || Fault::row(format!("field `features` is not {rows} lists of {width} finite numbers"));
    let lists = value.as_array().filter(|lists| lists.len() == rows).ok_or_else(wrong)?;
    let mut all = Vec::with_capacity(rows * width);
    for list in lists {
        let list = list.as_array().filter(|list| list.len() == width).ok_or_else(wrong)?;
        for number in list {
            let number = number.as_f64().map(|number| number as f32).filter(|number| number.is_finite());
            all.push(number.ok_or_else(wrong)?);
        }
    }
    Ok(all)
}
