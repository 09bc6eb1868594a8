//! IA3: `y = l * (W x + b)` with a trained vector `l` of the output's width, or `y = W (l * x) + b` with one of the
//! input's at the modules of the feed-forward part. The vectors begin at one.
//!
//! The product is float32 and is rounded to the base's precision. Field names and files are PEFT's, and so are the usual
//! modules of each family: they are not the same two of query, key and value everywhere.
//!
//! Liu et al., *Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context Learning*, 2022.

use pleach_nn::{Modules, Part, SiteId, Sites};
use serde_json::json;

use super::common::{LINEAR_AND_CONV, ModulesSchema, Selection, peft_config, window};
use super::prelude::*;

options! {
    /// Options of IA3.
    pub struct Config {
        /// Modules.
        #[serde(flatten)]
        targets: Targets = Targets::default(),
        /// Which of the target modules scale their input: ends of names, or a regular expression for the whole path; the
        /// last maps of the feed-forward part when left out.
        #[schemars(with = "Option<ModulesSchema>")]
        feedforward_modules: Option<Modules> = None,
        /// Whether weights are stored input first. Known from the model; the value is not used.
        fan_in_fan_out: bool = false,
        /// Begin at one, which leaves the model unchanged; drawn from the standard normal otherwise.
        init_ia3_weights: bool = true,
    }
}

/// The side on which a module is scaled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Input,
    Output,
}

/// What PEFT scales by default at a part of this family, if anything.
fn usual(family: &str, part: Part) -> Option<Side> {
    use Part::{AttnOut, Down, Key, Qkv, Query, Up, Value};
    let input = match family {
        "bert" | "roberta" | "xlm-roberta" | "deberta" | "deberta-v2" => matches!(part, AttnOut | Down),
        "mt5" => false,
        _ => part == Down,
    };
    let output = match family {
        "bart" | "gemma" | "gemma2" | "gemma3_text" | "gpt_neo" | "gptj" | "llama4" | "phi" | "qwen2" | "qwen3" => {
            matches!(part, Query | Value | Qkv)
        }
        "opt" => matches!(part, Query | Key),
        "mt5" => matches!(part, Key | Value | Up),
        _ => matches!(part, Key | Value | Qkv),
    };
    match (input, output) {
        (true, _) => Some(Side::Input),
        (_, true) => Some(Side::Output),
        _ => None,
    }
}

impl Config {
    fn targets(&self, model: &dyn BackboneConfig) -> Targets {
        let family = model.info().family;
        self.targets.or_usual(model, |site| site.role == Role::Linear && usual(family, site.part).is_some())
    }

    fn side(&self, family: &str, site: &Site) -> Result<Side> {
        let input = match &self.feedforward_modules {
            // PEFT asks for the end of the path, wherever a name begins in it.
            Some(Modules::List(names)) => names.iter().any(|name| site.path.ends_with(name.as_str())),
            Some(Modules::Regex(text)) => Sites::whole_match(&site.path, text, "feedforward_modules")?,
            None => usual(family, site.part) == Some(Side::Input),
        };
        Ok(if input { Side::Input } else { Side::Output })
    }

    /// PEFT refuses a file whose list of feed-forward modules is not a part of that of targets.
    fn write_sides(&self, fields: &mut Map<String, Value>, model: &dyn BackboneConfig, plan: &Plan) {
        if self.feedforward_modules.is_some() {
            return;
        }
        let (family, sites) = (model.info().family, model.sites());
        let is_input = |id: &SiteId| matches!(self.side(family, &sites[*id]), Ok(Side::Input));
        let (input, output): (Vec<SiteId>, Vec<SiteId>) = plan.sites.iter().partition(|id| is_input(id));
        let names = sites.shortest_names(&input);
        let listed = |name: &String| match fields.get("target_modules") {
            Some(Value::Array(list)) => list.iter().any(|known| known == name),
            _ => true,
        };
        if !names.iter().all(listed) {
            let all: Vec<_> = sites.shortest_names(&output).into_iter().chain(names.iter().cloned()).collect();
            fields.insert("target_modules".to_owned(), json!(all));
        }
        fields.insert("feedforward_modules".to_owned(), json!(names));
    }
}

