//! Everything about CUDA that the repository's commands do: how its programs are built, the checks that need no
//! GPU, and the one that needs one.

use std::ffi::{CStr, CString, c_char, c_int};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use libloading::{Library, Symbol};

use crate::ci::{cargo, step};

/// The features that make stages take `--device cuda`.
const STAGES: &str = "stage-profile/cuda,stage-predictor/cuda,stage-search/nccl,stage-evaluate/nccl,stage-report/cuda";

/// Those of the programs that measure and compare.
const OTHERS: &str = "network-bench/cuda,pipeline-tests/cuda";

/// Every stage with what it reads, samples of `tests/formats`.
const STARTS: [(&str, &[(&str, &str)]); 5] = [
    ("profile", &[]),
    ("predictor", &[("--latency-dataset", "latency-dataset-1.4")]),
    ("search", &[("--latency-model", "latency-model-1.6")]),
    ("evaluate", &[("--search-result", "search-result-1.7")]),
    (
        "report",
        &[
            ("--latency-dataset", "latency-dataset-1.4"),
            ("--latency-model", "latency-model-1.6"),
            ("--evaluation", "evaluation-1.5"),
            ("--evaluation", "evaluation-1.5"),
        ],
    ),
];

/// NVIDIA's compiler for kernels, as PyPI has it: it needs neither a GPU nor a driver.
const NVRTC_WHEEL: &str = "nvidia-cuda-nvrtc==13.0.88";

/// Where the wheel is unpacked.
const NVRTC_DIR: &str = "target/nvrtc";

/// What kernels are compiled for: PTX of the oldest architecture that is looked after, machine code of a new one.
const ARCHITECTURES: [&str; 2] = ["compute_80", "sm_90"];

/// What a build with CUDA names to the linker.
const LIBRARIES: [&str; 7] = [
    "cuda", "cudart", "cublas", "cublasLt", "curand", "nvrtc", "nccl",
];

/// A cargo command with CUDA, in a target folder of its own. Libraries of CUDA are opened at run time, so the
/// programs start where there are none; that flag must not reach build scripts, hence the explicit target.
fn cargo_with_cuda(args: &[&str], target_dir: &str) -> Result<(Command, String)> {
    let triple = host_triple()?;
    let mut command = cargo(args);
    command
        .args(["--target", &triple])
        .env("CARGO_TARGET_DIR", target_dir)
        .env("RUSTFLAGS", "--cfg feature=\"dynamic-loading\"");
    Ok((command, triple))
}

/// A cargo command on the whole workspace with CUDA.
fn workspace_with_cuda(args: &[&str], target_dir: &str) -> Result<(Command, String)> {
    let (mut command, triple) = cargo_with_cuda(args, target_dir)?;
    command
        .args(["--release", "--workspace", "--features"])
        .arg(format!("{STAGES},{OTHERS}"));
    Ok((command, triple))
}

/// Puts a stand-in in nvcc's place, so that nothing of NVIDIA's is needed to compile. No kernel of candle's that
/// comes out can run.
fn without_nvcc(command: &mut Command) -> Result<()> {
    let stand_in = Path::new("xtask/stand-in-nvcc.sh")
        .canonicalize()
        .context("cannot find xtask/stand-in-nvcc.sh; start this in the repository")?;
    command
        .env("NVCC", stand_in)
        .env("CUDA_COMPUTE_CAP", "80")
        .env("CUDARC_CUDA_VERSION", "13000");
    Ok(())
}

fn host_triple() -> Result<String> {
    let output = Command::new("rustc")
        .arg("-vV")
        .output()
        .context("cannot start rustc")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let host = text.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(host.context("rustc -vV names no host")?.to_owned())
}

/// Builds the stages with CUDA; the folder of the programs. It takes nvcc, for candle's kernels.
pub(crate) fn build() -> Result<PathBuf> {
    let target_dir = "target/cuda";
    let (mut command, triple) = workspace_with_cuda(&["build", "--quiet", "--bins"], target_dir)?;
    let status = command.status().context("cannot start cargo")?;
    ensure!(
        status.success(),
        "the stages do not build with CUDA (see `cargo xtask doctor` and docs/gpu.md)"
    );
    Ok(Path::new(target_dir).join(triple).join("release"))
}

