//! Compressions of what is trained, `spec.compress`. One file a method; a new one is one word in the registry below.

crate::around::registry! {
    snnk_uptrain,
}
