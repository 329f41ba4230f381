#!/usr/bin/env bash
# JAX 0.10.2, CPU, default settings: jax.random.key reads only the lowest 32 bits of a seed, without
# an error or a warning. Runs "with 64-bit seeds", such as a hash of an experiment's name, the time
# in nanoseconds, or base * 2**32 + i, repeat each other's noise; numpy tells the same
# seeds apart. With jax_enable_x64 on, JAX does too, so that one flag changes every sample of a seed.
#
# Seen: seeds 0, 2**32 and 5 * 2**32 give one key; with x64, three.
# What hurts: error bars over seeds that are one seed. aigc_jax folds in the upper words (streams.py).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "jax==0.10.2" "jaxlib==0.10.2"
cat > "$folder/seeds.py" <<'P'
import sys
import warnings

import jax
import numpy as np

warnings.simplefilter("error")
seeds = (0, 2**32, 5 * 2**32)
keys = {tuple(jax.random.key_data(jax.random.key(seed)).tolist()) for seed in seeds}
draws = {float(np.random.default_rng(seed).normal()) for seed in seeds}
print(f"{sys.argv[1]}: {len(keys)} key(s) of jax, {len(draws)} draws of numpy, of {len(seeds)} seeds")
assert len(draws) == 3
assert len(keys) == int(sys.argv[2])
P
export JAX_PLATFORMS=cpu
"$folder/venv/bin/python" "$folder/seeds.py" "as installed" 1
JAX_ENABLE_X64=1 "$folder/venv/bin/python" "$folder/seeds.py" "with x64" 3
