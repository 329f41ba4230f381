"""Checkpoints: the whole state and what it is, by Orbax; the one file that knows Orbax.

A checkpoint is written beside its final name and renamed when complete, so a killed save leaves the
one before it. What a disk does later, truncation or a flipped bit, is found by a digest of every
leaf, computed on the devices when saving and again when restoring. A damaged checkpoint is passed
over for the one before it, and set aside where it would be in the way; of what lies aside the
newest few stay. One that belongs to another run or step is never taken.
"""

import contextlib
import gc
import pathlib
import re
import shutil
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from aigc_jax.errors import RunError
from aigc_jax.training import quiet, sharding

ITEMS = ("state", "prepared", "about")


DAMAGED = 3  # damaged checkpoints and half-written ones that are kept; older ones are removed


class CheckpointError(RunError):
    """A checkpoint that cannot be written or read; the message says what to do."""


class ForeignError(CheckpointError):
    """A checkpoint of another run or another step than its place says."""


class OtherModel(CheckpointError):
    """A checkpoint whose arrays are not those of the model that asks for them."""


def complete_steps(folder: pathlib.Path) -> list[int]:
    """Steps of the checkpoints in a folder, by their names: a save under way has another name."""
    return sorted(int(p.name) for p in folder.glob("*") if p.name.isdigit())


def run_of_newest(folder: pathlib.Path) -> str:
    """The identity of the run that saved the newest checkpoint whose JSON can be read; else ""."""
    checkpoints = Checkpoints(folder)
    try:
        for step in reversed(checkpoints.steps()):
            with contextlib.suppress(Exception):  # whatever Orbax makes of a damaged file
                return checkpoints.about(step).get("run", "")
    finally:
        checkpoints.close()
    return ""


@jax.jit
def digest(leaf: jax.Array) -> jax.Array:
    """A uint32 that any single flipped bit of an array changes, the same on any layout of devices.

    Each element's bits, as 32-bit words, times an odd weight that depends on its position, summed
    modulo 2^32; integer sums do not depend on their order.
    """
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


def digests(tree: Any) -> dict[str, int]:
    """{path of a leaf: its digest}, such as "params/net/in/kernel"."""
    # A call a leaf: many leaves share their shape, and so a small program that compiles at once.
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    found = {
        jax.tree_util.keystr(path, simple=True, separator="/"): digest(leaf)
        for path, leaf in leaves
    }
    return {name: int(value) for name, value in jax.device_get(found).items()}


def _say(message: str) -> None:
    if jax.process_index() == 0:
        print(message, flush=True)


