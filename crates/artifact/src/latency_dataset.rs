//! Timed architectures: what `profile` writes and `predictor` learns from.

use std::path::Path;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use space::{CellGenotype, CellKind, Genotype, NetworkSpec, Stem};

use crate::error::Error;
use crate::files::Files;
use crate::format::{FormatVersion, Kind};
use crate::genotype::{cell_from_texts, gene_to_text};
use crate::precision::Precision;
use crate::stage::{DeviceSpec, PROFILE};
use crate::store::Artifact;
use crate::table::{Column, Columns, Table};

const SAMPLES: &str = "samples.parquet";
const CELLS: &str = "cells.parquet";
const CHOSEN: &str = "chosen";
const PEAK_MEMORY: &str = "peak_memory_bytes";
const ENERGY: &str = "energy_joules";
const GRAPH: &str = "latency_graph_median_millis";
const GPU: [&str; 4] = [
    "gpu_clock_mhz",
    "gpu_memory_clock_mhz",
    "gpu_temperature_celsius",
    "gpu_power_watts",
];
/// Columns that are there if anything stands in them.
const MORE: [(&str, Cost); 7] = [
    (PEAK_MEMORY, |s| s.peak_memory_bytes),
    (ENERGY, |s| s.energy_joules),
    (GRAPH, |s| s.graph_median_millis),
    (GPU[0], |s| Some(s.gpu?.clock_mhz)),
    (GPU[1], |s| Some(s.gpu?.memory_clock_mhz)),
    (GPU[2], |s| Some(s.gpu?.temperature_celsius)),
    (GPU[3], |s| Some(s.gpu?.power_watts)),
];
type Cost = fn(&LatencySample) -> Option<f64>;

/// The network that a genotype was put into, as it stands in configs and files; the other form of
/// [`NetworkSpec`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkRecord {
    /// The layers before the first cell: `conv3x3`, `conv3x3-stride2` or `imagenet`.
    #[serde(serialize_with = "stem_to_name", deserialize_with = "stem_from_name")]
    pub stem: Stem,
    /// Cells, both kinds together.
    pub n_layers: usize,
    /// Channels of each node in the first cells.
    pub init_channels: usize,
    /// Channels of the image.
    pub in_channels: usize,
    /// Classes of the last layer.
    pub n_classes: usize,
    /// Height and width of the image, in pixels.
    pub image_size: usize,
}

fn stem_to_name<S: Serializer>(stem: &Stem, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(stem.name())
}

fn stem_from_name<'de, D: Deserializer<'de>>(from: D) -> Result<Stem, D::Error> {
    let name = String::deserialize(from)?;
    Stem::from_name(&name).ok_or_else(|| {
        let names = Stem::ALL.map(Stem::name).join(", ");
        D::Error::custom(format!("unknown stem `{name}`, expected one of {names}"))
    })
}

impl From<&NetworkSpec> for NetworkRecord {
    fn from(spec: &NetworkSpec) -> Self {
        let &NetworkSpec {
            stem,
            n_layers,
            init_channels,
            in_channels,
            n_classes,
            image_size,
        } = spec;
        Self {
            stem,
            n_layers,
            init_channels,
            in_channels,
            n_classes,
            image_size,
        }
    }
}

impl TryFrom<&NetworkRecord> for NetworkSpec {
    type Error = Error;

    /// The network, if it can be built.
    fn try_from(record: &NetworkRecord) -> Result<Self, Error> {
        let &NetworkRecord {
            stem,
            n_layers,
            init_channels,
            in_channels,
            n_classes,
            image_size,
        } = record;
        let spec = Self {
            stem,
            n_layers,
            init_channels,
            in_channels,
            n_classes,
            image_size,
        };
        spec.validate()?;
        Ok(spec)
    }
}

/// A cost of a network: what can be measured, modelled and searched for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Metric {
    /// The time of one call, in milliseconds.
    #[default]
    Latency,
    /// The bytes of the network, its input and its largest set of buffers during one call on one thread, in mebibytes.
    PeakMemory,
    /// What the processor or the GPU takes up during one call, in millijoules.
    Energy,
}

