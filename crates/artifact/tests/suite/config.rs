//! Configs: what a mistake is answered with.

use std::path::PathBuf;

use artifact::config::{OutOfRange, Ranged, load, load_ranged};
use artifact::{ExitCode, KeyParts, StageError, digest_files, stage};
use serde::{Deserialize, Serialize};
use tempfile::TempDir;

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    seed: u64,
    lambda: f64,
    method: Method,
    data: Data,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Method {
    Darts,
    PcDarts,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Data {
    dir: PathBuf,
    sizes: Vec<usize>,
    limit: Option<usize>,
}

impl Ranged for Config {
    fn out_of_range(&self) -> Option<OutOfRange> {
        let rules = [
            ("lambda", self.lambda >= 0.0),
            ("data.sizes", !self.data.sizes.is_empty()),
            ("data.limit", self.data.limit != Some(0)),
        ];
        let wrong = rules.into_iter().find(|(_, holds)| !holds);
        wrong.map(|(key, _)| OutOfRange {
            key,
            expected: "more".to_owned(),
        })
    }
}

const GOOD: &str = "\
seed = 3 # of everything
lambda = 0.5
method = \"pc-darts\"

[data]
dir = \"data/fashion-mnist\"
sizes = [1, 2]
";

/// What loading a text with overrides gives, the path shortened.
fn load_text(text: &str, overrides: &[&str]) -> Result<Config, String> {
    let scratch = TempDir::new().unwrap();
    let path = scratch.path().join("search.toml");
    std::fs::write(&path, text).unwrap();
    let overrides: Vec<String> = overrides.iter().map(|&text| text.to_owned()).collect();
    load(&path, &overrides).map_err(|error| {
        let error = artifact::Error::from(error);
        assert_eq!(error.exit_code(), ExitCode::Usage);
        error
            .to_string()
            .replace(path.to_str().unwrap(), "search.toml")
    })
}

fn refusal(text: &str) -> String {
    load_text(text, &[]).unwrap_err()
}

fn refused_override(given: &str) -> String {
    load_text(GOOD, &[given]).unwrap_err()
}

fn overridden(given: &[&str]) -> Config {
    load_text(GOOD, given).unwrap()
}

#[test]
fn a_good_file_loads() {
    let config = overridden(&[]);
    assert_eq!(config.seed, 3);
    assert_eq!(config.method, Method::PcDarts);
    assert_eq!(config.data.limit, None);
}

#[test]
fn an_unknown_key_is_shown_with_the_known_ones() {
    assert_eq!(
        refusal(&GOOD.replace("lambda", "lamda")),
        "search.toml:2:1: unknown field `lamda`, expected one of `seed`, `lambda`, `method`, `data`\n \
         2 | lamda = 0.5\n   \
         | ^^^^^"
    );
    assert_eq!(
        refusal(&GOOD.replace("sizes", "größen")),
        "search.toml:7:3: invalid unquoted key, expected letters, numbers, `-`, `_`\n \
         7 | größen = [1, 2]\n   \
         |   ^^"
    );
}

#[test]
fn a_wrong_type_is_shown_with_the_right_one() {
    assert_eq!(
        refusal(&GOOD.replace("0.5", "\"half\"")),
        "search.toml:2:10: invalid type: string \"half\", expected f64\n \
         2 | lambda = \"half\"\n   \
         |          ^^^^^^"
    );
    assert_eq!(
        refusal(&GOOD.replace("[1, 2]", "[1, -2]")),
        "search.toml:7:13: invalid value: integer `-2`, expected usize\n \
         7 | sizes = [1, -2]\n   \
         |             ^^"
    );
    assert_eq!(
        refusal(&GOOD.replace("pc-darts", "pdarts")),
        "search.toml:3:10: unknown variant `pdarts`, expected `darts` or `pc-darts`\n \
         3 | method = \"pdarts\"\n   \
         |          ^^^^^^^^"
    );
}

#[test]
fn a_missing_key_is_named() {
    assert_eq!(
        refusal(&GOOD.replace("lambda = 0.5\n", "")),
        "search.toml: missing field `lambda`"
    );
    assert_eq!(
        refusal(&GOOD.replace("sizes = [1, 2]\n", "")),
        "search.toml:5:1: missing field `sizes`\n \
         5 | [data]\n   \
         | ^^^^^^"
    );
}

#[test]
fn broken_syntax_is_shown() {
    assert_eq!(
        refusal(&GOOD.replace("= 0.5", "0.5")),
        "search.toml:2:8: key with no value, expected `=`\n \
         2 | lambda 0.5\n   \
         |        ^"
    );
    assert_eq!(
        refusal(&GOOD.replace("lambda", "seed")),
        "search.toml:2:1: duplicate key\n \
         2 | seed = 0.5\n   \
         | ^^^^"
    );
}

#[test]
fn numbers_must_be_numbers() {
    assert_eq!(
        refusal(&GOOD.replace("0.5", "nan")),
        "search.toml: lambda is not a finite number"
    );
    assert_eq!(
        refused_override("lambda=-inf"),
        "--set lambda=-inf: lambda is not a finite number"
    );
}

#[test]
fn a_missing_file_is_named() {
    let error = load::<Config>("nowhere/search.toml".as_ref(), &[]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "cannot read the config nowhere/search.toml"
    );
    assert_eq!(artifact::Error::from(error).exit_code(), ExitCode::Usage);
}

#[test]
fn overrides_are_toml_or_a_bare_word() {
    let config = overridden(&[
        "seed=7",
        "lambda = 1",
        "method=darts",
        "data.dir=/tmp/a folder",
        "data.sizes=[3]",
        "data.limit=10",
        "seed=8",
    ]);
    assert_eq!(
        config,
        Config {
            seed: 8,
            lambda: 1.0,
            method: Method::Darts,
            data: Data {
                dir: "/tmp/a folder".into(),
                sizes: vec![3],
                limit: Some(10)
            },
        }
    );
    assert_eq!(overridden(&["data.dir=\"1\""]).data.dir, PathBuf::from("1"));
}

#[test]
fn an_override_of_an_unknown_key_is_refused() {
    assert_eq!(
        refused_override("lamda=1"),
        "--set lamda=1: unknown field `lamda`, expected one of `seed`, `lambda`, `method`, `data`"
    );
    assert_eq!(
        refused_override("data.size=1"),
        "--set data.size=1: unknown field `size`, expected one of `dir`, `sizes`, `limit`"
    );
    assert_eq!(
        refused_override("date.dir=a"),
        "--set date.dir=a: unknown field `date`, expected one of `seed`, `lambda`, `method`, `data`"
    );
    assert_eq!(
        refused_override("seed.value=1"),
        "--set seed.value=1: seed is a value, not a table"
    );
}

#[test]
fn an_override_of_the_wrong_type_is_refused() {
    assert_eq!(
        refused_override("lambda=half"),
        "--set lambda=half: invalid type: string \"half\", expected f64"
    );
    assert_eq!(
        refused_override("data=1"),
        "--set data=1: invalid type: integer `1`, expected struct Data"
    );
    // It is the override at fault that is named.
    let error = load_text(GOOD, &["seed=1", "method=random", "lambda=2"]).unwrap_err();
    assert_eq!(
        error,
        "--set method=random: unknown variant `random`, expected `darts` or `pc-darts`"
    );
}

#[test]
fn an_override_that_is_none_is_refused() {
    for given in ["lambda", "=1", "data..dir=1", "la mbda=1", ".=1"] {
        assert_eq!(
            refused_override(given),
            format!("--set {given}: expected key=value, such as seed=1 or timing.n_repeats=5")
        );
    }
    for (given, value) in [
        ("seed=", ""),
        ("seed=1 2", "1 2"),
        ("lambda=[1", "[1"),
        ("method=\"darts", "\"darts"),
        ("seed=1\nlambda=2", "1\nlambda=2"),
    ] {
        assert_eq!(
            refused_override(given),
            format!("--set {given}: `{value}` is neither a TOML value nor a bare word")
        );
    }
}

/// The key of a config's text.
fn key(text: &str, overrides: &[&str]) -> String {
    let config = load_text(text, overrides).unwrap();
    // Whatever the revision of the stage's code is by now.
    let stage = stage::StageSpec {
        revision: 1,
        ..stage::SEARCH
    };
    let parts = KeyParts::new(&stage, &config).unwrap();
    parts.key().to_string()
}

#[test]
fn a_key_is_of_what_a_config_says_not_of_how() {
    let expected = key(&GOOD.replace("0.5", "1.0"), &[]);
    for same in [
        GOOD.replace("0.5", "1"),
        GOOD.replace("0.5", "1.000 # a comment"),
        GOOD.replace("0.5", "1e0"),
        format!("# A comment.\n\n{}", GOOD.replace("0.5", "1.0")),
        "data = { sizes = [1, 2], dir = 'data/fashion-mnist' }\nmethod = 'pc-darts'\nlambda = 1\nseed = 3"
            .to_owned(),
    ] {
        assert_eq!(key(&same, &[]), expected, "{same}");
    }
    assert_eq!(key(GOOD, &["lambda=1"]), expected);
    assert_eq!(key(GOOD, &["lambda=1.0", "seed=3"]), expected);
    assert_ne!(key(GOOD, &[]), expected);
    assert_ne!(key(GOOD, &["lambda=1", "seed=4"]), expected);
    assert_ne!(key(GOOD, &["lambda=1", "data.limit=3"]), expected);
    // Where images lie does not count: what they are is an input.
    assert_eq!(key(GOOD, &["lambda=1", "data.dir=/else/where"]), expected);
}

#[test]
fn every_part_of_a_key_counts() {
    let config = load_text(GOOD, &[]).unwrap();
    let parts = KeyParts::new(&stage::SEARCH, &config).unwrap();
    let digest = |text: &str| artifact::Digest::of(text.as_bytes());
    let revised = stage::StageSpec {
        revision: stage::SEARCH.revision + 1,
        ..stage::SEARCH
    };
    let keys = [
        parts.clone(),
        KeyParts::new(&stage::EVALUATE, &config).unwrap(),
        KeyParts::new(&revised, &config).unwrap(),
        parts.clone().input("images", digest("a")),
        parts.clone().input("images", digest("b")),
        parts.clone().input("latency-model", digest("a")),
        parts.clone().machine("a".to_owned()),
        parts.clone().machine("b".to_owned()),
    ]
    .map(|parts| parts.key().to_string());
    for (index, key) in keys.iter().enumerate() {
        assert!(!keys[..index].contains(key), "the one of index {index}");
    }
    let both = parts
        .clone()
        .input("a", digest("a"))
        .input("b", digest("b"));
    let reversed = parts.input("b", digest("b")).input("a", digest("a"));
    assert_eq!(both.key(), reversed.key());
}

/// Stored artifacts are found by this number; a change here makes every store start afresh.
#[test]
fn a_key_stays() {
    assert_eq!(
        key(GOOD, &[]),
        "b5eb6a768c0d1bcc3ab4d3ddf032f92a9ce6e389a7f06c5b358084421ba91930"
    );
}

#[test]
fn files_are_digested_by_name_and_content() {
    let scratch = TempDir::new().unwrap();
    let write = |name: &str, text: &str| {
        let path = scratch.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
        path
    };
    let set = |root: &str, [cat, dog]: [&str; 2]| {
        let files = [
            write(&format!("{root}/cat/0.png"), cat),
            write(&format!("{root}/dog/0.png"), dog),
        ];
        digest_files(&files).unwrap()
    };
    let expected = set("here", ["a", "b"]);
    assert_eq!(set("there/deep", ["a", "b"]), expected);
    // The same contents under swapped names: other labels.
    assert_ne!(set("swapped", ["b", "a"]), expected);
    assert_ne!(set("changed", ["a", "c"]), expected);
    let files = ["here/dog/0.png", "here/cat/0.png"].map(|name| scratch.path().join(name));
    assert_eq!(digest_files(&files).unwrap(), expected);
    assert_ne!(digest_files(&files[..1]).unwrap(), expected);

    let missing = scratch.path().join("missing.png");
    let error = digest_files(&[files[0].clone(), missing.clone()]).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("cannot read {}", missing.display())
    );
    assert_eq!(error.exit_code(), ExitCode::Input);
}

