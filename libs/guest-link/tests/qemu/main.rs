//! The real guest-agent in a real microVM: boots the guest bundle in QEMU, starts an app, takes a snapshot,
//! and restores clones of it. Needs root, QEMU, busybox-static, and once the kernel package.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use api::guest::v1::{
    AwaitReadyRequest, CallHookRequest, HookKind, ReadyOutcome, RepairIdentityRequest, StartAppRequest,
};
use guest_link::{Event, Link, RelayAnswer};
use tokio::sync::mpsc;

mod machine;
mod network;

use machine::{Fixture, Machine, Memory};

/// Under a software CPU on a busy machine everything takes its time.
const TIMEOUT: prost_types::Duration = prost_types::Duration { seconds: 60, nanos: 0 };

fn repair(name: &str, seed: u8, restore_count: u64) -> RepairIdentityRequest {
    RepairIdentityRequest {
        entropy: vec![seed; 256],
        wall_clock: Some(prost_types::Timestamp { seconds: 2_000_000_000 + i64::from(seed), nanos: 0 }),
        host_name: name.to_owned(),
        machine_id: format!("{seed:032x}"),
        microvm_id: format!("microvm-{name}"),
        restore_count,
        credentials: b"secret".to_vec(),
        connections_lost: false,
    }
}

/// What the guest says of itself, by way of a CGI of its web server.
fn facts(machine: &Machine) -> Result<Vec<String>> {
    let answer = machine.network.http_get(8080, "/cgi-bin/facts")?;
    let body = answer.split_once("\r\n\r\n").or_else(|| answer.split_once("\n\n")).context("no body")?.1;
    let facts: Vec<String> = body.lines().map(str::to_owned).collect();
    ensure!(facts.len() == 5, "facts: {answer:?}");
    Ok(facts)
}

async fn bake(fixture: &Fixture) -> Result<()> {
    let machine = Machine::boot(fixture, "bake", Memory::Shared)?;
    let booted = Instant::now();
    let (link, mut events) = Link::start(machine.connect_when_up(1024).await?);
    println!("agent answers after {:?}", booted.elapsed());
    let missing = StartAppRequest { argv: vec!["no-such-program".to_owned()], ..StartAppRequest::default() };
    let error = link.start_app(missing).await.unwrap_err();
    ensure!(error.to_string().contains("ENOENT"), "{error}");
    let started = link
        .start_app(StartAppRequest {
            argv: vec!["app".to_owned()],
            environment: vec!["GREETING=hello from the app".to_owned()],
            working_directory: "/srv/made/for/it".to_owned(),
            user: "web".to_owned(),
            name_servers: vec!["192.0.2.53".to_owned()],
            ..StartAppRequest::default()
        })
        .await?;
    ensure!(started.pid > 1);
    let ready = link
        .await_ready(AwaitReadyRequest { hook_port: 0, timeout: Some(TIMEOUT), listen_ports: vec![8080] })
        .await?;
    ensure!(ready.outcome() == ReadyOutcome::Ready && ready.listening_port == 8080, "{ready:?}");
    println!("app ready after {:?}", booted.elapsed());

    link.stream_logs(0).await?;
    let mut output = Vec::new();
    while !output.iter().any(|line: &String| line.starts_with("done")) {
        match tokio::time::timeout(Duration::from_secs(30), events.recv()).await?.context("events ended")? {
            Event::Logs { lines, dropped: 0 } => output.extend(lines.into_iter().map(|line| line.text)),
            other => anyhow::bail!("{other:?}\n{output:#?}"),
        }
    }
    check_output(&output)?;
    ensure!(link.stats().await?.processes > 2);
    ensure!(facts(&machine)?.len() == 5);
    let preparing = Instant::now();
    link.prepare_snapshot(true).await?;
    println!("prepared in {:?}", preparing.elapsed());
    machine.snapshot()
}

/// What the app saw of its surroundings.
fn check_output(output: &[String]) -> Result<()> {
    for expected in [
        "greeting hello from the app",
        "uid=1000(web) gid=1000(web) groups=50(staff)",
        "pid 1",
        "directory /srv/made/for/it",
        "home /home/web",
        "bounding CapBnd:\t00000000a80425fb",
        "effective CapEff:\t0000000000000000",
        "no disk in sight",
        "nameserver 192.0.2.53",
        "can open stdout again",
    ] {
        ensure!(output.iter().any(|line| line == expected), "missing {expected:?} in {output:#?}");
    }
    Ok(())
}

