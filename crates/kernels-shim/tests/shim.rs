//! The suite of `kernels` on the CUDA kernels, compiled for the processor; and both sides against each other.

// The cases are there twice: once for each of the two crates that are compared.
#![expect(clippy::duplicate_mod)]

extern crate kernels_shim as kernels;

#[path = "../../kernels/tests/suite/mod.rs"]
mod suite;

suite::on_device!(candle_core::Device::Cpu);

/// The kernels against the CPU's fast paths, forward and backward, at every size of the suite.
#[test]
fn kernels_and_fast_paths_agree() -> candle_core::Result<()> {
    use suite::cases;

    let (on_shim, on_cpu) = (cases::all(), fast_paths::cases::all());
    assert_eq!(on_shim.len(), on_cpu.len());
    for (kernel, fast) in on_shim.iter().zip(&on_cpu) {
        let arguments: Vec<candle_core::Tensor> = kernel
            .arguments()
            .iter()
            .zip(&kernel.shapes)
            .map(|(values, shape)| {
                let device = &candle_core::Device::Cpu;
                cases::tensor(values, shape, candle_core::DType::F32, device)
            })
            .collect::<candle_core::Result<_>>()?;
        let (actual, expected) = (kernel.run(&arguments)?, fast.run(&arguments)?);
        // Both may be off by one tolerance, in opposite directions.
        let tolerance = 2.0 * cases::TOLERANCES.f32;
        cases::assert_close(&kernel.label, &actual.y, &expected.y, tolerance);
        for (actual, expected) in actual.grads.iter().zip(&expected.grads) {
            cases::assert_close(&kernel.label, actual, expected, tolerance);
        }
    }
    Ok(())
}

/// The cases once more, on the crate `kernels` itself.
#[path = "."]
#[expect(dead_code)]
mod fast_paths {
    pub(crate) use ::fast_paths as kernels;

    #[path = "../../kernels/tests/suite/cases.rs"]
    pub(crate) mod cases;
}
