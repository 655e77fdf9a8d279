//! From numbers to pixels: scales with round ticks, and the frame of a chart.

use super::{Anchor, Pixels, Svg};

/// A linear scale whose ends and ticks are round numbers.
#[derive(Clone, Debug)]
pub(crate) struct Axis {
    pub(crate) min: f64,
    pub(crate) max: f64,
    step: f64,
}

impl Axis {
    /// The tightest scale of about `n_steps` round steps that covers all values.
    pub(crate) fn covering(values: impl IntoIterator<Item = f64>, n_steps: usize) -> Self {
        let (low, high) = values
            .into_iter()
            .filter(|value| value.is_finite())
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| {
                (low.min(value), high.max(value))
            });
        let (low, high) = if low > high { (0.0, 1.0) } else { (low, high) };
        // A single value gets some room on both sides.
        let span = if high > low {
            high - low
        } else {
            0.1 * high.abs().max(1.0)
        };
        let rough = span / n_steps.max(1) as f64;
        let power = 10f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 2.5, 5.0, 10.0]
            .into_iter()
            .map(|factor| factor * power)
            .find(|step| *step >= rough * (1.0 - 1e-9))
            .unwrap_or(10.0 * power);
        let (mut min, mut max) = (
            (low / step + 1e-9).floor() * step,
            (high / step - 1e-9).ceil() * step,
        );
        if max <= min {
            (min, max) = (min - step, min + step);
        }
        Self { min, max, step }
    }

    /// The round numbers from end to end.
    pub(crate) fn ticks(&self) -> impl Iterator<Item = f64> + use<> {
        let (min, step) = (self.min, self.step);
        let n_steps = ((self.max - self.min) / self.step).round() as usize;
        // Adding 0.0 turns -0.0 into 0.0.
        (0..=n_steps).map(move |index| min + step * index as f64 + 0.0)
    }

    /// A tick as text, with as many decimals as the step needs.
    pub(crate) fn label(&self, tick: f64) -> String {
        let n_decimals = (0..6)
            .find(|&n| {
                let scaled = self.step * 10f64.powi(n);
                (scaled - scaled.round()).abs() < 1e-6 * scaled
            })
            .unwrap_or(6);
        format!("{tick:.*}", n_decimals as usize)
    }

    /// Where a value lies between the ends, 0..1.
    fn position(&self, value: f64) -> f64 {
        (value - self.min) / (self.max - self.min)
    }
}

/// The rectangle between two axes.
pub(crate) struct Frame {
    pub(crate) x: Axis,
    pub(crate) y: Axis,
    pub(crate) left: f64,
    pub(crate) right: f64,
    pub(crate) top: f64,
    pub(crate) bottom: f64,
}

impl Frame {
    /// The pixel of a point.
    pub(crate) fn at(&self, x: f64, y: f64) -> [f64; 2] {
        [
            self.left + self.x.position(x) * (self.right - self.left),
            self.bottom - self.y.position(y) * (self.bottom - self.top),
        ]
    }

    /// Draws grid lines, ticks and titles.
    pub(crate) fn draw(&self, svg: &mut Svg, x_title: &str, y_title: &str) {
        for tick in self.y.ticks() {
            let [_, y] = self.at(self.x.min, tick);
            svg.line("grid", [self.left, y], [self.right, y]);
            svg.text(
                "tick",
                [self.left - 7.0, y],
                Anchor::End,
                &self.y.label(tick),
            );
        }
        for tick in self.x.ticks() {
            let [x, _] = self.at(tick, self.y.min);
            svg.line("axis", [x, self.bottom], [x, self.bottom + 4.0]);
            svg.text(
                "tick",
                [x, self.bottom + 13.0],
                Anchor::Middle,
                &self.x.label(tick),
            );
        }
        svg.line("axis", [self.left, self.bottom], [self.right, self.bottom]);
        let middle = (self.left + self.right) / 2.0;
        svg.text(
            "axis-title",
            [middle, self.bottom + 32.0],
            Anchor::Middle,
            x_title,
        );
        // The title of y runs upwards along the left edge.
        let (x, y) = (Pixels(16.0), Pixels((self.top + self.bottom) / 2.0));
        svg.push(format_args!(
            r#"<g transform="translate({x} {y}) rotate(-90)">"#
        ));
        svg.text("axis-title", [0.0, -4.0], Anchor::Middle, y_title);
        svg.push(format_args!("</g>"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ticks(values: &[f64], n_steps: usize) -> Vec<String> {
        let axis = Axis::covering(values.iter().copied(), n_steps);
        axis.ticks().map(|tick| axis.label(tick)).collect()
    }

    #[test]
    fn ticks_are_round_and_cover_the_values() {
        assert_eq!(
            ticks(&[1.31, 3.7], 5),
            ["1.0", "1.5", "2.0", "2.5", "3.0", "3.5", "4.0"]
        );
        assert_eq!(
            ticks(&[0.0, 1.0], 4),
            ["0.00", "0.25", "0.50", "0.75", "1.00"]
        );
        assert_eq!(ticks(&[0.0, 600.0], 5), ["0", "200", "400", "600"]);
        assert_eq!(
            ticks(&[0.712, 0.7155], 4),
            ["0.712", "0.713", "0.714", "0.715", "0.716"]
        );
    }

    #[test]
    fn a_single_value_and_none_at_all_still_make_an_axis() {
        for values in [&[][..], &[3.0], &[0.0], &[f64::NAN], &[-2.5, -2.5]] {
            let axis = Axis::covering(values.iter().copied(), 4);
            assert!(axis.max > axis.min, "{values:?}");
            assert!(axis.ticks().count() >= 2, "{values:?}");
        }
    }

    #[test]
    fn a_frame_has_its_origin_at_the_lower_left() {
        let frame = Frame {
            x: Axis::covering([0.0, 10.0], 5),
            y: Axis::covering([0.0, 1.0], 5),
            left: 50.0,
            right: 150.0,
            top: 10.0,
            bottom: 110.0,
        };
        assert_eq!(frame.at(0.0, 0.0), [50.0, 110.0]);
        assert_eq!(frame.at(10.0, 1.0), [150.0, 10.0]);
        assert_eq!(frame.at(5.0, 0.5), [100.0, 60.0]);
    }
}
