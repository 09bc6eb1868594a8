//! A Vision Transformer as timm builds it, over the tensors of a recording: blocks that normalise first, a class token,
//! exact GELU.

use pleach_base::Result;
use tch::{Kind, Tensor};

use super::recording::{Recording, wrong};

/// Of every normalisation.
const EPS: f64 = 1e-6;

/// The frozen tensors, all of one kind.
pub(super) struct Vit<'a> {
    recording: &'a Recording,
    kind: Kind,
    heads: i64,
    pub(super) depth: usize,
}

/// What a method does inside a block.
pub(super) trait Inside {
    /// Added to queries, keys and values, each `[B, T, d]`, of the normalised input.
    fn attention(&self, _block: usize, _normed: &Tensor) -> [Option<Tensor>; 3] {
        [None, None, None]
    }

    /// Added behind the feed-forward part, of what comes before its normalisation.
    fn beside_mlp(&self, _block: usize, _residual: &Tensor) -> Option<Tensor> {
        None
    }
}

impl<'a> Vit<'a> {
    pub(super) fn new(recording: &'a Recording, heads: i64, kind: Kind) -> Self {
        let block = |name: &str| name.strip_prefix("blocks.")?.split('.').next()?.parse::<usize>().ok();
        let depth = recording.under("frozen.").filter_map(block).max().map_or(0, |last| last + 1);
        Self { recording, kind, heads, depth }
    }

    fn tensor(&self, name: &str) -> Result<Tensor> {
        Ok(self.recording.get(&format!("frozen.{name}"))?.to_kind(self.kind))
    }

    fn affine(&self, name: &str) -> Result<(Tensor, Option<Tensor>)> {
        let bias = self.recording.find(&format!("frozen.{name}.bias")).map(|bias| bias.to_kind(self.kind));
        Ok((self.tensor(&format!("{name}.weight"))?, bias))
    }

    fn linear(&self, name: &str, x: &Tensor) -> Result<Tensor> {
        let (weight, bias) = self.affine(name)?;
        Ok(x.linear(&weight, bias.as_ref()))
    }

    fn norm(&self, name: &str, x: &Tensor) -> Result<Tensor> {
        let (weight, bias) = self.affine(name)?;
        Ok(x.layer_norm(weight.size(), Some(&weight), bias.as_ref(), EPS, false))
    }

    /// The class token behind the last normalisation `[B, d]` of images `[B, channels, h, w]`.
    pub(super) fn pooled(&self, images: &Tensor, inside: &dyn Inside) -> Result<Tensor> {
        let (weight, bias) = self.affine("patch_embed.proj")?;
        let patch = weight.size()[2];
        let patches = images.to_kind(self.kind).conv2d(&weight, bias.as_ref(), [patch, patch], [0, 0], [1, 1], 1);
        let patches = patches.flatten(2, -1).transpose(1, 2);
        let class = self.tensor("cls_token")?.expand([images.size()[0], -1, -1], false);
        let mut x = Tensor::cat(&[class, patches], 1) + self.tensor("pos_embed")?;
        for block in 0..self.depth {
            let name = |part: &str| format!("blocks.{block}.{part}");
            x = &x + self.attention(block, &self.norm(&name("norm1"), &x)?, inside)?;
            let inner = self.linear(&name("mlp.fc1"), &self.norm(&name("norm2"), &x)?)?.gelu("none");
            let mut y = &x + self.linear(&name("mlp.fc2"), &inner)?;
            if let Some(added) = inside.beside_mlp(block, &x) {
                y = y.g_add(&added);
            }
            x = y;
        }
        Ok(self.norm("norm", &x)?.select(1, 0))
    }

    fn attention(&self, block: usize, x: &Tensor, inside: &dyn Inside) -> Result<Tensor> {
        let size = x.size();
        let [batch, tokens, width] = size[..] else {
            return Err(wrong("input.x: images have not three axes as tokens"));
        };
        let qkv = self.linear(&format!("blocks.{block}.attn.qkv"), x)?;
        let added = inside.attention(block, x);
        let part = |at: usize| {
            let own = qkv.narrow(-1, at as i64 * width, width);
            let own = match &added[at] {
                Some(more) => own + more,
                None => own,
            };
            own.reshape([batch, tokens, self.heads, width / self.heads]).transpose(1, 2)
        };
        let scores = part(0).matmul(&part(1).transpose(-2, -1)) / ((width / self.heads) as f64).sqrt();
        let mixed = scores.softmax(-1, None::<Kind>).matmul(&part(2)).transpose(1, 2);
        self.linear(&format!("blocks.{block}.attn.proj"), &mixed.reshape([batch, tokens, width]))
    }
}
