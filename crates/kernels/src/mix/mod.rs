//! Weighted sums of channels of many tensors: what a node of a cell is, and what the gradient of a state is, in one
//! launch each. Channel split, shuffle and concatenation are a choice of what is read and written.
//!
//! Layout `c n h w`: a channel of a batch is contiguous, so that channels side by side are a view. Every channel `k` of
//! the sum gets, of each [`Term`] that covers it,
//!
//! `weight * mask[n] * (factor[c] * (x[c n h w] - mean[c]) + bias[c])`, where `gate[c n h w] > 0`
//!
//! and what a term does not have counts as nothing (weight, mask and factor as 1). Channels of several groups can be
//! [shuffled](Shuffle), in the sum or in a term.
//!
//! Nothing here is recorded for `backward`: the gradient of a sum is another sum, and [`dots`] and [`weight_gradients`].

use candle_core::{DType, Result, Shape, Tensor};

use crate::error::{check, dims4};
use crate::gpu::{MAX_ENTRIES, OnHeld, read};

#[cfg(any(feature = "cuda", shim))]
mod cuda;

const OP: &str = "mix";

/// How the channels of several groups, side by side, are interleaved: channel `k` goes to `k % period * n_groups + k / period`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shuffle {
    /// Groups; 1 = nothing is shuffled.
    pub n_groups: usize,
    /// Channels of a group.
    pub period: usize,
}

impl Shuffle {
    /// Where a channel goes.
    pub fn place(&self, channel: usize) -> usize {
        channel % self.period * self.n_groups + channel / self.period
    }

    /// Which channel comes to a place.
    pub fn channel(&self, place: usize) -> usize {
        place % self.n_groups * self.period + place / self.n_groups
    }
}

/// What is added to some channels of a sum.
#[derive(Debug, Clone)]
pub struct Term {
    /// `c n h w`.
    pub x: Tensor,
    /// What a batch normalisation does to each channel first: a table of [`channel_norm`](crate::channel_norm).
    pub norm: Option<Tensor>,
    /// One number.
    pub weight: Option<Tensor>,
    /// By what each image is multiplied, `[n]`.
    pub mask: Option<Tensor>,
    /// Of the shape of `x`: what is not above 0 there adds nothing.
    pub gate: Option<Tensor>,
    /// The channels of the sum that this is added to, before they are shuffled.
    pub first: usize,
    /// How many they are.
    pub n_channels: usize,
    /// `Some(k)`: the channels of `x` are shuffled as those of the sum may be, and number `k` of them, before that, is
    /// the first. `None`: they lie in order.
    pub shuffled_from: Option<usize>,
}

impl Term {
    /// All channels of `x`, as they are, to the channels from `first`.
    ///
    /// # Errors
    /// If `x` has no axes.
    pub fn new(x: &Tensor, first: usize) -> Result<Self> {
        Ok(Self {
            n_channels: x.dim(0)?,
            x: x.clone(),
            norm: None,
            weight: None,
            mask: None,
            gate: None,
            first,
            shuffled_from: None,
        })
    }

    /// The channel of `x` that goes to channel `at` of the sum, before it is shuffled; `None` if none does.
    fn source(&self, at: usize, shuffle: Shuffle) -> Option<usize> {
        let own = at
            .checked_sub(self.first)
            .filter(|own| *own < self.n_channels)?;
        Some(match self.shuffled_from {
            None => own,
            Some(from) => shuffle.place(own + from),
        })
    }

    fn check(&self, c: usize, plane: [usize; 3], shuffle: Shuffle) -> Result<()> {
        let [n_channels, n, h, w] = dims4(OP, "x", "c n h w", &self.x)?;
        check(
            OP,
            "x",
            &self.x,
            &[n_channels, plane[0], plane[1], plane[2]],
            &self.x,
        )?;
        let last = self.first + self.n_channels;
        let covers = last <= c
            && (self.first..last)
                .all(|at| self.source(at, shuffle).is_some_and(|of| of < n_channels));
        if !covers {
            candle_core::bail!(
                "{OP}: channels {}..{last} of {c} are none of {:?}",
                self.first,
                self.x.dims()
            );
        }
        if let Some(gate) = &self.gate {
            check(OP, "gate", gate, &[n_channels, n, h, w], &self.x)?;
        }
        if let Some(mask) = &self.mask {
            check(OP, "mask", mask, &[n], &self.x)?;
        }
        if let Some(weight) = &self.weight {
            crate::scale::check_weight(OP, weight, &self.x)?;
        }
        if let Some(norm) = &self.norm {
            crate::channel_norm::check_table(OP, norm, n_channels)?;
        }
        Ok(())
    }
}

