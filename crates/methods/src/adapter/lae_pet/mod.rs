//! The small modules of LAE, which learn at about the same speed, each with trained scales; see `continual::pet` for
//! their formulas.
//!
//! `Adapter` stands beside attention as a whole and reads what attention's maps read: `attn(u) + A(u)`; `before` puts it
//! in front, `attn(A(u) + u)`, `after` behind, `A(attn(u)) + u`, which keeps attention's result only through the
//! adapter. `LoRA` adds to keys and values. `Prefix` puts keys and values in front of those of every sequence, which are
//! compensated for the attention that tokens take from them; positions of tokens stay as they are.
//!
//! Compensation takes two more runs of the frozen attention, of any kind, for what the paper's code reads from the
//! matrix of its weights.
//!
//! Gao et al., *A Unified Continual Learning Framework with General Parameter-Efficient Tuning*, ICCV 2023.

mod options;
#[cfg(feature = "torch")]
mod run;

pub use options::{Kind, Kwargs, Mode, Size};

use pleach_nn::{Part, SiteId};

use super::common::{own_config, usual_init};
use super::prelude::*;
use super::saved;

options! {
    /// Options of LAE's modules.
    pub struct Config {
        /// Which module.
        pet_cls: Kind = Kind::Adapter,
        /// Its own options.
        pet_kwargs: Kwargs = Kwargs::default(),
        /// Numbers of the blocks that get one.
        adapt_blocks: Vec<u32> = vec![0, 1, 2, 3, 4],
        /// Modules that are trained and saved whole. Classification adds its head by itself.
        modules_to_save: Option<Vec<String>> = None,
    }
}

impl Options for Config {
    const CARD: &'static Card = &Card {
        name: "lae_pet",
        title: "LAE module",
        summary: "Puts an adapter beside attention, LoRA on keys and values, or a compensated prefix, with trained scales.",
        formula: "Adapter `attn(u) + c (U gelu(D u + a) + b)`; LoRA `W + c B A` on keys and values; prefix \
                  `A_tokens V + (A_prefix / sum A_prefix) V_prefix`.",
        paper: "Gao et al., A Unified Continual Learning Framework with General Parameter-Efficient Tuning, ICCV 2023 \
                (arXiv:2303.10070)",
        roles: &[Role::Linear, Role::AttnKv],
        mergeable: false,
        sample_job: sample_job!("lae_pet", ", adapt_blocks: [0, 1]"),
        invalid: &[
            Invalid { options: r#"{"adapt_blocks": []}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"adapt_blocks": [0, 1000]}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"adapt_blocks": [0, 0]}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"adapt_blocks": [1000], "pet_cls": "Prefix"}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"pet_cls": "Prompt"}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"pet_kwargs": {"rank": 3}}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"pet_kwargs": {"down_sample": 0}}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"pet_cls": "LoRA", "pet_kwargs": {"rank": 0}}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"rank": 5}"#, code: code::UNKNOWN_KEY },
        ],
        ..Card::ADAPTER
    };

    const EXAMPLE: &'static str = r#"{"adapt_blocks": [0, 1]}"#;

    fn validate(&self) -> Result<()> {
        let mut seen = std::collections::BTreeSet::new();
        if self.adapt_blocks.is_empty() {
            return Err(refuse("adapt_blocks", "names no block"));
        }
        if let Some(twice) = self.adapt_blocks.iter().find(|block| !seen.insert(**block)) {
            return Err(refuse("adapt_blocks", &format!("names block {twice} twice")));
        }
        self.pet_kwargs.check(self.pet_cls)
    }
}

/// Where a module stands in a block: the sites that read attention's input, in order, and the one that matters to it.
struct Places {
    /// Maps of attention's input.
    inputs: Vec<SiteId>,
    keys: Option<SiteId>,
    values: Option<SiteId>,
    core: Option<SiteId>,
    out: Option<SiteId>,
}

impl Places {
    /// Those of a block's first attention.
    fn of(model: &dyn BackboneConfig, block: u32) -> Self {
        let sites = || model.sites().iter().filter(move |site| site.block == Some(block));
        let first = |part: Part| sites().find(|site| site.part == part && site.role != Role::Norm).map(|site| site.id);
        let inputs = [Part::Query, Part::Key, Part::Value, Part::Qkv].into_iter().filter_map(first).collect();
        let core = sites().find(|site| site.role == Role::AttnKv).map(|site| site.id);
        Self { inputs, keys: first(Part::Key), values: first(Part::Value), core, out: first(Part::AttnOut) }
    }
}