impl Metric {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Latency, Self::PeakMemory, Self::Energy];

    /// The name in configs and files.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Latency => "latency",
            Self::PeakMemory => "peak-memory",
            Self::Energy => "energy",
        }
    }

    /// The unit of [`of`](Self::of), for people.
    pub const fn unit(self) -> &'static str {
        match self {
            Self::Latency => "ms",
            Self::PeakMemory => "MiB",
            Self::Energy => "mJ",
        }
    }

    /// What a sample costs, in the unit of the metric; `None` where it was not measured.
    pub fn of(self, sample: &LatencySample) -> Option<f64> {
        let LatencySample {
            median_millis,
            peak_memory_bytes,
            energy_joules,
            ..
        } = *sample;
        self.among(median_millis, peak_memory_bytes, energy_joules)
    }

    /// This one of what was measured, in the unit of the metric.
    pub(crate) fn among(
        self,
        millis: f64,
        peak_memory_bytes: Option<f64>,
        energy_joules: Option<f64>,
    ) -> Option<f64> {
        match self {
            Self::Latency => Some(millis),
            Self::PeakMemory => Some(peak_memory_bytes? / f64::from(1 << 20)),
            Self::Energy => Some(energy_joules? * 1e3),
        }
    }

    /// Whether it is the one that is meant where none is named.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

impl std::fmt::Display for Metric {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}

/// How a latency was taken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TimingRecord {
    /// Images per call.
    pub batch_size: usize,
    /// Threads of the network that is timed.
    pub n_threads: usize,
    /// Calls that do not count, before those that do.
    pub n_warmup: u32,
    /// Calls that count.
    pub n_repeats: u32,
    /// The precision of the network's products; not named where it is `f32`.
    #[serde(default, skip_serializing_if = "Precision::is_default")]
    pub precision: Precision,
    /// On CUDA, whether the L2 cache is overwritten before each call that counts; not named where it is not.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub flush_l2: bool,
}

impl TimingRecord {
    /// Makes sure that networks on this device can be timed so.
    ///
    /// # Errors
    /// [`Error::CudaOnly`] for what the CPU does not know.
    pub fn check(&self, device: DeviceSpec) -> Result<(), Error> {
        self.precision.check(device)?;
        match device {
            DeviceSpec::Cpu if self.flush_l2 => Err(Error::CudaOnly {
                setting: "timing.flush_l2 = true".to_owned(),
                instead: "timing.flush_l2 = false",
            }),
            _ => Ok(()),
        }
    }
}

/// What a latency is the latency of: numbers taken under other settings cannot be compared with it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MeasurementSettings {
    /// The network around the genotype.
    pub network: NetworkRecord,
    /// How it was timed.
    pub timing: TimingRecord,
    /// The device: `cpu`, `cuda:0`.
    pub device: String,
    /// What ran the network: `native-cpu`; `candle-cpu` before there was a runtime of our own.
    pub runtime: String,
    /// What the latencies are corrected to; `None` where they are as they were taken (and before 1.1).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub anchor: Option<AnchorRecord>,
}

/// The state of the machine that latencies are corrected to. A latency taken later by the same code
/// on the same machine can be brought to that state and compared.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AnchorRecord {
    /// The anchor network's median latency over the whole run.
    pub median_nanos: u64,
    /// The fingerprint of the machine.
    pub machine: String,
    /// The revision of the stage `profile` whose code ran the network; 0, which none is, where nobody wrote it down (before
    /// format 1.4 of a latency data set). A faster revision is not a machine that drifted.
    #[serde(default)]
    pub revision: u32,
}

impl AnchorRecord {
    /// What the code of this program took on `machine`.
    pub fn new(median_nanos: u64, machine: String) -> Self {
        Self {
            median_nanos,
            machine,
            revision: PROFILE.revision,
        }
    }

    /// Whether the code of this program took it on `machine`.
    pub fn is_of(&self, machine: &str) -> bool {
        self.machine == machine && self.revision == PROFILE.revision
    }

    /// The published genotype whose network is the anchor, whoever times: it holds most primitives, so that whatever slows one of
    /// them down slows it down as well.
    pub const GENOTYPE: &str = "PC_DARTS_cifar";
}

