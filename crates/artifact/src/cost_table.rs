//! Tables of measured costs that others published: an architecture per row, a device or metric per column.

use std::path::Path;

use arrow::datatypes::DataType;
use space::{Genotype, SearchSpace, Topology, nas_bench_201};

use crate::error::Error;
use crate::latency_dataset::{self, LatencyDataset};
use crate::table::Table;

/// Architectures of one space and what they cost, as a file holds them, Parquet or CSV.
///
/// Where the space is `nas-bench-201`, the column `arch` holds the published form of each architecture;
/// where it is `darts`, sixteen columns hold the genes, as in a latency data set.
pub struct CostTable {
    table: Table,
    codes: Vec<Vec<f32>>,
}

impl CostTable {
    /// Reads the architectures of a file.
    ///
    /// # Errors
    /// If the file cannot be read, lacks the columns of the space, or holds a row that is no architecture of it.
    pub fn read(file: &Path, topology: &Topology) -> Result<Self, Error> {
        let table = Table::read::<LatencyDataset>(file)?;
        let codes = if *topology == Topology::darts() {
            let space = SearchSpace::darts();
            let [normal, reduction] = latency_dataset::cells_of_genes(&table)?;
            let pairs = normal.into_iter().zip(reduction);
            pairs
                .map(|(normal, reduction)| space.encode(&Genotype { normal, reduction }))
                .collect()
        } else {
            let texts: Vec<String> = table.get("arch")?;
            texts
                .iter()
                .enumerate()
                .map(|(row, text)| {
                    nas_bench_201::encode(text).map_err(|error| {
                        let row = table.row(row);
                        table.malformed(format!("column arch in {row}: {error}"))
                    })
                })
                .collect::<Result<_, _>>()?
        };
        Ok(Self { table, codes })
    }

    /// The code of each row.
    pub fn codes(&self) -> &[Vec<f32>] {
        &self.codes
    }

    /// The cost of each row; none where the file has no value.
    ///
    /// # Errors
    /// If there is no such column, if it does not hold numbers, or if one of them is not above 0.
    pub fn costs(&self, column: &str) -> Result<Vec<Option<f64>>, Error> {
        // A column may miss values, but it must be there.
        self.table.nullable_column(column, &DataType::Float64)?;
        let costs: Vec<Option<f64>> = self.table.get(column)?;
        match costs.iter().position(|cost| cost.is_some_and(|c| c <= 0.0)) {
            Some(row) => {
                let cost = costs[row].unwrap_or_default();
                Err(self.table.malformed(format!(
                    "column {column} is {cost} in {}, expected a number above 0",
                    self.table.row(row)
                )))
            }
            None => Ok(costs),
        }
    }
}
