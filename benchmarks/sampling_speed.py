"""Samples a second by DDIM, beside as many plain forward passes of the same network.

    PYTHONPATH=. python benchmarks/sampling_speed.py [--config=ddpm_cifar:bf16@512] [--steps=50]
        [--rounds=5] [--set=network.width=32] [--json=FILE]

Turn and turn about in one run: `--mode=sample`'s own driver with its keys, and a loop of `--steps`
calls of the compiled network with the same weights on images that lie on the device. Their ratio is
what drawing costs beyond the network. Also says what the second call compiled, which is nothing.
"""

import argparse
import json
import pathlib
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks import common


def sides(config: Any) -> dict[str, Callable[[int], Any]]:
    """{side: number of a round -> what is there after it}."""
    import jax
    import jax.numpy as jnp

    from aigc_jax.family import Variables
    from aigc_jax.networks.unet import UNet
    from aigc_jax.sampling.driver import Driver, sample_keys
    from aigc_jax.training import sharding

    family, spec = common.family_of(config)
    mesh, size, steps = sharding.make_mesh(), config.train.batch_size, config.sampling.steps
    params, extra = jax.jit(family.init)(jax.random.key(0))
    variables = sharding.place(Variables(params, extra), mesh)
    driver = Driver(family.drawing, jax.default_backend())

    def draw(i: int) -> Any:
        keys = sample_keys(mesh, i, np.arange(size))
        return driver(variables, keys, {})

    network = {k: v for k, v in config.network.to_dict().items() if k != "name"}
    net = UNet(**network, out_channels=spec.shape[-1])
    forward = jax.jit(lambda params, x, t: net.apply({"params": params}, x, t))
    x = jax.random.normal(jax.random.key(1), (size, *spec.shape))
    x, t = sharding.place((x, jnp.zeros((size,))), mesh)

    def passes(i: int) -> Any:
        for _ in range(steps):
            found = forward(variables.params["net"], x, t)
        return found

    return {"samples": draw, "forward passes": passes}


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="ddpm_cifar:bf16@512")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--set", action="append", default=[], help="KEY=VALUE of the config")
    parser.add_argument("--json", default="", help="file for all of it")
    options = parser.parse_args()
    import jax

    config = common.config_of(options.config, options.set)
    with config.unlocked():
        config.sampling.update({"sampler": "ddim", "steps": options.steps})
    compiled: list[str] = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, _, **about: compiled.append(name) if "backend_compile" in name else None
    )
    taking_part = sides(config)
    for call in taking_part.values():
        jax.block_until_ready(call(0))
    before = len(compiled)
    seconds: dict[str, list[float]] = {name: [] for name in taking_part}
    for i in range(options.rounds):
        for name, call in taking_part.items():
            start = time.perf_counter()
            jax.block_until_ready(call(i + 1))
            seconds[name].append(time.perf_counter() - start)
    pairs = list(zip(*seconds.values(), strict=True))
    ratio = statistics.median(plain / drawn for drawn, plain in pairs)
    size = config.train.batch_size
    result = {
        "machine": common.machine(),
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
        "config": options.config,
        "set": options.set,
        "batch": size,
        "steps": options.steps,
        "seconds": seconds,
        "samples_per_second": size / statistics.median(seconds["samples"]),
        "ratio": ratio,
        "compiled_again": len(compiled) - before,
    }
    print(
        f"{options.config} {' '.join(options.set)}, DDIM of {options.steps} steps, batch {size}: "
        f"{result['samples_per_second']:.2f} samples/s, {100 * ratio:.1f} % of the speed of "
        f"{options.steps} forward passes ({100 * min(p / d for d, p in pairs):.1f} to "
        f"{100 * max(p / d for d, p in pairs):.1f} %); compiled after the first call: "
        f"{result['compiled_again']}\n"
        f"{result['machine']}; {result['device']}; jax {result['jax']}"
    )
    if options.json:
        pathlib.Path(options.json).write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
