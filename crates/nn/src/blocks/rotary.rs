//! Rotary position embeddings: halves of a head are rotated by angles that grow with the position
//! (Su et al., *RoFormer*, 2021), with the scalings `linear`, `dynamic`, `yarn` (Peng et al., *YaRN*, 2023), `longrope`
//! (Ding et al., *LongRoPE*, 2024) and `llama3`.

use std::f64::consts::TAU;

use pleach_base::{Error, Result, code, suggest};

use crate::model::{Config, bad};

/// What a family says of its rotation.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rope {
    /// Width of a head.
    pub(crate) dim: usize,
    /// The base where nothing says otherwise.
    pub(crate) theta: f64,
    /// Its field beside `rope_parameters`.
    pub(crate) theta_field: &'static str,
    /// Field and default of the share of each head that is rotated; `None` where a head is rotated whole.
    pub(crate) share: Option<(&'static str, f64)>,
    /// Names of older files for `longrope`.
    pub(crate) long_names: &'static [&'static str],
}

impl Rope {
    /// Heads are rotated whole, with the base 10000 unless configured.
    pub(crate) fn whole(dim: usize) -> Self {
        Self { dim, theta: 10_000.0, theta_field: "rope_theta", share: None, long_names: &[] }
    }
}

/// Angles a position.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct RotarySpec {
    /// One for each pair; pairs beyond are not rotated.
    frequencies: Vec<f32>,
    /// What cosines and sines are multiplied by.
    factor: f64,
    reach: Reach,
}

/// Frequencies that depend on the farthest position of a batch.
#[derive(Clone, Debug, PartialEq)]
enum Reach {
    /// They do not.
    Any,
    /// Beyond `max` positions the base grows.
    Dynamic { theta: f64, factor: f64, max: f64 },
    /// Beyond `max` positions they are others.
    Long { frequencies: Vec<f32>, max: usize },
}

impl RotarySpec {
    /// Reads `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (transformers 4).
    pub(crate) fn read(config: Config<'_>, rope: Rope) -> Result<Self> {
        let scaling = match config.object("rope_scaling")? {
            Some(old) => Some(old),
            None => config.object("rope_parameters")?,
        };
        if let Some((kind, _)) = scaling.and_then(|scaling| scaling.0.iter().find(|(_, value)| value.is_object())) {
            return Err(bad("rope_parameters", &format!("for `{kind}` alone are not built")));
        }
        let number = |field: &str, outer: &str, default: f64| {
            let outside = config.float(outer, default)?;
            scaling.map_or(Ok(outside), |scaling| scaling.float(field, outside))
        };
        let theta = number("rope_theta", rope.theta_field, rope.theta)?;
        let share = match rope.share {
            Some((field, default)) => number("partial_rotary_factor", field, default)?,
            None => 1.0,
        };
        if rope.share.is_none() && number("partial_rotary_factor", "partial_rotary_factor", 1.0)? != 1.0 {
            return Err(bad("partial_rotary_factor", "must be 1: the family rotates whole heads"));
        }
        let dim = (rope.dim as f64 * share) as usize;
        if dim == 0 || !dim.is_multiple_of(2) || dim > rope.dim {
            return Err(bad("partial_rotary_factor", &format!("{share} leaves {dim} of {} to rotate", rope.dim)));
        }
        let plain = Self { frequencies: frequencies(theta, dim), factor: 1.0, reach: Reach::Any };
        let Some(scaling) = scaling else { return Ok(plain) };
        let kind = scaling.text("rope_type")?.or(scaling.text("type")?).unwrap_or("default");
        let kind = if rope.long_names.contains(&kind) { "longrope" } else { kind };
        let scaled = Scaled { config, scaling, theta, dim };
        Ok(match kind {
            "default" => plain,
            "linear" => {
                let factor = required(scaling, "factor")? as f32;
                Self { frequencies: plain.frequencies.iter().map(|f| f / factor).collect(), ..plain }
            }
            "llama3" => Self { frequencies: scaled.llama3(&plain.frequencies)?, ..plain },
            "dynamic" => {
                let (factor, max) = (required(scaling, "factor")?, required(config, "max_position_embeddings")?);
                Self { reach: Reach::Dynamic { theta, factor, max }, ..plain }
            }
            "yarn" => scaled.yarn()?,
            "longrope" => scaled.longrope()?,
            other => return Err(unknown(other)),
        })
    }

