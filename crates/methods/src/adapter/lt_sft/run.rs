//! The method over a model's tensors.

use std::collections::BTreeMap;
use std::path::Path;

use pleach_base::{Result, code};
use pleach_nn::{
    Backbone, BaseOp, OpWeights, Site, SiteCx, SiteHook, SiteId, TensorFile, tensor_from_entry,
};
use tch::{Kind, Tensor};

use super::gaps::Gaps;
use super::ticket::{Maskable, Ticket, Whole};
use super::{BASE, BIAS, COUNT, Config, Names, WEIGHT, WHOLE, select};
use crate::adapter::common::{at_sites, sizes};
use crate::adapter::{Hooks, Parts, SiteMethod, StepInfo};
use crate::import::WEIGHTS;
use crate::plan::{Plan, PlannedTensor};

/// Endings of the two tensors that a file has of each difference.
const INDEX_STEPS: &str = ".index_steps";
const VALUES: &str = ".values";

/// A module with its differences: that of now, and what is applied before it.
struct Differs {
    weight: Vec<Tensor>,
    bias: Vec<Tensor>,
}

pub(super) fn hooks(parts: &Parts<'_>) -> Result<Hooks> {
    at_sites(parts, |site| {
        let planned = |name: &&str| parts.plan.part(site.id, name).is_some();
        let of = |names: Names| {
            let parts_of = [names.base, names.change].into_iter().filter(planned);
            parts_of.map(|name| parts.part(site.id, name).map(Tensor::shallow_clone)).collect::<Result<Vec<_>>>()
        };
        Ok(Differs { weight: of(WEIGHT)?, bias: of(BIAS)? })
    })
}

impl Differs {
    /// The module's weights, in float32.
    fn weights(&self, base: &OpWeights) -> OpWeights {
        let sum = |own: &Tensor, changes: &[Tensor]| {
            changes.iter().fold(own.to_kind(Kind::Float), |sum, change| sum.g_add(change))
        };
        OpWeights {
            weight: sum(&base.weight, &self.weight),
            bias: base.bias.as_ref().map(|own| sum(own, &self.bias)),
        }
    }
}

impl SiteHook for Differs {
    fn shares_base(&self) -> bool {
        false
    }

    fn around(&self, _: &SiteCx<'_>, x: Vec<Tensor>, base: &BaseOp<'_>) -> Vec<Tensor> {
        let Some(own) = base.weights() else { return base.run(&x) };
        let wide = |x: &Tensor| if x.is_floating_point() { x.to_kind(Kind::Float) } else { x.shallow_clone() };
        let y = base.run_with(&self.weights(own), &x.iter().map(wide).collect::<Vec<_>>());
        y.iter().map(|y| y.to_kind(own.weight.kind())).collect()
    }
}

impl SiteMethod for Differs {
    fn merged(&self, _: &Site, base: &OpWeights) -> Option<OpWeights> {
        let _no_grad = tch::no_grad_guard();
        Some(self.weights(base))
    }
}

/// First values of what stays beside the trained tensors: copies of the frozen ones, what is applied before, and the
/// model's size.
pub(super) fn initial(config: &Config, tensor: &PlannedTensor, base: &dyn Backbone) -> Result<Tensor> {
    if let Some(own) = tensor.name.strip_suffix(BASE) {
        let shape = sizes(tensor);
        let mut sum = Tensor::zeros(&shape, (Kind::Float, tch::Device::Cpu));
        for folder in &config.base_sfts {
            covers(config, folder, base)?;
            let file = TensorFile::open(&Path::new(folder).join(WEIGHTS)).map_err(|error| under_base(&error))?;
            if let Some(gaps) = of_file(&file, own)? {
                sum = sum.g_add(&gaps.dense(&shape).map_err(|error| error.at(folder))?);
            }
        }
        return Ok(sum.to_device(base.device()));
    }
    if tensor.part == COUNT {
        return Ok(Tensor::from_slice(&[base.config().num_params() as f32]).to_device(base.device()));
    }
    let weights = base.weights(tensor.site);
    let own = match tensor.part.split('.').next() {
        Some("bias") => weights.and_then(|weights| weights.bias.as_ref()),
        _ => weights.map(|weights| &weights.weight),
    };
    let missing = || code::INTERNAL.error(format!("tensor `{}` has no frozen one to copy", tensor.name));
    own.map(|own| own.to_kind(Kind::Float)).ok_or_else(missing)
}

/// A tensor's difference in a file.
fn of_file(file: &TensorFile, name: &str) -> Result<Option<Gaps>> {
    let [steps, values] = [INDEX_STEPS, VALUES].map(|ending| file.get(&format!("{name}{ending}")));
    match (steps, values) {
        (Some(steps), Some(values)) => {
            let values = tensor_from_entry(&values)?.to_kind(Kind::Float);
            Ok(Some(Gaps { index_steps: tensor_from_entry(&steps)?, values }))
        }
        _ => Ok(None),
    }
}

