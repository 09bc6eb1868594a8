//! Rotary position embeddings: halves of a head are rotated by angles that grow with the position
//! (Su et al., *RoFormer*, 2021), with the scalings `linear` and `llama3`.

use pleach_base::{Result, code, suggest};

use crate::model::Config;

/// Angles a position.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct RotarySpec {
    /// One for each pair, `dim / 2`.
    pub(crate) frequencies: Vec<f32>,
}

impl RotarySpec {
    /// Reads `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (transformers 4).
    pub(crate) fn read(config: Config<'_>, dim: usize, default_theta: f64) -> Result<Self> {
        let (base, scaling) = match config.object("rope_parameters")? {
            Some(rope) => (rope.float("rope_theta", config.float("rope_theta", default_theta)?)?, Some(rope)),
            None => (config.float("rope_theta", default_theta)?, config.object("rope_scaling")?),
        };
        let plain: Vec<f32> = (0..dim / 2).map(|i| 1.0 / (base as f32).powf((2 * i) as f32 / dim as f32)).collect();
        let Some(scaling) = scaling else { return Ok(Self { frequencies: plain }) };
        let kind = scaling.text("rope_type")?.or(scaling.text("type")?).unwrap_or("default");
        let frequencies = match kind {
            "default" => plain,
            "linear" => {
                let factor = required(scaling, "factor")? as f32;
                plain.iter().map(|frequency| frequency / factor).collect()
            }
            "llama3" => Llama3::read(scaling)?.apply(&plain),
            other => {
                return Err(code::MODEL_CONFIG
                    .error(format!("config.json: rope_type `{other}` is not built"))
                    .hint(suggest::did_you_mean(other, ["default", "linear", "llama3"])));
            }
        };
        Ok(Self { frequencies })
    }
}

fn required(config: Config<'_>, field: &str) -> Result<f64> {
    let value = config.float(field, f64::NAN)?;
    if value.is_finite() && value > 0.0 {
        return Ok(value);
    }
    Err(code::MODEL_CONFIG.error(format!("config.json: rope_parameters.{field} must be a positive number")))
}

/// Long wavelengths are stretched by `factor`, short ones kept, those between mixed.
struct Llama3 {
    factor: f64,
    low: f64,
    high: f64,
    length: f64,
}

impl Llama3 {
    fn read(config: Config<'_>) -> Result<Self> {
        Ok(Self {
            factor: required(config, "factor")?,
            low: required(config, "low_freq_factor")?,
            high: required(config, "high_freq_factor")?,
            length: required(config, "original_max_position_embeddings")?,
        })
    }

    fn apply(&self, plain: &[f32]) -> Vec<f32> {
        let scale = |frequency: &f32| {
            let wavelength = std::f64::consts::TAU / f64::from(*frequency);
            if wavelength < self.length / self.high {
                return *frequency;
            }
            let stretched = f64::from(*frequency) / self.factor;
            if wavelength > self.length / self.low {
                return stretched as f32;
            }
            let smooth = (self.length / wavelength - self.low) / (self.high - self.low);
            ((1.0 - smooth) * stretched + smooth * f64::from(*frequency)) as f32
        };
        plain.iter().map(scale).collect()
    }
}

#[cfg(feature = "torch")]
pub(crate) use imp::rotate;

#[cfg(feature = "torch")]
mod imp {
    use tch::{Kind, Tensor};

    use super::RotarySpec;
    use crate::run::Layout;

    impl RotarySpec {
        /// Cosines and sines for the batch's positions, each `[width, 1, dim]`, `[batch, width, 1, dim]` or
        /// `[tokens, 1, dim]`.
        pub(crate) fn tables(&self, layout: &Layout, kind: Kind) -> Vec<Tensor> {
            let frequencies = Tensor::from_slice(&self.frequencies).to_device(layout.device());
            let angles = layout.positions().to_kind(Kind::Float).unsqueeze(-1) * frequencies; // [.., dim / 2]
            let angles = Tensor::cat(&[&angles, &angles], -1).unsqueeze(-2); // [w, 1, dim]
            vec![angles.cos().to_kind(kind), angles.sin().to_kind(kind)]
        }
    }

    /// Rotates `[.., heads, dim]`; dimension `i` is paired with `i + dim / 2`.
    pub(crate) fn rotate(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Tensor {
        let halves = x.chunk(2, -1);
        let turned = Tensor::cat(&[&-&halves[1], &halves[0]], -1);
        x * cos + turned * sin
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(config: &serde_json::Value, dim: usize) -> Result<Vec<f32>> {
        let map = config.as_object().unwrap();
        RotarySpec::read(Config(map), dim, 10_000.0).map(|spec| spec.frequencies)
    }

    #[test]
    fn both_spellings_of_the_configuration_are_read() {
        let five = read(&json!({"rope_parameters": {"rope_theta": 500.0, "rope_type": "linear", "factor": 4.0}}), 8);
        let four = read(&json!({"rope_theta": 500.0, "rope_scaling": {"type": "linear", "factor": 4.0}}), 8);
        assert_eq!(five.unwrap(), four.unwrap());
        assert_eq!(read(&json!({}), 4).unwrap(), [1.0, 0.01]);
        assert_eq!(read(&json!({"rope_theta": 100.0, "rope_scaling": null}), 4).unwrap(), [1.0, 0.1]);
    }

    #[test]
    fn llama3_keeps_short_wavelengths_and_stretches_long_ones() {
        let config = json!({"rope_parameters": {"rope_theta": 10000.0, "rope_type": "llama3", "factor": 8.0,
            "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}});
        let found = read(&config, 8).unwrap();
        assert_eq!(found[0], 1.0, "wavelength 6.3 is below 64 / 4");
        let smooth = (64.0 / (std::f32::consts::TAU / 0.1) - 1.0) / 3.0;
        assert!((found[1] - ((1.0 - smooth) * 0.1 / 8.0 + smooth * 0.1)).abs() < 1e-7, "between");
        assert!((found[2] - 0.01 / 8.0).abs() < 1e-9 && (found[3] - 0.001 / 8.0).abs() < 1e-9, "long: divided by 8");
    }

    #[test]
    fn an_unknown_scaling_is_refused_by_name() {
        let error = read(&json!({"rope_parameters": {"rope_type": "lama3"}}), 8).unwrap_err();
        assert_eq!((error.code(), error.hint_text()), (code::MODEL_CONFIG, Some("did you mean `llama3`?")));
    }
}
