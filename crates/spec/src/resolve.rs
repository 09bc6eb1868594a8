//! What is decided once, at submission, and stored: defaults that depend on other fields, and one spelling for all.

use serde_json::Value;

use crate::job::{DataTask, Job, Section, TaskSpec};

impl Job {
    /// The job with its dependent defaults made explicit: `train.lanes`, `eval.metrics`, and the task in which a router over
    /// a list of experts learns. Resolving twice changes nothing, and the result of a valid job is valid.
    #[must_use]
    pub fn resolve(mut self) -> Self {
        let spec = &mut self.spec;
        spec.train.lanes.get_or_insert(largest_divisor(spec.train.global_batch, spec.workers.max));
        let task = spec.data.as_ref().or_else(|| spec.tasks.iter().find_map(|task| task.data.as_ref()));
        if let (Some(eval), Some(data)) = (&mut spec.eval, task)
            && eval.metrics.is_empty()
        {
            let names: &[&str] = match data.task {
                DataTask::CausalLm | DataTask::MaskedLm => &["loss"],
                DataTask::SequenceClassification => &["loss", "accuracy"],
                DataTask::Retrieval => &["recall@1", "mrr"],
            };
            eval.metrics = names.iter().map(|name| (*name).to_owned()).collect();
        }
        if let Some(mut router) = spec.router.take_if(|router| router.lists_experts()) {
            let name = router.options.remove(NAME);
            let name = name.as_ref().and_then(Value::as_str).unwrap_or(ROUTER).to_owned();
            spec.tasks.push(TaskSpec { name, adapter: router, data: None, optimizer: None, init_from: None });
        }
        self
    }

    /// The job as JSON with sorted keys: equal jobs give equal text, whatever the order and spelling in their files.
    /// Stored, hashed and compared; reads back with [`crate::parse`].
    #[must_use]
    pub fn canonical_json(&self) -> String {
        // Maps with text keys and finite numbers always serialise; validation refused the others.
        let mut value = serde_json::to_value(self).unwrap_or_default();
        value.sort_all_objects();
        Value::to_string(&value)
    }
}

/// The option that names the task of a router.
const NAME: &str = "name";
/// Its name otherwise.
const ROUTER: &str = "router";

impl Section {
    /// Whether it is a router over a list of experts, which learns in a task of its own.
    #[must_use]
    pub fn lists_experts(&self) -> bool {
        self.options.get("experts").is_some_and(Value::is_array)
    }

    /// The name of that task.
    pub(crate) fn router_task(&self) -> Option<&str> {
        self.lists_experts().then(|| self.options.get(NAME).and_then(Value::as_str).unwrap_or(ROUTER))
    }
}

/// The largest divisor of `of` that is at most `most`; 1 at least.
fn largest_divisor(of: u32, most: u32) -> u32 {
    (1..=most.min(of)).rev().find(|n| of.is_multiple_of(*n)).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lanes_are_the_largest_divisor_that_the_workers_can_hold() {
        assert_eq!(largest_divisor(64, 8), 8);
        assert_eq!(largest_divisor(12, 5), 4);
        assert_eq!(largest_divisor(7, 4), 1);
        assert_eq!(largest_divisor(3, 100), 3);
    }
}
