//! What a network costs, counted exactly by walking its layers once.

use crate::genotype::Genotype;
use crate::network::{CellSpec, NetworkSpec, Stem};
use crate::primitive::Primitive;
use crate::space::SearchSpace;

/// The cost of one network for one image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Counts {
    /// Trained numbers: weights, and BN's affine parameters.
    pub n_params: u64,
    /// Multiply-accumulates of convolutions and linear layers.
    pub n_macs: u64,
    /// The convention of the P-DARTS and PC-DARTS papers: [`n_macs`](Self::n_macs), plus 2 per output
    /// element of BN, 1 per element of ReLU and 1 per input element of pooling.
    pub n_multi_adds: u64,
}

/// The cost of the network of a genotype in its evaluation form, without the auxiliary head.
///
/// # Panics
/// If [`Genotype::new`] would refuse the genotype's sources.
pub fn count_derived(genotype: &Genotype, network: &NetworkSpec) -> Counts {
    walk_derived(genotype, network).counts
}

fn walk_derived(genotype: &Genotype, network: &NetworkSpec) -> Walk {
    let mut walk = Walk::new(Form::Evaluation);
    let mut states = walk.stem(network);
    for cell in network.cells() {
        let out = walk.cell(&cell, states, |walk, nodes| {
            for (node, gene) in genotype.cell(cell.kind).genes() {
                let x = nodes[gene.source];
                nodes[node] = walk.primitive(gene.primitive, x, cell.stride_from(gene.source));
            }
        });
        states = [states[1], out];
    }
    walk.head(states[1], network);
    walk
}

/// The parameters of the auxiliary head, which only training uses.
///
/// # Panics
/// If the network has no cells.
pub fn count_auxiliary_params(network: &NetworkSpec) -> u64 {
    let tapped = &network.cells()[network.reduction_layers()[1]];
    let mut walk = Walk::new(Form::Evaluation);
    let x = Shape::new(tapped.out_channels(), tapped.out_size());
    walk.relu(x);
    // Pooled to 2x2, whatever the size was.
    let x = walk.pool(x, 2);
    let x = walk.conv(x, 128, 1, 1, Groups::One);
    walk.bn(x);
    walk.relu(x);
    let x = Shape {
        size: 1,
        ..walk.conv(x, 768, 2, 1, Groups::One)
    };
    if network.stem != Stem::Imagenet {
        walk.bn(x);
    }
    walk.relu(x);
    walk.linear(x.channels, network.n_classes as u64);
    walk.counts.n_params
}

/// The weights of the supernet of the search: those of every primitive on every edge, without the
/// architecture parameters.
///
/// `channel_ratio` is PC-DARTS's K, the share of the channels that pass through the primitives; with 1
/// it is the supernet of DARTS.
///
/// # Panics
/// If the channel ratio is 0.
pub fn count_supernet_params(network: &NetworkSpec, channel_ratio: usize) -> u64 {
    walk_supernet(network, channel_ratio).counts.n_params
}

fn walk_supernet(network: &NetworkSpec, channel_ratio: usize) -> Walk {
    let mut walk = Walk::new(Form::Search);
    let mut states = walk.stem(network);
    for cell in network.cells() {
        let out = walk.cell(&cell, states, |walk, nodes| {
            for edge in SearchSpace::darts().edges() {
                let x = nodes[edge.source];
                let part = Shape {
                    channels: x.channels / channel_ratio as u64,
                    ..x
                };
                for primitive in Primitive::ALL {
                    let y = walk.primitive(primitive, part, cell.stride_from(edge.source));
                    nodes[edge.node] = Shape {
                        channels: x.channels,
                        ..y
                    };
                }
            }
        });
        states = [states[1], out];
    }
    walk.head(states[1], network);
    walk
}

/// What one image costs a training at least, in its forward pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TrainingCounts {
    /// Multiply-accumulates of convolutions and linear layers.
    pub n_macs: u64,
    /// Numbers that go into batch normalisations: they cannot be used before all of them are there, so they are
    /// written and read again.
    pub n_normalised: u64,
}

/// What the training of a derived network costs.
///
/// # Panics
/// As [`count_derived`].
pub fn count_derived_training(genotype: &Genotype, network: &NetworkSpec) -> TrainingCounts {
    walk_derived(genotype, network).training()
}

