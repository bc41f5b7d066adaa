//! `torpor-host-agent`.

fn main() -> std::process::ExitCode {
    host_agent::main()
}
