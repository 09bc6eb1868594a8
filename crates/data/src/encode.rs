//! From rows to examples: templates, tokenizer, limits of the model.

use std::path::Path;

use pleach_base::rng::Key;
use pleach_base::{Result, code};
use pleach_spec::job::{DataSpec, DataTask, Masking, RowTasks};
use serde_json::{Map, Value};

use crate::example::{Content, Encoded, Example};
use crate::fields::{Checked, Fields, Piece, Side};
use crate::marks::Understood;
use crate::masks::Masks;
use crate::row::{Fault, Row};
use crate::tokenizer::Tokenizer;

/// What the model can take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Rows of the token embedding.
    pub vocab_size: u32,
    /// Classes of the classification head, if there is one.
    pub num_labels: Option<u32>,
    /// Longest sequence that has positions, if there is such a limit.
    pub max_positions: Option<u32>,
}

/// Turns rows into examples; shared by all readers of a task's data.
#[derive(Debug)]
pub struct Encoder {
    fields: Fields,
    tokenizer: Option<Tokenizer>,
    max_length: usize,
    limits: Limits,
    /// For masked language modelling.
    masks: Option<Masks>,
}

impl Encoder {
    /// The encoder of `spec`: with the tokenizer it names, or else `tokenizer.json` in the model folder, or else none,
    /// which suffices for rows with ready `input_ids`.
    ///
    /// # Errors
    /// `TOKENIZER`, or see [`Encoder::new`].
    pub fn open(spec: &DataSpec, model: &Path, side: Side, limits: Limits) -> Result<Self> {
        let tokenizer = match &spec.tokenizer {
            Some(path) => Some(Tokenizer::open(Path::new(path))?),
            None => {
                let path = model.join("tokenizer.json");
                if path.exists() { Some(Tokenizer::open(&path)?) } else { None }
            }
        };
        Self::new(spec, tokenizer, side, limits)
    }

    /// The encoder of `spec` with this tokenizer. Sequences are cut at `spec.max_length`, or at the model's positions
    /// if it has fewer.
    ///
    /// # Errors
    /// `BAD_VALUE`: a template that does not compile, or a `max_length` without room for one token beside the special
    /// ones; masked language modelling without a mask. `TOKENIZER`: the job has text templates and there is no tokenizer.
    pub fn new(spec: &DataSpec, tokenizer: Option<Tokenizer>, side: Side, limits: Limits) -> Result<Self> {
        let fields = Fields::of(spec, side, limits.vocab_size, limits.num_labels)?;
        if tokenizer.is_none() && (spec.text.is_some() || spec.text_pair.is_some()) {
            return Err(no_tokenizer());
        }
        let max_length = spec.max_length.min(limits.max_positions.unwrap_or(u32::MAX));
        if max_length < spec.max_length {
            tracing::info!(max_length, asked = spec.max_length, "sequences are cut at the model's last position");
        }
        let pair = spec.task == DataTask::SequenceClassification && spec.text_pair.is_some();
        let special = tokenizer.as_ref().map_or(0, |tokenizer| tokenizer.special_tokens(pair));
        let least = special + 1 + usize::from(pair);
        if (max_length as usize) < least {
            return Err(code::BAD_VALUE
                .error(format!("spec.data.max_length: {max_length} has no room for a token"))
                .hint(format!("the tokenizer adds {special} special tokens: use at least {least}")));
        }
        let masks = match spec.task {
            DataTask::MaskedLm => Some(masks(spec, tokenizer.as_ref(), limits.vocab_size)?),
            _ => None,
        };
        Ok(Self { fields, tokenizer, max_length: max_length as usize, limits, masks })
    }

    /// The same where tokens of masked language modelling are drawn in this way, from this key.
    #[must_use]
    pub fn masking(self, masking: Masking, key: Key) -> Self {
        Self { masks: self.masks.map(|masks| Masks { masking, key, ..masks }), ..self }
    }

