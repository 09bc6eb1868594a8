//! The draw of experts.

use pleach_base::rng::Key;
use pleach_nn::SiteId;

/// The experts of the down and the up projection that a whole batch runs through, in this pass of the step after `done`
/// steps, at this site. `key` is the task's: every rank draws the same.
pub(crate) fn draw(key: Key, done: u64, pass: u32, site: SiteId, experts: u32) -> [usize; 2] {
    let mut rng = key.named("mosa_draw").with(done).with(u64::from(pass)).with(u64::from(site.0)).rng();
    let mut one = || usize::try_from(rng.below(u64::from(experts.max(1)))).unwrap_or_default();
    [one(), one()]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Nothing but the task's key, step, pass and place decides; all experts are drawn equally often.
    #[test]
    fn draws_are_functions_of_their_place_and_uniform() {
        let (key, here) = (Key::seed(9).named("t"), SiteId(3));
        let mut counts = [[0usize; 4]; 2];
        for step in 0..1000 {
            for pass in 0..2 {
                let [a, b] = draw(key, step, pass, here, 4);
                assert_eq!([a, b], draw(key, step, pass, here, 4));
                counts[0][a] += 1;
                counts[1][b] += 1;
            }
        }
        assert!(counts.iter().flatten().all(|count| (430..570).contains(count)), "{counts:?}");
        let differs = |f: &dyn Fn(u64) -> [usize; 2]| (0..50).any(|step| f(step) != draw(key, step, 0, here, 4));
        assert!(differs(&|step| draw(key, step, 1, here, 4)));
        assert!(differs(&|step| draw(key, step, 0, SiteId(4), 4)));
        assert!(differs(&|step| draw(Key::seed(8), step, 0, here, 4)));
    }
}