/// What a step of the supernet costs.
///
/// # Panics
/// As [`count_supernet_params`].
pub fn count_supernet_training(network: &NetworkSpec, channel_ratio: usize) -> TrainingCounts {
    walk_supernet(network, channel_ratio).training()
}

/// The two forms of a primitive.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    /// BN has affine parameters, nothing follows a pooling.
    Evaluation,
    /// BN has none, and follows each pooling.
    Search,
}

/// One image's feature map, square.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Shape {
    channels: u64,
    size: u64,
}

impl Shape {
    fn new(channels: usize, size: usize) -> Self {
        Self {
            channels: channels as u64,
            size: size as u64,
        }
    }

    fn n_elements(self) -> u64 {
        self.channels * self.size * self.size
    }

    /// After a layer of that stride, padded so that stride 1 keeps the size.
    fn strided(self, stride: usize) -> Self {
        Self {
            size: self.size.div_ceil(stride as u64),
            ..self
        }
    }
}

/// How the channels of a convolution are grouped.
#[derive(Clone, Copy)]
enum Groups {
    One,
    PerChannel,
}

/// Walks through the layers and adds up: the first half of the methods are layers, the second half
/// what is built of them.
struct Walk {
    form: Form,
    counts: Counts,
    n_normalised: u64,
}

impl Walk {
    fn new(form: Form) -> Self {
        Self {
            form,
            counts: Counts::default(),
            n_normalised: 0,
        }
    }

    fn training(&self) -> TrainingCounts {
        TrainingCounts {
            n_macs: self.counts.n_macs,
            n_normalised: self.n_normalised,
        }
    }

    fn conv(
        &mut self,
        x: Shape,
        channels: u64,
        kernel: u64,
        stride: usize,
        groups: Groups,
    ) -> Shape {
        let inputs_per_output = match groups {
            Groups::One => x.channels,
            Groups::PerChannel => 1,
        };
        let n_weights = channels * inputs_per_output * kernel * kernel;
        let y = Shape {
            channels,
            ..x.strided(stride)
        };
        self.counts.n_params += n_weights;
        self.multiply(n_weights * y.size * y.size);
        y
    }

    fn linear(&mut self, n_in: u64, n_out: u64) {
        self.counts.n_params += (n_in + 1) * n_out;
        self.multiply(n_in * n_out);
    }

    fn multiply(&mut self, n_macs: u64) {
        self.counts.n_macs += n_macs;
        self.counts.n_multi_adds += n_macs;
    }

    /// BN with affine parameters.
    fn bn_affine(&mut self, x: Shape) {
        self.counts.n_params += 2 * x.channels;
        self.normalise(x);
    }

    fn normalise(&mut self, x: Shape) {
        self.n_normalised += x.n_elements();
        self.counts.n_multi_adds += 2 * x.n_elements();
    }

    /// BN as the form has it.
    fn bn(&mut self, x: Shape) {
        match self.form {
            Form::Evaluation => self.bn_affine(x),
            Form::Search => self.normalise(x),
        }
    }

    fn relu(&mut self, x: Shape) {
        self.counts.n_multi_adds += x.n_elements();
    }

    /// Pooling of any kind, to the given size.
    fn pool(&mut self, x: Shape, size: u64) -> Shape {
        self.counts.n_multi_adds += x.n_elements();
        Shape { size, ..x }
    }

    fn relu_conv_bn(&mut self, x: Shape, channels: u64) -> Shape {
        self.relu(x);
        let y = self.conv(x, channels, 1, 1, Groups::One);
        self.bn(y);
        y
    }

    fn factorized_reduce(&mut self, x: Shape, channels: u64) -> Shape {
        self.relu(x);
        let half = channels / 2;
        self.conv(x, half, 1, 2, Groups::One);
        let y = Shape {
            channels,
            ..self.conv(x, channels - half, 1, 2, Groups::One)
        };
        self.bn(y);
        y
    }

    /// ReLU, depthwise, pointwise, BN: a dilated convolution, or half of a separable one.
    fn depthwise_separable(&mut self, x: Shape, kernel: u64, stride: usize) -> Shape {
        self.relu(x);
        let y = self.conv(x, x.channels, kernel, stride, Groups::PerChannel);
        let y = self.conv(y, y.channels, 1, 1, Groups::One);
        self.bn(y);
        y
    }

