"""What a training step and a batch of samples cost on devices that need not be there."""

import argparse
import importlib.metadata
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from aigc_jax import build, files
from aigc_jax.commands import common, validation
from aigc_jax.data.describe import describe
from aigc_jax.errors import SettingError
from aigc_jax.family import DataSpec, Family
from aigc_jax.planning import cost, programs, topology
from aigc_jax.planning.cost import Cost, Peaks
from aigc_jax.planning.peaks import Chip
from aigc_jax.runs import folder as folders
from aigc_jax.runs import model as models
from aigc_jax.training import sharding

FLAGS: tuple[str, ...] = (
    "topology",
    "per_chip",
    "image_shape",
    "classes",
    "price",
    "largest",
    "batch",
)
FILE = "plan.json"
NO_PEAKS = "no published peaks are known of {}: no time is predicted"


class Place(NamedTuple):
    """Devices that are planned for.

    Attributes:
      asked: the slice.
      mesh: of its devices.
      chip: its published peaks; None where they are not known.
    """

    asked: topology.Slice
    mesh: Any
    chip: Chip | None

    @property
    def chips(self) -> int:
        """How many; on this machine, devices."""
        return self.asked.chips if self.asked.kind in topology.TPUS else self.mesh.size

    @property
    def share(self) -> float:
        """Of a chip that one device is: a core of two, or all of it."""
        return self.chips / self.mesh.size

    @property
    def word(self) -> str:
        """What one device is called."""
        return "core" if self.share < 1 else "chip" if self.chip else "device"

    @property
    def peaks(self) -> Peaks | None:
        """Of one device."""
        if self.chip is None:
            return None
        links = topology.link_bandwidth(self.chip, self.asked.shape)
        chip = self.chip
        return Peaks(*(self.share * peak for peak in (chip.flops, chip.bandwidth, links)))

    @property
    def limit(self) -> float | None:
        """Bytes of memory of one device."""
        return self.chip and self.share * self.chip.memory


def main(flags: argparse.Namespace) -> None:
    """Runs the command as its flags say."""
    run(
        flags.workdir,
        flags.config,
        names=flags.topology,
        per_chip=flags.per_chip,
        shape=flags.image_shape,
        classes=flags.classes,
        price=flags.price,
        largest=flags.largest,
        samples=flags.batch,
    )


def run(
    workdir: str | pathlib.Path,
    config: Mapping[str, Any] | None = None,
    *,
    names: Sequence[str],
    per_chip: int | None = None,
    shape: Sequence[int | str] | None = None,
    classes: int | None = None,
    price: float | None = None,
    largest: bool = False,
    samples: int = 64,
) -> dict[str, Any]:
    """Plans a config on each of the topologies; prints it and writes plan.json into the workdir.

    Args:
      workdir: of the run, whose config and data are taken where it is one.
      config: None for the run's own.
      names: of topologies, such as "v5e:4x4" or "cpu".
      per_chip: images a chip and step, in place of the config's global batch.
      shape, classes: of the data, in place of what is known of them.
      price: of a chip and hour.
      largest: also looks for the largest global batch that fits, in five to ten compilations.
      samples: at a time, rounded up to a multiple of the devices.

    Raises:
      SettingError: no such topology, more devices than there are, a batch that does not divide.
      MissingError: no compiler for TPUs.
    """
    workdir = files.expanded(workdir)
    if not names:
        raise SettingError(f"name the devices: --topology is one of {topology.EXAMPLES}")
    asked = [topology.parse(name) for name in names]
    found = [place(one) for one in asked]
    if config is None:
        config = folders.read(workdir, "config.json")
    validation.check(config)
    config = folders.as_dict(config)
    spec = spec_of(workdir, config, shape, classes)
    config = models.with_network(config, workdir, spec.shape)
    validation.check_lengths(config)
    batches = {one.asked.name: global_batch(config, one, per_chip) for one in found}
    files.check(workdir / FILE, new=False)
    plans = []
    for one in found:
        settings = config | {"train": config["train"] | {"batch_size": batches[one.asked.name]}}
        made = plan(settings, spec, one, samples=samples, price=price, largest=largest)
        print(text(made), flush=True)
        plans.append(made)
    if len(plans) > 1:
        print(scaling(plans), flush=True)
    versions = {"jax": jax.__version__} | libtpu_version()
    content = {"versions": versions, "plans": plans}
    files.write_json(workdir / FILE, content)
    print(workdir / FILE, flush=True)
    return content


def place(asked: topology.Slice) -> Place:
    """The devices of a slice as one mesh."""
    devices = topology.devices(asked)
    return Place(asked, sharding.make_mesh(devices), topology.chip_of(devices))


def libtpu_version() -> dict[str, str]:
    """{"libtpu": version} where it is installed."""
    try:
        return {"libtpu": importlib.metadata.version("libtpu")}
    except importlib.metadata.PackageNotFoundError:
        return {}