    /// Whether some batches have other frequencies than others.
    pub(crate) fn sees_the_farthest(&self) -> bool {
        self.reach != Reach::Any
    }

    /// Frequencies for a batch whose farthest position is the `seen`th.
    fn at(&self, seen: usize) -> Vec<f32> {
        match &self.reach {
            Reach::Dynamic { theta, factor, max } if seen as f64 > *max => {
                let dim = self.frequencies.len() as f64 * 2.0;
                let growth = factor * seen as f64 / max - (factor - 1.0);
                frequencies(theta * growth.powf(dim / (dim - 2.0)), dim as usize)
            }
            Reach::Long { frequencies, max } if seen > *max => frequencies.clone(),
            _ => self.frequencies.clone(),
        }
    }
}

fn frequencies(theta: f64, dim: usize) -> Vec<f32> {
    (0..dim / 2).map(|i| 1.0 / (theta as f32).powf((2 * i) as f32 / dim as f32)).collect()
}

fn unknown(kind: &str) -> Error {
    let known = ["default", "linear", "llama3", "dynamic", "yarn", "longrope"];
    code::MODEL_CONFIG
        .error(format!("config.json: rope_type `{kind}` is not built"))
        .hint(suggest::did_you_mean(kind, known))
}

fn required(config: Config<'_>, field: &str) -> Result<f64> {
    optional(config, field)?.ok_or_else(|| {
        code::MODEL_CONFIG.error(format!("config.json: rope_parameters.{field} must be a positive number"))
    })
}

fn optional(config: Config<'_>, field: &str) -> Result<Option<f64>> {
    let value = config.float(field, f64::NAN)?;
    Ok((value.is_finite() && value > 0.0).then_some(value))
}

/// A scaling being read.
struct Scaled<'a> {
    config: Config<'a>,
    scaling: Config<'a>,
    theta: f64,
    dim: usize,
}

impl Scaled<'_> {
    /// Positions of the first training: beside the scaling, else within it, else all.
    fn original(&self) -> Result<f64> {
        let name = "original_max_position_embeddings";
        match optional(self.config, name)?.or(optional(self.scaling, name)?) {
            Some(original) => Ok(original),
            None => required(self.config, "max_position_embeddings"),
        }
    }

    /// `factor`, else how many times more positions there are than at first.
    fn factor(&self, original: f64) -> Result<f64> {
        match optional(self.scaling, "factor")? {
            Some(factor) => Ok(factor),
            None => Ok(required(self.config, "max_position_embeddings")? / original),
        }
    }

    /// Long wavelengths are stretched by `factor`, short ones kept, those between mixed.
    fn llama3(&self, plain: &[f32]) -> Result<Vec<f32>> {
        let need = |field| required(self.scaling, field);
        let (factor, low, high) = (need("factor")?, need("low_freq_factor")?, need("high_freq_factor")?);
        let length = self.original()?;
        let scale = |frequency: &f32| {
            let wavelength = TAU / f64::from(*frequency);
            if wavelength < length / high {
                return *frequency;
            }
            let stretched = f64::from(*frequency) / factor;
            if wavelength > length / low {
                return stretched as f32;
            }
            let smooth = (length / wavelength - low) / (high - low);
            ((1.0 - smooth) * stretched + smooth * f64::from(*frequency)) as f32
        };
        Ok(plain.iter().map(scale).collect())
    }

    /// Pairs that turn often are kept, those that turn rarely are stretched by `factor`, those between mixed; attention
    /// is sharpened.
    fn yarn(&self) -> Result<RotarySpec> {
        let original = self.original()?;
        let factor = self.factor(original)?;
        let sharpen = |by: f64| if factor <= 1.0 { 1.0 } else { 0.1 * by * factor.ln() + 1.0 };
        let given = optional(self.scaling, "attention_factor")?;
        let both = optional(self.scaling, "mscale")?.zip(optional(self.scaling, "mscale_all_dim")?);
        let attention = match (given, both) {
            (Some(given), _) => given,
            (None, Some((one, all))) => sharpen(one) / sharpen(all),
            (None, None) => sharpen(1.0),
        };
        let dim = self.dim as f64;
        // The pair that turns so often within the first training's positions.
        let pair = |turns: f64| dim * (original / (turns * TAU)).ln() / (2.0 * self.theta.ln());
        let (fast, slow) = (optional(self.scaling, "beta_fast")?, optional(self.scaling, "beta_slow")?);
        let (mut low, mut high) = (pair(fast.unwrap_or(32.0)), pair(slow.unwrap_or(1.0)));
        if self.scaling.flag("truncate", true)? {
            (low, high) = (low.floor(), high.ceil());
        }
        let (low, high) = (low.max(0.0), high.min(dim - 1.0));
        let span = if low == high { 0.001 } else { high - low };
        let mix = |(i, frequency): (usize, &f32)| {
            let stretched = ((i as f64 - low) / span).clamp(0.0, 1.0);
            (f64::from(*frequency) / factor * stretched + f64::from(*frequency) * (1.0 - stretched)) as f32
        };
        let frequencies = frequencies(self.theta, self.dim).iter().enumerate().map(mix).collect();
        Ok(RotarySpec { frequencies, factor: attention, reach: Reach::Any })
    }

    /// Each pair is stretched by a number of its own, by others in long batches; attention is sharpened.
    fn longrope(&self) -> Result<RotarySpec> {
        let original = self.original()?;
        let factor = self.factor(original)?;
        let attention = match optional(self.scaling, "attention_factor")? {
            Some(given) => given,
            None if factor <= 1.0 => 1.0,
            None => (1.0 + factor.ln() / original.ln()).sqrt(),
        };
        let stretched = |field: &str| {
            let list = self.scaling.floats(field)?.filter(|list| list.len() == self.dim / 2);
            let list = list.ok_or_else(|| {
                bad(&format!("rope_parameters.{field}"), &format!("must be a list of {} numbers", self.dim / 2))
            })?;
            Ok::<_, Error>(frequencies(self.theta, self.dim).iter().zip(list).map(|(f, by)| f / by as f32).collect())
        };
        let reach = Reach::Long { frequencies: stretched("long_factor")?, max: original as usize };
        Ok(RotarySpec { frequencies: stretched("short_factor")?, factor: attention, reach })
    }
}

