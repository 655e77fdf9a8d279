//! What is known of a genotype before it is trained: a surrogate, learned from short trainings of other genotypes.
//!
//! A network's training loss goes with a few counts of its cells, nearly alike on different images (`docs/results.md`). So of
//! many draws only those are trained of which the surrogate expects most.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::LazyLock;

use artifact::{Digest, Opened, SearchResult};
use latency::{Figures, Ridge};
use serde::{Deserialize, Serialize};
use space::{CellGenotype, CellKind, Genotype, Primitive};

use crate::error::Error;

/// A linear model: what it expects of a genotype is the sum of what is counted of it (`features`), each times its weight. The less, the better:
/// it is a training loss, as a ratio of the mean loss of a search's candidates, up to a constant.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "BTreeMap<String, f64>")]
pub struct Surrogate(BTreeMap<String, f64>);

/// Candidates of one search that it can be learned from at least.
const MIN_CANDIDATES: usize = 8;

impl Surrogate {
    /// The one that ships. `docs/results.md` tells what it was learned from, and what it is worth elsewhere.
    pub(crate) fn shipped() -> &'static Self {
        static SHIPPED: LazyLock<Surrogate> = LazyLock::new(|| {
            let shipped: toml::Table =
                toml::from_str(include_str!("surrogate.toml")).expect("the file is TOML");
            let own = shipped["selection"]["surrogate"].clone();
            own.try_into().expect("its table is one of weights")
        });
        &SHIPPED
    }

    /// The candidates of a search that have a training loss, and the rank correlation of these with what is expected of them.
    ///
    /// # Errors
    /// If there are too few.
    pub fn agreement(&self, search: &Opened<SearchResult>) -> Result<(usize, f64), Error> {
        let (expected, losses): (Vec<_>, Vec<_>) = trained(search)?
            .into_iter()
            .map(|(genotype, loss)| (self.score(genotype), loss))
            .unzip();
        let spearman = Figures::compute(&expected, &losses).spearman;
        Ok((losses.len(), spearman))
    }

    /// Of names and weights.
    pub(crate) fn digest(&self) -> Digest {
        let text: String = self
            .0
            .iter()
            .map(|(name, weight)| format!("{name} = {weight:e}\n"))
            .collect();
        Digest::of(text.as_bytes())
    }

    /// What is expected of a genotype.
    pub(crate) fn score(&self, genotype: &Genotype) -> f64 {
        let terms = features(genotype).into_iter().map(|(name, value)| {
            let weight = self.0.get(&name).copied();
            weight.unwrap_or(0.0) * value
        });
        terms.sum()
    }
}

/// What to say if two are the same.
pub(crate) fn given_twice<A>(all: &[Opened<A>]) -> Option<String> {
    all.iter().enumerate().find_map(|(index, own)| {
        let mut earlier = all[..index].iter();
        let same = earlier.find(|other| other.manifest.key == own.manifest.key)?;
        Some(format!(
            "{} and {} are one {}, give it once",
            same.dir.display(),
            own.dir.display(),
            own.manifest.kind
        ))
    })
}

/// The candidates of a search that were trained, and their training losses.
///
/// # Errors
/// If there are fewer than [`MIN_CANDIDATES`].
fn trained(search: &Opened<SearchResult>) -> Result<Vec<(&Genotype, f64)>, Error> {
    let candidates = search.value.candidates.iter();
    let own = candidates.filter_map(|own| Some((&own.genotype, own.train_loss?)));
    let own: Vec<_> = own.collect();
    if own.len() < MIN_CANDIDATES {
        return Err(Error::TooFewCandidates {
            dir: search.dir.clone(),
            found: own.len(),
            needed: MIN_CANDIDATES,
        });
    }
    Ok(own)
}

impl TryFrom<BTreeMap<String, f64>> for Surrogate {
    type Error = String;

    fn try_from(weights: BTreeMap<String, f64>) -> Result<Self, String> {
        let known = features(&Genotype::named("DARTS_V2").expect("a published genotype"));
        let is_unknown = |name: &&String| !known.iter().any(|(own, _)| own == *name);
        match weights.keys().find(is_unknown) {
            Some(name) => Err(format!(
                "the surrogate knows no `{name}`: expected a table that `search learn` prints"
            )),
            None => Ok(Self(weights)),
        }
    }
}

/// A surrogate, and what it was learned from.
#[derive(Debug, Clone, PartialEq)]
pub struct Learned {
    /// The weights.
    pub surrogate: Surrogate,
    /// Searches whose candidates it was learned from.
    pub n_searches: usize,
    /// Candidates of all.
    pub n_candidates: usize,
    /// Of ranks, between what is expected of each candidate when that one is left out, and its training loss.
    pub correlation: f64,
}

