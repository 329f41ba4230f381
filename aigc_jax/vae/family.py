"""Variational autoencoders as a family: one player, one phase (Kingma & Welling 2014)."""

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax.family import Family, Phase
from aigc_jax.networks import autoencoder
from aigc_jax.networks.ladder import Ladder
from aigc_jax.vae import hierarchical, objectives, perceptual, vector
from aigc_jax.vae import likelihood as likelihoods
from aigc_jax.vae.adversary import Opponent, balance, patch
from aigc_jax.vae.pictures import of_codes
from aigc_jax.vae.posterior import diagnose, fit_mixture

NETWORKS = {
    "mlp": autoencoder.MLP,
    "conv": autoencoder.Conv,
    "residual": autoencoder.Residual,
    "ladder": Ladder,
}
PLAIN = {"beta": 1.0, "free_bits": 0.0, "free_bits_per": "dimension"}  # the bound itself
# (images, reconstructions [B, H, W, C]) -> what they cost beside the bound, nats [B].
Term = Callable[[jax.Array, jax.Array], jax.Array]
BINARISE = {
    "none": lambda key, x: x,
    "threshold": lambda key, x: jnp.where(x > 0, 1.0, -1.0),
    "dynamic": lambda key, x: jnp.where(jax.random.bernoulli(key, (x + 1) / 2), 1.0, -1.0),
}


def build(config: Mapping[str, Any], spec: Any) -> Family:
    """The VAE of an experiment.

    Args:
      config: reads `network` (name and keyword arguments), `vae` and `sampling`.
      spec: the data's `DataSpec`.
    """
    settings = dict(config["vae"])
    conditional = settings.pop("conditional")
    if conditional and not spec.num_classes:
        raise ValueError("vae.conditional needs data with labels; this data set has none")
    own = {"gaussian": "sigma", "laplace": "scale", "logistic_mixture": "components"}
    given = {key: settings.pop(key) for key in own.values()}
    name = settings.pop("likelihood")
    given = {key: given[key] for key in [own.get(name)] if key}
    height, width, channels = spec.image_shape
    likelihood = likelihoods.build(name, channels, **given)
    if height * width == 1 and name in likelihoods.BOUNDED:
        raise ValueError(
            f"vae.likelihood={name} needs data in [0, 1], as images are; points of the plane lie "
            "anywhere: take gaussian"
        )
    arguments = dict(config["network"])
    network_name = arguments.pop("name")
    if network_name not in NETWORKS:
        raise ValueError(f"network.name is one of {', '.join(NETWORKS)}, not {network_name!r}")
    if arguments["latent"] < 1:
        raise ValueError(f"network.latent is at least 1, not {arguments['latent']}")
    codes, hierarchy = settings.pop("codes"), network_name == "ladder"
    codebook = {k: settings.pop(k) for k in ("commitment", "restart")}
    codebook["decay"] = settings.pop("code_decay")
    features = {key: settings.pop(f"feature_{key}") for key in ("network", "weights", "weight")}
    plain = {"binarise": "none", "noise": "none", "importance": 1} if codes or hierarchy else {}
    against = {key: settings.pop(f"adversary_{key}") for key in ("weight", "start")}
    plain |= {"feature_network": "", "adversary_weight": 0.0} if codes or hierarchy else {}
    plain |= {"conditional": False, "codes": 0} if hierarchy else {}
    plain |= {"kl": "constant", "beta": 1.0, "free_bits": 0.0} if codes else {}
    for key, value in plain.items():
        if config["vae"][key] != value:
            what = "a ladder" if hierarchy else "a codebook"
            raise ValueError(f"with {what} vae.{key} is {value!r}, not {config['vae'][key]!r}")
    if not hierarchy:
        arguments["num_classes"] = spec.num_classes if conditional else 0
    network = NETWORKS[network_name](
        image_shape=spec.image_shape, out_channels=likelihood.channels, **arguments
    )
    if codes:
        return vector.vq(
            network, spec.image_shape, likelihood, codes=codes, **codebook, **config["sampling"]
        )
    cost = {k: settings.pop(k) for k in ("beta", "free_bits", "free_bits_per")}
    kind, steps = settings.pop("kl"), settings.pop("kl_steps")
    limits = {"gamma": settings.pop("gamma"), "nats": settings.pop("capacity")}
    if kind == "capacity":
        cost = limits
    if kind != "constant":
        cost["steps"] = steps
    if config["vae"]["importance"] > 1 and cost != PLAIN:
        raise ValueError("vae.importance above 1 weighs no KL: leave kl, beta and free_bits alone")
    terms = {}
    if features["network"]:
        terms["features"] = perceptual.term(spec.image_shape, **features)
    cost = objectives.kl_cost(kind, **cost)
    if hierarchy:
        return hierarchical.ladder(
            network, spec.image_shape, likelihood, cost, **config["sampling"]
        )
    return vae(
        network,
        spec.image_shape,
        likelihood,
        cost,
        terms=terms,
        opponent=patch(spec.image_shape, **against) if against["weight"] else None,
        sampling=config["sampling"],
        **settings,
    )


