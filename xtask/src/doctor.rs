//! `doctor`: what this machine has, what will work, what will not and why.

use std::process::Command;

use anyhow::Result;
use measure::{Machine, gpu};

use crate::cuda::{Nvrtc, loads};

/// Prints what was found, and what follows from it.
pub(crate) fn run() -> Result<()> {
    let machine = Machine::detect();
    println!("This machine");
    for (name, value) in machine.fields() {
        line(name, &value);
    }
    line(
        "threads for this process",
        &std::thread::available_parallelism()
            .map_or(1, usize::from)
            .to_string(),
    );
    line("rustc", &version("rustc", "--version"));

    println!("CUDA");
    let driver = gpu::driver();
    match &driver {
        Ok(gpu::Driver {
            cuda_version: (major, minor),
            devices,
        }) => {
            line("driver", &format!("serves CUDA {major}.{minor}"));
            for (index, gpu) in devices.iter().enumerate() {
                let gib = gpu.memory_bytes as f64 / f64::from(1 << 30);
                line(&format!("cuda:{index}"), &format!("{gpu}, {gib:.1} GiB"));
            }
        }
        Err(error) => line("driver", &error.to_string()),
    }
    line("nvcc", &version("nvcc", "--version"));
    let nvrtc = Nvrtc::open(None).map(|nvrtc| nvrtc.version);
    line(
        "NVRTC",
        &nvrtc.map_or("not found by the loader".to_owned(), |(major, minor)| {
            format!("{major}.{minor}")
        }),
    );
    let libraries = [
        (
            "cuBLAS",
            ["libcublas.so.13", "libcublas.so.12", "libcublas.so"],
        ),
        (
            "cuRAND",
            ["libcurand.so.10", "libcurand.so", "libcurand.so.11"],
        ),
        ("NVML", ["libnvidia-ml.so.1", "libnvidia-ml.so", "nvml.dll"]),
        ("NCCL", ["libnccl.so.2", "libnccl.so", "libnccl.so.3"]),
    ];
    let found = libraries.map(|(name, names)| {
        let found = loads(&names);
        line(
            name,
            if found {
                "found"
            } else {
                "not found by the loader"
            },
        );
        found
    });
    println!("Others");
    let onnx = loads(&["libonnxruntime.so", "libonnxruntime.so.1"]);
    line(
        "ONNX Runtime",
        if onnx {
            "found"
        } else {
            "not found by the loader"
        },
    );
    line("python3", &version("python3", "--version"));

    println!("What follows");
    let verdict = |what: &str, missing: Vec<&str>| {
        let text = match missing.as_slice() {
            [] => "will work".to_owned(),
            missing => format!("will not: {}", missing.join("; ")),
        };
        line(what, &text);
    };
    verdict("--device cpu", Vec::new());
    let missing = [
        (
            driver
                .as_ref()
                .is_ok_and(|driver| !driver.devices.is_empty()),
            "no CUDA device",
        ),
        (has("nvcc"), "no nvcc to build with"),
        (nvrtc.is_some(), "no NVRTC"),
        (found[0], "no cuBLAS"),
        (found[1], "no cuRAND"),
        (found[3], "no NCCL"),
    ];
    let missing = missing
        .into_iter()
        .filter_map(|(is_there, what)| (!is_there).then_some(what));
    verdict("--device cuda", missing.collect());
    if let Some(governor) = machine
        .governor
        .filter(|governor| governor != "performance")
    {
        line(
            "latencies",
            &format!(
                "the clock is governed by `{governor}`: timings are steadier under `performance`"
            ),
        );
    }
    Ok(())
}

fn line(name: &str, value: &str) {
    println!("  {name:<24} {value}");
}

fn has(program: &str) -> bool {
    Command::new(program)
        .arg("--version")
        .output()
        .is_ok_and(|output| output.status.success())
}

/// The last line that a program says of its version (nvcc's first ones are its name).
fn version(program: &str, flag: &str) -> String {
    let output = Command::new(program).arg(flag).output();
    match output {
        Ok(output) if output.status.success() => {
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            text.lines().last().unwrap_or_default().trim().to_owned()
        }
        _ => "not found".to_owned(),
    }
}