/// One timed architecture.
#[derive(Clone, Debug, PartialEq)]
pub struct LatencySample {
    /// The architecture.
    pub genotype: Genotype,
    /// The median over the repeats that nothing disturbed, corrected for drift, in milliseconds.
    pub median_millis: f64,
    /// The 10th percentile over the repeats.
    pub p10_millis: f64,
    /// The 90th percentile over the repeats.
    pub p90_millis: f64,
    /// Calls that count.
    pub n_repeats: u32,
    /// The anchor network's latency around this sample over its reference: what was divided out.
    pub anchor_ratio: f64,
    /// Whether the machine was too restless around this sample.
    pub disturbed: bool,
    /// Whether a round of the profile took it for what its latency tells, so that it was not drawn at random and judges
    /// no model; false before format 1.5.
    pub chosen: bool,
    /// The median of a second timing later in the run: the noise floor of the measurement.
    pub repeat_median_millis: Option<f64>,
    /// The bytes of the network, its input and its largest set of buffers during one call on one thread: whole bytes. `None`
    /// where nobody asked, and before format 1.2.
    pub peak_memory_bytes: Option<f64>,
    /// What the processor (the whole package) or the GPU (above what it takes up at rest) took up during one call, in
    /// joules. `None` as above.
    pub energy_joules: Option<f64>,
    /// On CUDA, the median of calls that are launched as one graph, corrected for drift, in milliseconds:
    /// [`median_millis`](Self::median_millis) is that of calls launched operation by operation. `None` on the CPU, where
    /// the network could not be captured, and before format 1.3.
    pub graph_median_millis: Option<f64>,
    /// On CUDA, the GPU right behind the timing. `None` on the CPU, and before format 1.3.
    pub gpu: Option<GpuRecord>,
}

/// What a GPU says of itself at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GpuRecord {
    /// Clock of the multiprocessors.
    pub clock_mhz: f64,
    /// Clock of the memory.
    pub memory_clock_mhz: f64,
    /// Of the chip.
    pub temperature_celsius: f64,
    /// Of the board.
    pub power_watts: f64,
}

/// One timed cell, on its own.
#[derive(Clone, Debug, PartialEq)]
pub struct CellSample {
    /// The row of the architecture in [`LatencyDataset::samples`].
    pub sample_index: u32,
    /// Which of its cells.
    pub kind: CellKind,
    /// The cell.
    pub cell: CellGenotype,
    /// Whether state 0 has twice the resolution of state 1.
    pub reduction_prev: bool,
    /// Channels of the output of the cell before the preceding one.
    pub channels_prev_prev: usize,
    /// Channels of the output of the preceding cell.
    pub channels_prev: usize,
    /// Channels of each node.
    pub channels: usize,
    /// Height and width of the output of the cell before the preceding one, in pixels.
    pub size_prev_prev: usize,
    /// Height and width of the output of the preceding cell, in pixels.
    pub size_prev: usize,
    /// How many layers of the network have this geometry.
    pub n_uses: u32,
    /// The median over the repeats, corrected for drift, in milliseconds.
    pub median_millis: f64,
    /// The 10th percentile over the repeats.
    pub p10_millis: f64,
    /// The 90th percentile over the repeats.
    pub p90_millis: f64,
    /// Calls that count.
    pub n_repeats: u32,
    /// The anchor network's latency around this sample over its reference.
    pub anchor_ratio: f64,
}

/// Timed architectures, and their cells timed on their own.
///
/// Files: `samples.parquet`, `cells.parquet`.
#[derive(Clone, Debug, PartialEq)]
pub struct LatencyDataset {
    /// What the latencies are of; `None` if a foreign file does not say.
    pub settings: Option<MeasurementSettings>,
    /// One per architecture.
    pub samples: Vec<LatencySample>,
    /// One per architecture, cell kind and geometry; may be empty.
    pub cells: Vec<CellSample>,
}

impl LatencyDataset {
    /// Reads timed architectures from one file, Parquet or CSV, whoever wrote it.
    ///
    /// Required are the sixteen gene columns and `latency_median_millis`. Without the other columns a
    /// sample counts as undisturbed and timed once, its percentiles as its median. Integers, 32-bit
    /// floats and dictionary-encoded text will do. What a file says of itself in its key-value
    /// metadata (kind, format, search space) is held against this program.
    ///
    /// # Errors
    /// If the file cannot be read, lacks a column, or has a row that is no genotype or no latency.
    pub fn read(file: &Path) -> Result<Self, Error> {
        let table = Table::read::<Self>(file)?;
        Ok(Self {
            settings: settings_of(&table)?,
            samples: samples_of(&table)?,
            cells: Vec::new(),
        })
    }

