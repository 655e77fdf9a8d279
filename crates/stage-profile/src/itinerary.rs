//! Which architectures are visited, in which order.
//!
//! Without a figure to reach, all architectures are known before the first is timed. With one (`until_mape`), they
//! are chosen in *rounds*: the latency model is fitted to what was timed, and judged by what it says of
//! architectures that it leaves out; the next round takes some at random and some whose measurement tells the model most. Only the
//! random ones judge, so the error is that of architectures at large, not of the most difficult ones. What a round takes
//! is a function of the seed and of the timings before it, so that a profile that was killed takes the same.

use std::collections::HashSet;

use latency::{Structured, noise_floor_mape};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use space::{Genotype, SearchSpace, Topology};

use crate::{Config, Error};

/// Where the architectures come from.
#[derive(Clone, Debug, PartialEq)]
pub enum Architectures {
    /// From the space, drawn with the seed of the config: as many as that says.
    Sampled,
    /// These, in this order, whatever number the config says.
    Given(Vec<Genotype>),
}

/// Architectures of the first round, of a later one, and how many of the latter are drawn.
const FIRST_ROUND: usize = 40;
const ROUND: usize = 20;
const DRAWN: usize = 10;
/// As many are looked at for the others of a round.
const CANDIDATES: usize = 300;
/// The fewest architectures, and those timed twice, that are judged by.
const ENOUGH: usize = 20;
const ENOUGH_PAIRS: usize = 10;

/// What each visit brought, in milliseconds; none where it was disturbed.
pub(crate) struct Timed(pub(crate) Vec<Option<f64>>);

/// The visits of a profile, as far as they are known.
pub(crate) struct Itinerary {
    architectures: Vec<Genotype>,
    /// Of each architecture, whether it was drawn.
    drawn: Vec<bool>,
    /// The architecture of each visit.
    visits: Vec<usize>,
    /// How many architectures have a second visit.
    n_repeated: usize,
    rounds: Option<Rounds>,
}

/// How more are chosen.
struct Rounds {
    until_mape: f64,
    seed: u64,
    n_done: u64,
    most_architectures: usize,
    most_repeated: usize,
    seen: HashSet<Genotype>,
    /// What the last round has to say.
    progress: Option<String>,
}

impl Itinerary {
    pub(crate) fn new(config: &Config, architectures: Architectures) -> Result<Self, Error> {
        let rounds = config.until_mape.map(|until_mape| Rounds {
            until_mape,
            seed: config.seed,
            n_done: 0,
            most_architectures: config.n_architectures,
            most_repeated: config.n_repeated,
            seen: HashSet::new(),
            progress: None,
        });
        let mut itinerary = Self {
            architectures: vec![],
            drawn: vec![],
            visits: vec![],
            n_repeated: 0,
            rounds: None,
        };
        match (architectures, rounds) {
            (Architectures::Given(_), Some(_)) => {
                return Err(Error::Setting {
                    key: "until_mape",
                    expected: "none where the architectures are given".to_owned(),
                });
            }
            (Architectures::Given(given), None) => {
                itinerary.visit(given, true);
                itinerary.repeat(config.n_repeated);
            }
            (Architectures::Sampled, None) => {
                itinerary.visit(sample(config.seed, config.n_architectures), true);
                itinerary.repeat(config.n_repeated);
            }
            (Architectures::Sampled, Some(mut rounds)) => {
                let first = sample(config.seed, FIRST_ROUND.min(config.n_architectures));
                rounds.seen.extend(first.iter().map(Genotype::canonical));
                let n_repeated = rounds.n_repeated(first.len());
                itinerary.visit(first, true);
                itinerary.repeat(n_repeated);
                itinerary.rounds = Some(rounds);
            }
        }
        Ok(itinerary)
    }

    fn visit(&mut self, architectures: Vec<Genotype>, drawn: bool) {
        let first = self.architectures.len();
        self.visits.extend(first..first + architectures.len());
        self.drawn.resize(first + architectures.len(), drawn);
        self.architectures.extend(architectures);
    }

    /// Visits architectures a second time, until so many of all have been.
    fn repeat(&mut self, n_repeated: usize) {
        let n_repeated = n_repeated.min(self.architectures.len());
        self.visits.extend(self.n_repeated..n_repeated);
        self.n_repeated = self.n_repeated.max(n_repeated);
    }

    pub(crate) fn n_visits(&self) -> usize {
        self.visits.len()
    }

    /// How many visits there can be in the end.
    pub(crate) fn most_visits(&self) -> usize {
        match &self.rounds {
            Some(rounds) => rounds.most_architectures + rounds.most_repeated,
            None => self.visits.len(),
        }
    }

    /// The architecture of a visit.
    pub(crate) fn architecture(&self, visit: usize) -> &Genotype {
        &self.architectures[self.visits[visit]]
    }

    /// Whether the architecture of a visit was drawn, or given.
    pub(crate) fn is_drawn(&self, visit: usize) -> bool {
        self.drawn[self.visits[visit]]
    }

