//! Which of several genotypes comes out: each is trained from scratch for a short while.
//!
//! All begin with draws of the same streams and see the same batches, so that they differ in nothing but the genotype.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use artifact::checkpoint::Checkpoint;
use artifact::stage::Progress;
use artifact::{CandidateRecord, RunContext};
use candle_core::{DType, Device};
use collective::{Collective, Share};
use images::ImageSet;
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
    self, Data, Performance, STREAM_CANDIDATE_INIT, STREAM_FIRST_CANDIDATE_EPOCH, Started, descend,
    finite, rng, sgd,
};

const FILE: &str = "candidates.ckpt";

/// The last of so many parts of a short training is judged. Early losses tell how fast a network begins to learn, later ones
/// how far it gets (Ru et al. 2021: of all that short trainings tell, those tell most of what longer ones come to).
const N_PARTS: usize = 3;

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
    /// Trains the genotypes, the best in front, by the [training loss at the end](N_PARTS); one alone needs no training, and
    /// nothing is known of it. One whose loss is no longer finite is left out. A run that was killed goes on behind the last
    /// that was trained.
    pub(crate) fn choose(
        &self,
        genotypes: &[Genotype],
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
        for (index, genotype) in genotypes.iter().enumerate() {
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
                train_loss: Some(own.train_loss),
                valid_loss: own.valid_loss,
                valid_accuracy: own.valid_accuracy,
                gradient_norm: None,
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
        let loss = |record: &CandidateRecord| record.train_loss.unwrap_or(f64::INFINITY);
        records.sort_by(|a, b| loss(a).total_cmp(&loss(b)));
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
        // Loss and right answers of each step.
        let mut steps: Vec<[f64; 2]> = Vec::new();
        for epoch in 0..selection.n_epochs {
            // By epochs: with a rate that falls with every step losses tell less of what longer trainings come to.
            let learning_rate =
                schedule.learning_rate(epoch as f64, selection.n_epochs, n_warmup_epochs);
            let mut rng = rng(config.seed, STREAM_FIRST_CANDIDATE_EPOCH + epoch as u64);
            let order = images::epoch_order(&data.candidates_train, &mut rng);
            let batches = order
                .chunks_exact(config.batch_size)
                .map(|indices| data.batch(indices, &data.augmentation, &mut rng, share));
            let mut take = |rows: Vec<[f64; 2]>| {
                for [loss, hits] in rows {
                    let step = steps.len() - epoch * n_steps;
                    let loss = finite(loss, "the training loss of a candidate", epoch, step)?;
                    steps.push([loss, hits]);
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
        let judged = &steps[steps.len() - steps.len().div_ceil(N_PARTS)..];
        let n_judged = judged.len() as f64;
        Ok(Performance {
            train_loss: judged.iter().map(|[loss, _]| loss).sum::<f64>() / n_judged,
            train_accuracy: judged.iter().map(|[_, hits]| hits).sum::<f64>()
                / (n_judged * config.batch_size as f64),
            valid_loss,
            valid_accuracy,
        })
    }
}

/// The network that candidates fill.
pub(crate) fn network_spec(config: &Config, set: &ImageSet) -> Result<NetworkSpec, Error> {
    let spec = search::network_spec(config, set)?;
    let asked = config.selection.as_ref().and_then(|own| own.init_channels);
    Ok(NetworkSpec {
        init_channels: asked.unwrap_or(spec.init_channels),
        ..spec
    })
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
