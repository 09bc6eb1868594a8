//! Tasks that share their passes through the model: each as if it were alone, whoever comes, goes or fails.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use pleach_base::rng::Key;
use pleach_base::{SystemClock, TaskName, code};
use pleach_data::{Batch, Content, Encoded, Example};
use pleach_methods::{Adapter, AdapterConfig, MethodKind, find, methods};
use pleach_nn::{Backbone, HeadKind, HeadOptions, Precision, families, write_drawn, write_tiny};
use pleach_spec::job::{DataTask, Determinism, NonFinite, OptimizerSpec, ScheduleSpec};
use pleach_train::{Engine, Objective, Silent, StepBatch, TaskSetup};
use rstest::rstest;
use serde_json::{Value, json};

use crate::fixture::{llama_job, parity, run_alone};
use crate::gang::alone;
use crate::processes::{Gang, gang};

/// A task with the round in which it joins and the steps that it makes.
struct Player {
    name: &'static str,
    method: &'static str,
    options: Value,
    joins: u64,
    steps: u64,
    lr: f64,
}

const ROUNDS: u64 = 4;

fn player(name: &'static str, method: &'static str, options: Value) -> Player {
    Player { name, method, options, joins: 0, steps: ROUNDS, lr: 5e-3 }
}

fn options(determinism: Determinism, checkpointing: bool) -> impl Fn(&dyn Backbone, &Player) -> TaskSetup {
    move |model, player| {
        let options = player.options.as_object().unwrap();
        let config = find(MethodKind::Adapter, player.method).unwrap().parse(options, "adapter").unwrap();
        let config: Arc<dyn AdapterConfig> = Arc::from(config);
        let plan = Arc::new(config.plan(model.config()).unwrap());
        let key = Key::seed(7).named(player.name);
        TaskSetup {
            name: player.name.into(),
            adapter: Adapter::build(config, plan, model, key, None).unwrap(),
            adapter_config: json!({}),
            objective: Objective::of(DataTask::CausalLm, 1.0),
            optimizer: OptimizerSpec { lr: player.lr, ..OptimizerSpec::default() },
            schedule: ScheduleSpec::default(),
            total_steps: player.steps,
            max_grad_norm: 1.0,
            non_finite: NonFinite::Stop,
            determinism,
            micro_batch: None,
            checkpointing,
            own_steps: true,
        }
    }
}

/// Two lanes of a step of a player. Every third step's second has fewer tokens than the processor treats as many.
fn rows(player: &Player, step: u64) -> StepBatch {
    let salt = player.name.bytes().map(u32::from).sum::<u32>() + step as u32 * 11;
    let few = step % 3 == 2;
    let lane = |lane: u32, count: u32| {
        let example = |row: u32| {
            let length = if lane == 1 && few { 3 } else { 5 + (row * 7 + salt) % 15 };
            let ids: Vec<u32> = (0..length).map(|at| (row * 31 + at * at * 17 + salt * 3) % 250).collect();
            let content = Content::Lm(Encoded { type_ids: vec![0; ids.len()], ids });
            Example { sample_id: step * 8 + u64::from(lane * 4 + row), row_task: None, content }
        };
        (lane, Batch::collate(DataTask::CausalLm, &(0..count).map(example).collect::<Vec<_>>()).unwrap())
    };
    let second = if few { 1 } else { 2 };
    StepBatch { lanes: vec![lane(0, 3), lane(1, second)], lane_rows: vec![3, second as usize] }
}

/// Losses and digests of every player's steps; a step that failed has none. Who is alone in a round makes its own passes.
fn play(
    model: &dyn Backbone,
    players: &[&Player],
    setup: impl Fn(&dyn Backbone, &Player) -> TaskSetup,
) -> BTreeMap<&'static str, Vec<(f64, String)>> {
    tch::set_num_threads(1);
    let group = pleach_comm::local(tch::Device::Cpu);
    let mut engine = Engine::new(model, group.as_ref(), Arc::new(Silent), SystemClock::shared());
    let mut made: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for round in 0.. {
        for joiner in players.iter().filter(|player| player.joins == round) {
            engine.add_task(setup(model, joiner)).unwrap();
        }
        let active: Vec<_> = players.iter().filter(|player| engine.step(&player.name.into()).is_ok()).collect();
        if active.is_empty() && players.iter().all(|player| player.joins <= round) {
            break;
        }
        let names: Vec<TaskName> = active.iter().map(|player| player.name.into()).collect();
        let batches: Vec<_> = active.iter().map(|player| rows(player, round - player.joins)).collect();
        let losses = match active.as_slice() {
            [] => continue,
            [_] => vec![engine.forward_backward(&names[0], &batches[0]).unwrap()],
            _ => engine.forward_backward_together(&names.iter().zip(&batches).collect::<Vec<_>>()).unwrap(),
        };
        for ((player, name), forwarded) in active.iter().zip(&names).zip(losses) {
            let stepped = engine.optim_step(name, false);
            let made = made.entry(player.name).or_default();
            match &stepped {
                Ok(result) => made.push((forwarded.loss, result.digest.clone())),
                Err(error) => assert_eq!(error.code(), code::NON_FINITE, "{error}"),
            }
            if stepped.is_err() || made.len() as u64 == player.steps {
                engine.remove_task(name).unwrap();
            }
        }
    }
    made
}