    /// Whether the architecture of a visit has not been visited before.
    pub(crate) fn is_first(&self, visit: usize) -> bool {
        !self.visits[..visit].contains(&self.visits[visit])
    }

    /// What the latest round found, once.
    pub(crate) fn progress(&mut self) -> Option<String> {
        self.rounds.as_mut()?.progress.take()
    }

    /// Adds a round of visits, given what all visits so far brought; false if there is to be none.
    pub(crate) fn extend(&mut self, timed: &Timed) -> bool {
        let Some(mut rounds) = self.rounds.take() else {
            return false;
        };
        let more = rounds.next(self, timed);
        let n_repeated = more
            .as_ref()
            .map(|[drawn, telling]| self.architectures.len() + drawn.len() + telling.len())
            .map(|n_architectures| rounds.n_repeated(n_architectures));
        self.rounds = Some(rounds);
        let (Some([drawn, telling]), Some(n_repeated)) = (more, n_repeated) else {
            return false;
        };
        self.visit(drawn, true);
        self.visit(telling, false);
        self.repeat(n_repeated);
        true
    }
}

impl Rounds {
    /// How many of so many architectures are visited twice.
    fn n_repeated(&self, n_architectures: usize) -> usize {
        (self.most_repeated * n_architectures).div_ceil(self.most_architectures)
    }

    /// The architectures of the next round, drawn ones and telling ones; none if the figure is reached.
    fn next(&mut self, so_far: &Itinerary, timed: &Timed) -> Option<[Vec<Genotype>; 2]> {
        let space = SearchSpace::darts();
        let (mut rows, mut millis, mut pairs) = (vec![], vec![], vec![]);
        let mut firsts = vec![None; so_far.architectures.len()];
        for (&architecture, &timed) in so_far.visits.iter().zip(&timed.0) {
            match (firsts[architecture], timed) {
                (None, Some(first)) => {
                    firsts[architecture] = Some(first);
                    rows.push(architecture);
                    millis.push(first);
                }
                (Some(first), Some(second)) => pairs.push((first, second)),
                _ => {}
            }
        }
        let encode = |genotypes: &[Genotype]| -> Vec<Vec<f32>> {
            genotypes.iter().map(|g| space.encode(g)).collect()
        };
        let codes: Vec<Vec<f32>> = rows
            .iter()
            .map(|&row| space.encode(&so_far.architectures[row]))
            .collect();
        // Too few undisturbed ones are no reason to give up: more are on their way.
        let fitted = Structured::fit_left_out(&Topology::darts(), &codes, &millis).ok();
        let judged: Vec<f64> = fitted
            .iter()
            .flat_map(|(_, left_out)| {
                let errors = rows.iter().zip(&left_out.predicted).zip(&millis);
                errors
                    .filter(|((row, _), _)| so_far.drawn[**row])
                    .map(|((_, said), measured)| (said - measured).abs() / measured)
            })
            .collect();
        let mape =
            (judged.len() >= ENOUGH).then(|| judged.iter().sum::<f64>() / judged.len() as f64);
        let floor = (pairs.len() >= ENOUGH_PAIRS).then(|| noise_floor_mape(&pairs));
        let percent = |ratio: Option<f64>| {
            ratio.map_or("unknown".to_owned(), |ratio| {
                format!("{:.2} %", 100.0 * ratio)
            })
        };
        self.progress = Some(format!(
            "{} architectures: error on those left out {}, noise floor {}",
            so_far.architectures.len(),
            percent(mape),
            percent(floor),
        ));
        let reached = mape.is_some_and(|mape| {
            mape <= self.until_mape || floor.is_some_and(|floor| mape <= floor)
        });
        let n_left = self.most_architectures - so_far.architectures.len();
        if reached || n_left == 0 {
            return None;
        }

        self.n_done += 1;
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        rng.set_stream(self.n_done);
        let mut draw = |n: usize, seen: &mut HashSet<Genotype>| {
            let mut drawn = Vec::with_capacity(n);
            while drawn.len() < n {
                let genotype = space.sample(&mut rng);
                if seen.insert(genotype.canonical()) {
                    drawn.push(genotype);
                }
            }
            drawn
        };
        let drawn = draw(DRAWN.min(n_left), &mut self.seen);
        let candidates = draw(CANDIDATES, &mut self.seen.clone());
        let n_telling = (ROUND - DRAWN).min(n_left - drawn.len());
        let chosen =
            fitted.and_then(|(model, _)| model.choose(&encode(&candidates), n_telling).ok());
        let chosen = chosen.unwrap_or_else(|| (0..n_telling).collect());
        let telling: Vec<Genotype> = chosen.iter().map(|&i| candidates[i].clone()).collect();
        self.seen.extend(telling.iter().map(Genotype::canonical));
        Some([drawn, telling])
    }
}