impl Learned {
    /// Learns from what searches found out about their candidates: their training losses, each over the mean of its search, for
    /// searches differ in images, seeds and settings. The penalty of the ridge regression is the one of least squared error on
    /// left-out candidates.
    ///
    /// # Errors
    /// If a search has trained too few candidates or is there twice, if all together have trained no more than there are features,
    /// or if these depend on each other too much.
    pub fn new(searches: &[Opened<SearchResult>]) -> Result<Self, Error> {
        if let Some(reason) = given_twice(searches) {
            return Err(Error::NothingToLearn { reason });
        }
        let trained = searches
            .iter()
            .map(trained)
            .collect::<Result<Vec<_>, _>>()?;
        Self::from_losses(&trained)
    }

    /// From genotypes and their training losses, search by search.
    fn from_losses(searches: &[Vec<(&Genotype, f64)>]) -> Result<Self, Error> {
        let nothing = |reason: String| Error::NothingToLearn { reason };
        let (mut codes, mut losses, mut names) = (Vec::new(), Vec::new(), Vec::new());
        for trained in searches {
            let sum: f64 = trained.iter().map(|(_, loss)| loss).sum();
            let mean = sum / trained.len() as f64;
            for &(genotype, loss) in trained {
                let (own, values): (Vec<_>, Vec<_>) = features(genotype).into_iter().unzip();
                names = own;
                codes.push(values.into_iter().map(|value| value as f32).collect());
                losses.push(loss / mean);
            }
        }
        let n_candidates = losses.len();
        if n_candidates <= names.len() {
            return Err(nothing(format!(
                "{n_candidates} candidates in all, expected more than there are features, {}: add searches",
                names.len()
            )));
        }
        let fit = Ridge::fit_left_out(&codes, &losses, &Ridge::L2_GRID);
        let (ridge, left_out) = fit.map_err(|error| nothing(error.to_string()))?;
        let weights = ridge.weights().iter().map(|&weight| f64::from(weight));
        Ok(Self {
            surrogate: Surrogate(names.into_iter().zip(weights).collect()),
            n_searches: searches.len(),
            n_candidates,
            correlation: Figures::compute(&left_out.predicted, &losses).spearman,
        })
    }

    /// As a table of `search.toml`.
    pub fn to_toml(&self) -> String {
        let Self {
            surrogate,
            n_searches,
            n_candidates,
            correlation,
        } = self;
        let mut text = format!(
            "# Learned from {n_candidates} candidates (searches: {n_searches}); rank correlation with the loss of one that is left out: {correlation:.2}.\n\
             [selection.surrogate]\n"
        );
        for (name, weight) in &surrogate.0 {
            writeln!(text, "{name} = {weight:.5}").expect("writing to a string");
        }
        text.truncate(text.trim_end().len());
        text
    }
}

/// What the surrogate looks at, of both cells: names and counts.
fn features(genotype: &Genotype) -> Vec<(String, f64)> {
    let cells = CellKind::ALL.map(|kind| {
        let own = cell_features(genotype.cell(kind));
        own.into_iter()
            .map(move |(name, value)| (format!("{kind}_{name}"), value))
    });
    cells.into_iter().flatten().collect()
}

fn cell_features(cell: &CellGenotype) -> Vec<(String, f64)> {
    let count = |is_it: &dyn Fn(Primitive, usize) -> bool| {
        let genes = cell.genes();
        genes
            .filter(|(_, gene)| is_it(gene.primitive, gene.source))
            .count() as f64
    };
    let mut features = Vec::new();
    for own in Primitive::KEPT {
        // Genes of the primitive, and those of them that read an input of the cell.
        let all = count(&|primitive, _| primitive == own);
        let of_inputs = count(&|primitive, source| primitive == own && source < 2);
        features.push((own.name().to_owned(), all));
        features.push((format!("{own}_of_inputs"), of_inputs));
    }
    let has_none =
        |genes: &&[space::Gene; 2]| !genes.iter().any(|gene| gene.primitive.has_parameters());
    let n_bare = cell.nodes.iter().filter(has_none).count();
    features.push(("nodes_without_convolution".to_owned(), n_bare as f64));
    // Means over the nodes of what lies between each and the inputs: operations on the way that has most, convolutions on the ways
    // that have most and fewest.
    let steps = |_| 1;
    features.push(("depth".to_owned(), mean_way(cell, steps, usize::max)));
    features.push((
        "most_convolutions".to_owned(),
        mean_way(cell, convolutions_in_a_row, usize::max),
    ));
    features.push((
        "fewest_convolutions".to_owned(),
        mean_way(cell, convolutions_in_a_row, usize::min),
    ));
    features
}

/// Depthwise convolutions one behind the other in an operation.
fn convolutions_in_a_row(primitive: Primitive) -> usize {
    match primitive {
        Primitive::SepConv3x3 | Primitive::SepConv5x5 => 2,
        Primitive::DilConv3x3 | Primitive::DilConv5x5 => 1,
        Primitive::None
        | Primitive::MaxPool3x3
        | Primitive::AvgPool3x3
        | Primitive::SkipConnect => 0,
    }
}

