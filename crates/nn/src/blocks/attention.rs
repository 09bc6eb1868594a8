//! Attention with grouped keys and values, causal or not, on both layouts.

use super::LinearSpec;
use super::builder::{Builder, heads};
use crate::site::{Heads, Part, Role, SiteId};

/// Attention of a sequence on itself.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AttentionSpec {
    pub(crate) query: LinearSpec,
    pub(crate) key: LinearSpec,
    pub(crate) value: LinearSpec,
    pub(crate) out: LinearSpec,
    pub(crate) core: CoreSpec,
}

/// Attention without its projections.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CoreSpec {
    pub(crate) kv: SiteId,
    pub(crate) scores: SiteId,
    pub(crate) heads: Heads,
    pub(crate) causal: bool,
    pub(crate) scale: f64,
}

impl CoreSpec {
    /// The places of the attention module at `path`.
    pub(crate) fn new(b: &mut Builder, path: &str, shape: Heads, causal: bool) -> Self {
        let kv = b.place(format!("{path}@kv"), Role::AttnKv, Part::Attention, heads(shape));
        let scores = b.place(format!("{path}@scores"), Role::AttnScores, Part::Attention, heads(shape));
        Self { kv, scores, heads: shape, causal, scale: 1.0 / (shape.dim as f64).sqrt() }
    }
}

#[cfg(feature = "torch")]
pub(crate) use imp::Attention;

#[cfg(feature = "torch")]
mod imp {
    use pleach_base::Result;
    use tch::{Kind, Tensor};

    use super::{AttentionSpec, CoreSpec};
    use crate::blocks::linear::Linear;
    use crate::blocks::rotary::rotate;
    use crate::run::{Form, Forward, Layout, OpWeights, Weights};
    use crate::site::{SiteId, Sites};

    /// Loaded attention.
    #[derive(Debug)]
    pub(crate) struct Attention {
        query: Linear,
        key: Linear,
        value: Linear,
        out: Linear,
        core: CoreSpec,
    }

    impl Attention {
        pub(crate) fn load(spec: &AttentionSpec, sites: &Sites, weights: &Weights<'_>) -> Result<Self> {
            let load = |linear| Linear::load(linear, sites, weights);
            let (query, key, value, out) = (load(spec.query)?, load(spec.key)?, load(spec.value)?, load(spec.out)?);
            Ok(Self { query, key, value, out, core: spec.core })
        }

        /// `[.., width]` to the same shape. `tables` are cosines and sines, or empty.
        pub(crate) fn run(&self, cx: &Forward<'_>, x: &Tensor, tables: &[Tensor]) -> Tensor {
            let split = |x: Tensor| x.unflatten(-1, [-1, self.core.heads.dim as i64]); // [.., h, d]
            let turn = |x: Tensor| match tables {
                [cos, sin, ..] => rotate(&x, cos, sin),
                _ => x,
            };
            let query = turn(split(self.query.run(cx, x)));
            let key = turn(split(self.key.run(cx, x)));
            let value = split(self.value.run(cx, x));
            let mut context = cx.at(self.core.kv, vec![query, key, value], None, &|layout, x, _| {
                vec![self.core.run(cx, layout, &x[0], &x[1], &x[2])]
            });
            self.out.run(cx, &context.remove(0).flatten(-2, -1))
        }

        pub(crate) fn visit<'a>(&'a self, see: &mut dyn FnMut(SiteId, &'a OpWeights)) {
            for linear in [&self.query, &self.key, &self.value, &self.out] {
                linear.visit(see);
            }
        }
    }

    impl CoreSpec {
        /// `q` `[.., h, d]`, `k` and `v` `[.., kv heads, d]`, perhaps with virtual tokens in front, to `[.., h, d]`.
        fn run(&self, cx: &Forward<'_>, layout: &Layout, q: &Tensor, k: &Tensor, v: &Tensor) -> Tensor {
            if !cx.is_active(self.scores) {
                return on_padded(layout, q, k, v, &|part, q, k, v| self.fused(part, q, k, v));
            }
            // Groups that look at the scores run them openly, each on its own rows.
            let groups = cx.groups_within(layout);
            let mut parts = Vec::new();
            let mut next = 0;
            for group in &groups {
                parts.push((next..group.rows.start, None));
                parts.push((group.rows.clone(), group.hooks.at(self.scores)));
                next = group.rows.end;
            }
            parts.push((next..layout.sequences(), None));
            let outputs: Vec<_> = parts
                .into_iter()
                .filter(|(rows, _)| !rows.is_empty())
                .map(|(rows, hook)| {
                    let part = layout.rows(rows.clone());
                    let cut = |t: &Tensor| layout.narrow(t, rows.clone());
                    let (q, k, v) = (cut(q), cut(k), cut(v));
                    match hook {
                        None => on_padded(&part, &q, &k, &v, &|part, q, k, v| self.fused(part, q, k, v)),
                        Some(hook) => on_padded(&part, &q, &k, &v, &|part, q, k, v| {
                            let softmax = |scores: Vec<Tensor>| cx.hooked(self.scores, part, hook, scores, &softmax_op);
                            self.open(part, q, k, v, softmax)
                        }),
                    }
                })
                .collect();
            if outputs.len() == 1 { outputs[0].shallow_clone() } else { Tensor::cat(&outputs, 0) }
        }

