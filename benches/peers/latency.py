"""Latency models beside scikit-learn's: how well each predicts rows of a table that it was not fitted on.

    pip install -r benches/peers/latency-requirements.txt
    python benches/peers/latency.py --data TABLE.parquet --predictor target/release/predictor \
        [--train 50,100,900] [--seeds 10] [--columns A,B] [--min-value COLUMN=X,…]

The table has a column `arch` with architectures of NAS-Bench-201 and one column per device. The peers are the
additive ridge on the one-hot code, the same with all products of pairs, both with their penalty by
cross-validation, and histogram gradient boosting on the logarithm. Every model is fitted on rows drawn at
random and judged on all others; means over the seeds. One JSON object per column and number of rows.
"""

import argparse
import json
import subprocess
import warnings

import numpy as np
import pyarrow.parquet as parquet
from scipy.stats import spearmanr
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.linear_model import RidgeCV
from sklearn.preprocessing import PolynomialFeatures

PRIMITIVES = ["none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3"]


def encode(arch):
    genes = [gene for node in arch.split("+") for gene in node.strip("|").split("|")]
    return np.eye(5)[[PRIMITIVES.index(gene.split("~")[0]) for gene in genes]].ravel()


def peers(codes, pairs, costs, train, test):
    """What each peer predicts of the test rows."""
    penalties = np.logspace(-2, 3, 11)
    yield "ridge", RidgeCV(penalties).fit(codes[train], costs[train]).predict(codes[test])
    yield "pairs", RidgeCV(penalties).fit(pairs[train], costs[train]).predict(pairs[test])
    boosting = HistGradientBoostingRegressor(random_state=0).fit(codes[train], np.log(costs[train]))
    yield "boosting", np.exp(boosting.predict(codes[test]))


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--data", required=True)
    arguments.add_argument("--predictor", default="target/release/predictor")
    arguments.add_argument("--train", default="50,100,900")
    arguments.add_argument("--seeds", type=int, default=10)
    arguments.add_argument("--columns")
    arguments.add_argument("--min-value", default="")
    given = arguments.parse_args()
    warnings.filterwarnings("ignore")

    table = parquet.read_table(given.data)
    codes = np.stack([encode(arch) for arch in table["arch"].to_pylist()])
    pairs = PolynomialFeatures(2, interaction_only=True, include_bias=False).fit_transform(codes)
    pairs = pairs[:, pairs.std(0) > 0]
    names = given.columns.split(",") if given.columns else [n for n in table.column_names if n not in ("arch", "index")]
    least = dict(pair.split("=") for pair in given.min_value.split(",") if pair)
    for name in names:
        costs = np.array(table[name].to_pylist(), dtype=float)
        rows = np.flatnonzero(costs >= float(least.get(name, 0.0)))
        for n_train in map(int, given.train.split(",")):
            figures = {}
            for seed in range(given.seeds):
                order = np.random.default_rng(seed).permutation(rows)
                train, test = order[:n_train], order[n_train:]
                for peer, predicted in peers(codes, pairs, costs, train, test):
                    mape = np.mean(np.abs(predicted - costs[test]) / costs[test])
                    spearman = np.nan_to_num(spearmanr(predicted, costs[test])[0])
                    figures.setdefault(peer, []).append((mape, spearman))
                command = [given.predictor, "bench", "--data", given.data, "--space", "nas-bench-201", "--json"]
                command += ["--target", name, "--train", str(n_train), "--seed", str(seed)]
                command += ["--min-value", least[name]] if name in least else []
                ours = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
                figures.setdefault("ours", []).append((ours["mape"], ours["spearman"]))
                figures.setdefault("coverage_90", []).append((ours["coverage_90"] or 0.0, 0.0))
            means = {model: np.mean(pairs, axis=0).tolist() for model, pairs in figures.items()}
            coverage = means.pop("coverage_90")[0]
            answer = {model: {"mape": mape, "spearman": rank} for model, (mape, rank) in means.items()}
            print(json.dumps({"column": name, "n_train": n_train, "coverage_90": coverage, **answer}), flush=True)


if __name__ == "__main__":
    main()