class Checkpoints:
    """The checkpoints of one run in `folder`, the newest `keep` of them."""

    def __init__(
        self, folder: str | pathlib.Path, keep: int | None = 2, clean: bool = False, run: str = ""
    ) -> None:
        """Opens the folder, which the first save makes where there is none.

        A `keep` of None keeps all until they are removed. The run that writes there has `clean`
        move half-written saves aside. `run` is its identity: checkpoints of another one are
        refused; "" takes any.
        """
        self._quiet, self._failed = quiet.Orbax(), False
        self.folder = pathlib.Path(folder).absolute()
        self._keep, self._run = keep, run
        if clean:
            half = [path.name for path in self.folder.glob("*.orbax-checkpoint-tmp*")]
            what = "a save was cut short; what it had written"
            self._move_aside(dict.fromkeys(half, what))
        self._manager: ocp.CheckpointManager | None = None
        if self.folder.is_dir():
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
        return sorted(self._manager.all_steps()) if self._manager else []

    def latest(self) -> int | None:
        """Step of the newest complete checkpoint."""
        return self._manager.latest_step() if self._manager else None

    def save(self, step: int, state: Any, about: Mapping[str, Any], prepared: Any = None) -> None:
        """Starts saving; the files are written while training goes on.

        Args:
          step: steps done.
          state: the state; free to be donated once this returns.
          about: JSON beside it (config, metrics).
          prepared: a tree of arrays that goes with the state but is computed from it, so that a
            restored run does not need it; what samples are drawn with. Saved as host arrays: read
            without a target, an array on devices would ask for as many devices again.

        Raises:
          CheckpointError: this save, or the one still under way, failed.
        """
        self.wait()  # so that a failure is reported for the save that failed
        items = {"state": ocp.args.StandardSave(state)}
        found = digests(state)
        if jax.tree.leaves(prepared):
            prepared = sharding.fetch(prepared)
            items["prepared"] = ocp.args.StandardSave(prepared)
            found |= digests({"prepared": prepared})
        own = {"digest": found, "step": step, "run": self._run}
        items["about"] = ocp.args.JsonSave(dict(about) | own)
        args = ocp.args.Composite(**items)

        def write() -> None:
            if self._manager is None:
                self._open()
            self._manager.save(step, args=args, force=True)

        self._guard(step, write)

    def remove(self, step: int) -> None:
        """Removes the checkpoint of `step`, which is complete."""
        self.wait()
        self._guard(None, lambda: self._manager.delete(step))

    def wait(self) -> None:
        """Blocks until what was saved is on disk; raises CheckpointError if it is not."""
        if self._manager:
            self._guard(None, self._manager.wait_until_finished)

    def close(self) -> None:
        """Waits and ends the writing threads."""
        try:
            self.wait()
        finally:
            if self._manager:
                self._manager.close()
            if not self._failed:  # else the complaints of a failed save may come at any time yet
                self._quiet.end()

    def _guard(self, step: int | None, action: Callable[[], Any]) -> None:
        try:
            action()
        except Exception as error:
            self._failed = True
            gc.collect()  # what Orbax left half done goes now, not noisily when the process ends
            complete = complete_steps(self.folder)
            kept = (
                f"the checkpoint of step {complete[-1]} is intact"
                if complete
                else "no earlier one is there"
            )
            what = "a checkpoint" if step is None else f"the checkpoint of step {step}"
            raise CheckpointError(
                f"could not write {what} in {self.folder}: {_first_line(error)}; {kept}. "
                "Make room or repair the disk, then give the same command again to resume"
            ) from error

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
        return self._first_good(lambda candidate: self._read(candidate, target), step)

    def restore_parts(
        self, target: Mapping[str, Any], step: int | None = None
    ) -> tuple[Mapping[str, Any], Any, Mapping[str, Any], int] | None:
        """As `restore`, of some parts of the state alone; nothing else is read.

        Args:
          target: {part of the state: abstract tree, which may leave out branches}, such as
            {"ema": {"net": ...}}.

        Returns:
          (the parts, what was saved as `prepared` on the host or {}, the JSON beside them, step).
        """

        def read(candidate: int) -> tuple[Mapping[str, Any], Any, Mapping[str, Any]]:
            about, folder = self.about(candidate), self.folder / f"{candidate:08d}"
            self._check_own(candidate, about)
            _check_arrays(folder / "state", target)
            parts = _read_partially(folder / "state", target)
            found = digests(parts)
            prepared = {}
            if (folder / "prepared").exists():
                prepared = _read_on_host(folder / "prepared")
                found |= digests({"prepared": prepared})
            self._compare(found, about["digest"])
            return parts, prepared, about

        found = self._first_good(read, step)
        return found and (*found[0], found[1])

    def _first_good(self, read: Callable[[int], Any], step: int | None) -> tuple[Any, int] | None:
        """What `read` makes of the newest checkpoint that it can read, or of that of `step`."""
        self.wait()
        steps = self.steps()
        if step is not None and step not in steps:
            have = ", ".join(map(str, steps)) or "none"
            raise CheckpointError(f"no checkpoint of step {step} in {self.folder} (have: {have})")
        failures, others = [], 0
        for candidate in [step] if step is not None else reversed(steps):
            try:
                return read(candidate), candidate
            except ForeignError:
                raise
            except Exception as error:
                failures.append(f"step {candidate}: {_first_line(error)}")
                others += isinstance(error, OtherModel)
                wrong = "of another model" if isinstance(error, OtherModel) else "damaged"
                _say(f"checkpoint of {failures[-1]}; it is {wrong} and is passed over")
        if failures and others == len(failures):
            raise CheckpointError(
                f"the run in {self.folder.parent} is of another model ({'; '.join(failures)}): "
                "give the config and the data that it began with, or start anew in another "
                "--workdir"
            )
        if failures:
            raise CheckpointError(
                f"no checkpoint in {self.folder} can be read ({'; '.join(failures)}). They are "
                "left as they are; start in another --workdir, or restore the files from a backup"
            )
        return None

    def _read(self, step: int, target: Any) -> Any:
        about, folder = self.about(step), self.folder / f"{step:08d}" / "state"
        self._check_own(step, about)
        _check_arrays(folder, target)
        restored = _read_partially(folder, target)
        # Orbax hands back what it saved, e.g. plain dicts: take the target's own structure.
        state = jax.tree.unflatten(jax.tree.structure(target), jax.tree.leaves(restored))
        self._compare(digests(state), about["digest"])
        return state

    def _check_own(self, step: int, about: Mapping[str, Any]) -> None:
        """Raises ForeignError of a checkpoint that was saved by another run, or at another step."""
        run, saved = about.get("run", ""), about.get("step", step)  # absent in earlier versions
        what = f"the checkpoint in {self.folder / f'{step:08d}'}"
        if saved != step:
            raise ForeignError(f"{what} was saved at step {saved}: move it out of there")
        if run and self._run and run != self._run:
            raise ForeignError(f"{what} belongs to another run: move it out of there")

    @staticmethod
    def _compare(found: Mapping[str, int], saved: Mapping[str, int]) -> None:
        """Raises CheckpointError unless every leaf that was read is as it was saved."""
        if any(saved.get(name) != value for name, value in found.items()):
            raise CheckpointError("the restored bits are not those that were saved")

    def set_aside_after(self, step: int, superseded: bool = False) -> None:
        """Moves checkpoints newer than `step` out of the way of new ones.

        They are damaged, or `superseded` by a run that goes on from an earlier one.
        """
        newer = [s for s in self.steps() if s > step]
        if not newer:
            return
        kind = "superseded" if superseded else "damaged"
        self._manager.close()
        self._move_aside({f"{s:08d}": f"the {kind} checkpoint of step {s}" for s in newer}, kind)
        self._open()

    def _move_aside(self, entries: Mapping[str, str], kind: str = "damaged") -> None:
        """Moves entries {name: what it is} to the folder's neighbour "-damaged", and says so."""
        if jax.process_index() == 0 and entries:
            aside = self.folder.with_name(f"{self.folder.name}-{kind}")
            aside.mkdir(exist_ok=True)

            def number(path: pathlib.Path) -> int:
                return int(path.name.rpartition("-")[2])

            def ours() -> list[pathlib.Path]:
                found = [path for path in aside.iterdir() if re.search(r"^\d{8}.*-\d+$", path.name)]
                return sorted(found, key=number)

            free = max(map(number, ours()), default=-1) + 1
            for i, (name, what) in enumerate(entries.items(), free):
                (self.folder / name).rename(aside / f"{name}-{i}")
                _say(f"{what} now lies in {aside / f'{name}-{i}'}")
            for old in ours()[:-DAMAGED] if kind == "damaged" else ():
                shutil.rmtree(old, ignore_errors=True)
                _say(f"{old} was removed: the newest {DAMAGED} are kept")
        if jax.process_count() > 1:  # nobody looks before all is moved
            multihost_utils.sync_global_devices(f"{self.folder.name} set aside")


