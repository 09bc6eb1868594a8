//! Strategies: recipes of training around the adapters of all tasks, `spec.strategy`. One file a method; a new one is one
//! word in the registry below.

crate::around::registry! {
    lae,
    mixda,
    mos,
    mosa,
    sequential,
    snnk_closed_form,
    vl_multitask,
}
