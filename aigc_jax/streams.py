"""Every source of randomness of a run: its name, and the one place that derives it.

Each stream has a root of its own, the seed's key with the stream's number folded in, so that no two
share a key; what a stream gives out is folded into its root, or into a key that came from it.
"""

import hashlib

import jax

from aigc_jax.errors import SettingError

# Never renumber: a run is a function of its config, and these numbers are part of that function.
STREAMS = {"init": 1, "run": 2, "samples": 3, "evaluation": 4, "order": 5}
# Children of a step's key. Augmentation has a number for each domain.
PHASES, AUGMENTATION = 1, 2


def init(seed: int) -> tuple[jax.Array, jax.Array]:
    """(key of the initial parameters, key of the run's steps)."""
    return _root(seed, "init"), _root(seed, "run")


def step(run_key: jax.Array, number: jax.Array | int) -> jax.Array:
    """Key of one step, from the run's and the steps done before it."""
    return jax.random.fold_in(run_key, number)


def phase(step_key: jax.Array, number: int) -> jax.Array:
    """Key of a phase's loss, from its step's and the phase's number."""
    return jax.random.fold_in(jax.random.fold_in(step_key, PHASES), number)


def augmentation(step_key: jax.Array, batch: int, domain: int) -> jax.Array:
    """Key of what one batch of a step is augmented by, each domain ("x", "other") by its own."""
    return jax.random.fold_in(jax.random.fold_in(step_key, AUGMENTATION + domain), batch)


def order(seed: int, domain: int) -> int:
    """Seed, below 2^32, of the order in which training goes through one domain's examples."""
    text = f"{STREAMS['order']} {seed} {domain}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


def samples(seed: int) -> jax.Array:
    """Key of a seed's samples.

    Threefry by type: with other generators a draw under `vmap` depends on its neighbours.
    """
    return _root(seed, "samples", impl="threefry2x32")


def sample(samples_key: jax.Array, index: jax.Array) -> jax.Array:
    """Keys of the samples `index` uint32 [n]: each depends on the seed and its number alone."""
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(samples_key, index)


def evaluation(seed: int) -> jax.Array:
    """Key of what is random in an evaluation; batch i of it folds i in."""
    return _root(seed, "evaluation")


def _root(seed: int, name: str, impl: str | None = None) -> jax.Array:
    if seed < 0:
        raise SettingError(f"a seed is a whole number from 0 on, not {seed}")
    # JAX reads the lowest 32 bits of a seed; the words above them are folded in.
    key, words = jax.random.key(seed & 0xFFFFFFFF, impl=impl), seed >> 32
    while words:
        key, words = jax.random.fold_in(key, words & 0xFFFFFFFF), words >> 32
    return jax.random.fold_in(key, STREAMS[name])
