//! Genotypes in JSON, in table columns, and on the command line.
//!
//! `space` knows the tuple form of the original DARTS code; the JSON form is
//!
//! ```json
//! {"normal": [["sep_conv_3x3", 1], ["skip_connect", 0], …], "reduce": [["max_pool_3x3", 0], …]}
//! ```
//!
//! with eight genes a cell, two for each of the nodes 2 to 5: the primitive and the state it reads.

use std::io;
use std::path::{Path, PathBuf};

use serde::de::{Error as _, IgnoredAny};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;
use space::{CellGenotype, Gene, Genotype, Primitive};
use thiserror::Error;

/// Why a text is not a genotype's JSON form.
#[derive(Debug, Error)]
#[error("no genotype in JSON: {reason}")]
pub struct GenotypeJsonError {
    reason: String,
}

/// The genotype of a JSON text: `{"normal": [["sep_conv_3x3", 1], …], "reduce": […]}`, on its own or
/// under the key `genotype` of a larger object (such as a search result's `genotype.json`). Concatenated
/// nodes (`normal_concat`, `reduce_concat`) may be given and are always all four.
///
/// # Errors
/// If the text is no JSON, or not such an object, or if its genes make no genotype.
pub fn genotype_from_json(text: &str) -> Result<Genotype, GenotypeJsonError> {
    #[derive(Deserialize)]
    struct Within {
        #[serde(with = "crate::genotype")]
        genotype: Genotype,
    }
    let reason = |error: serde_json::Error| GenotypeJsonError {
        reason: error.to_string(),
    };
    let value: Value = serde_json::from_str(text).map_err(reason)?;
    if value.get("genotype").is_some() {
        serde_json::from_value(value)
            .map(|Within { genotype }| genotype)
            .map_err(reason)
    } else {
        deserialize(value).map_err(reason)
    }
}

/// The JSON form of a genotype; [`genotype_from_json`] reads it.
pub fn genotype_to_json(genotype: &Genotype) -> Value {
    serialize(genotype, serde_json::value::Serializer).expect("strings and numbers are JSON")
}

/// Why a genotype cannot be had from a command line.
#[derive(Debug, Error)]
pub enum ReadGenotypeError {
    /// Neither a published name nor a file.
    #[error("there is no genotype `{arg}`; expected {names}, the text Genotype(…), or a file")]
    Unknown {
        /// What was given.
        arg: String,
        /// The published names.
        names: String,
    },
    /// The text is not in the tuple form.
    #[error("the genotype that was given")]
    Given {
        /// What is wrong with it.
        source: space::ParseGenotypeError,
    },
    /// The file cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The file holds JSON, but no genotype.
    #[error("{path}")]
    Json {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: GenotypeJsonError,
    },
    /// The file does not hold the tuple form.
    #[error("{path}")]
    Text {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: space::ParseGenotypeError,
    },
}

/// The genotype that a command line names: a published one, one in the tuple form, or a file in JSON or in that form.
///
/// # Errors
/// If it is neither, listing the names; if the file does not hold a genotype, saying where.
pub fn genotype_from_arg(arg: &str) -> Result<Genotype, ReadGenotypeError> {
    if let Some(genotype) = Genotype::named(arg) {
        return Ok(genotype);
    }
    if arg.trim_start().starts_with("Genotype(") {
        let given = |source| ReadGenotypeError::Given { source };
        return arg.parse().map_err(given);
    }
    let path = Path::new(arg).to_owned();
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let names = Genotype::names().join(", ");
            return Err(ReadGenotypeError::Unknown {
                arg: arg.to_owned(),
                names,
            });
        }
        Err(source) => return Err(ReadGenotypeError::Read { path, source }),
    };
    if text.trim_start().starts_with('{') {
        genotype_from_json(&text).map_err(|source| ReadGenotypeError::Json { path, source })
    } else {
        text.parse()
            .map_err(|source| ReadGenotypeError::Text { path, source })
    }
}

#[derive(Serialize)]
struct Cells<'a> {
    normal: &'a [(&'a str, usize)],
    reduce: &'a [(&'a str, usize)],
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct OwnedCells {
    normal: Vec<(String, usize)>,
    reduce: Vec<(String, usize)>,
    #[serde(rename = "normal_concat")]
    _normal_concat: Option<IgnoredAny>,
    #[serde(rename = "reduce_concat")]
    _reduce_concat: Option<IgnoredAny>,
}

/// For `#[serde(with = "crate::genotype")]`.
pub(crate) fn serialize<S: Serializer>(genotype: &Genotype, to: S) -> Result<S::Ok, S::Error> {
    let genes = |cell: &CellGenotype| -> Vec<(&'static str, usize)> {
        cell.genes()
            .map(|(_, gene)| (gene.primitive.name(), gene.source))
            .collect()
    };
    let (normal, reduce) = (genes(&genotype.normal), genes(&genotype.reduction));
    Cells {
        normal: &normal,
        reduce: &reduce,
    }
    .serialize(to)
}

/// For `#[serde(with = "crate::genotype")]`.
pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Genotype, D::Error> {
    let cells = OwnedCells::deserialize(from)?;
    let cell = |genes: Vec<(String, usize)>| -> Result<CellGenotype, String> {
        let genes = genes.into_iter().map(|(name, source)| {
            Ok(Gene {
                primitive: primitive(&name)?,
                source,
            })
        });
        cell_of(genes.collect::<Result<_, String>>()?)
    };
    let (normal, reduction) = (
        cell(cells.normal).map_err(|reason| D::Error::custom(format!("normal: {reason}")))?,
        cell(cells.reduce).map_err(|reason| D::Error::custom(format!("reduce: {reason}")))?,
    );
    Genotype::new(normal, reduction).map_err(D::Error::custom)
}

/// The cell of eight genes, unchecked otherwise.
fn cell_of(genes: Vec<Gene>) -> Result<CellGenotype, String> {
    match <[Gene; 8]>::try_from(genes) {
        Ok([a, b, c, d, e, f, g, h]) => Ok(CellGenotype {
            nodes: [[a, b], [c, d], [e, f], [g, h]],
        }),
        Err(genes) => Err(format!(
            "{} genes, expected 8 (two for each of the nodes 2 to 5)",
            genes.len()
        )),
    }
}

fn primitive(name: &str) -> Result<Primitive, String> {
    Primitive::from_name(name).ok_or_else(|| {
        let names = Primitive::ALL.map(Primitive::name).join(", ");
        format!("unknown primitive `{name}`, expected one of {names}")
    })
}

/// How a gene stands in a table: `sep_conv_3x3@1`, the primitive and the state it reads.
pub(crate) fn gene_to_text(gene: Gene) -> String {
    format!("{}@{}", gene.primitive.name(), gene.source)
}

/// The gene of a table's text.
pub(crate) fn gene_from_text(text: &str) -> Result<Gene, String> {
    let (name, source) = text
        .split_once('@')
        .ok_or_else(|| format!("`{text}` is no gene, expected one such as sep_conv_3x3@1"))?;
    let source = source
        .parse()
        .map_err(|_| format!("`{source}` is no state in `{text}`, expected a number 0 to 4"))?;
    Ok(Gene {
        primitive: primitive(name)?,
        source,
    })
}

/// The cell of eight texts, checked.
pub(crate) fn cell_from_texts(texts: Vec<&str>) -> Result<CellGenotype, String> {
    let genes: Result<Vec<Gene>, String> = texts.into_iter().map(gene_from_text).collect();
    CellGenotype::new(cell_of(genes?)?.nodes).map_err(|error| error.to_string())
}
