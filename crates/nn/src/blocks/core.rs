//! The core of attention: grouped keys and values, causal or not, with a bias by distance or without, of a sequence on
//! itself or on another stack's, on both layouts.

use super::Distances;
use super::builder::{Builder, heads};
use crate::site::{Heads, Part, Role, SiteId};

/// What attention does between its projections.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Core {
    pub(crate) heads: Heads,
    pub(crate) causal: bool,
    pub(crate) scale: f64,
    /// How many tokens a token sees, itself among them.
    pub(crate) window: Option<usize>,
    /// Scores `s` become `cap tanh(s / cap)`.
    pub(crate) cap: Option<f64>,
    /// What a bias by distance, where one is given, means.
    pub(crate) distances: Option<Distances>,
}

impl Core {
    /// Every token sees all tokens, or all before it and itself.
    pub(crate) fn new(heads: Heads, causal: bool) -> Self {
        let scale = 1.0 / (heads.dim as f64).sqrt();
        Self { heads, causal, scale, window: None, cap: None, distances: None }
    }

    /// Widths of queries and of keys.
    pub(crate) fn widths(&self) -> (usize, usize) {
        (self.heads.query * self.heads.dim, self.heads.kv * self.heads.dim)
    }

    /// The places of the attention module at `path`.
    pub(crate) fn at(self, b: &mut Builder, path: &str) -> CoreSpec {
        self.as_part(b, path, Part::Attention)
    }

    /// The same for attention on another stack's output, which [`Part::CrossAttention`] says.
    pub(crate) fn as_part(self, b: &mut Builder, path: &str, part: Part) -> CoreSpec {
        let kv = b.place(format!("{path}@kv"), Role::AttnKv, part, heads(self.heads));
        let scores = b.place(format!("{path}@scores"), Role::AttnScores, part, heads(self.heads));
        CoreSpec { kv, scores, core: self }
    }
}

/// Attention without its projections, in its place.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CoreSpec {
    pub(crate) kv: SiteId,
    pub(crate) scores: SiteId,
    core: Core,
}

impl std::ops::Deref for CoreSpec {
    type Target = Core;

    fn deref(&self) -> &Core {
        &self.core
    }
}

#[cfg(feature = "torch")]
pub(crate) use imp::Given;

#[cfg(feature = "torch")]
mod imp {
    use std::collections::BTreeMap;
    use std::ops::Range;

    use tch::{Kind, Tensor};

    use super::CoreSpec;
    use crate::run::{Form, Forward, Layout, OpWeights, SiteHook};