#[cfg(feature = "torch")]
pub(crate) use imp::rotate;

#[cfg(feature = "torch")]
mod imp {
    use tch::{Kind, Tensor};

    use super::RotarySpec;
    use crate::run::Layout;

    /// Positions that fill whole vectors, however narrow a head is.
    const WHOLE: usize = 64;

    impl RotarySpec {
        /// Cosines and sines for the batch's positions, each `[width, 1, dim]`, `[batch, width, 1, dim]` or
        /// `[tokens, 1, dim]`, where `dim` is what is rotated of a head.
        pub(crate) fn tables(&self, layout: &Layout, kind: Kind) -> Vec<Tensor> {
            let frequencies = Tensor::from_slice(&self.at(layout.farthest())).to_device(layout.device());
            // Whole vectors of numbers, the last of which the processor would round otherwise: a position's angles do not
            // know the batch.
            let places = layout.farthest().next_multiple_of(WHOLE) as i64;
            let places = Tensor::arange(places, (Kind::Float, layout.device()));
            let angles = places.unsqueeze(-1) * frequencies; // [places, dim / 2]
            let angles = Tensor::cat(&[&angles, &angles], -1).unsqueeze(-2); // [places, 1, dim]
            let positions = layout.positions();
            let mut shape = positions.size();
            shape.extend(&angles.size()[1..]);
            let rows = |table: Tensor| table.index_select(0, &positions.flatten(0, -1)).reshape(&shape);
            [angles.cos(), angles.sin()].map(|table| rows((table * self.factor).to_kind(kind))).into()
        }
    }

