//! stage-profile.
