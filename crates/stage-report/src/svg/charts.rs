//! The charts of the report.

use super::axis::{Axis, Frame};
use super::{Anchor, Pixels, Svg};

/// The natural width of every chart: narrow enough for a telephone.
const WIDTH: f64 = 480.0;

/// The class of the first network of a comparison, and of the second.
pub(crate) const NETWORKS: [&str; 2] = ["baseline", "aware"];

/// A series of points with a mark of its own.
pub(crate) struct Series<'a> {
    /// The name in the legend.
    pub(crate) name: &'a str,
    /// Across and up.
    pub(crate) points: Vec<[f64; 2]>,
}

/// Predicted (up) against measured (across) costs, of what is said with its unit, with the line on which they are equal and ±5 % about it.
/// The first series has filled circles, the second open squares, further ones open circles.
pub(crate) fn scatter(of: &str, series: &[Series<'_>]) -> String {
    let values = series
        .iter()
        .flat_map(|series| &series.points)
        .flatten()
        .copied();
    let axis = Axis::covering(values, 5);
    let frame = Frame {
        x: axis.clone(),
        y: axis,
        left: 62.0,
        right: WIDTH - 14.0,
        top: 12.0,
        bottom: 416.0,
    };
    let mut svg = Svg::new(
        WIDTH,
        460.0,
        "Predicted against measured, of held-out architectures",
    );
    frame.draw(
        &mut svg,
        &format!("measured {of}"),
        &format!("predicted {of}"),
    );

    let (low, high) = (frame.x.min, frame.x.max);
    svg.push(format_args!(
        r#"<clipPath id="plot"><rect x="{}" y="{}" width="{}" height="{}"/></clipPath>"#,
        Pixels(frame.left),
        Pixels(frame.top),
        Pixels(frame.right - frame.left),
        Pixels(frame.bottom - frame.top),
    ));
    let corners = [(low, 0.95), (high, 0.95), (high, 1.05), (low, 1.05)];
    let corners = corners.map(|(x, factor)| {
        let [x, y] = frame.at(x, factor * x).map(Pixels);
        format!("{x},{y}")
    });
    svg.push(format_args!(
        r#"<polygon class="band" clip-path="url(#plot)" points="{}"/>"#,
        corners.join(" ")
    ));
    svg.line("identity", frame.at(low, low), frame.at(high, high));

    // Backwards, so that the first series lies on top.
    for (index, series) in series.iter().enumerate().rev() {
        for &[x, y] in &series.points {
            mark(&mut svg, index, frame.at(x, y));
        }
    }

    let (x, mut y) = (frame.left + 16.0, frame.top + 16.0);
    for (index, series) in series.iter().enumerate() {
        mark(&mut svg, index, [x, y]);
        svg.text("legend", [x + 16.0, y], Anchor::Start, series.name);
        y += 19.0;
    }
    svg.line("identity", [x - 8.0, y], [x + 8.0, y]);
    svg.text(
        "legend",
        [x + 16.0, y],
        Anchor::Start,
        "predicted = measured",
    );
    y += 19.0;
    svg.rect("band", [x - 8.0, y - 6.0], [16.0, 12.0], 0.0);
    svg.text("legend", [x + 16.0, y], Anchor::Start, "within 5 %");
    svg.finish()
}

fn mark(svg: &mut Svg, series: usize, [x, y]: [f64; 2]) {
    match series {
        0 => svg.circle("mark first", [x, y], 3.5),
        1 => svg.rect("mark second", [x - 3.0, y - 3.0], [6.0, 6.0], 0.0),
        _ => svg.circle("mark third", [x, y], 3.0),
    }
}

/// A network among others.
pub(crate) struct Marked<'a> {
    /// Its name.
    pub(crate) name: &'a str,
    /// Its latency, in milliseconds.
    pub(crate) millis: f64,
}

