"""Which evaluations a config asks for, and what is refused before any work."""

import jax
import numpy as np
import pytest
import specs
import toys

from aigc_jax.data import datasets
from aigc_jax.evaluation import features
from aigc_jax.family import Views
from aigc_jax.formats import lpips as lpips_files
from aigc_jax.networks.judges import vgg
from aigc_jax.runs import evaluations
from aigc_jax.runs.examples import RealData
from aigc_jax.runs.extractors import FeatureExtractors
from aigc_jax.training import sharding

SETTINGS = {
    "network": "digits",
    "weights": None,
    "lpips": "",
    "lpips_weights": None,
    "count": 500,
    "reference_split": "train",
    "statistics": "",
    "manifold_count": 100,
    "likelihood_count": 30,
    "at_end": True,
    "examples": 20,
    "scheduled_count": 0,
    "probes": 1,
    "tolerance": 1e-5,
}
DIGITS = RealData("digits", datasets.load("digits"), "train", "test", 40)
RING = RealData("ring", datasets.Dataset(specs.points(), {"train": [], "test": []}), *DIGITS[2:])
PICTURES = RealData("pictures", datasets.Dataset(specs.images((64, 64, 3)), {}), *DIGITS[2:])
SAMPLING = {"sampler": "ancestral", "steps": 100}


def plan(given, **changes):
    return {e.name: e for e in evaluations.plan(given, SETTINGS | changes)}


def test_an_evaluation_is_a_metric_with_settings_of_its_own():
    found = plan(
        {
            "fid": {},
            "fid_fast": {"metric": "fid", "sampling": {"steps": 5}, "count": 50},
            "likelihood": {},
            "exact_likelihood": {"likelihood_count": 7, "probes": 0},
            "examples": {},
        }
    )
    usual, fast = found["fid"], found["fid_fast"]
    assert (usual.metric, usual.label, usual.count, usual.sampling) == ("fid", "", 500, {})
    assert (fast.metric, fast.label, fast.count) == ("fid", "fid_fast", 50)
    assert fast.sampling == {"steps": 5}
    assert usual.settings == SETTINGS
    assert fast.settings == SETTINGS | {"count": 50}
    assert (found["likelihood"].limit, found["examples"].limit) == (30, 0)
    exact = found["exact_likelihood"]
    assert (exact.limit, exact.settings["probes"], exact.settings["tolerance"]) == (7, 0, 1e-5)
    assert [e.name for e in found.values() if e.draws] == ["fid", "fid_fast"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"kidd": {}}, r"evaluations.kidd.metric is one of .*, not 'kidd'; did you mean 'kid'"),
        ({"a": {"metric": "fidd"}}, r"evaluations.a.metric is .*not 'fidd'; did you mean 'fid'"),
        ({"fid": {"cout": 5}}, r"setting of evaluations.fid .*not 'cout'; did you mean 'count'"),
        ({"fid": {"at_end": True}}, r"setting of evaluations.fid is one of .*, not 'at_end'"),
        ({"examples": {"sampling": {"steps": 5}}}, "'examples' takes no samples"),
        (("fid", "kid"), r"gives each evaluation its settings, such as \{'fid': \{\}\}"),
        ({"fid": "digits"}, r"evaluations.fid is a mapping of settings, not 'digits'"),
    ],
)
def test_a_wrong_name_or_setting_is_told_the_near_one(given, message):
    with pytest.raises(ValueError, match=message):
        plan(given)


def test_a_schedule_has_losses_and_a_few_samples():
    planned = plan({"fid": {}, "kid": {"scheduled_count": 40}, "likelihood": {}})
    found = evaluations.scheduled(tuple(planned.values()), SETTINGS)
    assert [(e.name, e.count, e.limit) for e in found] == [
        ("examples", 0, 20),
        ("diagnosis", 0, 20),
        ("kid", 40, 0),
    ]
    settings = SETTINGS | {"scheduled_count": 70}
    planned = evaluations.plan({"examples": {"examples": 8}, "fid": {}}, settings)
    found = evaluations.scheduled(planned, settings)
    assert [(e.name, e.count, e.limit) for e in found] == [
        ("examples", 0, 8),
        ("diagnosis", 0, 20),
        ("fid", 70, 0),
    ]


