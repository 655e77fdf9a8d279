//! Genotypes in JSON, in files, and in tables of another origin.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use crate::samples::{self, Sample};
use arrow::array::{
    ArrayRef, Float32Array, Int64Array, LargeStringArray, RecordBatch, StringArray,
};
use artifact::{
    Artifact, ExitCode, LatencyDataset, SearchResult, StageError, genotype_from_arg,
    genotype_from_json, genotype_to_json,
};
use parquet::arrow::ArrowWriter;
use serde_json::json;
use space::Genotype;
use tempfile::TempDir;

#[test]
fn the_json_form_leads_back() {
    for name in Genotype::names() {
        let genotype = Genotype::named(name).unwrap();
        let json = genotype_to_json(&genotype);
        assert_eq!(json["normal"].as_array().unwrap().len(), 8);
        assert_eq!(genotype_from_json(&json.to_string()).unwrap(), genotype);
        // Within a larger record, and with the original code's other two fields.
        let record = json!({"genotype": json, "lambda": 0.5});
        assert_eq!(genotype_from_json(&record.to_string()).unwrap(), genotype);
        let mut json = json;
        json["normal_concat"] = json!([2, 3, 4, 5]);
        json["reduce_concat"] = json!([2, 3, 4, 5]);
        assert_eq!(genotype_from_json(&json.to_string()).unwrap(), genotype);
    }
}

#[test]
fn json_that_is_no_genotype_is_refused() {
    let good = genotype_to_json(&samples::genotype());
    let refusal = |pointer: &str, value: serde_json::Value| {
        let mut json = good.clone();
        *json.pointer_mut(pointer).unwrap() = value;
        genotype_from_json(&json.to_string())
            .unwrap_err()
            .to_string()
    };
    assert_eq!(
        refusal("/normal/0", json!(["conv", 1])),
        "no genotype in JSON: normal: unknown primitive `conv`, expected one of none, max_pool_3x3, \
         avg_pool_3x3, skip_connect, sep_conv_3x3, sep_conv_5x5, dil_conv_3x3, dil_conv_5x5"
    );
    assert_eq!(
        refusal("/reduce", json!([])),
        "no genotype in JSON: reduce: 0 genes, expected 8 (two for each of the nodes 2 to 5)"
    );
    assert_eq!(
        refusal("/normal/0/1", json!(2)),
        "no genotype in JSON: normal cell: node 2 reads state 2, but only states before 2 exist there"
    );
    let text = genotype_from_json("{\"normal\": [")
        .unwrap_err()
        .to_string();
    assert!(text.starts_with("no genotype in JSON: EOF"), "{text}");
}

