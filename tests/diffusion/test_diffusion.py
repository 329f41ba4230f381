"""The diffusion family with networks that are formulas: losses, bounds, reconstructions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from diffusion.helpers import (
    LEVELS,
    PROCESS,
    SHAPE,
    VARIABLES,
    VIEW,
    T,
    believing,
    bits,
    column,
    evaluate,
    images,
    loss,
    metrics,
    model,
    reconstructed,
    sample,
    with_memory,
)

from aigc_jax.diffusion import family as families
from aigc_jax.diffusion import likelihood
from aigc_jax.diffusion import process as gaussian
from aigc_jax.diffusion.precondition import PREDICTIONS
from aigc_jax.diffusion.solvers.base import Estimate
from aigc_jax.family import DataSpec, Field
from aigc_jax.training.sharding import make_mesh, put
from configs import ddpm_digits

KEY = jax.random.key(0)


def test_a_network_that_puts_out_zero_has_loss_one():
    made = model(lambda x, *_: 0.0, prediction="eps")
    value = loss(made, images(20_000, 0.3))
    np.testing.assert_allclose(value, 1.0, atol=0.02)  # 80,000 squares of unit noise


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_network_that_knows_the_image_has_loss_zero(prediction):
    made = model(believing(prediction, lambda label: 0.3), prediction=prediction)
    assert loss(made, images(64, 0.3)) < 1e-8
    assert loss(made, images(64, 0.5)) > 1e-4
    np.testing.assert_allclose(sample(made), 0.3, atol=1e-4)


def test_evaluation_weighs_each_example_by_its_time_and_visits_all_times_evenly():
    made = model(lambda x, *_: 0.0, weighting={"name": "snr"})
    snr = (PROCESS.alphas / PROCESS.sigmas) ** 2
    # As many examples as times: each time has one of them, whatever the key.
    for seed in range(3):
        found = np.sort(evaluate(made, images(T, 0.5), seed))[::-1]
        np.testing.assert_allclose(found, 0.25 * snr, rtol=1e-5)
    half = np.sort(evaluate(made, images(T // 2, 0.5)))[::-1]
    either = np.isclose(half[:, None], 0.25 * snr.reshape(-1, 2), rtol=1e-5)
    assert np.array_equal(either.sum(axis=1), np.ones(T // 2))


def test_the_first_rows_of_a_batch_see_all_times_since_padding_follows_them():
    found = evaluate(model(lambda x, t, *_: column(t)), images(10 * T))
    first = np.sqrt(found)[: 2 * T]  # of a black image the error is t^2
    np.testing.assert_allclose(first.mean(), (T - 1) / 2, atol=3)
    assert first.min() < T / 4
    assert first.max() > 3 * T / 4


def test_times_of_the_loss_are_uniform_over_the_whole_process():
    def of(x, t, label, train):  # its error is 1 at t = 0 and at T - 1 only
        return column(jnp.where((t == 0) | (t == T - 1), 1.0, 0.0))

    np.testing.assert_allclose(loss(model(of), images(20_000)), 2 / T, atol=0.01)


def test_dropout_is_for_training_only():
    made = model(lambda x, t, label, train: 1.0 if train else 0.0)
    assert loss(made, images(8)) == 1
    assert np.all(evaluate(made, images(8)) == 0)
    assert np.all(sample(made) == 0)


def test_a_loss_hands_on_extra_and_reads_nothing_but_the_parameters():
    made = model(lambda x, *_: 0.0)
    view = VIEW._replace(ema=None, extra={"kept": jnp.ones(2)}, constants=None, step=None)
    value, (found, extra) = jax.jit(made.loss)(view, images(4, 0.5), jax.random.key(0))
    np.testing.assert_allclose(value, 0.25)
    assert found == {}
    np.testing.assert_array_equal(extra["kept"], 1.0)


def test_dropped_labels_become_none_and_the_others_stay():
    label = jnp.arange(1000) % 10
    found = np.asarray(model(with_memory, 10, label_dropout=0.3).drop_labels(label, KEY))
    dropped = found == 10
    np.testing.assert_allclose(dropped.mean(), 0.3, atol=0.05)
    np.testing.assert_array_equal(found[~dropped], label[~dropped])
    assert model(with_memory, label_dropout=0.3).drop_labels(None, KEY) is None


def test_labels_are_dropped_at_their_rate_in_training_and_never_in_evaluation():
    def of(x, t, label, train):  # its error is 1 where the label was dropped
        return column(jnp.where(label == 10, 1.0, jnp.where(label == 3, 0.0, 100.0)))

    batch = images(20_000) | {"label": jnp.full(20_000, 3)}
    for rate in (0.0, 0.1, 1.0):
        made = model(of, 10, label_dropout=rate)
        np.testing.assert_allclose(loss(made, batch), rate, atol=0.01)
        assert np.all(evaluate(made, batch) == 0)


def test_an_unconditional_model_never_sees_a_label():
    def of(x, t, label, train):
        assert label is None
        return 0.0

    made = model(of)
    batch = images(4) | {"label": jnp.zeros(4, jnp.int32)}
    loss(made, batch)
    evaluate(made, batch)
    reconstructed(made, batch)
    sample(made, 4, {"label": jnp.zeros(4, jnp.int32)})


def test_evaluation_is_one_look_of_the_network_at_one_draw():
    seen = []

    def of(x, t, label, train):
        seen.append((x, t))
        return 0.1 * x

    made = model(of, weighting={"name": "snr"})
    batch = {"x": jax.random.uniform(jax.random.key(1), (6, *SHAPE), minval=-1.0)}
    found = made.evaluate(VARIABLES, batch, jax.random.key(7))
    assert found.keys() == {"loss"}
    ((x_t, t),) = seen
    # The draw that stored results are made with.
    time_key, noise_key, order_key = jax.random.split(jax.random.key(7), 3)
    u = (np.arange(6) + jax.random.uniform(time_key, (6,))) / 6
    index = np.asarray(jax.random.permutation(order_key, np.asarray(u * T, int)))
    np.testing.assert_array_equal(t, index)
    level = PROCESS.level(index)
    eps = jax.random.normal(noise_key, (6, *SHAPE))
    np.testing.assert_allclose(x_t, gaussian.diffuse(batch["x"], eps, level), rtol=1e-5, atol=1e-6)
    error = np.mean((0.1 * x_t - batch["x"]) ** 2, axis=(1, 2, 3))
    np.testing.assert_allclose(found["loss"], level.ratio**-2 * error, rtol=1e-5)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
@pytest.mark.parametrize("clip", [True, False])
def test_bits_of_all_times_are_the_bound_of_what_is_sampled(prediction, variance, clip):
    of = believing(prediction, lambda label: 1.2)  # 1 where clipped
    made = model(of, prediction=prediction, sampling={"clip": clip, "variance": variance})
    x0 = images(2, 0.5)["x"]
    term = likelihood.terms(PROCESS, variance)
    guess = jnp.full_like(x0, 1.0 if clip else 1.2)
    expected = sum(term(x0, Estimate(guess), jnp.full(2, i)) for i in range(T))
    expected += likelihood.prior(PROCESS.level(T - 1), x0)
    np.testing.assert_allclose(bits(made, {"x": x0}), expected, rtol=1e-4)


def test_the_bound_sees_every_time_once_each_with_noise_of_its_own():
    seen = []

    def of(x, t, label, train):
        jax.debug.callback(lambda x, t: seen.append((np.asarray(t), np.asarray(x))), x, t)
        return 0.0 * x

    bits(model(of), images(2, 0.0))
    jax.effects_barrier()
    seen.sort(key=lambda pair: pair[0][0])
    assert [t.tolist() for t, _ in seen] == [[i, i] for i in range(T)]
    noise = np.stack([x / PROCESS.sigmas[i] for i, (_, x) in enumerate(seen)])
    assert len(np.unique(noise)) == noise.size


def test_the_bound_compiles_one_term_for_all_times_and_calls():
    traces = []

    def of(x, t, label, train):
        traces.append(t)
        return 0.0 * x

    made = model(of)
    first, second = bits(made, images(2, 0.1)), bits(made, images(2, 0.5))
    assert len(traces) == 1
    assert np.all(first < second)


def test_a_better_model_has_fewer_bits():
    batch = images(T, 0.5)
    found = [
        np.mean(bits(model(lambda x, *_, guess=guess: guess), batch))
        for guess in (0.0, 0.4, 0.45, 0.5)
    ]
    assert np.all(np.diff(found) < 0)


def test_bits_are_of_the_model_given_the_label_and_not_of_the_guided_one():
    def of(x, t, label, train):
        return column(LEVELS[label])

    batch = images(T, 0.2) | {"label": jnp.full(T, 1)}
    plain, guided = (bits(model(of, 2, sampling={"guidance": w}), batch) for w in (1.0, 3.0))
    np.testing.assert_array_equal(plain, guided)
    other = bits(model(of, 2), batch | {"label": jnp.zeros(T, jnp.int32)})
    assert np.mean(other) > np.mean(plain)


def test_metrics_and_reconstructions_do_not_depend_on_the_number_of_devices():
    made = model(with_memory, 3)
    rng = np.random.default_rng(0)
    batch = {
        "x": rng.uniform(-1, 1, (16, *SHAPE)).astype(np.float32),
        "label": rng.integers(0, 3, 16).astype(np.int32),
    }
    for of in (metrics, reconstructed):
        one, eight = (of(made, put(make_mesh(jax.devices()[:n]), batch)) for n in (1, 8))
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), one, eight
        )


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_network_that_knows_the_image_reconstructs_it(prediction):
    of = believing(prediction, lambda label: column(LEVELS[label]))
    label = jnp.array([1, 0, 0, 1, 1])
    batch = {"x": column(LEVELS[label]) + jnp.zeros((5, *SHAPE)), "label": label}
    found = reconstructed(model(of, 2, prediction=prediction), batch)
    assert found.keys() == {"t=2", "t=6", "t=10"}  # 0.1, 0.3 and 0.5 of T
    for given, image in found.values():
        assert given.shape == image.shape == (5, *SHAPE)
        np.testing.assert_allclose(image, batch["x"], atol=1e-4)
        assert np.abs(given - batch["x"]).max() > 0.01


def test_what_is_given_is_what_the_network_was_given_and_both_are_within_range():
    seen = []

    def of(x, t, label, train):
        seen.append((x, t))
        return 7.0 * jnp.sign(x)

    made = model(of, sampling={"clip": False})  # the estimates may leave [-1, 1], the images not
    batch = {"x": jax.random.uniform(jax.random.key(1), (4, *SHAPE), minval=-1.0)}
    found = made.reconstruct(VARIABLES, batch, jax.random.key(0))
    ((x, t),) = seen
    distances = []
    for time in (2, 6, 10):
        given, image = found[f"t={time}"]
        x_t = x[t == time]
        np.testing.assert_allclose(given, np.clip(x_t / PROCESS.alphas[time], -1, 1), rtol=1e-5)
        np.testing.assert_array_equal(image, np.sign(x_t))
        eps = (x_t - PROCESS.alphas[time] * batch["x"]) / PROCESS.sigmas[time]
        assert np.abs(eps).max() < 4
        assert 0.4 < np.std(eps) < 1.6
        distances.append(eps)
    assert np.abs(distances[0] - distances[1]).min() > 1e-4  # each level has noise of its own
    assert np.abs(distances[1] - distances[2]).min() > 1e-4


def test_levels_of_damage_are_shares_of_the_times():
    for total, names in ((1000, {"t=100", "t=300", "t=500"}), (1, {"t=0"})):
        found = reconstructed(
            model(lambda x, *_: 0.0, timesteps=total, sampling={"steps": 1}), images(2)
        )
        assert found.keys() == names


def test_settings_that_cannot_work_are_told_when_the_family_is_built():
    with pytest.raises(ValueError, match=r"guidance other than 1 needs diffusion.conditional"):
        model(with_memory, sampling={"guidance": 2.0})
    with pytest.raises(ValueError, match=r"sampling.guidance .* diffusion.label_dropout above 0"):
        model(with_memory, 3, label_dropout=0.0, sampling={"guidance": 2.0})
    model(with_memory, 3, label_dropout=0.0)
    with pytest.raises(ValueError, match=r"sampling.steps must lie in 1..20"):
        model(with_memory, sampling={"steps": 21})
    with pytest.raises(ValueError, match=r"diffusion.prediction is one of eps, x0, v"):
        model(with_memory, prediction="epsilon")
    with pytest.raises(ValueError, match=r"diffusion.weighting.name is one of"):
        model(with_memory, weighting={"name": "minsnr"})
    for name in ("flow", "discrete"):
        process = {"name": name} | ({"zero_terminal_snr": True} if name == "discrete" else {})
        sampling = {"steps": 0 if name == "discrete" else 5}
        for prediction in ("eps", "edm"):
            with pytest.raises(ValueError, match=r"says nothing of x_0 at the noisiest time"):
                model(with_memory, process=process, prediction=prediction, sampling=sampling)
        model(with_memory, process=process, prediction="v", sampling=sampling)
    with pytest.raises(ValueError, match=r"set both to 'learned', or neither"):
        model(with_memory, variance="learned")
    learned = {"variance": "learned", "sampling": {"variance": "learned"}}
    with pytest.raises(ValueError, match=r"'learned' needs diffusion.process.name='discrete'"):
        model(with_memory, process={"name": "vp"}, **learned)
    with pytest.raises(ValueError, match=r"diffusion.process.schedule is one of"):
        model(with_memory, process={"name": "discrete", "schedule": "cosin"})


def spec(shape=(8, 8, 1), classes=10, kind="image"):
    conditions = {"label": Field("label", (), classes)} if classes else {}
    return DataSpec({"x": Field(kind, shape)}, conditions, {})


def test_a_config_that_does_not_fit_its_data_is_told():
    conditional = ddpm_digits.get_config("conditional")
    with pytest.raises(ValueError, match=r"diffusion.conditional needs data with labels"):
        families.build(conditional, spec(classes=0))
    with pytest.raises(ValueError, match=r"'unet' takes data of kind image; .*name=mlp"):
        families.build(ddpm_digits.get_config(), spec((2,), 0, "points"))
    config = ddpm_digits.get_config()
    config.network.name = "unett"
    with pytest.raises(ValueError, match=r"network.name is one of unet, .*, not 'unett'"):
        families.build(config, spec())
    config = ddpm_digits.get_config()
    made = families.build(config, spec((9, 9, 1)))
    with pytest.raises(ValueError, match=r"images are 9x9, .* the nearest sizes that do: 8 and 10"):
        jax.eval_shape(made.init, jax.random.key(0))


@pytest.mark.parametrize("variant", ["", "conditional"])
def test_a_family_can_be_asked_for_labels_where_it_was_trained_with_them(variant):
    made = families.build(ddpm_digits.get_config(variant), spec())
    expected = {"label": Field("label", (), 10)} if variant else {}
    assert made.drawing.conditions == expected
    assert made.drawing.steps == 60
    params, extra = jax.eval_shape(made.init, jax.random.key(0))
    assert (list(params), extra, made.averaged) == (["net"], {}, ("net",))
    assert ("label" in params["net"]) == bool(variant)


def test_points_are_shown_where_they_lie():
    made = model(lambda x, *_: 4.0, shape=(2,), of_bytes=False, sampling={"clip": False})
    for _, estimate in reconstructed(made, {"x": jnp.full((3, 2), 3.0)}).values():
        np.testing.assert_allclose(estimate, 4.0, rtol=1e-6)


def test_a_test_example_keeps_its_own_noise_whatever_it_is_beside():
    made = model(with_memory, 3, pairing="optimal_transport")
    batch = {"x": jax.random.normal(jax.random.key(0), (8, *SHAPE)), "label": jnp.zeros(8, int)}
    level = PROCESS.level(jnp.full(8, 5.0))
    found = made.objective({"net": {}}, batch["x"], level, batch["label"], KEY)
    other = batch["x"].at[4:].set(0.0)
    again = made.objective({"net": {}}, other, level, batch["label"], KEY)
    np.testing.assert_array_equal(found[:4], again[:4])


@pytest.mark.parametrize("process", ["flow", "vp"])
@pytest.mark.parametrize(("low", "high"), [(0.0, 0.0), (0.3, 0.0), (0.3, 2.0)])
def test_guided_calls_are_counted_as_they_are_made_at_noise_alone_too(process, low, high):
    seen = []

    def of(x, t, label, train):
        jax.debug.callback(lambda _: seen.append(len(x)), x[:1])
        return 0.3

    settings = {"guidance": 2.0, "guidance_low": low, "guidance_high": high, "sampler": "euler"}
    given = {"process": {"name": process}, "prediction": "velocity"}
    made = model(of, 2, sampling=settings | {"steps": 4}, **given)
    sample(made, 1, {"label": jnp.zeros(1, jnp.int32)})
    jax.effects_barrier()
    assert sum(seen) == made.family().drawing.calls > 4


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"process": {"name": "flow"}, "prediction": "v"}, "noisiest holds something of x_0"),
        ({"timesteps": 1, "sampling": {"steps": 1}}, "a process of several times"),
        ({"times": {"name": "log_normal"}}, "times.name='uniform', not 'log_normal'"),
    ],
)
def test_the_likelihood_as_a_weight_is_refused_where_it_is_none(changes, words):
    with pytest.raises(ValueError, match=words):
        model(with_memory, weighting={"name": "likelihood"}, **changes)
