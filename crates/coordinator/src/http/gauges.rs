//! Gauges, from the state at the moment of asking: a job that was deleted leaves no stale series behind.

use metrics::gauge;
use metrics_exporter_prometheus::PrometheusBuilder;
use pleach_proto::v1;
use pleach_sched::JobState;

use crate::actor::Overview;

pub(super) fn render(overview: &Overview) -> String {
    let recorder = PrometheusBuilder::new().build_recorder();
    let handle = recorder.handle();
    metrics::with_local_recorder(&recorder, || record(overview));
    handle.render()
}

fn record(overview: &Overview) {
    describe();
    gauge!("pleach_term").set(overview.term.0 as f64);
    let busy = overview.workers.iter().filter(|worker| worker.job.is_some()).count();
    gauge!("pleach_workers", "state" => "busy").set(busy as f64);
    gauge!("pleach_workers", "state" => "idle").set((overview.workers.len() - busy) as f64);
    for state in JobState::ALL {
        let count = overview.jobs.iter().filter(|(of, _)| *of == state).count();
        gauge!("pleach_jobs", "state" => state.name()).set(count as f64);
    }
    for (_, job) in &overview.jobs {
        for task in &job.tasks {
            record_task(job, task);
        }
    }
    for (key, share) in &overview.input_wait {
        let labels = [("tenant", key.tenant.to_string()), ("job", key.job.to_string())];
        gauge!("pleach_job_input_wait_share", &labels).set(*share);
    }
}

fn record_task(job: &v1::Job, task: &v1::TaskStatus) {
    let labels = [("tenant", job.tenant.clone()), ("job", job.id.clone()), ("task", task.name.clone())];
    gauge!("pleach_task_step", &labels).set(task.step as f64);
    gauge!("pleach_task_loss", &labels).set(task.loss);
    gauge!("pleach_task_tokens_per_second", &labels).set(task.tokens_per_second);
    gauge!("pleach_task_durable_step", &labels).set(task.durable_step as f64);
    gauge!("pleach_task_durable_lag_steps", &labels).set(task.step.saturating_sub(task.durable_step) as f64);
    let [tenant, of, name] = labels;
    for (metric, value) in &task.metrics {
        let labels = [tenant.clone(), of.clone(), name.clone(), ("metric", metric.clone())];
        gauge!("pleach_task_metric", &labels).set(*value);
    }
}

fn describe() {
    for (name, text) in [
        ("pleach_term", "Term of this leader"),
        ("pleach_workers", "Workers that hold a lease"),
        ("pleach_jobs", "Jobs that are kept"),
        ("pleach_task_step", "Optimiser steps done"),
        ("pleach_task_loss", "Loss of the newest step"),
        ("pleach_task_tokens_per_second", "Real tokens per second in the newest step"),
        ("pleach_task_durable_step", "Newest step in the store"),
        ("pleach_task_durable_lag_steps", "Steps that the store is behind"),
        (
            "pleach_job_input_wait_share",
            "Share of the newest steps that the training thread which waits longest waits for input",
        ),
        ("pleach_task_metric", "What the method says of the newest step, such as a router's largest share"),
    ] {
        metrics::describe_gauge!(name, text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_method_says_of_a_step_is_a_series_of_its_own() {
        let metrics = [("router/largest_share".to_owned(), 0.75)].into();
        let task = v1::TaskStatus { name: "mix".into(), step: 3, metrics, ..Default::default() };
        let job = v1::Job { tenant: "acme".into(), id: "desk".into(), tasks: vec![task], ..Default::default() };
        let recorder = PrometheusBuilder::new().build_recorder();
        let handle = recorder.handle();
        metrics::with_local_recorder(&recorder, || record_task(&job, &job.tasks[0]));
        let line = r#"pleach_task_metric{tenant="acme",job="desk",task="mix",metric="router/largest_share"} 0.75"#;
        assert!(handle.render().lines().any(|own| own == line), "{}", handle.render());
    }
}
