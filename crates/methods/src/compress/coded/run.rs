//! The wrapped adapter's hooks over coded matrices, and its file.

use std::collections::BTreeMap;
use std::sync::Arc;

use pleach_base::rng::Key;
use pleach_base::{Result, code};
use pleach_nn::{BaseOp, OpWeights, ParamTree, Site, SiteCx, SiteHook, SiteId, Sites};
use tch::{Kind, Tensor};

use super::{Coded, ENDING, SPREAD, When};
use crate::adapter::common::restored;
use crate::adapter::{AdapterConfig, Board, Hooks, Parts, SiteMethod};
use crate::codes::{Codec, Record};
use crate::plan::{Plan, PlannedTensor};

/// What all hooks of an adapter share.
struct Shared {
    inner: Arc<dyn AdapterConfig>,
    sites: Arc<Sites>,
    key: Key,
    board: Arc<Board>,
    when: When,
}

/// The wrapped adapter at one site. Its own hook is made anew over the codes of now in every pass.
struct Within {
    shared: Arc<Shared>,
    plan: Plan,
    /// Its tensors, and how they are coded.
    tensors: Vec<(String, Tensor, Option<Codec>)>,
    /// Its own hook over the matrices as they are.
    plain: Box<dyn SiteMethod>,
}

/// A classification head without a bias.
struct Head {
    weight: Tensor,
    codec: Option<Codec>,
    when: When,
}

/// The wrapped adapter's view of the tensors.
pub(super) fn own_parts<'a>(parts: &Parts<'a>) -> Parts<'a> {
    parts.under(parts.plan.children.first().unwrap_or(parts.plan), parts.key)
}

pub(super) fn hooks(coded: &Coded, parts: &Parts<'_>) -> Result<Hooks> {
    let own = own_parts(parts);
    let mut hooks = Hooks::new();
    let codes: BTreeMap<&str, Codec> =
        coded.matrices(parts.plan).map(|tensor| (tensor.name.as_str(), coded.codec_of(parts.plan, tensor))).collect();
    let codec = |name: &str| codes.get(name).copied().filter(|_| !coded.read);
    let shared = Arc::new(Shared {
        inner: Arc::clone(&coded.inner),
        sites: Arc::new(parts.sites.clone()),
        key: parts.key,
        board: Arc::clone(parts.board),
        when: coded.when,
    });
    for (id, plain) in coded.inner.hooks(&own)? {
        let plan = at_site(own.plan, id);
        let one = |tensor: &PlannedTensor| {
            let value = parts.get(&tensor.name)?.shallow_clone();
            Ok((tensor.name.clone(), value, codec(&tensor.name)))
        };
        let tensors: Vec<_> = plan.tensors.iter().map(one).collect::<Result<_>>()?;
        if tensors.iter().all(|(_, _, codec)| codec.is_none()) {
            hooks.insert(id, plain);
            continue;
        }
        let within = Within { shared: Arc::clone(&shared), plan, tensors, plain };
        // A hook that needs more than what belongs to its site would fail in every pass: find out now.
        within.now(id)?;
        hooks.insert(id, Box::new(within));
    }
    if coded.bihead {
        for tensor in coded.matrices(parts.plan).filter(|tensor| coded.is_head(parts.plan, tensor)) {
            let weight = parts.get(&tensor.name)?.shallow_clone();
            hooks.insert(tensor.site, Box::new(Head { weight, codec: codec(&tensor.name), when: coded.when }));
        }
    }
    Ok(hooks)
}

/// What a plan says of one site; tensors that are frozen may belong to all.
fn at_site(plan: &Plan, id: SiteId) -> Plan {
    let frozen = |tensor: &&PlannedTensor| tensor.site == id || tensor.keep != crate::plan::Keep::Trained;
    let tensors = plan.tensors.iter().filter(|tensor| frozen(tensor) && !plan.saved.contains(&tensor.site));
    Plan { tensors: tensors.cloned().collect(), sites: vec![id], ..Plan::default() }
}

impl Within {
    /// The wrapped adapter's hook over the codes of now.
    fn now(&self, id: SiteId) -> Result<Box<dyn SiteMethod>> {
        let value = |(name, tensor, codec): &(String, Tensor, Option<Codec>)| {
            let coded = codec.map_or_else(|| tensor.shallow_clone(), |codec| codec.coded(tensor));
            (name.clone(), coded)
        };
        let values: BTreeMap<_, _> = self.tensors.iter().map(value).collect();
        let Shared { inner, sites, key, board, .. } = self.shared.as_ref();
        let hooks = inner.hooks(&Parts::of((&self.plan, sites), *key, board, &ParamTree::default(), &values));
        hooks?.remove(&id).ok_or_else(|| code::INTERNAL.error("the wrapped adapter has no hook at its own site"))
    }

    /// That hook where codes are to be used; its own otherwise.
    fn with<T>(&self, site: &Site, train: bool, run: impl FnOnce(&dyn SiteMethod) -> T) -> T {
        if train && self.shared.when == When::Afterwards {
            return run(self.plain.as_ref());
        }
        match self.now(site.id) {
            Ok(now) => run(now.as_ref()),
            // It was made once already, from tensors of the same names and shapes.
            Err(_) => run(self.plain.as_ref()),
        }
    }
}

impl SiteHook for Within {
    fn shares_base(&self) -> bool {
        self.plain.shares_base()
    }

