//! The inputs of a workload: made once by `tests/bench/inputs.py`, in the user's cache, and read by both sides.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::workload::Workload;
use crate::paths::Paths;
use crate::setup::{Lock, require_space};
use crate::{cmd, interop, ui};

/// A model of 1 B parameters, and some air.
const SPACE: u64 = 4_000_000_000;

/// Where everything lies.
#[derive(Clone, Debug)]
pub(in crate::bench) struct Inputs {
    /// With PyTorch, transformers and PEFT.
    pub(super) python: PathBuf,
    /// The script that trains by PEFT.
    pub(super) script: PathBuf,
    pub(super) model: PathBuf,
    /// Token files, one a job.
    pub(super) data: Vec<PathBuf>,
    /// The adapter of each job before its first step, as a PEFT folder.
    pub(super) adapters: Vec<PathBuf>,
    pub(super) shape: Shape,
}

/// What `workload.json` says.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Shape {
    /// Weights of the linear maps that every token goes through.
    pub(super) linear_params: u64,
    pub(super) hidden: u64,
    pub(super) layers: u64,
}

/// Finds the inputs, or makes them.
pub(in crate::bench) fn ensure(paths: &Paths, workload: &Workload, tiny: bool) -> Result<Inputs> {
    let python = interop::python(paths)
        .context("benchmarks need PyTorch, transformers and PEFT as tests/interop/py/requirements.txt lists them")?;
    let scripts = paths.root.join("tests/bench");
    let (maker, script) = (scripts.join("inputs.py"), scripts.join("peft_run.py"));
    let folder = paths.cache.join(format!("bench-{}", fingerprint(paths, &[&maker, &script])?));
    let _lock = Lock::take(&folder, "inputs")?;
    let name = format!("{}{}", if tiny { "tiny-" } else { "" }, workload.inputs);
    let here = folder.join(&name);
    let facts = here.join("workload.json");
    if !facts.is_file() {
        require_space(&folder, SPACE)?;
        ui::say("making", format!("the inputs of {name}"));
        let mut make = Command::new(&python);
        quiet(make.arg(&maker).arg(&here).arg(workload.inputs).args(tiny.then_some("--tiny")))?;
    }
    let text = fs::read_to_string(&facts).with_context(|| format!("cannot read {}", facts.display()))?;
    let shape = serde_json::from_str(&text).with_context(|| format!("{} is damaged", facts.display()))?;
    let jobs = workload.ranks.len();
    let file = |job: usize| if jobs == 1 { "data.jsonl".to_owned() } else { format!("data.{job}.jsonl") };
    let data: Vec<_> = (0..jobs).map(|job| here.join(file(job))).collect();
    let mut inputs = Inputs { python, script, model: here.join("model"), data, adapters: Vec::new(), shape };
    for (job, rank) in workload.ranks.iter().enumerate() {
        let adapter = folder.join(format!("{name}-{}-r{rank}-seed{job}", workload.dtype.torch()));
        if !adapter.join("adapter_config.json").is_file() {
            ui::say("making", format!("the adapter that job {job} of {name} begins with"));
            quiet(&mut begin(&inputs, workload, job, &adapter))?;
        }
        inputs.adapters.push(adapter);
    }
    Ok(inputs)
}

/// Writes the adapter of a job before its first step.
fn begin(inputs: &Inputs, workload: &Workload, job: usize, adapter: &Path) -> Command {
    let mut make = Command::new(&inputs.python);
    make.arg(&inputs.script).arg(&inputs.model).arg(&inputs.data[job]);
    make.args(["--steps", "0", "--batch", "1", "--dtype", workload.dtype.torch()]);
    make.args(["--rank", &workload.ranks[job].to_string(), "--seed", &job.to_string()]);
    make.arg("--save-init").arg(adapter);
    make
}

/// Of what the inputs follow from: other scripts or other libraries make others.
fn fingerprint(paths: &Paths, scripts: &[&Path]) -> Result<String> {
    let list = paths.root.join("tests/interop/py/requirements.txt");
    let mut hash = Sha256::new();
    for path in scripts.iter().copied().chain([list.as_path()]) {
        hash.update(fs::read(path).with_context(|| format!("cannot read {}", path.display()))?);
    }
    Ok(hex::encode(hash.finalize())[..12].to_owned())
}

fn quiet(command: &mut Command) -> Result<()> {
    let out = cmd::output(command)?;
    if !out.status.success() {
        bail!("`{}` failed:\n{}", cmd::show(command), String::from_utf8_lossy(&out.stderr).trim());
    }
    Ok(())
}
