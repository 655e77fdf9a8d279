//! Copies between the processor and a device that do not wait for the device's work, and that its work does not wait
//! for longer than it must. On the CPU there is nothing to copy.

use std::cell::RefCell;

use candle_core::{Device, Result, Shape, Tensor};

/// Numbers for a device, copied on a stream of their own while the device works.
///
/// A batch goes from the caller's memory into pinned memory, from there, on the second stream, into memory of the device
/// that is kept for it, and when it is [taken](Self::take) from there into a tensor, on the stream of the work, which
/// waits for the copy alone. So many batches can be under way as there are places.
pub struct Uploads {
    device: Device,
    ring: RefCell<Ring>,
    #[cfg(feature = "cuda")]
    cuda: Option<RefCell<cuda::Places>>,
}

/// Places that are used in turn.
struct Ring {
    /// Whether the numbers of a place have been started and not been taken.
    is_pending: Vec<bool>,
    next: usize,
}

/// Numbers under way.
#[must_use]
pub struct Upload {
    place: usize,
    /// On the CPU, the numbers.
    here: Option<Vec<f32>>,
    n: usize,
}

impl Uploads {
    /// To a device, at most `n_places` under way.
    ///
    /// # Errors
    /// If the device gives no stream.
    pub fn new(device: &Device, n_places: usize) -> Result<Self> {
        Ok(Self {
            device: device.clone(),
            ring: RefCell::new(Ring {
                is_pending: vec![false; n_places],
                next: 0,
            }),
            #[cfg(feature = "cuda")]
            cuda: match device {
                Device::Cuda(device) => Some(RefCell::new(cuda::Places::new(device, n_places)?)),
                _ => None,
            },
        })
    }

    /// Starts to copy numbers.
    ///
    /// # Errors
    /// If all places are taken, or the device fails.
    pub fn start(&self, numbers: Vec<f32>) -> Result<Upload> {
        let mut ring = self.ring.borrow_mut();
        let (place, n) = (ring.next, numbers.len());
        if ring.is_pending.get(place).copied().unwrap_or(true) {
            candle_core::bail!("uploads: more than {} are under way", ring.is_pending.len());
        }
        let here = self.send(place, numbers)?;
        ring.is_pending[place] = true;
        ring.next = (place + 1) % ring.is_pending.len();
        Ok(Upload { place, here, n })
    }

    /// Sets numbers going; gives them back where there is nothing to copy.
    fn send(&self, place: usize, numbers: Vec<f32>) -> Result<Option<Vec<f32>>> {
        #[cfg(feature = "cuda")]
        if let Some(places) = &self.cuda {
            places.borrow_mut().start(place, &numbers)?;
            return Ok(None);
        }
        if !self.device.is_cpu() {
            candle_core::bail!("uploads: there is no way to this device from place {place}");
        }
        Ok(Some(numbers))
    }

    /// The numbers as a tensor. The device's work waits for them, the caller does not.
    ///
    /// # Errors
    /// If the shape holds another number, or the device fails.
    pub fn take(&self, upload: Upload, shape: impl Into<Shape>) -> Result<Tensor> {
        let shape = shape.into();
        if shape.elem_count() != upload.n {
            candle_core::bail!("uploads: {} numbers are no tensor of {shape:?}", upload.n);
        }
        self.ring.borrow_mut().is_pending[upload.place] = false;
        if let Some(numbers) = upload.here {
            return Tensor::from_vec(numbers, shape, &self.device);
        }
        #[cfg(feature = "cuda")]
        if let Some(places) = &self.cuda {
            return places.borrow().take(upload.place, shape, &self.device);
        }
        candle_core::bail!("uploads: the numbers are nowhere")
    }
}

/// Numbers of a device on their way to the processor, again and again as many.
pub struct Readback {
    here: Option<Vec<f32>>,
    #[cfg(feature = "cuda")]
    there: Option<cuda::Pinned>,
}

impl Readback {
    /// Of nothing yet.
    pub fn new() -> Self {
        Self {
            here: None,
            #[cfg(feature = "cuda")]
            there: None,
        }
    }

    /// Starts to read a tensor of `f32`; the copy stands behind all that the device has been asked for so far.
    ///
    /// # Errors
    /// If the device fails.
    pub fn start(&mut self, tensor: &Tensor) -> Result<()> {
        let tensor = tensor.flatten_all()?.contiguous()?;
        #[cfg(feature = "cuda")]
        if tensor.device().is_cuda() {
            self.here = None;
            return cuda::start(&mut self.there, &tensor);
        }
        self.here = Some(tensor.to_vec1()?);
        Ok(())
    }

    /// Waits for the numbers that were started last, not for what the device was asked for later; `None` if none were
    /// started since.
    ///
    /// # Errors
    /// If the device fails.
    pub fn wait(&mut self) -> Result<Option<Vec<f32>>> {
        if let Some(numbers) = self.here.take() {
            return Ok(Some(numbers));
        }
        #[cfg(feature = "cuda")]
        if let Some(pinned) = &mut self.there {
            return pinned.wait();
        }
        Ok(None)
    }
}

