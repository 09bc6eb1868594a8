//! Progress while one long call below gives none.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::observer::Observer;

const BEAT: Duration = Duration::from_millis(500);
/// After so many beats a call counts as stuck: the lease is then no longer renewed.
const MOST_BEATS: u32 = 1_200;

/// Runs `work`, telling `observer` about progress every half second meanwhile. For loading weights and opening data: one
/// call each, which takes as long as the disk does. Ends telling after ten minutes, so that a hang is still found.
pub(super) fn during<T>(observer: &dyn Observer, work: impl FnOnce() -> T) -> T {
    struct Done<'a>(&'a AtomicBool, std::thread::Thread);
    impl Drop for Done<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::SeqCst);
            self.1.unpark();
        }
    }
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let beating = scope.spawn(|| {
            for _ in 0..MOST_BEATS {
                if over.load(Ordering::SeqCst) {
                    return;
                }
                observer.progress();
                std::thread::park_timeout(BEAT);
            }
        });
        let _done = Done(&over, beating.thread().clone());
        work()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU32;

    #[derive(Default)]
    struct Count(AtomicU32);

    impl Observer for Count {
        fn progress(&self) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn it_beats_while_the_work_lasts_and_gives_its_result() {
        let count = Count::default();
        let result = during(&count, || {
            std::thread::sleep(Duration::from_millis(1_200));
            7
        });
        let beats = count.0.load(Ordering::SeqCst);
        assert_eq!(result, 7);
        assert!((2..=5).contains(&beats), "{beats} beats in 1.2 s");
    }
}