    fn primitive(&mut self, primitive: Primitive, x: Shape, stride: usize) -> Shape {
        match primitive {
            Primitive::None => x.strided(stride),
            Primitive::SkipConnect if stride == 1 => x,
            Primitive::SkipConnect => self.factorized_reduce(x, x.channels),
            Primitive::MaxPool3x3 | Primitive::AvgPool3x3 => {
                let y = self.pool(x, x.strided(stride).size);
                if self.form == Form::Search {
                    self.bn(y);
                }
                y
            }
            Primitive::SepConv3x3 | Primitive::SepConv5x5 => {
                let kernel = if primitive == Primitive::SepConv3x3 {
                    3
                } else {
                    5
                };
                let y = self.depthwise_separable(x, kernel, stride);
                self.depthwise_separable(y, kernel, 1)
            }
            Primitive::DilConv3x3 => self.depthwise_separable(x, 3, stride),
            Primitive::DilConv5x5 => self.depthwise_separable(x, 5, stride),
        }
    }

    /// The states `s0` and `s1`. The stem's BN is affine in both forms.
    fn stem(&mut self, network: &NetworkSpec) -> [Shape; 2] {
        let image = Shape::new(network.in_channels, network.image_size);
        let c = network.init_channels as u64;
        let conv_bn = |walk: &mut Self, x, channels, stride| {
            let y = walk.conv(x, channels, 3, stride, Groups::One);
            walk.bn_affine(y);
            y
        };
        match network.stem {
            Stem::Conv3x3 => [conv_bn(self, image, 3 * c, 1); 2],
            Stem::Conv3x3Stride2 => [conv_bn(self, image, 3 * c, 2); 2],
            Stem::Imagenet => {
                let half = conv_bn(self, image, c / 2, 2);
                self.relu(half);
                let s0 = conv_bn(self, half, c, 2);
                self.relu(s0);
                [s0, conv_bn(self, s0, c, 2)]
            }
        }
    }

    /// Pre-processing, then `edges`, which fills in the nodes 2..=5 of the six states; returns the
    /// output.
    fn cell(
        &mut self,
        cell: &CellSpec,
        [s0, s1]: [Shape; 2],
        edges: impl FnOnce(&mut Self, &mut [Shape; 6]),
    ) -> Shape {
        let channels = cell.channels as u64;
        let first = if cell.reduction_prev {
            self.factorized_reduce(s0, channels)
        } else {
            self.relu_conv_bn(s0, channels)
        };
        let second = self.relu_conv_bn(s1, channels);
        let mut states = [first, second, first, first, first, first];
        edges(self, &mut states);
        Shape {
            channels: 4 * channels,
            ..states[5]
        }
    }

