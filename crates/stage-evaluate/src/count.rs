//! What a genotype costs in a published network.

use std::io::Write;

use clap::{Args, ValueEnum};
use serde::Serialize;
use space::{Counts, NetworkSpec, count_derived};

use crate::error::Error;

/// The arguments of `evaluate count`.
#[derive(Clone, Debug, Args)]
pub struct CountArgs {
    /// A published genotype (DARTS_V2, …), one in the original code's notation, Genotype(…), or a file with one in that or in JSON
    #[arg(long, value_name = "NAME|FILE")]
    genotype: String,
    /// The published network that the genotype is put into
    #[arg(long)]
    network: Network,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// The published networks.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Network {
    /// 20 cells, 36 channels, images of 32x32, 10 classes
    Cifar10,
    /// The same for 100 classes
    Cifar100,
    /// 14 cells, 48 channels, images of 224x224, 1000 classes
    Imagenet,
}

/// The answer in JSON.
#[derive(Serialize)]
struct Answer {
    n_params: u64,
    n_macs: u64,
    n_multi_adds: u64,
}

impl CountArgs {
    /// Counts, without the auxiliary head, and prints the numbers on standard output.
    ///
    /// # Errors
    /// If there is no such genotype, or if standard output does not take the answer.
    pub fn run(&self) -> Result<(), Error> {
        let genotype =
            artifact::genotype_from_arg(&self.genotype).map_err(artifact::Error::from)?;
        let network = match self.network {
            Network::Cifar10 => NetworkSpec::cifar10(),
            Network::Cifar100 => NetworkSpec::cifar100(),
            Network::Imagenet => NetworkSpec::imagenet(),
        };
        let counts = count_derived(&genotype, &network);
        let text = if self.json {
            json(counts)
        } else {
            table(counts)
        };
        std::io::stdout()
            .lock()
            .write_all(text.as_bytes())
            .map_err(artifact::Error::Stdout)?;
        Ok(())
    }
}

fn json(
    Counts {
        n_params,
        n_macs,
        n_multi_adds,
    }: Counts,
) -> String {
    let answer = Answer {
        n_params,
        n_macs,
        n_multi_adds,
    };
    serde_json::to_string(&answer).expect("numbers are JSON") + "\n"
}

fn table(counts: Counts) -> String {
    let rows = [
        ("parameters, without the auxiliary head", counts.n_params),
        (
            "multiply-adds of convolutions and linear layers",
            counts.n_macs,
        ),
        (
            "multiply-adds with batch norm, ReLU and pooling",
            counts.n_multi_adds,
        ),
    ];
    let lines = rows.map(|(what, n)| format!("{what:<47}  {:>13}\n", thousands(n)));
    lines.concat()
}

/// 1234567 as 1,234,567.
pub(crate) fn thousands(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const COUNTS: Counts = Counts {
        n_params: 987,
        n_macs: 1_234_567,
        n_multi_adds: 21_000_000,
    };

    #[test]
    fn the_json_has_the_promised_names() {
        let answer = json(COUNTS);
        assert_eq!(
            answer,
            "{\"n_params\":987,\"n_macs\":1234567,\"n_multi_adds\":21000000}\n"
        );
    }

    #[test]
    fn the_table_is_aligned() {
        let lines: Vec<_> = table(COUNTS).lines().map(str::to_owned).collect();
        assert!(
            lines.iter().all(|line| line.chars().count() == 62),
            "{lines:?}"
        );
        assert!(lines[1].ends_with("    1,234,567"));
    }
}
