//! A pre-norm vision transformer in the names of timm, as some pages' recordings have one: double precision, and whatever
//! a page puts around its parts.

use pleach_base::Result;
use tch::{Kind, Tensor};

use super::recording::Recording;
use crate::continual::pet::{Low, with_prefix};

/// Of every layer norm.
const EPS: f64 = 1e-6;

/// The tensor of this name in double precision.
pub(super) fn double(recording: &Recording, name: &str) -> Result<Tensor> {
    Ok(recording.get(name)?.to_kind(Kind::Double))
}

/// A leaf in double precision.
pub(super) fn double_leaf(recording: &Recording, name: &str) -> Result<Tensor> {
    Ok(double(recording, name)?.detach().copy().set_requires_grad(true))
}

struct Affine {
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Affine {
    fn read(recording: &Recording, name: &str) -> Result<Self> {
        let bias = recording.find(&format!("{name}.bias")).map(|bias| bias.to_kind(Kind::Double));
        Ok(Self { weight: double(recording, &format!("{name}.weight"))?, bias })
    }

    fn linear(&self, x: &Tensor) -> Tensor {
        x.linear(&self.weight, self.bias.as_ref())
    }

    fn norm(&self, x: &Tensor) -> Tensor {
        x.layer_norm([self.weight.size()[0]], Some(&self.weight), self.bias.as_ref(), EPS, false)
    }
}

/// What stands at an attention beside its frozen maps.
#[derive(Default)]
pub(super) struct Extra<'a> {
    /// On keys and on values.
    pub(super) low: Option<&'a [Low; 2]>,
    /// Keys `[length, d]`, values, and whether they are compensated.
    pub(super) prefix: Option<(Tensor, Tensor, bool)>,
}

/// What a page does in a block. `u` are the inputs behind the norms, `h` those before.
pub(super) trait Around {
    /// The attention part.
    fn attention(&self, _block: usize, u: &Tensor, attend: &dyn Fn(&Tensor, &Extra<'_>) -> Tensor) -> Tensor {
        attend(u, &Extra::default())
    }

    /// The feed-forward part.
    fn mlp(&self, _block: usize, _h: &Tensor, u: &Tensor, mlp: &dyn Fn(&Tensor) -> Tensor) -> Tensor {
        mlp(u)
    }
}

/// Nothing around anything.
pub(super) struct Bare;

impl Around for Bare {}

/// One block.
pub(super) struct Block {
    norms: [Affine; 2],
    /// Queries, keys, values.
    maps: [Affine; 3],
    out: Affine,
    mlp: [Affine; 2],
    heads: i64,
}

impl Block {
    /// The block whose tensors begin with `at`.
    pub(super) fn read(recording: &Recording, at: &str, heads: i64) -> Result<Self> {
        let read = |name: &str| Affine::read(recording, &format!("{at}{name}"));
        let nested = recording.find(&format!("{at}mlp.fc1.weight")).is_some();
        let inner = if nested { "mlp." } else { "" };
        Ok(Self {
            norms: [read("norm1")?, read("norm2")?],
            maps: Self::maps(recording, at)?,
            out: read("attn.proj")?,
            mlp: [read(&format!("{inner}fc1"))?, read(&format!("{inner}fc2"))?],
            heads,
        })
    }

    /// One map of three, or three.
    fn maps(recording: &Recording, at: &str) -> Result<[Affine; 3]> {
        if recording.find(&format!("{at}attn.qkv.weight")).is_none() {
            let read = |letter: &str| Affine::read(recording, &format!("{at}attn.{letter}_proj"));
            return Ok([read("q")?, read("k")?, read("v")?]);
        }
        let all = Affine::read(recording, &format!("{at}attn.qkv"))?;
        let rows = all.weight.size()[0] / 3;
        let part = |index: i64| Affine {
            weight: all.weight.narrow(0, index * rows, rows),
            bias: all.bias.as_ref().map(|bias| bias.narrow(0, index * rows, rows)),
        };
        Ok([part(0), part(1), part(2)])
    }

