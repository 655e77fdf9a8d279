//! The graph of a cell.

use space::{CellGenotype, Primitive};

use super::layers::{Edge, lay_out};
use super::{Anchor, Pixels, Svg};

/// What an operation is, as far as colour and line style tell.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family {
    SeparableConvolution,
    DilatedConvolution,
    Pooling,
    Skip,
}

impl Family {
    const ALL: [Self; 4] = [
        Self::SeparableConvolution,
        Self::DilatedConvolution,
        Self::Pooling,
        Self::Skip,
    ];

    /// The class of its lines in the style sheet.
    const fn class(self) -> &'static str {
        match self {
            Self::SeparableConvolution => "op sep",
            Self::DilatedConvolution => "op dil",
            Self::Pooling => "op pool",
            Self::Skip => "op skip",
        }
    }

    const fn meaning(self) -> &'static str {
        match self {
            Self::SeparableConvolution => "separable convolution",
            Self::DilatedConvolution => "dilated convolution",
            Self::Pooling => "pooling",
            Self::Skip => "skip connection",
        }
    }
}

/// The family of a primitive and its label; a genotype holds no `none`.
fn appearance(primitive: Primitive) -> (Family, &'static str) {
    match primitive {
        Primitive::SepConv3x3 => (Family::SeparableConvolution, "sep 3×3"),
        Primitive::SepConv5x5 => (Family::SeparableConvolution, "sep 5×5"),
        Primitive::DilConv3x3 => (Family::DilatedConvolution, "dil 3×3"),
        Primitive::DilConv5x5 => (Family::DilatedConvolution, "dil 5×5"),
        Primitive::MaxPool3x3 => (Family::Pooling, "max 3×3"),
        Primitive::AvgPool3x3 => (Family::Pooling, "avg 3×3"),
        Primitive::SkipConnect => (Family::Skip, "skip"),
        Primitive::None => (Family::Skip, "none"),
    }
}

/// The vertices: the two inputs, the four nodes, the output.
const N_STATES: usize = 6;
const OUTPUT: usize = N_STATES;
const PORT: [f64; 2] = [46.0, 28.0];
const NODE: [f64; 2] = [30.0, 30.0];
const LABEL: [f64; 2] = [56.0, 18.0];

/// Draws a cell: states as vertices, operations as labelled edges, from the inputs on the left to the
/// concatenation on the right.
pub(crate) fn draw(cell: &CellGenotype, description: &str) -> String {
    let operations = cell.genes().map(|(node, gene)| {
        let edge = Edge {
            from: gene.source,
            to: node,
            label: Some(LABEL),
        };
        (edge, Some(appearance(gene.primitive)))
    });
    let concatenation = (2..N_STATES).map(|node| {
        (
            Edge {
                from: node,
                to: OUTPUT,
                label: None,
            },
            None,
        )
    });
    let (edges, appearances): (Vec<Edge>, Vec<_>) = operations.chain(concatenation).unzip();
    let sizes = [PORT, PORT, NODE, NODE, NODE, NODE, PORT];
    let layout = lay_out(&sizes, &edges);

    let mut svg = Svg::new(layout.width, layout.height, description);
    // Lines first, so that vertices and labels lie on top of them.
    for ((edge, route), appearance) in edges.iter().zip(&layout.routes).zip(&appearances) {
        let class = appearance.map_or("concat", |(family, _)| family.class());
        let start = side(layout.vertices[edge.from], sizes[edge.from], 1.0);
        let end = side(layout.vertices[edge.to], sizes[edge.to], -1.0);
        draw_route(&mut svg, class, start, &route.runs, end);
    }
    for (route, appearance) in layout.routes.iter().zip(&appearances) {
        if let (Some(middle), Some((family, label))) = (route.label, appearance) {
            let corner = [middle[0] - LABEL[0] / 2.0, middle[1] - LABEL[1] / 2.0];
            svg.rect(
                &format!("{} pill", family.class()),
                corner,
                LABEL,
                LABEL[1] / 2.0,
            );
            svg.text("op-name", middle, Anchor::Middle, label);
        }
    }
    for (vertex, &[x, y]) in layout.vertices.iter().enumerate() {
        let name = match vertex {
            0 => ("c", "k−2"),
            1 => ("c", "k−1"),
            OUTPUT => ("c", "k"),
            node => {
                svg.circle("vertex", [x, y], NODE[0] / 2.0);
                svg.text(
                    "vertex-name",
                    [x, y],
                    Anchor::Middle,
                    &(node - 2).to_string(),
                );
                continue;
            }
        };
        svg.rect("vertex", [x - PORT[0] / 2.0, y - PORT[1] / 2.0], PORT, 6.0);
        let (x, y) = (Pixels(x), Pixels(y + 3.0));
        svg.push(format_args!(
            r#"<text class="vertex-name" x="{x}" y="{y}" text-anchor="middle">{}<tspan class="sub" dy="4">{}</tspan></text>"#,
            name.0, name.1
        ));
    }
    svg.finish()
}