/// Refuses a difference with tensors that this training leaves alone.
fn covers(config: &Config, folder: &str, base: &dyn Backbone) -> Result<()> {
    use crate::adapter::AdapterConfig as _;
    let plan = config.plan(base.config())?;
    let file = TensorFile::open(&Path::new(folder).join(WEIGHTS)).map_err(|error| under_base(&error))?;
    let mut own = file.names().filter_map(|name| name.strip_suffix(INDEX_STEPS)).peekable();
    if own.peek().is_none() {
        return Err(code::METHOD_CONFIG.error(format!("base_sfts: {folder} holds no sparse difference")));
    }
    if let Some(name) = file.names().find(|name| name.contains(BASE)) {
        return Err(code::METHOD_CONFIG
            .error(format!("base_sfts: {folder} was itself trained on top of others: `{name}`"))
            .hint("compose it with those first, or name all of them here"));
    }
    match own.find(|name| plan.named(name).is_none()) {
        Some(name) => Err(code::METHOD_CONFIG
            .error(format!("base_sfts: {folder} changes `{name}`, which this training leaves alone"))
            .hint("let `maskable`, `freeze_embeddings` and `freeze_layer_norm` be those of that difference")),
        None => Ok(()),
    }
}

fn under_base(error: &pleach_base::Error) -> pleach_base::Error {
    code::METHOD_CONFIG.error(format!("base_sfts: {}", error.message())).hint("name the folders of trained differences")
}

fn ticket(parts: &Parts<'_>) -> Result<Ticket> {
    let of = |site: SiteId, part: &str| parts.part(site, part).map(Tensor::shallow_clone);
    let maskable = |tensor: &PlannedTensor, names: Names| -> Result<Maskable> {
        let start = match parts.plan.part(tensor.site, names.start) {
            Some(_) => Some(of(tensor.site, names.start)?),
            None => None,
        };
        Ok(Maskable { change: of(tensor.site, names.change)?, start, mask: of(tensor.site, names.mask)? })
    };
    let mut ticket = Ticket { maskable: Vec::new(), whole: Vec::new() };
    for tensor in parts.plan.trained() {
        match [WEIGHT, BIAS].into_iter().find(|names| names.change == tensor.part) {
            Some(names) => ticket.maskable.push(maskable(tensor, names)?),
            None => {
                let [start, anchor] = WHOLE[usize::from(tensor.part == "bias")];
                let now = parts.get(&tensor.name)?.shallow_clone();
                ticket.whole.push(Whole { now, start: of(tensor.site, start)?, anchor: of(tensor.site, anchor)? });
            }
        }
    }
    Ok(ticket)
}

fn all(ticket: &Ticket) -> u64 {
    ticket.maskable.iter().map(|tensor| tensor.change.numel() as u64).sum()
}

pub(super) fn before_update(config: &Config, parts: &Parts<'_>, step: StepInfo) -> Result<()> {
    let (ticket, sparse) = (ticket(parts)?, config.is_sparse(step));
    if sparse && ticket.is_open() {
        // Only where entries are drawn: after a full phase they are selected already.
        let masks: Vec<_> = ticket.maskable.iter().map(|tensor| tensor.mask.shallow_clone()).collect();
        let drawn = select::any(&masks, config.entries(all(&ticket))?, parts.key.named("lt_sft"));
        masks.into_iter().zip(&drawn).for_each(|(mut mask, drawn)| mask.copy_(drawn));
    }
    let params = parts.get(COUNT)?.double_value(&[0]) as u64;
    ticket.shape_gradients(config.pull(sparse, params), sparse);
    Ok(())
}

pub(super) fn end_phase(config: &Config, parts: &Parts<'_>, step: StepInfo) -> Result<()> {
    let ticket = ticket(parts)?;
    if config.is_sparse(step) {
        ticket.begin_iteration();
    } else {
        ticket.select(config.entries(all(&ticket))? / u64::from(config.n_ft_iterations));
    }
    Ok(())
}

/// Whether a tensor lies in the file as steps and values.
fn is_difference(tensor: &PlannedTensor) -> bool {
    [WEIGHT, BIAS].iter().any(|names| [names.change, names.base].contains(&tensor.part))
}

/// Index steps and values of each difference, and tensors that are trained whole as they are.
pub(super) fn exported(parts: &Parts<'_>) -> Result<Vec<(String, Tensor)>> {
    let mut file = Vec::new();
    for tensor in parts.plan.tensors.iter().filter(|tensor| tensor.in_file()) {
        let value = parts.get(&tensor.name)?.detach();
        if is_difference(tensor) {
            let Gaps { index_steps, values } = Gaps::of(&value);
            file.push((format!("{}{INDEX_STEPS}", tensor.name), index_steps));
            file.push((format!("{}{VALUES}", tensor.name), values));
        } else {
            file.push((tensor.name.clone(), value));
        }
    }
    Ok(file)
}

/// The planned tensors of a file.
pub(super) fn decoded(plan: &Plan, file: &BTreeMap<String, Tensor>) -> Result<BTreeMap<String, Tensor>> {
    let get = |name: &str| file.get(name).map(Tensor::shallow_clone);
    let mut values: BTreeMap<String, Tensor> = file.iter().map(|(name, tensor)| (name.clone(), tensor.shallow_clone())).collect();
    for tensor in plan.tensors.iter().filter(|tensor| is_difference(tensor)) {
        let [index_steps, numbers] = [INDEX_STEPS, VALUES].map(|ending| format!("{}{ending}", tensor.name));
        let (Some(steps), Some(found)) = (get(&index_steps), get(&numbers)) else { continue };
        let shape = sizes(tensor);
        let gaps = Gaps { index_steps: steps, values: found.to_kind(Kind::Float) };
        let dense = gaps.dense(&shape).map_err(|error| error.at(&tensor.name))?;
        values.insert(tensor.name.clone(), dense);
        values.remove(&index_steps);
        values.remove(&numbers);
    }
    Ok(values)
}
