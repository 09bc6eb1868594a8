//! Compiles `/proto` without protoc and keeps the descriptor set for gRPC reflection.

use std::path::PathBuf;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = PathBuf::from(std::env::var("CARGO_MANIFEST_DIR")?).join("../../proto");
    let files = ["common", "job", "worker", "checkpoint"].map(|name| root.join(format!("pleach/v1/{name}.proto")));
    println!("cargo:rerun-if-changed={}", root.display());
    let descriptors = protox::compile(files, [&root])?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?).join("pleach.bin");
    tonic_prost_build::configure().file_descriptor_set_path(&out).compile_fds(descriptors.clone())?;
    std::fs::write(&out, prost::Message::encode_to_vec(&descriptors))?;
    Ok(())
}
