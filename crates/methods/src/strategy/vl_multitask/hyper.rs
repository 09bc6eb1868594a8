//! Hyperformer: adapters that are made for each task and block from embeddings of both. With `e = norm(M2 relu(M1 [task,
//! block] + m1) + m2)`, one generator a kind of place (behind attention, behind attention to the encoder, behind the
//! feed-forward part) and stack gives `D = G e + g` `[r, d]` and so on: `h + U act(D h + b) + c`.
//!
//! Tasks have their embeddings in all stacks; each stack has its own block embeddings, map and generators.

use pleach_nn::{BackboneConfig, Init, Part, Role, Site};

use super::options::Config;
use super::plan::named;
use crate::plan::{Plan, PlannedTensor};

/// A task's embedding.
const TASK: &str = "task_embedding";
/// Tensors of a stack: part, and shape in widths.
const LAYERS: &str = "layer_id_embeddings.weight";
const MLP: [&str; 4] = ["mlp.0.weight", "mlp.0.bias", "mlp.2.weight", "mlp.2.bias"];
const NORM: [&str; 2] = ["LayerNorm.weight", "LayerNorm.bias"];
/// Generators of weights and biases, first map then second, by kind of place.
const PLACES: [(Part, [[&str; 4]; 2]); 3] = [
    (
        Part::Attention,
        [
            [
                "self_attention_down.weight_generator.weight",
                "self_attention_down.weight_generator.bias",
                "self_attention_down.bias_generator.weight",
                "self_attention_down.bias_generator.bias",
            ],
            [
                "self_attention_up.weight_generator.weight",
                "self_attention_up.weight_generator.bias",
                "self_attention_up.bias_generator.weight",
                "self_attention_up.bias_generator.bias",
            ],
        ],
    ),
    (
        Part::CrossAttention,
        [
            [
                "cross_attention_down.weight_generator.weight",
                "cross_attention_down.weight_generator.bias",
                "cross_attention_down.bias_generator.weight",
                "cross_attention_down.bias_generator.bias",
            ],
            [
                "cross_attention_up.weight_generator.weight",
                "cross_attention_up.weight_generator.bias",
                "cross_attention_up.bias_generator.weight",
                "cross_attention_up.bias_generator.bias",
            ],
        ],
    ),
    (
        Part::FeedForward,
        [
            [
                "feed_forward_down.weight_generator.weight",
                "feed_forward_down.weight_generator.bias",
                "feed_forward_down.bias_generator.weight",
                "feed_forward_down.bias_generator.bias",
            ],
            [
                "feed_forward_up.weight_generator.weight",
                "feed_forward_up.weight_generator.bias",
                "feed_forward_up.bias_generator.weight",
                "feed_forward_up.bias_generator.bias",
            ],
        ],
    ),
];

/// The stack that a place lies in.
fn stack(site: &Site) -> &str {
    site.path.split('.').find(|name| matches!(*name, "encoder" | "decoder")).unwrap_or("model")
}

/// The name of a stack's tensor.
fn name(stack: &str, part: &str) -> String {
    format!("base_model.model.hyper.{stack}.{part}")
}