        /// Inputs `[n, w, heads, d]`.
        fn fused(&self, layout: &Layout, q: &Tensor, k: &Tensor, v: &Tensor) -> Tensor {
            let (q, k, v) = (q.transpose(1, 2), self.spread(k), self.spread(v)); // [n, h, w, d]
            let (width, extra) = (q.size()[2], k.size()[2] - q.size()[2]);
            let mask = self.mask(layout, width, extra);
            // With real tokens in front, a causal mask alone hides padding from every real token.
            let causal = self.causal && extra == 0;
            let mask = if causal { None } else { mask };
            Tensor::scaled_dot_product_attention(&q, &k, &v, mask, 0.0, causal, self.scale, false).transpose(1, 2)
        }

        /// The same in the open, with `softmax` in the middle.
        fn open(
            &self,
            layout: &Layout,
            q: &Tensor,
            k: &Tensor,
            v: &Tensor,
            softmax: impl FnOnce(Vec<Tensor>) -> Tensor,
        ) -> Tensor {
            let (q, k, v) = (q.transpose(1, 2), self.spread(k), self.spread(v)); // [n, h, w, d]
            let (width, extra) = (q.size()[2], k.size()[2] - q.size()[2]);
            let mut scores = q.matmul(&k.transpose(2, 3)) * self.scale; // [n, h, w, extra + w]
            if let Some(mask) = self.mask(layout, width, extra) {
                scores = scores.masked_fill(&mask.logical_not(), f64::NEG_INFINITY);
            }
            softmax(vec![scores]).matmul(&v).transpose(1, 2)
        }

        /// Every head of queries gets its keys: `[n, w, kv heads, d]` to `[n, h, w, d]`.
        fn spread(&self, x: &Tensor) -> Tensor {
            let x = x.transpose(1, 2); // [n, kv, w, d]
            let times = (self.heads.query / self.heads.kv) as i64;
            if times == 1 {
                return x;
            }
            let size = x.size();
            x.unsqueeze(2).expand([size[0], size[1], times, size[2], size[3]], false).flatten(1, 2)
        }

        /// Who sees whom: bool, to be broadcast to `[n, h, w, extra + w]`; `None` when everybody sees everybody.
        fn mask(&self, layout: &Layout, width: i64, extra: i64) -> Option<Tensor> {
            let bools = (Kind::Bool, layout.device());
            if self.causal {
                return Some(Tensor::ones([width, extra + width], bools).tril(extra));
            }
            let real = layout.real()?.unsqueeze(1).unsqueeze(1); // [n, 1, 1, w]
            let front = Tensor::ones([real.size()[0], 1, 1, extra], bools);
            Some(Tensor::cat(&[&front, &real], -1))
        }
    }

    fn softmax_op(_: &Layout, x: &[Tensor], _: Option<&OpWeights>) -> Vec<Tensor> {
        vec![x[0].softmax(-1, Kind::Float).to_kind(x[0].kind())]
    }

    type Padded<'a> = dyn Fn(&Layout, &Tensor, &Tensor, &Tensor) -> Tensor + 'a;

    /// Runs attention on padded batches: the layout itself, or for the packed form one batch for each length.
    fn on_padded(layout: &Layout, q: &Tensor, k: &Tensor, v: &Tensor, run: &Padded<'_>) -> Tensor {
        let Form::Packed { .. } = layout.form() else { return run(layout, q, k, v) };
        let keys = layout.lengthened(layout.virtual_tokens(k));
        let keys = keys.as_ref().unwrap_or(layout);
        let (q, k, v) = (layout.split_buckets(q), keys.split_buckets(k), keys.split_buckets(v));
        let outputs: Vec<_> = layout
            .buckets()
            .groups
            .iter()
            .enumerate()
            .map(|(i, (length, members))| run(&layout.bucket(*length, members), &q[i], &k[i], &v[i]))
            .collect();
        layout.join_buckets(&outputs)
    }
}
