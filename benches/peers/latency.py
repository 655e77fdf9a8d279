"""Latency models beside scikit-learn's: how well each predicts rows of a table that it was not fitted on.

    pip install -r benches/peers/latency-requirements.txt
    python benches/peers/latency.py --data TABLE.parquet --rows rows.jsonl --predictor target/release/predictor \
        [--train 50,100,900] [--seeds 10] [--columns A,B] [--min-value COLUMN=X,…] [--peers OLDER.jsonl]
    python benches/peers/latency.py --rows rows.jsonl

The table has a column `arch` with architectures of NAS-Bench-201 and one column per device. The peers are the
additive ridge on the one-hot code, the same with all products of pairs, both with their penalty by
cross-validation, and histogram gradient boosting on the logarithm. Every model is fitted on the same rows, drawn at
random, and judged on all others. Where an older file of rows has the peers' figures, they are taken from there. What was found is appended to the file of rows, one JSON object per seed, number of
rows fitted and column, in this order; started again, it goes on where it was. Without --data, or when all is done, it prints
the means over the seeds, and on how many columns our model is ahead and by how much at least.
"""

import argparse
import json
import os
import subprocess
import tempfile
import warnings

PRIMITIVES = ["none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3"]
PEERS = ["ridge", "pairs", "boosting"]
LABEL = ("data", "column", "n_train", "seed")


def label(row):
    return tuple(row[key] for key in LABEL)


def read(path):
    if not path or not os.path.exists(path):
        return []
    with open(path) as file:
        return [json.loads(line) for line in file]


def encode(arch):
    import numpy as np

    genes = [gene for node in arch.split("+") for gene in node.strip("|").split("|")]
    return np.eye(5)[[PRIMITIVES.index(gene.split("~")[0]) for gene in genes]].ravel()


def peers(codes, pairs, costs, train, test):
    """What each peer predicts of the test rows."""
    import numpy as np
    from sklearn.ensemble import HistGradientBoostingRegressor
    from sklearn.linear_model import RidgeCV

    penalties = np.logspace(-2, 3, 11)
    yield "ridge", RidgeCV(penalties).fit(codes[train], costs[train]).predict(codes[test])
    yield "pairs", RidgeCV(penalties).fit(pairs[train], costs[train]).predict(pairs[test])
    boosting = HistGradientBoostingRegressor(random_state=0).fit(codes[train], np.log(costs[train]))
    yield "boosting", np.exp(boosting.predict(codes[test]))


def measure(given, done):
    """Fits and judges whatever is not done yet."""
    import numpy as np
    import pyarrow.parquet as parquet
    from scipy.stats import spearmanr
    from sklearn.preprocessing import PolynomialFeatures

    warnings.filterwarnings("ignore")
    table = parquet.read_table(given.data)
    codes = np.stack([encode(arch) for arch in table["arch"].to_pylist()])
    pairs = PolynomialFeatures(2, interaction_only=True, include_bias=False).fit_transform(codes)
    pairs = pairs[:, pairs.std(0) > 0]
    names = given.columns.split(",") if given.columns else [n for n in table.column_names if n not in ("arch", "index")]
    least = dict(pair.split("=") for pair in given.min_value.split(",") if pair)
    known = {label(row): row for row in read(given.peers)}
    cells = [(s, int(n), name) for s in range(given.seeds) for n in given.train.split(",") for name in names]
    for seed, n_train, name in cells:
        row = dict(zip(LABEL, (os.path.basename(given.data), name, n_train, seed)))
        if label(row) in done:
            continue
        costs = np.array(table[name].to_pylist(), dtype=float)
        rows = np.flatnonzero(costs >= float(least.get(name, 0.0)))
        order = np.random.default_rng(seed).permutation(rows)
        train, test = order[:n_train], order[n_train:]
        if label(row) in known:
            row.update({peer: known[label(row)][peer] for peer in PEERS})
        else:
            for peer, predicted in peers(codes, pairs, costs, train, test):
                mape = np.mean(np.abs(predicted - costs[test]) / costs[test])
                spearman = np.nan_to_num(spearmanr(predicted, costs[test])[0])
                row[peer] = {"mape": float(mape), "spearman": float(spearman)}
        with tempfile.TemporaryDirectory() as folder:
            shuffled = os.path.join(folder, "rows.parquet")
            parquet.write_table(table.select(["arch", name]).take(order), shuffled)
            command = [given.predictor, "bench", "--data", shuffled, "--space", "nas-bench-201", "--json"]
            command += ["--target", name, "--train", str(n_train), "--in-order", "--seed", str(seed)]
            answer = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
        keys = ("model", "mape", "spearman", "regret", "coverage_90", "fit_secs", "gradient_millis")
        row["ours"] = {key: answer[key] for key in keys}
        with open(given.rows, "a") as file:
            file.write(json.dumps(row) + "\n")


def summarise(rows):
    """A line per number of rows and column: means over the seeds, of us and of the best peer in each figure."""
    cells = {}
    for row in rows:
        cells.setdefault((row["n_train"], row["data"], row["column"]), []).append(row)
    totals = {}
    for (n_train, _, column), rows in sorted(cells.items()):
        mean = lambda model, figure: sum(row[model][figure] for row in rows) / len(rows)
        mape, spearman = mean("ours", "mape"), mean("ours", "spearman")
        best_mape = min(mean(peer, "mape") for peer in PEERS)
        best_spearman = max(mean(peer, "spearman") for peer in PEERS)
        coverage = mean("ours", "coverage_90")
        behind = [name for name, is_so in (("MAPE", mape > best_mape), ("Spearman", spearman < best_spearman)) if is_so]
        print(
            f"{n_train:4} {column:18} {len(rows):2} seeds  MAPE {100 * mape:6.2f} (peer {100 * best_mape:6.2f})  "
            f"Spearman {spearman:.4f} ({best_spearman:.4f})  in 90 % {100 * coverage:5.1f}  {' and '.join(behind)}"
        )
        totals.setdefault(n_train, []).append((column, 1 - mape / best_mape, spearman - best_spearman, coverage))
    for n_train, columns in totals.items():
        n = len(columns)
        ahead = [sum(column[place] >= 0 for column in columns) for place in (1, 2)]
        least = [min((column[place], column[0]) for column in columns) for place in (1, 2)]
        print(
            f"{n_train:4}: of {n} columns ahead in MAPE on {ahead[0]} (at least {100 * least[0][0]:+.1f} % of the peer's, "
            f"{least[0][1]}), in Spearman on {ahead[1]} (at least {least[1][0]:+.4f}, {least[1][1]}); "
            f"in 90 % {sum(column[3] for column in columns) / n:.3f}"
        )


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--data")
    arguments.add_argument("--rows", required=True)
    arguments.add_argument("--predictor", default="target/release/predictor")
    arguments.add_argument("--train", default="50,100,900")
    arguments.add_argument("--seeds", type=int, default=10)
    arguments.add_argument("--columns")
    arguments.add_argument("--min-value", default="")
    arguments.add_argument("--peers")
    given = arguments.parse_args()

    if given.data:
        measure(given, {label(row) for row in read(given.rows)})
    summarise(read(given.rows))


if __name__ == "__main__":
    main()
