//! A stage's config: one TOML file, and the values that a command line overrides.

use std::fmt;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use thiserror::Error;
use toml::de::{DeTable, DeValue};
use toml::{Table, Value};

/// Why there is no config.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the config {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The file is not right.
    #[error("{path}{place}")]
    File {
        /// The file.
        path: PathBuf,
        /// Where, and what was expected there.
        place: Place,
    },
    /// An override is not right.
    #[error("--set {given}: {reason}")]
    Override {
        /// What was given.
        given: String,
        /// What is wrong with it.
        reason: String,
    },
}

/// What is wrong in a file, and where: `:LINE:COLUMN: message`, the line, and a mark under it.
#[derive(Debug)]
pub struct Place {
    message: String,
    /// `None` if it is about the file as a whole.
    mark: Option<Mark>,
}

#[derive(Debug)]
struct Mark {
    /// From 1.
    line: usize,
    /// From 1, in characters.
    column: usize,
    n_chars: usize,
    /// The line.
    text: String,
}

impl Place {
    fn new(text: &str, span: Option<Range<usize>>, message: &str) -> Self {
        // An empty span at the start says no more than that the file as a whole is meant.
        let span = span.filter(|span| span.end > 0);
        Self {
            message: one_line(message),
            mark: span.and_then(|span| Mark::new(text, span)),
        }
    }
}

impl Mark {
    fn new(text: &str, span: Range<usize>) -> Option<Self> {
        let before = text.get(..span.start)?;
        let start = before.rfind('\n').map_or(0, |newline| newline + 1);
        let line = text[start..].lines().next().unwrap_or_default();
        let column = before[start..].chars().count();
        let n_left = line.chars().count().saturating_sub(column);
        Some(Self {
            line: before.matches('\n').count() + 1,
            column: column + 1,
            n_chars: text.get(span)?.chars().count().clamp(1, n_left.max(1)),
            text: line.to_owned(),
        })
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { message, mark } = self;
        let Some(Mark {
            line,
            column,
            n_chars,
            text,
        }) = mark
        else {
            return write!(f, ": {message}");
        };
        let gutter = line.to_string().len();
        let (indent, mark) = (" ".repeat(column - 1), "^".repeat(*n_chars));
        write!(f, ":{line}:{column}: {message}\n {line} | {text}\n")?;
        write!(f, " {:gutter$} | {indent}{mark}", "")
    }
}

/// A message of several lines on one.
fn one_line(message: &str) -> String {
    message.trim().replace('\n', ", ")
}

/// The config of a file, with some values overridden.
///
/// An override is `key=value` or `table.key=value`. The value is TOML (`0.5`, `true`, `[1, 2]`, `"text"`);
/// a bare word is a string. `C` must be `deny_unknown_fields` throughout, or mistyped keys go unnoticed.
///
/// # Errors
/// If the file cannot be read, is no TOML, or is not a `C`, naming line and column; if an override is
/// not of that form, names no key of `C`, or has a value of the wrong type, naming the override.
pub fn load<C: DeserializeOwned>(file: &Path, overrides: &[String]) -> Result<C, ConfigError> {
    let text = std::fs::read_to_string(file).map_err(|source| ConfigError::Read {
        path: file.to_owned(),
        source,
    })?;
    let wrong = |error: toml::de::Error| ConfigError::File {
        path: file.to_owned(),
        place: Place::new(&text, error.span(), error.message()),
    };
    // The file by itself first: an error in it has a place.
    let mut config: C = toml::from_str(&text).map_err(wrong)?;
    let mut table: Table = toml::from_str(&text).map_err(wrong)?;
    if let Some(key) = non_finite(&table) {
        return Err(ConfigError::File {
            path: file.to_owned(),
            place: Place {
                message: format!("{key} is not a finite number"),
                mark: None,
            },
        });
    }
    for given in overrides {
        let wrong = |reason| ConfigError::Override {
            given: given.clone(),
            reason,
        };
        apply(&mut table, given).map_err(wrong)?;
        if let Some(key) = non_finite(&table) {
            return Err(wrong(format!("{key} is not a finite number")));
        }
        // One at a time: an error is that of the last one.
        config = table
            .clone()
            .try_into()
            .map_err(|error: toml::de::Error| wrong(one_line(error.message())))?;
    }
    Ok(config)
}

/// A value that the type of a config allows, but not its meaning.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutOfRange {
    /// The key, such as `timing.n_repeats`.
    pub key: &'static str,
    /// What would be right.
    pub expected: String,
}

