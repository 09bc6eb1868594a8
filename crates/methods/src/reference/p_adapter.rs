//! Page 20, p-Adapter: an attention with its adapter and the sum behind it, or a feed-forward part with its own.

use pleach_base::Result;
use serde::Deserialize;
use serde_json::{Map, Value};
use tch::{Kind, Tensor};

use super::recording::{Recording, bad, wrong};
use super::training::gradient;
use super::{Compared, Page, Train};
use crate::adapter::Options;
use crate::adapter::p_adapter::graph::{Graph, pooling};
use crate::adapter::p_adapter::module::{Affine, Beside, Module};
use crate::adapter::p_adapter::{Config, CrossBeta};
use crate::options::typed;

pub(super) const PAGE: Page = Page { number: 20, tolerances: &[], repeat };

/// The options of the case that are not the method's.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Around {
    num_heads: Option<i64>,
    layer_norm_eps: Option<f64>,
}

struct Case<'a> {
    recording: &'a Recording,
    config: Config,
    around: Around,
    /// Trained tensors by their names in the recording.
    leaves: Vec<(String, Tensor)>,
}

fn repeat(recording: &Recording, _: &dyn Train, compared: &mut Compared) -> Result<()> {
    if recording.kind != "module" {
        return Err(wrong(format!("kind: page 20 has no {}", recording.kind)));
    }
    let (around, rest): (Around, Map<String, Value>) = recording.split(&["num_heads", "layer_norm_eps"])?;
    let config: Config = typed(&rest, "config", &[])?;
    config.validate()?;
    let names: Vec<_> = recording.under("param.").map(str::to_owned).collect();
    let leaf = |name: String| Ok((name.clone(), recording.leaf(&format!("param.{name}"))?));
    let leaves = names.into_iter().map(leaf).collect::<Result<_>>()?;
    let case = Case { recording, config, around, leaves };
    match recording.find("input.ffn_hidden") {
        Some(_) => case.feed_forward(compared)?,
        None => case.attention(compared)?,
    }
    for (name, leaf) in &case.leaves {
        compared.if_recorded(&format!("grad.{name}"), || Ok(gradient(leaf)))?;
    }
    compared.check_used(recording);
    Ok(())
}

