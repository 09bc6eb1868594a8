//! Compacter: bottleneck adapters whose maps are sums of Kronecker products, `H = sum_i kron(rule_i, W_i)`, the small
//! factors `rule_i` shared by all blocks and the large factors `W_i` of rank `phm_rank`.
//!
//! The options, presets, tensors and hooks are those of [`super::bottleneck`] with `phm_layer` on.
//!
//! Mahabadi et al., *Compacter: Efficient Low-Rank Hypercomplex Adapter Layers*, 2021.

use super::bottleneck::{Kind, Of, ROLES};
use super::prelude::*;

/// The method `compacter`.
#[derive(Clone, Debug, PartialEq)]
pub struct Compacter;

impl Kind for Compacter {
    const CARD: &'static Card = &CARD;
    const PRESET: &'static str = "compacter";
}

/// Options of Compacter.
pub type Config = Of<Compacter>;

static CARD: Card = Card {
    name: "compacter",
    title: "Compacter",
    summary: "Bottleneck adapters whose maps are sums of Kronecker products with factors shared by all blocks.",
    formula: "`h + U act(D h)` behind attention and the feed-forward part, with `D` and `U` of the form \
              `sum_i kron(rule_i, W_i)`, `rule_i` `[phm_dim, phm_dim]` shared by all blocks. `preset: compacter++` leaves \
              out those behind attention.",
    paper: "Mahabadi et al., Compacter: Efficient Low-Rank Hypercomplex Adapter Layers, 2021 (arXiv:2106.04647)",
    roles: ROLES,
    mergeable: false,
    // Not exactly: results begin at 1e-8 of the hidden states.
    identity_at_init: true,
    sample_job: sample_job!("compacter", ", reduction_factor: 8"),
    invalid: &[
        Invalid { options: r#"{"phm_dim": 0}"#, code: code::METHOD_CONFIG },
        Invalid { options: r#"{"phm_dim": 7}"#, code: code::METHOD_CONFIG },
        Invalid { options: r#"{"phm_rank": 0}"#, code: code::METHOD_CONFIG },
        Invalid { options: r#"{"phm_c_init": "ones"}"#, code: code::METHOD_CONFIG },
        Invalid { options: r#"{"init_weights": "mam_adapter"}"#, code: code::METHOD_CONFIG },
        Invalid { options: r#"{"shared_W_phm": true, "reduction_factor": {"default": 8}}"#, code: code::METHOD_CONFIG },
    ],
    ..Card::ADAPTER
};
