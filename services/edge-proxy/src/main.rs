//! `torpor-edge-proxy --config FILE [--print-config]`

/// A request makes and drops some hundred small pieces; the C library's allocator takes a tenth of its time for them.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    edge_proxy::app::main()
}
