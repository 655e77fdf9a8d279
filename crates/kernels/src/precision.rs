//! In what the factors of matrix products are.

use std::borrow::Cow;

use crate::Element;

/// The precision of the products of `f32` tensors. Whatever it is, tensors, weights and sums are `f32`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    /// `f32`.
    #[default]
    F32,
    /// TF32, 10 bits behind the point, in the tensor cores of a GPU from Ampere on.
    Tf32,
    /// bf16, 7 bits behind the point: factors are rounded before they are multiplied.
    Bf16,
}

impl Precision {
    /// A factor of a product on the CPU, rounded where this asks for it.
    pub(crate) fn factor<T: Element>(self, values: &[T]) -> Cow<'_, [T]> {
        match self {
            Self::Bf16 => values
                .iter()
                .map(|value| T::from_f64(f64::from(round_to_bf16(value.to_f64() as f32))))
                .collect(),
            Self::F32 | Self::Tf32 => Cow::Borrowed(values),
        }
    }
}

/// The nearest number whose last 16 bits are 0, in the middle the one that ends on an even bit.
fn round_to_bf16(value: f32) -> f32 {
    if value.is_nan() {
        return value;
    }
    let bits = value.to_bits();
    let half_and_odd = 0x7fff + ((bits >> 16) & 1);
    f32::from_bits(bits.wrapping_add(half_and_odd) & 0xffff_0000)
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Tensor};

    use super::*;

    #[test]
    fn bf16_is_rounded_as_candle_does() -> candle_core::Result<()> {
        let mut bits = 1u32;
        let mut values: Vec<f32> = (0..10_000)
            .map(|_| {
                bits = bits.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                f32::from_bits(bits)
            })
            .filter(|value| !value.is_nan())
            .collect();
        // In the middle of two neighbours, below an even and below an odd one.
        values.extend([0x3f80_8000, 0x3f81_8000, 0x3f80_8001, 0x7f7f_ffff].map(f32::from_bits));
        let expected = Tensor::from_slice(&values, values.len(), &Device::Cpu)?
            .to_dtype(DType::BF16)?
            .to_dtype(DType::F32)?
            .to_vec1::<f32>()?;
        assert_eq!(Precision::Bf16.factor(&values), expected);
        assert_eq!(Precision::F32.factor(&values), values);
        Ok(())
    }
}