impl Default for Readback {
    fn default() -> Self {
        Self::new()
    }
}

/// What `start` makes of the items, each given out when the next one has been started: so what `start` sets going is under
/// way while the item before is worked on. On the CPU, where nothing would be under way, each is given out at once.
pub fn one_ahead<I, S>(
    device: &Device,
    mut items: impl Iterator<Item = I>,
    mut start: impl FnMut(I) -> S,
) -> impl Iterator<Item = S> {
    let looks_ahead = !device.is_cpu();
    ahead(looks_ahead, move || items.next().map(&mut start))
}

fn ahead<S>(looks_ahead: bool, mut next: impl FnMut() -> Option<S>) -> impl Iterator<Item = S> {
    let mut waiting: Option<S> = None;
    std::iter::from_fn(move || {
        if !looks_ahead {
            return next();
        }
        let given = waiting.take().or_else(&mut next)?;
        waiting = next();
        Some(given)
    })
    .fuse()
}

#[cfg(feature = "cuda")]
mod cuda {
    use std::sync::{Arc, Mutex};

    use candle_core::cuda_backend::WrapErr;
    use candle_core::{
        CpuStorage, CudaDevice, CudaStorage, CustomOp1, Device, Layout, Result, Shape, Storage,
        Tensor,
    };
    use cudarc::driver::{CudaEvent, CudaSlice, CudaStream, PinnedHostSlice};

    /// Memory that a device copies from and to without its caller. Cudarc's own event of it is not recorded where cudarc
    /// does not manage what streams wait for, as here (`cuda_device`): so it has one of ours.
    pub(super) struct Pinned {
        memory: PinnedHostSlice<f32>,
        /// Behind the last copy.
        copied: CudaEvent,
        is_started: bool,
    }

    impl Pinned {
        fn new(stream: &CudaStream, n: usize) -> Result<Self> {
            let context = stream.context();
            // SAFETY: what is read from it was copied into it before, all of it. (Not write-combined: it is read, too.)
            let memory = unsafe { context.alloc_pinned_with_flags(n, 0) }.w()?;
            Ok(Self {
                memory,
                copied: context.new_event(None).w()?,
                is_started: false,
            })
        }

        pub(super) fn wait(&mut self) -> Result<Option<Vec<f32>>> {
            if !std::mem::take(&mut self.is_started) {
                return Ok(None);
            }
            self.copied.synchronize().w()?;
            Ok(Some(self.memory.as_slice().w()?.to_vec()))
        }
    }

    impl Drop for Pinned {
        fn drop(&mut self) {
            // Nothing may be copied from or to memory that is given back.
            let _ = self.copied.synchronize();
        }
    }

    /// Starts to read a contiguous tensor.
    pub(super) fn start(there: &mut Option<Pinned>, tensor: &Tensor) -> Result<()> {
        let (storage, layout) = tensor.storage_and_layout();
        let Storage::Cuda(storage) = &*storage else {
            candle_core::bail!("readback: expected a tensor on CUDA");
        };
        let (first, n) = (layout.start_offset(), layout.shape().elem_count());
        let stream = tensor.device().as_cuda_device()?.cuda_stream();
        if there.as_ref().is_none_or(|pinned| pinned.memory.len() != n) {
            *there = Some(Pinned::new(&stream, n)?);
        }
        let Some(pinned) = there else {
            candle_core::bail!("readback: no memory");
        };
        // What was started before may still be written.
        pinned.copied.synchronize().w()?;
        let numbers = storage.as_cuda_slice::<f32>()?.slice(first..first + n);
        stream.memcpy_dtoh(&numbers, &mut pinned.memory).w()?;
        pinned.copied.record(&stream).w()?;
        pinned.is_started = true;
        Ok(())
    }

    /// Where a batch lies on its way.
    struct Place {
        pinned: Pinned,
        there: CudaSlice<f32>,
        /// Behind the copy of the last batch into its tensor.
        taken: CudaEvent,
        n: usize,
    }

    /// The places of uploads, and the stream that fills them.
    pub(super) struct Places {
        work: Arc<CudaStream>,
        copies: Arc<CudaStream>,
        places: Vec<Option<Place>>,
    }

    impl Places {
        pub(super) fn new(device: &CudaDevice, n: usize) -> Result<Self> {
            let work = device.cuda_stream();
            let copies = work.context().new_stream().w()?;
            Ok(Self {
                work,
                copies,
                places: (0..n).map(|_| None).collect(),
            })
        }

