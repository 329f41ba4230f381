"""Checkpoints: the whole state and what it is, by Orbax; the one file that knows Orbax.

A checkpoint is written beside its final name and renamed when complete, so a killed save leaves the
one before it. What a disk does later, truncation or a flipped bit, is found by a digest of every
leaf, computed on the devices when saving and again when restoring. A damaged checkpoint is passed
over for the one before it, and set aside where it would be in the way; nothing is ever deleted but
the oldest good checkpoints beyond the number kept.
"""

import functools
import gc
import logging
import pathlib
import re
import sys
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

ITEMS = ("state", "about")


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be written or read; the message says what to do."""


@jax.jit
def digest(tree: Any) -> list[jax.Array]:
    """A uint32 per leaf that any single flipped bit changes, the same on any layout of devices.

    Each element's bits, as 32-bit words, times an odd weight that depends on its position, summed
    modulo 2^32; integer sums do not depend on their order.
    """

    def of(leaf: jax.Array) -> jax.Array:
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        if leaf.dtype == jnp.bool_:
            leaf = leaf.astype(jnp.uint8)
        unsigned = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[min(leaf.dtype.itemsize, 4)]
        words = jax.lax.bitcast_convert_type(leaf, unsigned).astype(jnp.uint32)
        position = jnp.zeros(words.shape, jnp.uint32)
        for axis in range(words.ndim):
            index = jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
            position = position * jnp.uint32(0x01000193) + index
        return jnp.sum(words * (2 * position + 1), dtype=jnp.uint32)

    return [of(leaf) for leaf in jax.tree.leaves(tree)]


def _say(message: str) -> None:
    if jax.process_index() == 0:
        print(message, flush=True)


class Checkpoints:
    """The checkpoints of one run in `folder`, the newest `keep` of them."""

    def __init__(self, folder: str | pathlib.Path, keep: int = 2, clean: bool = False) -> None:
        """Opens the folder; the run that writes there has `clean` move half-written saves aside."""
        _hush_orbax()
        self.folder = pathlib.Path(folder).absolute()
        self._keep = keep
        if clean:
            half = [path.name for path in self.folder.glob("*.orbax-checkpoint-tmp*")]
            told = "a save was cut short; what it had written"
            self._move_aside(dict.fromkeys(half, told))
        self._open()

    def _open(self) -> None:
        options = ocp.CheckpointManagerOptions(
            max_to_keep=self._keep,
            step_format_fixed_length=8,
            create=True,
            # Two folders may be written at a time; their barriers must not meet.
            multiprocessing_options=ocp.options.MultiprocessingOptions(
                barrier_sync_key_prefix=self.folder.name
            ),
        )
        self._manager = ocp.CheckpointManager(self.folder, options=options, item_names=ITEMS)

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, ascending."""
        return sorted(self._manager.all_steps())

    def latest(self) -> int | None:
        """Step of the newest complete checkpoint."""
        return self._manager.latest_step()

    def save(self, step: int, state: Any, about: Mapping[str, Any]) -> None:
        """Starts saving; the files are written while training goes on.

        Args:
          step: steps done.
          state: the state; free to be donated once this returns.
          about: JSON beside it (config, metrics).

        Raises:
          CheckpointError: this save, or the one still under way, failed.
        """
        self.wait()  # so that a failure is told of the save that it befell
        about = dict(about) | {"digest": [int(d) for d in jax.device_get(digest(state))]}
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(state), about=ocp.args.JsonSave(about)
        )
        self._guard(step, lambda: self._manager.save(step, args=args, force=True))

    def wait(self) -> None:
        """Blocks until what was saved is on disk; raises CheckpointError if it is not."""
        self._guard(None, self._manager.wait_until_finished)

    def close(self) -> None:
        """Waits and ends the writing threads."""
        try:
            self.wait()
        finally:
            self._manager.close()

    def _guard(self, step: int | None, action: Callable[[], Any]) -> None:
        try:
            action()
        except Exception as error:
            gc.collect()  # what Orbax left half done goes now, not noisily when the process ends
            complete = self._complete_on_disk()
            kept = (
                f"the checkpoint of step {complete[-1]} is intact"
                if complete
                else "no earlier one is there"
            )
            what = "a checkpoint" if step is None else f"the checkpoint of step {step}"
            raise CheckpointError(
                f"could not write {what} in {self.folder}: {_first_line(error)}; {kept}. "
                "Make room or mend the disk, then give the same command again to resume"
            ) from error

    def _complete_on_disk(self) -> list[int]:
        """Steps by folder name; a save under way carries another name."""
        return sorted(int(p.name) for p in self.folder.glob("*") if p.name.isdigit())

    def about(self, step: int) -> dict[str, Any]:
        """The JSON saved beside the state of `step`."""
        args = ocp.args.Composite(about=ocp.args.JsonRestore())
        return self._manager.restore(step, args=args)["about"]

    def restore(self, target: Any, step: int | None = None) -> tuple[Any, int] | None:
        """The newest good state, or that of `step`, and its step; None where there is none.

        Damaged checkpoints are named on the terminal and passed over.

        Args:
          target: abstract state with shardings; any mesh, whatever mesh it was saved from.

        Raises:
          CheckpointError: there are checkpoints, but not one (or not that of `step`) can be read.
        """
        steps = self.steps()
        if step is not None and step not in steps:
            have = ", ".join(map(str, steps)) or "none"
            raise CheckpointError(f"no checkpoint of step {step} in {self.folder} (have: {have})")
        failures = []
        for candidate in [step] if step is not None else reversed(steps):
            try:
                return self._read(candidate, target), candidate
            except Exception as error:
                failures.append(f"step {candidate}: {_first_line(error)}")
                _say(f"checkpoint of {failures[-1]}; it is damaged and is passed over")
        if failures:
            raise CheckpointError(
                f"no checkpoint in {self.folder} can be read ({'; '.join(failures)}). They are "
                "left as they are; start in another --workdir, or restore the files from a backup"
            )
        return None

    def _read(self, step: int, target: Any) -> Any:
        args = ocp.args.Composite(
            state=ocp.args.StandardRestore(target), about=ocp.args.JsonRestore()
        )
        restored = self._manager.restore(step, args=args)
        # Orbax hands back what it saved, e.g. plain dicts: take the target's own structure.
        state = jax.tree.unflatten(jax.tree.structure(target), jax.tree.leaves(restored["state"]))
        found = [int(d) for d in jax.device_get(digest(state))]
        if found != restored["about"]["digest"]:
            raise CheckpointError("the restored bits are not those that were saved")
        return state

    def set_aside_after(self, step: int) -> None:
        """Moves checkpoints newer than `step`, found damaged, out of the way of new ones."""
        newer = [s for s in self.steps() if s > step]
        if not newer:
            return
        self._manager.close()
        self._move_aside({f"{s:08d}": f"the damaged checkpoint of step {s}" for s in newer})
        self._open()

    def _move_aside(self, entries: Mapping[str, str]) -> None:
        """Moves entries {name: what it is} to the folder's neighbour "-damaged", and says so."""
        if jax.process_index() == 0:
            aside = self.folder.with_name(self.folder.name + "-damaged")
            for name, what in entries.items():
                aside.mkdir(exist_ok=True)
                free = aside / f"{name}-{len(list(aside.glob(name + '-*')))}"
                (self.folder / name).rename(free)
                _say(f"{what} now lies in {free}")
        if jax.process_count() > 1:  # nobody looks before all is moved
            multihost_utils.sync_global_devices(f"{self.folder.name} set aside")


