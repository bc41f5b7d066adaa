//! `torpor-scheduler`: one replica of the scheduler.

fn main() -> std::process::ExitCode {
    scheduler::app::main()
}
