//! What a row must hold for a task, checked without a tokenizer.

use std::collections::BTreeSet;

use pleach_base::Result;
use pleach_spec::job::{DataSpec, DataTask, RowTasks};
use serde_json::{Map, Value};

use crate::marks::{self, Marks, Understood};
use crate::row::Fault;
use crate::template::{Template, missing};

/// Which part of a retrieval row is used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Side {
    /// Query and passage.
    #[default]
    Both,
    /// The passage only: rows that are further candidates of an evaluation.
    Passage,
}

/// The fields of a task: templates, ready token ids, label, and the ranges of the latter two.
#[derive(Clone, Debug)]
pub struct Fields {
    task: DataTask,
    side: Side,
    first: Text,
    second: Option<Text>,
    label: String,
    task_field: String,
    tasks: Option<RowTasks>,
    vocab_size: u32,
    num_labels: Option<u32>,
    /// What may be said of tokens.
    understood: Understood,
}

/// Where one text of a row comes from.
#[derive(Clone, Debug)]
struct Text {
    template: Template,
    /// Field of ready token ids; looked at when the job gives no template.
    ready: Option<&'static str>,
    /// The ready ids must be there.
    ids_only: bool,
}

/// One text of a row, or its ready ids.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Piece {
    Text(String),
    Ids { ids: Vec<u32>, type_ids: Vec<u32> },
}

/// A row that has everything its task needs.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Checked {
    /// Absent for candidates.
    pub(crate) first: Option<Piece>,
    pub(crate) second: Option<Piece>,
    pub(crate) label: Option<u32>,
    /// Of a row of ready ids.
    pub(crate) marks: Option<Marks>,
    /// The task that the row names.
    pub(crate) row_task: Option<u32>,
}

impl Fields {
    /// The fields that a job asks for.
    ///
    /// # Errors
    /// `BAD_VALUE` for a template that does not compile.
    pub fn of(spec: &DataSpec, side: Side, vocab_size: u32, num_labels: Option<u32>) -> Result<Self> {
        let second = match (spec.task, &spec.text_pair) {
            (DataTask::CausalLm | DataTask::MaskedLm, _) | (DataTask::SequenceClassification, None) => None,
            (_, template) => Some(Text::of(template.as_deref(), "text_pair", "input_ids_pair")?),
        };
        let first = Text::of(spec.text.as_deref(), "text", "input_ids")?;
        // A retrieval job names the template of its passages, or has none at all: its rows are ids then.
        let ids_only = spec.task == DataTask::Retrieval && spec.text.is_none() && spec.text_pair.is_none();
        Ok(Self {
            task: spec.task,
            side,
            first: Text { ids_only, ..first },
            second: second.map(|second| Text { ids_only, ..second }),
            label: spec.label.clone(),
            task_field: spec.task_field.clone(),
            tasks: None,
            vocab_size,
            num_labels,
            understood: Understood::default(),
        })
    }

    /// The same where rows may be marked in these ways.
    #[must_use]
    pub fn understanding(self, understood: Understood) -> Self {
        Self { understood, ..self }
    }

    /// The same of rows that name one of these tasks each.
    #[must_use]
    pub fn with_tasks(self, tasks: Option<RowTasks>) -> Self {
        Self { tasks, ..self }
    }

    pub(crate) fn tasks(&self) -> Option<&RowTasks> {
        self.tasks.as_ref()
    }

    /// What is learnt from a row.
    #[must_use]
    pub fn task(&self) -> DataTask {
        self.task
    }

    /// Every field that a row may be asked for.
    #[must_use]
    pub fn names(&self) -> BTreeSet<&str> {
        let mut names = BTreeSet::new();
        for text in self.first_used().into_iter().chain(&self.second) {
            if !text.ids_only {
                names.extend(text.template.fields());
            }
            names.extend(text.ready);
        }
        if self.task == DataTask::SequenceClassification {
            names.insert(&self.label);
            names.extend(self.first.ready.map(|_| "token_type_ids"));
        }
        if self.task.is_language() && self.first.ready.is_some() {
            names.extend(marks::FIELDS);
        }
        names.extend(self.tasks.as_ref().map(|_| self.task_field.as_str()));
        names
    }

    fn first_used(&self) -> Option<&Text> {
        (self.side == Side::Both || self.task != DataTask::Retrieval).then_some(&self.first)
    }

    /// Takes the parts of a row that the task needs, or says what is wrong with it.
    pub(crate) fn check(&self, row: &Map<String, Value>) -> Result<Checked, Fault> {
        let take = |text: &Text| text.take(row, self.vocab_size);
        let mut first = self.first_used().map(take).transpose()?;
        let second = self.second.as_ref().map(take).transpose()?;
        let mut label = None;
        if self.task == DataTask::SequenceClassification {
            label = Some(self.label_of(row)?);
            if matches!(first, Some(Piece::Ids { .. })) && second.is_some() {
                return Err(Fault::row("`input_ids` cannot be joined with a `text_pair`: give the pair's ids as one"));
            }
            if let Some(Piece::Ids { ids, type_ids }) = &mut first {
                *type_ids = segments(row, ids.len())?;
            }
        }
        let marks = match (self.task, &first) {
            (DataTask::CausalLm | DataTask::MaskedLm, Some(Piece::Ids { ids, .. })) => {
                Marks::read(row, ids, self.vocab_size, &self.understood)?
            }
            _ => None,
        };
        let row_task = self.tasks.as_ref().map(|tasks| self.task_of(row, tasks)).transpose()?;
        if let (Some(task), Some(tasks)) = (row_task, &self.tasks) {
            prompt(&mut first, tasks, task)?;
        }
        Ok(Checked { first, second, label, marks, row_task })
    }

