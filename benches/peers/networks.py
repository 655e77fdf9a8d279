"""The networks of the DARTS search space in PyTorch: what the benches set our own beside.

Written from the papers (Liu et al. 2018, Xu et al. 2020); the names of the parameters are those of the
original state dicts, so `peer.py check` can hold the networks against reference vectors.
"""

import torch
import torch.nn.functional as F
from torch import nn

PRIMITIVES = [
    "none",
    "max_pool_3x3",
    "avg_pool_3x3",
    "skip_connect",
    "sep_conv_3x3",
    "sep_conv_5x5",
    "dil_conv_3x3",
    "dil_conv_5x5",
]
N_NODES = 4

# (primitive, state), two for each node.
PC_DARTS_CIFAR = {
    "normal": [
        ("sep_conv_3x3", 1), ("skip_connect", 0), ("sep_conv_3x3", 0), ("dil_conv_3x3", 1),
        ("sep_conv_5x5", 0), ("sep_conv_3x3", 1), ("avg_pool_3x3", 0), ("dil_conv_3x3", 1),
    ],
    "reduce": [
        ("sep_conv_5x5", 1), ("max_pool_3x3", 0), ("sep_conv_5x5", 1), ("sep_conv_5x5", 2),
        ("sep_conv_3x3", 0), ("sep_conv_3x3", 3), ("sep_conv_3x3", 1), ("sep_conv_3x3", 2),
    ],
}


class ReluConvBn(nn.Module):
    def __init__(self, c_in, c_out, affine):
        super().__init__()
        self.op = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(c_in, c_out, 1, bias=False),
            nn.BatchNorm2d(c_out, affine=affine),
        )

    def forward(self, x):
        return self.op(x)


