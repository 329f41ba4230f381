"""What each GAN loss and penalty costs a step, and DCGAN's step against eager PyTorch's.

    PYTHONPATH=. python benchmarks/gan_speed.py [--threads=2] [--rounds=5] [--size=28] [--width=32]

Steps of a DCGAN on 64 images of noise, turn and turn about in one run. A round of a variant is 16
steps, so that a penalty every 16 steps is paid once. Against PyTorch the plain game (non-saturating
loss, batch norm in both networks) with the same networks, Adam and whole step: bytes to floats,
both updates; here an average of the weights and the check of the gradients come on top. Times are
medians of the rounds; a ratio is the median of the rounds' own.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np

from benchmarks import common

ROUND = 16
VARIANTS = (
    "non_saturating",
    "lsgan",
    "hinge",
    "r1",
    "lazy_r1",
    "dragan",
    "relativistic",
    "wgan_gp",
    "non_saturating+diffaugment",
)


def ours(variant: str, images: np.ndarray, width: int) -> tuple[Callable[[], None], int]:
    """() -> a round of this package's training steps, waited for; and how many parameters."""
    import jax

    from configs import gan_mnist

    config = gan_mnist.get_config(variant)
    with config.unlocked():
        config.network.generator.width = config.network.discriminator.width = width
    run, size = common.training(config, images, {})
    return lambda: jax.block_until_ready([run(i) for i in range(ROUND)][-1]), size


def theirs(images: np.ndarray, width: int) -> tuple[Callable[[], None], int]:
    """The same of the same game in PyTorch, as its users write it."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    size, channels = images.shape[1], images.shape[-1]
    doublings = (size - 1).bit_length() - 2  # of a map of 4x4, until the image fits in
    start, last, margin = 4, doublings - 1, ((4 << doublings) - size) // 2
    layers = [nn.ConvTranspose2d(100, width << last, start, bias=False)]
    for i in range(last, -1, -1):
        layers += [nn.BatchNorm2d(width << i), nn.ReLU()]
        out = width << (i - 1) if i else channels
        layers.append(nn.ConvTranspose2d(width << i, out, 4, 2, 1, bias=False))
    generator = nn.Sequential(*layers, nn.ZeroPad2d(-margin), nn.Tanh())
    layers, before = [nn.ZeroPad2d(margin)], channels
    for i in range(doublings):
        layers.append(nn.Conv2d(before, width << i, 4, 2, 1, bias=False))
        layers += [nn.BatchNorm2d(width << i)] * (i > 0) + [nn.LeakyReLU(0.2)]
        before = width << i
    discriminator = nn.Sequential(*layers, nn.Conv2d(before, 1, start, bias=False), nn.Flatten(0))
    adam = {"lr": 2e-4, "betas": (0.5, 0.999)}
    of_g = torch.optim.Adam(generator.parameters(), **adam)
    of_d = torch.optim.Adam(discriminator.parameters(), **adam)
    held = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    softplus = nn.functional.softplus

    def round_() -> None:
        for _ in range(ROUND):
            real = held.float() / 127.5 - 1
            fake = generator(torch.randn(len(real), 100, 1, 1))
            of_d.zero_grad()
            on_real, on_fake = discriminator(real), discriminator(fake.detach())
            (softplus(-on_real).mean() + softplus(on_fake).mean()).backward()
            of_d.step()
            of_g.zero_grad()
            fake = generator(torch.randn(len(real), 100, 1, 1))
            softplus(-discriminator(fake)).mean().backward()
            of_g.step()

    moved = [*generator.parameters(), *discriminator.parameters()]
    return round_, sum(p.numel() for p in moved)


def seconds(round_: Callable[[], None]) -> float:
    """Of one step, in one round."""
    start = time.perf_counter()
    round_()
    return (time.perf_counter() - start) / ROUND


def main() -> None:
    """Measures and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", type=int, default=28)
    parser.add_argument("--width", type=int, default=32)
    options = common.parse_against_torch(parser)
    import jax
    import torch

    channels = 1 if options.size == 28 else 3
    shape = (64, options.size, options.size, channels)
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    sides = {name: ours(name, images, options.width) for name in VARIANTS}
    sides["PyTorch, plain"] = theirs(images, options.width)
    size, other_size = (sides[name][1] for name in (VARIANTS[0], "PyTorch, plain"))
    if size != other_size:
        raise SystemExit(f"{VARIANTS[0]}: {size} parameters here, {other_size} in PyTorch")
    rounds = {name: round_ for name, (round_, _) in sides.items()}
    for round_ in rounds.values():
        round_()  # compiles
    times: dict[str, list[float]] = {name: [] for name in rounds}
    for _ in range(options.rounds):
        for name, round_ in rounds.items():
            times[name].append(seconds(round_))
    print("| step | ms | times the plain step |")
    print("|---|---|---|")
    for name, taken in times.items():
        ratios = [a / b for a, b in zip(taken, times[VARIANTS[0]], strict=True)]
        print(
            f"| {name} | {1e3 * statistics.median(taken):.0f} | {statistics.median(ratios):.2f} |"
        )
    print(
        f"{common.machine()}, {options.threads} threads a side, "
        f"{options.size}x{options.size}, width {options.width}, jax {jax.__version__}, "
        f"torch {torch.__version__}"
    )


if __name__ == "__main__":
    main()
