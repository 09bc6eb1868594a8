//! Routers over the tokens of a batch, at linear maps and at feed-forward parts.
//!
//! Only real tokens are routed. Each row that an expert gets is a sequence of its own there, with an id of its own, so that
//! what experts draw does not depend on company, padding or layout.

use std::collections::BTreeMap;
use std::sync::Arc;

use pleach_base::Result;
use pleach_base::rng::Key;
use pleach_nn::{BaseOp, Form, Group, HookSet, Layout, OpWeights, Site, SiteCx, SiteHook, SiteId};
use tch::{Kind, Tensor};

use super::dispatch::Rows;
use super::exchange::{self, Batch};
use super::gating::{self, Choice};
use super::{losses, places};
use crate::adapter::{Board, Hooks, Parts, SiteMethod};

/// How a token chooses.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Rule {
    TopK(i64),
    TopP { top_p: f64, temperature: f64 },
    All,
}

/// What the routers of an adapter have in common.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Gate {
    pub(crate) rule: Rule,
    /// The jitter of inputs in training.
    pub(crate) noise: f64,
    /// Whether each rank computes some of the experts.
    pub(crate) parallel: bool,
}

impl Gate {
    pub(crate) fn choose(&self, logits: &Tensor) -> Choice {
        match self.rule {
            Rule::TopK(k) => gating::top_k(logits, k),
            Rule::TopP { top_p, temperature } => gating::top_p(logits, top_p, temperature),
            Rule::All => gating::all(logits),
        }
    }
}

/// The router of one place.
struct Router {
    weight: Tensor, // [experts, width]
    gate: Gate,
    key: Key,
    /// Its row among the sums.
    row: usize,
    board: Arc<Board>,
}

impl Router {
    /// `x` as float32, jittered in training.
    fn input(&self, cx: &SiteCx<'_>, x: &Tensor) -> Tensor {
        let x = x.to_kind(Kind::Float);
        if !cx.train || self.gate.noise == 0.0 {
            return x;
        }
        let width = x.size().last().copied().unwrap_or(1) as usize;
        let key = self.key.with(cx.step).with(u64::from(cx.pass));
        x * gating::jitter(cx.layout, width, self.gate.noise, key)
    }

    /// The choice of `tokens` `[n, width]`.
    fn choose(&self, cx: &SiteCx<'_>, tokens: &Tensor) -> Choice {
        let logits = tokens.linear(&self.weight, None::<&Tensor>);
        let choice = self.gate.choose(&logits);
        if cx.train {
            let sums = losses::sums(&logits, &choice, None);
            let all = match self.gate.rule {
                Rule::All => Tensor::cat(&[sums, losses::spread(&by_sequence(cx.layout, &choice.shares))], 0),
                Rule::TopK(_) | Rule::TopP { .. } => sums,
            };
            self.board.add(self.row, all);
        }
        choice
    }
}

/// The sum over the tokens of each sequence: `[n, experts]` to `[sequences, experts]`.
fn by_sequence(layout: &Layout, tokens: &Tensor) -> Tensor {
    let lengths: Vec<i64> = layout.lengths().iter().map(|length| *length as i64).collect();
    let sum = |part: &Tensor| part.sum_dim_intlist([0i64].as_slice(), false, None::<Kind>);
    Tensor::stack(&tokens.split_with_sizes(&lengths, 0).iter().map(sum).collect::<Vec<_>>(), 0)
}

/// The real tokens of a batch.
struct Tokens<'a> {
    layout: &'a Layout,
    /// Where they are among all, unless all are real.
    index: Option<Tensor>,
}

impl<'a> Tokens<'a> {
    fn of(layout: &'a Layout) -> Self {
        let index = layout.real().map(|real| real.flatten(0, -1).nonzero().squeeze_dim(1));
        Self { layout, index }
    }

    /// `[.., d]` to `[n, d]`.
    fn rows(&self, x: &Tensor) -> Tensor {
        let flat = match self.layout.form() {
            Form::Padded { .. } => x.flatten(0, 1),
            Form::Packed { .. } => x.shallow_clone(),
        };
        self.index.as_ref().map_or_else(|| flat.shallow_clone(), |index| flat.index_select(0, index))
    }

    /// `[n, d]` to `[.., d]`, zero where no real token is.
    fn back(&self, rows: &Tensor) -> Tensor {
        let (mut shape, width) = (self.layout.shape(), rows.size()[1]);
        let all: i64 = shape.iter().product();
        shape.push(width);
        let flat = match &self.index {
            None => rows.shallow_clone(),
            Some(index) => Tensor::zeros([all, width], (rows.kind(), rows.device())).index_copy(0, index, rows),
        };
        flat.reshape(shape)
    }

