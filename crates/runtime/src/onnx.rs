//! A derived network as an ONNX model, for any other runtime.
//!
//! One node per operation of the published networks, weights as they are and under their state-dict names: batch
//! normalisations are folded into convolutions by the runtimes themselves. The first two nodes normalise, so that the
//! model takes pixels as they are; the size of the batch is open.

mod proto;

use std::collections::BTreeMap;

use candle_core::{DType, Result, Tensor};
use nn::Parameters;
use nn::layers::BATCH_NORM_EPS;
use prost::Message;
use proto::{
    Attribute, AttributeType, DataType, Dimension, Graph, Model, Node, OperatorSet, Property,
    Shape, TensorType, Type, ValueInfo,
};
use space::{CellGenotype, CellSpec, Genotype, NetworkSpec, Primitive, Stem};

use crate::On;

/// The version of the file format: that of ONNX 1.12.
const IR_VERSION: i64 = 8;
/// The version of the operators, likewise.
const OPSET: i64 = 17;

/// The name of the model's input.
const INPUT: &str = "images";
/// The name of its output.
const OUTPUT: &str = "logits";

/// What a network was trained on.
#[derive(Clone, Copy, Debug)]
pub struct Images<'a> {
    /// Subtracted from every channel, of pixels from 0 to 1.
    pub mean: &'a [f32],
    /// What every channel is divided by afterwards.
    pub std: &'a [f32],
    /// The name of every class.
    pub class_names: &'a [String],
}

/// The bytes of an ONNX file that is to be timed: the network of a genotype as [`encode`] writes it, with weights that nobody
/// trained. Classes have numbers for names.
///
/// # Errors
/// As [`encode`].
pub fn untrained(spec: &NetworkSpec, genotype: &Genotype) -> Result<Vec<u8>> {
    let network = crate::untrained(spec, genotype, &On::cpu())?;
    let names: Vec<String> = (0..spec.n_classes).map(|class| class.to_string()).collect();
    let images = Images {
        // A runtime leaves out a subtraction of 0 and a division by 1.
        mean: &vec![0.5; spec.in_channels],
        std: &vec![0.25; spec.in_channels],
        class_names: &names,
    };
    encode(spec, genotype, network.parameters(), &images)
}

/// The bytes of an ONNX file: the network of a genotype without its auxiliary head.
///
/// It takes `images` `[batch, in_channels, image_size, image_size]`, pixels from 0 (black) to 1 (white), and answers `logits`
/// `[batch, n_classes]`, before any softmax; both f32. The metadata say what the genotype is (`genotype`, in the tuple form of
/// the original DARTS code) and which class a logit is of (`class_names`, a JSON array).
///
/// # Errors
/// If a parameter is missing, if mean and standard deviation are not one for each channel, or if the genotype has a `none`.
pub fn encode(
    spec: &NetworkSpec,
    genotype: &Genotype,
    parameters: &Parameters,
    images: &Images<'_>,
) -> Result<Vec<u8>> {
    let n_channels = spec.in_channels;
    if [images.mean.len(), images.std.len()] != [n_channels; 2] {
        candle_core::bail!(
            "mean and standard deviation must be {n_channels}, one for each channel"
        );
    }
    let mut writer = Writer {
        parameters: parameters.state()?,
        nodes: Vec::new(),
        initializers: Vec::new(),
    };
    writer.network(spec, genotype, images)?;
    let size = spec.image_size;
    let input = ValueInfo {
        doc_string: "pixels from 0 (black) to 1 (white)".to_owned(),
        ..value(INPUT, &[spec.in_channels, size, size])
    };
    let names = serde_json::to_string(images.class_names).map_err(candle_core::Error::wrap)?;
    let property = |key: &str, value: String| Property {
        key: key.to_owned(),
        value,
    };
    let model = Model {
        ir_version: IR_VERSION,
        producer_name: "la-darts".to_owned(),
        producer_version: env!("CARGO_PKG_VERSION").to_owned(),
        graph: Some(Graph {
            node: writer.nodes,
            name: "network".to_owned(),
            initializer: writer.initializers,
            input: vec![input],
            output: vec![value(OUTPUT, &[spec.n_classes])],
        }),
        opset_import: vec![OperatorSet { version: OPSET }],
        metadata_props: vec![
            property("genotype", genotype.to_string()),
            property("class_names", names),
        ],
    };
    Ok(model.encode_to_vec())
}