def _check_arrays(folder: pathlib.Path, target: Any) -> None:
    """Raises OtherModel unless a saved tree has the arrays of `target`, in the same shapes."""

    def shape(leaf: Any) -> tuple[int, ...]:
        typed = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return jax.eval_shape(jax.random.key_data, leaf).shape if typed else tuple(leaf.shape)

    def named(tree: Any) -> dict[str, Any]:
        leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
        return {jax.tree_util.keystr(p, simple=True, separator="/"): leaf for p, leaf in leaves}

    saved = named(ocp.PyTreeCheckpointHandler().metadata(folder).tree)
    there = {name: tuple(leaf.shape) for name, leaf in saved.items()}
    here = {name: shape(leaf) for name, leaf in named(target).items()}
    wrong = [
        f"{name} is {there.get(name, 'absent')} there, {size} here"
        for name, size in here.items()
        if there.get(name) != size
    ]
    if wrong:
        more = f" and {len(wrong) - 2} more" if len(wrong) > 2 else ""
        raise OtherModel("; ".join(wrong[:2]) + more)


def _read_partially(folder: Any, target: Any) -> Any:
    """The leaves of a saved tree that `target` has, and no byte of the others."""
    restore_args = ocp.checkpoint_utils.construct_restore_args(target)
    args = ocp.args.PyTreeRestore(item=target, restore_args=restore_args, partial_restore=True)
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        return checkpointer.restore(folder, args=args)


def _read_on_host(folder: pathlib.Path) -> Any:
    """A saved tree as host arrays, on whatever devices its arrays were when it was saved."""
    handler = ocp.PyTreeCheckpointHandler()
    saved = handler.metadata(folder).tree
    how = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), saved)
    with ocp.Checkpointer(handler) as checkpointer:
        return checkpointer.restore(folder, args=ocp.args.PyTreeRestore(restore_args=how))


def _first_line(error: BaseException) -> str:
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    text = re.sub(r" \[\w+(\[\d+\])?='.*", "", text)  # TensorStore's settings
    # The cause stands at the end, behind the path of a file.
    return text if len(text) <= 300 else f"{text[:100]} ... {text[-200:]}"
