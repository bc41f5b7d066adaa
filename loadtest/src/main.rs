//! The `loadtest` program; all of it is in the library.

fn main() -> anyhow::Result<()> {
    loadtest::main()
}
