//! Where the cells of a network stand: kinds, widths, resolutions.

use std::fmt;

use thiserror::Error;

use crate::genotype::CellKind;

/// The layers before the first cell; they make its two input states, `s0` and `s1`.
///
/// `C` is [`NetworkSpec::init_channels`]; every convolution is 3x3 with padding 1 and no bias.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stem {
    /// Convolution to 3C, BN: `s0 = s1`. The stem for CIFAR.
    Conv3x3,
    /// The same with stride 2.
    Conv3x3Stride2,
    /// `s0`: convolution with stride 2 to C/2, BN, ReLU, convolution with stride 2 to C, BN. `s1`, from
    /// `s0`: ReLU, convolution with stride 2 to C, BN.
    Imagenet,
}

impl Stem {
    /// Every stem.
    pub const ALL: [Self; 3] = [Self::Conv3x3, Self::Conv3x3Stride2, Self::Imagenet];

    /// The name in configurations and files.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Conv3x3 => "conv3x3",
            Self::Conv3x3Stride2 => "conv3x3-stride2",
            Self::Imagenet => "imagenet",
        }
    }

    /// The stem of that [`name`](Self::name).
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|stem| stem.name() == name)
    }
}

impl fmt::Display for Stem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// The frame that a genotype fills: depth, width, input and output.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct NetworkSpec {
    /// The layers before the first cell.
    pub stem: Stem,
    /// Cells, both kinds together.
    pub n_layers: usize,
    /// Channels of each node in the first cells (C); a cell of width C emits 4C channels.
    pub init_channels: usize,
    /// Channels of the image.
    pub in_channels: usize,
    /// Classes of the last layer.
    pub n_classes: usize,
    /// Height and width of the image, in pixels.
    pub image_size: usize,
}

impl NetworkSpec {
    /// The published evaluation network for CIFAR-10: 20 cells, 36 channels.
    pub const fn cifar10() -> Self {
        Self {
            stem: Stem::Conv3x3,
            n_layers: 20,
            init_channels: 36,
            in_channels: 3,
            n_classes: 10,
            image_size: 32,
        }
    }

    /// The same for the 100 classes of CIFAR-100.
    pub const fn cifar100() -> Self {
        Self {
            n_classes: 100,
            ..Self::cifar10()
        }
    }

    /// The published evaluation network for ImageNet: 14 cells, 48 channels.
    pub const fn imagenet() -> Self {
        Self {
            stem: Stem::Imagenet,
            n_layers: 14,
            init_channels: 48,
            in_channels: 3,
            n_classes: 1000,
            image_size: 224,
        }
    }

    /// The layers that hold reduction cells: at one and at two thirds of the depth.
    pub const fn reduction_layers(&self) -> [usize; 2] {
        [self.n_layers / 3, 2 * self.n_layers / 3]
    }

    /// The cells in order.
    pub fn cells(&self) -> Vec<CellSpec> {
        let c = self.init_channels;
        // The states that the stem makes, (channels, size) of s0 and s1.
        let size = self.image_size;
        let (mut prev_prev, mut prev, mut reduction_prev) = match self.stem {
            Stem::Conv3x3 => ((3 * c, size), (3 * c, size), false),
            Stem::Conv3x3Stride2 => ((3 * c, halved(size)), (3 * c, halved(size)), false),
            Stem::Imagenet => {
                let size = halved(halved(size));
                ((c, size), (c, halved(size)), true)
            }
        };
        let mut channels = c;
        let reduction_layers = self.reduction_layers();
        (0..self.n_layers)
            .map(|layer| {
                let kind = if reduction_layers.contains(&layer) {
                    channels *= 2;
                    CellKind::Reduction
                } else {
                    CellKind::Normal
                };
                let cell = CellSpec {
                    layer,
                    kind,
                    reduction_prev,
                    channels_prev_prev: prev_prev.0,
                    channels_prev: prev.0,
                    channels,
                    size_prev_prev: prev_prev.1,
                    size_prev: prev.1,
                };
                reduction_prev = kind == CellKind::Reduction;
                (prev_prev, prev) = (prev, (cell.out_channels(), cell.out_size()));
                cell
            })
            .collect()
    }

