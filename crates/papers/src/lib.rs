//! What the papers claim, measured: small models of our own, pretrained here, the methods of the registries trained on them by
//! the engine that trains jobs, and named baselines beside them with an equal budget.
//!
//! A page is one file (`pNN_name.rs`) and one line of [`PAGES`]: the claim, the arms, the margins that must hold, and a
//! function from a seed to scores. Everything else is here: [`run`] trains the seeds, [`judge`] holds the scores against the
//! margins, [`report`] writes `docs/papers/`. What pages share (data, models, training, scores) is [`kit`].

pub mod judge;
pub mod kit;
pub mod page;
pub mod report;
pub mod run;

/// Declares the pages' files and their list, in the order of their numbers.
macro_rules! pages {
    ($($page:ident),* $(,)?) => {
        $(mod $page;)*
        /// All pages, in order.
        pub static PAGES: &[&page::Page] = &[$(&$page::PAGE),*];
    };
}

pages! {
    p02_snnk,
    p06_generative,
    p08_vl_adapter,
    p10_mixda,
    p13_mosa,
    p14_sparse,
    p20_p_adapter,
    p21_binary,
    p42_pill,
    p47_hydra,
    p48_mos,
    p59_mhr,
    p61_lae,
}

#[cfg(test)]
mod tests;