/// The sum of terms, channel by channel; then, if `activates`, a ReLU.
///
/// # Shapes
/// `shape` is that of the sum, `c n h w`; terms cover some of its channels, the others are 0. `is_shuffled` says
/// whether its channels are written shuffled.
///
/// # Errors
/// If the terms do not fit.
pub fn mix(
    terms: &[Term],
    on: &Tensor,
    shape: [usize; 4],
    shuffle: Shuffle,
    is_shuffled: bool,
    activates: bool,
) -> Result<Tensor> {
    let [c, n, h, w] = shape;
    for term in terms {
        term.check(c, [n, h, w], shuffle)?;
    }
    let sum = |terms: &[Term], is_shuffled, activates| {
        let sum = Mix {
            terms,
            shape,
            shuffle,
            is_shuffled,
            activates,
            dtype: on.dtype(),
        };
        sum.run(on)
    };
    if terms.len() <= MAX_ENTRIES {
        return sum(terms, is_shuffled, activates);
    }
    // As many as a launch takes; what they sum up to is a term of the rest.
    let (first, rest) = terms.split_at(MAX_ENTRIES);
    let partial = Term::new(&sum(first, false, false)?, 0)?;
    let terms: Vec<Term> = [partial].into_iter().chain(rest.iter().cloned()).collect();
    mix(&terms, on, shape, shuffle, is_shuffled, activates)
}

struct Mix<'a> {
    terms: &'a [Term],
    shape: [usize; 4],
    shuffle: Shuffle,
    is_shuffled: bool,
    activates: bool,
    dtype: DType,
}

/// What a term gives, as plain numbers.
struct Read {
    x: Vec<f64>,
    /// `(mean, factor, bias)` of each channel.
    norm: Option<Vec<[f64; 3]>>,
    weight: f64,
    mask: Option<Vec<f64>>,
    gate: Option<Vec<f64>>,
}

impl Read {
    fn of(term: &Term) -> Result<Self> {
        let values = |tensor: &Option<Tensor>| tensor.as_ref().map(read).transpose();
        Ok(Self {
            x: read(&term.x)?,
            norm: values(&term.norm)?.map(|table| {
                let rows = table.as_chunks::<4>().0.iter();
                rows.map(|&[mean, _, factor, bias]| [mean, factor, bias])
                    .collect()
            }),
            weight: values(&term.weight)?.map_or(1.0, |weight| weight[0]),
            mask: values(&term.mask)?,
            gate: values(&term.gate)?,
        })
    }

    /// By what a number counts, before its normalisation.
    fn factor(&self, at: usize, image: usize) -> f64 {
        let is_open = self.gate.as_ref().is_none_or(|gate| gate[at] > 0.0);
        if is_open {
            self.mask.as_ref().map_or(1.0, |mask| mask[image])
        } else {
            0.0
        }
    }

    fn value(&self, at: usize, channel: usize, image: usize) -> f64 {
        let x = match &self.norm {
            None => self.x[at],
            Some(norm) => {
                let [mean, factor, bias] = norm[channel];
                factor * (self.x[at] - mean) + bias
            }
        };
        self.weight * self.factor(at, image) * x
    }
}

impl OnHeld for Mix<'_> {
    const OP: &'static str = OP;

    fn result(&self) -> (Shape, DType) {
        (self.shape.to_vec().into(), self.dtype)
    }

    #[cfg(any(feature = "cuda", shim))]
    fn launch<S: crate::gpu::Gpu>(&self, on: &S) -> Result<S> {
        cuda::mix(self, on)
    }

    fn oracle(&self) -> Result<Vec<f64>> {
        let [c, n, h, w] = self.shape;
        let (plane, len) = (h * w, n * h * w);
        let mut y = vec![0.0; c * len];
        for term in self.terms {
            let read = Read::of(term)?;
            for (place, y) in y.chunks_mut(len.max(1)).enumerate() {
                let at = if self.is_shuffled {
                    self.shuffle.channel(place)
                } else {
                    place
                };
                if let Some(source) = term.source(at, self.shuffle) {
                    for (i, y) in y.iter_mut().enumerate() {
                        *y += read.value(source * len + i, source, i / plane);
                    }
                }
            }
        }
        if self.activates {
            y.iter_mut().for_each(|y| *y = y.max(0.0));
        }
        Ok(y)
    }
}

