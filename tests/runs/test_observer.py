"""What a run looks at on its schedule: metrics, samples, reconstructions, the best checkpoint."""

import json
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys
from PIL import Image

from aigc_jax.data.sources import ArraySource
from aigc_jax.evaluation.results import Row
from aigc_jax.family import Codec, Drawing, Field, Views
from aigc_jax.runs import evaluate, evaluations
from aigc_jax.runs.examples import RealData
from aigc_jax.runs.extractors import FeatureExtractors
from aigc_jax.runs.observer import Observer, check_settings
from aigc_jax.training import sharding
from aigc_jax.training.checkpoint import Checkpoints

DATA = RealData("toy", toys.dataset(), "train", "test", 16)
SETTINGS = {"examples": 0, "scheduled_count": 8, "network": "digits", "weights": None}
SETTINGS |= {"reference_split": "train", "statistics": "", "manifold_count": 9, "count": 8}
SETTINGS |= {"lpips": "", "lpips_weights": None, "likelihood_count": 0, "at_end": False}


class Words:
    """A writer that keeps what it is given."""

    def __init__(self):
        self.said, self.rows, self.images = [], [], []

    def say(self, message):
        self.said.append(message)

    def scalars(self, step, values):
        self.rows.append((step, dict(values)))

    def image(self, step, name, picture):
        self.images.append((step, name))


@pytest.fixture(scope="module")
def state():
    plan = toys.recipe_of(toys.one_player(), toys.config())
    return sharding.new_state(plan, toys.target(), 0)


def observer(folder, family=None, given=None, data=DATA, **changes):
    """(an observer, its writer)."""
    family, writer = family or toys.one_player(), Words()
    mesh = sharding.make_mesh()
    planned = evaluations.scheduled(evaluations.plan(given or {}, SETTINGS), SETTINGS)
    made = evaluate.Evaluator(
        planned,
        family,
        data,
        mesh,
        seed=0,
        sampling={},
        rebuild=None,
        extractors=FeatureExtractors(mesh),
        bars=False,
    )
    options = {"samples": 6, "best": "", "best_mode": "min", "about": {"config": {"a": 1}}}
    return Observer(folder, writer, made, **options | changes), writer


def test_metrics_are_of_the_average_and_named_by_their_split(tmp_path, state):
    made, writer = observer(tmp_path)
    doubled = state.replace(ema={"net": jax.tree.map(lambda x: 2 * x, state.ema["net"])})
    one, other = made.evaluate(state, 1), made.evaluate(doubled, 2)
    assert set(one) == {"test/error"}
    assert one != other
    assert writer.rows == [(1, one), (2, other)]


def test_a_warning_of_the_codes_is_said_once(tmp_path, state):
    codec = Codec(
        encode=lambda variables, batch: {"mean": batch["x"].mean((1, 2, 3))[:, None]},
        decode=None,
        diagnose=lambda codes: (
            {"active_units": float(len(codes["mean"])), "information": 0.5},
            "the codes are not used",
        ),
    )
    made, writer = observer(tmp_path, toys.one_player()._replace(codec=codec))
    metrics = made.evaluate(state, 3)
    assert metrics["test/active_units"] == 20  # of the test split, padding left out
    assert metrics["test/information"] == 0.5
    assert writer.said == ["step 3: the codes are not used"]


def of_samples(rows):
    """Stands in for an evaluator's metrics of samples."""

    def run(self, variables, *, seed, weights, real, averages):
        assert (seed, weights, real) == (0, "EMA", False)
        return rows

    return run


@pytest.fixture
def judged(monkeypatch):
    """Lets an observer be one that draws samples, and says what they are worth."""

    def pretend(rows):
        monkeypatch.setattr(evaluate.Evaluator, "draws", True)
        monkeypatch.setattr(evaluate.Evaluator, "of_samples", of_samples(rows))

    return pretend


def test_what_is_left_out_of_the_schedule_is_said_once(tmp_path, state, monkeypatch):
    words = "needs at least 10 samples, not 8"
    monkeypatch.setattr(evaluate, "check", lambda *_, **__: {"inception_score": words})
    made, writer = observer(tmp_path, given={"inception_score": {}})
    assert writer.said == [f"left out of the scheduled evaluations: inception_score {words}"]
    for step in (1, 2):
        assert list(made.evaluate(state, step)) == ["test/error"]
    assert len(writer.said) == 1


def test_metrics_of_samples_are_logged_and_written_by_their_key(tmp_path, state, judged):
    judged([Row("fid", 3.0, 8), Row("fid", 4.0, 8, evaluation="fid_ddim")])
    made, _ = observer(tmp_path)
    metrics = made.evaluate(state, 5)
    assert list(metrics) == ["test/error", "eval/fid", "eval/fid_ddim/fid"]
    content = json.loads((tmp_path / "evaluations" / "scheduled-00000005.json").read_text())
    assert (content["step"], content["scheduled"]) == (5, True)
    assert [row["value"] for row in content["rows"]] == [3.0, 4.0]


