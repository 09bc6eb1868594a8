use super::*;

fn folder(version_header: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir_all(dir.path().join("include/torch/headeronly")).unwrap();
    fs::create_dir(dir.path().join("lib")).unwrap();
    fs::write(dir.path().join("include/torch/headeronly/version.h"), version_header).unwrap();
    dir
}

const HEADER: &str = "#define TORCH_VERSION_MAJOR 2\n#define TORCH_VERSION_MINOR 11\n#define TORCH_VERSION_PATCH 0\n#define TORCH_VERSION x\n";

#[test]
fn the_version_is_read_from_the_file_or_the_header() {
    let dir = folder(HEADER);
    assert_eq!(version_of(dir.path()).as_deref(), Some("2.11.0"));
    check(dir.path(), "LIBTORCH").unwrap();
    fs::write(dir.path().join("build-version"), "2.11.0+cu130\n").unwrap();
    check(dir.path(), "LIBTORCH").unwrap();
}

#[test]
fn another_version_and_another_folder_are_refused_with_both_named() {
    let dir = folder(&HEADER.replace("11", "8"));
    let error = check(dir.path(), "LIBTORCH").unwrap_err().to_string();
    assert!(error.contains("LIBTORCH") && error.contains("2.8.0") && error.contains("2.11.0"), "{error}");
    let unknown = folder("");
    let error = check(unknown.path(), "LIBTORCH").unwrap_err().to_string();
    assert!(error.contains("does not say its version"), "{error}");
    let empty = tempfile::tempdir().unwrap();
    let error = check(empty.path(), "LIBTORCH").unwrap_err().to_string();
    assert!(error.contains("not a libtorch folder"), "{error}");
}

#[test]
fn the_cpu_view_takes_no_cuda_library() {
    let place = |name| cpu_place(name).map(|path| path.display().to_string());
    assert_eq!(place("torch/include/ATen/ATen.h").as_deref(), Some("torch/include/ATen/ATen.h"));
    assert_eq!(place("torch/lib/libtorch_cpu.so").as_deref(), Some("torch/lib/libtorch_cpu.so"));
    assert_eq!(place("nvidia/cu13/lib/libcudart.so.13").as_deref(), Some("torch/lib/libcudart.so.13"));
    for name in
        ["torch/lib/libtorch_cuda.so", "torch/lib/libtorch.so", "torch/__init__.py", "nvidia/cu13/lib/libcheckpoint.so"]
    {
        assert_eq!(place(name), None, "{name}");
    }
}

#[test]
fn the_cuda_view_takes_libraries_and_headers_only() {
    for name in ["torch/lib/libtorch_cuda.so", "nvidia/nccl/include/nccl.h", "nvidia/cudnn/lib/libcudnn.so.9"] {
        assert_eq!(cuda_place(name), Some(name.into()), "{name}");
    }
    for name in ["torch/lib/libtorch_python.so", "torch/nn/modules/linear.py", "nvidia/cu13/lib/libcudart_static.a"] {
        assert_eq!(cuda_place(name), None, "{name}");
    }
}

#[test]
fn a_view_counts_only_when_it_was_finished() {
    let dir = tempfile::tempdir().unwrap();
    let paths = Paths { root: dir.path().join("repo"), cache: dir.path().join("cache") };
    let home = View::Cuda.home(&paths);
    fs::create_dir_all(home.join("torch")).unwrap();
    assert!(find(&paths, View::Cuda).unwrap().is_none());
    fs::write(home.join("done"), "").unwrap();
    assert_eq!(find(&paths, View::Cuda).unwrap().unwrap().folder, home.join("torch"));
    assert_ne!(View::Cpu.home(&paths), home);
}
