//! Whether steps keep in memory what is foretold.

#![cfg(target_os = "linux")]

use std::process::Command;

use serde_json::Value;

/// What the bench program prints.
fn bench(args: &str) -> Value {
    let output = Command::new(env!("CARGO_BIN_EXE_bench"))
        .args(args.split_whitespace())
        .arg("--json")
        // As the stages run.
        .env("MIMALLOC_PURGE_DELAY", "-1")
        .output()
        .expect("the program runs");
    assert!(output.status.success(), "bench {args}: {output:?}");
    serde_json::from_slice(&output.stdout).expect("one JSON object")
}

/// What is counted of a step with so many images, and what a process of such steps keeps where the system tells it, in bytes.
fn step(network: &str, supernet: &str, n_threads: usize, n_images: usize) -> Option<[f64; 2]> {
    let size = format!("--channels 8 --layers 5 --batch {n_images} --image-size 28");
    let parts = bench(&format!("memory {supernet} {size}"));
    let parts = parts["fused"]["bytes"].as_object().expect("an object");
    let counted = parts.values().filter_map(Value::as_f64).sum();
    let run = format!("step --network {network} --threads {n_threads} --warmup 1 --steps 1");
    let kept = &bench(&format!("{run} {size}"))["peak_rss_bytes"];
    kept.as_f64().map(|kept| [counted, kept])
}

#[test]
fn more_images_take_as_much_more_as_is_foretold() {
    for (network, supernet) in [
        ("pc-darts", "--supernet 4"),
        ("darts", "--supernet 1"),
        ("derived", ""),
    ] {
        for n_threads in [1, 2] {
            // What the program takes is in both.
            let steps = [32, 128].map(|n_images| step(network, supernet, n_threads, n_images));
            let [Some(few), Some(many)] = steps else {
                return eprintln!("this system tells no peak: nothing was tested");
            };
            let ratio = (many[0] - few[0]) / (many[1] - few[1]);
            // A region of buffers more or less is up to a tenth of that.
            assert!(
                (0.8..1.25).contains(&ratio),
                "{network}, {n_threads} threads: counted and kept {few:?}, {many:?}, {ratio}"
            );
        }
    }
}
