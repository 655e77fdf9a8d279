//! Drawings as SVG elements that stand in an HTML page.
//!
//! Colours and line styles are classes; the page's style sheet gives them their values for light,
//! dark and paper.

pub(crate) mod axis;
pub(crate) mod cell;
pub(crate) mod charts;
mod layers;

use std::fmt::{self, Write};

/// A drawing in the making. Coordinates are in pixels at natural size, y pointing down.
pub(crate) struct Svg {
    width: f64,
    height: f64,
    description: String,
    body: String,
}

/// The end of a text that its position gives.
#[derive(Clone, Copy)]
pub(crate) enum Anchor {
    Start,
    Middle,
    End,
}

impl Anchor {
    const fn name(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Middle => "middle",
            Self::End => "end",
        }
    }
}

impl Svg {
    /// An empty drawing; `description` is what a screen reader says.
    pub(crate) fn new(width: f64, height: f64, description: impl Into<String>) -> Self {
        let (description, body) = (description.into(), String::new());
        Self {
            width,
            height,
            description,
            body,
        }
    }

    /// Appends an element that is written out; its texts must be free of markup.
    pub(crate) fn push(&mut self, element: fmt::Arguments<'_>) {
        self.body
            .write_fmt(element)
            .expect("a string takes everything");
        self.body.push('\n');
    }

    pub(crate) fn line(&mut self, class: &str, [x1, y1]: [f64; 2], [x2, y2]: [f64; 2]) {
        let [x1, y1, x2, y2] = [x1, y1, x2, y2].map(Pixels);
        self.push(format_args!(
            r#"<line class="{class}" x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}"/>"#
        ));
    }

    /// A line through points.
    pub(crate) fn polyline(&mut self, class: &str, points: &[[f64; 2]]) {
        let mut list = String::new();
        for (index, [x, y]) in points.iter().enumerate() {
            let space = if index == 0 { "" } else { " " };
            write!(list, "{space}{},{}", Pixels(*x), Pixels(*y))
                .expect("a string takes everything");
        }
        self.push(format_args!(
            r#"<polyline class="{class}" points="{list}"/>"#
        ));
    }

    pub(crate) fn rect(
        &mut self,
        class: &str,
        [x, y]: [f64; 2],
        [width, height]: [f64; 2],
        radius: f64,
    ) {
        let [x, y, width, height, radius] = [x, y, width, height, radius].map(Pixels);
        self.push(format_args!(
            r#"<rect class="{class}" x="{x}" y="{y}" width="{width}" height="{height}" rx="{radius}"/>"#
        ));
    }

    pub(crate) fn circle(&mut self, class: &str, [x, y]: [f64; 2], radius: f64) {
        let [x, y, radius] = [x, y, radius].map(Pixels);
        self.push(format_args!(
            r#"<circle class="{class}" cx="{x}" cy="{y}" r="{radius}"/>"#
        ));
    }

    /// A line of text whose middle height is at y.
    pub(crate) fn text(&mut self, class: &str, [x, y]: [f64; 2], anchor: Anchor, text: &str) {
        let (x, y, anchor, text) = (Pixels(x), Pixels(y + 4.0), anchor.name(), Escaped(text));
        self.push(format_args!(
            r#"<text class="{class}" x="{x}" y="{y}" text-anchor="{anchor}">{text}</text>"#
        ));
    }

    /// The element.
    pub(crate) fn finish(self) -> String {
        let (width, height) = (Pixels(self.width.ceil()), Pixels(self.height.ceil()));
        let (description, body) = (Escaped(&self.description), self.body);
        format!(
            "<svg role=\"img\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\">\n\
             <title>{description}</title>\n{body}</svg>"
        )
    }
}

/// A coordinate with as many digits as a screen can show.
#[derive(Clone, Copy)]
pub(crate) struct Pixels(pub(crate) f64);

impl fmt::Display for Pixels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Adding 0.0 turns -0.0 into 0.0.
        write!(f, "{}", (self.0 * 100.0).round() / 100.0 + 0.0)
    }
}

/// A text in which nothing is markup.
struct Escaped<'a>(&'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|c| match c {
            '&' => f.write_str("&amp;"),
            '<' => f.write_str("&lt;"),
            '>' => f.write_str("&gt;"),
            c => f.write_char(c),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_no_markup() {
        let mut svg = Svg::new(10.0, 10.0, "a < b");
        svg.text("label", [1.0, 2.0], Anchor::Middle, "<b>&");
        let svg = svg.finish();
        assert!(svg.contains("<title>a &lt; b</title>"));
        assert!(svg.contains(">&lt;b&gt;&amp;</text>"));
    }

    #[test]
    fn coordinates_are_short() {
        assert_eq!(Pixels(1.0 / 3.0).to_string(), "0.33");
        assert_eq!(Pixels(-0.001).to_string(), "0");
        assert_eq!(Pixels(12.0).to_string(), "12");
    }
}