    /// An id for each of them: of its sample and its place there.
    fn ids(&self) -> Vec<u64> {
        let layout = self.layout;
        let of = |(sequence, sample): (usize, &u64)| {
            let sample = sample.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
            (0..layout.lengths()[sequence] as u64).map(move |at| sample ^ (at + 1).wrapping_mul(0xbf58_476d_1ce4_e5b9))
        };
        layout.samples().iter().enumerate().flat_map(of).collect()
    }
}

impl Router {
    /// The results of the experts for the rows of a choice, `[m, out]`: `run` computes them here, or those of this rank's
    /// experts for all ranks.
    fn results(
        &self,
        cx: &SiteCx<'_>,
        tokens: &Tokens<'_>,
        (choice, rows): (&Choice, &Rows),
        inputs: Tensor,
        run: impl FnOnce(&Batch) -> Tensor,
    ) -> Tensor {
        let ids = tokens.ids();
        let numbers = Vec::<i64>::try_from(&rows.tokens).unwrap_or_default();
        let ids = numbers.iter().map(|token| ids[*token as usize]).collect();
        let batch = Batch { inputs, counts: rows.counts.clone(), ids, learns: choice.gates.requires_grad() };
        match cx.peers.filter(|peers| self.gate.parallel && peers.world() > 1) {
            Some(peers) => exchange::results(peers, &self.board, &batch, run),
            None => run(&batch),
        }
    }
}

/// An expert's hooks within a feed-forward part.
struct Member(BTreeMap<SiteId, Box<dyn SiteMethod>>);

impl HookSet for Member {
    fn at(&self, site: SiteId) -> Option<&dyn SiteHook> {
        self.0.get(&site).map(|hook| hook.as_ref() as &dyn SiteHook)
    }
}

/// A feed-forward part: the frozen part runs once for all rows of all experts, each expert sees its own.
struct Feed {
    router: Router,
    experts: Vec<Member>,
}

impl SiteHook for Feed {
    fn shares_base(&self) -> bool {
        false
    }

    fn around(&self, cx: &SiteCx<'_>, x: Vec<Tensor>, base: &BaseOp<'_>) -> Vec<Tensor> {
        let (kind, tokens) = (x[0].kind(), Tokens::of(cx.layout));
        let inputs = tokens.rows(&self.router.input(cx, &x[0]));
        let choice = self.router.choose(cx, &inputs);
        let rows = Rows::of(&choice, self.experts.len());
        let results = self
            .router
            .results(cx, &tokens, (&choice, &rows), rows.gather(&inputs), |batch| self.run(base, batch, kind));
        vec![tokens.back(&rows.combine(&choice, &results)).to_kind(kind)]
    }
}

impl Feed {
    /// The part for rows of several experts, float32.
    fn run(&self, base: &BaseOp<'_>, batch: &Batch, kind: Kind) -> Tensor {
        let layout = Layout::packed(vec![1; batch.ids.len()], batch.ids.clone(), batch.inputs.device());
        let mut groups = Vec::new();
        let mut next = 0;
        for (expert, count) in self.experts.iter().zip(&batch.counts) {
            let end = next + *count as usize;
            if end > next {
                groups.push(Group { rows: next..end, hooks: expert });
            }
            next = end;
        }
        let inner = base.run_inside(&layout, &groups, &batch.inputs.to_kind(kind));
        inner.unwrap_or_else(|| batch.inputs.shallow_clone()).to_kind(Kind::Float)
    }
}

impl SiteMethod for Feed {
    fn merged(&self, _: &Site, _: &OpWeights) -> Option<OpWeights> {
        None
    }
}

/// A linear map: what the experts change is added, each by its gate.
struct Map {
    router: Router,
    /// Those that act here.
    experts: Vec<Option<Box<dyn SiteMethod>>>,
}

impl Map {
    /// What an expert changes for rows that lie as `cx` says, float32.
    fn change(hook: &dyn SiteMethod, cx: &SiteCx<'_>, x: &Tensor, y: &Tensor, base: Option<&BaseOp<'_>>) -> Tensor {
        let result = match base {
            Some(base) if !hook.shares_base() => hook.around(cx, vec![x.shallow_clone()], &base.over(cx.layout)),
            _ => hook.after(cx, &[x.shallow_clone()], vec![y.shallow_clone()]),
        };
        result[0].to_kind(Kind::Float) - y.to_kind(Kind::Float)
    }

    fn mixed(&self, cx: &SiteCx<'_>, x: &Tensor, y: &Tensor, base: Option<&BaseOp<'_>>) -> Tensor {
        let tokens = Tokens::of(cx.layout);
        let choice = self.router.choose(cx, &tokens.rows(&self.router.input(cx, x)));
        let added = match self.router.gate.rule {
            Rule::All => self.everywhere(cx, &tokens, &choice, x, y, base),
            Rule::TopK(_) | Rule::TopP { .. } => self.by_rows(cx, &tokens, &choice, x, y, base),
        };
        match added {
            Some(added) => (y.to_kind(Kind::Float) + added).to_kind(y.kind()),
            None => y.shallow_clone(),
        }
    }

