"""From a family, its data and its devices to the `Subject` that evaluators see."""

import hashlib
import itertools
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from aigc_jax.data import augment, digits, loader, mixtures
from aigc_jax.data.datasets import Dataset
from aigc_jax.evaluation import features, frechet
from aigc_jax.evaluation.evaluators import DISTRIBUTION, EXAMPLES, POINTS
from aigc_jax.evaluation.subject import Split, Subject
from aigc_jax.family import Family
from aigc_jax.sampling import draw, of_this_process
from aigc_jax.training import sharding
from aigc_jax.training.writers import to_uint8


class Eye(NamedTuple):
    """A feature network on the devices.

    Attributes:
      network: the network.
      extract: batches uint8 [b, H, W, C], whole on every process -> Features.
    """

    network: features.FeatureNetwork
    extract: Callable[[Iterable[np.ndarray]], features.Features]


def cache_folder() -> pathlib.Path:
    """$AIGC_CACHE, or ~/.cache/aigc_jax."""
    return pathlib.Path(os.environ.get("AIGC_CACHE") or "~/.cache/aigc_jax").expanduser()


def open_eye(
    config: Mapping[str, Any], dataset: Dataset, mesh: Any, batch_size: int = 64
) -> Eye | None:
    """The feature network that `config.evaluation` names, for images of this data set.

    None where no metric of `config.evaluations` needs one.

    Args:
      batch_size: images at a time, rounded up to a multiple of the devices.

    Raises:
      ValueError, FileNotFoundError: a network of other images or without its weights, and metrics
        of points in the plane where the data are images.
    """
    name, of_points = config["data"]["name"], set(config["evaluations"]) & set(POINTS)
    if of_points and name not in mixtures.MIXTURES:
        wrong, known = ", ".join(of_points), " and ".join(mixtures.MIXTURES)
        raise ValueError(f"evaluator {wrong!r} judges samples of {known}, not of {name!r}")
    if not set(config["evaluations"]) & set(DISTRIBUTION):
        return None
    setting = config["evaluation"]
    network = features.load(
        setting["network"], setting["weights"], partial(digits.arrays, "train"), cache_folder()
    )
    network.check(dataset.spec.image_shape)
    variables = jax.device_put(network.variables, sharding.replicated(mesh))
    apply = jax.jit(lambda variables, x: network.apply(variables, x.astype(jnp.float32)))
    size = -(-batch_size // mesh.size) * mesh.size

    def on_devices(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        parts = []
        for start in range(0, len(images), size):
            part = images[start : start + size]
            padded = np.concatenate([part, np.repeat(part[-1:], size - len(part), axis=0)])
            found = apply(variables, sharding.put(mesh, of_this_process(padded)))
            parts.append([x[: len(part)] for x in sharding.fetch(found)])
        found, logits = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        return found, logits

    return Eye(network, partial(features.extract, on_devices))


def subject(
    config: Mapping[str, Any],
    family: Family,
    dataset: Dataset,
    mesh: Any,
    eye: Eye | None,
    params: Any,
    extra: Any,
    *,
    count: int,
    seed: int,
    batch_size: int = 64,
) -> Subject:
    """What evaluators see of a model.

    Args:
      params, extra: as `Family.sample` takes them.
      count: samples to draw; sample i depends on (seed, i) only.
      batch_size: samples at a time. Whatever is random in `evaluate` comes in batches of
        `train.batch_size`, so that no value depends on this.
    """
    setting, data = config["evaluation"], config["data"]
    if count < 2:
        raise ValueError(f"a distribution takes at least 2 samples to judge, not {count}")
    held_out = data["test_split"]
    if setting["reference_split"] == held_out:
        held_out = data["train_split"]
    labels = np.arange(count) % family.num_classes if family.num_classes else None
    mixture = mixtures.MIXTURES[data["name"]]() if data["name"] in mixtures.MIXTURES else None

    def sample() -> Iterator[np.ndarray]:
        batches = draw(
            family.sample,
            params,
            extra,
            mesh,
            seed=seed,
            count=count,
            labels=range(family.num_classes) if family.num_classes else None,
            batch_size=batch_size,
        )
        with tqdm(total=count, unit="img", desc="sampling", disable=None, leave=False) as bar:
            for batch in batches:
                if not np.isfinite(batch).all():
                    raise ValueError(
                        "samples are not finite: the model has diverged; take an earlier --step"
                    )
                bar.update(len(batch))
                yield batch if mixture else to_uint8(batch)

    evaluate, restore = jitted(family)
    extra = with_prior(config, family, dataset, mesh, params, extra)

    def diagnose() -> tuple[dict[str, float], str]:
        batches = examples(config, dataset, mesh, bar=True)
        return family.diagnose(codes(family, params, extra, batches))

    return Subject(
        network=eye.network.name if eye else "",
        extract=eye.extract if eye else None,
        sample=sample,
        labels=labels,
        reference=split_of(config, dataset, eye, setting["reference_split"]),
        held_out=split_of(config, dataset, eye, held_out),
        statistics=_statistics(setting["statistics"]),
        manifold_count=setting["manifold_count"],
        evaluate=partial(evaluate, params, extra),
        restore=restore and partial(restore, params, extra),
        likelihood=family.likelihood and partial(family.likelihood, params, extra),
        likelihood_count=setting["likelihood_count"],
        diagnose=diagnose if family.diagnose else None,
        pictures=partial(pictures, family, params, extra, mesh, seed),
        examples=partial(examples, config, dataset, mesh, bar=True),
        key=jax.random.key(config["seed"]),
        mixture=mixture,
    )


def check_draws(family: Family, names: Iterable[str]) -> None:
    """Raises ValueError where samples, or metrics of them, are asked of a family without."""
    asked = [name for name in names if name not in EXAMPLES]
    if family.sample is None and asked:
        raise ValueError(
            "this family translates images and draws none from noise: use --mode=translate, and "
            f"do not ask for {', '.join(asked)}"
        )


def jitted(family: Family) -> tuple[Callable, Callable | None]:
    """`family.evaluate` and `family.restore`, compiled."""
    return jax.jit(family.evaluate), family.restore and jax.jit(family.restore)


def examples(
    config: Mapping[str, Any],
    dataset: Dataset,
    mesh: Any,
    limit: int = 0,
    *,
    split: str | None = None,
    bar: bool = False,
) -> Iterator[Mapping[str, jax.Array]]:
    """A split in batches of `train.batch_size` on the devices, images in [-1, 1].

    None is the test split. `limit` stops after that many examples, rounded up to whole batches; 0
    takes all. `bar` shows how far it has come.
    """
    batch_size = config["train"]["batch_size"]
    sharding.check_batch(batch_size, mesh)
    split = split or config["data"]["test_split"]
    source = dataset.sources[split]
    count = -(-min(limit or len(source), len(source)) // batch_size)
    batches = loader.epoch(
        source,
        batch_size=batch_size,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    for batch in tqdm(
        itertools.islice(batches, count),
        total=count,
        desc=f"{split} batches",
        disable=None if bar else True,
        leave=False,
    ):
        batch = sharding.put(mesh, batch)
        yield augment.floats(batch)


def codes(
    family: Family, params: Any, extra: Any, batches: Iterable[Mapping[str, jax.Array]]
) -> dict[str, np.ndarray]:
    """`Family.codes` of all images in batches as of `examples`, as {name: array [N, ...]}."""
    encode = jax.jit(family.codes)
    parts = []
    for batch in batches:
        found = sharding.fetch({**encode(params, extra, batch), "mask": batch["mask"]})
        kept = found.pop("mask") > 0
        parts.append({name: array[kept] for name, array in found.items()})
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def with_prior(
    config: Mapping[str, Any],
    family: Family,
    dataset: Dataset | None,
    mesh: Any,
    params: Any,
    extra: Any,
    count: int = 10_000,
) -> Any:
    """`extra` as `Family.sample` takes it: settled, with what `Family.prior` makes of codes.

    Of `count` training images' codes; `dataset` may be None where the family has no `prior`.
    """
    if family.settle:
        extra = family.settle(params, extra)
    if family.prior is None:
        return extra
    split = config["data"]["train_split"]
    batches = examples(config, dataset, mesh, count, split=split, bar=True)
    fitted = family.prior(codes(family, params, extra, batches))
    return {**extra, **jax.device_put(fitted, sharding.replicated(mesh))}


def pictures(
    family: Family, params: Any, extra: Any, mesh: Any, seed: int
) -> dict[str, np.ndarray]:
    """`Family.pictures` from 16 keys: {caption: images [rows, columns, H, W, C]}."""
    if family.pictures is None:
        return {}
    count = -(-16 // mesh.size) * mesh.size
    cond = {}
    if family.num_classes:
        label = np.arange(count, dtype=np.int32) % family.num_classes
        cond = {"label": sharding.put(mesh, of_this_process(label))}
    keys = sharding.sample_keys(mesh, seed, 0, count)
    return sharding.fetch(family.pictures(params, extra, keys, cond))


def split_of(config: Mapping[str, Any], dataset: Dataset, eye: Eye | None, split: str) -> Split:
    """A split of real images with their features, which are computed once and kept in a file."""
    source, name = dataset.sources[split], config["data"]["name"]

    def passing() -> Iterator[np.ndarray]:
        batches = loader.epoch(source, batch_size=256)
        total = -(-len(source) // 256)
        for batch in tqdm(
            batches, total=total, desc=f"features of {name} {split}", disable=None, leave=False
        ):
            yield batch["image"][batch["mask"] > 0]

    def found() -> features.Features:
        probe = source.fetch(features.some(len(source), 32))["image"]
        shape = "x".join(map(str, dataset.spec.image_shape))
        key = [name.replace("/", "_"), split, len(source), shape, eye.network.name]
        key += [eye.network.preprocessing, eye.network.digest]
        key.append(hashlib.sha256(probe.tobytes()).hexdigest()[:8])  # a folder's images may change
        name_of_file, folder = "-".join(map(str, key)), cache_folder() / "features"
        arrays = features.cached(
            folder, name_of_file, features.Features._fields, lambda: eye.extract(passing())
        )
        return features.Features(*arrays)

    return Split(f"{name} {split}", len(source), found, source.fetch)


def _statistics(path: str) -> tuple[np.ndarray, np.ndarray, str] | None:
    if not path:
        return None
    return *frechet.load_statistics(path), pathlib.Path(path).name


def protocol(config: Mapping[str, Any], *, weights: str, seed: int) -> dict[str, Any]:
    """What every row states: how samples are drawn, with which parameters, from which seed."""
    settings = dict(config["sampling"])
    words = [settings.get("sampler", settings.get("prior", ""))]
    if settings.get("guidance", 1.0) != 1.0:
        words.append(f"guidance {settings['guidance']}")
    return {
        "sampler": " ".join(words),
        "steps": settings.get("steps"),
        "weights": weights,
        "seed": seed,
    }
