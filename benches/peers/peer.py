"""Times the same work in PyTorch and ONNX Runtime; one JSON object on standard output.

    peer.py check DIR            hold the networks against reference vectors
    peer.py step --network pc-darts|darts|derived --threads N [--mode eager|channels-last|compile] [--device cuda] ...
    peer.py inference --runtime torch|onnx --threads N ...
"""

import argparse
import json
import resource
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F

import networks


def peak_rss_bytes():
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def relative_error(found, expected):
    return ((found - expected).abs().max() / expected.abs().max().clamp_min(1e-30)).item()


def check(folder):
    """The largest relative error of logits and gradients, in double precision."""
    from safetensors.torch import load_file

    worst = {}
    for name, file, c, n_layers in [
        ("pc-darts", "pcdarts_super_C8_L5", 8, 5),
        ("darts", "darts_super_C8_L5", 8, 5),
        ("derived", "derived_pcdarts_cifar_C8_L8", 8, 8),
    ]:
        if not (folder / f"{file}.state.safetensors").exists():
            continue
        state = load_file(folder / f"{file}.state.safetensors")
        vectors = load_file(folder / f"{file}.vectors.safetensors")
        network = networks.build(name, c, n_layers)
        arch = {key: state.pop(key) for key in list(state) if key.startswith("arch.")}
        network.load_state_dict(state)
        network.double().train()
        for kind in network.alpha:
            for own, prefix in ((network.alpha, "alphas"), (network.beta, "betas")):
                if kind in own:
                    own[kind] = arch[f"arch.{prefix}_{kind}"].double().requires_grad_()
        logits = network(vectors["input"].double())
        F.cross_entropy(logits, vectors["target"].long()).backward()
        errors = [relative_error(logits, vectors["train.logits_f64"])]
        for kind, alpha in network.alpha.items():
            errors.append(
                relative_error(alpha.grad, vectors[f"train.grad_arch_f64.alphas_{kind}"])
            )
        for key, parameter in network.named_parameters():
            expected = vectors[f"train.grad.{key}"].double()
            errors.append(relative_error(parameter.grad, expected))
        worst[name] = max(errors)
    print(json.dumps(worst))
    sys.exit(0 if worst and max(worst.values()) < 1e-4 else 5)


def step(args):
    torch.set_num_threads(args.threads)
    torch.set_default_device(args.device)
    # f32 is f32: convolutions would take TF32 by themselves.
    is_tf32 = args.precision == "tf32"
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = is_tf32
    is_cuda = args.device.startswith("cuda")
    autocast = torch.autocast(args.device.split(":")[0], torch.bfloat16, args.precision == "bf16")
    torch.manual_seed(0)
    network = networks.build(args.network, args.channels, args.layers).train()
    arch = network.arch_parameters()
    weights = list(network.parameters())
    sgd = torch.optim.SGD(weights, 0.025, momentum=0.9, weight_decay=3e-4)
    adam = torch.optim.Adam(arch, 3e-4, betas=(0.5, 0.999), weight_decay=1e-3) if arch else None
    size = args.image_size
    x = torch.randn(args.batch, 3, size, size)
    y = torch.randint(0, 10, (args.batch,))
    if args.mode == "channels-last":
        network = network.to(memory_format=torch.channels_last)
        x = x.to(memory_format=torch.channels_last)
    forward = torch.compile(network) if args.mode == "compile" else network

    def gradients_of(own, others):
        # Only what the step needs, which the original code does not do.
        for parameter in own:
            parameter.requires_grad_(True)
        for parameter in others:
            parameter.requires_grad_(args.all_gradients)
            parameter.grad = None

    def alpha_step():
        gradients_of(arch, weights)
        adam.zero_grad()
        with autocast:
            loss = F.cross_entropy(forward(x), y)
        loss.backward()
        adam.step()

    def weight_step():
        gradients_of(weights, arch)
        sgd.zero_grad()
        with autocast:
            loss = F.cross_entropy(forward(x), y)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 5.0)
        sgd.step()

    secs = {"alpha": [], "weight": []}
    for index in range(args.warmup + args.steps):
        for name, run in (("alpha", alpha_step), ("weight", weight_step)):
            if name == "alpha" and not arch:
                continue
            start = time.perf_counter()
            run()
            if is_cuda:
                torch.cuda.synchronize()
            if index >= args.warmup:
                secs[name].append(time.perf_counter() - start)
    print(
        json.dumps(
            {
                "alpha_step_secs": secs["alpha"],
                "weight_step_secs": secs["weight"],
                "peak_rss_bytes": peak_rss_bytes(),
                "version": torch.__version__,
            }
        )
    )


def inference(args):
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    network = networks.build("derived", args.channels, args.layers).eval()
    x = torch.randn(args.batch, 3, args.image_size, args.image_size)
    if args.runtime == "torch":
        version = torch.__version__
        if args.mode == "channels-last":
            network = network.to(memory_format=torch.channels_last)
            x = x.to(memory_format=torch.channels_last)

        def run():
            with torch.inference_mode():
                network(x)
    else:
        import onnxruntime

        version = onnxruntime.__version__
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = args.threads
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "network.onnx"
            torch.onnx.export(network, (x,), file, input_names=["x"], dynamo=False)
            session = onnxruntime.InferenceSession(file, options, ["CPUExecutionProvider"])
        feed = {"x": x.numpy()}

        def run():
            session.run(None, feed)

    millis = []
    for index in range(args.warmup + args.steps):
        start = time.perf_counter()
        run()
        if index >= args.warmup:
            millis.append(1e3 * (time.perf_counter() - start))
    print(json.dumps({"millis": millis, "version": version, "peak_rss_bytes": peak_rss_bytes()}))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("check").add_argument("folder", type=Path)
    for name in ("step", "inference"):
        command = commands.add_parser(name)
        if name == "step":
            command.add_argument(
                "--network", choices=["pc-darts", "darts", "derived"], required=True
            )
            command.add_argument("--all-gradients", action="store_true")
            command.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
            command.add_argument("--precision", choices=["f32", "tf32", "bf16"], default="f32")
        else:
            command.add_argument("--runtime", choices=["torch", "onnx"], required=True)
        modes = ["eager", "channels-last", "compile"]
        command.add_argument("--mode", choices=modes, default="eager")
        command.add_argument("--threads", type=int, required=True)
        command.add_argument("--channels", type=int, default=16)
        command.add_argument("--layers", type=int, default=8)
        command.add_argument("--batch", type=int, default=64)
        command.add_argument("--image-size", type=int, default=32)
        command.add_argument("--warmup", type=int, default=1)
        command.add_argument("--steps", type=int, default=3)
    args = parser.parse_args()
    if args.command == "check":
        check(args.folder)
    elif args.command == "step":
        step(args)
    else:
        inference(args)


if __name__ == "__main__":
    main()