    fn after(&self, cx: &SiteCx<'_>, x: &[Tensor], y: Vec<Tensor>) -> Vec<Tensor> {
        self.with(cx.site, cx.train, |hook| hook.after(cx, x, y))
    }

    fn around(&self, cx: &SiteCx<'_>, x: Vec<Tensor>, base: &BaseOp<'_>) -> Vec<Tensor> {
        self.with(cx.site, cx.train, |hook| hook.around(cx, x, base))
    }
}

impl SiteMethod for Within {
    fn merged(&self, site: &Site, base: &OpWeights) -> Option<OpWeights> {
        let _no_grad = tch::no_grad_guard();
        self.with(site, false, |hook| hook.merged(site, base))
    }

    fn adds(&self) -> bool {
        self.plain.adds()
    }
}

impl Head {
    fn weight(&self, train: bool) -> Tensor {
        match self.codec {
            Some(codec) if !(train && self.when == When::Afterwards) => codec.coded(&self.weight),
            _ => self.weight.shallow_clone(),
        }
    }
}

impl SiteHook for Head {
    fn shares_base(&self) -> bool {
        false
    }

    fn around(&self, cx: &SiteCx<'_>, x: Vec<Tensor>, base: &BaseOp<'_>) -> Vec<Tensor> {
        let weights = OpWeights { weight: self.weight(cx.train), bias: None };
        let wide: Vec<_> = x.iter().map(|x| x.to_kind(Kind::Float)).collect();
        let kind = base.weights().map_or(Kind::Float, |weights| weights.weight.kind());
        base.run_with(&weights, &wide).iter().map(|y| y.to_kind(kind)).collect()
    }
}

impl SiteMethod for Head {
    fn merged(&self, site: &Site, base: &OpWeights) -> Option<OpWeights> {
        let _no_grad = tch::no_grad_guard();
        // The model's head keeps a bias, which says nothing now.
        let bias = base.bias.as_ref().map(|bias| bias.to_kind(Kind::Float).zeros_like());
        Some(OpWeights { weight: restored(site, &self.weight(false)), bias })
    }
}

/// Each coded matrix as its bytes, everything else as it is.
pub(super) fn exported(coded: &Coded, parts: &Parts<'_>) -> Result<Vec<(String, Tensor)>> {
    let matrices: Vec<_> = coded.matrices(parts.plan).map(|tensor| tensor.name.as_str()).collect();
    let own = coded.inner.exported(&own_parts(parts))?;
    let mut file: Vec<(String, Tensor)> = match own {
        Some(tensors) => tensors,
        None => {
            let in_file = parts.plan.tensors.iter().filter(|tensor| tensor.in_file());
            in_file.map(|tensor| Ok((tensor.name.clone(), parts.get(&tensor.name)?.detach()))).collect::<Result<_>>()?
        }
    };
    file.retain(|(name, _)| !name.ends_with(SPREAD));
    for (name, value) in file.iter_mut().filter(|(name, _)| matrices.contains(&name.as_str())) {
        let Some(tensor) = parts.plan.named(name) else { continue };
        let codec = coded.codec_of(parts.plan, tensor);
        let record = if coded.read {
            // Its values are those of codes already: their mean and deviation are others than those of its file.
            Record::again(codec, value, parts.get(&format!("{name}{SPREAD}"))?)
        } else {
            Record::of(codec, value)
        };
        if coded.when == When::Always && !record.spreads() {
            return Err(code::INTERNAL.error(format!("tensor `{name}`: all its values are alike")));
        }
        let mut bytes = Vec::new();
        record.write(&mut bytes);
        *value = Tensor::from_slice(&bytes);
        name.push_str(ENDING);
    }
    Ok(file)
}

/// The planned tensors of a file.
pub(super) fn decoded(coded: &Coded, plan: &Plan, file: &BTreeMap<String, Tensor>) -> Result<BTreeMap<String, Tensor>> {
    let mut values: BTreeMap<_, _> = file.iter().map(|(name, tensor)| (name.clone(), tensor.shallow_clone())).collect();
    for tensor in coded.matrices(plan) {
        let Some(bytes) = values.remove(&format!("{}{ENDING}", tensor.name)) else { continue };
        let bytes = Vec::<u8>::try_from(bytes.to_kind(Kind::Uint8).reshape([-1])).unwrap_or_default();
        let shape = [tensor.shape[0], tensor.shape[1]];
        let mut rest = bytes.as_slice();
        let record =
            Record::read(coded.codec_of(plan, tensor), shape, &mut rest).map_err(|error| error.at(&tensor.name))?;
        if !rest.is_empty() {
            let name = &tensor.name;
            return Err(code::ADAPTER_FORMAT.error(format!("tensor `{name}`: {} bytes are left", rest.len())));
        }
        values.insert(tensor.name.clone(), record.weight());
        if coded.read {
            values.insert(format!("{}{SPREAD}", tensor.name), record.spread());
        }
    }
    Ok(values)
}

/// Normal values with this deviation that lie within two of them.
pub(super) fn cut_normal(std: f64, shape: &[usize], key: Key, device: tch::Device) -> Tensor {
    let mut rng = key.rng();
    let mut draw = || loop {
        let value = rng.normal();
        if value.abs() <= 2.0 {
            return value * std as f32;
        }
    };
    let values: Vec<f32> = (0..shape.iter().product::<usize>()).map(|_| draw()).collect();
    let shape: Vec<i64> = shape.iter().map(|n| *n as i64).collect();
    Tensor::from_slice(&values).reshape(shape).to_device(device)
}
