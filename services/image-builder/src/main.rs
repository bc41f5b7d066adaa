//! `torpor-image-builder --config FILE`.

fn main() -> std::process::ExitCode {
    image_builder::app::main()
}
