//! The tuple form of the original DARTS code:
//! `Genotype(normal=[('sep_conv_3x3', 1), …], normal_concat=range(2, 6), reduce=[…], reduce_concat=…)`.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

use super::{CellGenotype, CellKind, Gene, Genotype, GenotypeError};
use crate::primitive::Primitive;

impl fmt::Display for CellGenotype {
    /// Writes the list of the original code: `[('sep_conv_3x3', 1), …]`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (_, Gene { primitive, source })) in self.genes().enumerate() {
            let before = if index == 0 { "[" } else { ", " };
            write!(f, "{before}('{primitive}', {source})")?;
        }
        f.write_str("]")
    }
}

impl fmt::Display for Genotype {
    /// Writes the tuple form of the original code, on one line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { normal, reduction } = self;
        write!(
            f,
            "Genotype(normal={normal}, normal_concat=range(2, 6), \
             reduce={reduction}, reduce_concat=range(2, 6))"
        )
    }
}

impl FromStr for Genotype {
    type Err = ParseGenotypeError;

    /// Reads the tuple form of the original code.
    ///
    /// White space, line breaks, `#` comments and trailing commas are free, as in Python; quotes are
    /// single or double; a `NAME =` may stand in front. The cell's output must be the nodes 2, 3, 4
    /// and 5, written as a list or a `range`, or left away.
    fn from_str(text: &str) -> Result<Self, ParseGenotypeError> {
        let mut parser = Parser { text, offset: 0 };
        let genotype = parser.genotype()?;
        match parser.peek() {
            None => Ok(genotype),
            Some(_) => Err(parser.expected("the end of the text")),
        }
    }
}

/// Why a text is not a genotype in the tuple form.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ParseGenotypeError {
    /// The text breaks off the form.
    #[error("expected {expected} at byte {offset}, found {found}")]
    Unexpected {
        /// Where, in bytes from the start of the text.
        offset: usize,
        /// What the form asks for there.
        expected: String,
        /// What stands there.
        found: String,
    },
    /// A field is given twice.
    #[error("field `{field}` is given a second time at byte {offset}")]
    RepeatedField {
        /// Where, in bytes from the start of the text.
        offset: usize,
        /// The field's name.
        field: String,
    },
    /// A cell is missing.
    #[error("field `{kind}` is missing before the `)` at byte {offset}")]
    MissingCell {
        /// Where the tuple closes, in bytes from the start of the text.
        offset: usize,
        /// The cell.
        kind: CellKind,
    },
    /// The text is well formed, but its genes make no genotype of this space.
    #[error(transparent)]
    Genotype(#[from] GenotypeError),
}

/// Reads from `offset` on; every method skips white space and comments first.
struct Parser<'a> {
    text: &'a str,
    offset: usize,
}

type Parsed<T> = Result<T, ParseGenotypeError>;

impl<'a> Parser<'a> {
    fn genotype(&mut self) -> Parsed<Genotype> {
        let mut start = self.skip_blank();
        let mut word = self.word();
        if word.is_some() && self.eat('=') {
            start = self.skip_blank();
            word = self.word();
        }
        if word != Some("Genotype") {
            self.offset = start;
            return Err(self.expected("`Genotype(`, after an optional `NAME =`"));
        }
        self.punctuation('(')?;

        let mut cells = [None, None];
        let mut has_concat = [false; 2];
        let close = self.items(')', |parser| {
            let start = parser.skip_blank();
            let field = parser.word().unwrap_or_default();
            let (kind_name, is_concat) = match field.strip_suffix("_concat") {
                Some(kind_name) => (kind_name, true),
                None => (field, false),
            };
            let Some(kind) = CellKind::from_name(kind_name) else {
                parser.offset = start;
                return Err(
                    parser.expected("`normal`, `normal_concat`, `reduce`, `reduce_concat` or `)`")
                );
            };
            let given = if is_concat {
                has_concat[kind.index()]
            } else {
                cells[kind.index()].is_some()
            };
            if given {
                return Err(ParseGenotypeError::RepeatedField {
                    offset: start,
                    field: field.to_owned(),
                });
            }
            parser.punctuation('=')?;
            if is_concat {
                parser.concat()?;
                has_concat[kind.index()] = true;
            } else {
                cells[kind.index()] = Some(parser.cell()?);
            }
            Ok(())
        })?;
        let missing = |kind| ParseGenotypeError::MissingCell {
            offset: close,
            kind,
        };
        let [normal, reduction] = cells;
        Ok(Genotype::new(
            normal.ok_or(missing(CellKind::Normal))?,
            reduction.ok_or(missing(CellKind::Reduction))?,
        )?)
    }

