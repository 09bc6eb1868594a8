//! A domain adapter of MixDA: a bottleneck beside the last map `W2` of a few feed-forward parts,
//! `K(z) = U gelu(D z + c) + e` for the part's hidden state `z`, which is what `W2` reads.
//!
//! Alone it stands in for `W2`: the part gives `K(z)` where it gave `F = W2 z + b2`. The strategy `mixda` trains it so
//! that it also gives what `F` gives on general text, and mixes several with `F`. `D` is uniform at first (Kaiming,
//! `a = sqrt(5)`), the rest zero, so that `K` begins at zero.
//!
//! Diao, Xu, Xu, Wang, Zhang, *Mixture-of-Domain-Adapters: Decoupling and Injecting Domain Knowledge to Pre-trained
//! Language Models' Memories*, ACL 2023.

use pleach_nn::Part;

use super::common::{own_config, usual_init};
use super::prelude::*;

options! {
    /// Options of domain adapters.
    pub struct Config {
        /// Numbers of the blocks that get one.
        layers: Vec<u32> = vec![7, 11],
        /// Width of the feed-forward part divided by that of the bottleneck.
        adapter_down_scale: u32 = 16,
    }
}

const ROLES: &[Role] = &[Role::Linear];

/// The parts: `D`, `c`, `U`, `e`.
pub(crate) const PARTS: [&str; 4] = ["domain_D", "domain_c", "domain_U", "domain_e"];

impl Options for Config {
    const CARD: &'static Card = &Card {
        name: "domain",
        title: "Domain adapter",
        summary: "Puts a bottleneck in the place of the last map of a few feed-forward parts, to hold a domain's knowledge.",
        formula: "`K(z) = U gelu(D z + c) + e` for the hidden state `z` of the feed-forward part, in place of `W2 z + b2`; \
                  the strategy `mixda` mixes both.",
        paper: "Diao et al., Mixture-of-Domain-Adapters: Decoupling and Injecting Domain Knowledge to Pre-trained Language \
                Models' Memories, ACL 2023 (arXiv:2306.05406)",
        status: crate::card::Status::Experimental,
        roles: ROLES,
        mergeable: false,
        identity_at_init: false,
        sample_job: sample_job!("domain", ", layers: [0, 1], adapter_down_scale: 16"),
        invalid: &[
            Invalid { options: r#"{"adapter_down_scale": 0}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"layers": []}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"layers": [0, 0]}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"layers": [4711]}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"layers": [0], "adapter_down_scale": 100000}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"layer": [0]}"#, code: code::UNKNOWN_KEY },
        ],
        ..Card::ADAPTER
    };

    const EXAMPLE: &'static str = r#"{"layers": [0, 1], "adapter_down_scale": 4}"#;

    fn validate(&self) -> Result<()> {
        positive("adapter_down_scale", self.adapter_down_scale)?;
        let mut seen = std::collections::BTreeSet::new();
        if self.layers.is_empty() {
            return Err(refuse("layers", "there is none"));
        }
        match self.layers.iter().find(|layer| !seen.insert(**layer)) {
            Some(twice) => Err(refuse("layers", &format!("{twice} is named twice"))),
            None => Ok(()),
        }
    }
}

/// The last map of the feed-forward part of this block, if there is one.
pub(crate) fn last_map(model: &dyn BackboneConfig, block: u32) -> Option<&Site> {
    let mut sites = model.sites().with_role(Role::Linear);
    sites.find(|site| site.part == Part::Down && site.block == Some(block))
}

impl Config {
    fn tensors(&self, site: &Site) -> Result<[PlannedTensor; 4]> {
        let (f, d) = (site.dims.input, site.dims.output);
        let r = f / self.adapter_down_scale as usize;
        if r == 0 {
            let why = format!("leaves nothing of the width {f} of `{}`", site.path);
            return Err(refuse("adapter_down_scale", &why));
        }
        let [down, c, up, e] = PARTS;
        Ok([
            parameter(site, down, [r, f], usual_init(f)),
            parameter(site, c, [r], Init::Zeros),
            parameter(site, up, [d, r], Init::Zeros),
            parameter(site, e, [d], Init::Zeros),
        ])
    }
}

