//! AdaLoRA at one site, its term of the loss, and its files.

use pleach_base::Result;
use pleach_nn::{SiteCx, SiteId};
use serde_json::{Map, Value, json};
use tch::{Kind, Tensor};

use super::Config;
use super::allocate::LEFT;
use crate::adapter::common::{Added, Addition, Dropout, at_sites, biases};
use crate::adapter::{Hooks, Parts};

struct Triplets {
    a: Tensor, // [r, in]
    b: Tensor, // [out, r]
    e: Tensor, // [r, 1]
    scaling: f64,
    dropout: Dropout,
}

pub(super) fn hooks(config: &Config, parts: &Parts<'_>) -> Result<Hooks> {
    let rank = f64::from(config.init_r);
    let alpha = if config.lora_alpha > 0.0 { config.lora_alpha } else { rank };
    let mut hooks = at_sites(parts, |site| {
        let part = |part| parts.part(site.id, part).map(Tensor::shallow_clone);
        Ok(Added::at(
            site,
            Triplets {
                a: part("lora_A")?,
                b: part("lora_B")?,
                e: part("lora_E")?,
                scaling: alpha / (rank + 1e-5),
                dropout: Dropout::new(config.lora_dropout, parts.key, "lora_dropout", &site.path),
            },
        ))
    })?;
    biases::wrap(parts, &mut hooks)?;
    Ok(hooks)
}

impl Addition for Triplets {
    fn added(&self, cx: &SiteCx<'_>, x: &Tensor) -> Tensor {
        let low = self.dropout.apply(cx, x).linear(&(&self.a * &self.e), None::<&Tensor>);
        low.linear(&self.b, None::<&Tensor>) * self.scaling
    }

    fn delta(&self) -> Tensor {
        self.b.matmul(&(&self.a * &self.e)) * self.scaling
    }
}

/// The mean over all factors of `|P P^T - I|`, Frobenius.
pub(super) fn regulariser(config: &Config, parts: &Parts<'_>) -> Option<Tensor> {
    let distance = |id: &SiteId, part: &str| {
        let factor = parts.part(*id, part).ok()?;
        let rows = if part == "lora_A" { factor.shallow_clone() } else { factor.tr() }; // [r, ..]
        let eye = Tensor::eye(rows.size()[0], (Kind::Float, rows.device()));
        Some((rows.matmul(&rows.tr()) - eye).norm())
    };
    let each: Vec<_> =
        parts.plan.sites.iter().flat_map(|id| [distance(id, "lora_A"), distance(id, "lora_B")]).flatten().collect();
    let count = each.len() as f64;
    each.into_iter().reduce(|sum, next| sum + next).map(|sum| sum * (config.orth_reg_weight / count))
}

/// Which triplets of a site are left.
fn left(parts: &Parts<'_>, id: SiteId) -> Result<Vec<bool>> {
    let flags = parts.part(id, LEFT)?.reshape([-1]);
    Ok(Vec::<f32>::try_from(&flags).unwrap_or_default().into_iter().map(|flag| flag > 0.5).collect())
}

/// What is left of every site, in the plan's order; `None` before anything was taken away.
fn pattern(parts: &Parts<'_>) -> Result<Option<Vec<Vec<bool>>>> {
    let all = parts.plan.sites.iter().map(|id| left(parts, *id)).collect::<Result<Vec<_>>>()?;
    Ok(all.iter().flatten().any(|left| !left).then_some(all))
}

/// The tensors without the triplets that are gone.
pub(super) fn exported(parts: &Parts<'_>) -> Result<Option<Vec<(String, Tensor)>>> {
    let Some(pattern) = pattern(parts)? else { return Ok(None) };
    let mut tensors = Vec::new();
    for planned in parts.plan.tensors.iter().filter(|tensor| tensor.in_file()) {
        let value = parts.get(&planned.name)?.detach();
        let axis = match planned.part {
            "lora_A" | "lora_E" => 0,
            "lora_B" => 1,
            _ => {
                tensors.push((planned.name.clone(), value));
                continue;
            }
        };
        let site = parts.plan.sites.iter().position(|id| *id == planned.site);
        let rows = site.map(|at| numbers(&pattern[at])).unwrap_or_default();
        tensors.push((
            planned.name.clone(),
            value.index_select(axis, &Tensor::from_slice(&rows).to_device(value.device())),
        ));
    }
    Ok(Some(tensors))
}

fn numbers(left: &[bool]) -> Vec<i64> {
    (0..).zip(left).filter(|(_, left)| **left).map(|(at, _)| at).collect()
}

/// `rank_pattern`, counted from the ranks of the beginning.
pub(super) fn exported_config(config: &Config, parts: &Parts<'_>) -> Result<Map<String, Value>> {
    let Some(pattern) = pattern(parts)? else { return Ok(Map::new()) };
    let entry = |(id, left): (&SiteId, Vec<bool>)| {
        let path = &parts.site(*id).path;
        let all = match config.left_before(path) {
            Some(before) => within(before, &left),
            None => left,
        };
        (format!("{path}.lora_E"), json!(all))
    };
    let entries = parts.plan.sites.iter().zip(pattern).map(entry);
    Ok(Map::from_iter([("rank_pattern".to_owned(), Value::Object(entries.collect()))]))
}

/// `left` says of each triplet that `before` left whether it is still there.
fn within(before: &[bool], left: &[bool]) -> Vec<bool> {
    let mut left = left.iter();
    before.iter().map(|kept| *kept && left.next().copied().unwrap_or(false)).collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn what_is_taken_from_what_was_left_counts_from_the_beginning() {
        assert_eq!(super::within(&[true, false, true, true], &[false, true, true]), [false, false, true, true]);
    }
}