impl Case<'_> {
    fn leaf(&self, name: &str) -> Result<Tensor> {
        let found = self.leaves.iter().find(|(own, _)| own == name);
        found.map(|(_, tensor)| tensor.shallow_clone()).ok_or_else(|| bad(format!("param.{name} is missing")))
    }

    fn affine(&self, name: &str) -> Result<Affine> {
        Ok(Affine { weight: self.leaf(&format!("{name}.weight"))?, bias: self.leaf(&format!("{name}.bias"))? })
    }

    fn frozen(&self, map: &str, x: &Tensor) -> Result<Tensor> {
        let bias = self.recording.find(&format!("frozen.{map}.bias"));
        Ok(x.linear(&self.recording.get(&format!("frozen.{map}.weight"))?, bias.as_ref()))
    }

    fn norm(&self, x: &Tensor) -> Result<Tensor> {
        let eps = self.around.layer_norm_eps.ok_or_else(|| wrong("config.layer_norm_eps is missing"))?;
        let weight = self.recording.get("frozen.ln.weight")?;
        let bias = self.recording.get("frozen.ln.bias")?;
        Ok(x.layer_norm(weight.size(), Some(&weight), Some(&bias), eps, false))
    }

    fn backward(&self, output: &Tensor, compared: &mut Compared) -> Result<()> {
        compared.tensor("output", output)?;
        (output * self.recording.get("input.cotangent")?).sum(output.kind()).backward();
        Ok(())
    }

    fn feed_forward(&self, compared: &mut Compared) -> Result<()> {
        let (hidden, residual) = (self.recording.leaf("input.ffn_hidden")?, self.recording.leaf("input.residual")?);
        let beside = Beside { down: self.affine("ffn_adapter.D")?, up: self.affine("ffn_adapter.U")? };
        self.check_width(
            "ffn_adapter_reduction_factor",
            self.config.ffn_adapter_reduction_factor.factor(),
            &beside.down,
        )?;
        let output = self.norm(&(self.frozen("w2", &hidden)? + beside.run(&residual)))?;
        self.backward(&output, compared)?;
        compared.if_recorded("grad.ffn_hidden", || Ok(gradient(&hidden)))?;
        compared.if_recorded("grad.residual", || Ok(gradient(&residual)))
    }

    fn check_width(&self, field: &str, factor: Option<u32>, down: &Affine) -> Result<()> {
        let (width, d) = (down.weight.size()[0], down.weight.size()[1]);
        let said = factor.map(|factor| d / i64::from(factor));
        if said == Some(width) { Ok(()) } else { Err(wrong(format!("config.{field}: the recorded width is {width}"))) }
    }

    fn attention(&self, compared: &mut Compared) -> Result<()> {
        let x = self.recording.leaf("input.x")?;
        let encoder =
            self.recording.find("input.encoder_x").map(|_| self.recording.leaf("input.encoder_x")).transpose()?;
        let (graph, context) = self.attend(&x, encoder.as_ref())?;
        compared.if_recorded("adjacency", || Ok(graph.adjacency()))?;
        compared.if_recorded("nodes", || Ok(graph.nodes()))?;
        compared.if_recorded("context", || Ok(context.shallow_clone()))?;
        let module = self.module(encoder.is_some())?;
        self.check_width("reduction_factor", Some(self.config.reduction_factor), &module.reduce)?;
        let queries = graph.queries.as_ref().map(|queries| self.frozen("wo", queries)).transpose()?;
        let projected = Graph { weights: graph.weights, values: self.frozen("wo", &graph.values)?, queries };
        let out = module.join(&self.frozen("wo", &context)?, &module.spread(&projected));
        self.backward(&self.norm(&(&x + out))?, compared)?;
        compared.if_recorded("grad.input", || Ok(gradient(&x)))?;
        compared.if_recorded("grad.encoder_x", || {
            encoder.as_ref().map(gradient).ok_or_else(|| bad("input.encoder_x is missing"))
        })
    }

    fn module(&self, cross: bool) -> Result<Module> {
        let config = &self.config;
        let kind = self.leaf("adapter.m")?.kind();
        let p = match config.learnable_p {
            true => self.leaf("adapter.p")?,
            false => Tensor::from_slice(&[if cross { config.p_cross } else { config.p_self }]).to_kind(kind),
        };
        Ok(Module {
            reduce: self.affine("adapter.wi")?,
            gate: self.affine("adapter.wg")?,
            out: self.affine("adapter.wo")?,
            p,
            m: self.leaf("adapter.m")?,
            mu: config.mu,
            eps: config.eps,
            heads: self.heads()?,
            cross_own: config.cross_beta == CrossBeta::Query,
        })
    }

    fn heads(&self) -> Result<i64> {
        self.around.num_heads.filter(|heads| *heads > 0).ok_or_else(|| wrong("config.num_heads is missing"))
    }

    /// The graph, and the context with its heads merged.
    fn attend(&self, x: &Tensor, encoder: Option<&Tensor>) -> Result<(Graph, Tensor)> {
        let heads = self.heads()?;
        let split = |x: &Tensor| x.unflatten(-1, [heads, -1]).transpose(1, 2); // [n, h, t, dim]
        let merge = |x: &Tensor| x.transpose(1, 2).flatten(-2, -1);
        let from = encoder.unwrap_or(x);
        let queries = self.frozen("q", x)?;
        let (mut k, mut v) = (split(&self.frozen("k", from)?), split(&self.frozen("v", from)?));
        let past = self.recording.find("input.past_key");
        if let Some(past) = &past {
            (k, v) = (Tensor::cat(&[past, &k], 2), Tensor::cat(&[&self.recording.get("input.past_value")?, &v], 2));
        }
        let scores = split(&queries).matmul(&k.transpose(2, 3)) / (k.size()[3] as f64).sqrt();
        let scores = match self.recording.find("input.additive_mask") {
            Some(mask) => scores + mask,
            None => scores,
        };
        let weights = scores.softmax(-1, None::<Kind>);
        let (context, values) = (merge(&weights.matmul(&v)), merge(&v));
        if encoder.is_none() && past.is_none() {
            return Ok((Graph { weights, values, queries: None }, context));
        }
        let queries = Some(queries);
        if past.is_some() {
            return Ok((Graph { weights, values, queries }, context));
        }
        let (bins, width) = (self.config.image_sample_len as usize, values.size()[1] as usize);
        let pool = Tensor::from_slice(&pooling(&[width], &[bins], bins, width)).reshape([bins as i64, -1]);
        let pool = pool.to_kind(values.kind());
        let weights = weights.matmul(&pool.tr());
        Ok((Graph { weights, values: pool.matmul(&values), queries }, context))
    }
}
