//! The loop itself: tasks take turns, one step each, until all are done or somebody asks to stop. Those that can share
//! their passes through the model have one turn together.

use std::sync::Arc;
use std::time::Duration;

use pleach_base::{Error, Result, Step, code};
use pleach_spec::job::Determinism;

use super::checkpoint;
use super::model::Warm;
use super::task::{Ground, JobTask};
use super::uploads::Checkpoints;
use super::{JobContext, Outcome, experts, feed, meet, settle};
use crate::engine::{Engine, StepResult, Word};
use crate::observer::{EvalRow, Level, StepRow};
use crate::phase::Phase;
use crate::record::{CommitRow, sample_digest};
use crate::stop::Wish;
use crate::times::Stage;
use crate::{lanes, memory};

pub(super) fn run(cx: &JobContext<'_>, warm: &mut Warm) -> Result<Outcome> {
    cx.stop.check()?;
    hold_still(cx)?;
    let (model, tasks) = warm.ready(&cx.preparation())?;
    cx.stop.check()?;
    let engine = Engine::new(model.backbone.as_ref(), cx.group, Arc::clone(&cx.observer), Arc::clone(&cx.clock));
    let store = match cx.group.rank() {
        0 => Some(checkpoint::open(&cx.job.spec.checkpoint)?),
        _ => None,
    };
    let mut round = Round { ground: Ground { cx, model, store }, engine, tasks, checkpoints: Vec::new() };
    let outcome = round.run();
    round.hand_back();
    outcome
}

/// Strict mode needs one intra-op thread: element-wise functions round the tail of each thread's chunk differently.
fn hold_still(cx: &JobContext<'_>) -> Result<()> {
    if cx.job.spec.train.determinism != Determinism::Strict {
        return Ok(());
    }
    if cx.group.device() != tch::Device::Cpu {
        return Err(code::BAD_VALUE
            .error("spec.train.determinism: strict is promised on the CPU only")
            .hint("use `fast`, or workers with `--device cpu`"));
    }
    tch::set_num_threads(1);
    Ok(())
}

struct Round<'a> {
    ground: Ground<'a>,
    engine: Engine<'a>,
    tasks: &'a mut Vec<JobTask>,
    /// By task; on rank 0.
    checkpoints: Vec<Option<Checkpoints>>,
}

