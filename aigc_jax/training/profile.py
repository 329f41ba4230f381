"""A trace of some steps of a run, and a table of where their time went: `--profile=START:COUNT`."""

import contextlib
import pathlib
import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from aigc_jax import files
from aigc_jax.errors import SettingError
from aigc_jax.training import hlo, kinds, writers

HOW = "--profile=START:COUNT traces COUNT steps from step START on, such as --profile=100:10"
OPEN = (
    "trace and table are in {inner}: open perfetto_trace.json.gz at https://ui.perfetto.dev, or "
    "all of it by `pip install xprof tensorboard` and `tensorboard --logdir={folder}`"
)
# With names in the key of a compilation that is kept on disk: else that of a version of this code
# in which scopes had other names is as good.
NAMES_IN_KEY = "jax_compilation_cache_include_metadata_in_key"


class Span(NamedTuple):
    """Steps from `start`, the number of steps done before, to `end`, without it."""

    start: int
    end: int

    def check(self, steps: int, done: int = 0) -> None:
        """Raises SettingError where a run of so many steps, of which some are done, lacks these."""
        given = f"--profile={self.start}:{self.end - self.start}"
        if self.end > steps:
            raise SettingError(
                f"{given} ends at step {self.end}, but the run has {steps} (train.steps): take an "
                "earlier START, or a smaller COUNT"
            )
        if self.start < done:
            raise SettingError(
                f"{given} begins at step {self.start}, but this run goes on from step {done}: take "
                f"a START of {done} or more"
            )


def span(text: str) -> Span:
    """The steps that START:COUNT names.

    Raises:
      SettingError: anything else, or no steps at all.
    """
    found = re.fullmatch(r"(\d{1,18}):(\d{1,18})", text, re.ASCII)
    if not found:
        raise SettingError(f"what is --profile={text}? {HOW}")
    start, count = int(found[1]), int(found[2])
    if not count:
        raise SettingError(f"--profile={text} traces no step: {HOW}")
    return Span(start, start + count)


class Profiler:
    """Runs the compiled steps of a run, and records those of a span.

    Dispatches of several steps are traced whole, from the one with the span's first step to the one
    with its last, and all of their programs are compiled before. Of several processes the first
    records, and its own devices only. Where a run stops within the span, `close` makes the table of
    the steps until then.

    Attributes:
      wanted: the span, which may be another one until the trace begins.
    """

    def __init__(self, wanted: Span, folder: pathlib.Path) -> None:
        """`folder` is where a folder for the trace is made."""
        self.wanted = wanted
        self._folder = folder
        self._programs: dict[tuple[Any, int], jax.stages.Compiled] = {}
        self._recording: contextlib.ExitStack | None = None
        self._place = folder
        self._began: int | None = None  # the step at which the trace begins
        self._last: tuple[Any, int] = (None, 0)  # what the last step reports, and its number
        self._text = ""

    def run(
        self, jitted: Any, plan: Callable[[int], tuple[Any, int]], step: int, *arguments: Any
    ) -> Any:
        """What `jitted` gives for the dispatch that begins at `step`.

        Args:
          jitted: of (active phases, *arguments), see `sharding.compile_steps`.
          plan: (step at which a dispatch begins) -> its active phases, and of how many steps it is.
          arguments: arrays; the last is the feed, whose leading axis is the steps.
        """
        active, count = plan(step)
        self._program(jitted, active, count, arguments)
        self._begin(jitted, plan, step, arguments)  # only where the first dispatch of all is traced
        with jax.profiler.StepTraceAnnotation("train", step_num=step):
            found = self._programs[active, count](*arguments)
        step += count
        if self._recording:
            self._last = found[1:], step  # not the state, whose memory the next step reuses
            if step >= self.wanted.end:
                self.close()
        else:
            self._begin(jitted, plan, step, (found[0], *arguments[1:]))
        return found

    def _begin(self, jitted: Any, plan: Any, step: int, arguments: tuple[Any, ...]) -> None:
        """Begins the trace where a dispatch from `step` on holds the first step to be traced."""
        if self._began is not None or step + plan(step)[1] <= self.wanted.start:
            return
        self._began = at = step
        while at < self.wanted.end:
            active, count = plan(at)
            self._program(jitted, active, count, arguments)
            at += count
        if jax.process_index():
            return
        jax.block_until_ready(arguments[0])
        with contextlib.ExitStack() as stack:
            self._place = self._folder / f"steps-{step}-{at}"
            place = stack.enter_context(files.folder(self._place))
            options = jax.profiler.ProfileOptions()
            options.python_tracer_level = 0  # every call of Python would cost the host more time
            jax.profiler.start_trace(place, create_perfetto_trace=True, profiler_options=options)
            stack.callback(self._write, place)
            stack.callback(jax.profiler.stop_trace)
            stack.enter_context(jax.profiler.TraceAnnotation(kinds.WINDOW))
            self._recording = stack.pop_all()

    def _program(self, jitted: Any, active: Any, count: int, arguments: tuple[Any, ...]) -> None:
        """Compiles the program of a dispatch, if there is none yet."""
        if (active, count) in self._programs:
            return

        def abstract(x: jax.Array | np.ndarray, steps: int | None = None) -> jax.ShapeDtypeStruct:
            shape = x.shape if steps is None else (steps, *x.shape[1:])
            return jax.ShapeDtypeStruct(shape, x.dtype, sharding=getattr(x, "sharding", None))

        *others, feed = arguments
        others = jax.tree.map(abstract, others)
        feed = jax.tree.map(partial(abstract, steps=count), feed)
        with _names_in_key():
            self._programs[active, count] = jitted.lower(active, *others, feed).compile()

    def close(self) -> None:
        """Ends a trace that was begun, and says where its time went."""
        recording, self._recording = self._recording, None
        if not recording:
            return
        with recording:
            jax.block_until_ready(self._last[0])
        if self._text:
            writers.say(self._text)

    def _write(self, place: pathlib.Path) -> None:
        """Puts the table beside a trace."""
        first, (_, last), self._last = self._began, self._last, (None, 0)
        traces = sorted(place.glob("plugins/profile/*/*.xplane.pb"))
        if not traces or last <= first:  # it ended before a step did
            return
        data = jax.profiler.ProfileData.from_file(str(traces[-1]))
        programs = [hlo.read(program.as_text()) for program in self._programs.values()]
        table = kinds.table(*kinds.read(data), programs, last - first)
        about = {
            "steps": [first, last],
            "device": jax.devices()[0].device_kind,
            "devices": jax.local_device_count(),
            "jax": jax.__version__,
            "ms_per_step": table.ms,
            "kinds": dict(table.kinds),
            "operations": [operation._asdict() for operation in table.operations],
        }
        files.write_json(traces[-1].with_name("table.json"), about)
        text = (
            f"steps {first} to {last}, {about['devices']} device(s) of {about['device']}: "
            f"{table.ms:.3f} ms a step\n{table.text()}"
        )
        files.write_text(traces[-1].with_name("table.txt"), text + "\n")
        inner = traces[-1].parent.relative_to(place)
        self._text = f"{text}\n{OPEN.format(folder=self._place, inner=self._place / inner)}"


@contextlib.contextmanager
def _names_in_key() -> Iterator[None]:
    before = getattr(jax.config, NAMES_IN_KEY)
    jax.config.update(NAMES_IN_KEY, True)
    try:
        yield
    finally:
        jax.config.update(NAMES_IN_KEY, before)
