//! Vectors of whatever width the processor has, for the loops that a compiler does not vectorise by itself.
//!
//! [`pulp`] picks the instructions when the program runs (AVX-512, AVX2 with FMA, NEON, or none), so that
//! one binary is fast everywhere.

use pulp::{Arch, Simd, WithSimd};

/// Bytes of a line of the cache.
const LINE_BYTES: usize = 64;

/// Does work on rows of so many numbers: in AVX2's vectors where one of these holds a row, else in the longest that there are.
pub(crate) fn dispatch_rows<W: WithSimd>(len: usize, work: W) -> W::Output {
    #[cfg(target_arch = "x86_64")]
    if let Some(simd) = pulp::x86::V3::try_new()
        && len <= lanes_of(simd)
    {
        return Simd::vectorize(simd, work);
    }
    let _ = len;
    Arch::new().dispatch(work)
}

#[cfg(target_arch = "x86_64")]
fn lanes_of<S: Simd>(_: S) -> usize {
    S::F32_LANES
}

/// Asks for numbers to be brought into the second-level cache while other work goes on. Done on x86-64 alone; elsewhere they
/// come when they are needed.
#[inline(always)]
pub(crate) fn prefetch<T: Vectorised>(numbers: &[T]) {
    for line in numbers.chunks(LINE_BYTES / size_of::<T>()) {
        prefetch_line(line);
    }
}

/// [`prefetch`] of the line of the cache in which a slice begins.
#[inline(always)]
pub(crate) fn prefetch_line<T: Vectorised>(numbers: &[T]) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: every x86-64 processor has the instruction; it changes nothing that a program sees, whatever the address.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T1>(numbers.as_ptr().cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = numbers;
}

/// An element type with vectors.
pub trait Vectorised: Copy + Send + Sync + 'static {
    /// A vector of these.
    type Vector<S: Simd>: Copy;

    /// Numbers of a vector.
    fn lanes<S: Simd>() -> usize;

    /// A vector of one number.
    fn splat<S: Simd>(simd: S, value: Self) -> Self::Vector<S>;

    /// The whole vectors of a slice, and what is left of it.
    fn vectors<S: Simd>(slice: &[Self]) -> (&[Self::Vector<S>], &[Self]);

    /// The vector at the start of a slice, filled up with zeros where the slice is shorter.
    fn load<S: Simd>(simd: S, slice: &[Self]) -> Self::Vector<S>;

    /// Writes as many numbers as the slice holds, up to a whole vector.
    fn store<S: Simd>(simd: S, slice: &mut [Self], vector: Self::Vector<S>);

    /// `a * b + c`, rounded once or twice.
    fn mul_add<S: Simd>(
        simd: S,
        a: Self::Vector<S>,
        b: Self::Vector<S>,
        c: Self::Vector<S>,
    ) -> Self::Vector<S>;

    /// `a + b`.
    fn plus<S: Simd>(simd: S, a: Self::Vector<S>, b: Self::Vector<S>) -> Self::Vector<S>;

    /// `max(a, 0)`; what is no number goes on.
    fn relu<S: Simd>(simd: S, a: Self::Vector<S>) -> Self::Vector<S>;

    /// The sum of a vector.
    fn sum<S: Simd>(simd: S, vector: Self::Vector<S>) -> Self;
}

macro_rules! impl_vectorised {
    ($T:ident, $V:ident, $LANES:ident, $splat:ident, $cast:ident, $cast_mut:ident, $load:ident, $store:ident, $mul_add:ident, $add:ident, $max:ident, $less:ident, $select:ident, $sum:ident) => {
        impl Vectorised for $T {
            type Vector<S: Simd> = S::$V;

            #[inline(always)]
            fn lanes<S: Simd>() -> usize {
                S::$LANES
            }

            #[inline(always)]
            fn splat<S: Simd>(simd: S, value: Self) -> S::$V {
                simd.$splat(value)
            }

            #[inline(always)]
            fn vectors<S: Simd>(slice: &[Self]) -> (&[S::$V], &[Self]) {
                S::$cast(slice)
            }

            #[inline(always)]
            fn load<S: Simd>(simd: S, slice: &[Self]) -> S::$V {
                match S::$cast(slice).0 {
                    [vector, ..] => *vector,
                    [] => simd.$load(slice),
                }
            }

            #[inline(always)]
            fn store<S: Simd>(simd: S, slice: &mut [Self], vector: S::$V) {
                if slice.len() < S::$LANES {
                    simd.$store(slice, vector);
                } else {
                    S::$cast_mut(slice).0[0] = vector;
                }
            }

            #[inline(always)]
            fn mul_add<S: Simd>(simd: S, a: S::$V, b: S::$V, c: S::$V) -> S::$V {
                simd.$mul_add(a, b, c)
            }

            #[inline(always)]
            fn plus<S: Simd>(simd: S, a: S::$V, b: S::$V) -> S::$V {
                simd.$add(a, b)
            }

            #[inline(always)]
            fn relu<S: Simd>(simd: S, a: S::$V) -> S::$V {
                let zero = simd.$splat(0.0);
                // Of two of which one is no number, x86 takes the second, ARM that one, Rust the other. No kind of vectors
                // that pulp picks computes by Rust's, but for those of one number.
                if S::$LANES > 1 {
                    simd.$max(zero, a)
                } else {
                    simd.$select(simd.$less(a, zero), zero, a)
                }
            }

            #[inline(always)]
            fn sum<S: Simd>(simd: S, vector: S::$V) -> Self {
                simd.$sum(vector)
            }
        }
    };
}

