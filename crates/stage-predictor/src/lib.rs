//! stage-predictor.
