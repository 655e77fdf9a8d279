//! The DARTS cell search space: what an architecture is, how it is written down, and what it costs.
//!
//! | module | what |
//! |---|---|
//! | [`primitive`] | the candidate operations of an edge |
//! | [`genotype`] | the discrete architecture: its checks, text form, canonical form and published examples |
//! | [`space`](mod@space) | all genotypes: edges, codes, sampling, derivation from continuous weights |
//! | [`network`] | where the cells of a network stand: widths and resolutions |
//! | [`count`] | parameters and multiply-adds, exactly |
//! | [`topology`] | what a model of latency has to know of a space, DARTS or NAS-Bench-201 |
//! | [`nas_bench_201`] | architectures of NAS-Bench-201 in their published form |
//!
//! Nothing here knows tensors, files, serde or a clock.
//!
//! ```
//! use space::{Genotype, NetworkSpec, SearchSpace, count_derived};
//!
//! let genotype = Genotype::named("DARTS_V2").unwrap();
//! assert_eq!(count_derived(&genotype, &NetworkSpec::cifar10()).n_params, 3_349_342);
//!
//! let code = SearchSpace::darts().encode(&genotype);
//! assert_eq!(code.iter().sum::<f32>(), 16.0); // 8 per cell
//! ```

pub mod count;
pub mod genotype;
pub mod nas_bench_201;
pub mod network;
pub mod primitive;
pub mod space;
pub mod topology;

pub use crate::count::{
    Counts, TrainingCounts, count_auxiliary_params, count_derived, count_derived_training,
    count_supernet_params, count_supernet_training,
};
pub use crate::genotype::{
    CellError, CellGenotype, CellKind, Gene, Genotype, GenotypeError, ParseGenotypeError,
};
pub use crate::network::{CellSpec, NetworkSpec, NetworkSpecError, Stem};
pub use crate::primitive::Primitive;
pub use crate::space::{DecodeError, Edge, SearchSpace};
pub use crate::topology::{Connection, Topology};