    /// The same where rows of ready ids may be marked in these ways.
    #[must_use]
    pub fn understanding(self, understood: Understood) -> Self {
        Self { fields: self.fields.understanding(understood), ..self }
    }

    /// The same of rows that name one of these tasks each, in the field `spec.data.task_field`.
    #[must_use]
    pub fn with_tasks(self, tasks: Option<RowTasks>) -> Self {
        Self { fields: self.fields.with_tasks(tasks), ..self }
    }

    /// The tasks that rows name.
    pub(crate) fn tasks(&self) -> Option<&RowTasks> {
        self.fields.tasks()
    }

    /// The number of the task that a row names; 0 when rows name none.
    pub(crate) fn row_task(&self, row: &Row) -> Result<u32> {
        let named = self.tasks().map(|tasks| self.fields.task_of(&row.fields, tasks)).transpose();
        Ok(named.map_err(|fault| fault.late(&row.place))?.unwrap_or_default())
    }

    /// What a row must hold.
    #[must_use]
    pub fn fields(&self) -> &Fields {
        &self.fields
    }

    /// What is learnt from a row.
    #[must_use]
    pub fn task(&self) -> DataTask {
        self.fields.task()
    }

    /// Longest sequence in tokens, special tokens included.
    #[must_use]
    pub fn max_length(&self) -> usize {
        self.max_length
    }

    /// The id to pad with: the tokenizer's when the model has it, else 0.
    #[must_use]
    pub fn pad_id(&self) -> u32 {
        let pad_id = self.tokenizer.as_ref().map_or(0, Tokenizer::pad_id);
        if pad_id < self.limits.vocab_size { pad_id } else { 0 }
    }

    /// The example of a row, as it is evaluated.
    ///
    /// # Errors
    /// `DATA_ROW` or `TOKEN_RANGE` with file and line, for a row that was not validated or changed since.
    pub fn encode(&self, row: &Row) -> Result<Example> {
        self.encode_for(row, None)
    }

    /// The example of a row as it is trained on in an epoch.
    ///
    /// # Errors
    /// As [`Encoder::encode`].
    pub fn encode_in(&self, row: &Row, epoch: u64) -> Result<Example> {
        self.encode_for(row, Some(epoch))
    }

    fn encode_for(&self, row: &Row, epoch: Option<u64>) -> Result<Example> {
        let checked = self.fields.check(&row.fields).map_err(|fault| fault.late(&row.place))?;
        let row_task = checked.row_task;
        let mut content = self.content(checked).map_err(|fault| fault.late(&row.place))?;
        if let (Some(masks), Content::Lm(tokens)) = (&self.masks, &content) {
            let (read, marks) = masks.draw(row.id, epoch, tokens);
            content = Content::Marked(read, marks);
        }
        Ok(Example { sample_id: row.id, row_task, content })
    }

    /// The class of a row, where rows have one.
    ///
    /// # Errors
    /// `DATA_ROW` with file and line, for a row that was not validated or changed since.
    pub fn class(&self, row: &Row) -> Result<Option<u32>> {
        Ok(self.fields.check(&row.fields).map_err(|fault| fault.late(&row.place))?.label)
    }

    /// Changes with anything that decides which rows are usable.
    pub(crate) fn fingerprint(&self) -> String {
        let tokenizer = self.tokenizer.as_ref().map(Tokenizer::sha256);
        format!("{:?} {:?} {:?} {}", self.fields, self.limits, tokenizer, self.max_length)
    }

    /// Whether a row is usable. Tokenises it only where the tokenizer could refuse a text or give an id that the model
    /// lacks.
    pub(crate) fn validate(&self, row: &Map<String, Value>) -> Result<(), Fault> {
        let checked = self.fields.check(row)?;
        let safe =
            self.tokenizer.as_ref().is_some_and(|text| text.is_total() && text.max_id() < self.limits.vocab_size);
        if safe && checked.marks.is_none() { Ok(()) } else { self.content(checked).map(|_| ()) }
    }

