//! `ops_*.safetensors`: each candidate operation alone.

use std::collections::BTreeSet;

use anyhow::{Context, Result};
use candle_core::{DType, Var};
use nn::Pass;
use nn::candidate::{Candidate, EdgeInput};
use nn::layers::Affine;
use nn::optimizer::Gradients;
use nn::parameters::Builder;
use space::Primitive;

use crate::check::{FileReport, LOOSE, TIGHT, Vectors, device};
use crate::networks::{compare_buffers, rng};

/// Checks every operation in the file that the space knows.
pub(crate) fn check(vectors: &Vectors, report: &mut FileReport<'_>) -> Result<()> {
    let affine = match vectors.metadata("affine") {
        Some("true") => Affine::Yes,
        Some("false") => Affine::No,
        other => anyhow::bail!("metadata `affine` is {other:?}, expected true or false"),
    };
    // Names are <op>.s<stride>.<rest>.
    let prefixes: BTreeSet<(&str, &str)> = vectors
        .names()
        .filter_map(|name| {
            let mut parts = name.split('.');
            Some((parts.next()?, parts.next()?))
        })
        .collect();
    for (op, stride) in prefixes {
        let Some(primitive) = Primitive::from_name(op.trim_end_matches("_ties")) else {
            report.skip(&format!("{op} at {stride} is not in the space"));
            continue;
        };
        let n = stride.strip_prefix('s').and_then(|s| s.parse().ok());
        let n = n.with_context(|| format!("`{op}.{stride}`: expected s1 or s2"))?;
        let prefix = format!("{op}.{stride}");
        one(vectors, report, &prefix, primitive, n, affine)
            .with_context(|| format!("operation {prefix}"))?;
    }
    Ok(())
}

fn one(
    vectors: &Vectors,
    report: &mut FileReport<'_>,
    prefix: &str,
    primitive: Primitive,
    stride: usize,
    affine: Affine,
) -> Result<()> {
    let input = vectors.get(&format!("{prefix}.input"))?;
    let grad_output = vectors.get(&format!("{prefix}.grad_output"))?;
    let state = vectors.under(&format!("{prefix}.state."));
    for mode in ["train", "eval"] {
        let mut rng = rng();
        let builder = Builder::new(device(), DType::F32, &mut rng);
        let candidate = Candidate::new(&builder, primitive, input.dim(1)?, stride, affine)?;
        let parameters = builder.parameters();
        parameters.load(&state)?;
        let x = Var::from_tensor(input)?;
        let pass = if mode == "train" {
            Pass::training()
        } else {
            Pass::evaluation_with_gradients()
        };
        let y = candidate.forward(&EdgeInput::new(x.as_tensor().clone(), stride), &pass)?;
        let mut store = (&y * grad_output)?.sum_all()?.backward()?;
        let name = |what: &str| format!("{prefix}.{mode}.{what}");
        report.compare(
            "outputs",
            &name("output"),
            &y,
            vectors.get(&name("output"))?,
            TIGHT,
        )?;
        // What does not depend on its input (`none`) has no gradient: zeros.
        let grad_input = store.remove(&x).map_or_else(|| x.zeros_like(), Ok)?;
        let reference = vectors.get(&name("grad_input"))?;
        report.compare(
            "gradients of inputs",
            &name("grad_input"),
            &grad_input,
            reference,
            TIGHT,
        )?;
        let gradients = Gradients::collect(&parameters, &mut store);
        for (weight, reference) in vectors.under(&name("grad.")) {
            let ours = gradients
                .get(&weight)
                .with_context(|| format!("no gradient for `{weight}` in {mode} mode"))?;
            report.compare(
                "gradients of weights",
                &name(&weight),
                ours,
                &reference,
                LOOSE,
            )?;
        }
        if mode == "train" {
            compare_buffers(
                report,
                &parameters,
                &vectors.under(&name("buffer_after.")),
                prefix,
            )?;
        }
    }
    Ok(())
}