/// Draws architectures uniformly, no two of them one graph.
pub(crate) fn sample(seed: u64, n: usize) -> Vec<Genotype> {
    let space = SearchSpace::darts();
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut seen = HashSet::with_capacity(n);
    let mut architectures = Vec::with_capacity(n);
    while architectures.len() < n {
        let genotype = space.sample(&mut rng);
        if seen.insert(genotype.canonical()) {
            architectures.push(genotype);
        }
    }
    architectures
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A sum of what the kept operations cost, and noise if asked for.
    fn latency(genotype: &Genotype, noise: f64) -> f64 {
        let code = SearchSpace::darts().encode(genotype);
        let costs = code.iter().enumerate();
        let sum: f64 = costs.map(|(i, &c)| f64::from(c) * (1 + i % 8) as f64).sum();
        sum * (1.0 + noise * ((sum * 7.7).sin()))
    }

    fn config(until_mape: Option<f64>) -> Config {
        Config {
            seed: 5,
            n_architectures: 110,
            n_repeated: 30,
            anchor_every: 1,
            max_disturbance: 1.0,
            cells: false,
            until_mape,
            metrics: vec![],
            network: (&space::NetworkSpec::cifar10()).into(),
            timing: artifact::TimingRecord {
                batch_size: 1,
                n_threads: 1,
                n_warmup: 1,
                n_repeats: 1,
                precision: artifact::Precision::F32,
                flush_l2: false,
            },
        }
    }

    fn timed(itinerary: &Itinerary, noise: f64) -> Timed {
        let visits = 0..itinerary.n_visits();
        Timed(
            visits
                .map(|visit| Some(latency(itinerary.architecture(visit), noise)))
                .collect(),
        )
    }

    #[test]
    fn rounds_end_at_the_figure_and_not_before() {
        let mut itinerary = Itinerary::new(&config(Some(0.2)), Architectures::Sampled).unwrap();
        assert_eq!(itinerary.most_visits(), 140);
        assert_eq!(itinerary.architectures.len(), 40);
        assert!(!itinerary.extend(&timed(&itinerary, 0.0)));
        let said = itinerary.progress().unwrap();
        assert!(
            said.starts_with("40 architectures: error on those left out "),
            "{said}"
        );

        // Noise that no model explains: all are timed, no two of them one graph, 30 of them twice.
        let mut itinerary = Itinerary::new(&config(Some(1e-4)), Architectures::Sampled).unwrap();
        // The same architecture takes the same time twice here, so that the floor is 0.
        let mut n_rounds = 1;
        while itinerary.extend(&timed(&itinerary, 0.1)) {
            n_rounds += 1;
        }
        assert_eq!(n_rounds, 5);
        let graphs: HashSet<Genotype> = itinerary
            .architectures
            .iter()
            .map(Genotype::canonical)
            .collect();
        assert_eq!((graphs.len(), itinerary.n_visits()), (110, 140));
        let n_first = (0..140).filter(|&visit| itinerary.is_first(visit)).count();
        assert_eq!(n_first, 110);
        assert_eq!(itinerary.drawn.iter().filter(|drawn| **drawn).count(), 80);
    }

    #[test]
    fn the_same_timings_choose_the_same_architectures() {
        let choose = |noise| {
            let config = config(Some(1e-4));
            let mut itinerary = Itinerary::new(&config, Architectures::Sampled).unwrap();
            for _ in 0..2 {
                assert!(itinerary.extend(&timed(&itinerary, noise)));
            }
            itinerary.architectures
        };
        assert_eq!(choose(0.1), choose(0.1));
        assert_ne!(choose(0.1), choose(0.3));
        assert_eq!(
            choose(0.1)[..50],
            choose(0.3)[..50],
            "what is drawn does not depend on timings"
        );
    }

    #[test]
    fn disturbed_visits_do_not_count() {
        let mut itinerary = Itinerary::new(&config(Some(0.2)), Architectures::Sampled).unwrap();
        let nothing = Timed(vec![None; itinerary.n_visits()]);
        assert!(itinerary.extend(&nothing));
        assert_eq!(
            itinerary.progress().unwrap(),
            "40 architectures: error on those left out unknown, noise floor unknown"
        );
    }

    #[test]
    fn given_architectures_are_visited_in_their_order() {
        let given = sample(1, 12);
        let itinerary = Itinerary::new(&config(None), Architectures::Given(given.clone())).unwrap();
        assert_eq!(itinerary.architectures, given);
        assert_eq!(itinerary.n_visits(), 24);
        let refused = Itinerary::new(&config(Some(0.1)), Architectures::Given(given));
        assert!(refused.is_err());
    }

    #[test]
    fn sampled_architectures_are_distinct_graphs_and_repeat_with_the_seed() {
        let architectures = sample(7, 500);
        let graphs: HashSet<Genotype> = architectures.iter().map(Genotype::canonical).collect();
        assert_eq!(graphs.len(), 500);
        assert_eq!(sample(7, 500), architectures);
        assert_eq!(
            sample(7, 20),
            architectures[..20],
            "more architectures keep the first ones"
        );
        assert_ne!(sample(8, 20), architectures[..20]);
    }
}
