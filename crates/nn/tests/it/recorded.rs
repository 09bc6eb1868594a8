//! Every family, with every head that it has: what transformers computes, on both layouts, with the fused softmax and
//! with the open one, and behind virtual tokens.

use std::collections::BTreeSet;

use pleach_nn::{Group, HeadKind, HeadOptions, Inputs, Layout, ModelDir, Pieces, Role, families, write_tiny};
use safetensors::tensor::{Dtype, TensorView};
use tch::{Device, Kind, Tensor};

use crate::support::{
    Additive, Hooks, Model, Prefix, Sharpen, assert_near, batch, case, distance, open, real, run, tensors, tiny,
};

fn head(name: &str) -> HeadKind {
    match name {
        "lm" => HeadKind::CausalLm,
        "mlm" => HeadKind::MaskedLm,
        "sequence" => HeadKind::SequenceClassification,
        "token" => HeadKind::TokenClassification,
        "bare" => HeadKind::Embedding,
        other => panic!("{other} is no head"),
    }
}

/// The recorded batch, padded and packed.
fn both(ids: &Tensor, mask: &Tensor) -> [(Layout, Inputs); 2] {
    let lengths: Vec<i64> = mask.sum_dim_intlist([1i64].as_slice(), false, Kind::Int64).try_into().unwrap();
    let lengths: Vec<usize> = lengths.into_iter().map(|length| length as usize).collect();
    let samples: Vec<u64> = (0..lengths.len() as u64).collect();
    let padded = Layout::padded(lengths.clone(), ids.size()[1] as usize, samples.clone(), Device::Cpu);
    let flat = real(&padded, &ids.unsqueeze(-1)).squeeze();
    let packed = Layout::packed(lengths, samples, Device::Cpu);
    [(padded, Inputs::ids(ids.shallow_clone())), (packed, Inputs::ids(flat))]
}

/// Hooks that open the softmax everywhere and change nothing.
fn opened(model: &Model) -> Hooks {
    let scores = model.config.sites().with_role(Role::AttnScores);
    scores.fold(Hooks::default(), |hooks, site| hooks.with(site.id, Sharpen(1.0)))
}

fn rows(layout: &Layout, outputs: &Tensor, of_tokens: bool) -> Tensor {
    if of_tokens { real(layout, outputs) } else { outputs.shallow_clone() }
}

#[test]
fn every_family_gives_what_transformers_gives() {
    let recorded = tensors(&case("../families.safetensors"));
    let names: BTreeSet<_> = recorded.keys().filter_map(|key| key.rsplit_once('.')).map(|(name, _)| name).collect();
    assert_eq!(names.len(), 56, "{names:?}");
    for name in names {
        let (family, head_name) = name.rsplit_once('-').unwrap();
        let model = tiny(family, Some(head(head_name)));
        let [ids, mask, expected] = ["ids", "mask", "outputs"].map(|part| &recorded[&format!("{name}.{part}")]);
        let of_tokens = !matches!(head_name, "sequence" | "bare");
        let hooks = opened(&model);
        for batch in both(ids, mask) {
            let groups = [Group { rows: 0..3, hooks: &hooks }];
            for groups in [&[][..], &groups] {
                let off = distance(&rows(&batch.0, &run(&model, &batch, groups), of_tokens), expected);
                assert!(off <= 5e-5, "{name}: off by {off:e} {:?}", batch.0.form());
            }
        }
    }
}

#[test]
fn hooks_of_every_kind_agree_on_both_layouts_of_every_family() {
    for name in ["bert", "distilbert", "gemma2", "gpt2", "gpt_neox", "mistral", "mixtral", "mpnet", "phi3", "qwen3"] {
        let model = tiny(name, None);
        let mut hooks = opened(&model);
        for site in model.config.sites().with_role(Role::AttnKv) {
            let heads = site.dims.heads.unwrap();
            let shape = [3, heads.kv as i64, heads.dim as i64];
            let (key, value) = (waves(&shape, 0.0), waves(&shape, 1.0));
            hooks = hooks.with(site.id, Prefix { key, value });
        }
        for site in model.config.sites().with_role(Role::Linear).filter(|site| site.block.is_some()) {
            let shape = [site.dims.input as i64, site.dims.output as i64];
            hooks = hooks.with(site.id, Additive(waves(&shape, 2.0) * 0.1));
        }
        let batch = batch(&[7, 3, 7, 5]);
        let groups = [Group { rows: 0..2, hooks: &hooks }];
        let of_tokens = run(&model, &batch.packed, &[]).size()[0] == 22;
        let of = |batch: &(Layout, Inputs)| rows(&batch.0, &run(&model, batch, &groups), of_tokens);
        let (padded, packed) = (of(&batch.padded), of(&batch.packed));
        let off = distance(&padded, &packed);
        assert!(off <= 2e-5, "{name}: off by {off:e}");
        let bare = rows(&batch.packed.0, &run(&model, &batch.packed, &[]), of_tokens);
        let last = bare.size()[0] - 1;
        assert!(distance(&packed.get(0), &bare.get(0)) > 1e-3, "{name}: the hooks do something");
        assert_near(&packed.get(last), &bare.get(last), 1e-5);
    }
}

