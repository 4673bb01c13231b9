//! Links libtorch_cpu and c10 only and records where they lie (rpath), so that the binary runs as it is.
//! libtorch_cuda is opened at run time, when a CUDA device is asked for. Compiles the few calls of c10d that ranks
//! need.

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
    compile_c10d(&Path::new(&libtorch).join("include"));
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
    let abi = std::env::var("LIBTORCH_CXX11_ABI").unwrap_or_else(|_| "1".into());
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .define("_GLIBCXX_USE_CXX11_ABI", abi.as_str())
        .include("c10d/include")
        .flag("-isystem")
        .flag(include.display().to_string())
        .flag("-isystem")
        .flag(include.join("torch/csrc/api/include").display().to_string())
        .file("c10d/shim.cc")
        .compile("ckptd_c10d");
}
