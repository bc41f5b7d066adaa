use super::*;

#[test]
fn survives_the_disk() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("journal.json");
    assert!(Journal::read(&path).unwrap().is_none());
    let spec = api::hostagent::v1::MicrovmSpec {
        run_hook_payload: "hunter2".to_owned(),
        ..crate::domain::spec::tests::wire_spec()
    };
    let spec = Spec::from_wire(Some(spec)).ok().unwrap();
    let mut journal = Journal::new(&spec, 7, LocalState::Launching, 1);
    journal.process = Some(Process { pid: 12, start_time: 99 });
    journal.meter.cpu_before_seconds = 0.1;
    journal.write(&path).unwrap();
    let back = Journal::read(&path).unwrap().unwrap();
    assert_eq!((back.generation, back.state, back.process), (7, LocalState::Launching, journal.process));
    assert_eq!(back.spec().unwrap().run_hook_payload, "hunter2");
    assert!(!std::fs::read_to_string(&path).unwrap().contains("hunter2"));
}

/// An engine as the meter sees it: it uses a quarter of a CPU while it runs, and has twice its baseline.
struct Engine {
    began: std::time::Duration,
}

const BASELINE_MIB: u32 = 512;

impl Engine {
    fn sample(&self, clock: &clock::Clock, journal: &mut Journal) {
        let ran = (clock.uptime() - self.began).as_secs_f64();
        let sample = crate::domain::metering::Sample {
            cpu_seconds: ran / 4.0,
            anonymous_bytes: u64::from(BASELINE_MIB) * 2 * 1024 * 1024,
        };
        journal.meter.sample(sample, uptime_ms(clock), BASELINE_MIB);
    }
}

fn uptime_ms(clock: &clock::Clock) -> u64 {
    u64::try_from(clock.uptime().as_millis()).unwrap()
}

/// Launch, run, suspend, sleep, wake, crash and restart of the agent, stop and start of it, end: what was used adds up to the
/// time it ran, but for what it had beyond its baseline between the last write and the crash.
#[test]
fn a_sessions_use_adds_up_across_agents() {
    let seconds = std::time::Duration::from_secs;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("journal.json");
    let clock = clock::Clock::manual(std::time::SystemTime::UNIX_EPOCH);
    clock.advance(seconds(1_000));
    let spec = Spec::from_wire(Some(crate::domain::spec::tests::wire_spec())).ok().unwrap();
    let mut journal = Journal::new(&spec, 1, LocalState::Launching, 0);
    let mut engine = Engine { began: clock.uptime() };
    let start = |journal: &mut Journal, engine: &mut Engine| {
        engine.began = clock.uptime();
        journal.meter.begin_engine(uptime_ms(&clock));
        journal.write(&path).unwrap();
    };
    start(&mut journal, &mut engine);
    for _ in 0..6 {
        clock.advance(seconds(5));
        engine.sample(&clock, &mut journal);
    }
    // A suspend: the last sample, then the engine goes, and an hour passes.
    clock.advance(seconds(3));
    engine.sample(&clock, &mut journal);
    journal.meter.close_engine();
    journal.write(&path).unwrap();
    clock.advance(seconds(3_600));
    start(&mut journal, &mut engine);
    clock.advance(seconds(30));
    engine.sample(&clock, &mut journal);
    journal.write(&path).unwrap();
    // Sampled, not written; then the agent crashes, is away for a minute, and comes back.
    clock.advance(seconds(5));
    engine.sample(&clock, &mut journal);
    clock.advance(seconds(60));
    let mut journal = Journal::read(&path).unwrap().unwrap();
    journal.meter.adopt_engine(uptime_ms(&clock), true, BASELINE_MIB);
    clock.advance(seconds(5));
    // It is stopped: the last sample is written. The next one comes ten seconds later.
    engine.sample(&clock, &mut journal);
    journal.write(&path).unwrap();
    clock.advance(seconds(10));
    let mut journal = Journal::read(&path).unwrap().unwrap();
    journal.meter.adopt_engine(uptime_ms(&clock), true, BASELINE_MIB);
    clock.advance(seconds(2));
    engine.sample(&clock, &mut journal);
    journal.meter.close_engine();
    let (first, second) = (33.0, 30.0 + 5.0 + 60.0 + 5.0 + 10.0 + 2.0);
    let meter = journal.meter;
    let near = |found: f64, expected: f64| assert!((found - expected).abs() < 1e-6, "{found} {expected}");
    near(meter.vcpu_seconds(), (first + second) / 4.0);
    near(meter.baseline_gib_seconds, (first + second) * 0.5);
    // Nobody looked for 65 s after the crash, and for 10 s after the stop.
    near(meter.burst_gib_seconds, (first + second - 75.0) * 0.5);
}

