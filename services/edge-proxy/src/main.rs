//! `torpor-edge-proxy --config FILE [--print-config]`

fn main() -> std::process::ExitCode {
    edge_proxy::app::main()
}