def spec_of(
    workdir: pathlib.Path,
    config: Mapping[str, Any],
    shape: Sequence[int | str] | None,
    classes: int | None,
) -> DataSpec:
    """The data's spec: of the run in the folder, else what is known by the data set's name."""
    if folders.is_run(workdir) and not shape and classes is None:
        return folders.read_spec(workdir)
    try:
        given = shape and tuple(map(int, shape))
    except ValueError as error:
        raise SettingError(f"--image-shape is such as 64,64,3, not {','.join(shape)}") from error
    if given and not (len(given) in (1, 3) and min(given) > 0):
        raise SettingError(f"--image-shape is height, width, channels, not {given}")
    data, taken = config["data"], ("train_split", "data_dir", "channels", "image_size", "crop")
    known = {key: data[key] for key in taken if key in data}
    return describe(data["name"], **known, shape=given or None, classes=classes)


def global_batch(config: Mapping[str, Any], where: Place, per_chip: int | None) -> int:
    """Images a step, all chips together.

    Raises:
      SettingError: they do not divide over the devices.
    """
    size = config["train"]["batch_size"] if per_chip is None else per_chip * where.chips
    sharding.check_batch(size, where.mesh, config["train"]["microbatches"])
    return size


def plan(
    config: Mapping[str, Any],
    spec: DataSpec,
    where: Place,
    *,
    samples: int,
    price: float | None,
    largest: bool,
) -> dict[str, Any]:
    """What a config costs on some devices, as plain values; `rows` are for people to read."""
    family = build.build(config, spec)
    size = config["train"]["batch_size"]
    count = -(-samples // where.mesh.size) * where.mesh.size
    step, told = compiled(training(config, family, spec, where), where)
    drawn, why = sampler(config, family, where, count)
    made: dict[str, Any] = {
        "topology": where.asked.name,
        "chip": where.chip and where.chip._asdict(),
        "chips": where.chips,
        "devices": where.mesh.size,
        "unit": where.word,
        "parameters": dict(programs.parameters(family)),
        "batch": size,
        "microbatches": config["train"]["microbatches"],
        "sharding": config["train"]["sharding"],
        "train": step and described(step, where, size) | {"steps": config["train"]["steps"]},
        "sample": drawn and described(drawn, where, count) | {"count": count},
        "notes": [note for note in (told, why) if note],
    }
    if where.chip is None:
        made["notes"].append(NO_PEAKS.format(where.mesh.devices.flat[0].device_kind))
    if step and where.peaks:
        hours = made["train"]["seconds"] * config["train"]["steps"] / 3600
        made["train"] |= {"hours": hours}
        if price is not None:
            made["train"] |= {"price": price * hours * where.chips}
    if largest:
        made["largest"] = largest_batch(config, family, spec, where)
    made["rows"] = rows(made)
    return made


def training(
    config: Mapping[str, Any], family: Family, spec: DataSpec, where: Place
) -> list[programs.Part]:
    """The programs of one step of a config."""
    recipe, train = common.recipe_of(config, family, spec), config["train"]
    size, mode = train["batch_size"], train["sharding"]
    return programs.training(recipe, spec, where.mesh, batch_size=size, mode=mode)


def sampler(
    config: Mapping[str, Any], family: Family, where: Place, count: int
) -> tuple[Cost | None, str]:
    """The cost of one batch of samples, or why there is none."""
    if why := programs.cannot_sample(family.drawing):
        return None, f"no samples are planned: {why}"
    mode = config["train"]["sharding"]

    def parts() -> list[programs.Part]:
        return programs.sampling(family, where.mesh, count=count, mode=mode)

    return compiled(parts, where)


def compiled(
    parts: Sequence[programs.Part] | Callable[[], Sequence[programs.Part]], where: Place
) -> tuple[Cost | None, str]:
    """The cost of programs together, or what the compiler says of their memory."""
    try:
        found = parts() if callable(parts) else parts
        done = [(programs.compiled(part, where.mesh.size), part.often) for part in found]
    except jax.errors.JaxRuntimeError as error:
        if not cost.OUT_OF_MEMORY.search(str(error)):
            raise
        return None, f"does not fit: {' '.join(str(error).split())[:300]}"
    return cost.added(done), ""


def described(found: Cost, where: Place, images: int) -> dict[str, Any]:
    """A cost, and what it means at the peaks of a device."""
    made = dict(cost.as_json(found)) | {"fits": None, "limit": where.limit}
    if where.peaks is None:
        return made
    prediction = cost.predicted(found, where.peaks)
    return made | {
        "fits": found.memory.total <= where.limit,
        "arithmetic_seconds": prediction.arithmetic,
        "memory_seconds": prediction.memory,
        "link_seconds": prediction.links,
        "seconds": prediction.seconds,
        "least_seconds": cost.predicted(found.on_memory(), where.peaks).seconds,
        "bound": prediction.bound,
        "images_per_second": images / prediction.seconds,
        "utilisation": prediction.arithmetic / prediction.seconds,
    }


def largest_batch(
    config: Mapping[str, Any], family: Family, spec: DataSpec, where: Place
) -> int | None:
    """The largest global batch of which a step fits each device; None where memory is unknown."""
    if where.limit is None:
        return None

    def holds(size: int) -> bool:
        settings = {**config, "train": {**config["train"], "batch_size": size}}
        found, _ = compiled(training(settings, family, spec, where), where)
        return found is not None and found.memory.total <= where.limit

    unit = where.mesh.size * config["train"]["microbatches"]
    return cost.largest(holds, config["train"]["batch_size"], unit)


def rows(made: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What a plan says, as (what, how much)."""
    unit, players = made["unit"], made["parameters"]
    named = ", ".join(f"{name} {size:,}" for name, size in players.items())
    parts = f" in {made['microbatches']} parts" if made["microbatches"] > 1 else ""
    found = [
        ("parameters", named if len(players) > 1 else f"{sum(players.values()):,}"),
        ("global batch", f"{made['batch']:,}{parts}, {made['sharding']}"),
    ]
    if "largest" in made:
        found.append(("largest batch that fits", f"{made['largest'] or 'unknown'}"))
    if train := made["train"]:
        found += rows_of("a step", train, unit)
        if "hours" in train:
            found.append(("all steps", f"{train['hours']:,.3g} hours for {train['steps']:,} steps"))
        if "price" in train:
            found.append(("price", f"{train['price']:,.4g}"))
    if drawn := made["sample"]:
        found += rows_of(f"{drawn['count']} samples", drawn, unit)
    return [*found, *(("note", note) for note in made["notes"])]


def rows_of(what: str, found: Mapping[str, Any], unit: str) -> list[tuple[str, str]]:
    """Of a program."""
    memory, limit = found["memory"], found["limit"]
    parts = ", ".join(f"{name} {gib(memory[name])}" for name in cost.Memory._fields)
    of = f" of {gib(limit)}{'' if found['fits'] else ': does not fit'}" if limit else ""
    moved = [
        f"{one['count']:g} {one['kind']} over {one['group']}, {one['size']:.3g} bytes"
        for one in found["collectives"]
    ]
    made = [
        (f"{what}: memory a {unit}", f"{gib(memory['total'])}{of} ({parts})"),
        (f"{what}: work a {unit}", f"{found['flops']:.3g} FLOPs, {bytes_of(found)}"),
        (f"{what}: collectives", "; ".join(moved) or "none"),
    ]
    if found["unknown_loops"]:
        word = f"{found['unknown_loops']} of unknown length, counted as one round each"
        made.append((f"{what}: loops", word))
    if "seconds" in found:
        names = ("arithmetic", "memory", "link")
        times = ", ".join(f"{name} {1e3 * found[f'{name}_seconds']:.3g}" for name in names)
        least = f"; {1e3 * found['least_seconds']:.3g} if only main memory counts"
        bound = f"{1e3 * found['seconds']:.3g} ms, bound by {found['bound']} ({times}){least}"
        speed = f"{found['images_per_second']:,.0f} images/s, {found['utilisation']:.1%} of peak"
        made += [(f"{what}: time", bound), (f"{what}: speed", speed)]
    return made


def bytes_of(found: Mapping[str, Any]) -> str:
    """Bytes by the compiler's count, and those in main memory, in words."""
    return (
        f"{found['bytes']:.3g} bytes by the compiler's count, "
        f"{found['memory_bytes']:.3g} in main memory"
    )


def gib(size: float) -> str:
    """Bytes, in words."""
    return f"{size / 2**30:.2f} GiB" if size >= 2**24 else f"{size / 2**20:.2f} MiB"


def text(made: Mapping[str, Any]) -> str:
    """A plan as lines."""
    name = made["chip"]["name"] if made["chip"] else "devices of this machine"
    head = f"{made['topology']}: {made['chips']} x {name}"
    if made["devices"] != made["chips"]:
        head += f", {made['devices']} devices"
    width = max(len(label) for label, _ in made["rows"])
    return "\n".join([head, *(f"  {label:<{width}}  {value}" for label, value in made["rows"])])


def scaling(plans: Sequence[Mapping[str, Any]]) -> str:
    """The step of several topologies beside each other, and how much longer than the first's."""
    lines, first = ["topology     chips   batch     ms a step   longer by   bound by"], math.nan
    for made in plans:
        train = made["train"] or {}
        seconds = train.get("seconds", math.nan)
        first = seconds if math.isnan(first) else first
        lines.append(
            f"{made['topology']:<12} {made['chips']:>5} {made['batch']:>7}   {1e3 * seconds:>11.4g}"
            f"   {seconds / first - 1:>9.1%}   {train.get('bound', '-')}"
        )
    return "\n".join(lines)
