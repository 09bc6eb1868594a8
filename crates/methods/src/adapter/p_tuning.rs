//! P-tuning: prompt tuning whose rows come out of a small network over trained rows: `[g(P); E(tokens)]`.
//!
//! `g` is three affine maps with `relu` between, or a bidirectional LSTM along the rows and two affine maps. Its tensors
//! are trained and the file has the table alone, as PEFT's; an adapter that is read from a file trains the table.
//!
//! Liu et al., *GPT Understands, Too*, 2021.

use super::Virtual;
use super::prelude::*;
use super::prompting::{self, Prompting};

/// Options of P-tuning.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(deny_unknown_fields)]
pub struct Config {
    /// Virtual tokens.
    #[serde(flatten)]
    pub prompting: Prompting,
    /// The network: `MLP` or `LSTM`.
    pub encoder_reparameterization_type: Encoder,
    /// Its width; that of a token embedding when left out.
    pub encoder_hidden_size: Option<u32>,
    /// Layers of the LSTM. The MLP always has three maps.
    pub encoder_num_layers: u32,
    /// Share dropped between the layers of the LSTM.
    pub encoder_dropout: f64,
    /// Read from a file, which has the table whatever it was made by.
    #[serde(skip)]
    imported: bool,
}

/// `encoder_reparameterization_type`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Encoder {
    /// Affine maps with `relu` between.
    #[default]
    #[serde(rename = "MLP")]
    Mlp,
    /// Long short-term memory in both directions.
    #[serde(rename = "LSTM")]
    Lstm,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            prompting: Prompting::default(),
            encoder_reparameterization_type: Encoder::Mlp,
            encoder_hidden_size: None,
            encoder_num_layers: 2,
            encoder_dropout: 0.0,
            imported: false,
        }
    }
}

/// An affine map of the network: its name in PEFT and its parts here.
type Map2 = (&'static str, [&'static str; 2]);

const MLP: [Map2; 3] = [
    ("mlp_head.0", ["first", "first_bias"]),
    ("mlp_head.2", ["second", "second_bias"]),
    ("mlp_head.4", ["third", "third_bias"]),
];

const LSTM_HEAD: [Map2; 2] = [MLP[0], MLP[1]];

impl Options for Config {
    const CARD: &'static Card = &Card {
        name: "p_tuning",
        title: "P-tuning",
        summary: "Puts rows made by a small trained network in front of the token embeddings of every sequence.",
        formula: "`[g(P); E(tokens)]` at the token table; `g` is an MLP or an LSTM along the rows.",
        paper: "Liu et al., GPT Understands, Too, 2021 (arXiv:2103.10385)",
        roles: &[Role::Embed],
        mergeable: false,
        identity_at_init: false,
        peft_type: Some("P_TUNING"),
        sample_job: sample_job!("p_tuning", ", num_virtual_tokens: 16, encoder_hidden_size: 128"),
        invalid: &[
            Invalid { options: r#"{"num_virtual_tokens": 0}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"encoder_hidden_size": 0}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"encoder_num_layers": 0}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"encoder_dropout": 1.0}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"encoder_reparameterization_type": "GRU"}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"token_dim": 7}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"modules_to_save": ["no_such_module"]}"#, code: code::TARGET_NOTHING },
            Invalid { options: r#"{"encoder_hidden": 5}"#, code: code::UNKNOWN_KEY },
        ],
        ..Card::ADAPTER
    };

    fn imported(self) -> Self {
        Self { imported: true, ..self }
    }

    fn validate(&self) -> Result<()> {
        self.prompting.validate()?;
        positive("encoder_num_layers", self.encoder_num_layers)?;
        share("encoder_dropout", self.encoder_dropout)?;
        self.encoder_hidden_size.map_or(Ok(()), |size| positive("encoder_hidden_size", size))
    }
}

impl Config {
    fn tensors(&self, site: &Site, rows: usize, width: usize) -> Vec<PlannedTensor> {
        let normal = Init::Normal { std: 1.0 };
        if self.imported {
            return vec![prompting::table(site, [rows, width], normal)];
        }
        let hidden = self.encoder_hidden_size.map_or(width, |size| size as usize);
        let name = "prompt_encoder.embedding.weight".to_owned();
        let mut tensors = vec![PlannedTensor::trained(name, site.id, "embedding", [rows, width], normal)];
        let affine = |(name, parts): Map2, input, output| prompting::affine(site, name, parts, input, output);
        match self.encoder_reparameterization_type {
            Encoder::Mlp => {
                for (map, (input, output)) in MLP.into_iter().zip([(width, hidden), (hidden, hidden), (hidden, width)])
                {
                    tensors.extend(affine(map, input, output));
                }
            }
            Encoder::Lstm => {
                for layer in 0..self.encoder_num_layers as usize {
                    let input = if layer == 0 { width } else { 2 * hidden };
                    tensors.extend(lstm(site, layer, input, hidden));
                }
                tensors.extend(affine(LSTM_HEAD[0], 2 * hidden, 2 * hidden));
                tensors.extend(affine(LSTM_HEAD[1], 2 * hidden, width));
            }
        }
        tensors
    }
}

/// A layer of the LSTM, forwards then backwards: gates stacked as input, forget, cell, output.
fn lstm(site: &Site, layer: usize, input: usize, hidden: usize) -> Vec<PlannedTensor> {
    let init = Init::Uniform { bound: 1.0 / (hidden as f32).sqrt() };
    let shapes = || [vec![4 * hidden, input], vec![4 * hidden, hidden], vec![4 * hidden], vec![4 * hidden]];
    let names = lstm_names(layer);
    names
        .into_iter()
        .zip(shapes().into_iter().chain(shapes()))
        .map(|(name, shape)| PlannedTensor::trained(name, site.id, "lstm", shape, init))
        .collect()
}

/// Their names, in the order that the operation takes them.
fn lstm_names(layer: usize) -> Vec<String> {
    let of = |direction: &str| {
        ["weight_ih", "weight_hh", "bias_ih", "bias_hh"]
            .map(|kind| format!("prompt_encoder.lstm_head.{kind}_l{layer}{direction}"))
    };
    [of(""), of("_reverse")].concat()
}

impl AdapterConfig for Config {
    fn plan(&self, model: &dyn BackboneConfig) -> Result<Plan> {
        let (site, sizes) = (prompting::token_table(model)?, prompting::token_sizes(model)?);
        self.prompting.check(&sizes, model)?;
        let rows = self.prompting.tokens() * prompting::submodules(model);
        self.prompting.plan(model, &[site], self.tensors(site, rows, sizes.width))
    }