    /// `[batch, tokens, d]` to the same.
    pub(super) fn run(&self, number: usize, x: &Tensor, around: &dyn Around) -> Tensor {
        let h = x + around.attention(number, &self.norms[0].norm(x), &|u, extra| self.attend(u, extra));
        let mlp = |u: &Tensor| self.mlp[1].linear(&self.mlp[0].linear(u).gelu("none"));
        &h + around.mlp(number, &h, &self.norms[1].norm(&h), &mlp)
    }

    fn attend(&self, u: &Tensor, extra: &Extra<'_>) -> Tensor {
        let [q, mut k, mut v] = [0, 1, 2].map(|index: usize| self.maps[index].linear(u));
        if let Some([on_keys, on_values]) = extra.low {
            k = k.g_add(&on_keys.run(u));
            v = v.g_add(&on_values.run(u));
        }
        let (q, own) = (self.split(&q), self.split(&v));
        let batch = u.size()[0];
        let wide = |table: &Tensor| self.split(&table.unsqueeze(0).expand([batch, -1, -1], false));
        let scale = (q.size()[3] as f64).sqrt();
        let mixed = match &extra.prefix {
            None => (q.matmul(&self.split(&k).transpose(-2, -1)) / scale).softmax(-1, None::<Kind>).matmul(&own),
            Some((keys, values, compensatory)) => {
                let keys = Tensor::cat(&[wide(keys), self.split(&k)], 2);
                let weights = (q.matmul(&keys.transpose(-2, -1)) / scale).softmax(-1, None::<Kind>);
                let front = wide(values);
                with_prefix(&front, *compensatory, &|values, tokens| {
                    let values = values.map_or_else(|| front.zeros_like(), Tensor::shallow_clone);
                    let own = if tokens { own.shallow_clone() } else { own.zeros_like() };
                    weights.matmul(&Tensor::cat(&[values, own], 2))
                })
            }
        };
        self.out.linear(&mixed.transpose(1, 2).flatten(2, 3))
    }

    /// `[batch, tokens, d]` to `[batch, heads, tokens, d / heads]`.
    fn split(&self, x: &Tensor) -> Tensor {
        let d = x.size()[2];
        x.unflatten(2, [self.heads, d / self.heads]).transpose(1, 2)
    }
}

/// The whole model up to the class token behind the last norm.
pub(super) struct Vit {
    patches: Affine,
    class: Tensor,
    positions: Tensor,
    blocks: Vec<Block>,
    norm: Affine,
}

impl Vit {
    pub(super) fn read(recording: &Recording) -> Result<Self> {
        let heads = recording.shape("heads")?;
        let mut blocks = Vec::new();
        while recording.find(&format!("frozen.blocks.{}.norm1.weight", blocks.len())).is_some() {
            blocks.push(Block::read(recording, &format!("frozen.blocks.{}.", blocks.len()), heads)?);
        }
        Ok(Self {
            patches: Affine::read(recording, "frozen.patch_embed.proj")?,
            class: double(recording, "frozen.cls_token")?,
            positions: double(recording, "frozen.pos_embed")?,
            blocks,
            norm: Affine::read(recording, "frozen.norm")?,
        })
    }

    /// The number of blocks.
    pub(super) fn depth(&self) -> usize {
        self.blocks.len()
    }

    /// Features `[batch, d]` of images `[batch, channels, side, side]`.
    pub(super) fn features(&self, images: &Tensor, around: &dyn Around) -> Tensor {
        let images = images.to_kind(Kind::Double);
        let side = self.patches.weight.size()[2];
        let rows = images.conv2d(&self.patches.weight, self.patches.bias.as_ref(), [side, side], [0, 0], [1, 1], 1);
        let rows = rows.flatten(2, 3).transpose(1, 2);
        let class = self.class.expand([images.size()[0], -1, -1], false);
        let mut x = Tensor::cat(&[class, rows], 1) + &self.positions;
        for (number, block) in self.blocks.iter().enumerate() {
            x = block.run(number, &x, around);
        }
        self.norm.norm(&x).select(1, 0)
    }
}
