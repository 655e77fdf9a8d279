//! ONNX models as they are answered by a runtime that knows nothing of this project: tract. For tests, so everything here
//! panics where a test would fail.

use tract_onnx::prelude::*;

/// The first output, row-major, of the model in these bytes for one input, row-major `[n, c, h, w]`.
///
/// # Panics
/// If the bytes are no model of one such input.
#[track_caller]
pub fn answer(mut onnx: &[u8], shape: [usize; 4], input: &[f32]) -> Vec<f32> {
    let model = tract_onnx::onnx()
        .model_for_read(&mut onnx)
        .expect("an ONNX model");
    let model = model
        .with_input_fact(0, f32::fact(shape).into())
        .and_then(InferenceModelExt::into_optimized)
        .and_then(|model| model.into_runnable())
        .expect("it takes this shape");
    let input = Tensor::from_shape(&shape, input).expect("numbers of this shape");
    let outputs = model.run(tvec!(input.into())).expect("it runs");
    let output = outputs[0].to_plain_array_view().expect("numbers");
    output.iter().copied().collect()
}