def test_splits_that_samples_are_compared_with_are_named():
    planned = plan({"fid": {}, "kid": {"reference_split": "test"}, "examples": {}})
    assert evaluations.splits(planned.values()) == ("train", "test")
    assert evaluations.splits(plan({"examples": {}}).values()) == ()


def check(given, data=DIGITS, family=None, rebuild=None, **changes):
    return evaluations.check(
        evaluations.plan(given, SETTINGS | changes),
        family or toys.one_player(),
        data,
        sampling=SAMPLING,
        rebuild=rebuild or (lambda sampling: toys.one_player()),
        extractors=FeatureExtractors(sharding.make_mesh()),
    )


def test_what_can_be_judged_passes():
    assert check({"fid": {}, "examples": {}}) == {}
    check({"mixture": {}}, RING)
    check({"examples": {}}, network="inception", count=1)  # none of which it needs


@pytest.mark.parametrize(
    ("given", "changes", "message"),
    [
        ({"fid": {}}, {"count": 1}, "at least 2 samples to judge, not 1"),
        ({"fid": {"network": "lenet"}}, {}, "'lenet' takes images of 28x28x1, not 8x8x1"),
        ({"kid": {}}, {"network": "digit"}, "is one of .*, not 'digit'; did you mean 'digits'"),
        ({"kid": {}}, {"reference_split": "val"}, "reference_split of kid is one of train, test"),
        ({"fid": {"sampling": {"step": 5}}}, {}, "sampling is .*not 'step'; did you mean 'step"),
        ({"mixture": {}}, {}, "'mixture' judges samples of ring and grid, not of 'digits'"),
        ({"ode": {"metric": "exact_likelihood"}}, {}, "evaluations.ode: exact likelihoods are "),
    ],
)
def test_what_cannot_be_judged_is_refused(given, changes, message):
    with pytest.raises(ValueError, match=message):
        check(given, **changes)


def test_what_so_few_examples_allow_no_value_of_is_left_out_with_what_it_lacks(tmp_path):
    few = DIGITS._replace(dataset=datasets.load("digits", splits=("train[:4]", "test")))
    few = few._replace(train_split="train[:4]")
    given = {"fid": {}, "half": {"metric": "precision_recall"}, "inception_score": {}}
    found = check(given, few, count=9, reference_split="train[:4]")
    assert found == {
        "half": "needs at least 6 real images to compare with, not 4",
        "inception_score": "needs at least 10 samples, not 9",
    }
    assert check({"precision_recall": {}, "fid": {}}, manifold_count=5) == {
        "precision_recall": "needs an evaluation.manifold_count of at least 6, not 5"
    }
    assert check({"inception_score": {}, "examples": {}}, count=9).keys() == {"inception_score"}
    told = r"nothing can be evaluated: inception_score needs at least 10 samples, not 9\. Set --num"
    with pytest.raises(ValueError, match=told):
        check({"inception_score": {}}, count=9)


@pytest.fixture
def vgg16(monkeypatch):
    """Real images of 16x16, and extractors that know a VGG-16 of zeros."""
    shapes = jax.eval_shape(vgg.VGG16().init, jax.random.key(0), np.zeros((1, 16, 16, 3)))
    zeros = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), shapes)
    monkeypatch.setattr(features.lpips_files, "read", lambda *a, **k: (zeros, None))
    sources = {"train": np.zeros(20), "test": np.zeros(20)}
    return RealData("pictures", datasets.Dataset(specs.images((16, 16, 3)), sources), *DIGITS[2:])


def test_a_network_without_classes_leaves_out_what_needs_them(vgg16):
    told = "needs classes, and 'vgg16' has none: set its evaluation.network to a classifier's"
    given = {"fid": {}, "modes": {}, "inception_score": {}}
    assert check(given, vgg16, network="vgg16") == {"modes": told, "inception_score": told}
    with pytest.raises(ValueError, match=f"nothing can be evaluated: modes {told}"):
        check({"modes": {}}, vgg16, network="vgg16")
    # What its own settings rule out is refused with the config, before data are opened.
    with pytest.raises(ValueError, match=f"evaluations.a: metric 'modes' {told}"):
        plan({"a": {"metric": "modes", "network": "vgg16"}})
    plan({"a": {"metric": "kid", "network": "vgg16"}})