/// Of a width that fills no whole vectors, with weights that are not small.
fn llama(folder: &Path) -> Box<dyn Backbone> {
    let config = std::fs::read(parity("llama-lora").join("model/config.json")).unwrap();
    let config = serde_json::from_slice(&config).unwrap();
    write_drawn(&config, Some(HeadKind::CausalLm), folder, 1).unwrap();
    let options = HeadOptions { kind: Some(HeadKind::CausalLm), ..HeadOptions::default() };
    let (dir, config) = pleach_nn::open(folder, &options).unwrap();
    config.build(&dir, tch::Device::Cpu, Precision::Fp32).unwrap()
}

/// Of six methods and ranks from 4 to 64; one comes later, one goes earlier, one fails.
fn eight() -> [Player; 9] {
    let all = "all-linear";
    [
        player("small", "lora", json!({"r": 4, "target_modules": all})),
        Player { joins: 1, ..player("large", "lora", json!({"r": 64, "target_modules": all, "lora_dropout": 0.2})) },
        player("dora", "lora", json!({"r": 16, "target_modules": ["q_proj", "up_proj"], "use_dora": true})),
        Player { lr: 1e38, ..player("fails", "lora", json!({"r": 8, "target_modules": ["v_proj"]})) },
        Player { steps: 2, ..player("scaled", "ia3", json!({})) },
        player("turned", "oft", json!({"r": 0, "oft_block_size": 8, "target_modules": all})),
        player("prefix", "prefix", json!({"num_virtual_tokens": 3})),
        player("prompt", "prompt", json!({"num_virtual_tokens": 2})),
        player("bottleneck", "bottleneck", json!({})),
    ]
}

#[rstest]
fn eight_tasks_have_the_bits_that_each_has_alone(#[values(false, true)] checkpointing: bool) {
    let folder = tempfile::tempdir().unwrap();
    let (model, players) = (llama(folder.path()), eight());
    let setup = options(Determinism::Strict, checkpointing);
    let together = play(model.as_ref(), &players.each_ref(), &setup);
    for player in &players {
        let alone = play(model.as_ref(), &[player], &setup);
        assert_eq!(together[player.name], alone[player.name], "{}", player.name);
        assert_eq!(alone[player.name].len() as u64, if player.name == "fails" { 1 } else { player.steps });
    }
}

#[test]
fn in_fast_mode_they_are_near() {
    let folder = tempfile::tempdir().unwrap();
    let (model, players) = (llama(folder.path()), eight());
    let setup = options(Determinism::Fast, false);
    let together = play(model.as_ref(), &players.each_ref(), &setup);
    for player in &players {
        let alone = play(model.as_ref(), &[player], &setup);
        assert_eq!(together[player.name].len(), alone[player.name].len());
        for ((a, _), (b, _)) in together[player.name].iter().zip(&alone[player.name]) {
            assert!((a - b).abs() < 1e-5, "{}: {a} and {b}", player.name);
        }
    }
}

