//! Signs of collapse, and what is done about them.
//!
//! A differentiable search likes what is cheap to train: skip connections and poolings win alpha although
//! networks of them are poor, and a price on latency drives it further that way. After every epoch in
//! which alpha moved the signs are read off; what is an alarm, the config says.

use std::fmt::Write;

use serde::{Deserialize, Serialize};

use crate::config::GuardsConfig;

/// What follows an alarm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Policy {
    /// Nothing is looked at, and any number of skips may come out.
    Off,
    /// It stands in the trace.
    Warn,
    /// The search ends with alpha as it was before the alarm.
    Stop,
    /// Alpha goes back to before the alarm, and from there takes half as long steps.
    RollBack,
}

/// The signs after an epoch.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Panel {
    /// Skip connections of the derived normal cell.
    pub(crate) n_skips_normal: usize,
    /// Entropy of softmax(alpha) in the normal cell, mean over edges, nats.
    pub(crate) entropy_normal: f64,
    /// Share of parameter-free primitives in softmax(alpha) of the normal cell.
    pub(crate) parameter_free_normal: f64,
    /// Dominant eigenvalue of the Hessian of the validation loss in alpha; `None` where it is not measured.
    pub(crate) eigenvalue: Option<f64>,
}

/// What the guards remember between epochs.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub(crate) struct Memory {
    /// The smallest magnitude of the eigenvalue so far.
    pub(crate) least_eigenvalue: Option<f64>,
    /// How often alpha went back.
    pub(crate) n_roll_backs: u32,
    /// Whether the search has ended before its last epoch.
    pub(crate) has_stopped: bool,
}

impl Memory {
    /// Reads the panel; says what is wrong, `None` if nothing is.
    pub(crate) fn judge(&mut self, panel: &Panel, config: &GuardsConfig) -> Option<String> {
        let mut alarm = String::new();
        let mut add = |text: std::fmt::Arguments<'_>| {
            let separator = if alarm.is_empty() { "" } else { ", " };
            let _ = write!(alarm, "{separator}{text}");
        };
        if panel.n_skips_normal > config.max_skips {
            add(format_args!(
                "alpha stands for {} skips in the normal cell",
                panel.n_skips_normal
            ));
        }
        if panel.parameter_free_normal > config.max_parameter_free {
            add(format_args!(
                "a share of {:.2} of the normal cell's alpha is free of parameters",
                panel.parameter_free_normal
            ));
        }
        if panel.entropy_normal < config.min_entropy {
            add(format_args!(
                "the normal cell's alpha has an entropy of {:.2} nats",
                panel.entropy_normal
            ));
        }
        if let Some(eigenvalue) = panel.eigenvalue.map(f64::abs) {
            let least = self.least_eigenvalue.unwrap_or(eigenvalue);
            if eigenvalue > config.max_eigenvalue_growth * least {
                add(format_args!(
                    "the Hessian's eigenvalue grew to {:.1} times its least",
                    eigenvalue / least
                ));
            }
            self.least_eigenvalue = Some(least.min(eigenvalue));
        }
        (!alarm.is_empty()).then_some(alarm)
    }
}

/// The weight of the auxiliary skip in an epoch: from its first value it falls to 0 in a straight line.
pub(crate) fn auxiliary_skip(config: &GuardsConfig, epoch: usize, n_epochs: usize) -> f64 {
    config.auxiliary_skip * (1.0 - epoch as f64 / n_epochs as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> GuardsConfig {
        GuardsConfig {
            policy: Policy::Warn,
            max_skips: 2,
            min_convolutions: 0,
            max_parameter_free: 0.9,
            min_entropy: 0.1,
            n_eigenvalue_steps: 3,
            max_eigenvalue_growth: 2.0,
            auxiliary_skip: 0.4,
        }
    }

    fn panel() -> Panel {
        Panel {
            n_skips_normal: 2,
            entropy_normal: 2.0,
            parameter_free_normal: 0.5,
            eigenvalue: Some(0.2),
        }
    }

    #[test]
    fn every_sign_is_an_alarm_of_its_own() {
        let alarm = |panel: Panel| Memory::default().judge(&panel, &config());
        assert_eq!(alarm(panel()), None);
        let cases = [
            (
                Panel {
                    n_skips_normal: 3,
                    ..panel()
                },
                "3 skips",
            ),
            (
                Panel {
                    parameter_free_normal: 0.95,
                    ..panel()
                },
                "0.95",
            ),
            (
                Panel {
                    entropy_normal: 0.05,
                    ..panel()
                },
                "0.05 nats",
            ),
        ];
        for (panel, text) in cases {
            assert!(alarm(panel).unwrap().contains(text), "{text}");
        }
        let all = Panel {
            n_skips_normal: 8,
            entropy_normal: 0.0,
            ..panel()
        };
        assert_eq!(alarm(all).unwrap().matches(", ").count(), 1);
    }

    #[test]
    fn an_eigenvalue_is_held_against_the_least_before() {
        let mut memory = Memory::default();
        let mut judge = |eigenvalue| {
            let panel = Panel {
                eigenvalue: Some(eigenvalue),
                ..panel()
            };
            memory.judge(&panel, &config()).is_some()
        };
        let values = [0.3, -0.2, 0.39, 0.41, 0.1, 0.21, 0.19];
        let alarms = values.map(&mut judge);
        assert_eq!(alarms, [false, false, false, true, false, true, false]);
    }

    #[test]
    fn the_auxiliary_skip_falls_to_nothing() {
        assert_eq!(auxiliary_skip(&config(), 0, 10), 0.4);
        assert!((auxiliary_skip(&config(), 5, 10) - 0.2).abs() < 1e-12);
        assert!(auxiliary_skip(&config(), 9, 10) < 0.05);
    }
}