    /// Reads timed cells from one file, such as the `cells.parquet` beside timed architectures.
    ///
    /// # Errors
    /// If the file cannot be read, lacks a column, or has a row that is no cell.
    pub fn read_cells(file: &Path) -> Result<Vec<CellSample>, Error> {
        cells_of(&Table::read::<Self>(file)?)
    }
}

/// How far the machine may have drifted since it was profiled without a word about it.
const MAX_UNREMARKED_DRIFT: f64 = 0.1;

impl MeasurementSettings {
    /// How many times as long as in the profile the machine took, by its anchor's ratio, which is divided out of what is measured; `None` where
    /// it took about as long, or where there is no anchor of it.
    pub fn slowdown(&self, anchor_ratio: f64) -> Option<f64> {
        let is_notable = (anchor_ratio - 1.0).abs() > MAX_UNREMARKED_DRIFT;
        (self.anchor.is_some() && is_notable).then_some(anchor_ratio)
    }
}

impl Artifact for LatencyDataset {
    const KIND: Kind = Kind::LatencyDataset;
    const FORMAT: FormatVersion = FormatVersion::new(1, 5);

    fn to_files(&self) -> Result<Files, Error> {
        let mut files = Files::default();
        let settings = self
            .settings
            .as_ref()
            .map(|settings| serde_json::to_string(settings).expect("strings and numbers are JSON"));

        let samples = &self.samples;
        let mut columns = Columns::default();
        for kind in CellKind::ALL {
            for index in 0..8 {
                let gene = |sample: &LatencySample| gene_text(sample.genotype.cell(kind), index);
                columns.put(&gene_column(kind, index), samples.iter().map(gene));
            }
        }
        columns.put(
            "latency_median_millis",
            samples.iter().map(|s| s.median_millis),
        );
        columns.put("latency_p10_millis", samples.iter().map(|s| s.p10_millis));
        columns.put("latency_p90_millis", samples.iter().map(|s| s.p90_millis));
        columns.put("n_repeats", samples.iter().map(|s| s.n_repeats));
        columns.put("anchor_ratio", samples.iter().map(|s| s.anchor_ratio));
        columns.put("disturbed", samples.iter().map(|s| s.disturbed));
        columns.put(
            "latency_repeat_median_millis",
            samples.iter().map(|s| s.repeat_median_millis),
        );
        if samples.iter().any(|sample| sample.chosen) {
            columns.put(CHOSEN, samples.iter().map(|s| s.chosen));
        }
        for (name, of) in MORE {
            if samples.iter().any(|sample| of(sample).is_some()) {
                columns.put(name, samples.iter().map(of));
            }
        }
        files.put_table::<Self>(SAMPLES, columns, settings.clone())?;

        let cells = &self.cells;
        let mut columns = Columns::default();
        columns.put("sample_index", cells.iter().map(|c| c.sample_index));
        columns.put("kind", cells.iter().map(|c| c.kind.name().to_owned()));
        for index in 0..8 {
            columns.put(
                &format!("gene_{index}"),
                cells.iter().map(|c| gene_text(&c.cell, index)),
            );
        }
        columns.put("reduction_prev", cells.iter().map(|c| c.reduction_prev));
        for (name, size) in SIZES {
            columns.put(
                name,
                cells
                    .iter()
                    .map(|c| u32::try_from(size(c)).unwrap_or(u32::MAX)),
            );
        }
        columns.put("n_uses", cells.iter().map(|c| c.n_uses));
        columns.put(
            "latency_median_millis",
            cells.iter().map(|c| c.median_millis),
        );
        columns.put("latency_p10_millis", cells.iter().map(|c| c.p10_millis));
        columns.put("latency_p90_millis", cells.iter().map(|c| c.p90_millis));
        columns.put("n_repeats", cells.iter().map(|c| c.n_repeats));
        columns.put("anchor_ratio", cells.iter().map(|c| c.anchor_ratio));
        files.put_table::<Self>(CELLS, columns, settings)?;
        Ok(files)
    }