/// The distribution of latencies in milliseconds, with two networks marked.
pub(crate) fn histogram(millis: &[f64], networks: &[Marked<'_>; 2]) -> String {
    const BINS_PER_STEP: usize = 5;
    let marked = networks.iter().map(|network| network.millis);
    let x = Axis::covering(millis.iter().copied().chain(marked), 6);
    let n_bins = BINS_PER_STEP * (x.ticks().count() - 1);
    let counts = count(millis, &x, n_bins);
    let highest = counts.iter().copied().max().unwrap_or(0);
    let frame = Frame {
        y: Axis::covering([0.0, highest.max(4) as f64], 4),
        x,
        left: 62.0,
        right: WIDTH - 14.0,
        top: 62.0,
        bottom: 266.0,
    };
    let mut svg = Svg::new(
        WIDTH,
        310.0,
        "Latencies of random architectures, and of the two found networks",
    );
    frame.draw(&mut svg, "measured latency, ms", "architectures");
    let width = (frame.x.max - frame.x.min) / n_bins as f64;
    for (bin, &count) in counts.iter().enumerate().filter(|(_, count)| **count > 0) {
        let [left, top] = frame.at(frame.x.min + width * bin as f64, count as f64);
        let [right, bottom] = frame.at(frame.x.min + width * (bin + 1) as f64, 0.0);
        svg.rect(
            "bar",
            [left + 0.5, top],
            [right - left - 1.0, bottom - top],
            0.0,
        );
    }
    // Lines first, so that no name is crossed out; each name has a height of its own, so that two near
    // latencies do not overlap.
    let places = [0, 1].map(|index| {
        let [x, _] = frame.at(networks[index].millis, 0.0);
        [x, 14.0 + 22.0 * index as f64]
    });
    for ([x, y], class) in places.into_iter().zip(NETWORKS) {
        svg.line(&format!("curve {class}"), [x, y], [x, frame.bottom]);
    }
    for ([x, y], network) in places.into_iter().zip(networks) {
        let text = format!(
            "{}: {} ms",
            network.name,
            crate::page::millis(network.millis)
        );
        let (x, anchor) = if x < (frame.left + frame.right) / 2.0 {
            (x + 7.0, Anchor::Start)
        } else {
            (x - 7.0, Anchor::End)
        };
        svg.text("marked", [x, y], anchor, &text);
    }
    svg.finish()
}

/// How many values lie in each of the equal parts of an axis.
fn count(values: &[f64], axis: &Axis, n_bins: usize) -> Vec<usize> {
    let mut counts = vec![0; n_bins];
    for value in values
        .iter()
        .filter(|value| (axis.min..=axis.max).contains(value))
    {
        let bin = (value - axis.min) / (axis.max - axis.min) * n_bins as f64;
        counts[(bin as usize).min(n_bins - 1)] += 1;
    }
    counts
}

/// What epochs of a network's training, or of its search, showed.
pub(crate) struct Curve<'a> {
    /// The network's name.
    pub(crate) name: &'a str,
    /// The value after each epoch.
    pub(crate) values: Vec<f64>,
    /// The value on the test images, drawn at the last epoch.
    pub(crate) test: Option<f64>,
}

