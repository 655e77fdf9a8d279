//! Reading vectors, comparing, reporting.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::OnceLock;

use anyhow::{Context, Result};
use candle_core::{DType, Device, Tensor};

/// Outputs, logits, losses, gradients of inputs and of architecture parameters: PyTorch's own fp32
/// differs from its fp64 by up to 2e-6.
pub(crate) const TIGHT: f64 = 1e-5;
/// Gradients of single weights and what follows from several steps: PyTorch's own fp32 differs from its
/// fp64 by up to 3e-5.
pub(crate) const LOOSE: f64 = 1e-4;
/// The end of a run of several SGD steps, where rounding has grown: PyTorch's own fp32 is 2.6e-2 away
/// from fp64 after five steps.
pub(crate) const CHAOTIC: f64 = 5e-2;

static DEVICE: OnceLock<Device> = OnceLock::new();

/// Where everything is computed; said before it is asked for.
pub(crate) fn compute_on(device: Device) {
    let _ = DEVICE.set(device);
}

/// Where everything is computed: the processor, if nothing else was said.
pub(crate) fn device() -> &'static Device {
    DEVICE.get_or_init(|| Device::Cpu)
}

/// The tensors of one safetensors file with its metadata.
pub(crate) struct Vectors {
    tensors: BTreeMap<String, Tensor>,
    metadata: BTreeMap<String, String>,
}

impl Vectors {
    /// Reads a file whole.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let bytes =
            std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        let open = || -> Result<Self> {
            let tensors = candle_core::safetensors::load_buffer(&bytes, device())?;
            let (_, header) = safetensors::SafeTensors::read_metadata(&bytes)?;
            let metadata = header
                .metadata()
                .clone()
                .unwrap_or_default()
                .into_iter()
                .collect();
            Ok(Self {
                tensors: tensors.into_iter().collect(),
                metadata,
            })
        };
        open().with_context(|| format!("{} is no readable safetensors file", path.display()))
    }

    /// A tensor by name.
    pub(crate) fn get(&self, name: &str) -> Result<&Tensor> {
        self.tensors
            .get(name)
            .with_context(|| format!("tensor `{name}` is missing"))
    }

    /// The double-precision version of a reference where there is one.
    pub(crate) fn reference(&self, name: &str) -> Result<&Tensor> {
        let split = name
            .split_once('.')
            .filter(|(head, _)| head.starts_with("grad_arch"));
        let double = match split {
            Some((head, tail)) => format!("{head}_f64.{tail}"),
            None => format!("{name}_f64"),
        };
        match self.tensors.get(&double) {
            Some(tensor) => Ok(tensor),
            None => self.get(name),
        }
    }

    /// Whether a tensor is there.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// All tensors whose name starts with `prefix`, by the rest of their name.
    pub(crate) fn under(&self, prefix: &str) -> BTreeMap<String, Tensor> {
        self.tensors
            .iter()
            .filter_map(|(name, t)| Some((name.strip_prefix(prefix)?.to_owned(), t.clone())))
            .collect()
    }

    /// The names of all tensors.
    pub(crate) fn names(&self) -> impl Iterator<Item = &String> {
        self.tensors.keys()
    }

    /// A metadata entry.
    pub(crate) fn metadata(&self, name: &str) -> Option<&str> {
        self.metadata.get(name).map(String::as_str)
    }
}

/// The result of all comparisons.
#[derive(Default)]
pub(crate) struct Report {
    rows: Vec<Row>,
    skipped: Vec<(String, String)>,
}

struct Row {
    file: String,
    group: String,
    n_tensors: usize,
    worst: f64,
    worst_name: String,
    tolerance: f64,
}

impl Row {
    /// Within tolerance; a NaN is not.
    fn passed(&self) -> bool {
        self.worst <= self.tolerance
    }
}

/// The comparisons of one file.
pub(crate) struct FileReport<'a> {
    report: &'a mut Report,
    file: String,
}

