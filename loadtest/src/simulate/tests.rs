use super::plan::{Plan, Plant};
use super::run::run;

// A seed takes about a second of a test that is not optimised: so few are tried here. `loadtest simulate` tries many.

/// Seeds of which one must find a planted fault.
const PLANTED_SEEDS: u64 = 3;
/// Those that the first of them finds, usually.
const FOUND: [Plant; 5] = [
    Plant::WriteForgotten,
    Plant::LeaseEndsEarly,
    Plant::SuspendEarly,
    Plant::RemovedEarly,
    Plant::WakesOlder,
];

#[test]
fn a_seed_breaks_nothing_and_is_the_same_each_time() {
    for seed in 0..2 {
        let plan = Plan::draw(seed, None);
        let (first, second) = (run(&plan, true).unwrap(), run(&plan, true).unwrap());
        let differs = first.lines.iter().zip(&second.lines).find(|(one, other)| one != other);
        assert_eq!(differs, None, "seed {seed}");
        assert_eq!((first.digest, &first.broken), (second.digest, &second.broken), "seed {seed}");
        assert!(first.calls > 10, "seed {seed}");
        assert_eq!(first.broken, None, "seed {seed}");
    }
}

#[test]
fn what_is_planted_is_found() {
    let is_found = |plant| {
        (0..PLANTED_SEEDS).any(|seed| {
            let found = run(&Plan::draw(seed, Some(plant)), false).unwrap().broken;
            found.is_some()
        })
    };
    let missed: Vec<Plant> = FOUND.into_iter().filter(|plant| !is_found(*plant)).collect();
    assert_eq!(missed, []);
}
