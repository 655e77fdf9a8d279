//! stage-report.