        pub(super) fn start(&mut self, place: usize, numbers: &[f32]) -> Result<()> {
            let n = numbers.len();
            let place = &mut self.places[place];
            if place.as_ref().is_none_or(|place| place.there.len() < n) {
                self.work.synchronize().w()?;
                *place = Some(Place {
                    pinned: Pinned::new(&self.copies, n)?,
                    // SAFETY: it is filled before anything reads it.
                    there: unsafe { self.copies.alloc(n) }.w()?,
                    taken: self.work.context().new_event(None).w()?,
                    n,
                });
            }
            let Some(place) = place else {
                candle_core::bail!("uploads: no place");
            };
            // The batch before has left the pinned memory; it was started some steps ago.
            place.pinned.copied.synchronize().w()?;
            place.pinned.memory.as_mut_slice().w()?[..n].copy_from_slice(numbers);
            // And the memory of the device.
            self.copies.wait(&place.taken).w()?;
            self.copies
                .memcpy_htod(&place.pinned.memory, &mut place.there)
                .w()?;
            place.pinned.copied.record(&self.copies).w()?;
            place.n = n;
            Ok(())
        }

        pub(super) fn take(&self, place: usize, shape: Shape, device: &Device) -> Result<Tensor> {
            let Some(place) = &self.places[place] else {
                candle_core::bail!("uploads: nothing was started there");
            };
            self.work.wait(&place.pinned.copied).w()?;
            let batch = self.work.clone_dtod(&place.there.slice(..place.n)).w()?;
            place.taken.record(&self.work).w()?;
            // A tensor is made by an operation; this one reads nothing.
            let nothing = Tensor::zeros(1, candle_core::DType::F32, device)?;
            let batch = Mutex::new(Some(batch));
            nothing.apply_op1_no_bwd(&Taken { batch, shape })
        }
    }

    impl Drop for Places {
        fn drop(&mut self) {
            // What is given back here may still be read and written.
            let _ = self.work.synchronize();
            let _ = self.copies.synchronize();
        }
    }

    /// A batch that becomes a tensor's storage.
    struct Taken {
        batch: Mutex<Option<CudaSlice<f32>>>,
        shape: Shape,
    }

    impl CustomOp1 for Taken {
        fn name(&self) -> &'static str {
            "taken"
        }

        fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
            candle_core::bail!("taken: a batch of CUDA's is no tensor of the CPU")
        }

        fn cuda_fwd(&self, nothing: &CudaStorage, _: &Layout) -> Result<(CudaStorage, Shape)> {
            use candle_core::backend::BackendStorage as _;
            let Some(batch) = self.batch.lock().ok().and_then(|mut batch| batch.take()) else {
                candle_core::bail!("taken: a batch is taken once");
            };
            let device = nothing.device().clone();
            Ok((
                CudaStorage::wrap_cuda_slice(batch, device),
                self.shape.clone(),
            ))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_arrive_as_they_were() -> Result<()> {
        let uploads = Uploads::new(&Device::Cpu, 2)?;
        let first = uploads.start(vec![1.0, 2.0])?;
        let second = uploads.start(vec![3.0; 6])?;
        assert_eq!(
            uploads.take(second, (2, 3))?.to_vec2::<f32>()?,
            [[3.0; 3]; 2]
        );
        assert_eq!(uploads.take(first, 2)?.to_vec1::<f32>()?, [1.0, 2.0]);
        // The places are free again.
        let third = uploads.start(vec![4.0])?;
        assert!(uploads.take(third, (1, 2)).is_err());
        Ok(())
    }

    #[test]
    fn no_place_is_used_twice() -> Result<()> {
        let uploads = Uploads::new(&Device::Cpu, 2)?;
        let _first = uploads.start(vec![1.0])?;
        let second = uploads.start(vec![2.0])?;
        assert!(uploads.start(vec![3.0]).is_err());
        uploads.take(second, 1)?;
        // The next place in the ring is the first, which nobody took.
        assert!(uploads.start(vec![3.0]).is_err());
        Ok(())
    }

    #[test]
    fn what_is_started_ahead_comes_in_order() {
        let log = RefCell::new(Vec::new());
        let mut items = 0..3;
        let started = ahead(true, || {
            let item = items.next()?;
            log.borrow_mut().push(format!("start {item}"));
            Some(item)
        });
        for item in started {
            log.borrow_mut().push(format!("work {item}"));
        }
        let expected = [
            "start 0", "start 1", "work 0", "start 2", "work 1", "work 2",
        ];
        assert_eq!(*log.borrow(), expected);
        let at_once: Vec<i32> = one_ahead(&Device::Cpu, 0..3, |item| item).collect();
        assert_eq!(at_once, [0, 1, 2]);
    }

    #[test]
    fn what_was_read_is_read_once() -> Result<()> {
        let mut readback = Readback::new();
        assert!(readback.wait()?.is_none());
        readback.start(&Tensor::new(&[[1.0f32, 2.0], [3.0, 4.0]], &Device::Cpu)?.t()?)?;
        assert_eq!(readback.wait()?, Some(vec![1.0, 3.0, 2.0, 4.0]));
        assert!(readback.wait()?.is_none());
        Ok(())
    }
}
