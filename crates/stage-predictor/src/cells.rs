//! What the cells of architectures take on their own.

use std::collections::BTreeMap;

use artifact::CellSample;
use latency::TimedCell;

/// Timed cells by the row of their architecture.
#[derive(Default)]
pub(crate) struct Cells {
    /// Of each row, its cells (as a code numbers them) and what each takes at all positions of the network together, in
    /// milliseconds.
    of_rows: BTreeMap<usize, Vec<(usize, f64)>>,
}

impl Cells {
    /// Adds up the positions of each cell. One that was not timed at all of them is left out.
    pub(crate) fn new(samples: &[CellSample]) -> Self {
        let mut sums: BTreeMap<(usize, usize), (u32, f64)> = BTreeMap::new();
        for sample in samples {
            let place = (sample.sample_index as usize, sample.kind.index());
            let (n_uses, millis) = sums.entry(place).or_default();
            *n_uses += sample.n_uses;
            *millis += f64::from(sample.n_uses) * sample.median_millis;
        }
        let mut whole: BTreeMap<usize, u32> = BTreeMap::new();
        for (&(_, cell), &(n_uses, _)) in &sums {
            let most = whole.entry(cell).or_default();
            *most = n_uses.max(*most);
        }
        let mut of_rows: BTreeMap<usize, Vec<(usize, f64)>> = BTreeMap::new();
        for ((row, cell), (n_uses, millis)) in sums {
            if n_uses == whole[&cell] {
                of_rows.entry(row).or_default().push((cell, millis));
            }
        }
        Self { of_rows }
    }

    /// Those of some rows, which are the architectures that are fitted, in this order.
    pub(crate) fn of(&self, rows: impl IntoIterator<Item = usize>) -> Vec<TimedCell> {
        let rows = rows.into_iter().enumerate();
        rows.flat_map(|(architecture, row)| {
            let cells = self.of_rows.get(&row).into_iter().flatten();
            cells.map(move |&(cell, millis)| TimedCell {
                architecture,
                cell,
                millis,
            })
        })
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use space::{CellKind, Genotype};

    use super::*;

    fn sample(row: u32, kind: CellKind, size: usize, n_uses: u32, millis: f64) -> CellSample {
        CellSample {
            sample_index: row,
            kind,
            cell: Genotype::named("DARTS_V2").unwrap().cell(kind).clone(),
            reduction_prev: false,
            channels_prev_prev: 16,
            channels_prev: 16,
            channels: 16,
            size_prev_prev: size,
            size_prev: size,
            n_uses,
            median_millis: millis,
            p10_millis: millis,
            p90_millis: millis,
            n_repeats: 1,
            anchor_ratio: 1.0,
        }
    }

    #[test]
    fn positions_are_added_up_as_often_as_the_network_has_them() {
        let (normal, reduction) = (CellKind::Normal, CellKind::Reduction);
        let cells = Cells::new(&[
            sample(0, normal, 14, 1, 0.5),
            sample(0, normal, 7, 3, 0.25),
            sample(0, reduction, 14, 1, 2.0),
            // Of the second architecture's normal cell a position is missing.
            sample(1, normal, 14, 1, 0.5),
            sample(1, reduction, 14, 1, 3.0),
        ]);
        let timed = |architecture, cell, millis| TimedCell {
            architecture,
            cell,
            millis,
        };
        assert_eq!(
            cells.of([1, 7, 0]),
            [timed(0, 1, 3.0), timed(2, 0, 1.25), timed(2, 1, 2.0)]
        );
    }
}
