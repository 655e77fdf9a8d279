//! What the stage is asked.

use std::path::PathBuf;

use artifact::config::{OutOfRange, Ranged};
use artifact::{NetworkRecord, Precision};
use images::Augmentation;
use nn::schedule::Schedule;
use serde::{Deserialize, Serialize};
use space::{NetworkSpec, Stem};

use crate::Error;

/// The file `evaluate.toml` of a preset; every key but `precision` and `weights.schedule_unit` is required.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The seed of the initial weights, of the order of the images, of augmentation and drop path.
    pub seed: u64,
    /// Passes over the training images.
    pub n_epochs: usize,
    /// Images per step; the last batch of an epoch may be smaller.
    pub batch_size: usize,
    /// The precision of the network's products while it is trained; other than `f32` on CUDA alone.
    #[serde(default, skip_serializing_if = "Precision::is_default")]
    pub precision: Precision,
    /// The weight of the auxiliary head's loss; 0 = no such head.
    pub auxiliary_weight: f64,
    /// The probability that a path is dropped at the end; it grows from 0 over the epochs.
    pub drop_path: f64,
    /// The share of the target that is spread over all classes.
    pub label_smoothing: f64,
    /// The network that the genotype is put into: the one whose latency was profiled.
    pub network: NetworkRecord,
    /// The images and what is done to them.
    pub data: DataConfig,
    /// The optimiser.
    pub weights: WeightsConfig,
    /// How the trained network is timed.
    pub timing: TimingConfig,
}

/// Images and augmentation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataConfig {
    /// The folder of the data set.
    pub dir: PathBuf,
    /// What is subtracted from each channel, black being 0 and white 1; empty = the mean over the
    /// training images.
    pub mean: Vec<f32>,
    /// What each channel is then divided by; empty = the standard deviation over the training images.
    pub std: Vec<f32>,
    /// Black pixels around the image before a random crop to its size; 0 = no crop.
    pub pad: usize,
    /// Flip left to right at random.
    pub flip: bool,
    /// The side of the square that is cut out, in pixels; 0 = none.
    pub cutout: usize,
    /// A random window of the image, scaled, instead of pad and crop.
    pub random_resized_crop: bool,
    /// The strength of brightness, contrast and saturation jitter, 0..1.
    pub color_jitter: f32,
    /// The strength of hue jitter, 0..0.5.
    pub hue_jitter: f32,
    /// The side to which images of different sizes are brought, in pixels; 0 = all have one size.
    pub resize: usize,
}

/// SGD with momentum.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WeightsConfig {
    /// The learning rate of the first epoch after the warm-up.
    pub learning_rate: f64,
    /// How it goes on from there.
    pub schedule: ScheduleKind,
    /// How often it does.
    #[serde(default)]
    pub schedule_unit: ScheduleUnit,
    /// Where a cosine ends; 0 for the other schedules.
    pub last_learning_rate: f64,
    /// What an exponential schedule multiplies by after each epoch; 1 for the others.
    pub decay_factor: f64,
    /// Epochs over which the learning rate climbs to its first value.
    pub n_warmup_epochs: usize,
    /// Momentum.
    pub momentum: f64,
    /// L2 regularisation.
    pub weight_decay: f64,
    /// The L2 norm to which gradients are clipped; 0 = not at all.
    pub clip_norm: f64,
}

/// The shape of a learning rate over the epochs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ScheduleKind {
    /// Half a cosine down to the last learning rate.
    Cosine,
    /// A straight line down to 0.
    Linear,
    /// The same factor after each epoch.
    Exponential,
}

/// How often the learning rate changes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ScheduleUnit {
    /// Between epochs, as the reference trainings do.
    #[default]
    Epoch,
    /// With every step: the rate reaches its end even in few epochs.
    Step,
}

/// What the protocol of the search result leaves open. One round is the protocol once: its warm-up, its
/// repeats.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TimingConfig {
    /// Timings of the network, each between two timings of the anchor; the median one counts.
    pub n_rounds: usize,
    /// The ratio by which the anchor's timings before and after may differ in a round that counts.
    pub max_disturbance: f64,
}

impl Config {
    /// Checks what the types do not say.
    pub(crate) fn check(&self) -> Result<(), Error> {
        NetworkSpec::try_from(&self.network)?;
        self.out_of_range()
            .map_or(Ok(()), |OutOfRange { key, expected }| {
                Err(Error::Setting { key, expected })
            })
    }
}

