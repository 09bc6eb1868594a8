//! Sites: the named places of a backbone where a method may act. A backbone lists them, a method picks from them,
//! and neither knows the other.

use std::fmt;
use std::ops::Index;

use indexmap::IndexMap;

/// What happens at a site, and with it what its inputs and outputs are. Shapes are those of the padded layout,
/// `[batch, width, ..]`; in the packed layout the first two axes are one, `[tokens, ..]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// A table lookup: `[ids]` to `[rows]`. At the token table of a text model `[ids, features]` where the batch has
    /// features of tokens; the operation looks at the ids alone.
    Embed,
    /// An affine map within the model: `[x]` to `[y]`.
    Linear,
    /// Affine maps of which each token uses some: `[x, experts]`, `x` `[.., k, input]` and the numbers of the `k` maps
    /// that a token uses, `[.., k]` int64, to `[y]` `[.., k, output]`. The weight is `[maps, output, input]`; the path
    /// is the parameter's, which PEFT names in `target_parameters`.
    Experts,
    /// The affine map that chooses among experts: `[x]` to `[y]`. No module that PEFT could wrap.
    Router,
    /// An affine map that makes the model's output. `all-linear` leaves it out.
    Head,
    /// A normalisation: `[x]` to `[y]`.
    Norm,
    /// A convolution: `[x]` `[batch, channels, ..]` to `[y]`, one row a sequence in both forms.
    Conv,
    /// The core of attention: `[q, k, v]`, each `[batch, width, heads, dim]` and rotated already, to
    /// `[context]` of the same shape as `q`. In attention on an encoder's output, `k` and `v` have the encoder's width
    /// and lie in its layout. `k` and `v` may be given longer, with the same number of virtual tokens
    /// in front of every sequence; every token sees those.
    AttnKv,
    /// The softmax of attention: `[scores]` `[batch, heads, width, keys]`, masked, to `[weights]`. A hook here makes
    /// its own rows run without the fused kernel. Always in the padded form, whatever the layout.
    AttnScores,
    /// Behind attention or the feed-forward part: `[output, residual]` to `[hidden]`. The operation is the residual
    /// sum, followed by the normalisation in blocks that normalise after it.
    SublayerOut,
    /// The feed-forward part as a whole, within which its own sites lie: `[x]` to `[y]`. A hook can run it on other rows,
    /// with other hooks inside ([`crate::BaseOp::run_inside`]).
    FeedForward,
    /// Before a block: `[hidden]` to `[hidden]`.
    BlockIn,
    /// After a block: `[hidden]` to `[hidden]`.
    BlockOut,
}

/// What a site does in its block, whatever a family calls it. Methods choose their default targets by this.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Part {
    /// Queries of attention.
    Query,
    /// Keys of attention.
    Key,
    /// Values of attention.
    Value,
    /// Queries, keys and values of attention in one map.
    Qkv,
    /// Output projection of attention.
    AttnOut,
    /// First map of the feed-forward part.
    Up,
    /// Gate of the feed-forward part.
    Gate,
    /// Last map of the feed-forward part.
    Down,
    /// Attention as a whole.
    Attention,
    /// Attention to another stack's output, as a whole.
    CrossAttention,
    /// The feed-forward part as a whole.
    FeedForward,
    /// None of these.
    Other,
}

/// Index of a site in its backbone's [`Sites`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SiteId(pub u32);

/// Sizes at a site.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Dims {
    /// Width of the first input; the number of rows of an embedding.
    pub input: usize,
    /// Width of the output.
    pub output: usize,
    /// Heads, at sites of attention.
    pub heads: Option<Heads>,
}

/// Heads of attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heads {
    /// Of queries.
    pub query: usize,
    /// Of keys and values; a divisor of `query`.
    pub kv: usize,
    /// Width of each.
    pub dim: usize,
}

/// How a weight matrix is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightLayout {
    /// `[output, input]`, as of `Linear`.
    OutIn,
    /// `[input, output]`, as of `Conv1D`.
    InOut,
    /// `[output, input, window..]`, of a convolution.
    Conv,
    /// A vector or a table.
    Plain,
}

/// The frozen weight of a site.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SiteWeight {
    /// Name in the model's files; another module's when the two are tied.
    pub name: String,
    /// Shape as stored.
    pub shape: Vec<usize>,
    /// Meaning of its axes.
    pub layout: WeightLayout,
}

/// A place where a method may act.
#[derive(Clone, Debug, PartialEq)]
pub struct Site {
    /// Its index.
    pub id: SiteId,
    /// The module path that PEFT sees, such as `model.layers.0.self_attn.q_proj`. Places that are no module of their
    /// own are named after the module they belong to: `model.layers.0.self_attn@kv`.
    pub path: String,
    /// What happens there.
    pub role: Role,
    /// What it is for.
    pub part: Part,
    /// The block that runs it, counted through both stacks of a model that has two: a decoder's first block runs the
    /// decoder's embedding and what ends the encoder.
    pub block: Option<u32>,
    /// Sizes.
    pub dims: Dims,
    /// The frozen weight.
    pub weight: Option<SiteWeight>,
    /// Name of the frozen bias, a vector of `dims.output`.
    pub bias: Option<String>,
    /// What the module multiplies its rows with: 1 but for tables that scale. Their operation includes it.
    pub scale: f64,
    /// False for modules that exist but that the chosen head never runs, such as the pooler under mean pooling.
    pub runs: bool,
}

impl Site {
    /// Whether the site is a module, so that PEFT can name it.
    #[must_use]
    pub fn is_module(&self) -> bool {
        !self.path.contains('@') && self.role != Role::Experts
    }
}

/// The sites of a backbone, in the order of the forward pass.
#[derive(Clone, Debug, Default)]
pub struct Sites {
    list: Vec<Site>,
    by_path: IndexMap<String, SiteId>,
}

impl Sites {
    /// Adds a site and returns its id. `site.id` is set here.
    pub fn push(&mut self, mut site: Site) -> SiteId {
        let id = SiteId(u32::try_from(self.list.len()).unwrap_or(u32::MAX));
        site.id = id;
        self.by_path.insert(site.path.clone(), id);
        self.list.push(site);
        id
    }

    /// Says that the module at a site multiplies its rows.
    pub(crate) fn scale(&mut self, id: SiteId, by: f64) {
        self.list[id.0 as usize].scale = by;
    }

    /// All sites in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &Site> {
        self.list.iter()
    }

    /// The number of sites.
    #[must_use]
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// The site with this path.
    #[must_use]
    pub fn by_path(&self, path: &str) -> Option<&Site> {
        self.by_path.get(path).map(|id| &self[*id])
    }

    /// The sites of a role, in order.
    pub fn with_role(&self, role: Role) -> impl Iterator<Item = &Site> {
        self.list.iter().filter(move |site| site.role == role)
    }
}

impl Index<SiteId> for Sites {
    type Output = Site;

    fn index(&self, id: SiteId) -> &Site {
        &self.list[id.0 as usize]
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Embed => "embed",
            Self::Linear => "linear",
            Self::Experts => "experts",
            Self::Router => "router",
            Self::Head => "head",
            Self::Norm => "norm",
            Self::Conv => "conv",
            Self::AttnKv => "attn_kv",
            Self::AttnScores => "attn_scores",
            Self::SublayerOut => "sublayer_out",
            Self::FeedForward => "feed_forward",
            Self::BlockIn => "block_in",
            Self::BlockOut => "block_out",
        })
    }
}
