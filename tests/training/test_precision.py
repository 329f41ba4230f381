"""What a step computes in bfloat16, and what not: read from the program, not from the settings."""

import importlib
import re
from collections.abc import Iterator
from functools import partial

import jax
import jax.numpy as jnp
import pytest
import specs

from aigc_jax import build, streams
from aigc_jax.commands import common
from aigc_jax.errors import SettingError
from aigc_jax.training.step import active_phases, init_state, train_step
from configs import ddpm_digits, gan_digits

# Products of float32 by intention: of what a network is told, of its last layers, and the gradient
# of an attention's scores, which JAX's own attention keeps in float32.
FLOAT32 = re.compile(r"time_\d|embedding|label|conv_out|patches_out|modulation|/out\b|BTNH")
DRAWN_LAST = r"\(Discriminator\)\)*$"  # the discriminator's sum over its last map


def equations(jaxpr) -> Iterator:
    """All equations of a program, those of its loops and functions too."""
    for eqn in jaxpr.eqns:
        yield eqn
        for value in eqn.params.values():
            for inner in value if isinstance(value, list | tuple) else [value]:
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from equations(inner)


def step_of(name: str, variant: str):
    """The program of a training step of a config."""
    config = importlib.import_module(f"configs.{name}").get_config(variant)
    spec = specs.OF_CONFIGS[name.split("_")[-1]]
    family = build.build(config, spec)
    recipe = common.recipe_of(config, family, spec)
    state = jax.eval_shape(partial(init_state, recipe), *streams.init(0))
    rows = (family.batches_per_step, 8)
    batch = {
        key: jax.ShapeDtypeStruct((*rows, *field.shape), jnp.uint8)
        for key, field in spec.fields.items()
    }
    batch["label"] = jax.ShapeDtypeStruct(rows, jnp.int32)
    step = partial(train_step, recipe, active_phases(family, 0))
    return state, jax.make_jaxpr(step)(state, {}, batch).jaxpr


@pytest.mark.parametrize("name", ["ddpm_cifar", "dit_cifar", "dcgan_celeba64"])
def test_a_bfloat16_step_has_no_float32_product_by_accident(name):
    state, program = step_of(name, "smoke+bf16")
    floats = {x.dtype for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.floating)}
    assert floats == {jnp.dtype("float32")}
    products, found = 0, []
    for eqn in equations(program):
        types = {v.aval.dtype for v in (*eqn.invars, *eqn.outvars) if hasattr(v.aval, "dtype")}
        assert jnp.float64 not in types
        if eqn.primitive.name in ("dot_general", "conv_general_dilated"):
            products += 1
            scope = str(eqn.source_info.name_stack)
            of_float32 = any(v.aval.dtype == jnp.float32 for v in eqn.invars)
            if of_float32 and not FLOAT32.search(scope) and not re.search(DRAWN_LAST, scope):
                found.append(scope)
    assert products > 10
    assert not found


def test_one_key_sets_what_all_networks_compute_in():
    family = build.build(gan_digits.get_config("bf16"), specs.OF_CONFIGS["digits"])
    params, extra = jax.eval_shape(family.init, jax.random.key(0))
    assert {x.dtype for x in jax.tree.leaves((params, extra))} == {jnp.dtype("float32")}
    config = ddpm_digits.get_config("smoke").to_dict()
    config["network"]["dtype"] = "bfloat16"
    with pytest.raises(SettingError, match=r"config\.network\.dtype is config\.train\.precision"):
        build.build(config, specs.OF_CONFIGS["digits"])
    config = gan_digits.get_config("bf16+remat")
    with pytest.raises(SettingError, match=r"train\.remat.* no blocks"):
        build.build(config, specs.OF_CONFIGS["digits"])