    /// `[('sep_conv_3x3', 1), …]`: two genes for each node. What the genes say is not checked.
    fn cell(&mut self) -> Parsed<CellGenotype> {
        let start = self.skip_blank();
        let mut genes = Vec::new();
        self.punctuation('[')?;
        self.items(']', |parser| {
            parser.punctuation('(')?;
            let primitive = parser.primitive()?;
            parser.punctuation(',')?;
            let source = parser.number()?;
            parser.punctuation(')')?;
            genes.push(Gene { primitive, source });
            Ok(())
        })?;
        let Ok(genes) = <[Gene; 8]>::try_from(genes.as_slice()) else {
            return Err(ParseGenotypeError::Unexpected {
                offset: start,
                expected: "eight genes, two for each of the nodes 2, 3, 4, 5".to_owned(),
                found: genes.len().to_string(),
            });
        };
        let [a, b, c, d, e, f, g, h] = genes;
        Ok(CellGenotype {
            nodes: [[a, b], [c, d], [e, f], [g, h]],
        })
    }

    /// `[2, 3, 4, 5]` or `range(2, 6)`: nothing else is in this space.
    fn concat(&mut self) -> Parsed<()> {
        let start = self.skip_blank();
        let is_all = if self.eat('[') {
            let mut nodes = Vec::new();
            self.items(']', |parser| {
                nodes.push(parser.number()?);
                Ok(())
            })?;
            nodes == [2, 3, 4, 5]
        } else if self.word() == Some("range") {
            self.punctuation('(')?;
            let first = self.number()?;
            self.punctuation(',')?;
            let end = self.number()?;
            self.punctuation(')')?;
            (first, end) == (2, 6)
        } else {
            false
        };
        if !is_all {
            self.offset = start;
            return Err(self.expected("all intermediate nodes, `range(2, 6)` or `[2, 3, 4, 5]`"));
        }
        Ok(())
    }

    /// A quoted name of a primitive.
    fn primitive(&mut self) -> Parsed<Primitive> {
        let start = self.skip_blank();
        let primitive = ['\'', '"'].into_iter().find_map(|quote| {
            let (name, rest) = self.rest().strip_prefix(quote)?.split_once(quote)?;
            let primitive = Primitive::from_name(name)?;
            self.offset = self.text.len() - rest.len();
            Some(primitive)
        });
        primitive.ok_or_else(|| {
            self.offset = start;
            let names = Primitive::KEPT.map(|primitive| format!("'{primitive}'"));
            self.expected(&format!("one of {}", names.join(", ")))
        })
    }

    /// `item, item, … close`, with an optional comma at the end; returns where `close` stands.
    fn items(
        &mut self,
        close: char,
        mut item: impl FnMut(&mut Self) -> Parsed<()>,
    ) -> Parsed<usize> {
        loop {
            let at = self.skip_blank();
            if self.eat(close) {
                return Ok(at);
            }
            item(self)?;
            if !self.eat(',') && self.peek() != Some(close) {
                return Err(self.expected(&format!("`,` or `{close}`")));
            }
        }
    }

