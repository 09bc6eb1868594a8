//! What a method is, as data: pages, lists, schemas and tests come from this.

use std::fmt;

use pleach_base::Code;
use pleach_nn::Role;
use serde::Serialize;

/// The kinds of methods. `spec` names each by a section of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum MethodKind {
    /// Trained on a frozen backbone: `tasks[].adapter`.
    Adapter,
    /// Chooses among adapters: `spec.router`.
    Router,
    /// A training recipe: `spec.strategy`.
    Strategy,
    /// A replacement of attention: `spec.attention`.
    Attention,
    /// A compression of the backbone: `spec.compress`.
    Compress,
}

impl fmt::Display for MethodKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Adapter => "adapter",
            Self::Router => "router",
            Self::Strategy => "strategy",
            Self::Attention => "attention",
            Self::Compress => "compress",
        })
    }
}

/// How settled a method is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Options and files stay readable.
    Stable,
    /// May change.
    Experimental,
}

/// What data-parallel training must do for a method, besides what it does for all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Sync {
    /// Average gradients over the global batch.
    MeanGrads,
    /// Draw the same random tensors on all ranks.
    SharedSeed,
    /// Send buffers from one rank to all.
    BroadcastBuffers,
    /// Agree on a selection.
    AgreeTopK,
    /// Nothing is exchanged.
    LocalOnly,
    /// Moving averages after each step.
    EmaAfterStep,
    /// Gather batch-coupled values in lane order.
    GatherLanes,
    /// Sum statistics over the batch.
    SyncStats,
    /// A task without rows in a step is left as it is.
    PerTaskGroups,
    /// Exchange rows between the owners of experts.
    ExchangeExperts,
    /// State is split over ranks, with mirrors.
    Sharded,
}

/// Options that a method refuses, and how: a test of every method.
#[derive(Clone, Copy, Debug)]
pub struct Invalid {
    /// The options, as JSON.
    pub options: &'static str,
    /// The code of the error.
    pub code: Code,
}

/// What a method is.
#[derive(Clone, Copy, Debug)]
pub struct Card {
    /// Name in the registry, and of its file.
    pub name: &'static str,
    /// Its kind.
    pub kind: MethodKind,
    /// Name for people.
    pub title: &'static str,
    /// One sentence.
    pub summary: &'static str,
    /// The formula and where it attaches, in Markdown.
    pub formula: &'static str,
    /// Citation.
    pub paper: &'static str,
    /// How settled it is.
    pub status: Status,
    /// Roles of the sites that it can act on.
    pub roles: &'static [Role],
    /// What data-parallel training must do.
    pub sync: &'static [Sync],
    /// Whether it can be folded into the base weights.
    pub mergeable: bool,
    /// With its default options the model's output is unchanged until the first step.
    pub identity_at_init: bool,
    /// PEFT's `peft_type`, when PEFT knows it.
    pub peft_type: Option<&'static str>,
    /// A job file that plans on a model with the sites it needs.
    pub sample_job: &'static str,
    /// Options that it refuses.
    pub invalid: &'static [Invalid],
}

impl Card {
    /// What most adapters are alike in; a card says what it is besides.
    pub(crate) const ADAPTER: Self = Self {
        name: "",
        kind: MethodKind::Adapter,
        title: "",
        summary: "",
        formula: "",
        paper: "",
        status: Status::Stable,
        roles: &[],
        sync: &[Sync::MeanGrads],
        mergeable: true,
        identity_at_init: true,
        peft_type: None,
        sample_job: "",
        invalid: &[],
    };
}