    /// The number of the task that a row names.
    pub(crate) fn task_of(&self, row: &Map<String, Value>, tasks: &RowTasks) -> Result<u32, Fault> {
        let name = &self.task_field;
        let value = row.get(name).ok_or_else(|| missing(name, row))?;
        let number = match value {
            Value::String(text) => tasks.names.iter().position(|known| known == text).map(|at| at as u32),
            other => other.as_u64().and_then(|number| u32::try_from(number).ok()),
        };
        number.filter(|number| *number < tasks.count).ok_or_else(|| {
            let known = match tasks.names.as_slice() {
                [] => format!("numbers below {}", tasks.count),
                names => names.join(", "),
            };
            Fault::row(format!("field `{name}` is {}, none of the adapter's tasks: {known}", brief(value)))
        })
    }

    fn label_of(&self, row: &Map<String, Value>) -> Result<u32, Fault> {
        let name = &self.label;
        let value = row.get(name).ok_or_else(|| missing(name, row))?;
        let label = value.as_u64().and_then(|label| u32::try_from(label).ok());
        let label =
            label.ok_or_else(|| Fault::row(format!("field `{name}` is {}, not a class number", brief(value))))?;
        match self.num_labels {
            Some(classes) if label >= classes => {
                Err(Fault::row(format!("field `{name}` is {label}, outside the {classes} classes of the model")))
            }
            _ => Ok(label),
        }
    }
}

impl Text {
    fn of(template: Option<&str>, name: &'static str, ready: &'static str) -> Result<Self> {
        match template {
            Some(source) => {
                let template = Template::parse(source, &format!("spec.data.{name}"))?;
                Ok(Self { template, ready: None, ids_only: false })
            }
            None => Ok(Self { template: Template::field(name), ready: Some(ready), ids_only: false }),
        }
    }

    fn take(&self, row: &Map<String, Value>, vocab_size: u32) -> Result<Piece, Fault> {
        if let Some((name, value)) = self.ready.and_then(|name| Some((name, row.get(name)?)))
            && !value.is_null()
        {
            let ids = numbers(name, value)?;
            if ids.is_empty() {
                return Err(Fault::row(format!("field `{name}` is empty")));
            }
            if let Some(id) = ids.iter().find(|id| **id >= u64::from(vocab_size)) {
                return Err(Fault::token_range(*id, vocab_size));
            }
            return Ok(Piece::Ids { type_ids: vec![0; ids.len()], ids: ids.into_iter().map(|id| id as u32).collect() });
        }
        if let (true, Some(name)) = (self.ids_only, self.ready) {
            return Err(Fault::row(format!(
                "field `{name}` is missing; rows of text need `text` and `text_pair`, their templates, in the job"
            )));
        }
        let text = self.template.render(row)?;
        if text.trim().is_empty() {
            return Err(Fault::row(format!("`{}` gives an empty text", self.template)));
        }
        Ok(Piece::Text(text))
    }
}

/// Puts the prompt of a row's task before its text.
fn prompt(first: &mut Option<Piece>, tasks: &RowTasks, task: u32) -> Result<(), Fault> {
    let prompt = tasks.prompts.get(task as usize).map(String::as_str).unwrap_or_default();
    match first {
        Some(Piece::Text(text)) => text.insert_str(0, prompt),
        Some(Piece::Ids { .. }) if !prompt.is_empty() => {
            return Err(Fault::row("the prompt of the row's task needs a text, and the row has `input_ids`"));
        }
        Some(Piece::Ids { .. }) | None => {}
    }
    Ok(())
}

fn segments(row: &Map<String, Value>, length: usize) -> Result<Vec<u32>, Fault> {
    let Some(value) = row.get("token_type_ids").filter(|value| !value.is_null()) else { return Ok(vec![0; length]) };
    let types = numbers("token_type_ids", value)?;
    if types.len() != length || types.iter().any(|kind| *kind > 1) {
        return Err(Fault::row(format!("field `token_type_ids` is not one 0 or 1 for each of {length} tokens")));
    }
    Ok(types.into_iter().map(|kind| kind as u32).collect())
}

fn numbers(name: &str, value: &Value) -> Result<Vec<u64>, Fault> {
    let wrong = || Fault::row(format!("field `{name}` is {}, not an array of token ids", brief(value)));
    let items = value.as_array().ok_or_else(wrong)?;
    items.iter().map(|item| item.as_u64().ok_or_else(wrong)).collect()
}

pub(crate) fn brief(value: &Value) -> String {
    let mut text = value.to_string();
    if let Some((cut, _)) = text.char_indices().nth(40) {
        text.truncate(cut);
        text.push_str("...");
    }
    text
}