async fn clone(fixture: &Fixture, name: &str, seed: u8) -> Result<Vec<String>> {
    let machine = Machine::restore(fixture, name)?;
    let resumed = Instant::now();
    let stream = machine.connect(1024).await?;
    let connected = resumed.elapsed();
    let (link, mut events) = Link::start(stream);
    let first = link.repair_identity(repair(name, seed, 1)).await?;
    println!("{name}: connected {connected:?}, repaired {:?} after the resume", resumed.elapsed());
    ensure!(first.repaired);
    let again = link.repair_identity(repair("other", 99, 1)).await?;
    ensure!(!again.repaired, "a repeat changed the guest");
    let error =
        link.repair_identity(RepairIdentityRequest { entropy: vec![1; 8], ..repair(name, 1, 2) }).await;
    ensure!(error.unwrap_err().to_string().contains("entropy"));
    let facts = facts(&machine)?;
    println!("{name}: first answer {:?} after the resume", resumed.elapsed());

    let hook = CallHookRequest {
        kind: HookKind::Run.into(),
        port: 8080,
        timeout: Some(TIMEOUT),
        body: "{}".to_owned(),
    };
    let calling = Instant::now();
    let answered = link.call_hook(hook.clone()).await?;
    println!("{name}: hook {} in {:?}", answered.http_status, calling.elapsed());
    ensure!(answered.http_status != 0 && !answered.timed_out, "{answered:?}");
    let refused = link.call_hook(CallHookRequest { port: 1, ..hook }).await?;
    ensure!(refused.error == "connection refused", "{refused:?}");
    ensure!(machine.relayed(8081).await?.0 == Some(RelayAnswer::Connected));
    ensure!(machine.relayed(1).await?.0 == Some(RelayAnswer::Refused));

    // A newer connection replaces the older.
    let (newer, mut newer_events) = Link::start(machine.connect(1024).await?);
    newer.stats().await?;
    let last = async { while !matches!(events.recv().await, Some(Event::Closed { .. }) | None) {} };
    tokio::time::timeout(Duration::from_secs(10), last).await?;
    ensure!(link.is_closed());
    machine.network.http_get(8080, "/cgi-bin/stop").ok();
    let exited = async {
        loop {
            match newer_events.recv().await {
                Some(Event::AppExited(exited)) => return Ok(exited),
                Some(Event::Closed { reason }) => anyhow::bail!(reason),
                Some(Event::Logs { .. } | Event::KeepAwake(_)) => {}
                None => anyhow::bail!("events ended"),
            }
        }
    };
    let exited = tokio::time::timeout(Duration::from_secs(30), exited).await??;
    ensure!((exited.exit_code, exited.signal) == (7, 0), "{exited:?}");
    // It is told again to whoever comes later.
    let (later, mut later_events) = Link::start(machine.connect(1024).await?);
    later.stats().await?;
    ensure!(later_events.recv().await == Some(Event::AppExited(exited)));
    Ok(facts)
}

#[tokio::test]
async fn clones_of_one_snapshot_differ() -> Result<()> {
    let fixture = Fixture::new()?;
    bake(&fixture).await?;
    let first = clone(&fixture, "one", 1).await?;
    let second = clone(&fixture, "two", 2).await?;
    println!("{first:#?}\n{second:#?}");
    let [uuid, machine_id, host_name, clock, id] = [0, 1, 2, 3, 4];
    ensure!(first[uuid] != second[uuid], "two clones drew the same random uuid");
    for (facts, name, seed) in [(&first, "one", 1), (&second, "two", 2)] {
        ensure!(facts[machine_id] == format!("{seed:032x}"));
        ensure!(facts[host_name] == name);
        ensure!(facts[id] == format!("microvm-{name}"));
        let seconds: i64 = facts[clock].parse()?;
        ensure!((2_000_000_000..2_000_000_100).contains(&seconds), "clock {seconds}");
    }
    Ok(())
}

