//! What every engine must do, as tests. Each case is written once, against the traits; an engine joins with one line at the
//! end of this file. Needs root, a guest kernel (see `guest`), busybox and cpio.

mod cases;
mod guest;
mod measure;
mod world;

use std::sync::Arc;

use vmm::Engine;
use vmm::qemu::{Qemu, QemuSettings};

/// One test per case, for the engine that `$engine` makes.
macro_rules! conformance {
    ($name:ident, $engine:expr, $($case:ident),+ $(,)?) => {
        mod $name {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $case() -> anyhow::Result<()> {
                    let engine: std::sync::Arc<dyn vmm::Engine> = $engine;
                    crate::cases::$case(engine).await
                }
            )+
        }
    };
}

macro_rules! every_case {
    ($name:ident, $engine:expr) => {
        conformance!(
            $name,
            $engine,
            a_cold_boot_says_hello,
            clones_of_one_base_share_nothing,
            a_wake_goes_on_where_the_suspend_stopped,
            a_page_that_became_zero_stays_zero,
            the_difference_does_not_grow_with_the_memory,
            a_full_disk_leaves_the_machine_whole,
            a_guest_out_of_space_goes_on_when_there_is_some,
            only_a_paused_machine_is_saved,
            a_corrupt_snapshot_is_refused,
            exit_reasons,
            a_dropped_machine_is_adopted,
            the_end_of_a_guest_nobody_watched_is_known,
            a_prepared_process_loads_later,
            an_unused_prepared_process_goes,
            one_disk_belongs_to_one_machine,
            a_machine_lives_in_its_network_namespace,
            an_abandoned_start_leaves_no_process,
        );
    };
}

async fn qemu() -> Arc<dyn Engine> {
    Arc::new(Qemu::new(QemuSettings::default()).await.expect("QEMU is installed"))
}

every_case!(qemu, crate::qemu().await);
