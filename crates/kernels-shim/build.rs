//! Compiles every `.cu` file of `kernels` as C++, for floats and for doubles, with a table of its kernels.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{env, fs, io};

/// What stands in front of a kernel's name.
const KERNEL: &str = "extern \"C\" __global__ void ";

fn main() -> io::Result<()> {
    println!("cargo::rustc-cfg=shim");
    // A feature of `kernels` that its sources ask for.
    println!("cargo::rustc-check-cfg=cfg(feature, values(\"cuda\"))");
    let (ops, prelude) = (
        Path::new("../kernels/src"),
        "../kernels/src/gpu/prelude.cuh",
    );
    for file in ["shim.h", "shim.cpp", prelude] {
        println!("cargo::rerun-if-changed={file}");
    }
    println!("cargo::rerun-if-changed=../kernels/src");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
    let root = fs::canonicalize(".")?;
    let prelude = fs::canonicalize(prelude)?;

    let mut build = cc::Build::new();
    build
        .cpp(true)
        .std("c++17")
        .opt_level(2)
        .include(&root)
        // CUDA code says `#pragma unroll`, and kernels take arguments that some variants do not need.
        .flag_if_supported("-Wno-unknown-pragmas")
        .flag_if_supported("-Wno-unused-function")
        .flag_if_supported("-Wno-unused-parameter")
        // What no device does either: a product and a sum are rounded apart.
        .flag_if_supported("-ffp-contract=off")
        .file("shim.cpp");
    let mut tables = String::new();
    let mut entries: Vec<PathBuf> = fs::read_dir(ops)?
        .map(|entry| Ok(entry?.path()))
        .collect::<io::Result<_>>()?;
    entries.sort();
    for dir in entries {
        let op = dir
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let source = dir.join(format!("{op}.cu"));
        if !source.is_file() {
            continue;
        }
        let text = fs::read_to_string(&source)?;
        let kernels = kernels(&text);
        assert!(!kernels.is_empty(), "no kernel in {}", source.display());
        let source = fs::canonicalize(source)?;
        // Names of C would be the same in every namespace.
        let cpp = text.replace(KERNEL, "__global__ void ");
        for real in ["float", "double"] {
            let table = format!("{op}_{real}");
            let mut text = format!(
                "#define REAL {real}\n#include \"shim.h\"\nnamespace {table} {{\n#include \"{}\"\n#line 1 \"{}\"\n{cpp}\n}}\n",
                prelude.display(),
                source.display()
            );
            let _ = writeln!(text, "extern const Kernel {table}_kernels[] = {{");
            for kernel in &kernels {
                let _ = writeln!(
                    text,
                    "    {{\"{kernel}\", Call<decltype(&{table}::{kernel})>::n_args, call<&{table}::{kernel}>}},"
                );
            }
            let _ = writeln!(text, "    {{nullptr, 0, nullptr}},\n}};");
            let file = out.join(format!("{table}.cpp"));
            fs::write(&file, text)?;
            build.file(file);
            let is_double = u8::from(real == "double");
            let _ = writeln!(tables, "TABLE({op}, {is_double}, {table}_kernels)");
        }
    }
    fs::write(out.join("tables.inc"), tables)?;
    build.include(&out).compile("kernels_shim");
    Ok(())
}

/// The names of the kernels.
fn kernels(source: &str) -> Vec<String> {
    source
        .split(KERNEL)
        .skip(1)
        .filter_map(|rest| Some(rest.split_once('(')?.0.to_owned()))
        .collect()
}
