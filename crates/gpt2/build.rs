//! Links libtorch_cpu and c10 only and records where they lie (rpath), so that the binary runs as it is.
//! libtorch_cuda is opened at run time, when a CUDA device is asked for. Compiles the few calls of c10d that ranks
//! need, and kernels of our own over libtorch's tensors.

use std::path::Path;

fn main() {
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    let Ok(libtorch) = std::env::var("LIBTORCH") else { return };
    let library = Path::new(&libtorch).join("lib/libtorch_cpu.so");
    println!("cargo:rerun-if-changed={}", library.display());
    // The folder holds links into the wheel; $ORIGIN in libtorch's own rpath needs the wheel's real folder.
    if let Some(folder) = std::fs::canonicalize(&library).ok().as_deref().and_then(Path::parent) {
        println!("cargo:rustc-link-arg=-Wl,-rpath,{}", folder.display());
        println!("cargo:rustc-env=CKPTD_LIBTORCH_LIB={}", folder.display());
    }
    if let Ok(version) = std::fs::read_to_string(Path::new(&libtorch).join("build-version")) {
        println!("cargo:rustc-env=CKPTD_LIBTORCH_VERSION={}", version.trim());
    }
    let include = Path::new(&libtorch).join("include");
    compile_c10d(&include);
    compile_kernels(&include);
    println!("cargo:rustc-link-search=native={}", Path::new(&libtorch).join("lib").display());
    println!("cargo:rustc-link-lib=gomp");
}

/// Kernels that libtorch's threads share, by OpenMP as libtorch was built with it.
fn compile_kernels(include: &Path) {
    println!("cargo:rerun-if-changed=kernels");
    // The same bits whether or not a processor multiplies and adds at once.
    over_libtorch(include)
        .flag("-fopenmp")
        .flag("-ffp-contract=off")
        .files(["kernels/guard.cc", "kernels/generator.cc", "kernels/layer_norm.cc"])
        .compile("ckptd_kernels");
}

/// A compiler that finds libtorch's headers and speaks its ABI.
fn over_libtorch(include: &Path) -> cc::Build {
    let abi = std::env::var("LIBTORCH_CXX11_ABI").unwrap_or_else(|_| "1".into());
    let mut build = cc::Build::new();
    build
        .cpp(true)
        .std("c++17")
        .define("_GLIBCXX_USE_CXX11_ABI", abi.as_str())
        .flag("-isystem")
        .flag(include.display().to_string())
        .flag("-isystem")
        .flag(include.join("torch/csrc/api/include").display().to_string());
    build
}

/// c10d over gloo. The wheel has no headers of gloo: declarations of our own stand in for them.
fn compile_c10d(include: &Path) {
    println!("cargo:rerun-if-changed=c10d");
    let version = std::fs::read_to_string(include.join("torch/headeronly/version.h"));
    let number = |name: &str| {
        let text = version.as_deref().unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix(&format!("#define TORCH_VERSION_{name} ")));
        line.unwrap_or("0").trim().to_owned()
    };
    println!("cargo:rustc-env=CKPTD_C10D_HEADERS={}.{}.{}", number("MAJOR"), number("MINOR"), number("PATCH"));
    over_libtorch(include).include("c10d/include").include("kernels").file("c10d/shim.cc").compile("ckptd_c10d");
}