    /// Global average pooling and the linear layer.
    fn head(&mut self, x: Shape, network: &NetworkSpec) {
        let x = self.pool(x, 1);
        self.linear(x.channels, network.n_classes as u64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn derived(name: &str, network: &NetworkSpec) -> Counts {
        count_derived(&Genotype::named(name).unwrap(), network)
    }

    /// The papers print the multi-adds in millions to two decimals.
    fn hundredths_of_a_million(n_multi_adds: u64) -> u64 {
        (n_multi_adds + 5_000) / 10_000
    }

    #[test]
    fn cifar10_networks_count_as_published() {
        let published = [
            ("DARTS_V2", 3_349_342, 528_359_040),
            ("PDARTS", 3_433_798, 532_174_464),
            ("PC_DARTS_cifar", 3_634_678, 556_670_592),
        ];
        for (name, n_params, n_macs) in published {
            let counts = derived(name, &NetworkSpec::cifar10());
            assert_eq!(
                (counts.n_params, counts.n_macs),
                (n_params, n_macs),
                "{name}"
            );
        }
    }

    #[test]
    fn imagenet_networks_count_as_published() {
        let published = [
            ("DARTS_V2", 4_718_752, 529_911_552, 54_459),
            ("PDARTS", 4_944_352, 542_819_328, 55_738),
            ("PC_DARTS_cifar", 5_270_560, 571_137_408, 58_636),
        ];
        for (name, n_params, n_macs, multi_adds) in published {
            let counts = derived(name, &NetworkSpec::imagenet());
            assert_eq!(
                (counts.n_params, counts.n_macs),
                (n_params, n_macs),
                "{name}"
            );
            assert_eq!(
                hundredths_of_a_million(counts.n_multi_adds),
                multi_adds,
                "{name}"
            );
        }
    }

    #[test]
    fn cifar100_differs_from_cifar10_by_90_rows_of_the_last_layer() {
        for name in Genotype::names() {
            let ten = derived(name, &NetworkSpec::cifar10());
            let hundred = derived(name, &NetworkSpec::cifar100());
            assert_eq!(hundred.n_params - ten.n_params, 90 * (576 + 1));
            assert_eq!(hundred.n_macs - ten.n_macs, 90 * 576);
            assert_eq!(hundred.n_multi_adds - ten.n_multi_adds, 90 * 576);
        }
    }

    #[test]
    fn auxiliary_heads_count_as_published() {
        assert_eq!(count_auxiliary_params(&NetworkSpec::cifar10()), 476_426);
        assert_eq!(count_auxiliary_params(&NetworkSpec::imagenet()), 1_260_776);
    }

    #[test]
    fn supernets_count_as_published() {
        let network = NetworkSpec {
            n_layers: 8,
            init_channels: 16,
            ..NetworkSpec::cifar10()
        };
        assert_eq!(count_supernet_params(&network, 1), 1_930_618);
        assert_eq!(count_supernet_params(&network, 4), 299_578);
    }

    /// One reduction cell on an odd image, small enough to count by hand.
    #[test]
    fn a_hand_counted_network() {
        let genotype = "Genotype(
            normal=[('skip_connect', 0), ('skip_connect', 1), ('skip_connect', 0), ('skip_connect', 1),
                    ('skip_connect', 0), ('skip_connect', 1), ('skip_connect', 0), ('skip_connect', 1)],
            reduce=[('max_pool_3x3', 0), ('skip_connect', 1), ('skip_connect', 2), ('avg_pool_3x3', 0),
                    ('avg_pool_3x3', 3), ('dil_conv_5x5', 1), ('sep_conv_3x3', 4), ('skip_connect', 3)])"
            .parse()
            .unwrap();
        let network = NetworkSpec {
            stem: Stem::Conv3x3,
            n_layers: 1,
            init_channels: 1,
            in_channels: 2,
            n_classes: 5,
            image_size: 5,
        };
        // (params, MACs, BN outputs, ReLU elements, pooling inputs); nodes are 2 channels of 3x3.
        let layers: [(u64, u64, u64, u64, u64); 10] = [
            (2 * 3 * 9 + 2 * 3, 2 * 3 * 9 * 25, 3 * 25, 0, 0), // stem, 2 to 3 channels
            (3 * 2 + 2 * 2, 3 * 2 * 25, 2 * 25, 3 * 25, 0),    // pre-processing of s0, 3 to 2
            (3 * 2 + 2 * 2, 3 * 2 * 25, 2 * 25, 3 * 25, 0),    // pre-processing of s1
            (0, 0, 0, 0, 2 * 25),                              // max pool, stride 2
            (2 * 2 + 2 * 2, 2 * 2 * 9, 2 * 9, 2 * 25, 0),      // factorized reduction
            (0, 0, 0, 0, 2 * 25),                              // average pool, stride 2
            (0, 0, 0, 0, 2 * 9),                               // average pool
            (
                2 * 25 + 2 * 2 + 2 * 2,
                2 * 25 * 9 + 2 * 2 * 9,
                2 * 9,
                2 * 25,
                0,
            ), // dilated, stride 2
            (
                2 * (2 * 9 + 4 + 4),
                2 * (2 * 9 * 9 + 4 * 9),
                2 * 2 * 9,
                2 * 2 * 9,
                0,
            ), // separable
            (8 * 5 + 5, 8 * 5, 0, 0, 8 * 9),                   // global pool, linear
        ];
        let sum = |column: fn(&(u64, u64, u64, u64, u64)) -> u64| layers.iter().map(column).sum();
        let n_macs: u64 = sum(|layer| layer.1);
        let counts = Counts {
            n_params: sum(|layer| layer.0),
            n_macs,
            n_multi_adds: n_macs + sum(|layer| 2 * layer.2 + layer.3 + layer.4),
        };
        assert_eq!(count_derived(&genotype, &network), counts);
    }
}