@functools.cache
def _hush_orbax() -> None:
    """Orbax's threads print pages about a file that they could not read or write; one line is ours.

    Every such error is also raised where we wait for it, so what is dropped here is only the same
    traceback in the log, and the complaint of a reader or writer that it has nobody left to tell.
    """

    def wanted(record: logging.LogRecord) -> bool:
        text = record.pathname + record.getMessage()
        noise = record.exc_info or "was destroyed but it is pending" in text
        return not (noise and ("orbax" in text or "tensorstore" in text))

    for name in ("absl", "asyncio"):
        logging.getLogger(name).addFilter(wanted)
    # When one leaf cannot be written, Orbax closes its loop over the tasks of the others; those not
    # yet begun would complain whenever they are collected, at times as the last line of all.
    never = r"coroutine 'async_serialize\w*(\.<locals>\.\w+)?' was never awaited"
    warnings.filterwarnings("ignore", never, RuntimeWarning)
    before = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        traceback = unraisable.exc_traceback
        where = traceback.tb_frame.f_code.co_filename if traceback else ""
        if "orbax" not in where and "Event loop is closed" not in str(unraisable.exc_value):
            before(unraisable)

    sys.unraisablehook = hook


def _first_line(error: BaseException) -> str:
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    text = re.sub(r" \[\w+(\[\d+\])?='.*", "", text)  # TensorStore's settings
    # The cause stands at the end, behind the path of a file.
    return text if len(text) <= 300 else f"{text[:100]} ... {text[-200:]}"
