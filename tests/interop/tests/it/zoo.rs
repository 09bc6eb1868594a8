//! Every method that PEFT knows, on every family: PEFT opens an adapter of ours, we open one of PEFT's, and both compute
//! the same.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use pleach_base::rng::Key;
use pleach_methods::{Adapter, AdapterConfig, Export, Method, MethodKind, Room, import, methods};
use pleach_nn::{
    Backbone, BackboneConfig, Family, Forward, Group, HeadOptions, Inputs, Layout, Output, Precision, Source,
    TensorFile, families, open, write_tiny,
};
use serde_json::{Map, Value, json};
use tch::{Device, Kind, Tensor};

use crate::support::python;

/// Allowed difference of any output.
const TOLERANCE: f64 = 1e-4;
/// Sequences of a batch; the width is that of the longest.
const LENGTHS: [usize; 3] = [6, 9, 4];
const WIDTH: usize = 9;

/// What a model reads, as it lies before room is made for virtual tokens.
struct Batch {
    layout: Layout,
    second: Option<Layout>,
    inputs: Inputs,
}

impl Batch {
    fn of(config: &dyn BackboneConfig) -> Self {
        let reads = &config.info().reads;
        let samples: Vec<u64> = (0..3).collect();
        let read = |source: &Source, lengths: &[usize]| -> (Layout, Tensor) {
            match source {
                Source::Fixed { shape, .. } => {
                    let mut full = vec![3i64];
                    full.extend(shape.iter().map(|n| *n as i64));
                    let values = Tensor::arange(full.iter().product::<i64>(), (Kind::Float, Device::Cpu)) * 0.37;
                    (source.layout(samples.clone(), false, Device::Cpu).unwrap(), values.sin().reshape(full))
                }
                Source::Tokens { .. } => {
                    let id = |row: usize, at: usize| match at + 1 == lengths[row] {
                        // A text tower pools at the largest id, which ends a text.
                        true => config.info().vocab_size as i64 - 1,
                        false => 5 + (row * 131 + at * 17) as i64 % 240,
                    };
                    let pad = i64::from(config.info().pad_token.unwrap_or(1));
                    let ids: Vec<i64> = (0..3)
                        .flat_map(|row| (0..WIDTH).map(move |at| (row, at)))
                        .map(|(row, at)| if at < lengths[row] { id(row, at) } else { pad })
                        .collect();
                    let layout = Layout::padded(lengths.to_vec(), WIDTH, samples.clone(), Device::Cpu);
                    (layout, Tensor::from_slice(&ids).reshape([3, WIDTH as i64]))
                }
            }
        };
        let (layout, first) = read(&reads.first, &LENGTHS);
        let mut inputs = Inputs::default().with(reads.first.name(), first);
        let mut second = None;
        if let Some(source) = &reads.second {
            let (layout, tensor) = read(source, &[WIDTH; 3]);
            inputs = inputs.with(source.name(), tensor);
            second = Some(layout);
        }
        Self { layout, second, inputs }
    }

    /// Outputs, and which of their positions are real: `[3, positions]`.
    fn run(&self, backbone: &dyn Backbone, adapter: &Adapter) -> (Tensor, Tensor) {
        let _guard = tch::no_grad_guard();
        let (config, tokens) = (backbone.config(), adapter.config().virtual_tokens());
        let reads = &config.info().reads;
        let first = Room::same(&self.layout, tokens.in_first(self.second.is_some()));
        let second = self.second.as_ref().map(|second| Room::same(second, tokens.in_second()).into_layout());
        let inputs = first.inputs(&self.inputs, &[reads.first.name()]);
        let groups = [Group { rows: 0..3, hooks: adapter }];
        let cx = Forward::eval(config.sites(), first.layout(), &groups).beside(second.as_ref());
        let found = match backbone.forward(&cx, &inputs) {
            Output::Pair(pair) => Tensor::cat(&[&pair.text, &pair.image], -1) * &pair.scale,
            output => output.tensor().contiguous(),
        };
        let of = second.as_ref().filter(|_| reads.shift.is_some()).unwrap_or(first.layout());
        let all = || Tensor::ones(of.shape(), (Kind::Bool, Device::Cpu));
        (found, of.real().map_or_else(all, Tensor::shallow_clone).to_kind(Kind::Int64))
    }
}

struct Case {
    name: String,
    model: PathBuf,
    adapter: PathBuf,
    io: PathBuf,
    theirs: PathBuf,
}

fn load(model: &Path) -> Box<dyn Backbone> {
    let (dir, config) = open(model, &HeadOptions::default()).unwrap();
    config.build(&dir, Device::Cpu, Precision::Fp32).unwrap()
}

/// The families that every run takes; `PLEACH_ZOO=all` takes all.
const USUAL: [&str; 5] = ["bert", "gpt2", "llama", "t5", "vit"];

/// What PEFT cannot do, though the method can: the beginning of its error.
const NOT_THERE: [&str; 2] = [
    "ValueError: Model does not support past key values",
    // Poly wraps plain linear maps only.
    "TypeError: Target module Conv1D",
];

fn parse(method: &dyn Method) -> Arc<dyn AdapterConfig> {
    let options = match method.card().name {
        // Without its CUDA extension PEFT has one factor, whatever is asked.
        "boft" => "{}",
        // The mean of many small skills is too small to be told from none.
        "poly" => r#"{"r": 1, "n_skills": 2, "n_splits": 2}"#,
        _ => method.example(),
    };
    let options: Map<String, Value> = serde_json::from_str(options).unwrap();
    method.parse(&options, "adapter").unwrap().into()
}