def vae(
    network: Any,
    image_shape: tuple[int, int, int],
    likelihood: likelihoods.Likelihood,
    cost: objectives.Cost,
    *,
    importance: int,
    binarise: str,
    noise: str,
    noise_level: float,
    noise_clip: bool,
    test_samples: int,
    chunk: int,
    sampling: Mapping[str, Any],
    terms: Mapping[str, Term] = MappingProxyType({}),
    opponent: Opponent | None = None,
) -> Family:
    """A VAE with one group of latents, N(0, I) a priori.

    Args:
      network: module with `encode(x, label) -> (mean, logvar)` and `decode(z, label) -> outputs`.
      image_shape: (H, W, C).
      likelihood: what `outputs` say of an image.
      cost: (kl [B, ...], step) -> what the KL costs in training, [B].
      importance: samples of z in training; above 1 the loss is the IWAE bound (Burda et al. 2015)
        and `cost` is not asked.
      binarise: of the data: "none", "threshold" (at half), or "dynamic" (drawn anew each time).
      noise, noise_level, noise_clip: what the encoder is given instead of the image (Im et al.
        2017, arXiv:1511.06406): "none"; "gaussian" with deviation `noise_level` in units of the
        range 0..1; "salt_pepper", that share of pixels black or white. `noise_clip` cuts what
        leaves the range.
      test_samples, chunk: importance samples of `Family.likelihood`, and how many at a time.
      sampling: `prior`: "normal", or "mixture" of `components` Gaussians fitted to the posterior
        means of the training images (Ghosh et al. 2020, arXiv:1903.12436); `temperature` of z.
      terms: {name: term} of the training loss beside the bound, reported by their names.
      opponent: a second player who judges reconstructions.
    """
    if binarise not in BINARISE:
        raise ValueError(f"vae.binarise is one of {', '.join(BINARISE)}, not {binarise!r}")
    if importance < 1:
        raise ValueError(f"vae.importance is at least 1, not {importance}")
    if importance > 1 and (terms or opponent):
        raise ValueError("vae.importance above 1 takes no terms beside the bound (vae.feature_*)")
    if importance > 1 and likelihood.name == "gaussian_optimal":
        raise ValueError("vae.importance above 1 needs a likelihood: gaussian_optimal is none")
    damage = corruption(noise, noise_level, noise_clip)
    num_classes = network.num_classes
    dims = int(np.prod(image_shape))
    # Of grey pixels the Bernoulli is no likelihood: its bits per pixel would mean nothing.
    cross_entropy = likelihood.name == "bernoulli" and binarise == "none"

    def init(key: jax.Array) -> tuple[dict, dict]:
        params = dict(network.init(key, jnp.zeros((1, *image_shape)))["params"])
        scalars = {name: jnp.float32(value) for name, value in likelihood.parameters.items()}
        players = {"net": {"network": params, **scalars}}
        if opponent:
            players[opponent.player] = opponent.init(jax.random.fold_in(key, 1))
        return players, {"step": jnp.zeros((), jnp.int32)}

    def apply(params: Any, method: Callable, *args: Any) -> Any:
        return network.apply({"params": params["net"]["network"]}, *args, method=method)

    def encode(params: Any, x: jax.Array, label: Any) -> tuple[jax.Array, jax.Array]:
        mean, logvar = apply(params, network.encode, x, label)
        return mean, objectives.clip_logvar(logvar)

    def decode(params: Any, z: jax.Array, label: Any) -> jax.Array:
        return apply(params, network.decode, z, label)

    def label_of(batch: Any) -> Any:
        return batch["label"] if num_classes else None

    def log_px(params: Any, outputs: jax.Array, x: jax.Array) -> jax.Array:
        scalars = {name: params["net"][name] for name in likelihood.parameters}
        return likelihood.log_prob(outputs, x, **scalars)

    def log_weight(params: Any, x: jax.Array, q: Any, label: Any, key: jax.Array) -> jax.Array:
        """log p(x, z) / q(z|x) [B] of one z from q = (mean, logvar)."""
        mean, logvar = q
        z = draw_z(mean, logvar, key)
        log_q = objectives.gaussian_log_prob(z, mean, logvar)
        log_p = objectives.gaussian_log_prob(z, 0.0, 0.0)
        return log_px(params, decode(params, z, label), x) + objectives.per_example(log_p - log_q)

    def there_and_back(params: Any, batch: Any, key: jax.Array) -> tuple:
        """x as binarised, what the decoder says of it from one z, and the KL [B, ...]."""
        data_key, noise_key, z_key = jax.random.split(key, 3)
        x, label = BINARISE[binarise](data_key, batch["image"]), label_of(batch)
        mean, logvar = encode(params, damage(noise_key, x), label)
        outputs = decode(params, draw_z(mean, logvar, z_key), label)
        return x, outputs, objectives.kl_standard_normal(mean, logvar)

    def loss(params: Any, extra: Any, batch: Any, key: jax.Array) -> tuple:
        x, outputs, kl = there_and_back(params, batch, key)
        log_p = log_px(params, outputs, x)
        paid = {name: term(x, likelihood.mean(outputs)) for name, term in terms.items()}
        if opponent:
            paid[opponent.player] = opposed(params, extra["step"], x, outputs)
        value = cost(kl, extra["step"]) - log_p + sum(paid.values())
        metrics = {"neg_elbo": -objectives.elbo(log_p, kl), "kl": objectives.per_example(kl)}
        means = {name: jnp.mean(each) for name, each in (metrics | paid).items()}
        return jnp.mean(value), (means, {**extra, "step": extra["step"] + 1})

    def opposed(params: Any, step: jax.Array, x: jax.Array, outputs: jax.Array) -> jax.Array:
        """What the opponent makes the autoencoder pay, [B], balanced with what x costs it."""

        def distortion(outputs: jax.Array) -> jax.Array:
            paid = [term(x, likelihood.mean(outputs)) for term in terms.values()]
            return sum(paid) - log_px(params, outputs, x)

        def term(outputs: jax.Array) -> jax.Array:
            return opponent.term(params[opponent.player], likelihood.mean(outputs))

        weight = opponent.weight * (step >= opponent.start)
        return weight * balance(distortion, term, outputs) * term(outputs)

    def opponent_loss(params: Any, extra: Any, batch: Any, key: jax.Array) -> tuple:
        x, outputs, _ = there_and_back(params, batch, key)
        value = opponent.loss(params[opponent.player], x, likelihood.mean(outputs))
        # The first phase has counted the step already.
        return jnp.mean(value) * (extra["step"] > opponent.start), ({}, extra)

    def importance_loss(params: Any, extra: Any, batch: Any, key: jax.Array) -> tuple:
        data_key, noise_key, z_key = jax.random.split(key, 3)
        x, label = BINARISE[binarise](data_key, batch["image"]), label_of(batch)
        q = encode(params, damage(noise_key, x), label)
        keys = jax.random.split(z_key, importance)
        log_w = jax.vmap(lambda k: log_weight(params, x, q, label, k))(keys)
        value = -jnp.mean(objectives.iwae(log_w))
        return value, ({"neg_elbo": -jnp.mean(log_w)}, {**extra, "step": extra["step"] + 1})

    def evaluate(params: Any, extra: Any, batch: Any, key: jax.Array) -> dict[str, jax.Array]:
        """{"neg_elbo", "kl", "distortion": [B]} in nats, from one z, and bits/dim of the first."""
        x, outputs, kl = there_and_back(params, batch, key)
        log_p = log_px(params, outputs, x)
        elbo = objectives.elbo(log_p, kl)
        found = {"neg_elbo": -elbo, "kl": objectives.per_example(kl), "distortion": -log_p}
        if not cross_entropy:
            found["bits_per_dim"] = objectives.bits_per_dim(elbo, dims, likelihood.bins)
        return found

    @jax.jit
    def log_weights(params: Any, batch: Any, data_key: jax.Array, keys: jax.Array) -> jax.Array:
        x, label = BINARISE[binarise](data_key, batch["image"]), label_of(batch)
        q = encode(params, x, label)
        return jax.vmap(lambda k: log_weight(params, x, q, label, k))(keys)

    def importance_bound(
        params: Any, extra: Any, batch: Any, key: jax.Array
    ) -> dict[str, jax.Array]:
        """{"neg_log_p_iwK": [B]}, nats: the estimate of -log p(x) by K = `test_samples` of z.

        The encoder sees the image itself, also where it was trained on noisy ones.
        """
        data_key, key = jax.random.split(key)
        value = objectives.importance_log_likelihood(
            lambda keys: log_weights(params, batch, data_key, keys), key, test_samples, chunk
        )
        return {f"neg_log_p_iw{test_samples}": -value}

    def fixed(x: jax.Array) -> jax.Array:
        """Images as the model knows them, as far as that takes no chance."""
        return BINARISE["threshold"](None, x) if binarise == "threshold" else x

    def reconstruct(params: Any, x: jax.Array, label: Any) -> jax.Array:
        return likelihood.mean(decode(params, encode(params, x, label)[0], label))

    def restore(params: Any, extra: Any, batch: Any, key: jax.Array) -> dict[str, tuple]:
        """What the decoder makes of the mean code: of the image, and of it with noise."""
        x, label = fixed(batch["image"]), label_of(batch)
        pairs = {"reconstruction": (x, reconstruct(params, x, label))}
        if noise != "none":
            given = damage(key, x)
            pairs[f"{noise}={noise_level}"] = (
                jnp.clip(given, -1.0, 1.0),
                reconstruct(params, given, label),
            )
        return pairs

    def codes(params: Any, extra: Any, batch: Any) -> dict[str, jax.Array]:
        mean, logvar = encode(params, fixed(batch["image"]), label_of(batch))
        return {"mean": mean, "logvar": logvar}

    shape = jax.eval_shape(
        lambda key, x: network.init_with_output(key, x, method=network.encode)[0][0],
        jax.random.key(0),
        jax.ShapeDtypeStruct((1, *image_shape), jnp.float32),
    ).shape[1:]
    temperature, prior = sampling["temperature"], sampling["prior"]
    if prior not in ("normal", "mixture"):
        raise ValueError(f"sampling.prior is normal or mixture, not {prior!r}")

    def draw_prior(extra: Any, key: jax.Array) -> jax.Array:
        """A code from the prior, or from the mixture that was fitted: [*shape]."""
        if "mixture" not in extra:
            return temperature * jax.random.normal(key, shape)
        mixture = extra["mixture"]
        component_key, key = jax.random.split(key)
        i = jax.random.categorical(component_key, mixture["log_weights"])
        eps = temperature * jax.random.normal(key, mixture["means"].shape[1:])
        z = mixture["means"][i] + jnp.matmul(mixture["factors"][i], eps, precision="highest")
        return z.reshape(shape)

    @jax.jit
    def sample(params: Any, extra: Any, keys: jax.Array, cond: Mapping[str, Any]) -> jax.Array:
        z = jax.vmap(lambda key: draw_prior(extra, key))(keys)
        return likelihood.mean(decode(params, z, cond.get("label") if num_classes else None))

    def decode_images(params: Any, extra: Any, z: jax.Array, label: Any) -> jax.Array:
        return likelihood.mean(decode(params, z, label))

    def trajectory(
        params: Any, extra: Any, keys: jax.Array, cond: Mapping[str, Any], frames: int
    ) -> jax.Array:
        """From one sample to another, in a straight line between their codes."""
        label = cond.get("label") if num_classes else None
        begin = jax.vmap(lambda key: draw_prior(extra, key))(keys)
        end = jax.vmap(lambda key: draw_prior(extra, jax.random.fold_in(key, 1)))(keys)
        shares = jnp.linspace(0.0, 1.0, frames)
        images = [likelihood.mean(decode(params, begin + s * (end - begin), label)) for s in shares]
        return jnp.stack(images)

    @jax.jit
    def pictures(params: Any, extra: Any, keys: jax.Array, cond: Mapping[str, Any]) -> dict:
        """See `pictures.of_codes`; a conditional model's are all of the first key's label."""

        def decoded(z: jax.Array) -> jax.Array:
            label = jnp.full((len(z),), cond["label"][0]) if num_classes else None
            return likelihood.mean(decode(params, z, label))

        return of_codes(decoded, jax.vmap(lambda key: draw_prior(extra, key))(keys))

    phases = (Phase("net", loss if importance == 1 else importance_loss),)
    if opponent:
        phases += (Phase(opponent.player, opponent_loss),)
    return Family(
        init,
        phases,
        sample,
        evaluate,
        averaged=("net",),
        num_classes=num_classes,
        trajectory=trajectory,
        restore=restore,
        # The optimal sigma is of a batch, so it makes no weight of an image.
        likelihood=None if likelihood.name == "gaussian_optimal" else importance_bound,
        codes=codes,
        decode=decode_images,
        diagnose=diagnose,
        pictures=pictures,
        prior=partial(fit_mixture, components=sampling["components"])
        if prior == "mixture"
        else None,
    )