    fn from_files(files: &Files) -> Result<Self, Error> {
        let samples = files.table::<Self>(SAMPLES)?;
        Ok(Self {
            settings: settings_of(&samples)?,
            samples: samples_of(&samples)?,
            cells: cells_of(&files.table::<Self>(CELLS)?)?,
        })
    }

    fn headlines(&self) -> Vec<String> {
        let n = self.samples.len();
        let n_disturbed = self.samples.iter().filter(|own| own.disturbed).count();
        let networks = if n == 1 { "network" } else { "networks" };
        vec![match n_disturbed {
            0 => format!("{n} {networks} timed"),
            _ => format!(
                "{n} {networks} timed, {n_disturbed} of them while the machine was restless: the predictor leaves these out"
            ),
        }]
    }
}

/// A table in CSV of architectures, each with the file that it is in: the column `file`, and the genes as in a latency data set.
pub fn architectures_to_csv(rows: &[(String, Genotype)]) -> String {
    let names = CellKind::ALL
        .into_iter()
        .flat_map(|kind| (0..8).map(move |index| gene_column(kind, index)));
    let mut text = format!("file,{}\n", names.collect::<Vec<_>>().join(","));
    for (file, genotype) in rows {
        let genes = CellKind::ALL
            .into_iter()
            .flat_map(|kind| (0..8).map(move |index| gene_text(genotype.cell(kind), index)));
        text.push_str(&format!("{file},{}\n", genes.collect::<Vec<_>>().join(",")));
    }
    text
}

/// The numbers of a cell's place, by column.
type Size = fn(&CellSample) -> usize;
const SIZES: [(&str, Size); 5] = [
    ("channels_prev_prev", |c| c.channels_prev_prev),
    ("channels_prev", |c| c.channels_prev),
    ("channels", |c| c.channels),
    ("size_prev_prev", |c| c.size_prev_prev),
    ("size_prev", |c| c.size_prev),
];

fn gene_column(kind: CellKind, index: usize) -> String {
    format!("{kind}_{index}")
}

fn gene_text(cell: &CellGenotype, index: usize) -> String {
    gene_to_text(cell.nodes[index / 2][index % 2])
}

fn settings_of(table: &Table) -> Result<Option<MeasurementSettings>, Error> {
    table
        .metadata("settings")
        .map(serde_json::from_str)
        .transpose()
        .map_err(|error| table.malformed(format!("metadata settings: {error}")))
}

/// A column, or what stands for its absence.
fn optional<T: Column>(
    table: &Table,
    name: &str,
    absent: impl Fn(usize) -> T,
) -> Result<Vec<T>, Error> {
    if table.has(name) {
        table.get(name)
    } else {
        Ok((0..table.n_rows()).map(absent).collect())
    }
}

/// The cells of each row, of both kinds.
pub(crate) fn cells_of_genes(table: &Table) -> Result<[Vec<CellGenotype>; 2], Error> {
    let [normal, reduction] =
        CellKind::ALL.map(|kind| cells_in(table, |index| gene_column(kind, index)));
    Ok([normal?, reduction?])
}

