//! stage-evaluate.
