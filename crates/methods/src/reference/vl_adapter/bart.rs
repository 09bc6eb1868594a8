//! One block of BART's encoder, then one of its decoder, with adapters before each sum.

use pleach_base::Result;
use tch::{Kind, Tensor};

use super::super::Compared;
use super::super::recording::wrong;
use super::super::training::gradient;
use super::Case;
use super::parts::{Leaves, bottleneck};
use crate::adapter::common::Activation;

const EPS: f64 = 1e-5;

impl Case<'_> {
    pub(super) fn bart(&self, compared: &mut Compared) -> Result<()> {
        let mut leaves = Leaves::new(self.recording);
        let (x, y) = (self.recording.get("input.encoder_x")?, self.recording.get("input.decoder_x")?);
        let hidden = self.recording.find("input.encoder_valid_len").map(|lengths| {
            let index = Tensor::arange(x.size()[1], (Kind::Int64, x.device())).unsqueeze(0);
            index.ge_tensor(&lengths.unsqueeze(1)).unsqueeze(1).unsqueeze(1) // [b, 1, 1, s]
        });
        let width = y.size()[1];
        let future = Tensor::ones([width, width], (Kind::Bool, y.device())).triu(1);
        let memory = {
            let x = self.attended(&mut leaves, "encoder", ["self_attn", "attn_adapter"], (&x, &x), hidden.as_ref())?;
            self.fed(&mut leaves, "encoder", &x)?
        };
        let y = self.attended(&mut leaves, "decoder", ["self_attn", "self_attn_adapter"], (&y, &y), Some(&future))?;
        let y = self.attended(
            &mut leaves,
            "decoder",
            ["encoder_attn", "enc_attn_adapter"],
            (&y, &memory),
            hidden.as_ref(),
        )?;
        let output = self.fed(&mut leaves, "decoder", &y)?;
        compared.if_recorded("encoder_output", || Ok(memory))?;
        compared.tensor("output", &output)?;
        self.weighted(&output, "input.cotangent")?.backward();
        for (name, leaf) in leaves.all() {
            compared.if_recorded(&format!("grad.{name}"), || Ok(gradient(leaf)))?;
        }
        Ok(())
    }

    fn linear(&self, name: &str, x: &Tensor) -> Result<Tensor> {
        let bias = self.recording.find(&format!("frozen.{name}.bias"));
        Ok(x.linear(&self.recording.get(&format!("frozen.{name}.weight"))?, bias.as_ref()))
    }

    /// The adapter, where there is one.
    fn adapted(&self, leaves: &mut Leaves<'_>, at: &str, x: &Tensor) -> Result<Tensor> {
        if !leaves.has(&format!("{at}.down.weight")) {
            return Ok(x.shallow_clone());
        }
        let adapter =
            bottleneck(leaves, &self.config, [&format!("{at}.down"), &format!("{at}.up")], &format!("{at}."))?;
        Ok(adapter.run(x))
    }

    /// The normalisation behind a sum, trained or not.
    fn norm(&self, leaves: &mut Leaves<'_>, name: &str, x: &Tensor) -> Result<Tensor> {
        let [weight, bias] = match leaves.has(&format!("{name}.weight")) {
            true => leaves.pair(name)?,
            false => {
                let frozen = |part: &str| self.recording.get(&format!("frozen.{name}.{part}"));
                [frozen("weight")?, frozen("bias")?]
            }
        };
        Ok(x.layer_norm(weight.size(), Some(&weight), Some(&bias), EPS, false))
    }

    /// Attention of `x` to `memory`, its adapter, the sum and the normalisation. `hidden` is true where nothing is seen.
    fn attended(
        &self,
        leaves: &mut Leaves<'_>,
        stack: &str,
        [module, adapter]: [&str; 2],
        (x, memory): (&Tensor, &Tensor),
        hidden: Option<&Tensor>,
    ) -> Result<Tensor> {
        let heads = self.around.num_heads.ok_or_else(|| wrong("config.num_heads is missing"))?;
        let at = format!("{stack}.{module}");
        let (batch, d) = (x.size()[0], x.size()[2]);
        let split = |name: &str, from: &Tensor| -> Result<Tensor> {
            let y = self.linear(&format!("{at}.{name}"), from)?;
            Ok(y.reshape([batch, -1, heads, d / heads]).transpose(1, 2))
        };
        let (q, k, v) = (split("q_proj", x)?, split("k_proj", memory)?, split("v_proj", memory)?);
        let mut scores = q.matmul(&k.transpose(-2, -1)) / ((d / heads) as f64).sqrt();
        if let Some(hidden) = hidden {
            scores = scores.masked_fill(hidden, f64::NEG_INFINITY);
        }
        let mixed = scores.softmax(-1, None::<Kind>).matmul(&v).transpose(1, 2).reshape([batch, -1, d]);
        let y = self.linear(&format!("{at}.out_proj"), &mixed)?;
        let sum = x + self.adapted(leaves, &format!("{stack}.{adapter}"), &y)?;
        self.norm(leaves, &format!("{at}_layer_norm"), &sum)
    }

    /// The feed-forward part, its adapter, the sum and the normalisation.
    fn fed(&self, leaves: &mut Leaves<'_>, stack: &str, x: &Tensor) -> Result<Tensor> {
        let said = self.around.ffn_activation.as_deref().unwrap_or("gelu");
        let activation = Activation::parse("ffn_activation", said.split_whitespace().next().unwrap_or_default())?;
        let inner = activation.run(&self.linear(&format!("{stack}.fc1"), x)?);
        let y = self.linear(&format!("{stack}.fc2"), &inner)?;
        let sum = x + self.adapted(leaves, &format!("{stack}.ff_adapter"), &y)?;
        self.norm(leaves, &format!("{stack}.final_layer_norm"), &sum)
    }
}
