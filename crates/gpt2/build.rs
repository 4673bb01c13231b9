//! Links libtorch_cpu and c10 only and records where they lie (rpath), so that the binary runs as it is.
//! libtorch_cuda is opened at run time, when a CUDA device is asked for.

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
}
