//! Not a test: times of the phases, as medians, for several memory sizes. Run it alone on a quiet machine with
//! `cargo nextest run --release -p vmm --run-ignored only --no-capture measure`.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::world::{World, wait_past};

const ROUNDS: usize = 15;

#[derive(Default)]
struct Times(BTreeMap<String, Vec<Duration>>);

impl Times {
    fn note(&mut self, name: impl Into<String>, duration: Duration) {
        self.0.entry(name.into()).or_default().push(duration);
    }

    fn phases(&mut self, step: &str, phases: &[vmm::Phase]) {
        for phase in phases {
            self.note(format!("{step}: {}", phase.name), phase.duration);
        }
    }

    fn print(&mut self, memory_mib: u32) {
        for (name, times) in &mut self.0 {
            times.sort();
            let ms = |at: usize| times[at].as_secs_f64() * 1e3;
            println!(
                "{memory_mib:5} MiB  {name:24} median {:7.2} ms  max {:7.2} ms",
                ms(times.len() / 2),
                ms(times.len() - 1)
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn measure_qemu() -> Result<()> {
    for memory_mib in [512, 2048, 8192] {
        let world = World::new(crate::qemu().await, memory_mib)?;
        let base = world.bake().await?;
        let mut times = Times::default();
        let mut size = Vec::new();
        for _ in 0..ROUNDS {
            let spec = world.spec("alpha")?;
            let clock = Instant::now();
            let launched = world.restore(&spec, &base, None).await?;
            times.note("launch", clock.elapsed());
            times.phases("launch", &launched.phases);
            let machine = launched.machine;
            let clock = Instant::now();
            machine.resume().await?;
            wait_past(&*machine, base.turn + 1).await?;
            times.note("launch: first turn", clock.elapsed());
            wait_past(&*machine, base.turn + 10).await?;

            let clock = Instant::now();
            machine.pause().await?;
            times.note("suspend: pause", clock.elapsed());
            let (state, memory) = (world.path("state"), world.path("difference"));
            let stats = machine.save_difference(&state, &memory).await?;
            times.note("suspend", clock.elapsed());
            times.phases("suspend", &stats.phases);
            size.push(stats.bytes);
            let clock = Instant::now();
            machine.stop().await?;
            times.note("stop", clock.elapsed());

            let clock = Instant::now();
            let woken = world.restore(&spec, &base, Some((&state, &memory))).await?;
            times.note("wake", clock.elapsed());
            times.phases("wake", &woken.phases);
            woken.machine.stop().await?;

            let prepared = world.engine.prepare(&spec, &base.memory).await?;
            world.note(prepared.process());
            let clock = Instant::now();
            let woken = prepared.load(&state, Some(&memory)).await?;
            times.note("wake prepared", clock.elapsed());
            woken.machine.stop().await?;
        }
        times.print(memory_mib);
        size.sort_unstable();
        println!("{memory_mib:5} MiB  difference median {} bytes", size[size.len() / 2]);
    }
    Ok(())
}