    /// Every expert on every token.
    fn everywhere(
        &self,
        cx: &SiteCx<'_>,
        tokens: &Tokens<'_>,
        choice: &Choice,
        x: &Tensor,
        y: &Tensor,
        base: Option<&BaseOp<'_>>,
    ) -> Option<Tensor> {
        let gates = tokens.back(&choice.gates);
        let one = |(number, hook): (usize, &Option<Box<dyn SiteMethod>>)| {
            let change = Self::change(hook.as_ref()?.as_ref(), cx, x, y, base);
            Some(change * gates.narrow(-1, number as i64, 1))
        };
        self.experts.iter().enumerate().filter_map(one).reduce(|sum, one| sum + one)
    }

    /// Each expert on the tokens that chose it.
    fn by_rows(
        &self,
        cx: &SiteCx<'_>,
        tokens: &Tokens<'_>,
        choice: &Choice,
        x: &Tensor,
        y: &Tensor,
        base: Option<&BaseOp<'_>>,
    ) -> Option<Tensor> {
        let rows = Rows::of(choice, self.experts.len());
        let (x, y) = (rows.gather(&tokens.rows(x)), rows.gather(&tokens.rows(y)));
        let (input, kind) = (x.size()[1], y.kind());
        let both = Tensor::cat(&[x.to_kind(Kind::Float), y.to_kind(Kind::Float)], 1);
        let results = self.router.results(cx, tokens, (choice, &rows), both, |batch| {
            let width = batch.inputs.size()[1] - input;
            let (x, y) =
                (batch.inputs.narrow(1, 0, input).to_kind(kind), batch.inputs.narrow(1, input, width).to_kind(kind));
            let (mut results, mut next) = (vec![Tensor::zeros([0, width], (Kind::Float, x.device()))], 0usize);
            for (hook, count) in self.experts.iter().zip(&batch.counts).filter(|(_, count)| **count > 0) {
                let end = next + *count as usize;
                let layout = Layout::packed(vec![1; end - next], batch.ids[next..end].to_vec(), x.device());
                let own = SiteCx { layout: &layout, keys: &layout, ..*cx };
                let (x, y) = (x.narrow(0, next as i64, *count), y.narrow(0, next as i64, *count));
                results.push(match hook {
                    Some(hook) => Self::change(hook.as_ref(), &own, &x, &y, base),
                    None => y.to_kind(Kind::Float).zeros_like(),
                });
                next = end;
            }
            Tensor::cat(&results, 0)
        });
        Some(tokens.back(&rows.combine(choice, &results)))
    }
}

impl SiteHook for Map {
    fn shares_base(&self) -> bool {
        self.experts.iter().flatten().all(|hook| hook.shares_base())
    }

    fn after(&self, cx: &SiteCx<'_>, x: &[Tensor], y: Vec<Tensor>) -> Vec<Tensor> {
        vec![self.mixed(cx, &x[0], &y[0], None)]
    }

    fn around(&self, cx: &SiteCx<'_>, x: Vec<Tensor>, base: &BaseOp<'_>) -> Vec<Tensor> {
        let y = base.run(&x);
        vec![self.mixed(cx, &x[0], &y[0], Some(base))]
    }
}

impl SiteMethod for Map {
    fn merged(&self, _: &Site, _: &OpWeights) -> Option<OpWeights> {
        None
    }
}

/// A router at each of the places, over the hooks of each expert.
///
/// # Errors
/// `INTERNAL` when a planned tensor is not there.
pub(crate) fn hooks(parts: &Parts<'_>, mut experts: Vec<Hooks>, whole_parts: bool, gate: Gate) -> Result<Hooks> {
    let mut hooks = Hooks::new();
    for (row, place) in places::of(parts.plan, parts.sites, whole_parts)?.into_iter().enumerate() {
        let router = Router {
            weight: parts.part(place.site, places::WEIGHT)?.shallow_clone(),
            gate,
            key: parts.key.named("jitter").named(&parts.site(place.site).path),
            row,
            board: Arc::clone(parts.board),
        };
        let hook: Box<dyn SiteMethod> = if place.inside.is_empty() {
            let experts = experts.iter_mut().map(|hooks| hooks.remove(&place.site)).collect();
            Box::new(Map { router, experts })
        } else {
            let within = |hooks: &mut Hooks| {
                Member(place.inside.iter().filter_map(|site| Some((*site, hooks.remove(site)?))).collect())
            };
            Box::new(Feed { router, experts: experts.iter_mut().map(within).collect() })
        };
        hooks.insert(place.site, hook);
    }
    Ok(hooks)
}