/// Reads output until a line comes, and counts what was dropped.
async fn until_line(events: &mut mpsc::Receiver<Event>, wanted: &str) -> Result<(Vec<String>, u64)> {
    let (mut output, mut lost) = (Vec::new(), 0);
    let reading = async {
        loop {
            match events.recv().await.context("events ended")? {
                Event::Logs { lines, dropped } => {
                    lost += dropped;
                    output.extend(lines.into_iter().map(|line| line.text));
                    if output.iter().any(|line| line == wanted) {
                        return Ok(());
                    }
                }
                other => anyhow::bail!("{other:?}"),
            }
        }
    };
    let read = tokio::time::timeout(Duration::from_secs(60), reading).await;
    read.with_context(|| format!("no line {wanted:?} in {output:#?}"))??;
    Ok((output, lost))
}

#[tokio::test]
async fn a_flood_is_survived_and_stale_connections_are_aborted() -> Result<()> {
    let fixture = Fixture::new()?;
    let machine = Machine::boot(&fixture, "capable", Memory::Shared)?;
    let (link, mut events) = Link::start(machine.connect_when_up(1024).await?);
    let outside = machine.network.listen(9000)?;
    let request = StartAppRequest {
        argv: vec!["capable-app".to_owned()],
        all_capabilities: true,
        ..StartAppRequest::default()
    };
    link.start_app(request).await?;
    link.stream_logs(0).await?;
    let connection = outside.accept()?;
    let (output, lost) = until_line(&mut events, "flood over").await?;
    println!("{} lines, {lost} lost", output.len());
    ensure!(lost > 0 && output.len() as u64 + lost >= 500_000, "{} lines, {lost} lost", output.len());
    for expected in ["a disk in sight", "mounted", "a cgroup of its own", "tun"] {
        ensure!(output.iter().any(|line| line == expected), "missing {expected:?}");
    }
    let suspending = Instant::now();
    link.prepare_snapshot(false).await?;
    println!("prepared for a suspend in {:?}", suspending.elapsed());
    machine.snapshot()?;
    drop(connection);

    let machine = Machine::restore(&fixture, "woken")?;
    let (link, mut events) = Link::start(machine.connect(1024).await?);
    link.repair_identity(repair("woken", 3, 1)).await?;
    link.stream_logs(u64::MAX).await?;
    let (output, _) = until_line(&mut events, "connection ended").await?;
    println!("{output:?}");
    Ok(())
}

/// What the repair adds to a wake, up to the app's first byte. Not a check; run it with `--ignored`.
#[tokio::test]
#[ignore = "a measurement"]
async fn wake_path_timings() -> Result<()> {
    const ROUNDS: usize = 8;
    let fixture = Fixture::new()?;
    bake(&fixture).await?;
    println!("engine CPU time / time since the resume, in ms");
    for round in 0..ROUNDS {
        let machine = Machine::restore(&fixture, &format!("bare{round}"))?;
        let watch = Watch::start(&machine)?;
        machine.network.http_get(8080, "/index.html")?;
        let bare = watch.read()?;
        drop(machine);
        let name = format!("full{round}");
        let machine = Machine::restore(&fixture, &name)?;
        let watch = Watch::start(&machine)?;
        let stream = machine.connect(1024).await?;
        let connected = watch.read()?;
        let (link, _events) = Link::start(stream);
        let mut request = repair(&name, 1, 1);
        request.credentials.clear();
        link.repair_identity(request).await?;
        let repaired = watch.read()?;
        machine.network.http_get(8080, "/index.html")?;
        let full = watch.read()?;
        println!("bare {bare}  connected {connected} repaired {repaired} full {full}");
    }
    Ok(())
}

struct Watch<'a> {
    machine: &'a Machine,
    started: Instant,
    cpu: Duration,
}

impl<'a> Watch<'a> {
    fn start(machine: &'a Machine) -> Result<Self> {
        Ok(Self { machine, started: Instant::now(), cpu: machine.cpu_time()? })
    }

    fn read(&self) -> Result<String> {
        let cpu = self.machine.cpu_time()? - self.cpu;
        Ok(format!("{:5.1}/{:5.1}", cpu.as_secs_f64() * 1e3, self.started.elapsed().as_secs_f64() * 1e3))
    }
}