/// Two networks' values over the epochs, and a value that is the same in all, with its name.
pub(crate) fn curves(
    title: &str,
    y_title: &str,
    networks: &[Curve<'_>; 2],
    level: Option<(&str, f64)>,
) -> String {
    let values = networks
        .iter()
        .flat_map(|curve| curve.values.iter().copied().chain(curve.test))
        .chain(level.map(|(_, value)| value));
    let n_epochs = networks
        .iter()
        .map(|curve| curve.values.len())
        .max()
        .unwrap_or(0);
    let frame = Frame {
        x: Axis::covering([0.0, n_epochs.max(2) as f64], n_epochs.clamp(2, 6)),
        y: Axis::covering(values, 5),
        left: 62.0,
        right: WIDTH - 14.0,
        top: 34.0,
        bottom: 266.0,
    };
    let mut svg = Svg::new(WIDTH, 310.0, title);
    frame.draw(&mut svg, "epoch", y_title);
    if let Some((_, value)) = level {
        let ends = [frame.x.min, frame.x.max].map(|x| frame.at(x, value));
        svg.line("identity", ends[0], ends[1]);
    }
    // The dashed line on top, so that both are seen where they are equal.
    for (curve, class) in networks.iter().zip(NETWORKS).rev() {
        let points: Vec<[f64; 2]> = curve
            .values
            .iter()
            .enumerate()
            .map(|(epoch, &value)| frame.at(epoch as f64 + 1.0, value))
            .collect();
        match points[..] {
            // One point is no line.
            [[x, y]] => {
                let class = format!("curve {class}");
                svg.line(&class, [x - 6.0, y], [x + 6.0, y]);
            }
            _ => svg.polyline(&format!("curve {class}"), &points),
        }
    }
    for (curve, class) in networks.iter().zip(NETWORKS) {
        if let Some(test) = curve.test {
            // The first mark is larger, so that the second does not hide it where both are equal.
            let radius = if class == NETWORKS[0] { 8.0 } else { 5.0 };
            let at = frame.at(curve.values.len() as f64, test);
            test_mark(&mut svg, class, at, radius);
        }
    }
    let mut x = frame.left;
    let names = networks.iter().zip(NETWORKS);
    let names = names.map(|(curve, class)| (format!("curve {class}"), curve.name));
    let level = level.map(|(name, _)| ("identity".to_owned(), name));
    for (class, name) in names.chain(level) {
        svg.line(&class, [x, 14.0], [x + 26.0, 14.0]);
        svg.text("legend", [x + 32.0, 14.0], Anchor::Start, name);
        // As far as the name is wide, or a little more.
        x += 46.0 + 7.0 * name.chars().count() as f64;
    }
    if networks.iter().any(|curve| curve.test.is_some()) {
        test_mark(&mut svg, "neutral", [x + 6.0, 14.0], 6.0);
        svg.text("legend", [x + 16.0, 14.0], Anchor::Start, "test");
    }
    svg.finish()
}

/// A network of a sweep.
pub(crate) struct Swept {
    /// Its measured latency in milliseconds, or another cost.
    pub(crate) millis: f64,
    /// Its test accuracy, in percent.
    pub(crate) accuracy: f64,
    /// Whether no other beats it.
    pub(crate) is_on_front: bool,
}

/// Test accuracy over a cost, of what is said with its unit; those that nothing beats are filled and joined by steps.
pub(crate) fn front(of: &str, networks: &[Swept]) -> String {
    let points = networks.iter().map(|own| [own.millis, own.accuracy]);
    let (mut svg, frame) = accuracies(&format!("measured {of}"), points);
    let at = |network: &Swept| frame.at(network.millis, network.accuracy);
    let mut best: Vec<&Swept> = networks.iter().filter(|one| one.is_on_front).collect();
    best.sort_by(|a, b| a.millis.total_cmp(&b.millis));
    let mut steps: Vec<[f64; 2]> = Vec::new();
    for network in best {
        let [x, y] = at(network);
        if let Some(&[_, before]) = steps.last() {
            steps.push([x, before]);
        }
        steps.push([x, y]);
    }
    svg.polyline(&format!("curve {}", NETWORKS[1]), &steps);
    for network in networks {
        mark(&mut svg, usize::from(!network.is_on_front), at(network));
    }
    mark_legend(
        &mut svg,
        &frame,
        &["nothing is as accurate and faster", "beaten"],
    );
    svg.finish()
}

/// Test accuracy, in percent, over what is said with its unit, of the networks of several searches.
pub(crate) fn searches(of: &str, series: &[Series<'_>]) -> String {
    let points = series
        .iter()
        .flat_map(|series| series.points.iter().copied());
    let (mut svg, frame) = accuracies(of, points);
    // Backwards, so that the first series lies on top.
    for (index, series) in series.iter().enumerate().rev() {
        for &[x, y] in &series.points {
            mark(&mut svg, index, frame.at(x, y));
        }
    }
    let names: Vec<&str> = series.iter().map(|series| series.name).collect();
    mark_legend(&mut svg, &frame, &names);
    svg.finish()
}

/// The axes of test accuracies over a cost, and room for a legend above.
fn accuracies(cost: &str, points: impl Iterator<Item = [f64; 2]> + Clone) -> (Svg, Frame) {
    let frame = Frame {
        x: Axis::covering(points.clone().map(|[x, _]| x), 6),
        y: Axis::covering(points.map(|[_, y]| y), 5),
        left: 62.0,
        right: WIDTH - 24.0,
        top: 34.0,
        bottom: 266.0,
    };
    let mut svg = Svg::new(WIDTH, 310.0, format!("Test accuracy over {cost}"));
    frame.draw(&mut svg, cost, "test accuracy, %");
    (svg, frame)
}

/// The marks of series with their names, in a row above the frame.
fn mark_legend(svg: &mut Svg, frame: &Frame, names: &[&str]) {
    let mut x = frame.left;
    for (series, name) in names.iter().enumerate() {
        mark(svg, series, [x + 6.0, 14.0]);
        svg.text("legend", [x + 18.0, 14.0], Anchor::Start, name);
        x += 38.0 + 7.0 * name.chars().count() as f64;
    }
}

/// A diamond.
fn test_mark(svg: &mut Svg, class: &str, [x, y]: [f64; 2], radius: f64) {
    let [left, right, top, bottom] = [x - radius, x + radius, y - radius, y + radius].map(Pixels);
    let (x, y) = (Pixels(x), Pixels(y));
    svg.push(format_args!(
        r#"<path class="test {class}" d="M{left} {y}L{x} {top}L{right} {y}L{x} {bottom}Z"/>"#
    ));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_front_fills_and_joins_what_nothing_beats() {
        let network = |millis, accuracy, is_on_front| Swept {
            millis,
            accuracy,
            is_on_front,
        };
        let svg = front(
            "latency, ms",
            &[
                network(0.4, 88.0, true),
                network(0.3, 87.0, true),
                network(0.35, 86.0, false),
            ],
        );
        // One more of each in the legend.
        assert_eq!(svg.matches("mark first").count(), 2 + 1);
        assert_eq!(svg.matches("mark second").count(), 1 + 1);
        for text in ["measured latency, ms", "test accuracy, %"] {
            assert!(svg.contains(text), "{text}");
        }
        // From the faster network sideways, then up.
        let line = svg.split("<polyline").nth(1).unwrap();
        let points = line.split("points=\"").nth(1).unwrap();
        let points = points.split('"').next().unwrap().split(' ').count();
        assert_eq!(points, 3);
    }

    #[test]
    fn a_scatter_has_a_mark_per_point_and_says_what_is_what() {
        let series = [
            Series {
                name: "mlp",
                points: vec![[1.0, 1.1], [2.0, 1.9], [3.0, 3.0]],
            },
            Series {
                name: "ridge",
                points: vec![[1.0, 1.3]],
            },
        ];
        let svg = scatter("latency, ms", &series);
        // One more of each in the legend.
        assert_eq!(svg.matches("mark first").count(), 3 + 1);
        assert_eq!(svg.matches("mark second").count(), 1 + 1);
        for text in [
            "measured latency, ms",
            "predicted latency, ms",
            "mlp",
            "ridge",
            "predicted = measured",
        ] {
            assert!(svg.contains(&format!(">{text}</text>")), "{text}");
        }
    }

    #[test]
    fn every_value_is_counted_once_and_the_last_tick_belongs_to_the_last_bin() {
        let axis = Axis::covering([0.0, 4.0], 4);
        assert_eq!(count(&[0.0, 0.5, 1.0, 3.9, 4.0], &axis, 4), [2, 1, 0, 2]);
    }

    #[test]
    fn a_histogram_marks_both_networks() {
        let network = |name, millis| Marked { name, millis };
        let svg = histogram(
            &[1.0, 1.1, 1.2],
            &[network("near", 0.5), network("far", 2.5)],
        );
        assert!(svg.contains(">near: 0.500 ms</text>"));
        assert!(svg.contains(">far: 2.500 ms</text>"));
        assert_eq!(svg.matches(r#"class="bar""#).count(), 3);
    }

    #[test]
    fn curves_show_both_networks_and_the_test() {
        let curve = |name, values: &[f64], test| Curve {
            name,
            values: values.to_vec(),
            test,
        };
        let networks = [
            curve("λ = 0", &[2.0, 1.0], Some(1.2)),
            curve("λ = 0.5", &[2.1, 1.1], Some(1.3)),
        ];
        let svg = curves("Loss", "cross entropy, nats", &networks, None);
        for class in NETWORKS {
            assert_eq!(
                svg.matches(&format!(r#"<polyline class="curve {class}""#))
                    .count(),
                1
            );
            assert_eq!(svg.matches(&format!(r#"class="test {class}""#)).count(), 1);
        }
        assert!(!svg.contains("identity"));
    }

    #[test]
    fn a_level_is_drawn_from_end_to_end_and_named() {
        let curve = |name, values: &[f64]| Curve {
            name,
            values: values.to_vec(),
            test: None,
        };
        let networks = [curve("one", &[0.5, 0.4]), curve("other", &[0.5, 0.3])];
        let svg = curves("Latency", "latency, ms", &networks, Some(("target", 0.35)));
        // Once across, once in the legend.
        assert_eq!(svg.matches(r#"class="identity""#).count(), 2);
        assert!(svg.contains(">target</text>") && !svg.contains(">test</text>"));
    }
}
