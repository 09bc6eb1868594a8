//! Builds the C++ shim over c10d and lets binaries and tests find libtorch without environment variables.

use std::env;
use std::path::PathBuf;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=shim");
    for name in ["LIBTORCH", "LIBTORCH_INCLUDE", "LIBTORCH_CXX11_ABI"] {
        println!("cargo:rerun-if-env-changed={name}");
    }
    // torch-sys says where the libraries are, whichever way it found them.
    let Some(lib) = env::var_os("DEP_TCH_LIBTORCH_LIB").map(PathBuf::from) else {
        println!("cargo:warning=torch-sys names no libtorch; run `cargo xtask setup`");
        return;
    };
    println!("cargo:rustc-link-arg=-Wl,-rpath={}", lib.display());
    let root = env::var_os("LIBTORCH_INCLUDE")
        .map(PathBuf::from)
        .or_else(|| lib.parent().map(PathBuf::from))
        .unwrap_or_default();
    let abi = env::var("LIBTORCH_CXX11_ABI").unwrap_or_else(|_| "1".to_owned());

    let mut build = cc::Build::new();
    build
        .cpp(true)
        .std("c++17")
        .warnings(false)
        .define("_GLIBCXX_USE_CXX11_ABI", abi.as_str())
        .define("USE_C10D_GLOO", None)
        // Ours comes first: the declarations of gloo that libtorch does not ship.
        .include("shim")
        .include(root.join("include"))
        .include(root.join("include/torch/csrc/api/include"))
        .file("shim/shim.cpp");
    if env::var_os("CARGO_FEATURE_CUDA").is_some() {
        // The folders of the nvidia packages: inside the CUDA view, or beside `torch` where Python installed them.
        for base in [root.join("nvidia"), root.join("../nvidia")] {
            for folder in ["cu13/include", "cu13/include/cccl", "nccl/include"] {
                let folder = base.join(folder);
                if folder.is_dir() {
                    build.include(folder);
                }
            }
        }
        build.define("USE_C10D_NCCL", None).file("shim/nccl.cpp");
    }
    build.compile("pleach_comm_shim");
    if env::var_os("CARGO_FEATURE_CUDA").is_some() {
        println!("cargo:rustc-link-lib=dylib=c10_cuda");
        println!("cargo:rustc-link-lib=dylib=torch_cuda");
    }
    println!("cargo:rustc-link-lib=dylib=torch_cpu");
    println!("cargo:rustc-link-lib=dylib=c10");
}
