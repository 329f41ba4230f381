"""The players' losses and the critic's penalties against closed forms, torch and the Dirac-GAN."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax.gan import losses

LOG2 = math.log(2)
NAMES = list(losses.LOSSES)
KEY = jax.random.key(0)
SHAPE = (5, 4, 4, 1)  # of a batch of images
rng = np.random.default_rng(0)
REAL, FAKE = rng.normal(size=(2, *SHAPE)).astype(np.float32)
W = rng.normal(size=SHAPE[1:]).astype(np.float32)


def linear(w):
    return lambda x: jnp.sum(x * w[None], axis=(1, 2, 3)) + 0.7


def curved(x):
    """A critic whose slope depends on where it is: |grad|^2 = 4 |x|^2."""
    return jnp.sum(x**2, axis=(1, 2, 3))


def penalised(penalty, critic, real=REAL, fake=FAKE):
    """weights of a critic -> (its penalty [B], the slope of the penalty's mean), compiled."""

    def mean(weights):
        found = penalty(critic(weights), real, fake, KEY)
        return jnp.mean(found), found

    run = jax.jit(jax.value_and_grad(mean, has_aux=True))

    def call(weights):
        (_, found), slope = run(weights)
        return found, slope

    return call


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize(
    ("name", "discriminator", "generator"),
    [
        ("minimax", 2 * LOG2, -LOG2),
        ("non_saturating", 2 * LOG2, LOG2),
        ("least_squares", 0.5, 0.5),
        ("hinge", 2.0, 0.0),
        ("wasserstein", 0.0, 0.0),
        ("relativistic", LOG2, LOG2),
    ],
)
def test_a_critic_that_knows_nothing_costs_what_the_papers_say(name, discriminator, generator):
    loss = losses.build(name)
    zero = jnp.zeros(3)
    np.testing.assert_allclose(loss.discriminator(zero, zero), [discriminator] * 3, rtol=1e-6)
    np.testing.assert_allclose(loss.generator(zero, zero), [generator] * 3, rtol=1e-6)


# (D(x), D(G(z)), sigmoid) -> what each player minimises, with probabilities as in the papers.
FORMULAS = {
    "minimax": lambda r, f, s: (-s(r).log() - (1 - s(f)).log(), (1 - s(f)).log()),
    "non_saturating": lambda r, f, s: (-s(r).log() - (1 - s(f)).log(), -s(f).log()),
    "least_squares": lambda r, f, s: (((r - 1) ** 2 + f**2) / 2, (f - 1) ** 2 / 2),
    "hinge": lambda r, f, s: ((1 - r).clip(min=0) + (1 + f).clip(min=0), -f),
    "wasserstein": lambda r, f, s: (f - r, -f),
    "relativistic": lambda r, f, s: (-s(r - f).log(), -s(f - r).log()),
}


@pytest.mark.parametrize("name", NAMES)
def test_a_loss_is_its_formula_and_its_slope(name):
    torch = pytest.importorskip("torch")
    for at in ((2.0, 0.5), (0.3, -3.0)):  # within and beyond the margins of a hinge
        r, f = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in at)
        expected = FORMULAS[name](r, f, torch.sigmoid)
        for player, value in zip(losses.build(name)[:2], expected, strict=True):
            slopes = torch.autograd.grad(value, (r, f), retain_graph=True, allow_unused=True)
            slopes = [0.0 if slope is None else slope.item() for slope in slopes]
            found, mine = jax.value_and_grad(
                lambda r, f, player=player: player(r.reshape(1), f.reshape(1))[0], argnums=(0, 1)
            )(*map(jnp.float32, at))
            np.testing.assert_allclose(found, value.item(), rtol=1e-5)
            np.testing.assert_allclose(mine, slopes, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", NAMES)
def test_a_patch_map_is_the_mean_of_its_patches(name):
    loss = losses.build(name)
    real, fake = rng.normal(size=(2, 4, 3, 2)).astype(np.float32) * 2
    for player in (loss.discriminator, loss.generator):
        patches = np.stack([player(real[:, i, j], fake[:, i, j]) for i in range(3) for j in (0, 1)])
        found = player(jnp.array(real), jnp.array(fake))
        assert found.shape == (4,)
        np.testing.assert_allclose(found, patches.mean(axis=0), rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(found, player(real[..., None], fake[..., None]))


@pytest.mark.parametrize("name", NAMES)
def test_no_logit_is_too_large(name):
    logits = jnp.array([-1e4, -100.0, 0.0, 100.0, 1e4])
    real, fake = (m.reshape(-1) for m in jnp.meshgrid(logits, logits))
    for player in losses.build(name)[:2]:
        values, slopes = jax.value_and_grad(
            lambda r, f, player=player: jnp.sum(player(r, f)), argnums=(0, 1)
        )(real, fake)
        assert np.isfinite(values)
        assert all(np.isfinite(slope).all() for slope in slopes)


@pytest.mark.parametrize("name", NAMES)
def test_only_differences_count_for_a_relativistic_or_wasserstein_critic(name):
    loss = losses.build(name)
    real, fake = rng.normal(size=(2, 6)).astype(np.float32)

    def moves(player):
        return float(np.abs(player(real + 0.5, fake + 0.5) - player(real, fake)).max())

    assert (moves(loss.discriminator) < 1e-5) == (name in ("relativistic", "wasserstein"))
    assert (moves(loss.generator) < 1e-5) == (name == "relativistic")
    ignores_real = np.array_equal(loss.generator(real, fake), loss.generator(real * 2, fake))
    assert ignores_real == (name != "relativistic") == (not loss.relativistic)


def test_the_best_critic_measures_a_divergence(float64):
    p, q = rng.dirichlet(np.ones(6), size=2)
    middle = (p + q) / 2
    jsd = 0.5 * np.sum(p * np.log(p / middle)) + 0.5 * np.sum(q * np.log(q / middle))

    def expected(name, d):  # over data p and generated q, by their own halves of the loss
        loss, beside = losses.build(name).discriminator, jnp.zeros(6)
        known = loss(beside, beside)[0]  # what both halves are at 0, to be taken off once
        return jnp.sum(p * loss(d, beside)) + jnp.sum(q * loss(beside, d)) - known

    for name, best, value in (
        ("non_saturating", np.log(p / q), 2 * LOG2 - 2 * jsd),
        ("minimax", np.log(p / q), 2 * LOG2 - 2 * jsd),
        ("least_squares", p / (p + q), 0.5 * np.sum(p * q / (p + q))),
        ("hinge", np.sign(p - q), 2 * np.minimum(p, q).sum()),  # 2 - 2 total variation
    ):
        np.testing.assert_allclose(expected(name, best), value, rtol=1e-9)
        for other in (best + 0.01, best - 0.01, 0.99 * best):
            assert expected(name, other) > value - 1e-12
        if name != "hinge":  # which has corners there
            slope = jax.grad(expected, argnums=1)(name, jnp.array(best))
            np.testing.assert_allclose(slope, 0, atol=1e-9)


def test_a_loss_that_is_not_there_is_named():
    with pytest.raises(ValueError, match=r"gan\.loss is one of minimax, .*, not 'lsgan'"):
        losses.build("lsgan")
    with pytest.raises(ValueError, match=r"cyclegan\.loss is one of .*; did you mean 'hinge'"):
        losses.build("hing", "cyclegan.loss")


def test_penalties_of_a_linear_critic_are_known():
    norm = float(np.linalg.norm(W))
    for name, value in (
        ("gradient_penalty", (norm - 1) ** 2),
        ("dragan", (norm - 1) ** 2),
        ("r1", norm**2),
        ("r2", norm**2),
    ):
        found, slope = penalised(losses.PENALTIES[name], linear)(W)
        assert found.shape == (5,)
        np.testing.assert_allclose(found, value, rtol=1e-5)
        expected = 2 * W if name in ("r1", "r2") else 2 * (norm - 1) * W / norm
        np.testing.assert_allclose(slope, expected, rtol=1e-4)
    assert set(losses.PENALTIES) == {"gradient_penalty", "dragan", "r1", "r2"}


@pytest.mark.parametrize("name", losses.PENALTIES)
def test_a_flat_critic_has_a_finite_penalty_and_slope(name):
    found, slope = penalised(losses.PENALTIES[name], linear)(jnp.zeros_like(W))
    np.testing.assert_allclose(found, 0.0 if name in ("r1", "r2") else 1.0, atol=1e-4)
    assert np.isfinite(slope).all()


def test_each_penalty_looks_at_its_own_images():
    squared = {"real": 4 * (REAL**2).sum((1, 2, 3)), "fake": 4 * (FAKE**2).sum((1, 2, 3))}
    np.testing.assert_allclose(losses.r1(curved, REAL), squared["real"], rtol=1e-5)
    np.testing.assert_allclose(losses.r2(curved, FAKE), squared["fake"], rtol=1e-5)
    for name, expected in (("r1", squared["real"]), ("r2", squared["fake"])):
        found = losses.PENALTIES[name](curved, REAL, FAKE, KEY)
        np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_wgan_gps_point_is_uniform_on_each_line():
    real, fake = jnp.full((4000, 4, 4, 1), 3.0), jnp.full((4000, 4, 4, 1), 5.0)
    # All 16 pixels go together, so |grad| = 8 times the point, which the penalty gives away.
    point = (1 + np.sqrt(losses.gradient_penalty(curved, real, fake, KEY))) / 8
    assert 3 - 1e-3 < point.min() < 3.01
    assert 4.99 < point.max() < 5 + 1e-3
    np.testing.assert_allclose(point.mean(), 4.0, atol=0.04)
    np.testing.assert_allclose(point.std(), 2 / math.sqrt(12), atol=0.02)


def test_dragans_noise_is_half_the_spread_of_the_data():
    real = 10 + 2 * jax.random.normal(jax.random.key(1), (20000, 1, 1, 1))
    centre = (1 + np.sqrt(losses.dragan(curved, real, KEY))) / 2  # |grad| = 2x > 1
    noise = centre - np.asarray(real)[:, 0, 0, 0]
    np.testing.assert_allclose(noise.mean(), 0.0, atol=0.03)
    np.testing.assert_allclose(noise.std(), 1.0, atol=0.03)


def test_a_penalty_of_a_map_is_that_of_its_sum():
    def patches(x):
        return jnp.stack([linear(W)(x), linear(2 * W)(x)], axis=1).reshape(-1, 1, 2, 1)

    np.testing.assert_allclose(losses.r1(patches, REAL), 9 * (W**2).sum(), rtol=1e-5)


@pytest.mark.parametrize("name", ["gradient_penalty", "r1", "r2"])  # dragan's noise knows them all
def test_an_examples_penalty_is_its_own(name):
    penalty = losses.PENALTIES[name]
    whole = penalty(curved, REAL, FAKE, KEY)
    first = (np.arange(5) == 0)[:, None, None, None]
    changed = penalty(curved, np.where(first, 2 * REAL, REAL), np.where(first, FAKE + 1, FAKE), KEY)
    assert whole[0] != changed[0]
    np.testing.assert_array_equal(whole[1:], changed[1:])


def test_penalties_are_torchs_on_an_mlp(float64):
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    mlp = torch.nn.Sequential(
        torch.nn.Linear(16, 8), torch.nn.Softplus(), torch.nn.Linear(8, 1)
    ).double()
    (w1, b1, w2, b2) = (p.detach().numpy() for p in mlp.parameters())
    real, fake = REAL.astype(np.float64), FAKE.astype(np.float64)
    t = np.asarray(jax.random.uniform(KEY, (5, 1, 1, 1), np.float64))
    noise = np.asarray(jax.random.normal(KEY, SHAPE, np.float64))
    points = {
        "r1": real,
        "r2": fake,
        "gradient_penalty": t * real + (1 - t) * fake,
        "dragan": real + 0.5 * real.std() * noise,
    }

    def critic(params):
        w1, b1, w2, b2 = params

        def logit(x):
            hidden = jax.nn.softplus(jnp.matmul(x.reshape(5, 16), w1.T) + b1[None])
            return jnp.matmul(hidden, w2.T) + b2[None]

        return logit

    for name, point in points.items():
        x = torch.tensor(point.reshape(5, 16), requires_grad=True)
        (slope,) = torch.autograd.grad(mlp(x).sum(), x, create_graph=True)
        norm = slope.norm(dim=1)
        theirs = norm**2 if name in ("r1", "r2") else (norm - 1) ** 2
        expected = torch.autograd.grad(theirs.mean(), list(mlp.parameters())[:3])
        run = penalised(losses.PENALTIES[name], critic, real, fake)
        values, found = run([jnp.array(p) for p in (w1, b1, w2, b2)])
        np.testing.assert_allclose(values, theirs.detach(), rtol=1e-8)
        for mine, torchs in zip(found[:3], expected, strict=True):
            np.testing.assert_allclose(mine, torchs, rtol=1e-6, atol=1e-10)


def dirac(name, gamma, start, *, alternating):
    """How far D(x) = psi x, data at 0 and G = theta are from their equilibrium, 2000 SGD steps."""
    loss, rate = losses.build(name), 0.1
    real = jnp.zeros((1, 1))

    def logit(psi):
        return lambda x: psi * x[:, 0]

    def cost_d(psi, theta):
        value = loss.discriminator(logit(psi)(real), logit(psi)(theta.reshape(1, 1)))
        return jnp.mean(value + 0.5 * gamma * losses.r1(logit(psi), real))

    def cost_g(theta, psi):
        return jnp.mean(loss.generator(logit(psi)(real), logit(psi)(theta.reshape(1, 1))))

    def step(state, _):
        psi, theta = state
        new = psi - rate * jax.grad(cost_d)(psi, theta)
        theta = theta - rate * jax.grad(cost_g)(theta, new if alternating else psi)
        return (new, theta), jnp.hypot(new, theta)

    state = jnp.float32(start), jnp.float32(0.0)
    return np.asarray(jax.jit(lambda s: jax.lax.scan(step, s, None, length=2000)[1])(state))


@pytest.mark.parametrize("name", ["minimax", "non_saturating", "relativistic"])
def test_r1_makes_the_dirac_gan_converge(name):
    # Mescheder et al. 2018, sec. 2 to 4. Near the equilibrium the players circle it without R1;
    # further off the two that do not saturate come nearer by themselves, ever more slowly.
    assert dirac(name, 0.0, 0.05, alternating=False)[-500:].min() > 0.15
    in_turn = dirac(name, 0.0, 0.05, alternating=True)
    np.testing.assert_allclose([in_turn.min(), in_turn.max()], 0.05, rtol=0.1)
    for alternating in (False, True):
        assert dirac(name, 1.0, 1.0, alternating=alternating)[-1] < 1e-5


def test_class_loss_is_torchs_cross_entropy():
    torch = pytest.importorskip("torch")
    logits = rng.normal(size=(6, 4)).astype(np.float32) * 5
    label = np.array([0, 1, 2, 3, 3, 0])
    found = losses.class_loss(jnp.array(logits), jnp.array(label))
    expected = torch.nn.functional.cross_entropy(
        torch.tensor(logits), torch.tensor(label), reduction="none"
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    nothing = losses.class_loss(jnp.full((2, 4), 3.0), jnp.array([0, 3]))
    np.testing.assert_allclose(nothing, math.log(4), rtol=1e-6)
    large = losses.class_loss(jnp.array([[1e4, -1e4]] * 2), jnp.array([0, 1]))
    np.testing.assert_allclose(large, [0.0, 2e4])
    assert np.isnan(losses.class_loss(jnp.zeros((1, 4)), jnp.array([4])))[0]


def test_a_cycle_costs_its_mean_distance():
    x = jnp.zeros((2, 3, 3, 2))
    back = x.at[0].set(-0.5).at[1, 0, 0, 0].set(1.8)
    np.testing.assert_allclose(losses.l1(x, back), [0.5, 0.1], rtol=1e-6)
    np.testing.assert_array_equal(losses.l1(back, back), [0.0, 0.0])
