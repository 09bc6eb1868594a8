//! Which triplets of singular value and vectors stay.
//!
//! The importance of an element is `|p g|`, smoothed (`beta1`), times the smoothed distance from that mean (`beta2`). A
//! triplet's is that of its value plus the means over its vectors. On the schedule, the least important triplets of
//! all sites together lose their value, down to `target_r` a site: the number left falls with the cube of the rest of
//! the way.

/// The smoothed importances and their uncertainties of `A`, `B` and `E`.
pub(super) const AVERAGES: [&str; 6] =
    ["importance_A", "importance_B", "importance_E", "uncertainty_A", "uncertainty_B", "uncertainty_E"];

/// One for triplets that are left.
pub(super) const LEFT: &str = "left";

/// What the schedule says after a step.
#[cfg_attr(not(feature = "torch"), allow(dead_code, reason = "asked while training"))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Importance is measured; with a budget, triplets are chosen.
    Measure { budget: Option<u64> },
    /// Triplets are chosen for the last time.
    Settle { budget: u64 },
    /// What was chosen stays.
    Keep,
}

#[cfg_attr(not(feature = "torch"), allow(dead_code, reason = "asked while training"))]
impl super::Config {
    /// After step number `step`, counted from 0 as PEFT's users do. `first` and `last` are the numbers of triplets of
    /// all sites at the beginning and at the end.
    pub(super) fn phase(&self, step: u64, total: u64, first: u64, last: u64) -> Phase {
        let settled = total.saturating_sub(self.tfinal);
        if step > settled {
            return Phase::Keep;
        }
        if step == settled {
            return Phase::Settle { budget: last };
        }
        let budget = || {
            let way = (settled - self.tinit.min(settled)) as f64;
            let rest = 1.0 - (step - self.tinit) as f64 / way;
            ((first as f64 - last as f64) * rest.powi(3) + last as f64) as u64
        };
        Phase::Measure { budget: (step > self.tinit && step.is_multiple_of(self.deltaT)).then(budget) }
    }
}

#[cfg(feature = "torch")]
pub(super) use imp::after_step;

#[cfg(feature = "torch")]
mod imp {
    use pleach_base::Result;
    use pleach_nn::SiteId;
    use tch::{Kind, Tensor};

    use super::super::Config;
    use super::{AVERAGES, LEFT, Phase};
    use crate::adapter::{Parts, StepInfo};

    /// Measures, chooses, and puts values that lost their place to zero.
    ///
    /// # Errors
    /// `INTERNAL` when a planned tensor is not there.
    pub(in super::super) fn after_step(config: &Config, parts: &Parts<'_>, step: StepInfo) -> Result<()> {
        let sites = &parts.plan.sites;
        let first: usize = sites.iter().map(|id| config.rank(&parts.site(*id).path)).sum();
        let last = u64::from(config.target_r) * sites.len() as u64;
        let total = config.total_step.unwrap_or(step.total);
        let phase = config.phase(step.step.saturating_sub(1), total, first as u64, last.min(first as u64));
        if let Phase::Measure { .. } = phase {
            sites.iter().try_for_each(|id| measure(config, parts, *id))?;
        }
        match phase {
            Phase::Measure { budget: Some(budget) } | Phase::Settle { budget } => choose(parts, first as u64, budget)?,
            Phase::Measure { budget: None } => return Ok(()),
            Phase::Keep => {}
        }
        for id in sites {
            let _ = parts.part(*id, "lora_E")?.detach().g_mul_(parts.part(*id, LEFT)?);
        }
        Ok(())
    }

    fn measure(config: &Config, parts: &Parts<'_>, id: SiteId) -> Result<()> {
        for (index, part) in ["lora_A", "lora_B", "lora_E"].into_iter().enumerate() {
            let leaf = parts.part(id, part)?;
            let grad = leaf.grad();
            let now = if grad.defined() { (leaf * grad).abs() } else { leaf.zeros_like() };
            let mut mean = parts.part(id, AVERAGES[index])?.shallow_clone();
            let mut spread = parts.part(id, AVERAGES[index + 3])?.shallow_clone();
            mean.copy_(&(&mean * config.beta1 + &now * (1.0 - config.beta1)));
            spread.copy_(&(&spread * config.beta2 + (now - &mean).abs() * (1.0 - config.beta2)));
        }
        Ok(())
    }

    /// The importance of every triplet of a site: `[r]`.
    fn scores(parts: &Parts<'_>, id: SiteId) -> Result<Tensor> {
        let element = |index: usize| -> Result<Tensor> {
            Ok(parts.part(id, AVERAGES[index])? * parts.part(id, AVERAGES[index + 3])?)
        };
        let mean = |x: Tensor, axis: i64| x.mean_dim([axis].as_slice(), false, Kind::Float);
        Ok(element(2)?.reshape([-1]) + mean(element(0)?, 1) + mean(element(1)?, 0))
    }

    /// Leaves `budget` of `first` triplets, the most important ones.
    fn choose(parts: &Parts<'_>, first: u64, budget: u64) -> Result<()> {
        let lost = first.saturating_sub(budget);
        if lost == 0 {
            return Ok(());
        }
        let scores = parts.plan.sites.iter().map(|id| scores(parts, *id)).collect::<Result<Vec<_>>>()?;
        let threshold = Tensor::cat(&scores, 0).kthvalue(lost as i64, 0, false).0;
        for (id, scores) in parts.plan.sites.iter().zip(&scores) {
            let mut left = parts.part(*id, LEFT)?.shallow_clone();
            left.copy_(&scores.gt_tensor(&threshold).to_kind(Kind::Float).unsqueeze(1));
        }
        Ok(())
    }
}
