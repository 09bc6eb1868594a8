//! AdapterFusion: at a site where several adapters act, attention chooses among what they change. Queries come from the
//! site, keys and values from the adapters' results; the adapters themselves stay as they are unless told otherwise.
//!
//! `y = r + sum_i softmax_i(q(h) . k(u_i)) v(u_i)` with `u_i` what adapter `i` changes. Behind a part of a block, `h` and
//! `r` are as in AdapterHub, by the options of the last adapter; elsewhere both are the site's own result.
//!
//! `v` begins as the identity and is drawn to it by `0.01 |I - V|^2` when `regularization` is on.
//!
//! Pfeiffer et al., *AdapterFusion: Non-Destructive Task Composition for Transfer Learning*, 2020.

use pleach_nn::SiteId;

use super::compose::{self, Child};
use super::prelude::*;
use super::stack::ROLES;
use crate::options::Later;

/// Options of AdapterFusion. Defaults are AdapterHub's `dynamic`; `static` has `value` and `regularization` off.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The adapters: each with `name`, `method`, the method's options, and perhaps `init_from` (a local folder of a saved
    /// adapter) and `frozen: false`.
    pub adapters: Vec<Child>,
    /// A map for queries.
    pub query: bool,
    /// A map for keys.
    pub key: bool,
    /// A map for values.
    pub value: bool,
    /// Take queries before the block's normalisation, where the last adapter's input comes after it.
    pub query_before_ln: bool,
    /// Draw the map for values to the identity.
    pub regularization: bool,
    /// Add the adapter's own residual to every adapter's change rather than to the result.
    pub residual_before: bool,
    /// Apply the map for values before the mean. Either order gives the same.
    pub value_before_softmax: bool,
    /// Begin the map for values as the identity.
    pub value_initialized: bool,
    /// Share of attention scores that is dropped in training.
    pub dropout_prob: f64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            adapters: Vec::new(),
            query: true,
            key: true,
            value: true,
            query_before_ln: false,
            regularization: true,
            residual_before: false,
            value_before_softmax: true,
            value_initialized: true,
            dropout_prob: 0.0,
        }
    }
}

const QUERY: [&str; 2] = ["query.weight", "query.bias"];
const KEY: [&str; 2] = ["key.weight", "key.bias"];
const VALUE: &str = "value.weight";

/// How many adapters act at a site.
fn acting(plan: &Plan, site: SiteId) -> usize {
    plan.children.iter().filter(|own| own.sites.contains(&site)).count()
}

fn name(site: &Site, part: &str) -> String {
    format!("base_model.model.{}.adapter_fusion_layer.{part}", site.path.replace('@', "."))
}

impl Config {
    fn tensors(&self, site: &Site) -> Vec<PlannedTensor> {
        let width = site.dims.output;
        let mut list = Vec::new();
        let mut add = |part, shape: Vec<usize>, init| {
            list.push(PlannedTensor::trained(name(site, part), site.id, part, shape, init));
        };
        for ([weight, bias], on) in [(QUERY, self.query), (KEY, self.key)] {
            if on {
                add(weight, vec![width, width], Init::Normal { std: 0.02 });
                add(bias, vec![width], Init::Zeros);
            }
        }
        if self.value {
            let init = if self.value_initialized { Init::Derived } else { Init::Normal { std: 0.02 } };
            add(VALUE, vec![width, width], init);
        }
        list
    }
}

impl Options for Config {
    const CARD: &'static Card = &Card {
        name: "fuse",
        title: "AdapterFusion",
        summary: "Attention over what several trained adapters change, trained while they rest.",
        formula: "`r + sum_i softmax_i(q(h) . k(u_i)) v(u_i)`, `u_i` what adapter `i` changes at a site.",
        paper: "Pfeiffer et al., AdapterFusion, 2020 (arXiv:2005.00247)",
        roles: ROLES,
        mergeable: false,
        identity_at_init: false,
        sample_job: sample_job!(
            "fuse",
            ", adapters: [{name: one, method: bottleneck}, {name: other, method: bottleneck}]"
        ),
        invalid: &[
            Invalid { options: r#"{"adapters": []}"#, code: code::METHOD_CONFIG },
            Invalid {
                options: r#"{"adapters": [{"name": "a", "method": "lora"}], "dropout_prob": 1}"#,
                code: code::METHOD_CONFIG,
            },
            Invalid {
                options: r#"{"adapters": [{"name": "a", "method": "lora"}], "temperature": true}"#,
                code: code::METHOD_CONFIG,
            },
            Invalid {
                options: r#"{"adapters": [{"name": "a", "method": "prompt", "num_virtual_tokens": 2}]}"#,
                code: code::METHOD_CONFIG,
            },
        ],
        ..Card::ADAPTER
    };

