"""Training steps a second of two VAEs, here and in eager PyTorch, turn and turn about in one run.

    PYTHONPATH=. python benchmarks/vae_speed.py [--threads=2] [--seconds=5] [--rounds=5]

The fully connected 784-500-20 and the convolutional one (32 and 64 channels) of configs/vae_mnist,
batches of 128 bytes of noise, on the CPU. A step is the whole of it on both sides: bytes to floats,
dynamic binarisation, forward, backward, Adam; here an average of the weights and the check of the
gradients come on top. Speeds are medians of the rounds; a ratio is the median of the rounds' own.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable

import numpy as np

from benchmarks import common

LATENT, WIDTHS, HIDDEN = 20, (32, 64), 500


def ours(variant: str, images: np.ndarray) -> tuple[Callable[[], None], int]:
    """() -> one step of this package's training, waited for; and how many parameters it moves."""
    import jax

    from aigc_jax.family import Field
    from configs import vae_mnist

    label = {"label": Field("label", (), 10)}
    run, size = common.training(vae_mnist.get_config(variant), images, label)
    return lambda: jax.block_until_ready(run(0)), size


def theirs(variant: str, images: np.ndarray) -> tuple[Callable[[], None], int]:
    """The same of the same model in PyTorch, as its users write it."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    if variant == "conv":
        a, b = WIDTHS
        side = 28 // 4
        encoder = nn.Sequential(
            *(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(1, a, 3, 2), nn.ReLU()),
            *(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(a, b, 3, 2), nn.ReLU()),
            *(nn.Flatten(), nn.Linear(side * side * b, 2 * LATENT)),
        )
        double = {"kernel_size": 3, "stride": 2, "padding": 1, "output_padding": 1}
        decoder = nn.Sequential(
            *(nn.Linear(LATENT, side * side * b), nn.ReLU(), nn.Unflatten(1, (b, side, side))),
            *(nn.ConvTranspose2d(b, b, **double), nn.ReLU()),
            *(nn.ConvTranspose2d(b, a, **double), nn.ReLU()),
            nn.Conv2d(a, 1, 3, padding=1),
        )
    else:
        layers = nn.Linear(784, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 2 * LATENT)
        encoder = nn.Sequential(nn.Flatten(), *layers)
        layers = nn.Linear(LATENT, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 784)
        decoder = nn.Sequential(*layers, nn.Unflatten(1, (1, 28, 28)))
    parameters = [*encoder.parameters(), *decoder.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=1e-3)
    held = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())

    def step() -> None:
        x = torch.bernoulli(held.float() / 255)
        mean, logvar = encoder(2 * x - 1).chunk(2, dim=1)
        logvar = logvar.clamp(-30, 20)
        z = mean + torch.exp(0.5 * logvar) * torch.randn_like(mean)
        cross = nn.functional.binary_cross_entropy_with_logits(decoder(z), x, reduction="sum")
        kl = 0.5 * torch.sum(mean**2 + torch.expm1(logvar) - logvar)
        loss = (cross + kl) / len(x)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()  # a log of the loss, as ours has

    return step, sum(p.numel() for p in parameters)


def per_second(step: Callable[[], None], seconds: float) -> float:
    """Steps a second over that time."""
    began, count = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        step()
        count += 1
    return count / (time.perf_counter() - began)


def main() -> None:
    """Measures and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--seconds", type=float, default=5.0, help="a round of each side")
    parser.add_argument("--rounds", type=int, default=5)
    options = common.parse_against_torch(parser)
    import jax
    import torch

    shape = (options.batch_size, 28, 28, 1)
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    rows = []
    for title, variant in (("MLP 784-500-20", ""), ("conv 32, 64", "conv")):
        (mine, size), (other, other_size) = (side(variant, images) for side in (ours, theirs))
        if size != other_size:
            raise SystemExit(f"{title}: {size} parameters here, {other_size} in PyTorch")
        for step in (mine, other):  # compilation, and what is set up at first use
            for _ in range(5):
                step()
        rates = [
            [per_second(step, options.seconds) for step in (mine, other)]
            for _ in range(options.rounds)
        ]
        ratio = [a / b for a, b in rates]
        medians = [statistics.median(side) for side in zip(*rates, strict=True)]
        rows.append((title, size, *medians, statistics.median(ratio), min(ratio), max(ratio)))

    load = os.getloadavg()[0]
    print(
        f"{common.machine()}; {options.threads} threads a side, batches of {options.batch_size}, "
        f"{options.rounds} rounds of {options.seconds:g} s; jax {jax.__version__}, "
        f"torch {torch.__version__}; load average {load:.1f}\n"
    )
    print("| VAE | parameters | aigc_jax, steps/s | PyTorch eager, steps/s | ratio | of rounds |")
    print("|---|---|---|---|---|---|")
    for title, size, here, there, middle, low, high in rows:
        print(
            f"| {title} | {size:,} | {here:.1f} | {there:.1f} | {middle:.2f} "
            f"| {low:.2f} to {high:.2f} |"
        )


if __name__ == "__main__":
    main()