    /// A run of letters, digits and underscores that does not start with a digit.
    fn word(&mut self) -> Option<&'a str> {
        self.skip_blank();
        let rest = self.rest();
        let is_part = |c: char| c.is_alphanumeric() || c == '_';
        let end = rest.find(|c| !is_part(c)).unwrap_or(rest.len());
        let word = &rest[..end];
        if word.is_empty() || word.starts_with(|c: char| c.is_numeric()) {
            return None;
        }
        self.offset += end;
        Some(word)
    }

    fn number(&mut self) -> Parsed<usize> {
        self.skip_blank();
        let rest = self.rest();
        let end = rest
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(rest.len());
        let number = rest[..end]
            .parse()
            .map_err(|_| self.expected("the number of a state"))?;
        self.offset += end;
        Ok(number)
    }

    fn punctuation(&mut self, expected: char) -> Parsed<()> {
        if self.eat(expected) {
            Ok(())
        } else {
            Err(self.expected(&format!("`{expected}`")))
        }
    }

    fn eat(&mut self, wanted: char) -> bool {
        let found = self.peek() == Some(wanted);
        if found {
            self.offset += wanted.len_utf8();
        }
        found
    }

    fn peek(&mut self) -> Option<char> {
        self.skip_blank();
        self.rest().chars().next()
    }

    /// Moves past white space and comments; returns the offset reached.
    fn skip_blank(&mut self) -> usize {
        loop {
            let rest = self.rest().trim_start();
            self.offset = self.text.len() - rest.len();
            if !rest.starts_with('#') {
                return self.offset;
            }
            self.offset += rest.find('\n').unwrap_or(rest.len());
        }
    }

    fn rest(&self) -> &'a str {
        &self.text[self.offset..]
    }

    /// The error that something else stands here.
    fn expected(&mut self, expected: &str) -> ParseGenotypeError {
        let offset = self.skip_blank();
        let rest = self.rest();
        let found = match rest.split_whitespace().next() {
            None => "the end of the text".to_owned(),
            Some(token) => format!("`{}`", token.chars().take(24).collect::<String>()),
        };
        ParseGenotypeError::Unexpected {
            offset,
            expected: expected.to_owned(),
            found,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::genotype::tests::genotypes;

    const WRITTEN: &str = "Genotype(\
        normal=[('sep_conv_3x3', 1), ('sep_conv_3x3', 0), ('skip_connect', 0), ('sep_conv_3x3', 1), \
        ('skip_connect', 0), ('sep_conv_3x3', 1), ('sep_conv_3x3', 0), ('skip_connect', 2)], \
        normal_concat=range(2, 6), \
        reduce=[('max_pool_3x3', 0), ('max_pool_3x3', 1), ('skip_connect', 2), ('max_pool_3x3', 0), \
        ('max_pool_3x3', 0), ('skip_connect', 2), ('skip_connect', 2), ('avg_pool_3x3', 0)], \
        reduce_concat=range(2, 6))";

    fn parse(text: &str) -> Result<Genotype, ParseGenotypeError> {
        text.parse()
    }

    /// The message of parsing [`WRITTEN`] with its first `old` replaced.
    fn message(old: &str, new: &str) -> String {
        assert!(WRITTEN.contains(old), "{old}");
        parse(&WRITTEN.replacen(old, new, 1))
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn writes_the_form_of_the_original_code() {
        assert_eq!(Genotype::named("DARTS_V1").unwrap().to_string(), WRITTEN);
    }

    #[test]
    fn reads_what_python_would_read() {
        let genotype = Genotype::named("DARTS_V1").unwrap();
        for text in [
            WRITTEN.replace(' ', ""),
            WRITTEN.replace(' ', " \n\t "),
            WRITTEN.replace('\'', "\""),
            WRITTEN.replace("range(2, 6)", "[2, 3, 4, 5]"),
            WRITTEN.replace(", normal_concat=range(2, 6)", ""),
            WRITTEN.replace("2)]", "2),]").replace("6))", "6),)"),
            WRITTEN.replace("reduce=[", "reduce=[ # the reduction cell\n"),
            format!("DARTS_V1 = {WRITTEN}\n"),
            format!("# comment\n\nX={WRITTEN} # the end"),
        ] {
            assert_eq!(parse(&text), Ok(genotype.clone()), "{text}");
        }
    }

    #[test]
    fn fields_come_in_any_order() {
        let (normal, reduce) = WRITTEN
            .strip_prefix("Genotype(")
            .and_then(|fields| fields.strip_suffix(")"))
            .and_then(|fields| fields.split_once(", reduce="))
            .unwrap();
        let turned = format!("Genotype(reduce={reduce}, {normal})");
        assert_eq!(parse(&turned), parse(WRITTEN));
    }

    #[test]
    fn errors_say_where_and_what() {
        assert_eq!(
            parse("").unwrap_err().to_string(),
            "expected `Genotype(`, after an optional `NAME =` at byte 0, found the end of the text"
        );
        assert_eq!(
            parse(" Network (").unwrap_err().to_string(),
            "expected `Genotype(`, after an optional `NAME =` at byte 1, found `Network`"
        );
        assert_eq!(
            parse(&format!("{WRITTEN} x")).unwrap_err().to_string(),
            format!(
                "expected the end of the text at byte {}, found `x`",
                WRITTEN.len() + 1
            )
        );
        assert_eq!(
            message("normal=", "norm="),
            "expected `normal`, `normal_concat`, `reduce`, `reduce_concat` or `)` at byte 9, \
             found `norm=[('sep_conv_3x3',`"
        );
        assert_eq!(
            message("'sep_conv_3x3', 1", "'sep_conv_7x7', 1"),
            "expected one of 'max_pool_3x3', 'avg_pool_3x3', 'skip_connect', 'sep_conv_3x3', \
             'sep_conv_5x5', 'dil_conv_3x3', 'dil_conv_5x5' at byte 18, found `'sep_conv_7x7',`"
        );
        assert_eq!(
            message("'sep_conv_3x3', 1", "'sep_conv_3x3' 1"),
            "expected `,` at byte 33, found `1),`"
        );
        assert_eq!(
            message("'sep_conv_3x3', 1", "'sep_conv_3x3', -1"),
            "expected the number of a state at byte 34, found `-1),`"
        );
        assert_eq!(
            message("('sep_conv_3x3', 1), ", ""),
            "expected eight genes, two for each of the nodes 2, 3, 4, 5 at byte 16, found 7"
        );
        assert_eq!(
            message("1), (", "1) ("),
            "expected `,` or `]` at byte 37, found `('sep_conv_3x3',`"
        );
        for concat in [
            "range(2, 5)",
            "[2, 3, 4]",
            "range(0, 18446744073709551615)",
            "x",
        ] {
            let message = message("range(2, 6)", concat);
            let expected =
                "expected all intermediate nodes, `range(2, 6)` or `[2, 3, 4, 5]` at byte";
            assert!(message.starts_with(expected), "{message}");
        }
        assert!(
            message("reduce=", "normal=")
                .starts_with("field `normal` is given a second time at byte")
        );
        assert!(
            message("reduce_concat=", "normal_concat=")
                .starts_with("field `normal_concat` is given a second time at byte")
        );
        assert_eq!(
            parse("Genotype()").unwrap_err().to_string(),
            "field `normal` is missing before the `)` at byte 9"
        );
        assert_eq!(
            message("'sep_conv_3x3', 1", "'none', 1"),
            "normal cell: node 2 keeps the primitive `none`, which only the search knows"
        );
        assert_eq!(
            message("'sep_conv_3x3', 1", "'sep_conv_3x3', 2"),
            "normal cell: node 2 reads state 2, but only states before 2 exist there"
        );
    }

    #[test]
    fn every_beginning_is_an_error() {
        for end in 0..WRITTEN.len() {
            assert!(parse(&WRITTEN[..end]).is_err(), "{}", &WRITTEN[..end]);
        }
    }

    proptest! {
        #[test]
        fn reads_what_it_writes(genotype in genotypes()) {
            prop_assert_eq!(parse(&genotype.to_string()), Ok(genotype));
        }

        #[test]
        fn a_broken_text_is_an_error_and_no_panic(
            at in 0..WRITTEN.len(),
            length in 0..8_usize,
            put in r"[ a-z0-9#'é=(),\[\]]{0,4}",
        ) {
            let mut text = WRITTEN.to_owned();
            text.replace_range(at..(at + length).min(WRITTEN.len()), &put);
            if let Ok(genotype) = parse(&text) {
                prop_assert_eq!(parse(&genotype.to_string()), Ok(genotype));
            }
        }
    }
}
