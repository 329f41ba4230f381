#!/usr/bin/env bash
# JAX 0.10.2 on a CPU: the gradient of a convolution costs tens of times more inside a loop
# (lax.scan, fori_loop, while_loop, also a branch of lax.cond) than outside, while the convolution
# itself and its forward derivative (jvp) cost the same. No warning. So the usual advice for speed,
# many training steps in one lax.scan, makes training of convolutional networks on a CPU tens of
# times slower, and a divergence inside an ODE solver's loop is cheap by jvp and dear by vjp.
#
# Seen (one core of an AMD EPYC): forward 1.5, jvp 1.4, vjp by the input 18, by the weights 75 times.
# What hurts: a test on a CPU, or a first try before a GPU is rented. aigc_jax makes one step a
# dispatch on a CPU (training/loop.py), samples there by a host loop (sampling/driver.py), and takes
# the divergence of its ODE by a forward derivative (diffusion/ode.py).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "jax==0.10.2" "jaxlib==0.10.2"
cat > "$folder/loop.py" <<'P'
import statistics
import time

import jax
import jax.numpy as jnp

TURNS = 3
x = jnp.ones((64, 8, 8, 48))
w = 0.01 * jnp.ones((3, 3, 48, 48))


def conv(x, w):
    y = jax.lax.conv_general_dilated(
        x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return jnp.tanh(y)


def seconds(once, start, looped):
    def several(x):
        if looped:
            return jax.lax.fori_loop(0, TURNS, lambda _, x: x + once(x), x)
        for _ in range(TURNS):
            x = x + once(x)
        return x

    run = jax.jit(several)
    run(start).block_until_ready()
    times = []
    for _ in range(3):
        began = time.perf_counter()
        run(start).block_until_ready()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


cases = {
    "forward": (lambda x: conv(x, w), x),
    "jvp": (lambda x: jax.jvp(lambda x: conv(x, w), (x,), (x,))[1], x),
    "vjp by the input": (lambda v: jax.vjp(lambda x: conv(x, w), v)[1](x)[0], x),
    "vjp by the weights": (lambda v: jax.vjp(lambda w: conv(x, w), v)[1](x)[0], w),
}
ratios = {}
for name, (once, start) in cases.items():
    ratios[name] = seconds(once, start, True) / seconds(once, start, False)
    print(f"{name}: in a loop {ratios[name]:.1f} times the cost of outside")
assert ratios["forward"] < 3 and ratios["jvp"] < 3
assert ratios["vjp by the input"] > 5 and ratios["vjp by the weights"] > 20
P
JAX_PLATFORMS=cpu "$folder/venv/bin/python" "$folder/loop.py"
