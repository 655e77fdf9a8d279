//! stage-search.