impl Report {
    /// Starts the section of a file.
    pub(crate) fn file(&mut self, name: &str) -> FileReport<'_> {
        FileReport {
            report: self,
            file: name.to_owned(),
        }
    }

    /// Whether something was compared and nothing is over its tolerance.
    pub(crate) fn passed(&self) -> bool {
        // Written so that a NaN fails.
        !self.rows.is_empty() && self.rows.iter().all(Row::passed)
    }

    /// Prints the table on stdout.
    pub(crate) fn print(&self) {
        println!("largest |difference| / largest |reference|, per group of tensors\n");
        let mut file = "";
        for row in &self.rows {
            if row.file != file {
                println!("{}", row.file);
                file = &row.file;
            }
            let verdict = if row.passed() { "ok" } else { "FAILED" };
            println!(
                "  {verdict:<6} {:<34} {:>5} tensors  {:>8.1e} (tolerance {:.0e}, worst: {})",
                row.group, row.n_tensors, row.worst, row.tolerance, row.worst_name
            );
        }
        for (file, why) in &self.skipped {
            println!("skipped {file}: {why}");
        }
        let n_failed = self.rows.iter().filter(|row| !row.passed()).count();
        println!(
            "\n{} groups compared, {n_failed} over tolerance",
            self.rows.len()
        );
    }
}

impl FileReport<'_> {
    /// Notes that something was left out.
    pub(crate) fn skip(&mut self, why: &str) {
        self.report
            .skipped
            .push((self.file.clone(), why.to_owned()));
    }

    /// Compares one tensor and books it under a group of this file.
    pub(crate) fn compare(
        &mut self,
        group: &str,
        name: &str,
        ours: &Tensor,
        reference: &Tensor,
        tolerance: f64,
    ) -> Result<()> {
        let error = relative_error(ours, reference).with_context(|| format!("comparing {name}"))?;
        let file = &self.file;
        let rows = &mut self.report.rows;
        let position = rows
            .iter()
            .position(|row| row.file == *file && row.group == group);
        let index = position.unwrap_or_else(|| {
            rows.push(Row {
                file: file.clone(),
                group: group.to_owned(),
                n_tensors: 0,
                worst: 0.0,
                worst_name: String::new(),
                tolerance,
            });
            rows.len() - 1
        });
        let row = &mut rows[index];
        row.n_tensors += 1;
        // A NaN stays the worst.
        if error.is_nan() || error > row.worst || row.worst_name.is_empty() {
            row.worst = error;
            row.worst_name = name.to_owned();
        }
        Ok(())
    }
}

/// max |ours - reference| / max |reference|; the plain maximum where the reference is zero throughout.
fn relative_error(ours: &Tensor, reference: &Tensor) -> Result<f64> {
    anyhow::ensure!(
        ours.elem_count() == reference.elem_count(),
        "ours has shape {:?}, the reference {:?}",
        ours.dims(),
        reference.dims()
    );
    let values =
        |t: &Tensor| -> Result<Vec<f64>> { Ok(t.to_dtype(DType::F64)?.flatten_all()?.to_vec1()?) };
    let (ours, reference) = (values(ours)?, values(reference)?);
    let mut difference = 0.0f64;
    let mut size = 0.0f64;
    for (a, b) in ours.iter().zip(&reference) {
        let d = (a - b).abs();
        if d.is_nan() {
            return Ok(f64::NAN);
        }
        difference = difference.max(d);
        size = size.max(b.abs());
    }
    Ok(if size > 0.0 {
        difference / size
    } else {
        difference
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(values: &[f32]) -> Tensor {
        Tensor::new(values, &Device::Cpu).unwrap()
    }

    #[test]
    fn an_error_is_relative_to_the_largest_reference() {
        let error = relative_error(&tensor(&[1.0, 10.5]), &tensor(&[1.0, 10.0])).unwrap();
        assert!((error - 0.05).abs() < 1e-12);
    }

    #[test]
    fn nan_and_differences_fail_the_report() {
        for ours in [f32::NAN, 1.1] {
            let mut report = Report::default();
            report
                .file("f")
                .compare("g", "t", &tensor(&[ours]), &tensor(&[1.0]), TIGHT)
                .unwrap();
            assert!(!report.passed(), "{ours} must not pass");
        }
    }

    #[test]
    fn nothing_compared_is_not_a_pass() {
        assert!(!Report::default().passed());
    }
}
