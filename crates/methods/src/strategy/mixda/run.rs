//! The hooks of stage 2.

use std::sync::{Arc, Mutex, PoisonError};

use pleach_base::{Result, code};
use pleach_nn::{OpWeights, Site, SiteCx, SiteHook, SiteId};
use tch::{Kind, Tensor};

use super::gate::{Gate, mixture, pooled, spread};
use super::mixture::{Mixture, gate_name, reader};
use super::options::{Pool, Query};
use crate::adapter::common::Dropout;
use crate::adapter::domain::run::Domain;
use crate::adapter::{Hooks, Parts, SiteMethod};

/// What the first map of a feed-forward part read, for the gate behind it.
type Note = Arc<Mutex<Option<Tensor>>>;

/// At the first map of the feed-forward part.
struct Reader(Note);

impl SiteHook for Reader {
    fn after(&self, _: &SiteCx<'_>, x: &[Tensor], y: Vec<Tensor>) -> Vec<Tensor> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(x[0].shallow_clone());
        y
    }
}

impl SiteMethod for Reader {
    fn merged(&self, _: &Site, _: &OpWeights) -> Option<OpWeights> {
        None
    }
}

/// At the last map.
struct Mixed {
    domains: Vec<Domain>,
    /// The gate; without it the only domain adapter stands in for the map.
    gate: Option<Gate>,
    pool: Pool,
    /// What the gate reads, when that is not what the map reads.
    note: Option<Note>,
    /// One a map of the gate.
    dropout: Vec<Dropout>,
}

impl Mixed {
    fn weights(&self, cx: &SiteCx<'_>, gate: &Gate, z: &Tensor) -> Tensor {
        let noted = self.note.as_ref().map(|note| note.lock().unwrap_or_else(PoisonError::into_inner).take());
        let query = match noted {
            Some(noted) => noted.expect("a feed-forward part runs its first map before its last").to_kind(Kind::Float),
            None => z.shallow_clone(),
        };
        let drop = |index: usize, input: Tensor| match self.pool {
            Pool::None => self.dropout[index].apply(cx, &input),
            _ => self.dropout[index].apply_rows(cx, &input),
        };
        let weights = gate.run(&pooled(cx.layout, &query, self.pool), drop);
        spread(cx.layout, &weights, self.pool)
    }
}

impl SiteHook for Mixed {
    fn after(&self, cx: &SiteCx<'_>, x: &[Tensor], y: Vec<Tensor>) -> Vec<Tensor> {
        let z = x[0].to_kind(Kind::Float);
        let results: Vec<_> = self.domains.iter().map(|domain| domain.run(&z)).collect();
        let one = |y: &Tensor| match &self.gate {
            Some(gate) => mixture(&self.weights(cx, gate, &z), &results, &y.to_kind(Kind::Float)).to_kind(y.kind()),
            None => results[0].to_kind(y.kind()),
        };
        y.iter().map(one).collect()
    }
}

impl SiteMethod for Mixed {
    fn merged(&self, _: &Site, _: &OpWeights) -> Option<OpWeights> {
        None
    }
}

pub(super) fn hooks(mixture: &Mixture, parts: &Parts<'_>) -> Result<Hooks> {
    let mut hooks = mixture.task.hooks(&mixture.task_parts(parts)?)?;
    let domains = parts.plan.children.split_last().map(|(_, domains)| domains).unwrap_or_default();
    let places: std::collections::BTreeSet<SiteId> = domains.iter().flat_map(|plan| &plan.sites).copied().collect();
    for id in places {
        let acting = domains.iter().filter(|plan| plan.sites.contains(&id));
        let acting = acting.map(|plan| Domain::new(&parts.under(plan, parts.key), id)).collect::<Result<Vec<_>>>()?;
        let options = &mixture.options.gate;
        let site = parts.site(id);
        let gated = !mixture.options.disable_moe;
        let note = (gated && options.input == Query::AttentionOutput).then(Note::default);
        if let Some(note) = &note {
            let missing = || code::INTERNAL.error(format!("`{}` has no first map", site.path));
            let up = reader(parts.sites(), site).ok_or_else(missing)?.id;
            hooks.insert(up, Box::new(Reader(Arc::clone(note))));
        }
        let dropout = |index| {
            let dropout = Dropout::new(options.dropout, parts.key, "mixda_gate", &site.path);
            Dropout { key: dropout.key.with(index), ..dropout }
        };
        hooks.insert(
            id,
            Box::new(Mixed {
                domains: acting,
                gate: if gated { Some(gate(mixture, parts, site)?) } else { None },
                pool: options.pool,
                note,
                dropout: (0..=u64::from(options.layers)).map(dropout).collect(),
            }),
        );
    }
    Ok(hooks)
}

fn gate(mixture: &Mixture, parts: &Parts<'_>, site: &Site) -> Result<Gate> {
    let options = &mixture.options.gate;
    let of = |index, part| parts.get(&gate_name(site, index, part)).map(Tensor::shallow_clone);
    let maps = (0..=options.layers).map(|index| Ok((of(index, "weight")?, of(index, "bias")?)));
    Ok(Gate { maps: maps.collect::<Result<_>>()?, activation: options.activation })
}
