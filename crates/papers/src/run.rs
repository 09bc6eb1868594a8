//! All seeds of a page, several at a time. What a seed gives depends on its number alone.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use nix::sys::resource::{UsageWho, getrusage};
use pleach_base::{Result, SystemClock, code};
use tch::Device;

use crate::judge::{Outcome, judge, rows};
use crate::page::{Cx, Page, Scores};

/// How pages are run.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Where tensors are.
    pub device: Device,
    /// Seeds that are trained at a time.
    pub threads: usize,
    /// At a twentieth of the steps, with two seeds.
    pub reduced: bool,
    /// So many seeds instead of all.
    pub seeds: Option<u64>,
    /// The first seed; 0 for a page's own.
    pub from: u64,
}

/// Seeds of a reduced run.
const FEW: u64 = 2;

/// Runs a page and judges it. `told` hears of every seed as it ends: its number and what it took in seconds.
///
/// # Errors
/// Those of the page; `INTERNAL` when it does not measure what it says.
pub fn run(page: &Page, options: &Options, told: &(dyn Fn(u64, f64) + Sync)) -> Result<Outcome> {
    let usual = if options.reduced { FEW } else { page.seeds };
    let seeds = options.seeds.unwrap_or(usual).clamp(1, page.seeds);
    let clock = SystemClock::shared();
    let (begun, worked) = (clock.elapsed(), worked());
    let one = |seed: u64| {
        let begun = clock.elapsed();
        let scores = (page.run)(&Cx { seed, device: options.device, reduced: options.reduced });
        told(seed, clock.elapsed().saturating_sub(begun).as_secs_f64());
        scores
    };
    let threads = options.threads.clamp(1, seeds as usize);
    let scores = in_parallel(seeds as usize, threads, &|index| one(options.from + index as u64))?;
    let margins: Result<_> = page.margins.iter().map(|margin| judge(margin, &scores)).collect();
    Ok(Outcome {
        page: page.number,
        title: page.title.to_owned(),
        claim: page.claim.to_owned(),
        device: if options.device == Device::Cpu { "cpu" } else { "cuda" }.to_owned(),
        seeds,
        reduced: options.reduced,
        seconds: clock.elapsed().saturating_sub(begun).as_secs_f64(),
        threads,
        work: self::worked() - worked,
        scores: rows(page, &scores)?,
        margins: margins?,
    })
}

/// Seconds of processor time of this process.
fn worked() -> f64 {
    let seconds = |time: nix::sys::time::TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
    getrusage(UsageWho::RUSAGE_SELF).map_or(0.0, |usage| seconds(usage.user_time()) + seconds(usage.system_time()))
}

/// `work(0), work(1), ..` in order, computed by so many threads. The first error ends it.
fn in_parallel(count: usize, threads: usize, work: &(dyn Fn(usize) -> Result<Scores> + Sync)) -> Result<Vec<Scores>> {
    // A seed's sums must not depend on how many cores there are.
    tch::set_num_threads(1);
    let next = AtomicUsize::new(0);
    let done: Vec<Mutex<Option<Result<Scores>>>> = (0..count).map(|_| Mutex::new(None)).collect();
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let Some(place) = done.get(index) else { return };
                    let result = work(index);
                    if result.is_err() {
                        next.store(count, Ordering::Relaxed);
                    }
                    if let Ok(mut place) = place.lock() {
                        *place = Some(result);
                    }
                }
            });
        }
    });
    let results: Vec<_> = done.into_iter().filter_map(|place| place.into_inner().ok().flatten()).collect();
    let whole = results.len() == count;
    let scores = results.into_iter().collect::<Result<Vec<_>>>()?;
    if whole { Ok(scores) } else { Err(code::INTERNAL.error("a seed was not run")) }
}
