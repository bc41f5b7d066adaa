use clap::ValueEnum as _;

use super::*;

/// Seeds that must break nothing. A world takes a sixteenth of a second of a processor as `deploy/test` compiles it.
const SEEDS: u64 = 2_000;
/// Seeds of which one must find a planted fault.
const PLANTED_SEEDS: u64 = 40;
/// Plants that few seeds find: RFD 0014 says why.
const RARE: [Plant; 2] = [Plant::WatchSkips, Plant::AnyGeneration];

#[test]
fn a_seed_is_the_same_each_time() {
    for seed in 0..2 {
        let plan = Plan::draw(seed, None);
        let (first, second) = (run(&plan, true).unwrap(), run(&plan, true).unwrap());
        let differs = first.lines.iter().zip(&second.lines).find(|(one, other)| one != other);
        assert_eq!(differs, None, "seed {seed}");
        assert_eq!((first.digest, &first.broken), (second.digest, &second.broken), "seed {seed}");
        assert!(first.calls > 10, "seed {seed}");
    }
}

#[test]
fn seeds_break_nothing() {
    let options =
        Options { seeds: SEEDS, from: 0, replay: None, without: Vec::new(), plant: None, threads: 0 };
    let (told, _) = run_worlds(&options, &ProgressBar::hidden()).unwrap();
    let broken: Vec<_> = told.into_iter().map(|(seed, told)| (seed, told.broken)).collect();
    assert!(broken.is_empty(), "`loadtest simulate --replay` shows what happens in one of {broken:?}");
}

#[test]
fn what_is_planted_is_found() {
    let is_found = |plant| {
        (0..PLANTED_SEEDS).any(|seed| run(&Plan::draw(seed, Some(plant)), false).unwrap().broken.is_some())
    };
    let missed: Vec<Plant> = std::thread::scope(|scope| {
        let plants = Plant::value_variants().iter().copied().filter(|plant| !RARE.contains(plant));
        let tried: Vec<_> = plants.map(|plant| (plant, scope.spawn(move || is_found(plant)))).collect();
        tried.into_iter().filter_map(|(plant, found)| (!found.join().unwrap()).then_some(plant)).collect()
    });
    assert_eq!(missed, []);
}
