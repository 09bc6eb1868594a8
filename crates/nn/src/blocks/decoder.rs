//! Decoders of Llama's shape: rotary positions, root-mean-square normalisation before each part, gated feed-forward
//! part. Families begin with [`Decoder::read`] and change what differs.

use pleach_base::Result;

use super::{
    Activation, AttentionSpec, Core, Draft, ExpertsSpec, FeedSpec, Frame, HalfNames, LayerSpec, LinearSpec, LmHead,
    Maps, MlpSpec, Names, NormKind, NormShape, Order, Rope, RotarySpec, Sizes, SparseSpec, Trunk,
};
use crate::backbone::{BackboneConfig, HeadKind, HeadOptions, Pieces};
use crate::blocks::Builder;
use crate::model::{Config, ModelDir, bad};
use crate::site::{Heads, Part};

/// What families of this shape differ in.
#[derive(Clone, Debug)]
pub(crate) struct Decoder {
    pub(crate) hidden: usize,
    pub(crate) inner: usize,
    pub(crate) blocks: usize,
    pub(crate) norm: NormShape,
    pub(crate) activation: Activation,
    /// Attention; its window is that of [`Decoder::windows`].
    pub(crate) core: Core,
    /// How many tokens a token sees, block by block; without an entry all before it.
    pub(crate) windows: Vec<Option<usize>>,
    pub(crate) qkv_bias: bool,
    pub(crate) out_bias: bool,
    pub(crate) mlp_bias: bool,
    /// Heads of queries and keys are normalised.
    pub(crate) qk_norm: bool,
    /// One map for queries, keys and values, one for gate and first map.
    pub(crate) fused: bool,
    /// Names of the normalisations around attention and feed-forward part.
    pub(crate) norms: [(&'static str, Option<&'static str>); 2],
    pub(crate) rotary: RotarySpec,
    /// What rows of the table of tokens are multiplied by.
    pub(crate) embed_scale: Option<f64>,
    pub(crate) tied: bool,
    pub(crate) logit_cap: Option<f64>,
    pub(crate) experts: Option<Experts>,
}

/// Experts of the feed-forward part.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Experts {
    pub(crate) count: usize,
    /// How many a token uses.
    pub(crate) chosen: usize,
}

impl Decoder {
    /// Llama's, as `config.json` says.
    pub(crate) fn read(config: Config<'_>) -> Result<Self> {
        let heads = heads(config, None)?;
        Self::with(config, heads, Rope::whole(heads.dim))
    }

    /// The same with heads and rotation that are not the usual ones.
    pub(crate) fn with(config: Config<'_>, heads: Heads, rope: Rope) -> Result<Self> {
        let hidden = config.size("hidden_size")?;
        let eps = config.float("rms_norm_eps", 1e-6)?;
        Ok(Self {
            hidden,
            inner: config.size("intermediate_size")?,
            blocks: config.size("num_hidden_layers")?,
            norm: NormShape { kind: NormKind::Rms, width: hidden, eps },
            activation: Activation::read(config, "hidden_act", "silu")?,
            core: Core::new(heads, true),
            windows: Vec::new(),
            qkv_bias: false,
            out_bias: false,
            mlp_bias: false,
            qk_norm: false,
            fused: false,
            norms: [("input_layernorm", None), ("post_attention_layernorm", None)],
            rotary: RotarySpec::read(config, rope)?,
            embed_scale: None,
            tied: config.flag("tie_word_embeddings", false)?,
            logit_cap: None,
            experts: None,
        })
    }

    /// The backbone.
    pub(crate) fn configure(
        self,
        names: Names,
        dir: &ModelDir,
        head: HeadKind,
        options: &HeadOptions,
    ) -> Result<Box<dyn BackboneConfig>> {
        let mut draft = Draft::new(names, dir, head, options)?;
        let sizes = Sizes {
            hidden: self.hidden,
            vocab: draft.config.size("vocab_size")?,
            max_positions: draft.config.opt_size("max_position_embeddings")?.unwrap_or(2048),
        };
        let tokens = draft.table("embed_tokens", sizes.vocab, self.hidden).times(&mut draft.b, self.embed_scale);
        let mut trunk = Trunk::new(tokens);
        for number in 0..self.blocks {
            let path = draft.path(&format!("layers.{number}"));
            trunk.layers.push(self.layer(&mut draft.b, &path, number));
        }
        draft.b.enter(None);
        let last = draft.path("norm");
        trunk.last_norm = Some(self.norm.at(&mut draft.b, last));
        let (name, table) = ("lm_head", "embed_tokens");
        let lm = LmHead { name, vocab: sizes.vocab, table, tied: self.tied, cap: self.logit_cap };
        let head = draft.decoder_head(lm, ("score", "score"), self.hidden)?;
        trunk.rotary = Some(self.rotary);
        Ok(draft.finish(trunk, head, sizes))
    }

    fn layer(&self, b: &mut Builder, path: &str, number: usize) -> LayerSpec {
        let frame = Frame { path, number: number as u32, order: Order::Pre, norm: self.norm };
        let names = ["self_attn", "mlp"];
        let names = [0, 1].map(|i| HalfNames { module: names[i], norm: self.norms[i].0, after: self.norms[i].1 });
        frame.layer(b, names, |b| self.attention(b, path, number), |b| self.feed(b, path))
    }

