//! The ring, and the collector on real pipes.

use std::io::Write as _;
use std::thread;

use nix::fcntl::OFlag;
use nix::unistd::pipe2;

use super::*;

fn sequences(batch: &Batch) -> Vec<u64> {
    batch.lines.iter().map(|line| line.sequence).collect()
}

fn add(logs: &Logs, texts: &[Option<&str>]) {
    let texts = texts.iter().map(|text| text.map(str::to_owned));
    logs.add(texts, LogSource::Stdout, SystemTime::UNIX_EPOCH);
}

#[test]
fn batches_are_runs_and_gaps_are_counted() {
    let logs = Logs::default();
    add(&logs, &[Some("0"), Some("1"), None, None, Some("4")]);
    let first = logs.ring().batch(0).unwrap();
    assert_eq!((sequences(&first), first.dropped, first.next), (vec![0, 1], 0, 2));
    let second = logs.ring().batch(first.next).unwrap();
    assert_eq!((sequences(&second), second.dropped, second.next), (vec![4], 2, 5));
    assert_eq!(logs.ring().batch(second.next), None);
    assert_eq!((logs.position(3), logs.position(u64::MAX)), (3, 5));
}

#[test]
fn the_ring_is_bounded_and_batches_too() {
    let logs = Logs::default();
    let line = "x".repeat(16 * 1024);
    for _ in 0..200 {
        add(&logs, &[Some(&line)]);
    }
    assert!(logs.ring().bytes <= RING_BYTES_MAX);
    let batch = logs.ring().batch(0).unwrap();
    assert!(batch.dropped > 100);
    assert!(batch.lines.len() <= 6);
    for _ in 0..1000 {
        add(&logs, &[Some("short")]);
    }
    assert_eq!(logs.ring().batch(300).unwrap().lines.len(), LOG_LINES_PER_EVENT_MAX);
}

fn run_collector(write: impl FnOnce(&mut File, &mut File)) -> Arc<Logs> {
    let logs = Arc::new(Logs::default());
    let (stdout, stdout_end) = pipe2(OFlag::O_CLOEXEC).unwrap();
    let (stderr, stderr_end) = pipe2(OFlag::O_CLOEXEC).unwrap();
    let collector = thread::spawn({
        let logs = Arc::clone(&logs);
        move || collect(&logs, stdout, stderr)
    });
    write(&mut File::from(stdout_end), &mut File::from(stderr_end));
    collector.join().unwrap();
    logs
}

#[test]
fn both_streams_are_collected() {
    let logs = run_collector(|stdout, stderr| {
        stdout.write_all(b"out\npar").unwrap();
        stderr.write_all(b"err \xff\n").unwrap();
        stdout.write_all(b"tial").unwrap();
    });
    let batch = logs.wait_batch(0, || false).unwrap();
    let mut lines: Vec<_> = batch.lines.iter().map(|line| (line.source(), line.text.as_str())).collect();
    lines.sort_by_key(|(source, _)| *source as i32);
    assert_eq!(
        lines,
        [(LogSource::Stdout, "out"), (LogSource::Stdout, "partial"), (LogSource::Stderr, "err \u{fffd}")]
    );
}

#[test]
fn a_flood_is_dropped_counted_and_does_not_block() {
    const LINES: u64 = 500_000;
    let started = Instant::now();
    let logs = run_collector(|stdout, _| {
        let line = b"0123456789012345678901234567890123456789012345678901234567890123456\n";
        let block = line.repeat(100);
        for _ in 0..LINES / 100 {
            stdout.write_all(&block).unwrap();
        }
    });
    assert!(started.elapsed().as_secs() < 20);
    let ring = logs.ring();
    assert_eq!(ring.next_sequence, LINES);
    assert!(ring.bytes <= RING_BYTES_MAX);
    assert!((ring.lines.len() as u64) < LINES);
}

#[test]
fn a_waiter_can_be_stopped() {
    let logs = Arc::new(Logs::default());
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let waiter = thread::spawn({
        let (logs, stop) = (Arc::clone(&logs), Arc::clone(&stop));
        move || logs.wait_batch(0, || stop.load(std::sync::atomic::Ordering::Acquire))
    });
    stop.store(true, std::sync::atomic::Ordering::Release);
    logs.wake();
    assert_eq!(waiter.join().unwrap(), None);
}