/// Runs the kernel suite, and whole networks whose cells are grouped, on the first CUDA device.
pub(crate) fn test_kernels() -> Result<()> {
    let (command, _) = workspace_with_cuda(&["test", "--test", "cuda"], "target/cuda")?;
    step("kernels and networks on CUDA", command)
}

/// Lints everything with CUDA; nothing of NVIDIA's is needed.
pub(crate) fn check() -> Result<()> {
    let args = ["clippy", "--lib", "--bins", "--test", "cuda"];
    let (mut command, _) = workspace_with_cuda(&args, "target/cuda-check")?;
    without_nvcc(&mut command)?;
    command.args(["--", "--deny", "warnings"]);
    step("clippy with CUDA", command)
}

/// Links every stage with CUDA and starts it where there is no CUDA; an error if one does not start, or answers
/// otherwise than with the exit code of a missing device and a sentence. Where there is a driver, says so and starts
/// nothing: kernels that cannot run belong on no GPU.
pub(crate) fn start() -> Result<()> {
    eprintln!("== stages with CUDA, started without");
    if loads(&[measure::gpu::DRIVER]) {
        eprintln!(
            "left out: this machine has a driver of NVIDIA's; `cargo xtask gpu-check` tells more"
        );
        return Ok(());
    }
    let target_dir = Path::new("target/cuda-start");
    let mut args = vec!["build", "--quiet", "--bins", "--features", STAGES];
    for feature in STAGES.split(',') {
        let package = feature.split('/').next();
        args.extend(["--package", package.unwrap_or(feature)]);
    }
    let (mut command, triple) = cargo_with_cuda(&args, &target_dir.to_string_lossy())?;
    without_nvcc(&mut command)?;
    // cudarc and candle name these to the linker also where they are opened at run time; nothing asks for a symbol.
    let libraries = std::path::absolute(target_dir.join("libraries"))?;
    std::fs::create_dir_all(&libraries)?;
    for name in LIBRARIES {
        std::fs::write(libraries.join(format!("lib{name}.so")), "INPUT()\n")?;
    }
    command.env("LIBRARY_PATH", libraries);
    // They only start: nothing is worth optimising.
    command
        .env("CARGO_PROFILE_DEV_OPT_LEVEL", "0")
        .env("CARGO_PROFILE_DEV_DEBUG", "0")
        .env("CARGO_INCREMENTAL", "0");
    let status = command.status().context("cannot start cargo")?;
    ensure!(status.success(), "the stages do not link with CUDA");
    for (stage, inputs) in STARTS {
        let mut command = Command::new(target_dir.join(&triple).join("debug").join(stage));
        command
            .args(["run", "--device", "cuda", "--config"])
            .arg(format!("tests/presets/tiny/{stage}.toml"))
            .arg("--store")
            .arg(target_dir.join("store"));
        for (option, sample) in inputs {
            command
                .arg(option)
                .arg(Path::new("tests/formats").join(sample));
        }
        let output = command
            .output()
            .with_context(|| format!("{stage} does not start"))?;
        let says = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.code() == Some(4)
                && says.lines().count() == 1
                && says.starts_with("error: no device cuda:0: NVIDIA's CUDA driver does not load"),
            "{stage} ends with {} where there is no CUDA: {says}",
            output.status
        );
    }
    eprintln!(
        "{} stages start, say that there is no driver, and end with exit code 4",
        STARTS.len()
    );
    Ok(())
}