fn journal(generation: u64) -> Journal {
    let spec = Spec::from_wire(Some(crate::domain::spec::tests::wire_spec())).ok().unwrap();
    Journal::new(&spec, generation, LocalState::Suspended, 1)
}

fn copy(generation: u64, sequence: u64) -> RemoteCopy {
    RemoteCopy {
        generation,
        sequence,
        manifest_key: format!("m/g{generation}/s{sequence}/manifest.json"),
        manifest_digest: "d".to_owned(),
    }
}

#[test]
fn a_superseded_copy_is_unneeded_once_the_record_names_a_newer_one() {
    let mut journal = journal(2);
    for one in [copy(1, 4), copy(2, 5), copy(2, 6), copy(2, 6)] {
        journal.supersede(one);
    }
    let unneeded = |generation, (g, s)| {
        let copies = journal.unneeded(generation, SnapshotNumber::new(g, s));
        copies.into_iter().map(|copy| copy.number().to_string()).collect::<Vec<_>>()
    };
    // What an earlier placement made is left to the end, whatever the record says.
    for (generation, named, expected) in [
        (2, (1, 4), &[][..]),
        (2, (2, 5), &[]),
        (2, (2, 6), &["g2/s5"]),
        (2, (2, 7), &["g2/s5", "g2/s6"]),
        // The microVM was placed anew meanwhile: the record is another host's, and may go on from what is here.
        (3, (2, 7), &[]),
        (3, (3, 8), &[]),
        (1, (1, 9), &[]),
        (2, (0, 0), &[]),
    ] {
        assert_eq!(unneeded(generation, named), expected, "generation {generation}, named {named:?}");
    }
}

#[test]
fn superseded_copies_are_bounded_and_the_oldest_stay_in_s3() {
    let mut journal = journal(1);
    for sequence in 1..=40 {
        journal.supersede(copy(1, sequence));
    }
    assert_eq!((journal.superseded.len(), journal.superseded[0].sequence), (SUPERSEDED_MAX, 9));
}

#[test]
fn journals_of_agents_that_knew_no_generation_of_snapshots_are_read() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("journal.json");
    let mut journal = journal(3);
    journal.sequence = 5;
    journal.remote = Some(copy(0, 5));
    let mut old = serde_json::to_value(&journal).unwrap();
    for field in ["snapshot_generation", "superseded"] {
        old.as_object_mut().unwrap().remove(field);
    }
    old["remote"].as_object_mut().unwrap().remove("generation");
    std::fs::write(&path, old.to_string()).unwrap();
    let mut back = Journal::read(&path).unwrap().unwrap();
    back.complete(3);
    assert_eq!(
        (back.number(), back.remote.unwrap().number()),
        (SnapshotNumber::new(3, 5), SnapshotNumber::new(3, 5))
    );
}

#[test]
fn damage_is_an_error_not_a_default() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("journal.json");
    for text in ["", "{", r#"{"format":1}"#] {
        std::fs::write(&path, text).unwrap();
        assert!(Journal::read(&path).is_err(), "{text}");
    }
}