#[test]
fn a_value_out_of_range_is_shown_where_it_was_set() {
    let scratch = TempDir::new().unwrap();
    let path = scratch.path().join("search.toml");
    let refusal = |text: &str, overrides: &[&str]| {
        std::fs::write(&path, text).unwrap();
        let overrides: Vec<String> = overrides.iter().map(|&text| text.to_owned()).collect();
        let error = load_ranged::<Config>(&path, &overrides).unwrap_err();
        error
            .to_string()
            .replace(path.to_str().unwrap(), "search.toml")
    };
    assert_eq!(
        refusal(&GOOD.replace("0.5", "-0.5"), &[]),
        "search.toml:2:10: lambda is out of range, expected more\n 2 | lambda = -0.5\n   |          ^^^^"
    );
    assert_eq!(
        refusal(&GOOD.replace("[1, 2]", "[]"), &[]),
        "search.toml:7:9: data.sizes is out of range, expected more\n 7 | sizes = []\n   |         ^^"
    );
    // One that stands nowhere is of a table that does, set as a whole or by itself.
    for given in [
        "data={dir=\"x\", sizes=[1], limit=0}",
        "data.limit=0",
        "data.sizes=[]",
    ] {
        let said = refusal(GOOD, &["seed=4", given, "seed=5"]);
        assert!(said.starts_with(&format!("--set {given}: data.")), "{said}");
    }
    std::fs::write(&path, GOOD).unwrap();
    assert!(load_ranged::<Config>(&path, &["lambda=0.0".to_owned()]).is_ok());
}
