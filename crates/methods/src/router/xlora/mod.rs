//! X-LoRA: a classifier over the model's last hidden states says how much of each expert every token gets at every map.
//!
//! A first pass without gradient runs the whole model with all scalings at `scaling_pass_value`; its hidden states behind
//! the last normalisation feed the classifier, `[.., layers, experts]`. In the second pass
//! `y = W x + w sum_e s_e (expert_e(x) - W x)` with `w = global_scaling_weight`. `top_k_lora` keeps the largest scalings of
//! a token, `enable_softmax_topk` then makes those that are not zero sum to one; both act on the constant of the first
//! pass too. Names and defaults are PEFT's, but for `xlora_dropout_p`, which is 0 here.
//!
//! Buehler and Buehler, *X-LoRA: Mixture of Low-Rank Adapter Experts*, 2024.

#[cfg(feature = "torch")]
pub(crate) mod run;

use super::{Experts, RouterOptions, Train, places};
use crate::adapter::common::{options, positive_number, usual_init};
use crate::adapter::prelude::*;
use crate::card::{MethodKind, Status};

/// What the parts of the classifier are called.
#[cfg_attr(not(feature = "torch"), allow(dead_code, reason = "the hooks look for them"))]
pub(crate) const PARTS: [&str; 2] = ["classifier_weight", "classifier_bias"];

options! {
    /// Options of X-LoRA.
    pub struct Config {
        /// Who the experts are, and what is trained.
        #[serde(flatten)]
        experts: Experts = Experts::default(),
        /// Width of the model's hidden states. Known from the model; another value is refused.
        hidden_size: Option<u32> = None,
        /// Make the scalings of a token sum to one.
        enable_softmax: bool = true,
        /// Make those of them that are not zero, such as `top_k_lora` kept, sum to one.
        enable_softmax_topk: bool = false,
        /// Scalings of their own for every map; the same for all maps otherwise.
        layerwise_scalings: bool = false,
        /// Linear maps of the classifier.
        xlora_depth: u32 = 1,
        /// Width between them.
        xlora_size: u32 = 2048,
        /// Share of the values between them that is dropped in training.
        xlora_dropout_p: f64 = 0.0,
        /// Train the experts too.
        use_trainable_adapters: bool = false,
        /// Divisor of the logits before the softmax.
        softmax_temperature: f64 = 1.0,
        /// Scalings that a token keeps; all when left out.
        top_k_lora: Option<u32> = None,
        /// Scalings in the first pass.
        scaling_pass_value: f64 = 0.0,
        /// What all scalings are multiplied with.
        global_scaling_weight: f64 = 1.0,
    }
}

impl RouterOptions for Config {
    const CARD: &'static Card = &Card {
        name: "xlora",
        kind: MethodKind::Router,
        title: "X-LoRA",
        summary: "Scales every expert for every token and map by what a first pass of the model says.",
        formula: "`y = W x + w sum_e s_e(h) delta_e(x)`, `h` the last hidden states of a first pass.",
        paper: "Buehler and Buehler, X-LoRA: Mixture of Low-Rank Adapter Experts, 2024 (arXiv:2402.07148)",
        status: Status::Experimental,
        roles: &[Role::Linear, Role::Head],
        mergeable: false,
        sample_job: include_str!("sample.yaml"),
        invalid: &[
            Invalid { options: r#"{"num_experts": 1}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"xlora_depth": 0}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"top_k_lora": 0}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"num_experts": 3, "top_k_lora": 4}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"softmax_temperature": 0}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"xlora_dropout_p": 1.0}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"hidden_size": 7}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"classifier_depth": 2}"#, code: code::UNKNOWN_KEY },
        ],
        ..Card::ADAPTER
    };

    const EXAMPLE: &'static str =
        r#"{"num_experts": 3, "layerwise_scalings": true, "xlora_depth": 2, "xlora_size": 8}"#;