impl Ranged for Config {
    fn out_of_range(&self) -> Option<OutOfRange> {
        let network = NetworkSpec::try_from(&self.network);
        let side = self.network.image_size;
        let (data, weights, timing) = (&self.data, &self.weights, &self.timing);
        let share = |value: f64| (0.0..1.0).contains(&value);
        let not_negative = |value: f64| value >= 0.0 && value.is_finite();
        let is = |kind| weights.schedule == kind;
        let rules = [
            ("n_epochs", self.n_epochs >= 1, "at least 1"),
            ("batch_size", self.batch_size >= 1, "at least 1"),
            (
                "auxiliary_weight",
                not_negative(self.auxiliary_weight),
                "0 or more",
            ),
            (
                "auxiliary_weight",
                self.auxiliary_weight == 0.0
                    || network.is_ok_and(|network| auxiliary_head_fits(&network)),
                "0 in this network: the auxiliary head reads 8 to 10 pixels (with the stem imagenet 7 or 8) \
                 in height and width after two thirds of the layers",
            ),
            ("drop_path", share(self.drop_path), "at least 0 and below 1"),
            (
                "label_smoothing",
                share(self.label_smoothing),
                "at least 0 and below 1",
            ),
            ("data.pad", data.pad < side, "less than network.image_size"),
            (
                "data.cutout",
                data.cutout < side,
                "less than network.image_size",
            ),
            (
                "data.mean",
                data.mean.is_empty() || data.mean.len() == self.network.in_channels,
                "a number for each of network.in_channels, or none",
            ),
            (
                "data.std",
                data.std.len() == data.mean.len() && data.std.iter().all(|&std| std > 0.0),
                "positive numbers, as many as data.mean has",
            ),
            (
                "data.color_jitter",
                (0.0..=1.0).contains(&data.color_jitter),
                "between 0 and 1",
            ),
            (
                "data.hue_jitter",
                (0.0..=0.5).contains(&data.hue_jitter),
                "between 0 and 0.5",
            ),
            (
                "weights.learning_rate",
                weights.learning_rate > 0.0 && weights.learning_rate.is_finite(),
                "a positive number",
            ),
            (
                "weights.last_learning_rate",
                not_negative(weights.last_learning_rate)
                    && (is(ScheduleKind::Cosine) || weights.last_learning_rate == 0.0),
                "0 or more for a cosine, 0 for any other schedule",
            ),
            (
                "weights.decay_factor",
                weights.decay_factor > 0.0
                    && (is(ScheduleKind::Exponential) || weights.decay_factor == 1.0),
                "a positive number for an exponential schedule, 1 for any other",
            ),
            (
                "weights.n_warmup_epochs",
                weights.n_warmup_epochs < self.n_epochs,
                "fewer than n_epochs",
            ),
            (
                "weights.momentum",
                share(weights.momentum),
                "at least 0 and below 1",
            ),
            (
                "weights.weight_decay",
                not_negative(weights.weight_decay),
                "0 or more",
            ),
            (
                "weights.clip_norm",
                not_negative(weights.clip_norm),
                "0 or more",
            ),
            ("timing.n_rounds", timing.n_rounds >= 1, "at least 1"),
            (
                "timing.max_disturbance",
                timing.max_disturbance > 0.0 && timing.max_disturbance.is_finite(),
                "a positive ratio, such as 0.05",
            ),
        ];
        OutOfRange::first(rules)
    }
}

impl WeightsConfig {
    /// The learning rate in an epoch of so many, at a step of so many.
    pub(crate) fn learning_rate(
        &self,
        [epoch, n_epochs]: [usize; 2],
        [step, n_steps]: [usize; 2],
    ) -> f64 {
        let initial = self.learning_rate;
        let schedule = match self.schedule {
            ScheduleKind::Cosine => Schedule::Cosine {
                initial,
                last: self.last_learning_rate,
            },
            ScheduleKind::Linear => Schedule::Linear { initial },
            ScheduleKind::Exponential => Schedule::Exponential {
                initial,
                factor: self.decay_factor,
            },
        };
        let within = match self.schedule_unit {
            ScheduleUnit::Epoch => 0.0,
            ScheduleUnit::Step => step as f64 / n_steps as f64,
        };
        schedule.learning_rate(epoch as f64 + within, n_epochs, self.n_warmup_epochs)
    }
}

/// Whether the auxiliary head's pooling leaves the 2x2 pixels that its convolution reads.
fn auxiliary_head_fits(network: &NetworkSpec) -> bool {
    let [_, layer] = network.reduction_layers();
    let size = network.cells()[layer].out_size();
    if network.stem == Stem::Imagenet {
        (7..=8).contains(&size)
    } else {
        (8..=10).contains(&size)
    }
}

impl DataConfig {
    pub(crate) fn augmentation(&self) -> Augmentation {
        Augmentation {
            random_resized_crop: self.random_resized_crop,
            pad: self.pad,
            flip: self.flip,
            color_jitter: self.color_jitter,
            hue: self.hue_jitter,
            cutout: self.cutout,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn rates_fall_between_epochs_unless_with_every_step() {
        let rates = |unit| -> Vec<f64> {
            let mut weights = json!({
                "learning_rate": 0.1, "schedule": "linear", "last_learning_rate": 0.0, "decay_factor": 1.0,
                "n_warmup_epochs": 0, "momentum": 0.9, "weight_decay": 0.0, "clip_norm": 0.0,
            });
            if let Some(unit) = unit {
                weights["schedule_unit"] = json!(unit);
            }
            let weights: WeightsConfig = serde_json::from_value(weights).unwrap();
            let steps = (0..2).flat_map(|epoch| (0..4).map(move |step| (epoch, step)));
            let rate = |(epoch, step)| weights.learning_rate([epoch, 2], [step, 4]);
            steps.map(rate).collect()
        };
        let by_epochs = [0.1, 0.1, 0.1, 0.1, 0.05, 0.05, 0.05, 0.05];
        assert_eq!(rates(None), by_epochs);
        assert_eq!(rates(Some("epoch")), by_epochs);
        for (step, rate) in rates(Some("step")).into_iter().enumerate() {
            assert!((rate - 0.1 * (1.0 - step as f64 / 8.0)).abs() < 1e-15);
        }
    }
}