class FactorizedReduce(nn.Module):
    def __init__(self, c_in, c_out, affine):
        super().__init__()
        self.conv_1 = nn.Conv2d(c_in, c_out // 2, 1, stride=2, bias=False)
        self.conv_2 = nn.Conv2d(c_in, c_out // 2, 1, stride=2, bias=False)
        self.bn = nn.BatchNorm2d(c_out, affine=affine)

    def forward(self, x):
        # An odd size gets a row and a column of zeros.
        x = F.pad(F.relu(x), (0, x.shape[3] % 2, 0, x.shape[2] % 2))
        return self.bn(torch.cat([self.conv_1(x), self.conv_2(x[:, :, 1:, 1:])], dim=1))


def unit(c, kernel, stride, dilation, affine):
    padding = dilation * (kernel - 1) // 2
    return [
        nn.ReLU(),
        nn.Conv2d(c, c, kernel, stride, padding, dilation, groups=c, bias=False),
        nn.Conv2d(c, c, 1, bias=False),
        nn.BatchNorm2d(c, affine=affine),
    ]


class Convolution(nn.Module):
    def __init__(self, c, kernel, stride, separable, affine):
        super().__init__()
        if separable:
            layers = unit(c, kernel, stride, 1, affine) + unit(c, kernel, 1, 1, affine)
        else:
            layers = unit(c, kernel, stride, 2, affine)
        self.op = nn.Sequential(*layers)

    def forward(self, x):
        return self.op(x)


class Zero(nn.Module):
    def __init__(self, stride):
        super().__init__()
        self.stride = stride

    def forward(self, x):
        return x[:, :, :: self.stride, :: self.stride] * 0.0


def candidate(primitive, c, stride, affine):
    if primitive == "none":
        return Zero(stride)
    if primitive == "skip_connect":
        return nn.Identity() if stride == 1 else FactorizedReduce(c, c, affine)
    if primitive == "max_pool_3x3":
        return nn.MaxPool2d(3, stride, 1)
    if primitive == "avg_pool_3x3":
        return nn.AvgPool2d(3, stride, 1, count_include_pad=False)
    kernel = int(primitive[-1])
    return Convolution(c, kernel, stride, primitive.startswith("sep"), affine)


class MixedOp(nn.Module):
    def __init__(self, c, stride, k):
        super().__init__()
        self.k = k
        self.partial = c // k
        self._ops = nn.ModuleList()
        for primitive in PRIMITIVES:
            op = candidate(primitive, self.partial, stride, False)
            if "pool" in primitive:
                op = nn.Sequential(op, nn.BatchNorm2d(self.partial, affine=False))
            self._ops.append(op)
        self.stride = stride

    def forward(self, x, weights):
        if self.k == 1:
            return sum(w * op(x) for w, op in zip(weights, self._ops))
        rest = x[:, self.partial :]
        x = x[:, : self.partial]
        y = sum(w * op(x) for w, op in zip(weights, self._ops))
        if self.stride == 2:
            rest = F.max_pool2d(rest, 2)
        y = torch.cat([y, rest], dim=1)
        n, c, h, w = y.shape
        return y.view(n, self.k, c // self.k, h, w).transpose(1, 2).reshape(n, c, h, w)


def preprocess(c_in, c, is_reduced, affine):
    return FactorizedReduce(c_in, c, affine) if is_reduced else ReluConvBn(c_in, c, affine)


class SearchCell(nn.Module):
    def __init__(self, c_prev_prev, c_prev, c, is_reduction, reduction_prev, k):
        super().__init__()
        self.preprocess0 = preprocess(c_prev_prev, c, reduction_prev, False)
        self.preprocess1 = preprocess(c_prev, c, False, False)
        self._ops = nn.ModuleList(
            MixedOp(c, 2 if is_reduction and state < 2 else 1, k)
            for node in range(N_NODES)
            for state in range(2 + node)
        )

    def forward(self, s0, s1, alpha, beta):
        states = [self.preprocess0(s0), self.preprocess1(s1)]
        edge = 0
        for _ in range(N_NODES):
            node = 0
            for state in states:
                y = self._ops[edge](state, alpha[edge])
                node = node + (y if beta is None else beta[edge] * y)
                edge += 1
            states.append(node)
        return torch.cat(states[2:], dim=1)


class DerivedCell(nn.Module):
    def __init__(self, genes, c_prev_prev, c_prev, c, is_reduction, reduction_prev):
        super().__init__()
        self.preprocess0 = preprocess(c_prev_prev, c, reduction_prev, True)
        self.preprocess1 = preprocess(c_prev, c, False, True)
        self.sources = [state for _, state in genes]
        self._ops = nn.ModuleList(
            candidate(primitive, c, 2 if is_reduction and state < 2 else 1, True)
            for primitive, state in genes
        )

    def forward(self, s0, s1, _alpha, _beta):
        states = [self.preprocess0(s0), self.preprocess1(s1)]
        for node in range(N_NODES):
            first, second = 2 * node, 2 * node + 1
            states.append(
                self._ops[first](states[self.sources[first]])
                + self._ops[second](states[self.sources[second]])
            )
        return torch.cat(states[2:], dim=1)


class Network(nn.Module):
    """Stem, cells, classifier. `genotype` None: a supernet, with alpha and, for K > 1, beta."""

    def __init__(self, c, n_layers, k=1, genotype=None, n_classes=10):
        super().__init__()
        c_stem = 3 * c
        self.stem = nn.Sequential(
            nn.Conv2d(3, c_stem, 3, padding=1, bias=False), nn.BatchNorm2d(c_stem)
        )
        c_prev_prev, c_prev, reduction_prev = c_stem, c_stem, False
        self.cells = nn.ModuleList()
        self.kinds = []
        for layer in range(n_layers):
            is_reduction = layer in (n_layers // 3, 2 * n_layers // 3)
            kind = "reduce" if is_reduction else "normal"
            if is_reduction:
                c *= 2
            geometry = (c_prev_prev, c_prev, c, is_reduction, reduction_prev)
            if genotype is None:
                self.cells.append(SearchCell(*geometry, k))
            else:
                self.cells.append(DerivedCell(genotype[kind], *geometry))
            self.kinds.append(kind)
            c_prev_prev, c_prev, reduction_prev = c_prev, 4 * c, is_reduction
        self.classifier = nn.Linear(c_prev, n_classes)
        # Not in the state dict, as in the original code.
        self.alpha = {}
        self.beta = {}
        if genotype is None:
            n_edges = N_NODES * (N_NODES + 3) // 2
            for kind in ("normal", "reduce"):
                self.alpha[kind] = (1e-3 * torch.randn(n_edges, 8)).requires_grad_()
                if k > 1:
                    self.beta[kind] = (1e-3 * torch.randn(n_edges)).requires_grad_()

    def arch_parameters(self):
        return list(self.alpha.values()) + list(self.beta.values())

    def forward(self, x):
        alpha = {kind: F.softmax(a, dim=1) for kind, a in self.alpha.items()}
        beta = {}
        for kind, b in self.beta.items():
            parts, start = [], 0
            for node in range(N_NODES):
                parts.append(F.softmax(b[start : start + 2 + node], dim=0))
                start += 2 + node
            beta[kind] = torch.cat(parts)
        s0 = s1 = self.stem(x)
        for kind, cell in zip(self.kinds, self.cells):
            s0, s1 = s1, cell(s0, s1, alpha.get(kind), beta.get(kind))
        return self.classifier(s1.mean(dim=(2, 3)))


def build(name, c, n_layers):
    if name == "derived":
        return Network(c, n_layers, genotype=PC_DARTS_CIFAR)
    return Network(c, n_layers, k=4 if name == "pc-darts" else 1)