    fn attention(&self, b: &mut Builder, path: &str, number: usize) -> AttentionSpec {
        let module = format!("{path}.self_attn");
        let core = Core { window: self.windows.get(number).copied().flatten(), ..self.core };
        let names = ["q", "k", "v", "o"].map(|name| format!("{module}.{name}_proj"));
        if self.fused {
            let (all, shared) = core.widths();
            let name = format!("{module}.qkv_proj");
            let map = LinearSpec::new(b, name, Part::Qkv, self.hidden, all + 2 * shared, self.qkv_bias);
            let [.., out] = names;
            return AttentionSpec {
                maps: Maps::Fused { map, by_head: false },
                norms: None,
                core: core.at(b, &module),
                out: LinearSpec::new(b, out, Part::AttnOut, all, self.hidden, self.out_bias),
            };
        }
        let biases = (self.qkv_bias, self.out_bias);
        let attention = AttentionSpec::split(b, (&module, names), (self.hidden, core), biases);
        let shape = NormShape { width: core.heads.dim, ..self.norm };
        let norms = self.qk_norm.then(|| ["q", "k"].map(|name| shape.at(b, format!("{module}.{name}_norm"))));
        AttentionSpec { norms, ..attention }
    }

    fn feed(&self, b: &mut Builder, path: &str) -> FeedSpec {
        match self.experts {
            None => self.mlp(b, path).into(),
            Some(experts) => self.sparse(b, path, experts).into(),
        }
    }

    /// Files of transformers hold experts one by one, under the names of the first release.
    fn sparse(&self, b: &mut Builder, path: &str, Experts { count, chosen }: Experts) -> SparseSpec {
        let (hidden, inner) = (self.hidden, self.inner);
        let router = SparseSpec::router(b, format!("{path}.mlp.gate"), hidden, count);
        let mut experts = |name: &str, part, sizes, parts| {
            let pieces = Pieces { path: format!("{path}.block_sparse_moe.experts."), parts };
            ExpertsSpec::new(b, &format!("{path}.mlp.experts.{name}"), part, sizes, pieces)
        };
        SparseSpec {
            router,
            gate_up: experts("gate_up_proj", Part::Up, (count, hidden, 2 * inner), &["w1.weight", "w3.weight"]),
            down: experts("down_proj", Part::Down, (count, inner, hidden), &["w2.weight"]),
            chosen,
            activation: self.activation,
        }
    }

    fn mlp(&self, b: &mut Builder, path: &str) -> MlpSpec {
        let (hidden, inner, activation) = (self.hidden, self.inner, self.activation);
        let mut map = |name: &str, part, input, output| {
            LinearSpec::new(b, format!("{path}.mlp.{name}_proj"), part, input, output, self.mlp_bias)
        };
        let (gate, up) = if self.fused {
            (None, map("gate_up", Part::Up, hidden, 2 * inner))
        } else {
            (Some(map("gate", Part::Gate, hidden, inner)), map("up", Part::Up, hidden, inner))
        };
        MlpSpec { gate, up, fused: self.fused, down: map("down", Part::Down, inner, hidden), activation }
    }
}

/// Heads; `dim` is the default of `head_dim`, else the width over their number.
pub(crate) fn heads(config: Config<'_>, dim: Option<usize>) -> Result<Heads> {
    let (hidden, query) = (config.size("hidden_size")?, config.size("num_attention_heads")?);
    let kv = config.opt_size("num_key_value_heads")?.unwrap_or(query);
    let given = config.opt_size("head_dim")?.or(dim);
    if given.is_none() && hidden % query != 0 {
        return Err(bad("hidden_size", &format!("{hidden} is not a multiple of num_attention_heads {query}"))
            .hint("give head_dim, or another number of heads"));
    }
    let dim = given.unwrap_or(hidden / query);
    if query % kv != 0 {
        return Err(bad("num_attention_heads", &format!("{query} is not a multiple of num_key_value_heads {kv}")));
    }
    if dim == 0 || dim % 2 != 0 {
        return Err(bad("head_dim", &format!("{dim} is not an even number, as rotation needs")));
    }
    Ok(Heads { query, kv, dim })
}

/// The window of each block: `window` where `layer_types` says `sliding_attention`; without that list where `default`
/// says so of the block's number.
pub(crate) fn windows(
    config: Config<'_>,
    blocks: usize,
    window: Option<usize>,
    default: impl Fn(usize) -> bool,
) -> Result<Vec<Option<usize>>> {
    let types = config.texts("layer_types")?;
    if types.as_ref().is_some_and(|types| types.len() < blocks) {
        return Err(bad("layer_types", &format!("must name the kind of all {blocks} blocks")));
    }
    let of = |block: usize| {
        let sliding = match types.as_ref().map(|types| types[block]) {
            None => default(block),
            Some("sliding_attention") => true,
            Some("full_attention") => false,
            Some(other) => return Err(bad("layer_types", &format!("`{other}` is not built"))),
        };
        match (sliding, window) {
            (true, None) => Err(bad("sliding_window", "is missing, and layer_types asks for it")),
            (true, window) => Ok(window),
            (false, _) => Ok(None),
        }
    };
    (0..blocks).map(of).collect()
}

/// The windows of Qwen's families: from block `max_window_layers` on, when `use_sliding_window` is set.
pub(crate) fn upper_windows(config: Config<'_>, blocks: usize) -> Result<Vec<Option<usize>>> {
    let window = if config.flag("use_sliding_window", false)? { config.opt_size("sliding_window")? } else { None };
    let first = config.opt_count("max_window_layers")?.unwrap_or(28);
    windows(config, blocks, window, |block| window.is_some() && block >= first)
}
