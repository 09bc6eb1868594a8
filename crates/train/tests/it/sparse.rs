//! A whole training of sparse differences: what is left in the files.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use pleach_nn::{TensorFile, tensor_from_entry};
use pleach_train::StopSignal;
use serde_json::{Value, json};
use tch::Tensor;

use crate::fixture::{Heard, llama_job, parse, run, run_alone, stored};

const STATE: &str = "trainer_state.safetensors";

/// Six steps.
fn job(folder: &Path, options: &Value) -> Value {
    let mut job = llama_job(folder, 48);
    let mut adapter = json!({"method": "lt_sft", "ft_params_num": 60});
    adapter.as_object_mut().unwrap().extend(options.as_object().unwrap().clone());
    job["spec"]["tasks"][0]["adapter"] = adapter;
    job["spec"]["train"]["epochs"] = json!(1);
    // It acts on differences: what may not move is zero and stays zero.
    job["spec"]["train"]["optimizer"]["weight_decay"] = json!(0.1);
    job["spec"]["checkpoint"]["every"] = json!(1);
    job["spec"]["checkpoint"]["retention"] = json!({"last": 20});
    job["spec"].as_object_mut().unwrap().remove("eval");
    job
}

/// A job that was stopped after a step, which is the last that it saved.
struct Stopped {
    folder: tempfile::TempDir,
    step: u64,
    rates: Vec<f64>,
}

impl Stopped {
    fn after(step: u64, options: &Value) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let stop = StopSignal::default();
        // What is heard in a step is agreed on at the end of the next one.
        let heard = Arc::new(Heard::draining_at(step - 1, &stop));
        let group = pleach_comm::local(tch::Device::Cpu);
        run(parse(&job(folder.path(), options)), group.as_ref(), 1, &heard, stop).unwrap();
        let rates = heard.steps.lock().unwrap().iter().map(|row| row.learning_rate).collect();
        Self { folder, step, rates }
    }

    fn tensors(&self, file: &str) -> BTreeMap<String, Tensor> {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join(file);
        let files = stored(self.folder.path());
        let wanted = format!("{:08}-g0001/{file}", self.step);
        let bytes = files.get(&wanted).unwrap_or_else(|| panic!("{wanted} is not among {:?}", files.keys()));
        std::fs::write(&path, bytes).unwrap();
        let file = TensorFile::open(&path).unwrap();
        file.names().map(|name| (name.to_owned(), tensor_from_entry(&file.get(name).unwrap()).unwrap())).collect()
    }

    /// What differs from the base model.
    fn model(&self) -> BTreeMap<String, Tensor> {
        self.tensors("adapter_model.safetensors")
    }

    /// How many entries may move.
    fn selected(&self) -> f64 {
        let state = self.tensors(STATE);
        let masks = state.iter().filter(|(name, _)| name.ends_with(".mask"));
        masks.map(|(_, mask)| mask.sum(tch::Kind::Double).double_value(&[])).sum()
    }
}

fn entries(tensors: &BTreeMap<String, Tensor>) -> usize {
    tensors.iter().filter(|(name, _)| name.ends_with(".values")).map(|(_, values)| values.numel()).sum()
}

#[test]
fn as_many_entries_differ_as_were_asked_for() {
    let lengths = json!({"n_ft_iterations": 2, "full_ft_max_steps_per_iteration": 2,
                         "sparse_ft_max_steps_per_iteration": 1});
    let after = |step| Stopped::after(step, &lengths);
    assert!(entries(&after(4).model()) > 1000, "all weights move in a full phase");
    let chosen = after(2);
    assert_eq!((entries(&chosen.model()), chosen.selected()), (0, 30.0), "rewound, and half of them selected");
    let first = after(3).model();
    assert!((25..=30).contains(&entries(&first)), "all that may move, but for tokens that the step has not");
    let again = after(5);
    assert_eq!(again.selected(), 60.0, "others than before");
    let model = again.model();
    assert!(first.iter().all(|(name, tensor)| tensor.equal(&model[name])), "back to the end of the first iteration");
    let last = after(6);
    assert!((31..=60).contains(&entries(&last.model())));
    assert_eq!(last.rates[0], last.rates[2], "every phase begins its schedule anew: {:?}", last.rates);
}

#[test]
fn drawn_entries_are_the_only_ones_that_move() {
    let after = |step| Stopped::after(step, &json!({"sparse_ft_method": "Random"}));
    let (first, last) = (after(2), after(6));
    assert_eq!((first.selected(), last.selected()), (60.0, 60.0));
    let moved = entries(&last.model());
    assert!((40..=60).contains(&moved), "{moved} moved; some tokens are never seen");
    let steps = |model: BTreeMap<String, Tensor>| -> Vec<(String, Tensor)> {
        model.into_iter().filter(|(name, _)| name.ends_with(".mask")).collect()
    };
    let (before, behind) = (first.tensors(STATE), last.tensors(STATE));
    assert!(steps(before).iter().all(|(name, mask)| mask.equal(&behind[name])), "they are drawn once");
}

#[test]
fn a_training_that_its_phases_do_not_fit_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let lengths = json!({"full_ft_max_steps_per_iteration": 4, "sparse_ft_max_steps_per_iteration": 1});
    let (outcome, _) = run_alone(&job(folder.path(), &lengths));
    let error = outcome.unwrap_err();
    assert_eq!(error.code(), pleach_base::code::METHOD_CONFIG);
    assert!(error.message().contains("full_ft_max_steps_per_iteration"), "{error}");
}