impl Round<'_> {
    fn run(&mut self) -> Result<Outcome> {
        meet::agree_on_ground(&self.ground, self.tasks)?;
        let settled = self.settle()?;
        self.ground.cx.observer.ready();
        for index in 0..self.tasks.len() {
            experts::take(&mut self.engine, self.tasks, index)?;
        }
        self.round_off(&settled)?;
        let cx = self.ground.cx;
        let wish = self.train()?;
        if wish == Wish::Yield {
            return Ok(Outcome::Yielded);
        }
        for index in 0..self.tasks.len() {
            self.save(index)?;
        }
        for checkpoints in self.checkpoints.iter().flatten() {
            checkpoints.finish(wish == Wish::Drain)?;
        }
        let mut all_done = true;
        for task in self.tasks.iter() {
            let step = self.engine.step(&task.name)?;
            cx.observer.task(&task.status(step));
            all_done &= task.is_done(step) || task.failed.is_some();
        }
        if wish == Wish::Drain && !all_done {
            return Ok(Outcome::Drained);
        }
        // What the others made is durable by now.
        self.tasks.iter_mut().find_map(|task| task.failed.take()).map_or(Ok(Outcome::Finished), Err)
    }

    /// Lends the tasks to the engine and puts them where they go on; tells what each begins with.
    fn settle(&mut self) -> Result<Vec<(u64, bool)>> {
        let cx = self.ground.cx;
        for task in self.tasks.iter_mut() {
            (task.has_experts, task.failed) = (false, None);
            let lent = task.task.take();
            self.engine.adopt(lent.ok_or_else(|| code::INTERNAL.error("a task was not handed back"))?);
        }
        let begins = settle::settle(&self.ground, &mut self.engine, self.tasks)?;
        let mut settled = Vec::with_capacity(begins.len());
        for (task, begin) in self.tasks.iter().zip(begins) {
            task.introduce(cx, begin.step);
            self.checkpoints.push(begin.checkpoints);
            settled.push((begin.step, begin.rounded_off));
        }
        cx.stop.check()?;
        Ok(settled)
    }

    /// Does what the last generation had still to do after the step that this one begins with. A checkpoint that it began
    /// and did not end is begun anew.
    fn round_off(&mut self, settled: &[(u64, bool)]) -> Result<()> {
        let at_start = self.ground.cx.job.spec.eval.as_ref().is_some_and(|eval| eval.at_start);
        for (index, (step, rounded_off)) in settled.iter().enumerate() {
            match (step, rounded_off) {
                (0, _) if at_start => self.evaluate(index)?,
                (0, _) => {}
                (step, false) => self.after(index, *step)?,
                (step, true) if self.saves_at(index, *step) => self.save(index)?,
                _ => {}
            }
            let task = &mut self.tasks[index];
            task.memory.round_off(&task.metrics);
        }
        Ok(())
    }

    fn hand_back(self) {
        for (task, lent) in self.tasks.iter_mut().zip(self.engine.release()) {
            task.task = Some(lent);
        }
    }

    fn save(&mut self, index: usize) -> Result<()> {
        let (task, checkpoints) = (&mut self.tasks[index], self.checkpoints[index].as_ref());
        self.engine.stopwatch().during(Stage::Checkpoint, || task.save(&self.engine, &self.ground, checkpoints))
    }

    /// Steps of all tasks in turn; ends with what a rank asked for, or when all steps are done.
    fn train(&mut self) -> Result<Wish> {
        let turns = self.turns()?;
        loop {
            let mut stepped = false;
            for turn in &turns {
                let mut ready = Vec::with_capacity(turn.len());
                for index in turn {
                    let step = self.engine.step(&self.tasks[*index].name)?;
                    let goes_on = self.tasks[*index].failed.is_none() && !self.tasks[*index].is_done(step);
                    if goes_on && experts::take(&mut self.engine, self.tasks, *index)? {
                        ready.push(*index);
                    }
                }
                if ready.is_empty() {
                    continue;
                }
                stepped = true;
                let wish = self.step(&ready)?;
                if wish != Wish::GoOn {
                    return Ok(wish);
                }
            }
            if !stepped {
                return Ok(Wish::GoOn);
            }
        }
    }

    /// Which tasks make their steps together, turn by turn; says so where there are several.
    fn turns(&mut self) -> Result<Vec<Vec<usize>>> {
        let whys: Vec<_> = self.tasks.iter().map(|task| self.engine.apart(&task.name)).collect::<Result<_>>()?;
        let (together, apart): (Vec<usize>, Vec<usize>) = (0..whys.len()).partition(|index| whys[*index].is_none());
        if whys.len() > 1 {
            for (index, why) in whys.iter().enumerate() {
                let others = together.iter().filter(|other| **other != index);
                let others: Vec<_> = others.map(|other| self.tasks[*other].name.as_str()).collect();
                let passes = match why {
                    Some(why) => format!("its own: {why}"),
                    None if others.is_empty() => "its own: no other task can share them".to_owned(),
                    None => format!("shared with {}", others.join(", ")),
                };
                let task = &mut self.tasks[index];
                task.passes = passes;
                let observer = &self.ground.cx.observer;
                observer.log(Level::Info, &format!("task {}: passes through the model: {}", task.name, task.passes));
                observer.task(&task.status(self.engine.step(&task.name)?));
            }
        }
        Ok(std::iter::once(together).chain(apart.into_iter().map(|index| vec![index])).collect())
    }

    /// One step of each of some tasks, whose passes are shared when there are several; gives what the ranks want then.
    fn step(&mut self, turn: &[usize]) -> Result<Wish> {
        let cx = self.ground.cx;
        cx.stop.check()?;
        let (begun, watch) = (cx.clock.elapsed(), self.engine.stopwatch());
        watch.start(Stage::Data);
        let mut batches = Vec::with_capacity(turn.len());
        for index in turn {
            let task = &mut self.tasks[*index];
            let step = self.engine.step(&task.name)?;
            let lanes = lanes::of_rank(task.data.plan().lanes(), cx.group.rank(), cx.group.world());
            let batch = task.data.batch(step, lanes)?;
            feed::fed(cx, &task.name, step + 1, &batch)?;
            batches.push((task.name.clone(), batch));
        }
        cx.observer.phase(Phase::BeforeForward);
        let forwarded = match batches.as_slice() {
            [(name, batch)] => vec![self.engine.forward_backward(name, batch)?],
            several => {
                let several: Vec<_> = several.iter().map(|(name, batch)| (name, batch)).collect();
                self.engine.forward_backward_together(&several)?
            }
        };
        let passed = cx.clock.elapsed().saturating_sub(begun);
        let all = forwarded.iter().map(|forwarded| forwarded.tokens).sum::<u64>().max(1) as f64;
        let mut wish = Wish::GoOn;
        for (index, forwarded) in turn.iter().zip(&forwarded) {
            // Of passes that were shared, as much as it has tokens.
            wish = wish.max(self.update(*index, passed.mul_f64(forwarded.tokens as f64 / all))?);
        }
        let tasks: Vec<_> = batches.into_iter().map(|(name, _)| name).collect();
        let step = tasks.first().map_or(Ok(0), |name| self.engine.step(name))?;
        if let Some(times) = watch.stop(tasks, step) {
            cx.observer.times(times);
        }
        Ok(wish)
    }

    /// The update of one task, whose passes took `passed`.
    fn update(&mut self, index: usize, passed: Duration) -> Result<Wish> {
        let cx = self.ground.cx;
        let begun = cx.clock.elapsed();
        let word = Word { wish: cx.stop.wish(), ..self.knows(index) };
        let name = self.tasks[index].name.clone();
        let result = match self.engine.optim_step_saying(&name, word) {
            Err(error) if error.code() == code::NON_FINITE && self.engine.task(&name)?.whole_state().is_some() => {
                return self.fail(index, error);
            }
            result => result?,
        };
        let task = &mut self.tasks[index];
        let seconds = (passed + cx.clock.elapsed().saturating_sub(begun)).as_secs_f64();
        task.metrics.clear();
        task.note("train/loss".to_owned(), result.loss);
        for (name, value) in result.routing.iter().flat_map(|routing| &routing.metrics) {
            task.note(name.clone(), *value);
        }
        self.commit(index, &result)?;
        cx.observer.phase(Phase::AfterCommit);
        self.tell(index, &result, seconds);
        // A gang that is waited for ends at once; the next one does the rest.
        if result.wish != Wish::Yield {
            self.after(index, result.step)?;
        }
        Ok(result.wish)
    }

    /// Leaves a task at its last step. The error is the job's when the others are done: a gang that is formed anew until then
    /// comes to the same step with the same rows.
    fn fail(&mut self, index: usize, error: Error) -> Result<Wish> {
        let (observer, several) = (&self.ground.cx.observer, self.tasks.len() > 1);
        let task = &mut self.tasks[index];
        if several {
            let line = format!("{}; it makes no more steps, the other tasks go on", error.message());
            observer.log(Level::Warn, &line);
        }
        task.failed = Some(error);
        observer.task(&task.status(self.engine.step(&task.name)?));
        Ok(Wish::GoOn)
    }

    /// What this rank knows of a task beyond the gang: rank 0's word counts.
    fn knows(&self, index: usize) -> Word {
        let task = &self.tasks[index];
        let durable = self.checkpoints[index].as_ref().map_or(0, Checkpoints::durable).max(task.memory.durable);
        Word { recorded: self.ground.cx.recorded.step(&task.name), durable, ..Word::default() }
    }

    /// Keeps a step on which the ranks agreed, and tells what is to be recorded of it.
    fn commit(&mut self, index: usize, result: &StepResult) -> Result<()> {
        let (cx, task) = (self.ground.cx, &mut self.tasks[index]);
        let (epoch, positions) = task.data.plan().step(result.step - 1);
        let row = CommitRow {
            task: task.name.clone(),
            step: Step(result.step),
            fence: cx.fence,
            digest: result.digest.clone(),
            sample_digest: hex::encode(sample_digest(&result.lane_digests)),
            lane_digests: result.lane_digests.iter().map(hex::encode).collect(),
            samples: positions.end - positions.start,
            epoch,
            skipped: result.skipped,
            world: cx.group.world() as u32,
            tokens: Some(result.tokens),
            unix_ms: cx.clock.now().0 as i64,
        };
        let heard = (result.recorded, result.durable);
        task.memory.agreed(self.engine.task(&task.name)?, row.clone(), &task.metrics, heard);
        if cx.group.rank() == 0 {
            cx.observer.commit(&row);
            cx.recorded.agreed(&task.name, result.step);
        }
        self.checkpoints[index].as_ref().map_or(Ok(()), Checkpoints::pump)
    }

    /// What the job file wants after this step: an evaluation, then a checkpoint that carries its result.
    fn after(&mut self, index: usize, step: u64) -> Result<()> {
        let job = &self.ground.cx.job.spec;
        let done = self.tasks[index].is_done(step);
        let every = |n: Option<u64>| n.is_some_and(|n| n > 0 && step.is_multiple_of(n));
        let ended = self.engine.ended_task(&self.tasks[index].name)?;
        if job.eval.as_ref().is_some_and(|eval| done || ended || every(eval.every)) {
            self.evaluate(index)?;
        }
        if self.saves_at(index, step) {
            self.save(index)?;
        }
        let task = &mut self.tasks[index];
        task.memory.round_off(&task.metrics);
        if done {
            self.ground.cx.observer.task(&self.tasks[index].status(step));
        }
        Ok(())
    }

    /// Whether the job file wants a checkpoint of this step.
    fn saves_at(&self, index: usize, step: u64) -> bool {
        let every = self.ground.cx.job.spec.checkpoint.every;
        self.tasks[index].is_done(step) || (every > 0 && step.is_multiple_of(every))
    }

    fn evaluate(&mut self, index: usize) -> Result<()> {
        let task = &mut self.tasks[index];
        let Some((set, metrics)) = &task.eval else { return Ok(()) };
        let evaluate = || match self.engine.evaluate_sequence(&task.name)? {
            Some(row) => Ok(EvalRow { samples: set.len() as u64, ..row }),
            None => self.engine.evaluate(&task.name, set, metrics),
        };
        let row = self.engine.stopwatch().during(Stage::Evaluate, evaluate)?;
        for (name, value) in &row.metrics {
            task.note(format!("eval/{name}"), *value);
        }
        let observer = &self.ground.cx.observer;
        observer.eval(&row);
        observer.log(Level::Info, &self.labelled(index, &row.line()));
        Ok(())
    }

    fn tell(&self, index: usize, result: &StepResult, seconds: f64) {
        let cx = self.ground.cx;
        let task = &self.tasks[index];
        let row = StepRow {
            task: task.name.clone(),
            step: result.step,
            total_steps: task.data.plan().total_steps(),
            epoch: task.data.epoch(result.step),
            loss: result.loss,
            grad_norm: result.grad_norm,
            learning_rate: result.learning_rate,
            tokens: result.tokens,
            seconds,
            compute_seconds: result.compute_seconds,
            digest: result.digest.clone(),
            skipped: result.skipped,
            world: cx.group.world() as u32,
            rss_bytes: memory::resident_bytes(),
            metrics: result.routing.iter().flat_map(|routing| routing.metrics.iter().cloned()).collect(),
        };
        cx.observer.step(&row);
        let every = cx.job.spec.train.log_every.max(1);
        if result.skipped || result.step.is_multiple_of(every) || task.is_done(result.step) {
            let level = if result.skipped { Level::Warn } else { Level::Info };
            cx.observer.log(level, &self.labelled(index, &row.line()));
            for warning in result.routing.iter().flat_map(|routing| &routing.warnings) {
                cx.observer.log(Level::Warn, &self.labelled(index, &format!("step {}: {warning}", result.step)));
            }
        }
    }

    /// The line, with the task's name in front when there are several.
    fn labelled(&self, index: usize, line: &str) -> String {
        if self.tasks.len() == 1 { line.to_owned() } else { format!("{}: {line}", self.tasks[index].name) }
    }
}
