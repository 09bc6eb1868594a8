//! Masks of dropout: drawn for each sample by its id, so that company, padding and layout do not matter.

use pleach_base::rng::Key;
use pleach_nn::{Form, Layout, SiteCx};
use tch::{Device, Kind, Tensor};

/// Dropout of a hook's inputs.
pub(crate) struct Dropout {
    /// Share that is dropped.
    pub(crate) p: f64,
    /// The hook's own key: of the task, the method's name for this dropout, and the site.
    pub(crate) key: Key,
}

impl Dropout {
    /// The dropout called `name` of the site at `path`. `root` is the task's key.
    pub(crate) fn new(p: f64, root: Key, name: &str, path: &str) -> Self {
        Self { p, key: root.named(name).named(path) }
    }

    /// Whether anything is dropped in this pass.
    pub(crate) fn is_on(&self, cx: &SiteCx<'_>) -> bool {
        cx.train && self.p > 0.0
    }

    /// `x` `[.., width]` as float32, dropped in training. Never in place: in float32 `x` is the model's own tensor,
    /// which the base and other hooks read too.
    pub(crate) fn apply(&self, cx: &SiteCx<'_>, x: &Tensor) -> Tensor {
        let x = x.to_kind(Kind::Float);
        if !self.is_on(cx) {
            return x;
        }
        let width = x.size().last().copied().unwrap_or(1);
        x * keep_mask(cx.layout, usize::try_from(width).unwrap_or(1), self.p, self.now(cx))
    }

    /// `x` `[.., width]`, of which whole sequences are dropped in training.
    pub(crate) fn sequences(&self, cx: &SiteCx<'_>, x: &Tensor) -> Tensor {
        if !self.is_on(cx) {
            return x.shallow_clone();
        }
        let scale = (1.0 / (1.0 - self.p)) as f32;
        let keep =
            |sample: &u64| if f64::from(self.now(cx).with(*sample).rng().uniform()) >= self.p { scale } else { 0.0 };
        let rows: Vec<f32> = cx.layout.samples().iter().map(keep).collect();
        x * every_token(cx.layout, &Tensor::from_slice(&rows).unsqueeze(1).to_device(cx.layout.device()))
    }

    /// The same where `x` has one row a sequence, `[sequences, ..]`, as images and spectrograms have.
    pub(crate) fn apply_rows(&self, cx: &SiteCx<'_>, x: &Tensor) -> Tensor {
        let x = x.to_kind(Kind::Float);
        if !self.is_on(cx) {
            return x;
        }
        let (size, key) = (x.size(), self.now(cx));
        let each: i64 = size.iter().skip(1).product();
        let each = usize::try_from(each).unwrap_or_default();
        let rows: Vec<_> = cx
            .layout
            .samples()
            .iter()
            .map(|sample| whole_site(each, self.p, key.with(*sample), x.device()).reshape(&size[1..]))
            .collect();
        x * Tensor::stack(&rows, 0)
    }

    /// The key of this step and pass.
    pub(crate) fn now(&self, cx: &SiteCx<'_>) -> Key {
        self.key.with(cx.step).with(u64::from(cx.pass))
    }
}

/// `0` or `1 / (1 - p)` for every input of every real token, `[.., width]`.
pub(crate) fn keep_mask(layout: &Layout, width: usize, p: f64, key: Key) -> Tensor {
    let scale = (1.0 / (1.0 - p)) as f32;
    let mut shape = layout.shape();
    let total: i64 = shape.iter().product();
    let mut values = vec![0.0f32; usize::try_from(total).unwrap_or_default() * width];
    for (sequence, sample) in layout.samples().iter().enumerate() {
        let tokens = layout.token_range(sequence);
        let mut rng = key.with(*sample).rng();
        for value in &mut values[tokens.start * width..tokens.end * width] {
            *value = if f64::from(rng.uniform()) >= p { scale } else { 0.0 };
        }
    }
    shape.push(width as i64);
    Tensor::from_slice(&values).reshape(&shape).to_device(layout.device())
}

/// `0` or `1 / (1 - p)` for each of `numel` elements of a tensor that all samples share, such as a rank or a block:
/// the same for the whole step.
pub(crate) fn whole_site(numel: usize, p: f64, key: Key, device: Device) -> Tensor {
    let mut rng = key.rng();
    let scale = (1.0 / (1.0 - p)) as f32;
    let values: Vec<f32> = (0..numel).map(|_| if f64::from(rng.uniform()) >= p { scale } else { 0.0 }).collect();
    Tensor::from_slice(&values).to_device(device)
}

/// One row a sequence, `[sequences, width]`, for each of its tokens: `[batch, 1, width]` or `[tokens, width]`.
pub(crate) fn every_token(layout: &Layout, rows: &Tensor) -> Tensor {
    match layout.form() {
        Form::Padded { .. } => rows.unsqueeze(1),
        Form::Packed { .. } => {
            let lengths: Vec<i64> = layout.lengths().iter().map(|length| *length as i64).collect();
            let lengths = Tensor::from_slice(&lengths).to_device(rows.device());
            rows.repeat_interleave_self_tensor(&lengths, 0, None)
        }
    }
}

/// The mean over each sequence's real tokens, for each of its tokens.
pub(crate) fn sequence_mean(layout: &Layout, x: &Tensor) -> Tensor {
    every_token(layout, &layout.mean(x))
}