impl AdapterConfig for Config {
    fn plan(&self, model: &dyn BackboneConfig) -> Result<Plan> {
        let mut layers = self.layers.clone();
        layers.sort_unstable();
        let mut plan = Plan::default();
        for layer in layers {
            let site = last_map(model, layer).ok_or_else(|| {
                let blocks = model.info().num_blocks;
                refuse("layers", &format!("block {layer} is not there or has no feed-forward part"))
                    .hint(format!("the model has {blocks} blocks, numbered from 0"))
            })?;
            plan.tensors.extend(self.tensors(site)?);
            plan.sites.push(site.id);
        }
        Ok(plan)
    }

    fn adapter_config(&self, model: &dyn BackboneConfig, _: &Plan, export: &Export<'_>) -> Map<String, Value> {
        own_config(self, model, export)
    }

    #[cfg(feature = "torch")]
    fn hooks(&self, parts: &super::Parts<'_>) -> Result<super::Hooks> {
        super::common::at_sites(parts, |site| run::Domain::new(parts, site.id))
    }
}

#[cfg(feature = "torch")]
pub(crate) mod run {
    use pleach_base::Result;
    use pleach_nn::{OpWeights, Site, SiteCx, SiteHook, SiteId};
    use tch::{Kind, Tensor};

    use super::PARTS;
    use crate::adapter::{Parts, SiteMethod};

    /// `K(z) = U gelu(D z + c) + e`.
    pub(crate) struct Domain {
        pub(crate) down: Tensor,       // D [r, f]
        pub(crate) down_shift: Tensor, // c [r]
        pub(crate) up: Tensor,         // U [d, r]
        pub(crate) up_shift: Tensor,   // e [d]
    }

    impl Domain {
        pub(crate) fn new(parts: &Parts<'_>, site: SiteId) -> Result<Self> {
            let [down, down_shift, up, up_shift] = PARTS.map(|part| parts.part(site, part).map(Tensor::shallow_clone));
            Ok(Self { down: down?, down_shift: down_shift?, up: up?, up_shift: up_shift? })
        }

        /// `z` `[.., f]` to `[.., d]`.
        pub(crate) fn run(&self, z: &Tensor) -> Tensor {
            let low = z.linear(&self.down, Some(&self.down_shift)).gelu("none");
            low.linear(&self.up, Some(&self.up_shift))
        }
    }

    impl SiteHook for Domain {
        fn after(&self, _: &SiteCx<'_>, x: &[Tensor], y: Vec<Tensor>) -> Vec<Tensor> {
            let own = self.run(&x[0].to_kind(Kind::Float));
            y.iter().map(|y| own.to_kind(y.kind())).collect()
        }
    }

    impl SiteMethod for Domain {
        fn merged(&self, _: &Site, _: &OpWeights) -> Option<OpWeights> {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use pleach_nn::{HeadOptions, ModelDir, configure};
    use serde_json::json;

    use super::*;

    #[test]
    fn the_count_of_the_paper() {
        let roberta = json!({"model_type": "roberta", "architectures": ["RobertaModel"], "hidden_size": 1024,
                             "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096,
                             "vocab_size": 50265, "max_position_embeddings": 514, "type_vocab_size": 1});
        let Value::Object(roberta) = roberta else { panic!("a configuration is an object") };
        let model = configure(&ModelDir::of_config(roberta), &HeadOptions::default()).unwrap();
        let plan = Config::default().plan(model.as_ref()).unwrap();
        assert_eq!((plan.sites.len(), plan.params()), (2, 2 * 1_312_000));
    }
}