/// A listed method shares passes to the bit, or says why it does not.
#[test]
fn every_method_shares_or_says_why_not() {
    let folder = tempfile::tempdir().unwrap();
    let family = families().iter().find(|family| family.name() == "llama").unwrap();
    write_tiny(*family, None, folder.path(), 1).unwrap();
    let (dir, config) = pleach_nn::open(folder.path(), &HeadOptions::default()).unwrap();
    let model = config.build(&dir, tch::Device::Cpu, Precision::Fp32).unwrap();
    let setup = options(Determinism::Strict, false);
    let mut apart = Vec::new();
    for method in methods().filter(|method| method.card().kind == MethodKind::Adapter) {
        let name = method.card().name;
        let own = Player { steps: 2, ..player("own", name, serde_json::from_str(method.example()).unwrap()) };
        let group = pleach_comm::local(tch::Device::Cpu);
        let mut engine = Engine::new(model.as_ref(), group.as_ref(), Arc::new(Silent), SystemClock::shared());
        engine.add_task(setup(model.as_ref(), &own)).unwrap();
        if engine.apart(&"own".into()).unwrap().is_some() {
            apart.push(name);
            let refused = engine.forward_backward_together(&[(&"own".into(), &rows(&own, 0))]).unwrap_err();
            assert!(refused.message().contains("shares no pass"), "{refused}");
            continue;
        }
        let first = player("first", "lora", json!({"r": 4, "target_modules": ["q_proj", "down_proj"]}));
        let together = play(model.as_ref(), &[&first, &own], &setup);
        assert_eq!(together["own"], play(model.as_ref(), &[&own], &setup)["own"], "{name}");
    }
    assert_eq!(apart, ["generative", "pill"]);
}

#[test]
fn two_ranks_share_passes_as_one_does() {
    let folder = tempfile::tempdir().unwrap();
    let mut job = llama_job(folder.path(), 20);
    job["spec"]["train"]["determinism"] = json!("strict");
    job["spec"].as_object_mut().unwrap().remove("eval");
    let tasks = job["spec"]["tasks"].as_array_mut().unwrap();
    tasks.push(json!({"name": "b", "adapter": {"method": "ia3"}}));
    let mut documents: Value =
        serde_json::from_str(find(MethodKind::Adapter, "generative").unwrap().example()).unwrap();
    documents["method"] = json!("generative");
    tasks.push(json!({"name": "c", "adapter": documents}));
    let one = alone(&job, folder.path());
    assert_eq!(one.end, "Finished", "{}", one.message);
    let two = gang(folder.path(), &job, 2, &Gang::default());
    assert_eq!((two[0].end.as_str(), &two[0].digests), ("Finished", &one.digests), "{}", two[0].message);
    job["spec"]["checkpoint"]["store"] = json!(folder.path().join("lines"));
    let (_, heard) = run_alone(&job);
    let lines = heard.lines.lock().unwrap();
    for said in ["task a: passes through the model: shared with b", "task c: passes through the model: its own: its"] {
        assert!(lines.iter().any(|line| line.starts_with(said)), "{said}: {lines:?}");
    }
    let tasks = heard.tasks.lock().unwrap();
    assert!(tasks.iter().any(|status| status.task.as_str() == "b" && status.passes == "shared with a"));
}

/// The job ends with the error of the task that failed, after the others made all their steps; nothing of them differs.
#[test]
fn a_task_that_fails_ends_alone() {
    let folder = tempfile::tempdir().unwrap();
    let mut job = llama_job(folder.path(), 20);
    job["spec"]["train"]["determinism"] = json!("strict");
    job["spec"]["checkpoint"]["every"] = json!(0);
    job["spec"].as_object_mut().unwrap().remove("eval");
    let (_, alone) = run_alone(&job);
    let mut fails = job["spec"]["tasks"][0].clone();
    fails["name"] = json!("b");
    fails["adapter"]["lora_alpha"] = json!(1e40);
    job["spec"]["tasks"].as_array_mut().unwrap().insert(0, fails);
    job["spec"]["checkpoint"]["store"] = json!(folder.path().join("both"));

    let (outcome, heard) = run_alone(&job);
    let error = outcome.unwrap_err();
    assert_eq!(error.code(), code::NON_FINITE);
    assert!(error.message().starts_with("task b: loss or gradient of step 1 is not finite"), "{error}");
    let digests = |heard: &crate::fixture::Heard| {
        let steps = heard.steps.lock().unwrap();
        steps.iter().filter(|row| row.task.as_str() == "a").map(|row| row.digest.clone()).collect::<Vec<_>>()
    };
    assert_eq!(digests(&heard), digests(&alone));
    let durable: BTreeMap<_, _> =
        heard.durable.lock().unwrap().iter().map(|row| (row.task.as_str().to_owned(), row.step.0)).collect();
    assert_eq!(durable, BTreeMap::from([("a".to_owned(), digests(&alone).len() as u64), ("b".to_owned(), 0)]));
    let lines = heard.lines.lock().unwrap();
    assert!(lines.iter().any(|line| line.contains("it makes no more steps, the other tasks go on")), "{lines:?}");
    let tasks = heard.tasks.lock().unwrap();
    assert!(tasks.iter().any(|status| status.task.as_str() == "b" && status.failure == error.message()));
}