/// Compiles the kernels of every operation, for floats and doubles, for every architecture; an error if one does
/// not compile or spills registers. Without NVRTC and without pip to fetch it, says so and compiles nothing.
pub(crate) fn compile_kernels() -> Result<()> {
    eprintln!("== kernels with NVRTC");
    let nvrtc = match find_nvrtc()? {
        Some(nvrtc) => nvrtc,
        None => {
            eprintln!(
                "left out: there is no libnvrtc here, and no pip that could fetch {NVRTC_WHEEL} \
                 (x86-64 Linux); what NVRTC makes of the kernels is not known"
            );
            return Ok(());
        }
    };
    let prelude = read(Path::new("crates/kernels/src/gpu/prelude.cuh"))?;
    let mut n_compiled = 0;
    for source in kernel_files()? {
        let text = prelude.clone() + &read(&source)?;
        for real in ["float", "double"] {
            for architecture in ARCHITECTURES {
                let options = [
                    format!("--gpu-architecture={architecture}"),
                    format!("-DREAL={real}"),
                    "--ptxas-options=--verbose".to_owned(),
                ];
                let what = format!("{} for {architecture}, {real}", source.display());
                let log = nvrtc
                    .compile(&text, &options)
                    .with_context(|| format!("{what} does not compile"))?;
                if let Some(spill) = spills(&log) {
                    bail!("{what} spills registers: {spill}");
                }
                n_compiled += 1;
            }
        }
    }
    let (major, minor) = nvrtc.version;
    eprintln!("NVRTC {major}.{minor} compiles all kernels, {n_compiled} programs, without a spill");
    Ok(())
}

/// Every `.cu` file.
fn kernel_files() -> Result<Vec<PathBuf>> {
    let dir = Path::new("crates/kernels/src");
    let entries = std::fs::read_dir(dir)
        .with_context(|| format!("cannot list {}", dir.display()))?
        .collect::<std::io::Result<Vec<_>>>()?;
    let mut files: Vec<PathBuf> = entries
        .into_iter()
        .filter_map(|entry| {
            let name = format!("{}.cu", entry.file_name().to_str()?);
            Some(entry.path().join(name)).filter(|file| file.is_file())
        })
        .collect();
    files.sort();
    ensure!(!files.is_empty(), "no .cu file below {}", dir.display());
    Ok(files)
}

/// The first line of ptxas's report with stores or loads of spilled registers.
fn spills(log: &str) -> Option<&str> {
    log.lines().map(str::trim).find(|line| {
        let mut words = line.split_whitespace().peekable();
        let mut previous = "";
        let mut found = false;
        while let Some(word) = words.next() {
            if word == "bytes" && words.peek() == Some(&"spill") && previous != "0" {
                found = true;
            }
            previous = word;
        }
        found
    })
}

fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

/// NVRTC of the system, or unpacked earlier, or fetched now; `None` if there is no way to it.
fn find_nvrtc() -> Result<Option<Nvrtc>> {
    if let Some(nvrtc) = Nvrtc::open(None) {
        return Ok(Some(nvrtc));
    }
    let dir = Path::new(NVRTC_DIR).join("nvidia/cu13/lib");
    if !dir.is_dir() {
        if !(cfg!(all(target_os = "linux", target_arch = "x86_64")) && has_pip()) {
            return Ok(None);
        }
        eprintln!("fetching {NVRTC_WHEEL}");
        let status = Command::new("python3")
            .args(["-m", "pip", "install", "--quiet", "--no-deps", "--target"])
            .args([NVRTC_DIR, NVRTC_WHEEL])
            .env("PIP_ROOT_USER_ACTION", "ignore")
            .stdin(Stdio::null())
            .status()
            .context("cannot start pip")?;
        ensure!(status.success(), "pip does not fetch {NVRTC_WHEEL}");
    }
    match Nvrtc::open(Some(&dir)) {
        Some(nvrtc) => Ok(Some(nvrtc)),
        None => bail!("{} holds no NVRTC that loads", dir.display()),
    }
}

