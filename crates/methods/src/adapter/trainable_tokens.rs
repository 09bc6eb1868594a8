//! Trainable tokens: some rows of the token table are trained, the others stay: `E'[i] = delta[i]` for the chosen `i`.
//!
//! The trained rows stand in for the frozen ones (they are not added), as in PEFT. Where other modules share the table's
//! weight, such as a tied output head, they use the trained rows too; PEFT's file then has the rows once for each.

use pleach_nn::{Modules, SiteId, Sites, Target};
use serde_json::json;

use super::common::{ModulesSchema, peft_config};
use super::prelude::*;
use super::prompting;
use crate::plan::Keep;

/// Options of trainable tokens.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Ids of the tokens that are trained. At least one.
    pub token_indices: Vec<u32>,
    /// Which tables; the model's token table when left out.
    #[schemars(with = "Option<ModulesSchema>")]
    pub target_modules: Option<Modules>,
    /// Begin with the frozen rows; with normal numbers otherwise.
    pub init_weights: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self { token_indices: Vec::new(), target_modules: None, init_weights: true }
    }
}

/// The part of every target.
pub(super) const DELTA: &str = "trainable_tokens_delta";

impl Options for Config {
    const CARD: &'static Card = &Card {
        name: "trainable_tokens",
        title: "Trainable tokens",
        summary: "Trains some rows of the token table.",
        formula: "Row `i` of the table is a trained one for every `i` of `token_indices`, in a tied output head too.",
        paper: "PEFT's TrainableTokens, 2025 (no paper)",
        roles: &[Role::Embed],
        peft_type: Some("TRAINABLE_TOKENS"),
        sample_job: sample_job!("trainable_tokens", ", token_indices: [5, 17]"),
        invalid: &[
            Invalid { options: "{}", code: code::METHOD_CONFIG },
            Invalid { options: r#"{"token_indices": [3, 3]}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"token_indices": [99999999]}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"token_indices": [1], "target_modules": "all-linear"}"#, code: code::METHOD_CONFIG },
            Invalid {
                options: r#"{"token_indices": [1], "target_modules": ["no_such_module"]}"#,
                code: code::TARGET_NOTHING,
            },
            Invalid { options: r#"{"tokens": [1]}"#, code: code::UNKNOWN_KEY },
        ],
        ..Card::ADAPTER
    };

    const EXAMPLE: &'static str = r#"{"token_indices": [0, 5]}"#;

    fn validate(&self) -> Result<()> {
        if self.token_indices.is_empty() {
            return Err(refuse("token_indices", "names no token"));
        }
        let mut sorted = self.token_indices.clone();
        sorted.sort_unstable();
        match sorted.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(pair) => Err(refuse("token_indices", &format!("{} is there twice", pair[0]))),
            None => Ok(()),
        }
    }
}

impl Config {
    fn targets(&self, model: &dyn BackboneConfig) -> Result<Vec<SiteId>> {
        let Some(modules) = &self.target_modules else {
            let table = prompting::token_tables(model).next();
            let none = || code::TARGET_NOTHING.error("target_modules: the model has no table of tokens");
            return Ok(vec![table.ok_or_else(none)?.id]);
        };
        let roles = &[Role::Embed, Role::Head];
        let target = Target { modules, exclude: None, saved: &[], layers: None, pattern: None, roles };
        let chosen = target.select(model.sites())?;
        // What shares the weight of a table that comes before follows that one.
        let follows = |id: &SiteId| source(model.sites(), *id, &chosen).is_some_and(|first| first != *id);
        Ok(chosen.iter().copied().filter(|id| !follows(id)).collect())
    }

    fn tensor(&self, site: &Site) -> Result<PlannedTensor> {
        let shape = site.weight.as_ref().map(|weight| weight.shape.clone()).unwrap_or_default();
        let [rows, width] = shape[..] else {
            return Err(code::INTERNAL.error(format!("`{}` is no table", site.path)));
        };
        if let Some(id) = self.token_indices.iter().find(|id| **id as usize >= rows) {
            return Err(refuse("token_indices", &format!("{id} is not below {rows}, the rows of `{}`", site.path)));
        }
        let name = format!("base_model.model.{}.{DELTA}", site.path);
        let init = if self.init_weights { Init::Derived } else { Init::Normal { std: 1.0 } };
        Ok(PlannedTensor::trained(name, site.id, DELTA, [self.token_indices.len(), width], init))
    }
}

/// The first of `chosen` that has the same weight.
fn source(sites: &Sites, id: SiteId, chosen: &[SiteId]) -> Option<SiteId> {
    let weight = |id: SiteId| sites[id].weight.as_ref().map(|weight| weight.name.as_str());
    chosen.iter().copied().find(|first| weight(*first).is_some() && weight(*first) == weight(id))
}

/// The tables, heads among them, with the weight of this one.
#[cfg(feature = "torch")]
pub(super) fn sharing(sites: &Sites, table: SiteId) -> Vec<SiteId> {
    let role = |site: &&Site| matches!(site.role, Role::Embed | Role::Head);
    sites.iter().filter(role).map(|site| site.id).filter(|id| source(sites, *id, &[table]).is_some()).collect()
}

impl AdapterConfig for Config {
    fn plan(&self, model: &dyn BackboneConfig) -> Result<Plan> {
        let (chosen, sites) = (self.targets(model)?, model.sites());
        let mut plan = Plan::default();
        for site in sites.iter().filter(|site| matches!(site.role, Role::Embed | Role::Head)) {
            match source(sites, site.id, &chosen) {
                Some(first) if first == site.id => plan.tensors.push(self.tensor(site)?),
                // A copy of the trained rows, in the file only.
                Some(_) => plan.tensors.push(self.tensor(site)?.keep(Keep::Saved)),
                None => continue,
            }
            if site.runs {
                plan.sites.push(site.id);
            }
        }
        Ok(plan)
    }