/// For each term and each channel that it adds to a sum, the sum of the gradient there, and of its product with the
/// term's raw number: `t k 2`, `f64`, where `k` is the largest number of channels of a term. Masks count, weights and
/// normalisations do not.
///
/// # Shapes
/// `grad`: the sum's gradient, shuffled as the sum is.
///
/// # Errors
/// If the terms do not fit.
pub fn dots(terms: &[Term], grad: &Tensor, shuffle: Shuffle, is_shuffled: bool) -> Result<Tensor> {
    let [c, n, h, w] = dims4("dots", "grad", "c n h w", grad)?;
    for term in terms {
        term.check(c, [n, h, w], shuffle)?;
    }
    let n_rows = terms.iter().map(|term| term.n_channels).max().unwrap_or(0);
    let op = Dots {
        terms,
        grad,
        shuffle,
        is_shuffled,
        n_rows,
    };
    op.run(grad)
}

struct Dots<'a> {
    terms: &'a [Term],
    grad: &'a Tensor,
    shuffle: Shuffle,
    is_shuffled: bool,
    n_rows: usize,
}

impl OnHeld for Dots<'_> {
    const OP: &'static str = "dots";

    fn result(&self) -> (Shape, DType) {
        ((self.terms.len(), self.n_rows, 2).into(), DType::F64)
    }

    #[cfg(any(feature = "cuda", shim))]
    fn launch<S: crate::gpu::Gpu>(&self, on: &S) -> Result<S> {
        cuda::dots(self, on)
    }

    fn oracle(&self) -> Result<Vec<f64>> {
        let (_, n, h, w) = self.grad.dims4()?;
        let (plane, len) = (h * w, n * h * w);
        let grad = read(self.grad)?;
        let mut sums = vec![0.0; 2 * self.terms.len() * self.n_rows];
        for (term, sums) in self
            .terms
            .iter()
            .zip(sums.chunks_mut((2 * self.n_rows).max(1)))
        {
            let read = Read::of(term)?;
            for (own, sums) in sums.as_chunks_mut::<2>().0.iter_mut().enumerate() {
                let at = term.first + own;
                let Some(source) = term.source(at, self.shuffle) else {
                    continue;
                };
                let place = if self.is_shuffled {
                    self.shuffle.place(at)
                } else {
                    at
                };
                for i in 0..len {
                    let grad = grad[place * len + i] * read.factor(source * len + i, i / plane);
                    sums[0] += grad;
                    sums[1] += grad * read.x[source * len + i];
                }
            }
        }
        Ok(sums)
    }
}

/// The gradients of the terms' weights from their [`dots`]: `[n]`, that of term `t` at `places[t]`, and 0 where
/// there is none.
///
/// # Errors
/// If there are more or less places than terms.
pub fn weight_gradients(
    terms: &[Term],
    dots: &Tensor,
    places: &[usize],
    n: usize,
) -> Result<Tensor> {
    let (n_terms, n_rows, _) = dots.dims3()?;
    if [terms.len(), places.len()] != [n_terms; 2] || places.iter().any(|place| *place >= n) {
        candle_core::bail!("weight_gradients: {n_terms} terms have no places {places:?} of {n}");
    }
    let dtype = terms.first().map_or(DType::F32, |term| term.x.dtype());
    let op = WeightGradients {
        terms,
        dots,
        places,
        n,
        n_rows,
        dtype,
    };
    op.run(dots)
}

struct WeightGradients<'a> {
    terms: &'a [Term],
    dots: &'a Tensor,
    places: &'a [usize],
    n: usize,
    n_rows: usize,
    dtype: DType,
}

impl OnHeld for WeightGradients<'_> {
    const OP: &'static str = "weight_gradients";

    fn result(&self) -> (Shape, DType) {
        (self.n.into(), self.dtype)
    }

    #[cfg(any(feature = "cuda", shim))]
    fn launch<S: crate::gpu::Gpu>(&self, on: &S) -> Result<S> {
        cuda::weight_gradients(self, on)
    }

    fn oracle(&self) -> Result<Vec<f64>> {
        let dots = read(self.dots)?;
        let mut grads = vec![0.0; self.n];
        let rows = dots.chunks((2 * self.n_rows).max(1));
        for ((term, place), rows) in self.terms.iter().zip(self.places).zip(rows) {
            let norm = term.norm.as_ref().map(read).transpose()?;
            let sums = &rows.as_chunks::<2>().0[..term.n_channels];
            for (channel, [grad, product]) in sums.iter().enumerate() {
                grads[*place] += match &norm {
                    None => *product,
                    Some(norm) => {
                        let [mean, _, factor, bias] = norm.as_chunks::<4>().0[channel];
                        factor * (product - mean * grad) + bias * grad
                    }
                };
            }
        }
        Ok(grads)
    }
}
