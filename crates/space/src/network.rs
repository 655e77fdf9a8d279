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
