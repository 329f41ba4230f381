"""What evaluators of examples take of networks: features of translations, LPIPS on the devices."""

import numpy as np
import pytest
import specs
import toys
from samplers import NOTHING, by_metric, evaluator

from aigc_jax.data import digits
from aigc_jax.data.datasets import Dataset
from aigc_jax.data.pairs import Pairs
from aigc_jax.data.sources import ArraySource
from aigc_jax.evaluation.comparison import moments
from aigc_jax.evaluation.features import subsample
from aigc_jax.evaluation.metrics import frechet, kernel
from aigc_jax.runs.examples import RealData
from aigc_jax.runs.extractors import FeatureExtractors
from aigc_jax.training import sharding

IMAGES = digits.arrays("train")[0]
DOMAINS = {"train": (IMAGES[:300], IMAGES[300:520]), "test": (IMAGES[520:700], IMAGES[700:770])}


SPLITS = tuple(DOMAINS)


def two_domains():
    sources = {
        split: Pairs(*(ArraySource(x, None) for x in pair)) for split, pair in DOMAINS.items()
    }
    return RealData("pairs", Dataset(specs.images((8, 8, 1), domains=2), sources), *SPLITS, 40)


DATA = two_domains()


def translating(scale):
    """A family that makes negatives of A, and dark images of B."""

    def translate(variables, x, direction):
        return -scale * x if direction == "a2b" else 0.5 * x - 0.5

    return toys.one_player()._replace(translate=translate, drawing=None)


@pytest.fixture(scope="module")
def extractors():
    return {n: FeatureExtractors(sharding.make_mesh(sharding.jax.devices()[:n])) for n in (1, 8)}


def test_translations_are_compared_with_the_other_domain(extractors):
    given = {"translation": {}}
    for devices, batch_size in ((1, 40), (8, 64)):
        made = evaluator(extractors, translating(1.0), given, devices, batch_size, data=DATA)
        assert made.networks == ("digits",)
        found = by_metric(made.run(NOTHING, seed=0, weights="raw").rows)
        assert list(found) == [f"{m}_digits/{d}" for d in ("a2b", "b2a") for m in ("fd", "kd")]
        extract = extractors[devices].open("digits", None, (8, 8, 1))
        (train_a, train_b), (test_a, test_b) = DOMAINS.values()
        dark = np.round((0.25 * (test_b / 127.5 - 1) * 2 + 0.5) * 127.5).astype(np.uint8)
        for direction, images, reference, real in (
            ("a2b", 255 - test_a, train_b, test_b),
            ("b2a", dark, train_a, test_a),
        ):
            x, target, held_out = (extract(a).features for a in (images, reference, real))
            row = found[f"fd_digits/{direction}"]
            expected = frechet.frechet_distance(*moments(x), *moments(target))
            assert row.value == pytest.approx(expected, rel=1e-3)
            assert (row.n, row.reference) == (len(x), f"pairs train ({len(target)})")
            assert (row.network, row.weights) == ("digits", "raw")
            held_out = held_out[subsample(len(held_out), len(x))]  # as many as translations
            expected = frechet.frechet_distance(*moments(held_out), *moments(target))
            assert row.real == pytest.approx(expected, rel=1e-3)
            row = found[f"kd_digits/{direction}"]
            assert row.value == pytest.approx(kernel.kernel_distance(x, target)[0], rel=1e-3)
            assert row.real < row.value


def test_what_cannot_be_compared_is_refused_before_any_work(extractors):
    given = {"moved": {"metric": "translation"}}
    with pytest.raises(ValueError, match="does not translate images: do not ask for moved"):
        evaluator(extractors, toys.one_player(), given)
    with pytest.raises(ValueError, match="reference_split of moved is one of train, test, not 'x'"):
        evaluator(extractors, translating(1.0), given, data=DATA, reference_split="x")
    with pytest.raises(ValueError, match="'lenet' takes images of 28x28x1"):
        evaluator(extractors, translating(1.0), given, data=DATA, network="lenet")
    made = evaluator(extractors, translating(np.nan), given, data=DATA)
    with pytest.raises(ValueError, match="translations are not finite"):
        made.run(NOTHING, seed=0, weights="raw")
