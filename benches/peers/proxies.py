"""Which measure of a genotype tells how well it trains? Correlations with the loss of candidates that searches have trained.

    proxies.py STORE... IMAGES.parquet [--data NAME] [--evaluated]

Reads the candidates of all search results in the STOREs (`search-result-v1/*/genotype.json`) whose `data.dir` ends in NAME, builds each
as a PyTorch network with weights as they are drawn, and measures it on the first images. Printed are correlations with the loss after
the search's own short training, within seeds, after what a line in ln(latency) explains is taken out. With `--evaluated` it is about
whole trainings: correlations with the test error of all evaluations, within those of one recipe.
"""

import argparse
import io
import json
import math
from pathlib import Path

import networks
import numpy as np
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

BATCH = 64
N_STEPS = 30


def images(path, n):
    """The first images, padded to 32 pixels, and their classes."""
    rows = pq.read_table(path).slice(0, n).to_pylist()
    image = "img" if "img" in rows[0] else "image"
    pixels = [
        np.asarray(Image.open(io.BytesIO(row[image]["bytes"])).convert("RGB"), np.float32) / 255
        for row in rows
    ]
    x = torch.tensor(np.stack(pixels)).permute(0, 3, 1, 2)
    x = (x - x.mean((0, 2, 3), keepdim=True)) / x.std((0, 2, 3), keepdim=True)
    pad = (32 - x.shape[-1]) // 2
    return F.pad(x, (pad,) * 4), torch.tensor([row["label"] for row in rows])


def network(genotype, seed):
    """The small networks of the presets: 5 cells of 16 channels behind a stem of stride 2."""
    torch.manual_seed(seed)
    genes = {kind: [tuple(gene) for gene in cell] for kind, cell in genotype.items()}
    net = networks.Network(16, 5, genotype=genes)
    net.stem[0] = nn.Conv2d(3, 48, 3, stride=2, padding=1, bias=False)
    return net.train()


def measures(genotype, x, y):
    row = {}
    for seed in range(3):
        batch = slice(BATCH * seed, BATCH * (seed + 1))
        net = network(genotype, seed)
        F.cross_entropy(net(x[batch]), y[batch]).backward()
        squares = sum((p.grad**2).sum().item() for p in net.parameters() if p.grad is not None)
        row[f"ln gradient norm, draw {seed}"] = math.log(squares) / 2
    net = network(genotype, 0)
    sgd = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=3e-4)
    losses = []
    for step in range(N_STEPS):
        batch = torch.arange(BATCH * step, BATCH * (step + 1)) % len(x)
        loss = F.cross_entropy(net(x[batch]), y[batch])
        sgd.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 5.0)
        sgd.step()
        losses.append(loss.item())
    row[f"mean loss of {N_STEPS} steps"] = np.mean(losses)
    row["convolutions, normal"] = sum("conv" in primitive for primitive, _ in genotype["normal"])
    row["poolings, normal"] = sum("pool" in primitive for primitive, _ in genotype["normal"])
    return row


def candidates(stores, data):
    """What searches have trained for a short while: genotype, latency and loss, by seed."""
    groups = {}
    for store in stores:
        for file in sorted(store.glob("search-result-v1/*/genotype.json")):
            config = json.loads((file.parent / "manifest.json").read_text())["key_parts"]["config"]
            if config["data"]["dir"].endswith(data):
                for own in json.loads(file.read_text()).get("candidates", []):
                    row = own["genotype"], own["predicted_latency_millis"], own["valid_loss"]
                    groups.setdefault(config["seed"], []).append(row)
    return groups


def evaluated(stores, data):
    """What was trained as a whole: genotype, latency and test error, by recipe; each genotype once."""
    groups, seen = {}, set()
    for store in stores:
        for file in sorted(store.glob("evaluation-v1/*/evaluation.json")):
            config = json.loads((file.parent / "manifest.json").read_text())["key_parts"]["config"]
            found = json.loads(file.read_text())
            genotype = {kind: found["genotype"][kind] for kind in ("normal", "reduce")}
            if config["data"]["dir"].endswith(data) and str(genotype) not in seen:
                seen.add(str(genotype))
                recipe = config["n_epochs"], config["weights"].get("schedule_unit", "epoch")
                latency = found["search"]["predicted_latency_millis"]
                groups.setdefault(recipe, []).append((genotype, latency, 1 - found["test_accuracy"]))
    return groups


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stores", type=Path, nargs="+", metavar="STORE")
    parser.add_argument("images", type=Path)
    parser.add_argument("--data", default="", help="what data.dir of the searches ends in")
    parser.add_argument("--evaluated", action="store_true", help="whole trainings, not candidates")
    args = parser.parse_args()
    torch.set_num_threads(1)
    x, y = images(args.images, BATCH * N_STEPS)
    groups = (evaluated if args.evaluated else candidates)(args.stores, args.data)
    rows = []
    for found in groups.values():
        if len(found) <= 5:
            continue
        own = []
        for genotype, latency, judge in found:
            row = measures(genotype, x, y)
            own.append(row | {"latency": math.log(latency), "loss": judge})
        means = {name: np.mean([row[name] for row in own]) for name in own[0]}
        rows += [{name: row[name] - means[name] for name in row} for row in own]
    columns = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    latency = columns.pop("latency")

    def rest(column):
        return column - latency * (column @ latency) / (latency @ latency)

    loss = rest(columns.pop("loss"))
    print(f"{len(rows)} genotypes of {len(groups)} groups")
    for name, column in columns.items():
        print(f"{name:<28} {np.corrcoef(rest(column), loss)[0, 1]:+.2f}")


if __name__ == "__main__":
    main()