impl OutOfRange {
    /// The first of some rules that does not hold: a key, whether its value is right, and what would be.
    pub fn first<S: Into<String>>(
        rules: impl IntoIterator<Item = (&'static str, bool, S)>,
    ) -> Option<Self> {
        let wrong = rules.into_iter().find(|(_, holds, _)| !holds);
        wrong.map(|(key, _, expected)| Self {
            key,
            expected: expected.into(),
        })
    }
}

/// A config that knows which of its values are out of range.
pub trait Ranged {
    /// The first that is.
    fn out_of_range(&self) -> Option<OutOfRange>;
}

/// As [`load`]; a value that is out of range is an error as well.
///
/// # Errors
/// As [`load`], and for a value that is out of range, naming the override that set it, or else line and column.
pub fn load_ranged<C: DeserializeOwned + Ranged>(
    file: &Path,
    overrides: &[String],
) -> Result<C, ConfigError> {
    let config: C = load(file, overrides)?;
    let Some(OutOfRange { key, expected }) = config.out_of_range() else {
        return Ok(config);
    };
    let message = format!("{key} is out of range, expected {expected}");
    let sets = |given: &&String| {
        let own = given.split('=').next().unwrap_or_default().trim();
        key == own
            || key
                .strip_prefix(own)
                .is_some_and(|rest| rest.starts_with('.'))
    };
    Err(match overrides.iter().rfind(sets) {
        Some(given) => ConfigError::Override {
            given: given.clone(),
            reason: message,
        },
        None => {
            let text = std::fs::read_to_string(file).unwrap_or_default();
            ConfigError::File {
                path: file.to_owned(),
                place: Place::new(&text, span_of(&text, key), &message),
            }
        }
    })
}

/// Where the value of a key stands, if it does.
fn span_of(text: &str, key: &str) -> Option<Range<usize>> {
    let root = DeTable::parse(text).ok()?;
    let (tables, last) = key.rsplit_once('.').unwrap_or(("", key));
    let mut table = root.get_ref();
    for part in tables.split('.').filter(|part| !part.is_empty()) {
        let DeValue::Table(inner) = table.get(part)?.get_ref() else {
            return None;
        };
        table = inner;
    }
    table.get(last).map(|value| value.span())
}

/// Sets one value. Whether the key means anything is for the config's type to say.
fn apply(table: &mut Table, given: &str) -> Result<(), String> {
    let form = "expected key=value, such as seed=1 or timing.n_repeats=5";
    let (path, value) = given.split_once('=').ok_or(form)?;
    let keys: Vec<&str> = path.trim().split('.').map(str::trim).collect();
    let is_key = |key: &&str| {
        !key.is_empty()
            && key
                .chars()
                .all(|c| c.is_alphanumeric() || c == '_' || c == '-')
    };
    if !keys.iter().all(is_key) {
        return Err(form.to_owned());
    }
    let (last, tables) = keys.split_last().ok_or(form)?;
    let mut table = table;
    for (depth, key) in tables.iter().enumerate() {
        let entry = table
            .entry(*key)
            .or_insert_with(|| Value::Table(Table::new()));
        table = entry
            .as_table_mut()
            .ok_or_else(|| format!("{} is a value, not a table", keys[..=depth].join(".")))?;
    }
    table.insert((*last).to_owned(), parse(value.trim())?);
    Ok(())
}

/// A TOML value; a bare word is a string.
fn parse(text: &str) -> Result<Value, String> {
    match toml::from_str::<Table>(&format!("value = {text}")) {
        Ok(mut table) if table.len() == 1 => {
            Ok(table.remove("value").unwrap_or(Value::Boolean(false)))
        }
        _ if is_bare(text) => Ok(Value::String(text.to_owned())),
        _ => Err(format!("`{text}` is neither a TOML value nor a bare word")),
    }
}

/// Whether the text needs no quotes: names, paths, latencies such as 0.4ms.
fn is_bare(text: &str) -> bool {
    let is_quantity = text.starts_with(|c: char| c.is_ascii_digit())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '.');
    is_quantity
        || text.starts_with(|c: char| c.is_alphabetic() || "./~_".contains(c))
            && !text.contains(|c: char| c.is_control() || "\"'[]{}#=,".contains(c))
}

/// The first key whose value is NaN or infinite.
fn non_finite(table: &Table) -> Option<String> {
    fn find(path: &str, value: &Value) -> Option<String> {
        match value {
            Value::Float(value) if !value.is_finite() => Some(path.to_owned()),
            Value::Array(values) => values.iter().find_map(|value| find(path, value)),
            Value::Table(table) => table
                .iter()
                .find_map(|(key, value)| find(&format!("{path}.{key}"), value)),
            _ => None,
        }
    }
    table.iter().find_map(|(key, value)| find(key, value))
}