/// Adapters at the places of `inner`, made rather than kept; what else `inner` plans stays.
pub(super) fn plan(config: &Config, inner: &Plan, model: &dyn BackboneConfig) -> Plan {
    let places: Vec<&Site> = places(inner, |id| &model.sites()[id]).collect();
    let mut tensors = Vec::new();
    let [embed, inner_width, e] =
        [config.task_embedding_dim, config.hidden, config.projected_task_embedding_dim].map(|n| n as usize);
    let usual = Init::Normal { std: 0.02 };
    if let Some(first) = places.first() {
        for task in &config.tasks {
            let init = Init::Normal { std: 1.0 };
            tensors.push(PlannedTensor::trained(named(&task.name, TASK), first.id, TASK, [embed], init));
        }
    }
    let mut stacks: Vec<&str> = places.iter().map(|site| stack(site)).collect();
    stacks.dedup();
    for stack_name in stacks {
        let own: Vec<&Site> = places.iter().copied().filter(|site| stack(site) == stack_name).collect();
        let blocks = blocks(&own);
        let mut add = |site: &Site, part: &'static str, shape: Vec<usize>, init: Init| {
            tensors.push(PlannedTensor::trained(name(stack_name, part), site.id, part, shape, init));
        };
        add(own[0], LAYERS, vec![blocks.1 as usize, embed], Init::Normal { std: 1.0 });
        let shapes = [vec![inner_width, 2 * embed], vec![inner_width], vec![e, inner_width], vec![e]];
        for (index, shape) in shapes.into_iter().enumerate() {
            add(own[0], MLP[index], shape, if index % 2 == 0 { usual } else { Init::Zeros });
        }
        add(own[0], NORM[0], vec![e], Init::Ones);
        add(own[0], NORM[1], vec![e], Init::Zeros);
        for (part, generators) in PLACES {
            let Some(site) = own.iter().find(|site| site.part == part) else { continue };
            let (d, r) = (site.dims.output, site.dims.output / config.reduction_factor as usize);
            for (names, bias) in generators.into_iter().zip([r, d]) {
                let near = Init::Normal { std: 0.01 };
                let shapes = [(vec![r * d, e], near), (vec![r * d], Init::Zeros), (vec![bias, e], near), (vec![bias], Init::Zeros)];
                for (name, (shape, init)) in names.into_iter().zip(shapes) {
                    add(site, name, shape, init);
                }
            }
        }
    }
    let saved = inner.tensors.iter().filter(|tensor| inner.saved.contains(&tensor.site)).cloned();
    tensors.extend(saved);
    Plan { tensors, ..inner.clone() }
}

/// The sites behind parts of blocks.
fn places<'a>(plan: &'a Plan, site: impl Fn(pleach_nn::SiteId) -> &'a Site + 'a) -> impl Iterator<Item = &'a Site> {
    plan.sites.iter().map(move |id| site(*id)).filter(|site| site.role == Role::SublayerOut)
}

/// The first block of a stack's places, and how many blocks it has.
fn blocks(places: &[&Site]) -> (u32, u32) {
    let numbers = || places.iter().filter_map(|site| site.block);
    let first = numbers().min().unwrap_or_default();
    (first, numbers().max().unwrap_or_default() + 1 - first)
}

#[cfg(feature = "torch")]
pub(super) use imp::hooks;
#[cfg(feature = "torch")]
pub(crate) use imp::{Generator, HyperNet};

#[cfg(feature = "torch")]
mod imp {
    use pleach_base::{Result, code};
    use pleach_nn::{BaseOp, OpWeights, Site, SiteCx, SiteHook};
    use tch::{Kind, Tensor};

    use super::super::dispatch::ByTask;
    use super::super::plan::named;
    use super::{Config, LAYERS, MLP, NORM, PLACES, TASK, blocks, name, places, stack};
    use crate::adapter::bottleneck::{Affine, Io, Net, finished};
    use crate::adapter::common::Activation;
    use crate::adapter::{Hooks, Parts, SiteMethod};

    const EPS: f64 = 1e-6;

    /// From embeddings of task and block to what generators take.
    #[derive(Debug)]
    pub(crate) struct HyperNet {
        pub(crate) layers: Tensor, // [blocks, D]
        pub(crate) first: [Tensor; 2],
        pub(crate) second: [Tensor; 2],
        pub(crate) norm: [Tensor; 2],
    }

    impl HyperNet {
        /// `[D]` of the task and the number of the block in its stack: `[e]`.
        pub(crate) fn embed(&self, task: &Tensor, block: i64) -> Tensor {
            let both = Tensor::cat(&[task.shallow_clone(), self.layers.get(block)], 0).unsqueeze(0);
            let inner = both.linear(&self.first[0], Some(&self.first[1])).relu();
            let e = inner.linear(&self.second[0], Some(&self.second[1])).squeeze_dim(0);
            e.layer_norm(self.norm[0].size(), Some(&self.norm[0]), Some(&self.norm[1]), EPS, false)
        }
    }