def test_samples_that_no_metric_is_defined_for_stop_no_run(tmp_path, state, judged):
    words = "all 8 samples have the same features"
    judged([Row(metric, math.nan, 0, note=words) for metric in ("fid", "kid")])
    made, writer = observer(tmp_path, best="eval/fid")
    metrics = made.evaluate(state, 5)
    assert list(metrics) == ["test/error"]
    assert writer.said == [f"step 5: no fid, kid: {words}"]
    assert not (tmp_path / "evaluations").exists()
    made.keep_best(state, 5, metrics)  # undefined at this step
    made.close()


@pytest.mark.parametrize(("mode", "best"), [("min", 3), ("max", 2)])
def test_the_best_by_a_metric_is_kept_with_its_papers(tmp_path, state, mode, best):
    made, _ = observer(tmp_path, best="test/error", best_mode=mode)
    for step, value in enumerate([math.nan, 5.0, 1.0, 2.0], start=1):
        made.keep_best(state, step, {"test/error": value})
    with pytest.raises(ValueError, match=r"best is 'test/error'; there are test/other"):
        made.keep_best(state, 5, {"test/other": 1.0})
    made.close()
    checkpoints = Checkpoints(tmp_path / "best")
    assert checkpoints.steps() == [best]
    about = checkpoints.about(best)
    assert about["config"] == {"a": 1}
    assert about["metrics"] == {"test/error": {2: 5.0, 3: 1.0}[best]}
    checkpoints.close()


@pytest.mark.parametrize("before", [{"test/error": 1.0}, {"test/psnr": math.nan}])
def test_a_best_that_another_metric_chose_is_no_rival_and_no_damage(tmp_path, state, before):
    for best, step, metrics in (
        ("test/error", 1, {"test/error": 1.0} | before),
        ("test/psnr", 2, {"test/psnr": 5.0}),
    ):
        made, _ = observer(tmp_path, best=best)
        made.keep_best(state, step, metrics)
        made.close()
    assert [path.name for path in tmp_path.iterdir()] == ["best"]  # nothing was set aside
    assert (tmp_path / "best" / "00000002").is_dir()


def test_settings_that_cannot_work_are_told():
    log = {"samples": 0, "sample_every": 0, "first_sample": 0, "eval_every": 5}
    keep = {"best": "", "best_mode": "max"}
    check = partial(check_settings, test_split="val", names=["val/loss"])
    check(log, keep)
    check(log, keep | {"best": "val/loss"})
    check(log, keep | {"best": "eval/fid"}, names=["eval/kid", "eval/fid"])
    for when in ("sample_every", "first_sample"):
        with pytest.raises(ValueError, match=r"log.samples is at least 1, not 0; log.sample_every"):
            check(log | {when: 5}, keep)
    with pytest.raises(ValueError, match=r"checkpoint.best_mode is one of min, max, not 'least'"):
        check(log, keep | {"best_mode": "least"})
    with pytest.raises(ValueError, match=r"begins with val/ or, of samples, with eval/, .*'loss'"):
        check(log, keep | {"best": "loss"})
    with pytest.raises(ValueError, match=r"'eval/fid', but no samples are .*scheduled_count"):
        check(log, keep | {"best": "eval/fid"})
    with pytest.raises(ValueError, match=r"best is one of val/loss, not 'val/los'; did you mean"):
        check(log, keep | {"best": "val/los"})


def prepared_family(calls):
    """The toy, whose samples are as bright as what `prepare` makes of the weights."""
    family = toys.one_player()

    def prepare(variables, codes):
        calls.append(variables.params["net"])
        return {"level": jnp.float32(0.5)}

    def start(variables, keys, cond):
        return jnp.full((len(keys), toys.SIDE, toys.SIDE, 1), variables.prepared["level"])

    drawing = Drawing(start, lambda variables, x: x, prepare=prepare, prepared_as="level")
    return family._replace(drawing=drawing)


def test_what_samples_need_is_prepared_once_a_step_and_saved(tmp_path, state):
    calls = []
    made, _ = observer(tmp_path, prepared_family(calls), best="test/error")
    hooks = made.hooks
    hooks.evaluate(state, 2)
    hooks.sample(state, 2)
    assert hooks.prepare(state, 2)["level"] == 0.5
    assert len(calls) == 1
    assert toys.same(calls[0], state.ema["net"])
    hooks.prepare(state, 3)
    assert len(calls) == 2
    made.close()
    picture = np.asarray(Image.open(tmp_path / "samples" / "00000002.png"))
    assert (picture[10:60, 10:60] == 191).all()  # 0.5 of [-1, 1]
    checkpoints = Checkpoints(tmp_path / "best")
    parts, prepared, _, step = checkpoints.restore_parts({"ema": toys.target().ema})
    assert (float(prepared["level"]), step) == (0.5, 2)
    assert toys.same(parts["ema"], state.ema)
    checkpoints.close()


def test_a_family_that_prepares_nothing_saves_nothing(tmp_path, state):
    assert observer(tmp_path)[0].hooks.prepare(state, 1) == {}


