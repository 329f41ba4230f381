"""An autoregressive family of tokens fits the contract as it is: no field is there for it alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax.family import Drawing, Family, Field, Phase, Variables, View
from aigc_jax.sampling.driver import Driver, draw
from aigc_jax.training import sharding

LENGTH, VOCABULARY = 8, "abcde"
SIZE, WIDTH = len(VOCABULARY), 6


def init(key):
    embed, out = jax.random.split(key)
    params = {
        "embed": jax.random.normal(embed, (SIZE + 1, WIDTH)),  # the last row begins a text
        "out": jax.random.normal(out, (WIDTH, SIZE)),
    }
    return {"net": params}, {}


def memory(before, token_vector):
    """What the model remembers of a text: a fading sum of its tokens' vectors."""
    return 0.5 * before + token_vector


def log_p(params, x):
    """log p of each token of x int [B, LENGTH] given those before it, [B, LENGTH]."""
    begin = jnp.full((len(x), 1), SIZE)
    vectors = params["embed"][jnp.concatenate([begin, x[:, :-1]], axis=1)]
    h = jnp.zeros((len(x), WIDTH))
    found = []
    for i in range(LENGTH):
        h = memory(h, vectors[:, i])
        logits = jax.nn.log_softmax(h @ params["out"])
        found.append(jnp.take_along_axis(logits, x[:, i : i + 1], axis=1)[:, 0])
    return jnp.stack(found, axis=1)


def loss(view: View, batch, key):
    return -jnp.mean(log_p(view.params["net"], batch["x"])), ({}, view.extra)


def start(variables: Variables, keys, cond):
    n = len(keys)
    return {
        "keys": keys,
        "cache": jnp.zeros((n, WIDTH)),  # so that a step costs the same however long the text is
        "last": jnp.full((n,), SIZE),
        "x": jnp.zeros((n, LENGTH), jnp.int32),
    }


def step(variables: Variables, carry, cond, i):
    params = variables.params["net"]
    cache = memory(carry["cache"], params["embed"][carry["last"]])
    logits = cache @ params["out"]
    draws = jax.vmap(lambda key, row: jax.random.categorical(jax.random.fold_in(key, i), row))
    last = draws(carry["keys"], logits)
    x = carry["x"].at[:, i].set(last)
    return {**carry, "cache": cache, "last": last, "x": x}, x


FAMILY = Family(
    init,
    (Phase("net", loss),),
    evaluate=lambda variables, batch, key: {
        "nats": -log_p(variables.params["net"], batch["x"]).sum(1)
    },
    averaged=("net",),
    drawing=Drawing(
        start, lambda variables, carry: carry["x"], step, LENGTH, {"prompt": Field("tokens", (3,))}
    ),
)


def as_text(x):
    return ["".join(VOCABULARY[token] for token in row) for row in x]


@pytest.fixture(scope="module")
def drawn():
    mesh = sharding.make_mesh(jax.devices()[:1])
    variables = Variables(*init(jax.random.key(0)))
    driver = Driver(FAMILY.drawing, "cpu")
    x = np.concatenate(list(draw(driver, variables, mesh, seed=0, count=2000, batch_size=500)))
    return variables, driver, mesh, x


def test_texts_are_drawn_step_by_step_and_shown_as_text(drawn):
    variables, driver, mesh, x = drawn
    texts = as_text(x)
    assert len(texts) == 2000
    assert all(len(text) == LENGTH and set(text) <= set(VOCABULARY) for text in texts)
    (frames,) = draw(driver, variables, mesh, seed=0, count=2, batch_size=2, frames=LENGTH)
    for i, frame in enumerate(frames):  # a preview after each token: what a page would stream
        assert as_text(frame[:, : i + 1]) == [text[: i + 1] for text in texts[:2]]


def test_the_cached_steps_draw_from_the_model_that_the_loss_trains(drawn):
    variables, _, _, x = drawn
    pairs = np.stack(np.meshgrid(range(SIZE), range(SIZE), indexing="ij"), -1).reshape(-1, 2)
    padded = np.pad(pairs, ((0, 0), (0, LENGTH - 2)))
    exact = np.exp(np.asarray(log_p(variables.params["net"], jnp.asarray(padded)))[:, :2].sum(1))
    assert exact.sum() == pytest.approx(1.0, rel=1e-5)
    share = np.bincount(SIZE * x[:, 0] + x[:, 1], minlength=len(pairs)) / len(x)
    deviation = np.sqrt(exact * (1 - exact) / len(x))
    assert np.all(np.abs(share - exact) < 4.5 * deviation)
    uniform = np.full(len(pairs), 1 / len(pairs))
    assert np.abs(share - uniform).max() > 10 * deviation.max()  # the check could fail


def test_a_loss_trains_on_tokens():
    x = jnp.tile(jnp.arange(LENGTH) % SIZE, (16, 1))
    params, extra = init(jax.random.key(1))

    @jax.jit
    def update(params):
        def value(params):
            view = View(params, params, extra, {}, jnp.int32(0))
            return loss(view, {"x": x}, jax.random.key(0))[0]

        found, grads = jax.value_and_grad(value)(params)
        return found, jax.tree.map(lambda p, g: p - 0.3 * g, params, grads)

    values = []
    for _ in range(60):
        value, params = update(params)
        values.append(float(value))
    assert values[-1] < 0.3 * values[0]