    /// What attention takes from outside its block.
    #[derive(Clone, Copy, Debug, Default)]
    pub(crate) struct Given<'a> {
        /// Cosines and sines of the positions, or nothing.
        pub(crate) rotary: &'a [Tensor],
        /// The bias of each class of distances, `[1, buckets, heads]` or one row a sequence.
        pub(crate) bias: Option<&'a Tensor>,
        /// The encoder's output, in the other stack's layout: keys and values are made of this.
        pub(crate) memory: Option<&'a Tensor>,
    }

    /// Inputs for some sequences: `q` `[.., h, d]`, `k` and `v` `[.., kv heads, d]`, perhaps with virtual tokens in
    /// front.
    struct Rows {
        q: Tensor,
        k: Tensor,
        v: Tensor,
        bias: Option<Tensor>,
    }

    /// How queries lie, and keys: the same, or another stack's layout of the same sequences.
    #[derive(Clone, Copy)]
    struct Sides<'a> {
        layout: &'a Layout,
        keys: &'a Layout,
    }

    impl Sides<'_> {
        fn are_one(&self) -> bool {
            std::ptr::eq(self.layout, self.keys)
        }

        /// Some of the sequences on both sides; `None` for the second when it is the first.
        fn rows(&self, rows: &Range<usize>) -> (Layout, Option<Layout>) {
            (self.layout.rows(rows.clone()), (!self.are_one()).then(|| self.keys.rows(rows.clone())))
        }
    }

    impl CoreSpec {
        /// `x` is `[q, k, v]`, queries as `cx` says, keys and values as `keys` says; to `[.., h, d]`.
        pub(crate) fn run(&self, cx: &Forward<'_>, keys: &Layout, x: Vec<Tensor>, bias: Option<&Tensor>) -> Tensor {
            let whole = Sides { layout: cx.layout, keys };
            let op = |layout: &Layout, x: &[Tensor], _: Option<&OpWeights>| {
                // A hook may run this for its own rows alone.
                let first = layout.range().start - cx.layout.range().start;
                let range = first..first + layout.sequences();
                let bias = bias.map(|bias| of_rows(bias, &range));
                let rows = Rows { q: x[0].shallow_clone(), k: x[1].shallow_clone(), v: x[2].shallow_clone(), bias };
                let other = (!whole.are_one()).then(|| keys.rows(range));
                vec![self.groups(cx, Sides { layout, keys: other.as_ref().unwrap_or(layout) }, &rows)]
            };
            cx.at_keys(self.kv, x, keys, None, &op).remove(0)
        }

        /// Groups that look at the scores run them openly, each on its own rows.
        fn groups(&self, cx: &Forward<'_>, sides: Sides<'_>, rows: &Rows) -> Tensor {
            if !cx.is_active(self.scores) {
                return self.part(cx, sides, rows, None);
            }
            let groups = cx.groups_within(sides.layout);
            let mut parts = Vec::new();
            let mut next = 0;
            for group in &groups {
                parts.push((next..group.rows.start, None));
                parts.push((group.rows.clone(), group.hooks.at(self.scores)));
                next = group.rows.end;
            }
            parts.push((next..sides.layout.sequences(), None));
            let outputs: Vec<_> = parts
                .into_iter()
                .filter(|(range, _)| !range.is_empty())
                .map(|(range, hook)| {
                    let (layout, keys) = sides.rows(&range);
                    let part = Rows {
                        q: sides.layout.narrow(&rows.q, range.clone()),
                        k: sides.keys.narrow(&rows.k, range.clone()),
                        v: sides.keys.narrow(&rows.v, range.clone()),
                        bias: rows.bias.as_ref().map(|bias| of_rows(bias, &range)),
                    };
                    self.part(cx, Sides { layout: &layout, keys: keys.as_ref().unwrap_or(&layout) }, &part, hook)
                })
                .collect();
            if outputs.len() == 1 { outputs[0].shallow_clone() } else { Tensor::cat(&outputs, 0) }
        }

        /// One group's rows.
        fn part(&self, cx: &Forward<'_>, sides: Sides<'_>, rows: &Rows, hook: Option<&dyn SiteHook>) -> Tensor {
            on_padded(sides, rows, &|sides, rows| match hook {
                // The kernel knows no cap.
                None if self.cap.is_some() => {
                    self.open(sides, rows, |scores| softmax_op(sides.layout, &scores, None).remove(0))
                }
                None => self.fused(sides, rows),
                Some(hook) => {
                    self.open(sides, rows, |scores| cx.hooked(self.scores, sides.layout, hook, scores, &softmax_op))
                }
            })
        }

        /// Inputs `[n, w, heads, d]`.
        fn fused(&self, sides: Sides<'_>, rows: &Rows) -> Tensor {
            let (q, k, v) = (rows.q.transpose(1, 2), self.spread(&rows.k), self.spread(&rows.v)); // [n, h, w, d]
            let (width, seen) = (q.size()[2], k.size()[2]);
            let bias = self.bias(rows, width, seen);
            // With real tokens in front, a causal mask alone hides padding from every real token.
            let near = self.window.is_none_or(|window| window as i64 >= width);
            let causal = self.causal && width == seen && near && bias.is_none();
            let mask = if causal { None } else { self.mask(sides.keys, width, seen) };
            let mask = match (bias, mask) {
                (Some(bias), Some(mask)) => Some(bias.masked_fill(&mask.logical_not(), f64::NEG_INFINITY)),
                (bias, mask) => bias.or(mask),
            };
            Tensor::scaled_dot_product_attention(&q, &k, &v, mask, 0.0, causal, self.scale, false).transpose(1, 2)
        }

        /// The same in the open, with `softmax` in the middle.
        fn open(&self, sides: Sides<'_>, rows: &Rows, softmax: impl FnOnce(Vec<Tensor>) -> Tensor) -> Tensor {
            let (q, k, v) = (rows.q.transpose(1, 2), self.spread(&rows.k), self.spread(&rows.v)); // [n, h, w, d]
            let (width, seen) = (q.size()[2], k.size()[2]);
            let mut scores = q.matmul(&k.transpose(2, 3)) * self.scale; // [n, h, w, seen]
            if let Some(cap) = self.cap {
                scores = (scores / cap).tanh() * cap;
            }
            if let Some(bias) = self.bias(rows, width, seen) {
                scores += bias;
            }
            if let Some(mask) = self.mask(sides.keys, width, seen) {
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

        /// What is added to the scores: to be broadcast to `[n, h, w, seen]`.
        fn bias(&self, rows: &Rows, width: i64, seen: i64) -> Option<Tensor> {
            let (values, distances) = (rows.bias.as_ref()?, self.distances?);
            Some(distances.bias(values, width, seen).to_kind(rows.q.kind()))
        }

        /// Who sees whom: bool, to be broadcast to `[n, h, w, seen]`; `None` when everybody sees everybody. Keys that are
        /// more than `keys` says are virtual tokens in front.
        fn mask(&self, keys: &Layout, width: i64, seen: i64) -> Option<Tensor> {
            let bools = (Kind::Bool, keys.device());
            if self.causal {
                let before = Tensor::ones([width, seen], bools).tril(seen - width);
                // Virtual tokens count as tokens: the window leaves them behind as it does others.
                return Some(match self.window {
                    Some(window) => before.triu(seen - width + 1 - window as i64),
                    None => before,
                });
            }
            let real = keys.real()?.unsqueeze(1).unsqueeze(1); // [n, 1, 1, w]
            let front = Tensor::ones([real.size()[0], 1, 1, seen - real.size()[3]], bools);
            Some(Tensor::cat(&[&front, &real], -1))
        }
    }

    fn softmax_op(_: &Layout, x: &[Tensor], _: Option<&OpWeights>) -> Vec<Tensor> {
        vec![x[0].softmax(-1, Kind::Float).to_kind(x[0].kind())]
    }

    /// Some sequences of a table that has one row a sequence, or one for all.
    fn of_rows(table: &Tensor, rows: &Range<usize>) -> Tensor {
        match table.size()[0] {
            1 => table.shallow_clone(),
            _ => table.narrow(0, rows.start as i64, rows.len() as i64),
        }
    }

    type Padded<'a> = dyn Fn(Sides<'_>, &Rows) -> Tensor + 'a;

    /// Runs attention on padded batches: the layouts themselves, or for the packed form one batch for each length (of
    /// queries and of keys).
    fn on_padded(sides: Sides<'_>, rows: &Rows, run: &Padded<'_>) -> Tensor {
        let Sides { layout, keys } = sides;
        let Form::Packed { .. } = layout.form() else { return run(sides, rows) };
        let longer = keys.lengthened(keys.virtual_tokens(&rows.k));
        let long = longer.as_ref().unwrap_or(keys);
        if !sides.are_one() {
            return on_pairs(sides, long, rows, run);
        }
        let (q, k, v) = (layout.split_buckets(&rows.q), long.split_buckets(&rows.k), long.split_buckets(&rows.v));
        let outputs: Vec<_> = layout
            .buckets()
            .groups
            .iter()
            .zip(q.into_iter().zip(k.into_iter().zip(v)))
            .map(|((length, members), (q, (k, v)))| {
                let bias = rows.bias.as_ref().map(|bias| of_members(bias, members));
                let bucket = layout.bucket(*length, members);
                run(Sides { layout: &bucket, keys: &bucket }, &Rows { q, k, v, bias })
            })
            .collect();
        layout.join_buckets(&outputs)
    }

    /// The packed form where queries and keys differ in length: one batch for each pair of lengths. `long` is `keys` with
    /// its virtual tokens.
    fn on_pairs(sides: Sides<'_>, long: &Layout, rows: &Rows, run: &Padded<'_>) -> Tensor {
        let Sides { layout, keys } = sides;
        let mut pairs: BTreeMap<(usize, usize), Vec<usize>> = BTreeMap::new();
        for (sequence, lengths) in layout.lengths().iter().zip(keys.lengths()).enumerate() {
            pairs.entry((*lengths.0, *lengths.1)).or_default().push(sequence);
        }
        let mut order = Vec::new();
        let outputs: Vec<_> = pairs
            .into_iter()
            .map(|((width, seen), members)| {
                let tokens = token_numbers(layout, &members);
                let take = |t: &Tensor, from: &Layout| {
                    let index = Tensor::from_slice(&token_numbers(from, &members)).to_device(t.device());
                    t.index_select(0, &index).unflatten(0, [members.len() as i64, -1])
                };
                let part = Rows {
                    q: take(&rows.q, layout),
                    k: take(&rows.k, long),
                    v: take(&rows.v, long),
                    bias: rows.bias.as_ref().map(|bias| of_members(bias, &members)),
                };
                order.extend(tokens);
                let (layout, keys) = (layout.bucket(width, &members), keys.bucket(seen, &members));
                run(Sides { layout: &layout, keys: &keys }, &part).flatten(0, 1)
            })
            .collect();
        let back = Tensor::from_slice(&order).argsort(0, false).to_device(rows.q.device());
        Tensor::cat(&outputs, 0).index_select(0, &back)
    }

    fn token_numbers(layout: &Layout, members: &[usize]) -> Vec<i64> {
        members.iter().flat_map(|sequence| layout.token_range(*sequence)).map(|token| token as i64).collect()
    }

    /// As [`of_rows`], for any sequences.
    fn of_members(table: &Tensor, members: &[usize]) -> Tensor {
        if table.size()[0] == 1 {
            return table.shallow_clone();
        }
        let index: Vec<i64> = members.iter().map(|sequence| *sequence as i64).collect();
        table.index_select(0, &Tensor::from_slice(&index).to_device(table.device()))
    }
}