fn samples_of(table: &Table) -> Result<Vec<LatencySample>, Error> {
    let [normal, reduction] = cells_of_genes(table)?;
    let median: Vec<f64> = table.get("latency_median_millis")?;
    if let Some(row) = median.iter().position(|&millis| millis <= 0.0) {
        let found = median[row];
        return Err(table.malformed(format!(
            "latency_median_millis is {found} in {}, expected a number above 0",
            table.row(row)
        )));
    }
    let p10 = optional(table, "latency_p10_millis", |row| median[row])?;
    let p90 = optional(table, "latency_p90_millis", |row| median[row])?;
    let n_repeats = optional(table, "n_repeats", |_| 1)?;
    let anchor_ratio = optional(table, "anchor_ratio", |_| 1.0)?;
    let disturbed = optional(table, "disturbed", |_| false)?;
    let chosen = optional(table, CHOSEN, |_| false)?;
    let repeat = optional(table, "latency_repeat_median_millis", |_| None)?;
    let peak_memory: Vec<Option<f64>> = optional(table, PEAK_MEMORY, |_| None)?;
    let energy: Vec<Option<f64>> = optional(table, ENERGY, |_| None)?;
    let graph: Vec<Option<f64>> = optional(table, GRAPH, |_| None)?;
    let mut seen: Vec<Vec<Option<f64>>> = Vec::with_capacity(GPU.len());
    for name in GPU {
        seen.push(optional(table, name, |_| None)?);
    }
    let gpu = |row: usize| {
        Some(GpuRecord {
            clock_mhz: seen[0][row]?,
            memory_clock_mhz: seen[1][row]?,
            temperature_celsius: seen[2][row]?,
            power_watts: seen[3][row]?,
        })
    };
    let costs = [
        (PEAK_MEMORY, &peak_memory),
        (ENERGY, &energy),
        (GRAPH, &graph),
    ];
    for (name, costs) in costs {
        if let Some(row) = costs.iter().position(|cost| cost.is_some_and(|c| c <= 0.0)) {
            return Err(table.malformed(format!(
                "{name} is {} in {}, expected a number above 0",
                costs[row].unwrap_or_default(),
                table.row(row)
            )));
        }
    }
    let samples = normal.into_iter().zip(reduction).enumerate();
    Ok(samples
        .map(|(row, (normal, reduction))| LatencySample {
            genotype: Genotype { normal, reduction },
            median_millis: median[row],
            p10_millis: p10[row],
            p90_millis: p90[row],
            n_repeats: n_repeats[row],
            anchor_ratio: anchor_ratio[row],
            disturbed: disturbed[row],
            chosen: chosen[row],
            repeat_median_millis: repeat[row],
            peak_memory_bytes: peak_memory[row],
            energy_joules: energy[row],
            graph_median_millis: graph[row],
            gpu: gpu(row),
        })
        .collect())
}

fn cells_of(table: &Table) -> Result<Vec<CellSample>, Error> {
    let cells = cells_in(table, |index| format!("gene_{index}"))?;
    let kinds: Vec<String> = table.get("kind")?;
    let sample_index = table.get("sample_index")?;
    let reduction_prev = table.get("reduction_prev")?;
    let sizes: Vec<Vec<u32>> = SIZES
        .iter()
        .map(|(name, _)| table.get(name))
        .collect::<Result<_, _>>()?;
    let n_uses = table.get("n_uses")?;
    let median: Vec<f64> = table.get("latency_median_millis")?;
    let p10 = table.get("latency_p10_millis")?;
    let p90 = table.get("latency_p90_millis")?;
    let n_repeats = table.get("n_repeats")?;
    let anchor_ratio = table.get("anchor_ratio")?;
    cells
        .into_iter()
        .enumerate()
        .map(|(row, cell)| {
            let kind = CellKind::from_name(&kinds[row]).ok_or_else(|| {
                let kind = &kinds[row];
                table.malformed(format!(
                    "kind is `{kind}` in row {row}, expected normal or reduce"
                ))
            })?;
            Ok(CellSample {
                sample_index: sample_index[row],
                kind,
                cell,
                reduction_prev: reduction_prev[row],
                channels_prev_prev: sizes[0][row] as usize,
                channels_prev: sizes[1][row] as usize,
                channels: sizes[2][row] as usize,
                size_prev_prev: sizes[3][row] as usize,
                size_prev: sizes[4][row] as usize,
                n_uses: n_uses[row],
                median_millis: median[row],
                p10_millis: p10[row],
                p90_millis: p90[row],
                n_repeats: n_repeats[row],
                anchor_ratio: anchor_ratio[row],
            })
        })
        .collect()
}

/// The cell of each row, from eight columns.
fn cells_in(table: &Table, column: impl Fn(usize) -> String) -> Result<Vec<CellGenotype>, Error> {
    let columns: Vec<Vec<String>> = (0..8)
        .map(|index| table.get(&column(index)))
        .collect::<Result<_, _>>()?;
    (0..table.n_rows())
        .map(|row| {
            cell_from_texts(columns.iter().map(|column| column[row].as_str()).collect()).map_err(
                |reason| {
                    let (first, last) = (column(0), column(7));
                    let row = table.row(row);
                    table.malformed(format!("columns {first} to {last} in {row}: {reason}"))
                },
            )
        })
        .collect()
}