    /// It falls with every pass and is in no file: an adapter would give other results after it was loaded.
    const LATER: &'static [Later] = &[Later::off("temperature", "false")];

    const EXAMPLE: &'static str = r#"{"key": false, "adapters": [{"name": "a", "method": "bottleneck", "reduction_factor": 4,
        "init_weights": "houlsby"}, {"name": "b", "method": "bottleneck", "preset": "double_seq_bn", "reduction_factor": 8}]}"#;

    fn validate(&self) -> Result<()> {
        share("dropout_prob", self.dropout_prob)?;
        if !(self.query || self.key || self.value) {
            return Err(refuse("query", "query, key and value are all off: nothing would be trained"));
        }
        compose::validate(&self.adapters)
    }

    fn imported(self) -> Self {
        Self { adapters: self.adapters.into_iter().map(Child::read).collect(), ..self }
    }
}

impl AdapterConfig for Config {
    fn plan(&self, model: &dyn BackboneConfig) -> Result<Plan> {
        let mut plan = compose::plan(&self.adapters, true, model)?;
        let mut own = Vec::new();
        for id in &plan.sites {
            let site = &model.sites()[*id];
            if !matches!(site.role, Role::Linear | Role::SublayerOut | Role::BlockOut | Role::BlockIn | Role::Norm) {
                return Err(refuse("adapters", &format!("results at `{}` cannot be fused", site.path)));
            }
            // Among one there is nothing to choose.
            if acting(&plan, *id) > 1 {
                own.extend(self.tensors(site));
            }
        }
        if own.is_empty() {
            return Err(refuse("adapters", "no two of them act at one site: there is nothing to fuse"));
        }
        let whole =
            plan.tensors.iter().position(|tensor| plan.saved.contains(&tensor.site)).unwrap_or(plan.tensors.len());
        plan.tensors.splice(whole..whole, own);
        Ok(plan)
    }

    compose::passed_on! {}

    #[cfg(feature = "torch")]
    fn regulariser(&self, parts: &super::Parts<'_>) -> Option<tch::Tensor> {
        let mut terms: Vec<_> = compose::regulariser(&self.adapters, parts).into_iter().collect();
        let drawn = self.value && self.regularization;
        for tensor in parts.plan.trained().filter(|tensor| drawn && tensor.name == name(parts.site(tensor.site), VALUE))
        {
            let value = parts.get(&tensor.name).ok()?;
            let unit = tch::Tensor::eye(value.size()[0], (tch::Kind::Float, value.device()));
            terms.push((unit - value).square().sum(tch::Kind::Float) * 0.01);
        }
        terms.into_iter().reduce(|a, b| a + b)
    }

    #[cfg(feature = "torch")]
    fn initial(
        &self,
        tensor: &PlannedTensor,
        base: &dyn pleach_nn::Backbone,
        key: pleach_base::rng::Key,
    ) -> Result<tch::Tensor> {
        if tensor.part != VALUE {
            return compose::initial(&self.adapters, tensor, base, key);
        }
        // AdapterHub's identity has a millionth elsewhere.
        let unit = tch::Tensor::eye(tensor.shape[0] as i64, (tch::Kind::Float, base.device()));
        Ok(unit.clamp_min(1e-6))
    }

    #[cfg(feature = "torch")]
    fn hooks(&self, parts: &super::Parts<'_>) -> Result<super::Hooks> {
        use super::common::Dropout;
        compose::hooks(&self.adapters, parts, |id| {
            if acting(parts.plan, id) < 2 {
                return Ok(None);
            }
            let site = parts.site(id);
            let get = |part: &str| parts.get(&name(site, part)).map(tch::Tensor::shallow_clone);
            let pair = |on: bool, [weight, bias]: [&str; 2]| -> Result<_> {
                Ok(if on { Some((get(weight)?, get(bias)?)) } else { None })
            };
            Ok(Some(compose::Join::Fuse(compose::Fuser {
                query: pair(self.query, QUERY)?,
                key: pair(self.key, KEY)?,
                value: if self.value { Some(get(VALUE)?) } else { None },
                query_early: self.query_before_ln,
                residual_before: self.residual_before,
                dropout: Dropout::new(self.dropout_prob, parts.key, "fusion_dropout", &site.path),
            })))
        })
    }
}