def test_what_a_network_without_classes_leaves_out_has_no_curve():
    planned = evaluations.plan({"modes": {}, "kid": {}}, SETTINGS | {"network": "alexnet"})
    names = evaluations.scheduled_names(planned, toys.one_player(), DIGITS.spec, "test")
    assert next(names) == "eval/kd_alexnet"


def test_lpips_is_looked_for_before_any_work_where_there_are_reconstructions(monkeypatch, tmp_path):
    monkeypatch.setattr(lpips_files, "PACKAGE", "absent_package/weights")
    monkeypatch.setenv("AIGC_WEIGHTS", str(tmp_path))
    family = toys.one_player()
    given = {"reconstruction": {"lpips": "vgg16"}, "a": {"metric": "reconstruction"}}
    check(given, PICTURES, family=family._replace(views=None))
    check({"examples": {}}, PICTURES, family=with_reconstructions(family), lpips="vgg16")
    check({"a": {"metric": "reconstruction"}}, PICTURES, family=with_reconstructions(family))
    with pytest.raises(FileNotFoundError, match="no weights of LPIPS in 'vgg16'"):
        check(given, PICTURES, family=with_reconstructions(family))
    with pytest.raises(ValueError, match=r"lpips=vgg16 takes grey or RGB .*16x16, not 8x8x1"):
        check(given, family=with_reconstructions(family))
    with pytest.raises(ValueError, match="lpips=vgg16 compares images, and 'ring' holds points"):
        check(given, RING, family=with_reconstructions(family))
    check({"reconstruction": {"lpips": "auto"}}, RING, family=with_reconstructions(family))


def with_reconstructions(family):
    return family._replace(views=Views(reconstruct=lambda variables, batch, key: {}))


def test_statistics_of_other_features_are_refused_before_any_work(tmp_path):
    np.savez(tmp_path / "x.npz", mu=np.zeros(3), sigma=np.eye(3))
    with pytest.raises(
        ValueError, match=r"statistics of 3 features, network 'digits' has 64: take"
    ):
        check({"fid": {}}, statistics=str(tmp_path / "x.npz"))


def test_points_are_not_judged_as_images():
    with pytest.raises(
        ValueError, match=r"'fid' judges images .* 'ring' holds points: ask for mix"
    ):
        check({"fid": {}}, RING)


def test_missing_files_are_missed_before_any_work(monkeypatch, tmp_path):
    monkeypatch.delenv("AIGC_WEIGHTS", raising=False)
    with pytest.raises(FileNotFoundError, match="no weights of feature network 'inception'"):
        check({"fid": {}}, network="inception")
    with pytest.raises(FileNotFoundError, match=r"no statistics at .*absent.npz"):
        check({"fid": {}}, statistics=str(tmp_path / "absent.npz"))


def test_a_sampler_that_cannot_be_built_is_refused_before_any_work():
    def rebuild(sampling):
        assert sampling == {"sampler": "ddimm"}
        raise ValueError("sampling.sampler is ancestral or ddim")

    with pytest.raises(ValueError, match="ancestral or ddim"):
        check({"a": {"metric": "fid", "sampling": {"sampler": "ddimm"}}}, rebuild=rebuild)


def test_a_family_that_draws_nothing_has_no_metrics_of_samples():
    family = toys.one_player()._replace(drawing=None)
    check({"examples": {}}, family=family)
    with pytest.raises(ValueError, match=r"draws none from noise: use --mode=tr.*ask for fid, b$"):
        check({"fid": {}, "b": {"metric": "kid"}, "examples": {}}, family=family)
    evaluations.check_draws(family, [])
    with pytest.raises(ValueError, match="do not ask for samples"):
        evaluations.check_draws(family, ["samples"])