/// The mean over nodes of what a way from the inputs comes to, of two ways the one that `choose` takes.
fn mean_way(
    cell: &CellGenotype,
    length: impl Fn(Primitive) -> usize,
    choose: impl Fn(usize, usize) -> usize,
) -> f64 {
    let mut ways = vec![0, 0];
    for genes in cell.nodes {
        let [first, second] = genes.map(|gene| ways[gene.source] + length(gene.primitive));
        ways.push(choose(first, second));
    }
    let nodes = &ways[2..];
    nodes.iter().sum::<usize>() as f64 / nodes.len() as f64
}

#[cfg(test)]
mod tests {
    use nn::Rng;
    use rand_chacha::rand_core::SeedableRng as _;
    use space::SearchSpace;

    use super::*;

    fn feature(genotype: &Genotype, name: &str) -> f64 {
        let all = features(genotype);
        let found = all.iter().find(|(own, _)| own == name);
        found.unwrap_or_else(|| panic!("{name} is no feature")).1
    }

    #[test]
    fn features_count_what_their_names_say() {
        // Node 4 is the one without a convolution. Behind the inputs lie at most 1, 1, 2 and 2 operations; at most 2, 2, 2 and 4
        // convolutions, and at least 0, 2, 0 and 1.
        let genotype: Genotype = "Genotype(normal=[('sep_conv_3x3', 0), ('skip_connect', 1), ('sep_conv_5x5', 0), ('sep_conv_3x3', 1), \
             ('skip_connect', 1), ('max_pool_3x3', 2), ('dil_conv_3x3', 0), ('sep_conv_3x3', 3)], normal_concat=[2, 3, 4, 5], \
             reduce=[('max_pool_3x3', 0), ('max_pool_3x3', 1), ('max_pool_3x3', 0), ('max_pool_3x3', 1), ('max_pool_3x3', 0), \
             ('max_pool_3x3', 1), ('max_pool_3x3', 0), ('skip_connect', 4)], reduce_concat=[2, 3, 4, 5])"
            .parse()
            .unwrap();
        for (name, expected) in [
            ("normal_sep_conv_3x3", 3.0),
            ("normal_sep_conv_3x3_of_inputs", 2.0),
            ("normal_skip_connect", 2.0),
            ("normal_dil_conv_5x5", 0.0),
            ("normal_nodes_without_convolution", 1.0),
            ("normal_depth", 1.5),
            ("normal_most_convolutions", 2.5),
            ("normal_fewest_convolutions", 0.75),
            ("reduce_max_pool_3x3", 7.0),
            ("reduce_max_pool_3x3_of_inputs", 7.0),
            ("reduce_nodes_without_convolution", 4.0),
            ("reduce_most_convolutions", 0.0),
        ] {
            assert_eq!(feature(&genotype, name), expected, "{name}");
        }
    }

    /// Losses that follow two features, of searches whose losses lie at different heights; genotypes that no search has seen.
    #[test]
    fn what_losses_follow_is_learned() {
        let mut rng = Rng::seed_from_u64(5);
        let mut draw = |n: usize| -> Vec<Genotype> {
            (0..n)
                .map(|_| SearchSpace::darts().sample(&mut rng))
                .collect()
        };
        let law = |genotype: &Genotype| {
            let n_bare = feature(genotype, "normal_nodes_without_convolution");
            1.0 + 0.05 * n_bare - 0.02 * feature(genotype, "reduce_depth")
        };
        let searches = [draw(60), draw(60)];
        let heights = [0.5, 2.0];
        let trained: Vec<Vec<_>> = searches
            .iter()
            .zip(heights)
            .map(|(own, height)| own.iter().map(|own| (own, height * law(own))).collect())
            .collect();
        let learned = Learned::from_losses(&trained).unwrap();
        assert_eq!((learned.n_searches, learned.n_candidates), (2, 120));
        assert!(learned.correlation > 0.95, "{}", learned.correlation);
        let others = draw(50);
        let expected: Vec<f64> = others.iter().map(law).collect();
        let scores = |surrogate: &Surrogate| -> Vec<f64> {
            others.iter().map(|own| surrogate.score(own)).collect()
        };
        let spearman = Figures::compute(&scores(&learned.surrogate), &expected).spearman;
        assert!(spearman > 0.95, "{spearman}");
        // What is printed is what a config takes.
        let config: toml::Table = toml::from_str(&learned.to_toml()).unwrap();
        let read: Surrogate = config["selection"]["surrogate"].clone().try_into().unwrap();
        let spearman = Figures::compute(&scores(&read), &expected).spearman;
        assert!(spearman > 0.95, "{spearman}");
        let few: Vec<_> = trained[0][..30].to_vec();
        let error = Learned::from_losses(&[few]).unwrap_err().to_string();
        assert!(error.contains("30 candidates"), "{error}");
    }

    #[test]
    fn the_surrogate_that_ships_has_a_weight_for_every_feature() {
        let shipped = Surrogate::shipped();
        let genotype = Genotype::named("DARTS_V2").unwrap();
        let names: Vec<String> = features(&genotype)
            .into_iter()
            .map(|(name, _)| name)
            .collect();
        assert!(names.iter().all(|name| shipped.0.contains_key(name)));
        assert!(shipped.score(&genotype).is_finite());
    }
}