def corruption(kind: str, level: float, clip: bool) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """(key, images in [-1, 1]) -> the same with noise; see `vae`."""

    def gaussian(key: jax.Array, x: jax.Array) -> jax.Array:
        noisy = x + 2 * level * jax.random.normal(key, x.shape)  # the range is 2 wide here
        return jnp.clip(noisy, -1.0, 1.0) if clip else noisy

    def salt_pepper(key: jax.Array, x: jax.Array) -> jax.Array:
        hit_key, colour_key = jax.random.split(key)
        hit = jax.random.bernoulli(hit_key, level, (*x.shape[:3], 1))
        colour = jnp.where(jax.random.bernoulli(colour_key, 0.5, hit.shape), 1.0, -1.0)
        return jnp.where(hit, colour, x)

    kinds = {"none": lambda key, x: x, "gaussian": gaussian, "salt_pepper": salt_pepper}
    if kind not in kinds:
        raise ValueError(f"vae.noise is one of {', '.join(kinds)}, not {kind!r}")
    if kind != "none" and level <= 0:
        raise ValueError(f"vae.noise_level must be above 0, not {level}")
    if kind == "salt_pepper" and level > 1:
        raise ValueError(f"vae.noise_level is a share of pixels, so at most 1, not {level}")
    return kinds[kind]


def draw_z(mean: jax.Array, logvar: jax.Array, key: jax.Array) -> jax.Array:
    """z ~ N(mean, e^logvar), reparameterised."""
    return mean + jnp.exp(0.5 * logvar) * jax.random.normal(key, mean.shape)
