"""Every source of randomness of a run is its own: no key stands for two things."""

import itertools

import jax
import numpy as np
import pytest

from aigc_jax import streams

SEEDS = range(100)
FEW = np.arange(4, dtype=np.uint32)


def first_keys(seed):
    """{name: the first few keys of each stream of a run}, as their bits."""
    init_key, run_key = streams.init(seed)
    steps = [streams.step(run_key, number) for number in range(3)]
    keys = {
        "init": [init_key],
        "run": [run_key],
        "step": steps,
        "phase": [streams.phase(key, i) for key in steps for i in range(3)],
        "samples": list(streams.sample(streams.samples(seed), FEW)),
        "samples' root": [streams.samples(seed)],
        "evaluation": [streams.evaluation(seed)],
        "evaluation's batches": [jax.random.fold_in(streams.evaluation(seed), i) for i in range(3)],
    }
    # Nor may a key be one that others are derived from.
    keys["augmentation's roots"] = [
        jax.random.fold_in(key, streams.AUGMENTATION + domain)
        for key in steps
        for domain in range(2)
    ]
    keys["phases' root"] = [jax.random.fold_in(key, streams.PHASES) for key in steps]
    for domain, batch in itertools.product(range(2), range(2)):
        name = f"augmentation of domain {domain}, batch {batch}"
        keys[name] = [streams.augmentation(key, batch, domain) for key in steps]
        # What is drawn from splits of a key: flips, shifts, angles, zooms.
        split = [jax.random.split(key, 4) for key in keys[name]]
        keys[f"parts of {name}"] = [part for parts in split for part in parts]
        keys[f"jitter of {name}"] = [jax.random.fold_in(parts[1], 1) for parts in split]
    return {name: [bits(key) for key in found] for name, found in keys.items()}


def bits(key):
    return tuple(np.asarray(jax.random.key_data(key)).tolist())


def test_no_two_keys_of_a_run_or_of_two_runs_are_equal():
    owner = {}
    for seed in SEEDS:
        for name, keys in first_keys(seed).items():
            for i, key in enumerate(keys):
                where = f"{name}[{i}] of seed {seed}"
                assert owner.setdefault(key, where) == where, f"{where} is {owner[key]}"
    assert len(owner) > 100 * 60


def test_no_two_domains_go_through_their_examples_in_one_order():
    orders = [streams.order(seed, domain) for seed in SEEDS for domain in range(2)]
    assert len(set(orders)) == 200
    assert all(0 <= order < 2**32 for order in orders)


def test_keys_of_samples_are_threefry_whatever_the_default_is():
    with jax.default_prng_impl("rbg"):
        assert str(jax.random.key_impl(streams.samples(0))) == "threefry2x32"
        assert str(jax.random.key_impl(streams.init(0)[0])) == "rbg"
    assert str(jax.random.key_impl(streams.samples(0))) == "threefry2x32"


def test_the_same_seed_gives_the_same_keys_and_a_traced_step_too():
    assert first_keys(3) == first_keys(3)
    run_key = streams.init(0)[1]
    traced = jax.jit(streams.step)(run_key, np.int32(7))
    assert bits(traced) == bits(streams.step(run_key, 7))


def test_seeds_of_any_size_are_seeds_of_their_own():
    seeds = [0, 1, 2**31, 2**32 - 1, 2**32, 2**32 + 1, 2**33, 2**64, 2**64 + 2**32, 10**30]
    keys = {tuple(jax.random.key_data(streams.samples(seed)).tolist()) for seed in seeds}
    assert len(keys) == len(seeds)
    assert len({streams.order(seed, 0) for seed in seeds}) == len(seeds)


def test_a_small_seed_is_jaxs_own():
    expected = jax.random.fold_in(
        jax.random.key(7, impl="threefry2x32"), streams.STREAMS["samples"]
    )
    assert (jax.random.key_data(streams.samples(7)) == jax.random.key_data(expected)).all()


def test_a_negative_seed_is_refused():
    with pytest.raises(ValueError, match="a whole number from 0 on, not -1"):
        streams.samples(-1)