def test_the_first_picture_says_where_it_is(tmp_path, state):
    made, writer = observer(tmp_path)
    for step in (1, 2):
        made.sample(state, step)
    path = tmp_path / "samples" / "00000001.png"
    assert [line for line in writer.said if "first" in line] == [f"step 1: first samples in {path}"]
    assert [name for _, name in writer.images] == ["samples", "samples"]
    first, second = (Image.open(tmp_path / "samples" / f"0000000{i}.png") for i in (1, 2))
    assert first.tobytes() == second.tobytes()  # the same noise and labels each time
    assert first.size == (2 * 66 + 2, 3 * 66 + 2)  # a column for each class


# Diversity


def scaled(factor):
    """The toy with samples that differ `factor` times as much."""
    family = toys.one_player()
    finish = family.drawing.finish
    drawing = family.drawing._replace(finish=lambda variables, z: factor * finish(variables, z))
    return family._replace(drawing=drawing)


def diversity(folder, state, factor, **changes):
    """(the logged diversity, or None; what was said of it)."""
    made, writer = observer(folder, scaled(factor), **changes)
    made.sample(state, 3)
    found = [row["samples/diversity"] for _, row in writer.rows if "samples/diversity" in row]
    return (found or [None])[0], [line for line in writer.said if "differ" in line]


def test_samples_that_are_nearly_alike_are_said_to_be(tmp_path, state):
    whole, said = diversity(tmp_path, state, 1.0)
    assert 0.3 < whole < 3
    assert said == []
    tenth, said = diversity(tmp_path, state, 0.1)
    assert tenth == pytest.approx(0.1 * whole, rel=1e-5)
    (warning,) = said
    words = f"step 3: samples differ {tenth:.2g} times as much as test examples do. "
    assert warning.startswith(words)
    assert warning.endswith("see Missing modes in docs/evaluation.md")


@pytest.mark.filterwarnings("ignore:invalid value encountered in cast")
@pytest.mark.parametrize(("factor", "samples"), [(1.0, 1), (np.nan, 6)])
def test_what_has_no_diversity_stops_no_run(tmp_path, state, factor, samples):
    assert diversity(tmp_path, state, factor, samples=samples) == (None, [])


# Reconstructions


def reconstruct(variables, batch, key):
    x = batch["x"]
    return {"t=20": (0 * x, x / 2), "t=3": (0 * x + 1, x), "other": (x, x, -x)}


def test_reconstructions_stand_below_the_examples_they_are_of(tmp_path, state):
    family = toys.one_player()._replace(drawing=None, views=Views(reconstruct=reconstruct))
    made, writer = observer(tmp_path, family)
    made.sample(state, 4)
    assert writer.images == [(4, "reconstructions")]
    assert not (tmp_path / "samples").exists()
    about = json.loads((tmp_path / "reconstructions" / "00000004.json").read_text())
    assert about["caption"] == (
        "Rows: test images, original at other, given at other, reconstruction at other, given at "
        "t=3, reconstruction at t=3, given at t=20, reconstruction at t=20"
    )
    picture = np.asarray(Image.open(tmp_path / "reconstructions" / "00000004.png")).astype(int)
    assert picture.shape == (8 * 66 + 2, 10 * 66 + 2)
    rows = [picture[2 + i * 66 : 66 + i * 66] for i in range(8)]
    np.testing.assert_array_equal(rows[0], rows[2])
    np.testing.assert_allclose(rows[0], 255 - rows[1], atol=1)
    assert (rows[4][:, 10:60] == 255).all()
    assert rows[7].std() < rows[5].std()


def test_a_family_with_both_shows_both(tmp_path, state):
    family = toys.one_player()._replace(views=Views(reconstruct=reconstruct))
    made, writer = observer(tmp_path, family)
    made.sample(state, 4)
    assert [name for _, name in writer.images] == ["samples", "reconstructions"]


def test_points_are_plotted_over_real_ones_and_have_no_rows_of_reconstructions(tmp_path, state):
    points = np.random.default_rng(0).standard_normal((20, 2)).astype(np.float32)
    sources = {name: ArraySource(points, None) for name in ("train", "test")}
    spec = toys.SPEC._replace(fields={"x": Field("points", (2,))}, conditions={})
    data = DATA._replace(name="ring", dataset=DATA.dataset._replace(spec=spec, sources=sources))
    family = toys.one_player()
    finish = family.drawing.finish
    drawing = family.drawing._replace(
        finish=lambda variables, z: finish(variables, z).reshape(-1, toys.PIXELS)[:, :2],
        conditions={},
    )
    family = family._replace(drawing=drawing, views=Views(reconstruct=reconstruct))
    made, writer = observer(tmp_path, family, data=data)
    made.sample(state, 1)
    assert [name for _, name in writer.images] == ["samples"]
    assert Image.open(tmp_path / "samples" / "00000001.png").size == (480, 480)
    assert writer.rows[0][1]["samples/diversity"] > 0
