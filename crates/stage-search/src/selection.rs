//! Which of several genotypes comes out: of many the gradient norm before any training says which are tried, and each of
//! these is trained from scratch for a short while.
//!
//! All begin with draws of the same streams and see the same batches, so that they differ in nothing but the genotype.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use artifact::checkpoint::Checkpoint;
use artifact::stage::Progress;
use artifact::{CandidateRecord, RunContext};
use candle_core::{DType, Device, Tensor};
use collective::{Collective, Share};
use nn::loss::Tally;
use nn::memory::StepMemory;
use nn::parameters::Builder;
use nn::schedule::Schedule;
use nn::{DerivedNet, Pass, Uploads};
use serde_json::json;
use space::{CellGenotype, Gene, Genotype, NetworkSpec, Primitive};

use crate::config::{Config, SelectionConfig};
use crate::error::Error;
use crate::predictor::Predictor;
use crate::search::{
    Data, Performance, STREAM_CANDIDATE_INIT, STREAM_FIRST_CANDIDATE_EPOCH, Started, descend,
    finite, gradients, rng, sgd,
};

const FILE: &str = "candidates.ckpt";

/// Where candidates are trained.
pub(crate) struct ShortTraining<'a> {
    pub(crate) config: &'a Config,
    pub(crate) data: &'a Data<'a>,
    /// The network that they fill.
    pub(crate) spec: &'a NetworkSpec,
    pub(crate) device: &'a Device,
    pub(crate) ranks: Option<&'a Arc<dyn Collective>>,
}