    fn content(&self, checked: Checked) -> Result<Content, Fault> {
        match (self.task(), checked) {
            (DataTask::CausalLm | DataTask::MaskedLm, Checked { first: Some(text), marks: None, .. }) => {
                Ok(Content::Lm(self.tokens(text, None)?))
            }
            (DataTask::CausalLm | DataTask::MaskedLm, Checked { first: Some(text), marks: Some(mut marks), .. }) => {
                marks.truncate(self.max_length)?;
                Ok(Content::Marked(self.tokens(text, None)?, marks))
            }
            (DataTask::SequenceClassification, Checked { first: Some(text), second, label: Some(label), .. }) => {
                Ok(Content::Classification { input: self.tokens(text, second)?, label })
            }
            (DataTask::Retrieval, Checked { first, second: Some(passage), .. }) => {
                let query = first.map(|text| self.tokens(text, None)).transpose()?;
                Ok(Content::Pair { query, passage: self.tokens(passage, None)? })
            }
            (task, _) => Err(Fault::row(format!("the row lacks a part that {task:?} needs"))),
        }
    }

    fn tokens(&self, piece: Piece, pair: Option<Piece>) -> Result<Encoded, Fault> {
        let encoded = match (piece, pair) {
            (Piece::Ids { mut ids, mut type_ids }, None) => {
                ids.truncate(self.max_length);
                type_ids.truncate(self.max_length);
                return Ok(Encoded { ids, type_ids });
            }
            (Piece::Text(text), None) => self.text(&text, None)?,
            (Piece::Text(text), Some(Piece::Text(pair))) => self.text(&text, Some(&pair))?,
            _ => return Err(Fault::row("a pair needs two texts, not ready ids")),
        };
        if encoded.is_empty() {
            return Err(Fault::row("the text gives no token"));
        }
        match encoded.ids.iter().find(|id| **id >= self.limits.vocab_size) {
            Some(id) => Err(Fault::token_range(u64::from(*id), self.limits.vocab_size)),
            None => Ok(encoded),
        }
    }

    fn text(&self, text: &str, pair: Option<&str>) -> Result<Encoded, Fault> {
        let Some(tokenizer) = &self.tokenizer else {
            return Err(Fault::row(
                "the row is text and there is no tokenizer: give it `input_ids`, or the job a tokenizer.json",
            ));
        };
        tokenizer.encode(text, pair, self.max_length).map_err(Fault::row)
    }
}

/// The masks of a job: what stands for a masked token is named by it, or by the tokenizer.
fn masks(spec: &DataSpec, tokenizer: Option<&Tokenizer>, vocab_size: u32) -> Result<Masks> {
    const AT: &str = "spec.data.mask_token_id";
    let token = spec.mask_token_id.or_else(|| tokenizer.and_then(Tokenizer::mask_id)).ok_or_else(|| {
        code::BAD_VALUE
            .error(format!("{AT}: masked_lm needs a token that stands for a masked one, and no tokenizer names any"))
            .hint("give its id, or a tokenizer.json that has `[MASK]` or `<mask>`")
    })?;
    if token >= vocab_size {
        return Err(code::BAD_VALUE.error(format!("{AT}: {token} is none of the {vocab_size} ids of the model")));
    }
    let special = tokenizer.map(Tokenizer::special_ids).unwrap_or_default();
    Ok(Masks { masking: Masking::default(), token, special, vocab_size, key: Key::seed(0) })
}

fn no_tokenizer() -> pleach_base::Error {
    code::TOKENIZER
        .error("spec.data: the rows are text and the model folder has no tokenizer.json")
        .hint("put the model's tokenizer.json beside its weights, set spec.data.tokenizer, or give rows with ready `input_ids`")
}
