//! Generates Rust types, and with the feature `grpc` clients and servers, from `proto/`.

use std::path::{Path, PathBuf};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = Path::new(&std::env::var("CARGO_MANIFEST_DIR")?).join("../../proto");
    println!("cargo:rerun-if-changed={}", root.display());
    let mut files = Vec::new();
    collect(&root, &mut files)?;
    files.sort();
    let descriptors = protox::compile(&files, [&root])?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("descriptors.bin"), prost::Message::encode_to_vec(&descriptors))?;
    let grpc = std::env::var_os("CARGO_FEATURE_GRPC").is_some();
    tonic_prost_build::configure()
        .build_client(grpc)
        .build_server(grpc)
        // Bodies and secrets must not reach a log through `{:?}`.
        .skip_debug([
            "torpor.guest.v1.RepairIdentityRequest",
            "torpor.guest.v1.StartAppRequest",
            "torpor.guest.v1.CallHookRequest",
            "torpor.image.v1.ImageConfiguration",
            "torpor.image.v1.AppConfiguration",
            "torpor.hostagent.v1.BakeRequest",
            "torpor.hostagent.v1.MicrovmSpec",
            "torpor.microvm.v1.RunMicrovmRequest",
            "torpor.microvm.v1.CreateMicrovmAuthTokenResponse",
            "torpor.microvm.v1.CreateMicrovmShellAuthTokenResponse",
            "torpor.microvm.v1.CreateMicrovmInvitationResponse",
            "torpor.microvm.v1.RedeemMicrovmInvitationRequest",
            "torpor.microvm.v1.RedeemMicrovmInvitationResponse",
            "torpor.access.v1.StoredAccessKey",
            "torpor.access.v1.CreateAccessKeyResponse",
            "torpor.domain.v1.StoredDomain",
            "torpor.domain.v1.CreateDomainRequest",
            "torpor.domain.v1.UpdateDomainRequest",
        ])
        .compile_fds(descriptors)?;
    Ok(())
}

fn collect(directory: &Path, files: &mut Vec<PathBuf>) -> std::io::Result<()> {
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() && path.file_name().is_some_and(|name| name != "node_modules") {
            collect(&path, files)?;
        } else if path.extension().is_some_and(|extension| extension == "proto") {
            files.push(path);
        }
    }
    Ok(())
}