impl ShortTraining<'_> {
    /// Of more genotypes than are trained, those that are: with the smallest gradient norm before any training, which goes
    /// with them.
    pub(crate) fn look(
        &self,
        genotypes: Vec<Genotype>,
        progress: &Progress,
    ) -> Result<Vec<(Genotype, Option<f64>)>, Error> {
        let n_candidates = self.config.n_candidates();
        if genotypes.len() <= n_candidates {
            return Ok(genotypes.into_iter().map(|own| (own, None)).collect());
        }
        let bar = progress.bar("gradient norms of draws", genotypes.len() as u64);
        let mut looked_at = Vec::with_capacity(genotypes.len());
        let (config, data) = (self.config, self.data);
        let share = self.ranks.map(|ranks| Share::of(ranks, config.batch_size));
        let share = share.as_ref();
        // The first that candidates are trained on.
        let mut rng = rng(config.seed, STREAM_FIRST_CANDIDATE_EPOCH);
        let order = images::epoch_order(&data.candidates_train, &mut rng);
        let first = &order[..config.batch_size];
        let batch = data.batch(first, &data.augmentation, &mut rng, share)?;
        let batch = data.tensors(batch, self.device)?;
        for genotype in genotypes {
            let norm = self.gradient_norm(&genotype, &batch, share)?;
            looked_at.push((genotype, norm));
            bar.inc(1);
        }
        bar.finish();
        let own = looked_at[0].1;
        // Stable: of equals the first. A norm that is not a number comes last.
        looked_at.sort_by(|(_, a), (_, b)| a.total_cmp(b));
        progress.line(&format!(
            "gradient norms before training: {own:.2} of what alpha stands for, {:.2} to {:.2} of all {}",
            looked_at[0].1,
            looked_at[looked_at.len() - 1].1,
            looked_at.len(),
        ));
        looked_at.truncate(n_candidates);
        let known = looked_at.into_iter();
        Ok(known.map(|(own, norm)| (own, Some(norm))).collect())
    }

    /// The norm of the gradient of the loss in all weights, as they are drawn, on images and their classes.
    fn gradient_norm(
        &self,
        genotype: &Genotype,
        (x, y): &(Tensor, Tensor),
        share: Option<&Share>,
    ) -> Result<f64, Error> {
        let network = network(self.config, self.spec, genotype, self.device)?;
        let logits = network.forward(x, &Pass::training().over(share))?.main;
        let gradients = gradients(&logits, y, network.parameters(), share)?.1;
        Ok(gradients.global_norm()?)
    }

    /// Trains the genotypes, the best in front, by the loss on the validation part; one alone needs no training, and
    /// nothing is known of it. One whose loss is no longer finite is left out. A run that was killed goes on behind the
    /// last that was trained.
    pub(crate) fn choose(
        &self,
        genotypes: &[(Genotype, Option<f64>)],
        predictor: &Predictor,
        context: &RunContext,
    ) -> Result<Vec<CandidateRecord>, Error> {
        let Some(selection) = &self.config.selection else {
            return Ok(Vec::new());
        };
        if genotypes.len() < 2 {
            return Ok(Vec::new());
        }
        let path = context.work_dir.join(FILE);
        let done = done(&path)?;
        let mut records: Vec<CandidateRecord> = Vec::new();
        let mut diverged = None;
        for (index, (genotype, gradient_norm)) in genotypes.iter().enumerate() {
            if let Some(record) = done.iter().find(|record| record.genotype == *genotype) {
                records.push(record.clone());
                continue;
            }
            let label = format!("candidate {}/{}", index + 1, genotypes.len());
            let own = match self.train(genotype, selection, &label, &context.progress) {
                Ok(own) => own,
                Err(error @ Error::NonFinite { .. }) => {
                    let line = format!("{label}: its loss is no longer finite, left out");
                    context.progress.line(&line);
                    diverged = Some(error);
                    continue;
                }
                Err(error) => return Err(error),
            };
            let record = CandidateRecord {
                predicted_latency_millis: predictor.predict(genotype),
                genotype: genotype.clone(),
                valid_loss: own.valid_loss,
                valid_accuracy: own.valid_accuracy,
                gradient_norm: *gradient_norm,
            };
            context.progress.line(&format!(
                "{label}: train {:.3} ({:.1} %), valid {:.3} ({:.1} %), {:.3} {}",
                own.train_loss,
                100.0 * own.train_accuracy,
                own.valid_loss,
                100.0 * own.valid_accuracy,
                record.predicted_latency_millis,
                predictor.metric.unit(),
            ));
            records.push(record);
            if self.ranks.is_none_or(|ranks| ranks.rank() == 0) {
                let meta = json!({ "records": records });
                let tensors = Default::default();
                Checkpoint { meta, tensors }.save(&path)?;
            }
        }
        // Stable: of equals the first.
        records.sort_by(|a, b| a.valid_loss.total_cmp(&b.valid_loss));
        let Some(best) = records.first() else {
            return Err(diverged.expect("all were trained"));
        };
        if let Some(ranks) = self.ranks {
            collective::agree(&**ranks, "the best candidate", &best.genotype.to_string())?;
        }
        Ok(records)
    }

    /// What a step on the candidate that needs most will keep in memory: separable convolutions alone.
    pub(crate) fn memory(
        &self,
        n_images: usize,
        path: nn::memory::Path,
    ) -> Result<StepMemory, Error> {
        let genes = [0, 1].map(|source| Gene {
            primitive: Primitive::SepConv5x5,
            source,
        });
        let cell = CellGenotype::new([genes; 4]).expect("every node may read the two inputs");
        let genotype = Genotype::new(cell.clone(), cell).expect("as above");
        let network = network(self.config, self.spec, &genotype, self.device)?;
        Ok(network.step_memory(self.spec, n_images, path))
    }

    fn train(
        &self,
        genotype: &Genotype,
        selection: &SelectionConfig,
        label: &str,
        progress: &Progress,
    ) -> Result<Performance, Error> {
        let Self {
            config,
            data,
            device,
            ..
        } = *self;
        let network = network(config, self.spec, genotype, device)?;
        let mut sgd = sgd(config);
        let schedule = Schedule::Cosine {
            initial: config.weights.learning_rate,
            last: config.weights.last_learning_rate,
        };
        let n_warmup_epochs = config.weights.n_warmup_epochs.min(selection.n_epochs - 1);
        let share = self.ranks.map(|ranks| Share::of(ranks, config.batch_size));
        let share = share.as_ref();
        let n_steps = data.candidates_train.len() / config.batch_size;
        let bar = progress.bar(label, (selection.n_epochs * n_steps) as u64);
        let (mut loss_sum, mut n_right) = (0.0, 0.0);
        for epoch in 0..selection.n_epochs {
            // By epochs: with a rate that falls with every step losses tell less of what longer trainings come to.
            let learning_rate =
                schedule.learning_rate(epoch as f64, selection.n_epochs, n_warmup_epochs);
            let mut rng = rng(config.seed, STREAM_FIRST_CANDIDATE_EPOCH + epoch as u64);
            let order = images::epoch_order(&data.candidates_train, &mut rng);
            let batches = order
                .chunks_exact(config.batch_size)
                .map(|indices| data.batch(indices, &data.augmentation, &mut rng, share));
            (loss_sum, n_right) = (0.0, 0.0);
            let mut n_done = 0;
            let mut take = |rows: Vec<[f64; 2]>| {
                for [loss, hits] in rows {
                    loss_sum += finite(loss, "the training loss of a candidate", epoch, n_done)?;
                    n_right += hits;
                    n_done += 1;
                    bar.message(format!("loss {loss:.3}"));
                    bar.inc(1);
                }
                Ok::<_, Error>(())
            };
            let mut tally = Tally::new(device);
            let uploads = Uploads::new(device, 2)?;
            images::prefetched(batches, |batches| {
                let started =
                    nn::one_ahead(device, batches, |batch| Started::new(batch?, &uploads));
                for batch in started {
                    let (x, y) = data.started(batch?, &uploads, device)?;
                    let logits = network.forward(&x, &Pass::training().over(share))?.main;
                    let (loss, hits) = descend(
                        &logits,
                        &y,
                        network.parameters(),
                        &mut sgd,
                        learning_rate,
                        config.weights.clip_norm,
                        share,
                    )?;
                    take(tally.add([&loss, &hits], share)?)?;
                }
                take(tally.read(share)?)
            })?;
        }
        bar.finish();
        let (valid_loss, valid_accuracy) =
            data.validate(data.valid.len(), config, self.ranks, device, |x| {
                Ok(network.forward(x, &Pass::inference())?.main)
            })?;
        finite(
            valid_loss,
            "the validation loss of a candidate",
            selection.n_epochs,
            n_steps,
        )?;
        Ok(Performance {
            train_loss: loss_sum / n_steps as f64,
            train_accuracy: n_right / (n_steps * config.batch_size) as f64,
            valid_loss,
            valid_accuracy,
        })
    }
}

fn network(
    config: &Config,
    spec: &NetworkSpec,
    genotype: &Genotype,
    device: &Device,
) -> Result<DerivedNet, Error> {
    let mut rng = rng(config.seed, STREAM_CANDIDATE_INIT);
    let builder = Builder::new(device, DType::F32, &mut rng)
        .with_precision(crate::precision(config.precision));
    Ok(DerivedNet::new(&builder, spec, genotype, false)?)
}

/// What a run that was killed knew already.
fn done(path: &Path) -> Result<Vec<CandidateRecord>, Error> {
    let Some(mut checkpoint) = Checkpoint::load(path)? else {
        return Ok(Vec::new());
    };
    serde_json::from_value(checkpoint.meta["records"].take()).map_err(|error| Error::Checkpoint {
        path: PathBuf::from(path),
        what: error.to_string(),
    })
}
