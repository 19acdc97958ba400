//! Compiles every `.proto` file under `proto/` without an installed protoc, and writes the
//! descriptors that server reflection answers from; and the one under `otlp/`, by which spans are told.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::{env, fs};

use prost::Message;

/// Descriptors of all our files and of what they import.
const DESCRIPTORS: &str = "raftserve_descriptors.bin";

#[expect(
    clippy::disallowed_methods,
    reason = "cargo tells a build script its folder in this way only"
)]
fn main() -> Result<(), Box<dyn Error>> {
    let root = Path::new("proto");
    println!("cargo::rerun-if-changed=proto");
    println!("cargo::rerun-if-changed=build.rs");
    let mut files = Vec::new();
    collect(root, &mut files)?;
    files.sort();
    let descriptors = protox::compile(&files, [root])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join(DESCRIPTORS), descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        .bytes(".")
        .compile_fds(descriptors)?;
    // Spoken to others, and none of what reflection tells.
    println!("cargo::rerun-if-changed=otlp");
    let spans = protox::compile(["trace_service.proto"], ["otlp"])?;
    tonic_prost_build::configure().compile_fds(spans)?;
    Ok(())
}

/// Adds the `.proto` files below `folder`.
fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> std::io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, files)?;
        } else if path.extension().is_some_and(|ending| ending == "proto") {
            files.push(path);
        }
    }
    Ok(())
}
