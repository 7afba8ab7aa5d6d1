//! What the linker and the program must know about the interpreter that is linked.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let python = pyo3_build_config::get();
    check_for_libseccomp();

    // Libraries must find these two in the executable first: see src/clone/fork_protocol.rs.
    for symbol in ["__register_atfork", "__cxa_finalize"] {
        println!("cargo::rustc-link-arg=-Wl,--export-dynamic-symbol={symbol}");
    }

    // With the library's folder in its run path, the program starts under an empty
    // environment, without LD_LIBRARY_PATH.
    assert!(
        python.shared(),
        "this Python has no shared library; hint: name one that has with PYO3_PYTHON"
    );
    assert!(
        !python.is_free_threaded(),
        "this Python is free-threaded, and pyspawner needs the global interpreter lock: no other \
         thread of Python may run while it clones; hint: name an ordinary one with PYO3_PYTHON"
    );
    if let Some(folder) = python.lib_dir() {
        println!("cargo::rustc-link-arg=-Wl,-rpath,{folder}");
    }

    let version = python.version();
    println!(
        "cargo::rustc-env=PYSPAWNER_PYTHON_VERSION={}.{}",
        version.major, version.minor
    );
    let executable = python.executable().unwrap_or("python3");
    println!("cargo::rustc-env=PYSPAWNER_PYTHON={executable}");
}

/// Says at once what the linker would say minutes later.
fn check_for_libseccomp() {
    let compiler = std::env::var("CC").unwrap_or_else(|_| "cc".to_owned());
    let found = std::process::Command::new(&compiler)
        .arg("-print-file-name=libseccomp.so")
        .output();
    // A compiler that does not find the library repeats the name.
    if found.is_ok_and(|found| found.stdout == b"libseccomp.so\n") {
        println!(
            "cargo::error={compiler} finds no libseccomp.so; hint: install libseccomp-dev (Debian, Ubuntu), libseccomp-devel (Fedora)"
        );
    }
}