    /// Rotates `[.., heads, d]`, as much of each head as there are cosines; dimension `i` is paired with `i + dim / 2`.
    pub(crate) fn rotate(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Tensor {
        let (dim, all) = (*cos.size().last().unwrap_or(&0), *x.size().last().unwrap_or(&0));
        let turned = x.narrow(-1, 0, dim);
        let halves = turned.chunk(2, -1);
        let across = Tensor::cat(&[&-&halves[1], &halves[0]], -1);
        let turned = turned * cos + across * sin;
        if dim == all { turned } else { Tensor::cat(&[&turned, &x.narrow(-1, dim, all - dim)], -1) }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn read(config: &Value, dim: usize) -> Result<Vec<f32>> {
        let map = config.as_object().unwrap();
        RotarySpec::read(Config(map), Rope::whole(dim)).map(|spec| spec.frequencies)
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

    fn near(found: &[f32], expected: &[f32]) {
        assert_eq!(found.len(), expected.len());
        for (found, expected) in found.iter().zip(expected) {
            assert!((found / expected - 1.0).abs() < 1e-5, "{found} for {expected}");
        }
    }

    /// Numbers of transformers for a head of 16 and 256 positions.
    #[test]
    fn yarn_mixes_and_sharpens_as_recorded() {
        let spec = |more: Value| {
            let mut rope = json!({"rope_theta": 10000.0, "rope_type": "yarn", "factor": 4.0,
                "original_max_position_embeddings": 64});
            rope.as_object_mut().unwrap().append(&mut more.as_object().unwrap().clone());
            let config = json!({"max_position_embeddings": 256, "rope_parameters": rope});
            RotarySpec::read(Config(config.as_object().unwrap()), Rope::whole(16)).unwrap()
        };
        let plain = spec(json!({}));
        near(&plain.frequencies[1..4], &[0.237_170_8, 0.049_999_997, 0.007_905_695]);
        assert!((plain.factor - 1.138_629_436).abs() < 1e-8);
        let whole =
            spec(json!({"beta_fast": 4.0, "beta_slow": 0.5, "mscale": 0.8, "mscale_all_dim": 0.4, "truncate": false}));
        near(&whole.frequencies[1..4], &[0.291_525_63, 0.050_664_395, 0.007_905_695]);
        assert!((whole.factor - 1.052_538_426).abs() < 1e-8);
        assert!((spec(json!({"attention_factor": 1.3})).factor - 1.3).abs() < 1e-12);
    }

    /// Numbers of transformers for a head of 8.
    #[test]
    fn dynamic_and_longrope_change_with_the_farthest_position() {
        let spec = |config: Value| RotarySpec::read(Config(config.as_object().unwrap()), Rope::whole(8)).unwrap();
        let dynamic = spec(json!({"max_position_embeddings": 64,
            "rope_parameters": {"rope_theta": 10000.0, "rope_type": "dynamic", "factor": 3.0}}));
        near(&dynamic.at(64), &[1.0, 0.1, 0.01, 0.001]);
        near(&dynamic.at(100), &[1.0, 0.071_925_66, 0.005_173_300_4, 0.000_372_093_03]);
        let rope = json!({"rope_theta": 10000.0, "rope_type": "su", "original_max_position_embeddings": 16,
            "short_factor": [1.0, 1.1, 1.3, 1.5], "long_factor": [1.0, 1.7, 2.5, 4.0]});
        let config = json!({"max_position_embeddings": 64, "rope_scaling": rope});
        let rope = Rope { long_names: &["su"], ..Rope::whole(8) };
        let long = RotarySpec::read(Config(config.as_object().unwrap()), rope).unwrap();
        near(&long.at(16), &[1.0, 0.090_909_09, 0.007_692_307_7, 0.000_666_666_67]);
        near(&long.at(17), &[1.0, 0.058_823_53, 0.004, 0.000_25]);
        assert!((long.factor - 1.224_744_871).abs() < 1e-8, "four times the positions, though no factor says so");
    }

    #[test]
    fn a_share_of_a_head_is_rotated_where_the_family_can() {
        let config = json!({"rotary_pct": 0.25, "rotary_emb_base": 100.0});
        let rope = Rope { share: Some(("rotary_pct", 1.0)), theta_field: "rotary_emb_base", ..Rope::whole(16) };
        let spec = RotarySpec::read(Config(config.as_object().unwrap()), rope).unwrap();
        near(&spec.frequencies, &[1.0, 0.1]);
        let error = read(&json!({"partial_rotary_factor": 0.5}), 8).unwrap_err();
        assert!(error.message().contains("partial_rotary_factor must be 1"), "{}", error.message());
    }

    #[test]
    fn an_unknown_scaling_is_refused_by_name() {
        let error = read(&json!({"rope_parameters": {"rope_type": "lama3"}}), 8).unwrap_err();
        assert_eq!((error.code(), error.hint_text()), (code::MODEL_CONFIG, Some("did you mean `llama3`?")));
    }
}