/// A tensor of f32 for each image of a batch.
fn value(name: &str, of_image: &[usize]) -> ValueInfo {
    let batch = Dimension {
        dim_param: Some("batch".to_owned()),
        dim_value: None,
    };
    let rest = of_image.iter().map(|&n| Dimension {
        dim_value: Some(n as i64),
        dim_param: None,
    });
    let shape = Shape {
        dim: std::iter::once(batch).chain(rest).collect(),
    };
    ValueInfo {
        name: name.to_owned(),
        r#type: Some(Type {
            tensor_type: Some(TensorType {
                elem_type: DataType::Float.into(),
                shape: Some(shape),
            }),
        }),
        doc_string: String::new(),
    }
}

fn ints(name: &str, ints: impl IntoIterator<Item = usize>) -> Attribute {
    Attribute {
        name: name.to_owned(),
        ints: ints.into_iter().map(|i| i as i64).collect(),
        r#type: AttributeType::Ints.into(),
        ..Attribute::default()
    }
}

fn int(name: &str, i: usize) -> Attribute {
    Attribute {
        name: name.to_owned(),
        i: Some(i as i64),
        r#type: AttributeType::Int.into(),
        ..Attribute::default()
    }
}

/// How a window walks over an image, the same in both directions.
#[derive(Clone, Copy)]
struct Window {
    kernel: usize,
    stride: usize,
    dilation: usize,
    /// Rows and columns of padding in front and behind.
    padding: [usize; 2],
}

impl Window {
    /// A window that leaves the size as it is, but for its stride.
    fn same(kernel: usize, stride: usize, dilation: usize) -> Self {
        let padding = [dilation * (kernel / 2); 2];
        Self {
            kernel,
            stride,
            dilation,
            padding,
        }
    }

    fn attributes(self) -> Vec<Attribute> {
        let [front, behind] = self.padding;
        let mut attributes = vec![
            ints("kernel_shape", [self.kernel; 2]),
            ints("strides", [self.stride; 2]),
            ints("pads", [front, front, behind, behind]),
        ];
        if self.dilation > 1 {
            attributes.push(ints("dilations", [self.dilation; 2]));
        }
        attributes
    }
}

/// What a channel of a convolution's output reads.
#[derive(Clone, Copy)]
enum Kernels {
    /// All channels of the input.
    Dense,
    /// That channel of the input.
    Depthwise,
}

/// A state of a cell: the value, and the height and width of its maps.
struct State {
    value: String,
    size: usize,
}

/// The graph as far as it is written. Values are named after the modules of the published networks that give them.
struct Writer {
    parameters: BTreeMap<String, Tensor>,
    nodes: Vec<Node>,
    initializers: Vec<proto::Tensor>,
}

impl Writer {
    fn network(
        &mut self,
        spec: &NetworkSpec,
        genotype: &Genotype,
        images: &Images<'_>,
    ) -> Result<()> {
        let x = self.normalize(images);
        let (mut s0, mut s1) = self.stem(spec.stem, &x)?;
        for cell in spec.cells() {
            let y = self.cell(&cell, genotype.cell(cell.kind), [&s0, &s1])?;
            (s0, s1) = (s1, y);
        }
        let x = self.node("GlobalAveragePool", &[&s1], Vec::new(), "global_pooling");
        let x = self.node("Flatten", &[&x], vec![int("axis", 1)], "flatten");
        let [weight, bias] = ["classifier.weight", "classifier.bias"];
        self.parameter(weight)?;
        self.parameter(bias)?;
        let transposed = vec![int("transB", 1)];
        self.node("Gemm", &[&x, weight, bias], transposed, OUTPUT);
        Ok(())
    }

    fn normalize(&mut self, images: &Images<'_>) -> String {
        for (name, values) in [("mean", images.mean), ("std", images.std)] {
            self.initializer(name, &[1, values.len(), 1, 1], values);
        }
        let x = self.node("Sub", &[INPUT, "mean"], Vec::new(), "centred");
        self.node("Div", &[&x, "std"], Vec::new(), "normalized")
    }

    /// The states that the first cell reads: of two cells ago, and of one.
    fn stem(&mut self, stem: Stem, x: &str) -> Result<(String, String)> {
        let stride = match stem {
            Stem::Conv3x3 => 1,
            Stem::Conv3x3Stride2 => 2,
            Stem::Imagenet => {
                let y = self.dense(x, "stem0.0", 2, "stem0.1")?;
                let y = self.relu(&y);
                let s0 = self.dense(&y, "stem0.3", 2, "stem0.4")?;
                let y = self.relu(&s0);
                let s1 = self.dense(&y, "stem1.1", 2, "stem1.2")?;
                return Ok((s0, s1));
            }
        };
        let y = self.dense(x, "stem.0", stride, "stem.1")?;
        Ok((y.clone(), y))
    }

