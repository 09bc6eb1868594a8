//! A recorded batch as a pass of the model: which inputs there are follows from what the model reads.

use pleach_base::Result;
use pleach_nn::{Inputs, Layout, ModelInfo, Output, Source};
use tch::{Device, Kind, Tensor};

use super::Measure;
use super::case::Case;
use crate::engine::PassInput;

/// One batch: what goes into the model, and what it should learn.
pub(super) struct Recorded {
    prefix: String,
    pub(super) input: PassInput,
    pub(super) labels: Tensor,
    /// Whether logits stand at the input's tokens, of which only the real ones are compared.
    at_tokens: bool,
}

impl Recorded {
    /// The batch whose tensors begin with `prefix`.
    ///
    /// # Errors
    /// `PARITY_CASE` naming the tensor that is missing, has another shape or is padded on the left.
    pub(super) fn read(case: &Case, prefix: &str, info: &ModelInfo) -> Result<Self> {
        let reads = &info.reads;
        let reader = Reader { case, prefix };
        let (first, layout) = reader.source(&reads.first, None)?;
        let labels = match case.get(&reader.name("labels")) {
            Some(labels) if labels.kind() == Kind::Int64 => labels.shallow_clone(),
            Some(labels) => {
                let what = format!("`{prefix}.labels` is {:?}; only classes and token ids are learnt", labels.kind());
                return Err(case.wrong("io.safetensors", what));
            }
            // Towers that are compared: each row belongs to its own number.
            None => Tensor::arange(layout.sequences() as i64, (Kind::Int64, Device::Cpu)),
        };
        let mut inputs = Inputs::default().with(reads.first.name(), first);
        if let Some(types) = case.get(&reader.name("token_type_ids")) {
            inputs = inputs.with("token_type_ids", types.shallow_clone());
        }
        let mut second = None;
        if let Some(source) = &reads.second {
            let shifted = || match (reads.shift, labels.size().as_slice()) {
                (Some(shift), [rows, width]) => {
                    Some(shift.shift_right(&labels, &whole_rows(*rows as usize, *width as usize)))
                }
                _ => None,
            };
            let (tensor, layout) = reader.source(source, Some(&shifted))?;
            inputs = inputs.with(source.name(), tensor);
            second = Some(layout);
        }
        let at_tokens = matches!(reads.first, Source::Tokens { .. }) && second.is_none();
        Ok(Self { prefix: prefix.to_owned(), input: PassInput { inputs, layout, second }, labels, at_tokens })
    }

    /// Compares logits with the recorded ones, with `prompt` virtual tokens in front.
    ///
    /// # Errors
    /// `PARITY_CASE` when they were not recorded.
    pub(super) fn logits(&self, case: &Case, name: &str, found: &Output, prompt: usize) -> Result<Measure> {
        let expected = case.need(&format!("{}.{name}", self.prefix))?;
        let found = found.tensor();
        let mut measure = Measure::new(case.tolerance.logits_abs);
        if found.dim() < 3 || !self.at_tokens || found.size() != expected.size() {
            measure.absolute(found, expected, name);
            return Ok(measure);
        }
        for (row, length) in self.input.layout.lengths().iter().enumerate() {
            let real = |logits: &Tensor| logits.get(row as i64).narrow(0, 0, (length + prompt) as i64);
            measure.absolute(&real(found), &real(expected), &format!("row {row}"));
        }
        Ok(measure)
    }
}

struct Reader<'a> {
    case: &'a Case,
    prefix: &'a str,
}

impl Reader<'_> {
    fn name(&self, of: &str) -> String {
        format!("{}.{of}", self.prefix)
    }

    /// The input of a stack and how it lies; `other` makes it where it was not recorded.
    fn source(&self, source: &Source, other: Option<&dyn Fn() -> Option<Tensor>>) -> Result<(Tensor, Layout)> {
        let name = self.name(source.name());
        let tensor = match (self.case.get(&name), other.and_then(|make| make())) {
            (Some(recorded), _) => recorded.shallow_clone(),
            (None, Some(made)) => made,
            (None, None) => self.case.need(&name)?.shallow_clone(),
        };
        let size: Vec<usize> = tensor.size().iter().map(|n| *n as usize).collect();
        let wrong = |wanted: String| {
            self.case.wrong("io.safetensors", format!("tensor `{name}`: expected {wanted}, found {size:?}"))
        };
        match (source, size.as_slice()) {
            (Source::Tokens { name: "input_ids" }, [rows, width]) => {
                let lengths = self.lengths(*rows, *width)?;
                let samples = (0..*rows as u64).collect();
                Ok((tensor, Layout::padded(lengths, *width, samples, Device::Cpu)))
            }
            (Source::Tokens { .. }, [rows, width]) => Ok((tensor, whole_rows(*rows, *width))),
            (Source::Tokens { .. }, _) => Err(wrong("[rows, width]".to_owned())),
            (Source::Fixed { shape, .. }, [rows, rest @ ..]) if rest == shape.as_slice() => {
                let samples = (0..*rows as u64).collect();
                let layout = source.layout(samples, false, Device::Cpu);
                layout.map(|layout| (tensor, layout)).ok_or_else(|| wrong(format!("[rows, {shape:?}]")))
            }
            (Source::Fixed { shape, .. }, _) => Err(wrong(format!("[rows, ..] of {shape:?}"))),
        }
    }

    /// Real tokens of each row.
    fn lengths(&self, rows: usize, width: usize) -> Result<Vec<usize>> {
        let name = self.name("attention_mask");
        let Some(mask) = self.case.get(&name) else { return Ok(vec![width; rows]) };
        let wrong = |what: &str| Err(self.case.wrong("io.safetensors", format!("tensor `{name}`: {what}")));
        if mask.size() != [rows as i64, width as i64] {
            return wrong("has another shape than `input_ids`");
        }
        let mut lengths = Vec::with_capacity(rows);
        for row in 0..rows as i64 {
            let marks: Vec<i64> =
                mask.get(row).to_kind(Kind::Int64).iter::<i64>().map(Iterator::collect).unwrap_or_default();
            let length = marks.iter().take_while(|mark| **mark == 1).count();
            if length == 0 || marks[length..].iter().any(|mark| *mark != 0) {
                return wrong("only padding on the right is read");
            }
            lengths.push(length);
        }
        Ok(lengths)
    }
}

/// Rows without padding.
fn whole_rows(rows: usize, width: usize) -> Layout {
    Layout::padded(vec![width; rows], width, (0..rows as u64).collect(), Device::Cpu)
}
