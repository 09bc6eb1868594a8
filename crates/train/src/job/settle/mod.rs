//! Where a generation goes on: the ranks tell each other which states they hold, all make the same choice, and who lacks
//! the chosen state gets it from who has it. The store is read only when no memory reaches what is recorded.

mod choose;
mod table;
mod transfer;

use pleach_base::{Fence, Result, ResultExt as _, code};
use pleach_comm::Collective;
use serde_json::Map;

pub(super) use choose::Claim;

use super::memory::Held;
use super::task::{Ground, JobTask};
use super::uploads::Checkpoints;
use super::{broadcast, feed, resume};
use crate::engine::Engine;
use crate::feed::ResumedFrom;
use crate::record::{Heads, Record};
use transfer::Luggage;

/// What a generation begins a task with.
pub(super) struct Settled {
    /// On rank 0.
    pub(super) checkpoints: Option<Checkpoints>,
    /// Steps done.
    pub(super) step: u64,
    /// What the job file wants after that step was done on every rank that has it.
    pub(super) rounded_off: bool,
}

/// Puts all tasks, which the engine has, where they go on. A collective call.
///
/// # Errors
/// Those of the store when nobody holds a state; `DIGEST_MISMATCH` when a state did not arrive as it was sent; those of
/// [`pleach_comm::Collective`].
pub(super) fn settle(ground: &Ground<'_>, engine: &mut Engine<'_>, tasks: &mut [JobTask]) -> Result<Vec<Settled>> {
    let group = ground.cx.group;
    let mut mine = Vec::with_capacity(tasks.len());
    for task in tasks.iter() {
        mine.push(task.memory.claims(engine.task(&task.name)?, group.rank()));
    }
    let table = table::exchange(group, &mine)?;
    let heads = &same_heads(group, &ground.cx.heads)?;
    let settle = |(task, claims): (_, Vec<Claim>)| Settling { ground, engine, heads, task }.settle(&claims);
    tasks.iter_mut().zip(table).map(settle).collect()
}

/// The records as rank 0 was told them: an assignment that was sent again to a single rank may know more, and two opinions
/// would be two choices.
fn same_heads(group: &dyn Collective, mine: &Heads) -> Result<Heads> {
    let text = serde_json::to_vec(mine).or_code(code::INTERNAL, || "cannot pack the records".to_owned())?;
    let text = broadcast::bytes(group, 0, text)?;
    serde_json::from_slice(&text).or_code(code::INTERNAL, || "cannot unpack the records".to_owned())
}

struct Settling<'a, 'b, 'c> {
    ground: &'a Ground<'b>,
    engine: &'a mut Engine<'c>,
    heads: &'a Heads,
    task: &'a mut JobTask,
}

