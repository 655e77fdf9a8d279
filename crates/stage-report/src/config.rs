//! What the stage is asked.

use artifact::config::{OutOfRange, Ranged};
use serde::{Deserialize, Serialize};

/// The file `report.toml` of a preset.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The title of the page.
    pub title: String,
}

impl Ranged for Config {
    fn out_of_range(&self) -> Option<OutOfRange> {
        None
    }
}
