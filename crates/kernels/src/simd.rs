//! Vectors of whatever width the processor has, for the loops that a compiler does not vectorise by itself.
//!
//! [`pulp`] picks the instructions when the program runs (AVX-512, AVX2 with FMA, NEON, or none), so that
//! one binary is fast everywhere.

use std::ops::Range;

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

/// Asks for the line of the cache in which a slice begins to be brought into the second-level cache while other work goes on.
/// Done on x86-64 alone; elsewhere it comes when it is needed.
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

/// Rows that are wanted next: they come into the second-level cache line by line while other work goes on. All at
/// once are more than a processor has on the way, and what is more it forgets.
#[derive(Debug)]
pub(crate) struct Ahead<'a, T> {
    /// What is left of a row.
    row: &'a [T],
    /// The rows behind it, and the columns that are wanted of each.
    rows: &'a [&'a [T]],
    columns: Range<usize>,
}

impl<'a, T: Vectorised> Ahead<'a, T> {
    /// Nothing.
    pub(crate) fn none() -> Self {
        Self::new(&[], 0..0)
    }

    /// Some columns of some rows, as far as these go.
    pub(crate) fn new(rows: &'a [&'a [T]], columns: Range<usize>) -> Self {
        Self {
            row: &[],
            rows,
            columns,
        }
    }

    /// Asks for the next `N` lines of a row; or goes on to the next row, if it has no more as many.
    #[inline(always)]
    pub(crate) fn fetch<const N: usize>(&mut self) {
        let line = LINE_BYTES / size_of::<T>();
        if let Some((lines, rest)) = self.row.split_at_checked(N * line) {
            for n in 0..N {
                prefetch_line(&lines[n * line..]);
            }
            self.row = rest;
        } else if let Some((row, rows)) = self.rows.split_first() {
            let end = self.columns.end.min(row.len());
            self.row = &row[self.columns.start.min(end)..end];
            self.rows = rows;
        }
    }
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

    /// `x <= 0 ? 0 : a`; what is no number is taken to be positive.
    fn where_positive<S: Simd>(simd: S, x: Self::Vector<S>, a: Self::Vector<S>) -> Self::Vector<S>;

    /// The sum of a vector.
    fn sum<S: Simd>(simd: S, vector: Self::Vector<S>) -> Self;
}

macro_rules! impl_vectorised {
    ($T:ident, $V:ident, $LANES:ident, $splat:ident, $cast:ident, $cast_mut:ident, $load:ident, $store:ident, $mul_add:ident, $add:ident, $max:ident, $less:ident, $less_or_equal:ident, $select:ident, $sum:ident) => {
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
            fn where_positive<S: Simd>(simd: S, x: S::$V, a: S::$V) -> S::$V {
                let zero = simd.$splat(0.0);
                simd.$select(simd.$less_or_equal(x, zero), zero, a)
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
    less_than_or_equal_f32s,
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
    less_than_or_equal_f64s,
    select_f64s,
    reduce_sum_f64s
);

/// `V` vectors, or what there is of one.
#[inline(always)]
pub(crate) fn load<T: Vectorised, S: Simd, const V: usize>(simd: S, x: &[T]) -> [T::Vector<S>; V] {
    if V == 1 {
        return [T::load(simd, x); V];
    }
    let lanes = T::lanes::<S>();
    // One look at the length for all.
    let x = &x[..V * lanes];
    let mut vectors = [T::load(simd, &x[..lanes]); V];
    for v in 0..V {
        vectors[v] = T::load(simd, &x[v * lanes..][..lanes]);
    }
    vectors
}

/// Writes `V` vectors, or what a slice holds of one.
#[inline(always)]
pub(crate) fn store<T: Vectorised, S: Simd, const V: usize>(
    simd: S,
    y: &mut [T],
    vectors: [T::Vector<S>; V],
) {
    if V == 1 {
        return T::store(simd, y, vectors[0]);
    }
    let lanes = T::lanes::<S>();
    let y = &mut y[..V * lanes];
    for v in 0..V {
        T::store(simd, &mut y[v * lanes..][..lanes], vectors[v]);
    }
}

/// The gradient of what a ReLU reads, `x`, from that of what it gives; with what is in `y` if it `adds`.
#[inline(always)]
pub(crate) fn mask<T: Vectorised, S: Simd, const V: usize>(
    simd: S,
    mut grads: [T::Vector<S>; V],
    x: [T::Vector<S>; V],
    y: &[T],
    adds: bool,
) -> [T::Vector<S>; V] {
    for v in 0..V {
        grads[v] = T::where_positive(simd, x[v], grads[v]);
    }
    if adds {
        let y = load::<T, S, V>(simd, y);
        for v in 0..V {
            grads[v] = T::plus(simd, grads[v], y[v]);
        }
    }
    grads
}

#[cfg(test)]
pub(crate) mod tests {
    use pulp::Simd;

    use super::Vectorised;

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

    #[test]
    fn what_is_wanted_next_is_asked_for_line_by_line() {
        let numbers = [0_f64; 100];
        let rows = [&numbers[..], &numbers[..40]];
        // Of the first row 90 numbers, two lines of eight at a time; of the second 30.
        let mut ahead = super::Ahead::new(&rows, 10..1000);
        for left in [90, 74, 58, 42, 26, 10, 30, 14, 14] {
            ahead.fetch::<2>();
            assert_eq!(ahead.row.len(), left);
        }
        assert!(ahead.rows.is_empty());
        for columns in [0..0, 90..95, 200..300] {
            let mut ahead = super::Ahead::new(&rows, columns);
            (0..20).for_each(|_| ahead.fetch::<1>());
            assert!(ahead.rows.is_empty() && ahead.row.len() < 8);
        }
    }

    #[test]
    fn gradients_pass_where_a_relu_reads_what_is_positive_or_no_number() {
        let (nan, infinite) = (f32::NAN, f32::INFINITY);
        let x = [1.0, 0.0, -0.0, -1.0, nan, infinite, -infinite];
        let simd = pulp::Scalar;
        let passes = x.map(|x| f32::where_positive(simd, x, 2.0));
        assert_eq!(passes, [2.0, 0.0, 0.0, 0.0, 2.0, 2.0, 0.0]);
        agrees_on_every_path(&Masked(x), 0.0);
    }

    struct Masked([f32; 7]);

    impl OnPath for Masked {
        fn run<S: Simd>(&self, simd: S) -> Vec<f64> {
            let (x, y) = (self.0.repeat(5), [1.0; 35]);
            let mut found = Vec::new();
            for (x, y) in x.chunks(f32::lanes::<S>()).zip(y.chunks(f32::lanes::<S>())) {
                let twos = [f32::splat(simd, 2.0)];
                let mut part = vec![0.0; x.len()];
                let x = super::load::<f32, S, 1>(simd, x);
                let sums = super::mask::<f32, S, 1>(simd, twos, x, y, true);
                super::store::<f32, S, 1>(simd, &mut part, sums);
                found.extend(part.into_iter().map(f64::from));
            }
            found
        }
    }

    /// The ReLU of whole vectors and of a part of one.
    struct Rectified<T>(std::marker::PhantomData<T>);

    impl<T: Vectorised + crate::Element> OnPath for Rectified<T> {
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