    /// The concatenation of a cell's nodes.
    fn cell(
        &mut self,
        spec: &CellSpec,
        genotype: &CellGenotype,
        [s0, s1]: [&str; 2],
    ) -> Result<String> {
        let name = format!("cells.{}", spec.layer);
        let preprocess0 = format!("{name}.preprocess0");
        let s0 = if spec.reduction_prev {
            self.factorized_reduce(s0, &preprocess0, spec.size_prev_prev)?
        } else {
            self.relu_conv_bn(s0, &preprocess0)?
        };
        let s1 = self.relu_conv_bn(s1, &format!("{name}.preprocess1"))?;
        let mut states: Vec<State> = Vec::from([s0, s1].map(|value| State {
            value,
            size: spec.size_prev,
        }));
        for (node, genes) in genotype.nodes.iter().enumerate() {
            let mut outputs = Vec::with_capacity(2);
            for (index, gene) in (2 * node..).zip(genes) {
                let operation = format!("{name}._ops.{index}");
                let stride = spec.stride_from(gene.source);
                let x = &states[gene.source];
                outputs.push(self.operation(gene.primitive, x, &operation, stride)?);
            }
            let state = format!("{name}.states.{}", states.len());
            let value = self.node("Add", &[&outputs[0], &outputs[1]], Vec::new(), &state);
            states.push(State {
                value,
                size: spec.out_size(),
            });
        }
        let nodes: Vec<&str> = states[2..].iter().map(|s| s.value.as_str()).collect();
        Ok(self.node("Concat", &nodes, vec![int("axis", 1)], &name))
    }

    /// What a gene makes of a state.
    fn operation(
        &mut self,
        primitive: Primitive,
        x: &State,
        name: &str,
        stride: usize,
    ) -> Result<String> {
        let State { value: x, size } = x;
        let pool = Window::same(3, stride, 1).attributes();
        match primitive {
            Primitive::None => candle_core::bail!("{name}: a derived network has no `none`"),
            // Neither counts what lies outside.
            Primitive::MaxPool3x3 => Ok(self.node("MaxPool", &[x], pool, name)),
            Primitive::AvgPool3x3 => Ok(self.node("AveragePool", &[x], pool, name)),
            Primitive::SkipConnect if stride == 1 => Ok(x.clone()),
            Primitive::SkipConnect => self.factorized_reduce(x, name, *size),
            Primitive::SepConv3x3 => self.separable(x, name, 3, stride),
            Primitive::SepConv5x5 => self.separable(x, name, 5, stride),
            Primitive::DilConv3x3 => self.unit(x, name, 1, Window::same(3, stride, 2)),
            Primitive::DilConv5x5 => self.unit(x, name, 1, Window::same(5, stride, 2)),
        }
    }

    fn separable(&mut self, x: &str, name: &str, kernel: usize, stride: usize) -> Result<String> {
        let y = self.unit(x, name, 1, Window::same(kernel, stride, 1))?;
        self.unit(&y, name, 5, Window::same(kernel, 1, 1))
    }

    /// ReLU, depthwise and pointwise convolution, batch normalisation: the modules from `first` on in `op`.
    fn unit(&mut self, x: &str, name: &str, first: usize, window: Window) -> Result<String> {
        let op = |index: usize| format!("{name}.op.{}", first + index);
        let x = self.relu(x);
        let y = self.convolution(&x, &op(0), window, Kernels::Depthwise)?;
        let y = self.pointwise(&y, &op(1))?;
        self.batch_norm(&y, &op(2))
    }

    fn relu_conv_bn(&mut self, x: &str, name: &str) -> Result<String> {
        let x = self.relu(x);
        let y = self.pointwise(&x, &format!("{name}.op.1"))?;
        self.batch_norm(&y, &format!("{name}.op.2"))
    }