impl Settling<'_, '_, '_> {
    fn settle(&mut self, claims: &[Claim]) -> Result<Settled> {
        let cx = self.ground.cx;
        let records = self.heads.get(&self.task.name).map(Vec::as_slice).unwrap_or_default();
        let chosen = choose::choose(claims, records).copied();
        let mut writer = None;
        let better = match choose::store_may_have_more(chosen.as_ref(), records) {
            true => resume::newest(self.ground, &self.task.name, chosen.map(|chosen| chosen.step), &mut writer)?,
            false => None,
        };
        let (source, made_by, rounded_off) = match (better, chosen) {
            (Some(found), _) => {
                let made_by = found.made_by;
                self.take_from_store(&found)?;
                (ResumedFrom::Store, made_by, true)
            }
            (None, Some(chosen)) => {
                self.take_from_memory(&chosen, claims)?;
                let mut holders = claims.iter().filter(|claim| claim.is_state_of(&chosen));
                (ResumedFrom::Memory, chosen.fence, holders.all(|claim| claim.rounded_off))
            }
            (None, None) => {
                self.engine.restore(&self.task.name, &self.task.untrained)?;
                self.task.memory.settle_on(None, cx.fence);
                self.task.metrics = Map::new();
                (ResumedFrom::Fresh, Fence::default(), true)
            }
        };
        self.engine.check(&self.task.name)?;
        let step = self.engine.step(&self.task.name)?;
        // Only now is it this generation's, and it says so before anything else can fail.
        self.task.memory.adopt(cx.fence);
        feed::resumed(cx, &self.task.name, step, (source, made_by))?;
        self.task.saved_step = (step > 0 && self.task.memory.durable >= step).then_some(step);
        self.record(records, step);
        let store = self.ground.store.as_ref();
        let checkpoints = store.map(|store| Checkpoints::start(cx, &self.task.name, store, writer));
        Ok(Settled { checkpoints, step, rounded_off })
    }

    fn take_from_store(&mut self, found: &resume::Resumed) -> Result<()> {
        let (cx, name) = (self.ground.cx, &self.task.name);
        found.check_base(name, &self.ground.model.fingerprint)?;
        self.engine.restore(name, &self.task.untrained)?;
        self.engine.load(name, &found.files)?;
        self.task.metrics = found.metrics();
        let state = self.engine.task(name)?.capture(None);
        let step = state.step;
        let held = Held { state, fence: found.made_by, metrics: self.task.metrics.clone(), rounded_off: true };
        self.task.memory.settle_on(Some(held), cx.fence);
        self.task.memory.is_durable(step);
        Ok(())
    }

    fn take_from_memory(&mut self, chosen: &Claim, claims: &[Claim]) -> Result<()> {
        let (cx, name) = (self.ground.cx, &self.task.name);
        let (group, rank) = (cx.group, cx.group.rank());
        let has = |rank: usize| claims.iter().find(|claim| claim.rank == rank && claim.is_state_of(chosen));
        let live = self.engine.task(name)?;
        // Nothing leaves the memory before all is there: the exchange may fail.
        let slot = has(rank).map(|claim| {
            // The owner gives what it was chosen for.
            let slot = if chosen.rank == rank { chosen.slot } else { claim.slot };
            self.task.memory.copied(slot, live)
        });
        let held = slot.and_then(|slot| self.task.memory.held(slot));
        let mine = held.filter(|_| chosen.rank == rank);
        let luggage = mine.map(|held| {
            let rows = self.task.memory.ledger.iter().filter(|row| row.step.0 <= chosen.step).cloned().collect();
            Luggage::of(&held.state, &held.metrics, rows, self.task.memory.durable)
        });
        let luggage = transfer::share_luggage(group, chosen.rank, luggage.as_ref())?;
        let given = match (0..group.world()).all(|rank| has(rank).is_some()) {
            true => None,
            false => {
                let (around, mine) = ((group, cx.observer.as_ref()), mine.map(|held| &held.state));
                Some(transfer::share_state(around, chosen.rank, mine, (live, &luggage.header))?)
            }
        };
        let own = slot.and_then(|slot| self.task.memory.take(slot)).map(|held| held.state);
        let Some(state) = own.or(given) else {
            return Err(code::INTERNAL.error(format!("task {name}: nobody gave its state")));
        };
        self.engine.restore(name, &state)?;
        self.task.metrics = luggage.metrics();
        let held = Held { state, fence: chosen.fence, metrics: luggage.metrics(), rounded_off: false };
        self.task.memory.settle_on(Some(held), cx.fence);
        self.task.memory.ledger = luggage.ledger.into();
        self.task.memory.is_durable(luggage.durable);
        Ok(())
    }

    /// Steps that were made and not recorded are recorded by this generation; if it goes back behind what is recorded, it
    /// says where it goes on.
    fn record(&mut self, records: &[Record], step: u64) {
        let (cx, head) = (self.ground.cx, choose::head_step(records));
        cx.recorded.note(&self.task.name, head.min(step));
        let speaks = cx.group.rank() == 0;
        for row in &mut self.task.memory.ledger {
            if row.step.0 > head || (row.step.0 == step && step < head) {
                row.fence = cx.fence;
                if speaks {
                    cx.observer.commit(row);
                    cx.recorded.agreed(&self.task.name, row.step.0);
                }
            }
        }
    }
}
