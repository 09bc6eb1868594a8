//! The registries of methods: what each is ([`Card`]), its options, what it will build on a given model ([`Plan`]), and
//! with the feature `torch` the thing itself ([`Adapter`]).
//!
//! A method is one file in the folder of its kind and one word in that folder's registry (docs/adding-a-method.md).
//! Not here: backbones (crate `pleach-nn`), training (crate `pleach-train`), stores.

pub mod adapter;
pub mod adapterhub;
mod around;
mod card;
pub mod codes;
pub mod compress;
pub mod continual;
mod explain;
pub mod files;
mod import;
mod job;
mod memory;
#[cfg_attr(not(feature = "torch"), allow(dead_code, reason = "tensors are drawn with it"))]
mod mersenne;
mod options;
mod pairs;
mod plan;
#[cfg(feature = "torch")]
pub mod reference;
mod registry;
pub mod router;
pub mod strategy;

pub use adapter::{
    AdapterConfig, Export, HasCard, Modalities, Options, Owner, Passes, Routing, Segments, StepInfo, Virtual,
};
pub use around::{Around, AroundOptions};
pub use card::{Card, Invalid, MethodKind, Status, Sync};
pub use explain::{Field, explain, fields};
pub use import::{Imported, first_name, fuzz_adapter_config, import};
pub use job::{
    JobPlan, SiteRow, TaskPlan, check_adapter, expert_addresses, expert_tasks, head_options, parse_adapter, plan_job,
    precision, remote_experts,
};
pub use memory::Memory;
pub use options::Later;
pub use pairs::{Pair, pairs};
pub use plan::{Keep, Plan, PlannedTensor};
pub use registry::{Method, find, kinds, methods, schemas};

#[cfg(feature = "torch")]
pub use adapter::{Adapter, Board, Context, Feeding, Hooks, Parts, Room, SiteMethod, Written, symmetric_kl};