/// Values without a pattern that a model could know.
fn waves(shape: &[i64], shift: f64) -> Tensor {
    let count: i64 = shape.iter().product();
    (((Tensor::arange(count, tch::kind::FLOAT_CPU) + shift) * 1.7).sin() * 0.3).reshape(shape)
}

/// The tiny Mixtral as files hold it: expert by expert, under the names of the first release.
fn in_pieces(keep: impl Fn(&str) -> bool) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let family = families().iter().find(|family| family.name() == "mixtral").unwrap();
    write_tiny(*family, None, folder.path(), 7).unwrap();
    let path = folder.path().join("model.safetensors");
    let dir = ModelDir::open(folder.path()).unwrap();
    let model = pleach_nn::configure(&dir, &HeadOptions::default()).unwrap();
    let mut files: Vec<(String, Vec<usize>, Vec<u8>)> = Vec::new();
    for tensor in model.tensors() {
        let entry = dir.get(&tensor.name).unwrap();
        let Some(Pieces { path, parts }) = &tensor.pieces else {
            let name = tensor.name.replace(".mlp.gate.", ".block_sparse_moe.gate.");
            files.push((name, entry.shape.to_vec(), entry.bytes.to_vec()));
            continue;
        };
        let shape = vec![tensor.shape[1] / parts.len(), tensor.shape[2]];
        let size = 4 * shape.iter().product::<usize>();
        for (number, bytes) in entry.bytes.chunks(size).enumerate() {
            let (expert, part) = (number / parts.len(), parts[number % parts.len()]);
            files.push((format!("{path}{expert}.{part}"), shape.clone(), bytes.to_vec()));
        }
    }
    files.retain(|(name, ..)| keep(name));
    let views = files.iter().map(|(name, shape, bytes)| {
        (name.as_str(), TensorView::new(Dtype::F32, shape.clone(), bytes.as_slice()).unwrap())
    });
    let views: Vec<_> = views.collect();
    drop(dir);
    safetensors::serialize_to_file(views, None, &path).unwrap();
    folder
}

#[test]
fn experts_are_read_one_by_one() {
    let folder = in_pieces(|_| true);
    let (pieces, whole) = (open(folder.path(), &HeadOptions::default()), tiny("mixtral", None));
    let batch = batch(&[6, 4]);
    assert_eq!(distance(&run(&pieces, &batch.padded, &[]), &run(&whole, &batch.padded, &[])), 0.0);

    let lacking = in_pieces(|name| !name.contains("layers.1.block_sparse_moe.experts.2.w3"));
    let dir = ModelDir::open(lacking.path()).unwrap();
    let error = pleach_nn::configure(&dir, &HeadOptions::default()).unwrap().check(&dir).unwrap_err();
    assert_eq!(error.code(), pleach_base::code::MODEL_MISMATCH);
    assert!(error.message().contains("`model.layers.1.block_sparse_moe.experts.2.w3.weight`"), "{}", error.message());
}

#[test]
fn modules_that_are_saved_whole_are_those_of_peft() {
    let paths = |family: &str, name: &str| {
        let sites = tiny(family, Some(HeadKind::SequenceClassification)).config;
        let found = sites.sites().saved_whole(&[name.to_owned()]);
        found.iter().map(|id| sites.sites()[*id].path.clone()).collect::<Vec<_>>()
    };
    assert_eq!(paths("roberta", "classifier"), ["classifier.dense", "classifier.out_proj"]);
    assert_eq!(paths("distilbert", "classifier"), ["pre_classifier", "classifier"], "PEFT looks at the end of names");
    assert_eq!(paths("llama", "score"), ["score"]);
    assert_eq!(paths("gpt2", "score"), ["score"]);
}
