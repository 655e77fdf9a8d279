//! The CUDA devices of this machine, as NVIDIA's driver tells them. The driver is opened when it is asked
//! and never linked, so a machine without one gets an answer too.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::fmt;

use libloading::{Library, Symbol};

/// The file of the driver.
pub const DRIVER: &str = if cfg!(windows) {
    "nvcuda.dll"
} else {
    "libcuda.so.1"
};

/// What the driver tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Driver {
    /// The newest CUDA version that it serves: (major, minor).
    pub cuda_version: (i32, i32),
    /// Its devices, by index.
    pub devices: Vec<Gpu>,
}

/// One CUDA device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gpu {
    /// `NVIDIA H100 80GB HBM3`, ….
    pub name: String,
    /// Its memory, in bytes.
    pub memory_bytes: u64,
    /// Its compute capability: (major, minor).
    pub compute_capability: (i32, i32),
}

impl fmt::Display for Gpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (major, minor) = self.compute_capability;
        write!(f, "{}, compute capability {major}.{minor}", self.name)
    }
}

/// Why there is no such CUDA device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NoGpu {
    /// The driver's library is not there.
    NoDriver {
        /// The loader's answer.
        reason: String,
    },
    /// The library has not the functions that every driver has.
    BadDriver {
        /// The function.
        function: &'static str,
    },
    /// A call of the driver failed.
    Call {
        /// The function.
        function: &'static str,
        /// Its `CUresult`.
        code: c_int,
    },
    /// There are fewer devices.
    Index {
        /// The index asked for.
        index: usize,
        /// How many there are.
        n_devices: usize,
    },
}

impl fmt::Display for NoGpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoDriver { reason } => {
                write!(f, "NVIDIA's CUDA driver does not load ({reason})")
            }
            Self::BadDriver { function } => {
                write!(f, "{DRIVER} is no CUDA driver: it has no {function}")
            }
            Self::Call { function, code } => {
                let meaning = match code {
                    34 => "the library is a stub without a driver",
                    100 => "no CUDA device is visible (see nvidia-smi and CUDA_VISIBLE_DEVICES)",
                    803 => "driver and library are of different versions; restart the machine",
                    804 => "the library is newer than the driver",
                    _ => "see the list of CUresult in NVIDIA's manual of the driver",
                };
                write!(
                    f,
                    "NVIDIA's CUDA driver answers {function} with error {code}: {meaning}"
                )
            }
            Self::Index { index, n_devices } => write!(
                f,
                "the driver has {n_devices} CUDA devices, counted from 0: there is no {index}"
            ),
        }
    }
}

impl std::error::Error for NoGpu {}

/// Calls the function `$name` of the driver API, whose parameters are `$arg: $type`.
macro_rules! call {
    ($library:expr, $name:ident($($arg:expr => $type:ty),*)) => {{
        let function = stringify!($name);
        let symbol = concat!(stringify!($name), "\0");
        // SAFETY: the signature is that of the driver API (cuda.h), and pointers point to live values.
        let code = unsafe {
            let f: Symbol<'_, unsafe extern "C" fn($($type),*) -> c_int> = $library
                .get(symbol.as_bytes())
                .map_err(|_| NoGpu::BadDriver { function })?;
            f($($arg),*)
        };
        match code {
            0 => Ok(()),
            code => Err(NoGpu::Call { function, code }),
        }
    }};
}

/// The device of an index.
///
/// # Errors
/// If there is no driver or no such device.
pub fn find(index: usize) -> Result<Gpu, NoGpu> {
    let mut devices = driver()?.devices;
    let n_devices = devices.len();
    if index < n_devices {
        Ok(devices.swap_remove(index))
    } else {
        Err(NoGpu::Index { index, n_devices })
    }
}

/// The memory of a device that nobody uses, in bytes, as the driver tells a program that runs there.
///
/// # Errors
/// If there is no driver or no such device.
pub fn free_bytes(index: usize) -> Result<u64, NoGpu> {
    find(index)?;
    let library = load()?;
    let (mut device, mut free, mut total) = (0, 0usize, 0usize);
    let mut context: *mut c_void = std::ptr::null_mut();
    let index = c_int::try_from(index).unwrap_or(c_int::MAX);
    call!(library, cuInit(0 => c_uint))?;
    call!(library, cuDeviceGet(&mut device => *mut c_int, index => c_int))?;
    // The context of the device is shared by all of a program; whoever takes it gives it back.
    call!(library, cuDevicePrimaryCtxRetain(&mut context => *mut *mut c_void, device => c_int))?;
    let asked = call!(library, cuCtxPushCurrent_v2(context => *mut c_void)).and_then(|()| {
        let told =
            call!(library, cuMemGetInfo_v2(&mut free => *mut usize, &mut total => *mut usize));
        let mut popped: *mut c_void = std::ptr::null_mut();
        call!(library, cuCtxPopCurrent_v2(&mut popped => *mut *mut c_void))?;
        told
    });
    call!(library, cuDevicePrimaryCtxRelease_v2(device => c_int))?;
    asked.map(|()| free as u64)
}

