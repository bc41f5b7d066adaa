//! The `torpor` program; all of it is in the library.

fn main() -> std::process::ExitCode {
    torpor::main()
}