    fn adapter_config(&self, model: &dyn BackboneConfig, plan: &Plan, export: &Export<'_>) -> Map<String, Value> {
        let Ok(sizes) = prompting::token_sizes(model) else { return Map::new() };
        self.prompting.adapter_config(self, &sizes, (model, plan, export))
    }

    fn virtual_tokens(&self) -> Virtual {
        Virtual { prompt: self.prompting.tokens(), prefix: 0 }
    }

    #[cfg(feature = "torch")]
    fn hooks(&self, parts: &super::Parts<'_>) -> Result<super::Hooks> {
        let network = run::Network::of(self, parts)?;
        Ok(prompting::prepend(parts, self.prompting.tokens(), Box::new(move |noise| network.table(noise))))
    }

    #[cfg(feature = "torch")]
    fn exported(&self, parts: &super::Parts<'_>) -> Result<Option<Vec<(String, tch::Tensor)>>> {
        if self.imported {
            return Ok(None);
        }
        prompting::exported(parts, &run::Network::of(self, parts)?.table(None)).map(Some)
    }
}

#[cfg(feature = "torch")]
mod run {
    use pleach_base::Result;
    use pleach_base::rng::Key;
    use tch::{Kind, Tensor};

    use super::{Config, Encoder, LSTM_HEAD, MLP, lstm_names};
    use crate::adapter::Parts;
    use crate::adapter::common::whole_site;
    use crate::adapter::prompting::TABLE;

    /// What makes the table.
    pub(super) struct Network {
        /// `[rows, width]`.
        rows: Tensor,
        /// The eight tensors of each layer.
        lstm: Vec<Vec<Tensor>>,
        dropout: f64,
        /// Weight and bias of each map.
        maps: Vec<[Tensor; 2]>,
    }

    impl Network {
        pub(super) fn of(config: &Config, parts: &Parts<'_>) -> Result<Self> {
            let site = parts.plan.sites[0];
            let part = |name| parts.part(site, name).map(Tensor::shallow_clone);
            let (mut lstm, mut maps): (Vec<Vec<Tensor>>, Vec<[Tensor; 2]>) = (Vec::new(), Vec::new());
            let dropout = config.encoder_dropout;
            if config.imported {
                return Ok(Self { rows: part(TABLE)?, lstm, dropout, maps });
            }
            let names: &[_] = match config.encoder_reparameterization_type {
                Encoder::Mlp => &MLP,
                Encoder::Lstm => {
                    for layer in 0..config.encoder_num_layers as usize {
                        let get = |name: &String| parts.get(name).map(Tensor::shallow_clone);
                        lstm.push(lstm_names(layer).iter().map(get).collect::<Result<_>>()?);
                    }
                    &LSTM_HEAD
                }
            };
            for (_, [weight, bias]) in names {
                maps.push([part(weight)?, part(bias)?]);
            }
            Ok(Self { rows: part("embedding")?, lstm, dropout, maps })
        }

        /// `[rows, width]`; given a key, with dropout between the layers of the LSTM.
        pub(super) fn table(&self, noise: Option<Key>) -> Tensor {
            let mut x = self.rows.shallow_clone();
            for (number, layer) in self.lstm.iter().enumerate() {
                if let (Some(key), true) = (noise, number > 0 && self.dropout > 0.0) {
                    let mask = whole_site(x.numel(), self.dropout, key.with(number as u64), x.device());
                    x = &x * mask.view_as(&x);
                }
                let hidden = layer[1].size()[1];
                let zeros = Tensor::zeros([2, 1, hidden], (Kind::Float, x.device()));
                let layer: Vec<&Tensor> = layer.iter().collect();
                x = x.unsqueeze(0).lstm(&[&zeros, &zeros], &layer, true, 1, 0.0, false, true, true).0.squeeze_dim(0);
            }
            for (number, [weight, bias]) in self.maps.iter().enumerate() {
                let input = if number == 0 { x } else { x.relu() };
                x = input.linear(weight, Some(bias));
            }
            x
        }
    }
}