    /// Half of the channels from the even pixels, half from the odd ones ([`nn::layers::FactorizedReduce`]).
    fn factorized_reduce(&mut self, x: &str, name: &str, size: usize) -> Result<String> {
        let x = self.relu(x);
        let halves = Window::same(1, 2, 1);
        let even = self.convolution(&x, &format!("{name}.conv_1"), halves, Kernels::Dense)?;
        let [starts, ends, axes] = ["odd.starts", "odd.ends", "odd.axes"];
        if self.initializers.iter().all(|own| own.name != starts) {
            self.indices(starts, &[1, 1]);
            self.indices(ends, &[i64::MAX; 2]);
            self.indices(axes, &[2, 3]);
        }
        let odd = format!("{name}.odd");
        let x = self.node("Slice", &[&x, starts, ends, axes], Vec::new(), &odd);
        let window = Window {
            padding: [0, size % 2],
            ..halves
        };
        let odd = self.convolution(&x, &format!("{name}.conv_2"), window, Kernels::Dense)?;
        let both = format!("{name}.concat");
        let y = self.node("Concat", &[&even, &odd], vec![int("axis", 1)], &both);
        self.batch_norm(&y, &format!("{name}.bn"))
    }

    /// A 3x3 convolution with its batch normalisation, as stems use it.
    fn dense(&mut self, x: &str, name: &str, stride: usize, norm: &str) -> Result<String> {
        let y = self.convolution(x, name, Window::same(3, stride, 1), Kernels::Dense)?;
        self.batch_norm(&y, norm)
    }

    fn pointwise(&mut self, x: &str, name: &str) -> Result<String> {
        self.convolution(x, name, Window::same(1, 1, 1), Kernels::Dense)
    }

    fn convolution(
        &mut self,
        x: &str,
        name: &str,
        window: Window,
        kernels: Kernels,
    ) -> Result<String> {
        let weight = format!("{name}.weight");
        let n_out = self.parameter(&weight)?.dims()[0];
        let mut attributes = window.attributes();
        if let Kernels::Depthwise = kernels {
            attributes.push(int("group", n_out));
        }
        Ok(self.node("Conv", &[x, &weight], attributes, name))
    }

    /// By the running statistics.
    fn batch_norm(&mut self, x: &str, name: &str) -> Result<String> {
        let names = ["weight", "bias", "running_mean", "running_var"];
        let names = names.map(|own| format!("{name}.{own}"));
        for own in &names {
            self.parameter(own)?;
        }
        let [weight, bias, mean, var] = &names;
        let epsilon = Attribute {
            name: "epsilon".to_owned(),
            f: Some(BATCH_NORM_EPS as f32),
            r#type: AttributeType::Float.into(),
            ..Attribute::default()
        };
        let inputs = [x, weight, bias, mean, var];
        Ok(self.node("BatchNormalization", &inputs, vec![epsilon], name))
    }

    /// Of each value once, whoever reads it.
    fn relu(&mut self, x: &str) -> String {
        let name = format!("{x}.relu");
        if self.nodes.iter().any(|node| node.name == name) {
            return name;
        }
        self.node("Relu", &[x], Vec::new(), &name)
    }

    /// Adds a node of one output, of its name.
    fn node(
        &mut self,
        op_type: &str,
        inputs: &[&str],
        attributes: Vec<Attribute>,
        name: &str,
    ) -> String {
        self.nodes.push(Node {
            input: inputs.iter().map(|&input| input.to_owned()).collect(),
            output: vec![name.to_owned()],
            name: name.to_owned(),
            op_type: op_type.to_owned(),
            attribute: attributes,
        });
        name.to_owned()
    }

    /// Adds the parameter of that name.
    fn parameter(&mut self, name: &str) -> Result<Tensor> {
        let Some(tensor) = self.parameters.get(name).cloned() else {
            candle_core::bail!("the parameters hold no `{name}`: are they of another network?");
        };
        let values: Vec<f32> = tensor.flatten_all()?.to_dtype(DType::F32)?.to_vec1()?;
        self.initializer(name, tensor.dims(), &values);
        Ok(tensor)
    }

    fn initializer(&mut self, name: &str, shape: &[usize], values: &[f32]) {
        self.initializers.push(proto::Tensor {
            dims: shape.iter().map(|&n| n as i64).collect(),
            data_type: DataType::Float.into(),
            name: name.to_owned(),
            raw_data: values.iter().flat_map(|x| x.to_le_bytes()).collect(),
        });
    }

