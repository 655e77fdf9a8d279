//! A page for people: what `report` writes.

use crate::error::Error;
use crate::files::Files;
use crate::format::{FormatVersion, Kind};
use crate::store::Artifact;

const REPORT: &str = "report.html";

/// A page for people, complete in itself.
///
/// File: `report.html`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The page.
    pub html: String,
}

impl Artifact for Report {
    const KIND: Kind = Kind::Report;
    const FORMAT: FormatVersion = FormatVersion::new(1, 0);

    fn to_files(&self) -> Result<Files, Error> {
        let mut files = Files::default();
        files.put_text(REPORT, &self.html);
        Ok(files)
    }

    fn from_files(files: &Files) -> Result<Self, Error> {
        Ok(Self {
            html: files.text(REPORT)?,
        })
    }
}