    /// Channels that enter the last layer.
    pub fn final_channels(&self) -> usize {
        self.cells().last().map_or(0, CellSpec::out_channels)
    }

    /// Whether such a network can be built.
    ///
    /// # Errors
    /// If a number is zero, or if the ImageNet stem cannot halve its channels.
    pub fn validate(&self) -> Result<(), NetworkSpecError> {
        for (field, value) in [
            ("n_layers", self.n_layers),
            ("init_channels", self.init_channels),
            ("in_channels", self.in_channels),
            ("n_classes", self.n_classes),
            ("image_size", self.image_size),
        ] {
            if value == 0 {
                return Err(NetworkSpecError::Zero { field });
            }
        }
        if self.stem == Stem::Imagenet && !self.init_channels.is_multiple_of(2) {
            return Err(NetworkSpecError::OddChannels {
                init_channels: self.init_channels,
            });
        }
        Ok(())
    }
}

/// The place of one cell in a network.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct CellSpec {
    /// The position among the cells, from 0.
    pub layer: usize,
    /// Which cell of the genotype stands here.
    pub kind: CellKind,
    /// Whether state 0 has twice the resolution of state 1, so that its pre-processing must halve it.
    pub reduction_prev: bool,
    /// Channels of the output of the cell before the preceding one.
    pub channels_prev_prev: usize,
    /// Channels of the output of the preceding cell.
    pub channels_prev: usize,
    /// Channels of each node; the cell emits four times as many.
    pub channels: usize,
    /// Height and width of the output of the cell before the preceding one, in pixels.
    pub size_prev_prev: usize,
    /// Height and width of the output of the preceding cell, in pixels.
    pub size_prev: usize,
}

impl CellSpec {
    /// Channels of the output: the nodes 2, 3, 4 and 5 concatenated.
    pub const fn out_channels(&self) -> usize {
        4 * self.channels
    }

    /// Height and width of the output, in pixels.
    pub const fn out_size(&self) -> usize {
        match self.kind {
            CellKind::Normal => self.size_prev,
            CellKind::Reduction => halved(self.size_prev),
        }
    }

    /// The stride of an edge that reads the state: 2 from states 0 and 1 of a reduction cell, else 1.
    pub const fn stride_from(&self, source: usize) -> usize {
        match self.kind {
            CellKind::Reduction if source < 2 => 2,
            _ => 1,
        }
    }

    /// The same cell at layer 0, so that cells that do the same work compare equal.
    pub fn geometry(&self) -> Self {
        Self {
            layer: 0,
            ..self.clone()
        }
    }
}

/// The size after a step of stride 2: every such operation here rounds up.
pub(crate) const fn halved(size: usize) -> usize {
    size.div_ceil(2)
}