/// Where a device sits on the bus, as NVML names it too: `00000000:65:00.0`.
///
/// # Errors
/// If there is no driver or no such device.
pub fn pci_bus_id(index: usize) -> Result<String, NoGpu> {
    find(index)?;
    let library = load()?;
    let mut device = 0;
    // The last byte stays 0 whatever the driver writes.
    let mut id: [c_char; 32] = [0; 32];
    let index = c_int::try_from(index).unwrap_or(c_int::MAX);
    call!(library, cuInit(0 => c_uint))?;
    call!(library, cuDeviceGet(&mut device => *mut c_int, index => c_int))?;
    call!(library, cuDeviceGetPCIBusId(id.as_mut_ptr() => *mut c_char, 31 => c_int, device => c_int))?;
    // SAFETY: the array is live and ends with a zero.
    let id = unsafe { CStr::from_ptr(id.as_ptr()) };
    Ok(id.to_string_lossy().into_owned())
}

/// Asks the driver of this machine.
///
/// # Errors
/// If there is none, or if it does not start.
pub fn driver() -> Result<Driver, NoGpu> {
    ask(&load()?)
}

fn load() -> Result<Library, NoGpu> {
    // SAFETY: NVIDIA's driver library may be loaded at any time and from any thread.
    unsafe { Library::new(DRIVER) }.map_err(|error| NoGpu::NoDriver {
        reason: std::error::Error::source(&error).map_or(error.to_string(), ToString::to_string),
    })
}

fn ask(library: &Library) -> Result<Driver, NoGpu> {
    const COMPUTE_CAPABILITY_MAJOR: c_int = 75;
    const COMPUTE_CAPABILITY_MINOR: c_int = 76;
    let (mut version, mut n_devices): (c_int, c_int) = (0, 0);
    call!(library, cuInit(0 => c_uint))?;
    call!(library, cuDriverGetVersion(&mut version => *mut c_int))?;
    call!(library, cuDeviceGetCount(&mut n_devices => *mut c_int))?;
    let device = |index: c_int| {
        let (mut handle, mut memory_bytes) = (0, 0usize);
        let (mut major, mut minor): (c_int, c_int) = (0, 0);
        // The last byte stays 0 whatever the driver writes.
        let mut name: [c_char; 256] = [0; 256];
        call!(library, cuDeviceGet(&mut handle => *mut c_int, index => c_int))?;
        call!(library, cuDeviceGetName(name.as_mut_ptr() => *mut c_char, 255 => c_int, handle => c_int))?;
        call!(library, cuDeviceTotalMem_v2(&mut memory_bytes => *mut usize, handle => c_int))?;
        call!(library, cuDeviceGetAttribute(&mut major => *mut c_int, COMPUTE_CAPABILITY_MAJOR => c_int, handle => c_int))?;
        call!(library, cuDeviceGetAttribute(&mut minor => *mut c_int, COMPUTE_CAPABILITY_MINOR => c_int, handle => c_int))?;
        // SAFETY: the array is live and ends with a zero.
        let name = unsafe { CStr::from_ptr(name.as_ptr()) };
        Ok(Gpu {
            name: name.to_string_lossy().into_owned(),
            memory_bytes: memory_bytes as u64,
            compute_capability: (major, minor),
        })
    };
    Ok(Driver {
        cuda_version: (version / 1000, version % 1000 / 10),
        devices: (0..n_devices).map(device).collect::<Result<_, _>>()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_machine_answers_one_way_or_the_other() {
        match driver() {
            Ok(Driver { devices, .. }) => {
                let index = devices.len();
                let error = find(index).unwrap_err();
                assert_eq!(
                    error,
                    NoGpu::Index {
                        index,
                        n_devices: index
                    }
                );
            }
            Err(error) => {
                assert_eq!(find(0).unwrap_err(), error);
                assert_eq!(free_bytes(0).unwrap_err(), error);
                assert!(error.to_string().contains("CUDA"), "{error}");
            }
        }
    }

    /// A library that is there but is no driver must not pass for one.
    #[cfg(target_os = "linux")]
    #[test]
    fn a_library_of_that_name_that_is_no_driver_is_told_from_one() {
        // SAFETY: the C library is loaded already.
        let library = unsafe { Library::new("libc.so.6") }.unwrap();
        let function = "cuInit";
        assert_eq!(ask(&library), Err(NoGpu::BadDriver { function }));
    }

    #[test]
    fn messages_say_what_is_missing() {
        let texts = [
            (
                NoGpu::NoDriver {
                    reason: "no such file".to_owned(),
                },
                "does not load",
            ),
            (
                NoGpu::Call {
                    function: "cuInit",
                    code: 100,
                },
                "CUDA_VISIBLE_DEVICES",
            ),
            (
                NoGpu::Index {
                    index: 3,
                    n_devices: 1,
                },
                "there is no 3",
            ),
        ];
        for (error, says) in texts {
            assert!(error.to_string().contains(says), "{error}");
        }
    }
}