impl Config {
    fn block(&self, model: &dyn BackboneConfig, block: u32, plan: &mut Plan) -> Result<()> {
        let places = Places::of(model, block);
        let missing = |what: &str| refuse("adapt_blocks", &format!("block {block} of this model has no {what}"));
        let site = |id: Option<SiteId>, what: &str| id.map(|id| &model.sites()[id]).ok_or_else(|| missing(what));
        let kwargs = &self.pet_kwargs;
        match self.pet_cls {
            Kind::Adapter => {
                let out = site(places.out, "attention")?;
                let (width, output) = (site(places.inputs.first().copied(), "attention")?.dims.input, out.dims.output);
                let inner = kwargs.inner(width);
                let tensors = [
                    (run_names::DOWN, vec![inner, width], usual_init(width)),
                    (run_names::DOWN_BIAS, vec![inner], Init::Zeros),
                    (run_names::UP, vec![output, inner], Init::Zeros),
                    (run_names::UP_BIAS, vec![output], Init::Zeros),
                ];
                plan.tensors.extend(tensors.map(|(part, shape, init)| parameter(out, part, shape, init)));
                self.scale(out, run_names::SCALE, plan);
                plan.sites.extend(places.inputs);
                plan.sites.push(out.id);
            }
            Kind::LoRA => {
                for site in [site(places.keys, "map of keys alone")?, site(places.values, "map of values alone")?] {
                    let (input, output, rank) = (site.dims.input, site.dims.output, kwargs.rank());
                    plan.tensors.push(parameter(site, run_names::A, [rank, input], usual_init(input)));
                    plan.tensors.push(parameter(site, run_names::B, [output, rank], Init::Zeros));
                    self.scale(site, run_names::SCALE, plan);
                    plan.sites.push(site.id);
                }
            }
            Kind::Prefix => {
                let core = site(places.core, "attention")?;
                let width = core.dims.heads.map_or(core.dims.output, |heads| heads.kv * heads.dim);
                for (table, scale) in run_names::SIDES {
                    let name = format!("base_model.model.{}.{table}", core.path.replace('@', "."));
                    let shape = [kwargs.length(), width];
                    plan.tensors.push(PlannedTensor::trained(name, core.id, table, shape, Init::Derived));
                    self.scale(core, scale, plan);
                }
                plan.sites.push(core.id);
            }
        }
        Ok(())
    }

    fn scale(&self, site: &Site, part: &'static str, plan: &mut Plan) {
        if self.pet_kwargs.scale.is_none() {
            let name = format!("base_model.model.{}.{part}", site.path.replace('@', "."));
            plan.tensors.push(PlannedTensor::trained(name, site.id, part, [1], Init::Ones));
        }
    }
}

/// Names of tensors.
mod run_names {
    pub(super) const DOWN: &str = "lae_down";
    pub(super) const DOWN_BIAS: &str = "lae_down_bias";
    pub(super) const UP: &str = "lae_up";
    pub(super) const UP_BIAS: &str = "lae_up_bias";
    pub(super) const SCALE: &str = "lae_scale";
    pub(super) const A: &str = "lae_A";
    pub(super) const B: &str = "lae_B";
    /// Table and scale of keys, then of values.
    pub(super) const SIDES: [(&str, &str); 2] = [("lae_keys", "lae_key_scale"), ("lae_values", "lae_value_scale")];
}

impl AdapterConfig for Config {
    fn plan(&self, model: &dyn BackboneConfig) -> Result<Plan> {
        let (saved, whole) = saved::plan(self.modules_to_save.as_deref(), model)?;
        let mut plan = Plan { saved, ..Plan::default() };
        for block in &self.adapt_blocks {
            self.block(model, *block, &mut plan)?;
        }
        plan.sites.sort_unstable();
        plan.tensors.extend(whole);
        Ok(plan)
    }

    fn adapter_config(&self, model: &dyn BackboneConfig, _: &Plan, export: &Export<'_>) -> Map<String, Value> {
        own_config(self, model, export)
    }

    #[cfg(feature = "torch")]
    fn hooks(&self, parts: &super::Parts<'_>) -> Result<super::Hooks> {
        run::hooks(self, parts)
    }

    #[cfg(feature = "torch")]
    fn initial(
        &self,
        tensor: &PlannedTensor,
        base: &dyn pleach_nn::Backbone,
        key: pleach_base::rng::Key,
    ) -> Result<tch::Tensor> {
        Ok(run::table(tensor, key, base.device()))
    }
}

#[cfg(test)]
mod tests {
    use pleach_nn::{HeadOptions, ModelDir, configure};
    use serde_json::json;

    use super::*;

    fn params(pet: Kind) -> u64 {
        let model = json!({"model_type": "vit", "architectures": ["ViTModel"], "hidden_size": 768,
                           "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072,
                           "image_size": 224, "patch_size": 16});
        let Value::Object(model) = model else { panic!("a configuration is an object") };
        let model = configure(&ModelDir::of_config(model), &HeadOptions::default()).unwrap();
        Config { pet_cls: pet, ..Config::default() }.plan(model.as_ref()).unwrap().params()
    }

    #[test]
    fn the_counts_of_the_paper() {
        assert_eq!([Kind::Adapter, Kind::LoRA, Kind::Prefix].map(params), [42_270, 76_810, 76_810]);
    }

    #[test]
    fn options_of_another_module_are_named() {
        let config: Config = serde_json::from_value(json!({"pet_cls": "Prefix", "pet_kwargs": {"rank": 3}})).unwrap();
        assert_eq!(config.validate().unwrap_err().message(), "pet_kwargs.rank: is not an option of Prefix");
    }
}