    fn adapter_config(&self, model: &dyn BackboneConfig, plan: &Plan, export: &Export<'_>) -> Map<String, Value> {
        let mut fields = peft_config(self, None, model, plan, export);
        if self.target_modules.is_none() {
            // PEFT writes the path of the table that it chose.
            let path = plan.trained().next().map(|tensor| model.sites()[tensor.site].path.as_str());
            fields.insert("target_modules".to_owned(), json!(path));
        }
        fields
    }

    #[cfg(feature = "torch")]
    fn exported(&self, parts: &super::Parts<'_>) -> Result<Option<Vec<(String, tch::Tensor)>>> {
        let trained: Vec<_> = parts.plan.trained().map(|tensor| tensor.site).collect();
        let row = |tensor: &PlannedTensor| {
            let site = source(parts.sites, tensor.site, &trained).unwrap_or(tensor.site);
            Ok((tensor.name.clone(), parts.part(site, DELTA)?.detach()))
        };
        parts.plan.tensors.iter().map(row).collect::<Result<_>>().map(Some)
    }

    #[cfg(feature = "torch")]
    fn initial(
        &self,
        tensor: &PlannedTensor,
        base: &dyn pleach_nn::Backbone,
        _: pleach_base::rng::Key,
    ) -> Result<tch::Tensor> {
        let missing = || code::INTERNAL.error(format!("tensor `{}` has no table to begin with", tensor.name));
        // Of tables that share a weight, one that is never run has none at hand.
        let (sites, own) = (base.config().sites(), [tensor.site]);
        let alike = sites.iter().filter(|site| source(sites, site.id, &own).is_some());
        let table = &alike.into_iter().find_map(|site| base.weights(site.id)).ok_or_else(missing)?.weight;
        Ok(table.index_select(0, &run::index(&self.token_indices, table.device())))
    }

    #[cfg(feature = "torch")]
    fn hooks(&self, parts: &super::Parts<'_>) -> Result<super::Hooks> {
        run::hooks(self, parts)
    }
}

#[cfg(feature = "torch")]
mod run {
    use pleach_base::{Result, code};
    use pleach_nn::{BaseOp, OpWeights, Role, Site, SiteCx, SiteHook, SiteId};
    use tch::{Device, Kind, Tensor};

    use super::{Config, DELTA, source};
    use crate::adapter::common::with_weight;
    use crate::adapter::{Hooks, Parts, SiteMethod};

    struct Tokens {
        /// `[n, width]`
        delta: Tensor,
        /// Ids, `[n]`.
        index: Tensor,
    }

    pub(super) fn index(ids: &[u32], device: Device) -> Tensor {
        let ids: Vec<i64> = ids.iter().map(|id| i64::from(*id)).collect();
        Tensor::from_slice(&ids).to_device(device)
    }

    pub(super) fn hooks(config: &Config, parts: &Parts<'_>) -> Result<Hooks> {
        let trained: Vec<_> = parts.plan.trained().map(|tensor| tensor.site).collect();
        let hook = |id: &SiteId| {
            let unknown = || code::INTERNAL.error(format!("`{}` shares no trained table", parts.site(*id).path));
            let delta = parts.part(source(parts.sites, *id, &trained).ok_or_else(unknown)?, DELTA)?.shallow_clone();
            let index = index(&config.token_indices, delta.device());
            Ok((*id, Box::new(Tokens { delta, index }) as Box<dyn SiteMethod>))
        };
        parts.plan.sites.iter().map(hook).collect()
    }

    impl Tokens {
        /// The rows that these ids have among the trained ones, and which have none.
        fn slots(&self, ids: &Tensor) -> (Tensor, Tensor) {
            let same = ids.unsqueeze(-1).eq_tensor(&self.index); // [.., n]
            (same.to_kind(Kind::Int64).argmax(-1, false), same.any_dim(-1, true))
        }
    }

    impl SiteHook for Tokens {
        fn shares_base(&self) -> bool {
            false
        }

        fn around(&self, cx: &SiteCx<'_>, x: Vec<Tensor>, base: &BaseOp<'_>) -> Vec<Tensor> {
            let y = base.run(&x);
            let kind = y[0].kind();
            let own = if cx.site.role == Role::Embed {
                // The table's own operation on the small table, so that whatever it does to rows is done to these.
                let (slots, known) = self.slots(&x[0]);
                let small = OpWeights { weight: self.delta.shallow_clone(), bias: None };
                let rows = base.run_with(&small, &[slots]);
                rows[0].to_kind(kind).where_self(&known, &y[0])
            } else {
                let bias = base.weights().and_then(|weights| weights.bias.as_ref());
                let bias = bias.map(|bias| bias.to_kind(Kind::Float).index_select(0, &self.index));
                let columns = x[0].to_kind(Kind::Float).linear(&self.delta, bias.as_ref());
                y[0].index_copy(-1, &self.index, &columns.to_kind(kind))
            };
            vec![own]
        }
    }

    impl SiteMethod for Tokens {
        fn merged(&self, site: &Site, base: &OpWeights) -> Option<OpWeights> {
            let _no_grad = tch::no_grad_guard();
            let weight = base.weight.to_kind(Kind::Float).index_copy(0, &self.index, &self.delta);
            if site.role == Role::Embed {
                return Some(OpWeights { weight, bias: None });
            }
            Some(with_weight(site, base, &weight))
        }
    }
}