/// An adapter with values of our own, written as a step's folder has it, and its outputs.
fn write(family: &dyn Family, method: &dyn Method, folder: &Path, backbone: &dyn Backbone) -> Option<Case> {
    let name = format!("{}-on-{}", method.card().name, family.name());
    let config = parse(method);
    let plan = Arc::new(config.plan(backbone.config()).ok()?);
    let adapter = Adapter::build(Arc::clone(&config), plan, backbone, Key::seed(4), None).unwrap();
    let values = adapter.params().flatten();
    let noise = (Tensor::arange(values.size()[0], (Kind::Float, Device::Cpu)) * 1.7).sin() * 0.05;
    adapter.params().unflatten(&(values + noise)).unwrap();
    let to = folder.join(&name);
    std::fs::create_dir_all(&to).unwrap();
    let model = folder.join(family.name());
    let export = Export { base: &model.display().to_string() };
    let fields = config.adapter_config(backbone.config(), adapter.plan(), &export);
    std::fs::write(to.join("adapter_config.json"), Value::Object(fields).to_string()).unwrap();
    let tensors = adapter.exported().unwrap();
    let tensors: Vec<_> = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    Tensor::write_safetensors(&tensors, to.join("adapter_model.safetensors")).unwrap();
    let io = to.with_extension("safetensors");
    write_io(&io, backbone, &adapter);
    Some(Case { model, theirs: folder.join(format!("{name}-theirs")), adapter: to, io, name })
}

fn write_io(io: &Path, backbone: &dyn Backbone, adapter: &Adapter) {
    let batch = Batch::of(backbone.config());
    let (adapted, mask) = batch.run(backbone, adapter);
    let attention = batch.layout.real().map(|real| real.to_kind(Kind::Int64));
    let mut tensors: Vec<(&str, &Tensor)> =
        batch.inputs.0.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    tensors.extend([("adapted", &adapted), ("mask", &mask)]);
    tensors.extend(attention.as_ref().map(|mask| ("attention_mask", mask)));
    Tensor::write_safetensors(&tensors, io).unwrap();
}

fn read(path: &Path, name: &str) -> Tensor {
    let file = TensorFile::open(path).unwrap();
    pleach_nn::tensor_from_entry(&file.get(name).unwrap()).unwrap()
}

/// How far we are from what PEFT computed with its own adapter.
fn theirs(case: &Case, backbone: &dyn Backbone) -> Result<f64, String> {
    let show = |error: pleach_base::Error| error.chain();
    let imported = import(&case.theirs).map_err(show)?;
    let plan = Arc::new(imported.config.plan(backbone.config()).map_err(show)?);
    imported.check(&plan).map_err(show)?;
    let values = imported.values().map_err(show)?;
    let config = Arc::clone(&imported.config);
    let adapter = Adapter::build(config, plan, backbone, Key::seed(0), Some(&values)).map_err(show)?;
    let (found, mask) = Batch::of(backbone.config()).run(backbone, &adapter);
    let expected = read(&case.theirs.join("out.safetensors"), "adapted");
    if found.size() != expected.size() {
        return Err(format!("shapes differ: {:?} and {:?}", found.size(), expected.size()));
    }
    let mut off = (found - expected).abs();
    if off.dim() == 3 {
        off *= mask.unsqueeze(-1);
    }
    Ok(off.max().double_value(&[]))
}

#[test]
fn every_method_of_peft_opens_there_and_here() {
    tch::set_num_threads(1);
    let folder = tempfile::tempdir().unwrap();
    let mut cases = Vec::new();
    let all = std::env::var("PLEACH_ZOO").is_ok_and(|wanted| wanted == "all");
    for family in families().iter().filter(|family| all || USUAL.contains(&family.name())) {
        let model = folder.path().join(family.name());
        write_tiny(*family, None, &model, 3).unwrap();
        let backbone = load(&model);
        let known = methods().filter(|method| method.card().kind == MethodKind::Adapter);
        for method in known.filter(|method| method.card().peft_type.is_some()) {
            cases.extend(write(*family, method, folder.path(), &*backbone));
        }
    }
    let list: Vec<Value> = cases
        .iter()
        .map(|case| json!({"model": case.model, "adapter": case.adapter, "io": case.io, "theirs": case.theirs}))
        .collect();
    let path = folder.path().join("cases.json");
    std::fs::write(&path, Value::from(list).to_string()).unwrap();
    let found = python("peft_zoo.py", &[&path.display().to_string()], &[]);
    let mut failed = Vec::new();
    for (case, found) in cases.iter().zip(found.as_array().unwrap()) {
        let within = found["off"].as_f64().is_some_and(|off| off < TOLERANCE)
            && found["moved"].as_f64().is_some_and(|moved| moved > 1e-3)
            // PEFT repeats RandLoRA's two tables for every module in its own files, and misses the copies in ours.
            && (found["warnings"] == found["usual_warnings"] || case.name.starts_with("randlora-"));
        if found["error"].as_str().is_some_and(|error| NOT_THERE.iter().any(|known| error.starts_with(known))) {
            continue;
        }
        if !within {
            failed.push(format!("{}: PEFT with ours: {found}", case.name));
        } else if let Err(why) = theirs(case, &*load(&case.model))
            .and_then(|off| if off < TOLERANCE { Ok(()) } else { Err(format!("off by {off}")) })
        {
            failed.push(format!("{}: ours with PEFT's: {why}", case.name));
        }
    }
    assert!(failed.is_empty(), "{} of {} fail:\n{}", failed.len(), cases.len(), failed.join("\n"));
}