/// The middle of a vertex's right (1) or left (-1) side.
fn side([x, y]: [f64; 2], [width, _]: [f64; 2], direction: f64) -> [f64; 2] {
    [x + direction * width / 2.0, y]
}

/// A smooth line from vertex to vertex along the runs, with an arrow at its end.
fn draw_route(svg: &mut Svg, class: &str, start: [f64; 2], runs: &[[f64; 3]], end: [f64; 2]) {
    const ARROW: f64 = 7.0;
    let [mut x, mut y] = start;
    let mut path = format!("M{} {}", Pixels(x), Pixels(y));
    let arrival = [end[0] - ARROW, end[0] - ARROW, end[1]];
    for &[left, right, height] in runs.iter().chain([&arrival]) {
        let middle = Pixels((x + left) / 2.0);
        let (from, to, left_end) = (Pixels(y), Pixels(height), Pixels(left));
        path.push_str(&format!("C{middle} {from} {middle} {to} {left_end} {to}"));
        if right > left {
            path.push_str(&format!("H{}", Pixels(right)));
        }
        (x, y) = (right, height);
    }
    svg.push(format_args!(r#"<path class="{class}" d="{path}"/>"#));
    let [tip, back, up, down] = [end[0], end[0] - ARROW, end[1] - 4.0, end[1] + 4.0].map(Pixels);
    let level = Pixels(end[1]);
    svg.push(format_args!(
        r#"<path class="{class} arrow" d="M{tip} {level}L{back} {up}V{down}Z"/>"#
    ));
}

/// What colours and line styles mean, one drawing per family with its meaning.
pub(crate) fn legend() -> Vec<(String, &'static str)> {
    Family::ALL
        .into_iter()
        .map(|family| {
            let mut svg = Svg::new(34.0, 12.0, family.meaning());
            svg.line(family.class(), [1.0, 6.0], [33.0, 6.0]);
            (svg.finish(), family.meaning())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand_chacha::ChaCha8Rng;
    use rand_chacha::rand_core::SeedableRng;
    use space::{Genotype, SearchSpace};

    /// The rectangles of the labels and vertices: left, top, right, bottom.
    fn boxes(svg: &str) -> Vec<[f64; 4]> {
        let number = |element: &str, name: &str| -> f64 {
            let value = element
                .split(&format!(" {name}=\""))
                .nth(1)
                .expect("the attribute");
            value
                .split('"')
                .next()
                .expect("a value")
                .parse()
                .expect("a number")
        };
        svg.lines()
            .filter_map(|line| {
                if line.starts_with("<rect") {
                    let [x, y] = ["x", "y"].map(|name| number(line, name));
                    Some([x, y, x + number(line, "width"), y + number(line, "height")])
                } else if line.starts_with("<circle") {
                    let [x, y, r] = ["cx", "cy", "r"].map(|name| number(line, name));
                    Some([x - r, y - r, x + r, y + r])
                } else {
                    None
                }
            })
            .collect()
    }

    #[test]
    fn nothing_overlaps_in_any_cell() {
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        let sampled = (0..200).map(|_| SearchSpace::darts().sample(&mut rng));
        let published = Genotype::names()
            .iter()
            .filter_map(|name| Genotype::named(name));
        for genotype in published.chain(sampled) {
            for cell in [&genotype.normal, &genotype.reduction] {
                let boxes = boxes(&draw(cell, "a cell"));
                assert_eq!(boxes.len(), 8 + 7);
                for (index, a) in boxes.iter().enumerate() {
                    for b in &boxes[..index] {
                        let apart = a[2] <= b[0] || b[2] <= a[0] || a[3] <= b[1] || b[3] <= a[1];
                        assert!(apart, "{a:?} and {b:?} in {genotype}");
                    }
                }
            }
        }
    }

    #[test]
    fn every_operation_is_drawn_with_its_name_and_style() {
        let genotype = Genotype::named("PC_DARTS_cifar").unwrap();
        let svg = draw(&genotype.normal, "normal cell");
        let count = |text: &str| svg.matches(text).count();
        assert_eq!(count(">sep 3×3</text>"), 3);
        assert_eq!(count(">sep 5×5</text>"), 1);
        assert_eq!(count(">dil 3×3</text>"), 2);
        assert_eq!(count(">avg 3×3</text>"), 1);
        assert_eq!(count(">skip</text>"), 1);
        assert_eq!(count(r#"class="op sep pill""#), 4);
        assert_eq!(count(r#"class="op skip pill""#), 1);
        assert_eq!(count(r#"class="concat""#), 4);
    }
}
