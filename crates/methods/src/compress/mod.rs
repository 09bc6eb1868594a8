//! Compressions of what is trained, `spec.compress`. One file a method; a new one is one word in the registry below.

mod coded;

crate::around::registry! {
    adapter_ptq,
    adapter_qat,
    snnk_uptrain,
}
