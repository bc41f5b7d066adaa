use super::plan::{Plan, Plant};
use super::run::run;

/// Seeds in which a planted fault must be found.
const PLANTED_SEEDS: u64 = 1000;
/// Those that few seeds find. The others take more than a test has time for.
const FOUND: [Plant; 7] = [
    Plant::WriteForgotten,
    Plant::LeaseEndsEarly,
    Plant::UploadLies,
    Plant::SuspendEarly,
    Plant::RemovedEarly,
    Plant::WakesOlder,
    Plant::EngineLeft,
];

#[test]
fn a_seed_is_the_same_each_time() {
    for seed in 0..3 {
        let plan = Plan::draw(seed, None);
        let (first, second) = (run(&plan, true).unwrap(), run(&plan, true).unwrap());
        let differs = first.lines.iter().zip(&second.lines).find(|(one, other)| one != other);
        assert_eq!(differs, None, "seed {seed}");
        assert_eq!((first.digest, first.broken), (second.digest, second.broken), "seed {seed}");
        assert!(first.calls > 10, "seed {seed}");
    }
}

#[test]
fn no_invariant_breaks() {
    for seed in 0..10 {
        assert_eq!(run(&Plan::draw(seed, None), false).unwrap().broken, None, "seed {seed}");
    }
}

#[test]
fn what_is_planted_is_found() {
    for plant in FOUND {
        let found = (0..PLANTED_SEEDS)
            .find_map(|seed| Some((seed, run(&Plan::draw(seed, Some(plant)), false).unwrap().broken?)));
        let (seed, broken) = found.unwrap_or_else(|| panic!("{plant:?} is not found"));
        println!("{plant:?} is found by seed {seed}: {}: {}", broken.invariant, broken.story);
    }
}