impl_vectorised!(
    f32,
    f32s,
    F32_LANES,
    splat_f32s,
    as_simd_f32s,
    as_mut_simd_f32s,
    partial_load_f32s,
    partial_store_f32s,
    mul_add_e_f32s,
    add_f32s,
    max_f32s,
    less_than_f32s,
    select_f32s,
    reduce_sum_f32s
);
impl_vectorised!(
    f64,
    f64s,
    F64_LANES,
    splat_f64s,
    as_simd_f64s,
    as_mut_simd_f64s,
    partial_load_f64s,
    partial_store_f64s,
    mul_add_e_f64s,
    add_f64s,
    max_f64s,
    less_than_f64s,
    select_f64s,
    reduce_sum_f64s
);

#[cfg(test)]
pub(crate) mod tests {
    use pulp::Simd;

    /// Work that can be done by any instructions.
    pub(crate) trait OnPath {
        /// Does it.
        fn run<S: Simd>(&self, simd: S) -> Vec<f64>;
    }

    /// Does the work without vectors and by every kind of vectors that this processor has: all must agree but for
    /// the order in which numbers are added.
    pub(crate) fn agrees_on_every_path(work: &impl OnPath, tolerance: f64) {
        let expected = work.run(pulp::Scalar);
        let check = |name: &str, found: Vec<f64>| {
            assert_eq!(found.len(), expected.len());
            for (found, expected) in found.iter().zip(&expected) {
                let error = (found - expected).abs();
                assert!(
                    error <= tolerance,
                    "{name}: {found}, {expected} without vectors"
                );
            }
        };
        #[cfg(target_arch = "x86_64")]
        {
            if let Some(simd) = pulp::x86::V3::try_new() {
                check("AVX2 with FMA", work.run(simd));
            }
            if let Some(simd) = pulp::x86::V4::try_new() {
                check("AVX-512", work.run(simd));
            }
        }
        #[cfg(target_arch = "aarch64")]
        if let Some(simd) = pulp::aarch64::Neon::try_new() {
            check("NEON", work.run(simd));
        }
        check(
            "what the program picks",
            pulp::Arch::new().dispatch(Picked(work)),
        );
    }

    /// The ReLU of whole vectors and of a part of one.
    struct Rectified<T>(std::marker::PhantomData<T>);

    impl<T: super::Vectorised + crate::Element> OnPath for Rectified<T> {
        fn run<S: Simd>(&self, simd: S) -> Vec<f64> {
            let mut x = [
                1.5,
                f64::NAN,
                -2.0,
                0.0,
                3.0,
                f64::NEG_INFINITY,
                f64::INFINITY,
            ]
            .map(T::from_f64)
            .repeat(5);
            for part in x.chunks_mut(T::lanes::<S>()) {
                let vector = T::relu(simd, T::load(simd, part));
                T::store(simd, part, vector);
            }
            // So that what is no number can be compared.
            let number = |x: &T| {
                if x.is_nan() {
                    -1.0
                } else {
                    x.to_f64().min(9.0)
                }
            };
            x.iter().map(number).collect()
        }
    }

    #[test]
    fn what_is_no_number_passes_the_relu_of_every_kind_of_vectors() {
        let of_f32 = Rectified::<f32>(std::marker::PhantomData);
        let expected = [1.5, -1.0, 0.0, 0.0, 3.0, 0.0, 9.0].repeat(5);
        assert_eq!(of_f32.run(pulp::Scalar), expected);
        agrees_on_every_path(&of_f32, 0.0);
        agrees_on_every_path(&Rectified::<f64>(std::marker::PhantomData), 0.0);
    }

    struct Picked<'a, W>(&'a W);

    impl<W: OnPath> pulp::WithSimd for Picked<'_, W> {
        type Output = Vec<f64>;

        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) -> Vec<f64> {
            self.0.run(simd)
        }
    }
}