fn has_pip() -> bool {
    Command::new("python3")
        .args(["-m", "pip", "--version"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// Whether one of these libraries loads.
pub(crate) fn loads(names: &[&str]) -> bool {
    // SAFETY: libraries of CUDA and of ONNX Runtime do nothing when they are loaded.
    names
        .iter()
        .any(|name| unsafe { Library::new(*name) }.is_ok())
}

/// NVIDIA's run-time compiler.
pub(crate) struct Nvrtc {
    library: Library,
    /// (major, minor).
    pub(crate) version: (c_int, c_int),
    /// Keeps what it opens by name in memory, where the loader finds it.
    _builtins: Option<Library>,
}

/// `nvrtcProgram`.
type Program = *mut std::ffi::c_void;

impl Nvrtc {
    /// Of a folder, or where the loader looks.
    pub(crate) fn open(dir: Option<&Path>) -> Option<Self> {
        let names = ["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"];
        let path = |name: &str| dir.map_or_else(|| PathBuf::from(name), |dir| dir.join(name));
        let builtins = dir.and_then(|dir| {
            let entries = std::fs::read_dir(dir).ok()?;
            let mut paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
            paths.find(|path| {
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                name.starts_with("libnvrtc-builtins.so")
            })
        });
        // SAFETY: NVRTC does nothing when it is loaded.
        let load = |path: PathBuf| unsafe { Library::new(path) }.ok();
        let builtins = builtins.and_then(load);
        let library = names.into_iter().find_map(|name| load(path(name)))?;
        let (mut major, mut minor) = (0, 0);
        // SAFETY: the signature is that of nvrtc.h, and the pointers point to live numbers.
        let code = unsafe {
            let version: Symbol<'_, unsafe extern "C" fn(*mut c_int, *mut c_int) -> c_int> =
                library.get(b"nvrtcVersion\0").ok()?;
            version(&mut major, &mut minor)
        };
        (code == 0).then_some(Self {
            library,
            version: (major, minor),
            _builtins: builtins,
        })
    }

    /// Compiles a program; its log.
    fn compile(&self, text: &str, options: &[String]) -> Result<String> {
        type Create = unsafe extern "C" fn(
            *mut Program,
            *const c_char,
            *const c_char,
            c_int,
            *const *const c_char,
            *const *const c_char,
        ) -> c_int;
        type Compile = unsafe extern "C" fn(Program, c_int, *const *const c_char) -> c_int;
        type LogSize = unsafe extern "C" fn(Program, *mut usize) -> c_int;
        type Log = unsafe extern "C" fn(Program, *mut c_char) -> c_int;
        type Destroy = unsafe extern "C" fn(*mut Program) -> c_int;

        let text = CString::new(text).context("a kernel holds a zero byte")?;
        let options = options
            .iter()
            .map(|option| CString::new(option.as_str()))
            .collect::<Result<Vec<_>, _>>()?;
        let pointers: Vec<*const c_char> = options.iter().map(|option| option.as_ptr()).collect();
        let mut program: Program = std::ptr::null_mut();
        // SAFETY: the signatures are those of nvrtc.h; text, options and log are live, and the log is as large as
        // NVRTC says and ends with a zero.
        unsafe {
            let create: Symbol<'_, Create> = self.library.get(b"nvrtcCreateProgram\0")?;
            let compile: Symbol<'_, Compile> = self.library.get(b"nvrtcCompileProgram\0")?;
            let log_size: Symbol<'_, LogSize> = self.library.get(b"nvrtcGetProgramLogSize\0")?;
            let get_log: Symbol<'_, Log> = self.library.get(b"nvrtcGetProgramLog\0")?;
            let destroy: Symbol<'_, Destroy> = self.library.get(b"nvrtcDestroyProgram\0")?;
            let name = c"kernels.cu".as_ptr();
            let none = std::ptr::null();
            let code = create(&mut program, text.as_ptr(), name, 0, none, none);
            ensure!(code == 0, "nvrtcCreateProgram answers {code}");
            let code = compile(program, pointers.len() as c_int, pointers.as_ptr());
            let mut n_bytes = 0;
            log_size(program, &mut n_bytes);
            let mut log: Vec<c_char> = vec![0; n_bytes + 1];
            get_log(program, log.as_mut_ptr());
            destroy(&mut program);
            let log = CStr::from_ptr(log.as_ptr()).to_string_lossy().into_owned();
            ensure!(code == 0, "nvrtcCompileProgram answers {code}: {log}");
            Ok(log)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::spills;

    #[test]
    fn spills_are_found_in_ptxas_reports() {
        let clean = "ptxas info    : Function properties for forward\n    \
                     0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads\n";
        assert_eq!(spills(clean), None);
        let spilled = "    16 bytes stack frame, 12 bytes spill stores, 0 bytes spill loads";
        assert_eq!(spills(spilled), Some(spilled.trim()));
    }
}