#[test]
fn an_argument_is_a_name_or_a_file() {
    let scratch = TempDir::new().unwrap();
    let file = |name: &str, text: String| {
        let path = scratch.path().join(name);
        fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let genotype = samples::genotype();
    assert_eq!(genotype_from_arg("PC_DARTS_cifar").unwrap(), genotype);
    let json = file("a.json", format!("\n{}", genotype_to_json(&genotype)));
    assert_eq!(genotype_from_arg(&json).unwrap(), genotype);
    let tuples = file("a.txt", format!("X = {genotype}\n"));
    assert_eq!(genotype_from_arg(&tuples).unwrap(), genotype);
    assert_eq!(genotype_from_arg(&genotype.to_string()).unwrap(), genotype);
    assert!(genotype_from_arg("Genotype(normal=[])").is_err());
    // A search result's file as it is.
    let result = samples::publish::<SearchResult>(&artifact::Store::at(scratch.path()));
    let path = result.dir.join("genotype.json");
    assert_eq!(genotype_from_arg(path.to_str().unwrap()).unwrap(), genotype);

    let refusal = |arg: &str| artifact::Error::from(genotype_from_arg(arg).unwrap_err());
    let error = refusal("DARTS_V3");
    assert_eq!(
        error.to_string(),
        "there is no genotype `DARTS_V3`; expected DARTS_V1, DARTS_V2, PDARTS, PC_DARTS_cifar, \
         PC_DARTS_image, the text Genotype(…), or a file"
    );
    assert_eq!(error.exit_code(), ExitCode::Usage);
    for (name, text) in [("b.json", "{}"), ("b.txt", "Genotype(normal=[")] {
        let path = file(name, text.to_owned());
        assert_eq!(refusal(&path).to_string(), path);
    }
}

/// A table as another program would write it, with other types, and columns that mean nothing here.
struct Foreign(Vec<(String, ArrayRef)>);

impl Foreign {
    fn new() -> Self {
        let mut columns: Vec<(String, ArrayRef)> = Vec::new();
        for kind in ["normal", "reduce"] {
            for index in 0..8 {
                let gene = format!("sep_conv_3x3@{}", index % 2);
                let array = LargeStringArray::from(vec![gene.as_str(); 2]);
                columns.push((format!("{kind}_{index}"), Arc::new(array)));
            }
        }
        columns.push((
            "device".to_owned(),
            Arc::new(StringArray::from(vec!["phone"; 2])),
        ));
        let millis = Float32Array::from(vec![1.5, 2.5]);
        columns.push(("latency_median_millis".to_owned(), Arc::new(millis)));
        Self(columns)
    }

    fn with(mut self, name: &str, array: impl arrow::array::Array + 'static) -> Self {
        self.0.retain(|(column, _)| column != name);
        self.0.push((name.to_owned(), Arc::new(array)));
        self
    }

    fn without(mut self, name: &str) -> Self {
        self.0.retain(|(column, _)| column != name);
        self
    }

    fn read(self) -> Result<LatencyDataset, String> {
        let scratch = TempDir::new().unwrap();
        let path: PathBuf = scratch.path().join("foreign.parquet");
        let batch = RecordBatch::try_from_iter(self.0).unwrap();
        let file = fs::File::create(&path).unwrap();
        let mut writer = ArrowWriter::try_new(file, batch.schema(), None).unwrap();
        writer.write(&batch).unwrap();
        writer.close().unwrap();
        LatencyDataset::read(&path).map_err(|error| {
            assert_eq!(error.exit_code(), ExitCode::Input);
            error.to_string().replace(path.to_str().unwrap(), "FILE")
        })
    }
}

#[test]
fn a_foreign_table_needs_genes_and_a_latency() {
    let dataset = Foreign::new().read().unwrap();
    assert_eq!((dataset.settings, dataset.cells), (None, Vec::new()));
    let [first, second] = dataset.samples.as_slice() else {
        panic!("two samples")
    };
    assert_eq!(first.genotype, second.genotype);
    assert_eq!(
        (second.median_millis, second.p10_millis, second.p90_millis),
        (2.5, 2.5, 2.5)
    );
    assert_eq!((first.n_repeats, first.anchor_ratio), (1, 1.0));
    assert!(!first.disturbed);
    assert_eq!(first.repeat_median_millis, None);

    let with_more = Foreign::new()
        .with("n_repeats", Int64Array::from(vec![5, 6]))
        .with(
            "latency_repeat_median_millis",
            Float32Array::from(vec![None, Some(2.25)]),
        );
    let samples = with_more.read().unwrap().samples;
    assert_eq!(
        (samples[1].n_repeats, samples[1].repeat_median_millis),
        (6, Some(2.25))
    );
    assert_eq!(samples[0].repeat_median_millis, None);
}

#[test]
fn a_foreign_table_that_is_not_right_is_refused_with_column_and_row() {
    let text = Foreign::new().without("reduce_7").read().unwrap_err();
    assert!(
        text.starts_with("FILE: no column reduce_7; the file has normal_0, normal_1, "),
        "{text}"
    );
    let millis = |values: [Option<f32>; 2]| {
        let array = Float32Array::from(values.to_vec());
        Foreign::new()
            .with("latency_median_millis", array)
            .read()
            .unwrap_err()
    };
    assert_eq!(
        millis([Some(1.0), None]),
        "FILE: column latency_median_millis has no value in row 1"
    );
    assert_eq!(
        millis([Some(1.0), Some(0.0)]),
        "FILE: latency_median_millis is 0 in row 1, expected a number above 0"
    );
    assert_eq!(
        millis([Some(f32::NAN), Some(1.0)]),
        "FILE: column latency_median_millis is NaN or infinite in row 0"
    );
    let words = StringArray::from(vec!["1.5", "fast"]);
    let text = Foreign::new()
        .with("latency_median_millis", words)
        .read()
        .unwrap_err();
    assert_eq!(
        text,
        "FILE: column latency_median_millis is 'fast' in row 1, expected a number"
    );
    let gene = |text: &str| {
        let genes = StringArray::from(vec!["sep_conv_3x3@0", text]);
        Foreign::new().with("normal_0", genes).read().unwrap_err()
    };
    assert_eq!(
        gene("sep_conv_3x3"),
        "FILE: columns normal_0 to normal_7 in row 1: `sep_conv_3x3` is no gene, expected one such as \
         sep_conv_3x3@1"
    );
    assert_eq!(
        gene("sep_conv_3x3@one"),
        "FILE: columns normal_0 to normal_7 in row 1: `one` is no state in `sep_conv_3x3@one`, \
         expected a number 0 to 4"
    );
    assert_eq!(
        gene("sep_conv_3x3@1"),
        "FILE: columns normal_0 to normal_7 in row 1: node 2 reads state 1 twice; its two genes must \
         read two states"
    );
}

#[test]
fn our_own_table_reads_as_a_foreign_one() {
    let scratch = TempDir::new().unwrap();
    let published = samples::publish::<LatencyDataset>(&artifact::Store::at(scratch.path()));
    let read = LatencyDataset::read(&published.dir.join("samples.parquet")).unwrap();
    assert_eq!(read.samples, published.value.samples);
    assert_eq!(read.settings, Some(samples::settings()));
    // The table of cells is another one, and so are other kinds' tables.
    let error = LatencyDataset::read(&published.dir.join("cells.parquet")).unwrap_err();
    assert!(error.to_string().contains("no column normal_0"), "{error}");
    let files = SearchResult::sample().to_files().unwrap();
    let (_, trace) = files
        .iter()
        .find(|(name, _)| *name == "trace.parquet")
        .unwrap();
    let path = scratch.path().join("trace.parquet");
    fs::write(&path, trace).unwrap();
    let error = LatencyDataset::read(&path).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "{}: belongs to a search-result, expected a latency-dataset",
            path.display()
        )
    );
}