    fn indices(&mut self, name: &str, values: &[i64]) {
        self.initializers.push(proto::Tensor {
            dims: vec![values.len() as i64],
            data_type: DataType::Int64.into(),
            name: name.to_owned(),
            raw_data: values.iter().flat_map(|x| x.to_le_bytes()).collect(),
        });
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;
    use nn::parameters::Builder;
    use nn::{DerivedNet, Pass};
    use space::Gene;

    use super::*;

    const MEAN: [f32; 3] = [0.5, 0.4, 0.3];
    const STD: [f32; 3] = [0.2, 0.25, 0.3];

    /// A network whose batch normalisations change something.
    fn network(spec: &NetworkSpec, genotype: &Genotype) -> DerivedNet {
        let mut rng = crate::fixed_rng();
        let builder = Builder::new(&Device::Cpu, DType::F32, &mut rng);
        let network = DerivedNet::new(&builder, spec, genotype, true).unwrap();
        let mut state = network.parameters().state().unwrap();
        for (number, (name, tensor)) in state.iter_mut().enumerate() {
            let around = if name.ends_with("running_var") || tensor.dims().len() == 1 {
                1.0
            } else {
                continue;
            };
            let wave = |i: usize| around + 0.5 * ((number + 3 * i) as f32).sin();
            let values: Vec<f32> = (0..tensor.elem_count()).map(wave).collect();
            *tensor = Tensor::from_vec(values, tensor.shape(), &Device::Cpu).unwrap();
        }
        network.parameters().load(&state).unwrap();
        network
    }

    fn assert_agrees(spec: &NetworkSpec, genotype: &Genotype, n: usize) {
        let network = network(spec, genotype);
        let (c, size) = (spec.in_channels, spec.image_size);
        let (mean, std) = (&MEAN[..c], &STD[..c]);
        let images = Images {
            mean,
            std,
            class_names: &[],
        };
        let onnx = encode(spec, genotype, network.parameters(), &images).unwrap();
        let pixels: Vec<f32> = crate::input(n * c * size * size)
            .iter()
            .map(|x| 0.5 + 0.5 * x)
            .collect();
        let found = tract_oracle::answer(&onnx, [n, c, size, size], &pixels);
        let normalized = pixels
            .chunks(size * size)
            .enumerate()
            .flat_map(|(plane, pixels)| {
                pixels
                    .iter()
                    .map(move |x| (x - mean[plane % c]) / std[plane % c])
            })
            .collect();
        let x = Tensor::from_vec(normalized, (n, c, size, size), &Device::Cpu);
        let logits = network.forward(&x.unwrap(), &Pass::inference()).unwrap();
        let expected: Vec<f32> = logits.main.flatten_all().unwrap().to_vec1().unwrap();
        assert_eq!(found.len(), expected.len());
        let largest = expected.iter().fold(0.0, |max: f32, x| max.max(x.abs()));
        for (found, expected) in found.iter().zip(&expected) {
            let error = (found - expected).abs() / largest;
            assert!(error < 1e-4, "{found} for {expected}: {spec:?} {genotype}");
        }
    }

    fn spec(stem: Stem) -> NetworkSpec {
        NetworkSpec {
            stem,
            n_layers: 4,
            init_channels: 4,
            in_channels: 3,
            n_classes: 5,
            image_size: 16,
        }
    }

    /// Normal and reduction cells, each with two primitives on inputs of the cell and on nodes.
    fn genotype_of(a: Primitive, b: Primitive) -> Genotype {
        let cell = || {
            let gene = |primitive, source| Gene { primitive, source };
            CellGenotype {
                nodes: [
                    [gene(a, 0), gene(b, 1)],
                    [gene(b, 0), gene(a, 2)],
                    [gene(a, 1), gene(b, 3)],
                    [gene(b, 2), gene(a, 4)],
                ],
            }
        };
        Genotype {
            normal: cell(),
            reduction: cell(),
        }
    }

    #[test]
    fn every_primitive_answers_elsewhere_what_it_does_here() {
        use Primitive as P;
        for (a, b) in [
            (P::SepConv3x3, P::SepConv5x5),
            (P::DilConv3x3, P::DilConv5x5),
            (P::MaxPool3x3, P::AvgPool3x3),
            (P::SkipConnect, P::SepConv3x3),
        ] {
            assert_agrees(&spec(Stem::Conv3x3), &genotype_of(a, b), 2);
        }
    }

    #[test]
    fn so_does_every_stem_at_odd_sizes_of_one_channel_and_of_single_images() {
        let genotype = Genotype::named("PC_DARTS_cifar").expect("a published genotype");
        for stem in Stem::ALL {
            assert_agrees(&spec(stem), &genotype, 1);
            let odd = NetworkSpec {
                image_size: 27,
                in_channels: 1,
                ..spec(stem)
            };
            assert_agrees(&odd, &genotype, 3);
        }
    }
}