    const INNER: (&'static str, &'static str) = ("lora", r#"{"r": 2}"#);

    fn experts(&self) -> &Experts {
        &self.experts
    }

    fn frozen(&self) -> bool {
        self.experts.train.map_or(!self.use_trainable_adapters, |train| train == Train::Router)
    }

    fn validate(&self) -> Result<()> {
        positive("xlora_depth", self.xlora_depth)?;
        positive("xlora_size", self.xlora_size)?;
        positive("top_k_lora", self.top_k_lora.unwrap_or(1))?;
        if self.experts.experts.is_some() || self.experts.num_experts.is_some() {
            self.few_enough(self.experts.count())?;
        }
        positive_number("softmax_temperature", self.softmax_temperature)?;
        share("xlora_dropout_p", self.xlora_dropout_p)?;
        for (field, value) in
            [("scaling_pass_value", self.scaling_pass_value), ("global_scaling_weight", self.global_scaling_weight)]
        {
            if !value.is_finite() {
                return Err(refuse(field, "must be a number"));
            }
        }
        Ok(())
    }

    fn plan(&self, model: &dyn BackboneConfig, plan: &Plan, experts: usize) -> Result<Plan> {
        self.few_enough(experts)?;
        let info = model.info();
        if let Some(width) = self.hidden_size.filter(|width| *width as usize != info.hidden_size) {
            return Err(refuse("hidden_size", &format!("is {width}, the model's is {}", info.hidden_size)));
        }
        if info.reads.second.is_some() {
            return Err(refuse("method", "a model with two stacks has no last hidden states for all of its tokens"));
        }
        let sites: Vec<_> = places::of(plan, model.sites(), false)?.iter().map(|place| place.site).collect();
        let one_row = |id: &&pleach_nn::SiteId| {
            let site = &model.sites()[**id];
            site.block.is_none() && !(site.role == Role::Head && info.head == pleach_nn::HeadKind::CausalLm)
        };
        if let Some(pooled) = sites.iter().find(one_row) {
            let why = format!("an expert acts at `{}`, which has no tokens to scale", model.sites()[*pooled].path);
            return Err(refuse("experts", &why).hint("leave it out of the experts' `target_modules`"));
        }
        let Some(first) = sites.first() else { return Ok(Plan::default()) };
        let site = &model.sites()[*first];
        let layers = if self.layerwise_scalings { sites.len() } else { 1 };
        let mut tensors = Vec::new();
        for (number, (input, output)) in self.maps(info.hidden_size, experts * layers).into_iter().enumerate() {
            let name = format!("base_model.internal_xlora_classifier.layers.{}", self.position(number));
            let init = usual_init(input);
            let weight = PlannedTensor::trained(format!("{name}.weight"), site.id, PARTS[0], [output, input], init);
            let bias = PlannedTensor::trained(format!("{name}.bias"), site.id, PARTS[1], [output], init);
            tensors.extend([weight, bias]);
        }
        Ok(Plan { tensors, sites, ..Plan::default() })
    }

    fn scores(&self) -> bool {
        true
    }

    #[cfg(feature = "torch")]
    fn hooks(
        &self,
        parts: &crate::adapter::Parts<'_>,
        experts: Vec<crate::adapter::Hooks>,
    ) -> Result<crate::adapter::Hooks> {
        run::hooks(self, parts, experts)
    }

    #[cfg(feature = "torch")]
    fn score(
        &self,
        parts: &crate::adapter::Parts<'_>,
        experts: usize,
        pass: &pleach_nn::ScoredPass<'_>,
        hidden: &tch::Tensor,
    ) {
        run::score(self, parts, experts, pass, hidden);
    }
}

impl Config {
    fn few_enough(&self, experts: usize) -> Result<()> {
        match self.top_k_lora {
            Some(k) if k as usize > experts => {
                Err(refuse("top_k_lora", &format!("a token cannot keep {k} of {experts} scalings")))
            }
            _ => Ok(()),
        }
    }

    /// Inputs and outputs of the classifier's maps.
    fn maps(&self, width: usize, outputs: usize) -> Vec<(usize, usize)> {
        let (depth, inner) = (self.xlora_depth as usize, self.xlora_size as usize);
        let ends = |at: usize| (if at == 0 { width } else { inner }, if at + 1 == depth { outputs } else { inner });
        (0..depth).map(ends).collect()
    }

    /// The place of a map among the classifier's layers: activations have places too, and dropout where there is any.
    fn position(&self, map: usize) -> usize {
        map * if self.xlora_dropout_p > 0.0 { 3 } else { 2 }
    }
}