    /// Makes one affine map.
    #[derive(Debug)]
    pub(crate) struct Generator {
        pub(crate) weight: [Tensor; 2],
        pub(crate) bias: [Tensor; 2],
    }

    impl Generator {
        /// The map `[out, in]` and its bias `[out]` of `e` `[e]`.
        pub(crate) fn make(&self, e: &Tensor) -> [Tensor; 2] {
            let of = |[weight, bias]: &[Tensor; 2]| e.unsqueeze(0).linear(weight, Some(bias)).squeeze_dim(0);
            let bias = of(&self.bias);
            [of(&self.weight).reshape([bias.size()[0], -1]), bias]
        }
    }

    /// Generates at one place, for one task.
    struct Made {
        net: HyperNet,
        task: Tensor,
        block: i64,
        ends: [Generator; 2],
        activation: Activation,
    }

    impl Made {
        fn affine(&self, end: usize, e: &Tensor) -> Affine {
            let [weight, bias] = self.ends[end].make(e);
            Affine::Plain { weight, bias }
        }
    }

    impl SiteHook for Made {
        fn shares_base(&self) -> bool {
            false
        }

        fn around(&self, cx: &SiteCx<'_>, x: Vec<Tensor>, base: &BaseOp<'_>) -> Vec<Tensor> {
            let io = Io::new(cx, &x, base);
            let e = self.net.embed(&self.task, self.block);
            let (down, up) = (self.affine(0, &e), self.affine(1, &e));
            let net = Net { norm_before: None, down, activation: self.activation, up };
            let hidden = finished(&net.run(&io.output), &io.output, None);
            vec![io.finish(&hidden).to_kind(x.first().map_or(Kind::Float, Tensor::kind))]
        }
    }

    impl SiteMethod for Made {
        fn merged(&self, _: &Site, _: &OpWeights) -> Option<OpWeights> {
            None
        }
    }

    /// A hook a task at every place.
    pub(in super::super) fn hooks(config: &Config, parts: &Parts<'_>) -> Result<Hooks> {
        let all: Vec<&Site> = places(parts.plan, |id| parts.site(id)).collect();
        let mut hooks = Hooks::new();
        for site in &all {
            let own: Vec<&Site> = all.iter().copied().filter(|other| stack(other) == stack(site)).collect();
            let block = site.block.unwrap_or_default() - blocks(&own).0;
            let made = config.tasks.iter().map(|task| {
                let made = made(config, parts, site, &task.name, i64::from(block))?;
                Ok(Box::new(made) as Box<dyn SiteMethod>)
            });
            hooks.insert(site.id, Box::new(ByTask(made.collect::<Result<_>>()?)));
        }
        Ok(hooks)
    }

    fn made(config: &Config, parts: &Parts<'_>, site: &Site, task: &str, block: i64) -> Result<Made> {
        let get = |part: &str| parts.get(&name(stack(site), part)).map(Tensor::shallow_clone);
        let two = |a: &str, b: &str| -> Result<[Tensor; 2]> { Ok([get(a)?, get(b)?]) };
        let generators = PLACES.iter().find(|(part, _)| *part == site.part).map(|(_, generators)| generators);
        let missing = || code::INTERNAL.error(format!("`{}` has no generator", site.path));
        let end = |names: &[&str; 4]| -> Result<Generator> {
            Ok(Generator { weight: two(names[0], names[1])?, bias: two(names[2], names[3])? })
        };
        let [down, up] = generators.ok_or_else(missing)?;
        Ok(Made {
            net: HyperNet {
                layers: get(LAYERS)?,
                first: two(MLP[0], MLP[1])?,
                second: two(MLP[2], MLP[3])?,
                norm: two(NORM[0], NORM[1])?,
            },
            task: parts.get(&named(task, TASK))?.shallow_clone(),
            block,
            ends: [end(down)?, end(up)?],
            activation: Activation::parse("non_linearity", &config.non_linearity)?,
        })
    }
}
