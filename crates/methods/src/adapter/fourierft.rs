//! FourierFT: `y = W x + b + s Re(ifft2(S)) x`, where the spectrum `S` `[out, in]` is zero but for `n_frequency` trained
//! entries.
//!
//! Where they stand is PEFT's draw: the first entries of a permutation from PyTorch's generator, seeded with
//! `random_loc_seed`, so that no file needs to hold them. The spectrum begins random and the scaling is large: fresh
//! adapters change the model unless `init_weights` is set. The transform is float32, the result is rounded to the base's
//! precision.
//!
//! Gao et al., *Parameter-Efficient Fine-Tuning with Discrete Fourier Transform*, 2024.

use indexmap::IndexMap;
use pleach_nn::{Part, Sites};

use super::common::{LINEAR, linear_plan, positive_number, query_value};
use super::prelude::*;
use crate::mersenne::PERMUTATION_END;

options! {
    /// Options of FourierFT.
    pub struct Config {
        /// Trained entries of a module's spectrum: at most as many as its weight has.
        n_frequency: u32 = 1000,
        /// Factor of what is added.
        scaling: f64 = 150.0,
        /// Seed of the places of those entries.
        random_loc_seed: i64 = 777,
        /// Whether weights are stored input first. Known from the model; the value is not used.
        fan_in_fan_out: bool = false,
        /// Modules.
        #[serde(flatten)]
        targets: Targets = Targets::default(),
        /// Blocks.
        #[serde(flatten)]
        layers: Layers = Layers::default(),
        /// Other numbers of entries for some modules: names or expressions to numbers.
        n_frequency_pattern: IndexMap<String, u32> = IndexMap::new(),
        /// Begin with a spectrum of zeros, which leaves the model unchanged; drawn from the standard normal otherwise.
        init_weights: bool = false,
        /// Which of the frozen model's biases are trained too: `none`, `all`, or `fourier_only`, those of targets.
        bias: String = "none".to_owned(),
    }
}

impl Options for Config {
    const CARD: &'static Card = &Card {
        name: "fourierft",
        title: "FourierFT",
        summary: "Trains a few entries of the spectrum of what is added to a linear map.",
        formula: "`y = W x + b + scaling Re(ifft2(S)) x`; `S` has `n_frequency` entries at places drawn from a seed.",
        paper: "Gao et al., Parameter-Efficient Fine-Tuning with Discrete Fourier Transform, 2024 (arXiv:2405.03003)",
        roles: LINEAR,
        identity_at_init: false,
        peft_type: Some("FOURIERFT"),
        sample_job: sample_job!("fourierft", ", n_frequency: 500, scaling: 150"),
        invalid: &[
            Invalid { options: r#"{"n_frequency": 0}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"n_frequency": 1000000000}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"n_frequency_pattern": {"q_proj": 0}}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"scaling": 0}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"bias": "some_only"}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"target_modules": ["no_such_module"]}"#, code: code::TARGET_NOTHING },
            Invalid { options: r#"{"r": 16}"#, code: code::UNKNOWN_KEY },
        ],
        ..Card::ADAPTER
    };

    const EXAMPLE: &'static str = r#"{"n_frequency": 100}"#;

    fn validate(&self) -> Result<()> {
        Bias::named(&self.bias, "fourier_only")?;
        positive("n_frequency", self.n_frequency)?;
        for (name, count) in &self.n_frequency_pattern {
            positive(&format!("n_frequency_pattern.{name}"), *count)?;
        }
        positive_number("scaling", self.scaling)
    }
}

impl Config {
    fn tensor(&self, site: &Site) -> Result<PlannedTensor> {
        let own = Sites::pattern_value(&site.path, &self.n_frequency_pattern, "n_frequency_pattern")?;
        let (field, count) = match own {
            Some(count) => ("n_frequency_pattern", *count),
            None => ("n_frequency", self.n_frequency),
        };
        let entries = site.dims.input as u64 * site.dims.output as u64;
        if u64::from(count) > entries {
            let why = format!("{count}, but `{}` has only {entries} entries", site.path);
            return Err(refuse(field, &why).hint(format!("at most {entries}")));
        }
        if entries >= PERMUTATION_END {
            let why =
                format!("`{}` is too large: PEFT's places are drawn for up to {PERMUTATION_END} entries", site.path);
            return Err(refuse("target_modules", &why));
        }
        let init = if self.init_weights { Init::Zeros } else { Init::Normal { std: 1.0 } };
        Ok(parameter(site, "fourierft_spectrum", [count as usize], init))
    }
}

impl AdapterConfig for Config {
    peft_tuner!(peft_config);

    fn plan(&self, model: &dyn BackboneConfig) -> Result<Plan> {
        let family = model.info().family;
        // PEFT has the modules of LoRA, but for the families whose fused map it takes for too wide.
        let targets = self.targets.or_usual(model, |site| match family {
            "gpt2" | "gpt_bigcode" => site.role == Role::Linear && site.part == Part::Down,
            _ => query_value(site),
        });
        let bias = Bias::named(&self.bias, "fourier_only")?;
        linear_plan(&targets, &self.layers, bias, model, |site| Ok([self.tensor(site)?]))
    }
}

#[cfg(feature = "torch")]
mod run {
    use pleach_base::Result;
    use pleach_nn::SiteCx;
    use tch::{Kind, Tensor};

    use super::Config;
    use crate::adapter::common::{Added, Addition, at_sites};
    use crate::adapter::{Hooks, Parts};
    use crate::mersenne::Mersenne;

    struct Spectrum {
        values: Tensor, // [n_frequency]
        places: Tensor, // [n_frequency], in the flattened weight [out, in]
        shape: [i64; 2],
        scaling: f64,
    }

    pub(super) fn hooks(config: &Config, parts: &Parts<'_>) -> Result<Hooks> {
        at_sites(parts, |site| {
            let values = parts.part(site.id, "fourierft_spectrum")?.shallow_clone();
            let shape = [site.dims.output as i64, site.dims.input as i64];
            let entries = (site.dims.output * site.dims.input) as u64;
            let places = Mersenne::seed(config.random_loc_seed).permutation(entries, values.numel());
            let places: Vec<i64> = places.into_iter().map(|place| place as i64).collect();
            let places = Tensor::from_slice(&places).to_device(values.device());
            Ok(Added::at(site, Spectrum { values, places, shape, scaling: config.scaling }))
        })
    }

    impl Addition for Spectrum {
        fn added(&self, _: &SiteCx<'_>, x: &Tensor) -> Tensor {
            x.to_kind(Kind::Float).linear(&self.delta(), None::<&Tensor>)
        }

        fn delta(&self) -> Tensor {
            let none = Tensor::zeros([self.shape[0] * self.shape[1]], (Kind::Float, self.values.device()));
            let spectrum = none.scatter(0, &self.places, &self.values).reshape(self.shape);
            spectrum.fft_ifft2(None::<&[i64]>, [-2, -1], "backward").real() * self.scaling
        }
    }
}