/// Why a network cannot be built.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum NetworkSpecError {
    /// A number is zero.
    #[error("{field} is 0; a network needs at least 1")]
    Zero {
        /// The field of [`NetworkSpec`].
        field: &'static str,
    },
    /// The ImageNet stem starts with half the channels.
    #[error("init_channels is {init_channels}; the stem `imagenet` halves it, so it must be even")]
    OddChannels {
        /// The number of channels.
        init_channels: usize,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    /// (kind, reduction_prev, channels, size) of each cell, and its inputs checked against the cells
    /// before it.
    fn outline(network: &NetworkSpec) -> Vec<(CellKind, bool, usize, usize)> {
        let cells = network.cells();
        for (layer, cell) in cells.iter().enumerate() {
            assert_eq!(cell.layer, layer);
            if let Some(prev) = layer.checked_sub(1).map(|layer| &cells[layer]) {
                assert_eq!(
                    (cell.channels_prev, cell.size_prev),
                    (prev.out_channels(), prev.out_size())
                );
                assert_eq!(
                    (cell.channels_prev_prev, cell.size_prev_prev),
                    (prev.channels_prev, prev.size_prev)
                );
                assert_eq!(cell.reduction_prev, prev.kind == CellKind::Reduction);
            }
        }
        cells
            .iter()
            .map(|cell| {
                (
                    cell.kind,
                    cell.reduction_prev,
                    cell.channels,
                    cell.out_size(),
                )
            })
            .collect()
    }

    #[test]
    fn cifar_networks_reduce_at_6_and_13() {
        use CellKind::{Normal, Reduction};
        let network = NetworkSpec::cifar10();
        let cells = outline(&network);
        assert_eq!(cells.len(), 20);
        assert_eq!(cells[0], (Normal, false, 36, 32));
        assert_eq!(
            cells[5..8],
            [
                (Normal, false, 36, 32),
                (Reduction, false, 72, 16),
                (Normal, true, 72, 16)
            ]
        );
        assert_eq!(
            cells[13..15],
            [(Reduction, false, 144, 8), (Normal, true, 144, 8)]
        );
        assert_eq!(network.reduction_layers(), [6, 13]);
        assert_eq!(network.final_channels(), 576);
        let first = &network.cells()[0];
        assert_eq!((first.channels_prev_prev, first.channels_prev), (108, 108));
    }

    #[test]
    fn the_imagenet_stem_counts_as_a_reduction() {
        let network = NetworkSpec::imagenet();
        let cells = outline(&network);
        assert_eq!(network.reduction_layers(), [4, 9]);
        assert_eq!(cells[0], (CellKind::Normal, true, 48, 28));
        assert_eq!(cells[13], (CellKind::Normal, false, 192, 7));
        let first = &network.cells()[0];
        assert_eq!((first.channels_prev_prev, first.size_prev_prev), (48, 56));
        assert_eq!((first.channels_prev, first.size_prev), (48, 28));
    }

    #[test]
    fn odd_sizes_round_up() {
        let network = NetworkSpec {
            stem: Stem::Conv3x3Stride2,
            n_layers: 5,
            image_size: 28,
            ..NetworkSpec::cifar10()
        };
        let sizes: Vec<_> = network.cells().iter().map(CellSpec::out_size).collect();
        assert_eq!(network.reduction_layers(), [1, 3]);
        assert_eq!(sizes, [14, 7, 7, 4, 4]);
        outline(&network);
    }

    #[test]
    fn cells_that_do_the_same_work_have_one_geometry() {
        let cells = NetworkSpec::cifar10().cells();
        let geometries: std::collections::HashSet<_> =
            cells.iter().map(CellSpec::geometry).collect();
        // In each of three stages: the first cell (or the reduction), the one after it, the rest. Before
        // the first reduction the second cell differs from the third by the stem's width.
        assert_eq!(geometries.len(), 9);
        assert_eq!(cells[3].geometry(), cells[4].geometry());
        assert_ne!(cells[3], cells[4]);
    }

    #[test]
    fn edges_from_the_inputs_of_a_reduction_have_stride_2() {
        let cells = NetworkSpec::cifar10().cells();
        assert_eq!(
            [0, 1, 2, 4].map(|source| cells[6].stride_from(source)),
            [2, 2, 1, 1]
        );
        assert_eq!(
            [0, 1, 2, 4].map(|source| cells[7].stride_from(source)),
            [1, 1, 1, 1]
        );
    }

    #[test]
    fn stem_names_lead_back() {
        for stem in Stem::ALL {
            assert_eq!(Stem::from_name(stem.name()), Some(stem));
        }
        assert_eq!(Stem::from_name("cifar"), None);
    }

    #[test]
    fn what_cannot_be_built_is_refused() {
        for network in [
            NetworkSpec::cifar10(),
            NetworkSpec::cifar100(),
            NetworkSpec::imagenet(),
        ] {
            assert_eq!(network.validate(), Ok(()));
        }
        let flat = NetworkSpec {
            n_layers: 0,
            ..NetworkSpec::cifar10()
        };
        assert_eq!(
            flat.validate(),
            Err(NetworkSpecError::Zero { field: "n_layers" })
        );
        let odd = NetworkSpec {
            init_channels: 15,
            ..NetworkSpec::imagenet()
        };
        assert_eq!(
            odd.validate(),
            Err(NetworkSpecError::OddChannels { init_channels: 15 })
        );
    }
}
