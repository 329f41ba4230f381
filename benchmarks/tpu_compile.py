"""What a training step costs a TPU, from the real TPU compiler, with no TPU at hand.

    pip install libtpu
    PYTHONPATH=. python benchmarks/tpu_compile.py --config=ddpm_cifar:bf16 --topology=v5e:4x4 \
        --per_chip=128

Compiles the step of a config for a slice of that shape (minutes on two cores) and prints, a chip:
operations, bytes that pass its memory, and memory held. The larger of operations over peak and
bytes over bandwidth is a lower bound on the step's time; collectives come on top.
"""

import argparse
import importlib
import os
import time

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # libtpu must not look for a chip
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")

import jax
import jax.numpy as jnp
from jax.experimental import topologies

from aigc_jax import build
from aigc_jax.commands import common
from aigc_jax.family import DataSpec, Field
from aigc_jax.training import sharding
from aigc_jax.training.step import active_phases


def main() -> None:
    """Compiles and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="ddpm_cifar:bf16", help="NAME or NAME:VARIANT")
    parser.add_argument("--topology", default="v5e:4x4", help="such as v5e:4x4, v4:2x2x1, v6e:2x2")
    parser.add_argument("--per_chip", type=int, default=128, help="images a chip and step")
    parser.add_argument("--image_shape", type=int, nargs=3, default=(32, 32, 3))
    parser.add_argument("--classes", type=int, default=10)
    options = parser.parse_args()

    name, _, variant = options.config.partition(":")
    config = importlib.import_module(f"configs.{name}").get_config(variant)
    topology = topologies.get_topology_desc(platform="tpu", topology_name=options.topology)
    mesh = sharding.make_mesh(topology.devices)
    batch_size = options.per_chip * mesh.size
    with config.unlocked():
        config.train.batch_size = batch_size
    shape = tuple(options.image_shape)
    label = Field("label", (), options.classes)
    spec = DataSpec({"x": Field("image", shape)}, {"label": label}, {})
    family = build.build(config, spec)
    recipe = common.recipe_of(config, family, spec)
    target = sharding.abstract_state(recipe, mesh, config.train.sharding)
    constants = jax.eval_shape(family.constants) if family.constants else {}
    constants = sharding.laid_out(constants, mesh, config.train.sharding)
    step = sharding.compile_steps(recipe, mesh, target, constants)
    rows = (1, family.batches_per_step, batch_size)
    batch = {
        "x": jax.ShapeDtypeStruct((*rows, *shape), jnp.uint8),
        "label": jax.ShapeDtypeStruct(rows, jnp.int32),
    }
    began = time.perf_counter()
    compiled = step.lower(active_phases(family, 0), target, constants, {}, batch).compile()
    seconds = time.perf_counter() - began
    cost, memory = compiled.cost_analysis(), compiled.memory_analysis()
    print(f"{options.config} on {options.topology}: {mesh.size} chips, global batch {batch_size}")
    print(f"  operations a chip   {cost['flops']:.3g}")
    print(f"  bytes a chip        {cost['bytes accessed']:.3g}")
    print(f"  temporaries a chip  {memory.temp_size_in_bytes / 2**30:.2f} GiB")
    print(f"  state a chip        {memory.argument_size_in_bytes / 2**30:.2f} GiB")
    print(f"  compiled in         {seconds:.0f} s")


if __name__ == "__main__":
    main()