impl Options for Config {
    const CARD: &'static Card = &Card {
        name: "ia3",
        title: "IA3",
        summary: "Scales keys, values and the inner layer of the feed-forward part by trained vectors.",
        formula: "`y = l * (W x + b)`, at feed-forward modules `y = W (l * x) + b`; `l` begins at one.",
        paper: "Liu et al., Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context Learning, 2022 \
                (arXiv:2205.05638)",
        roles: LINEAR_AND_CONV,
        peft_type: Some("IA3"),
        sample_job: sample_job!("ia3", ""),
        invalid: &[
            Invalid { options: r#"{"init_ia3_weights": "ones"}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"feedforward_modules": "("}"#, code: code::METHOD_CONFIG },
            Invalid {
                options: r#"{"target_modules": ["k_proj"], "feedforward_modules": ["down_proj"]}"#,
                code: code::METHOD_CONFIG,
            },
            Invalid { options: r#"{"target_modules": ["no_such_module"]}"#, code: code::TARGET_NOTHING },
            Invalid { options: r#"{"feed_forward_modules": []}"#, code: code::UNKNOWN_KEY },
        ],
        ..Card::ADAPTER
    };

    fn validate(&self) -> Result<()> {
        let (Some(Modules::List(inputs)), Some(Modules::List(targets))) =
            (&self.feedforward_modules, &self.targets.target_modules)
        else {
            return Ok(());
        };
        match inputs.iter().find(|name| !targets.contains(name)) {
            Some(name) => Err(refuse("feedforward_modules", &format!("`{name}` is not one of target_modules"))
                .hint("name it in both lists, with the same words")),
            None => Ok(()),
        }
    }
}

impl AdapterConfig for Config {
    fn plan(&self, model: &dyn BackboneConfig) -> Result<Plan> {
        let (targets, family) = (self.targets(model), model.info().family);
        let selection = Selection { targets: &targets, layers: None, roles: LINEAR_AND_CONV, default: |_| false };
        let init = if self.init_ia3_weights { Init::Ones } else { Init::Normal { std: 1.0 } };
        selection.plan(model, |site| {
            let window = window(site);
            if window.len() == 1 {
                return Err(refuse("target_modules", &format!("`{}` slides over one axis, IA3 takes two", site.path)));
            }
            let shape = match self.side(family, site)? {
                Side::Input => vec![1, site.dims.input],
                Side::Output if window.is_empty() => vec![site.dims.output, 1],
                // Channels are the second axis of what a convolution makes.
                Side::Output => vec![1, site.dims.output],
            };
            let shape = [shape, vec![1; window.len()]].concat();
            Ok([parameter(site, "ia3_l", shape, init)])
        })
    }

    fn adapter_config(&self, model: &dyn BackboneConfig, plan: &Plan, export: &Export<'_>) -> Map<String, Value> {
        let mut fields = peft_config(self, Some(&self.targets), model, plan, export);
        self.write_sides(&mut fields, model, plan);
        fields
    }

    #[cfg(feature = "torch")]
    fn hooks(&self, parts: &super::Parts<'_>) -> Result<super::Hooks> {
        run::hooks(self, parts)
    }
}

#[cfg(feature = "torch")]
mod run {
    use pleach_base::Result;
    use pleach_nn::{BaseOp, OpWeights, Role, Site, SiteCx, SiteHook};
    use tch::{Kind, Tensor};

    use super::{Config, Side};
    use crate::adapter::common::{at_sites, dense, restored};
    use crate::adapter::{Hooks, Parts, SiteMethod};

    struct Ia3 {
        /// As it meets inputs or results: `[width]`, at a convolution `[1, channels, 1, ..]`.
        l: Tensor,
        input: bool,
    }

    pub(super) fn hooks(config: &Config, parts: &Parts<'_>) -> Result<Hooks> {
        at_sites(parts, |site| {
            let l = parts.part(site.id, "ia3_l")?.shallow_clone();
            if site.role == Role::Conv {
                // No family has one among its usual modules.
                let input = config.side("", site)? == Side::Input;
                return Ok(Ia3 { l, input });
            }
            let input = l.size() == [1, site.dims.input as i64];
            Ok(Ia3 { l: l.flatten(0, 1), input })
        })
    }

    impl Ia3 {
        fn scaled(&self, x: &Tensor) -> Tensor {
            (x.to_kind(Kind::Float) * &self.l).to_kind(x.kind())
        }
    }

    impl SiteHook for Ia3 {
        fn shares_base(&self) -> bool {
            !self.input
        }

        fn after(&self, _: &SiteCx<'_>, _: &[Tensor], y: Vec<Tensor>) -> Vec<Tensor> {
            if self.input { y } else { y.iter().map(|y| self.scaled(y)).collect() }
        }

        fn around(&self, cx: &SiteCx<'_>, mut x: Vec<Tensor>, base: &BaseOp<'_>) -> Vec<Tensor> {
            if self.input {
                x[0] = self.scaled(&x[0]);
            }
            self.after(cx, &x, base.run(&x))
        }
    }

    impl SiteMethod for Ia3 {
        fn merged(&self, site: &Site, base: &OpWeights) -> Option<OpWeights> {
            let _no_grad = tch::no_grad_guard();
            let frozen = dense(site, base);
            let axes = |axis: usize| (0..frozen.dim()).map(|at| if at == axis { -1 } else { 1 }).collect::<Vec<i64>>();
            let l = self.l.reshape(axes(usize::from(self.input)));
            let weight = restored(site, &(&frozen * l));
            let bias = base.bias.as_ref().map(|bias| bias.to_kind(Kind::Float));
            let bias = if self.input { bias } else { bias.map(|bias| bias * self.l.reshape([-1])) };
            Some(OpWeights { weight, bias })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_usual_modules_differ_by_family() {
        let sides = |family| {
            [Part::Query, Part::Key, Part::Value, Part::AttnOut, Part::Up, Part::Down].map(|part| usual(family, part))
        };
        let (input, output) = (Some(Side::Input), Some(Side::Output));
        assert_eq!(sides("llama"), [None, output, output, None, None, input]);
        assert_eq!(sides("qwen2"), [output, None, output, None, None, input]);
        assert_eq!(sides("bert"), [None, output, output, input, None, input]);
        assert_eq!(sides("opt"), [output, output, None, None, None, input]);
        assert_eq!(sides("mt5"), [None, output, output, None, output, None]);
        assert_eq!(usual("gpt2", Part::Qkv), output);
    }
}