/// A table of architectures becomes a latency data set with a column of latencies behind it.
#[test]
fn architectures_in_csv_read_as_a_foreign_table_once_they_are_timed() {
    let scratch = TempDir::new().unwrap();
    let path = scratch.path().join("timed.CSV");
    let rows = ["DARTS_V1", "DARTS_V2", "PDARTS"]
        .map(|name| (format!("{name}.onnx"), Genotype::named(name).unwrap()));
    let csv = artifact::architectures_to_csv(&rows);
    let read = |column: [&str; 4]| {
        let lines = csv.lines().zip(column);
        let lines = lines.map(|(line, value)| format!("{line},{value}\n"));
        fs::write(&path, lines.collect::<String>()).unwrap();
        LatencyDataset::read(&path)
    };
    let dataset = read(["latency_median_millis", "1.5", "2", "1e-2"]).unwrap();
    assert!(dataset.settings.is_none());
    for (sample, ((_, genotype), millis)) in dataset
        .samples
        .iter()
        .zip(rows.iter().zip([1.5, 2.0, 0.01]))
    {
        assert_eq!((&sample.genotype, sample.median_millis), (genotype, millis));
    }
    for (column, says) in [
        (
            ["latency", "1", "2", "3"],
            "no column latency_median_millis; the file has file, normal_0",
        ),
        (
            ["latency_median_millis", "1", "", "3"],
            "column latency_median_millis has no value in line 3",
        ),
        (
            ["latency_median_millis", "1", "2 ms", "3"],
            "column latency_median_millis is '2 ms' in line 3, expected a number",
        ),
    ] {
        let error = read(column).unwrap_err();
        assert!(error.to_string().contains(says), "{error}");
        assert_eq!(error.exit_code(), ExitCode::Input);
    }
    fs::write(&path, "a,b\n1\n").unwrap();
    let error = LatencyDataset::read(&path).unwrap_err();
    assert!(
        error.to_string().contains("not readable as CSV: "),
        "{error}"
    );
}

#[test]
fn what_is_no_table_is_refused() {
    let scratch = TempDir::new().unwrap();
    let path = scratch.path().join("data.parquet");
    fs::write(&path, "latency\n1.5\n").unwrap();
    let error = LatencyDataset::read(&path).unwrap_err();
    assert!(
        error.to_string().contains("not readable as Parquet: "),
        "{error}"
    );
    assert_eq!(error.exit_code(), ExitCode::Input);
    let error = LatencyDataset::read(&scratch.path().join("none.parquet")).unwrap_err();
    assert_eq!(error.exit_code(), ExitCode::Input);
}
