"""A trace of some steps, and what their time goes to: closed forms, and a real step of a UNet."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys
from jax.profiler import ProfileData

from aigc_jax import build
from aigc_jax.commands import train as command
from aigc_jax.errors import SettingError
from aigc_jax.training import kinds, sharding
from aigc_jax.training.kinds import Run, parsed, read, shares, table
from aigc_jax.training.profile import Profiler, Span, span
from configs import ddpm_digits

MS = 1e6  # ns


def test_a_span_is_a_start_and_a_count():
    assert span("100:10") == Span(100, 110)
    assert span("0:1") == Span(0, 1)


@pytest.mark.parametrize(
    "text", ["", "5", "5:", ":5", "5:0", "-1:5", "1:2:3", "a:b", "1.5:2", "٣:1", "1" * 5000 + ":1"]
)
def test_what_is_none_is_refused(text):
    with pytest.raises(SettingError, match=f"--profile={re.escape(text)}") as error:
        span(text)
    assert "--profile=100:10" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_span_lies_in_what_is_left_of_the_run():
    span("90:10").check(100)
    span("90:10").check(100, done=90)
    with pytest.raises(SettingError, match="ends at step 101, but the run has 100"):
        span("91:10").check(100)
    with pytest.raises(SettingError, match="goes on from step 91"):
        span("90:10").check(100, done=91)


def test_a_moment_is_shared_by_those_that_run():
    assert shares([(0, 10), (5, 15)], [True, True]) == [7.5, 7.5]
    assert shares([(0, 9), (0, 9), (0, 9), (20, 21)], [True] * 4) == [3, 3, 3, 1]
    # A call has what is left by the operations in it, on whatever thread.
    assert shares([(0, 10), (2, 4), (8, 12)], [False, True, True]) == [6, 2, 4]
    assert shares([(3, 3)], [True]) == [0]
    assert shares([], []) == []


PROGRAM = """HloModule jit_train_steps, is_scheduled=true, entry_computation_layout={(f32[8]{0})->f32[8]{0}}

%region_0.1 (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %add.1 = f32[] add(%a, %b), metadata={op_name="jit(train_steps)/norm1/reduce_sum"}
}

%fused_computation (p: f32[8], q: f32[8]) -> f32[16] {
  %p = f32[8]{0} parameter(0)
  %q = f32[8]{0} parameter(1)
  %mul.1 = f32[8]{0} multiply(%p, %q), metadata={op_name="jit(train_steps)/jvp(UNet)/up_0_block_0/mul"}
  ROOT %cat.1 = f32[16]{0} concatenate(%mul.1, %q), dimensions={0}, metadata={op_name="jit(train_steps)/jvp(UNet)/concatenate"}
}

%fused_computation.1 (p.1: f32[8]) -> f32[8] {
  %p.1 = f32[8]{0} parameter(0)
  %mul.2 = f32[8]{0} multiply(%p.1, %p.1), metadata={op_name="jit(train_steps)/transpose(jvp(UNet))/down_0_block_0/norm1/mul"}
  ROOT %log.1 = f32[8]{0} logistic(%mul.2), metadata={op_name="jit(train_steps)/jvp(UNet)/jit(silu)/logistic"}
}

%fused_computation.2 (p.2: bf16[8,8]) -> bf16[8,8] {
  %p.2 = bf16[8,8]{1,0:T(8,128)(2,1)} parameter(0)
  %conv.1 = bf16[8,8]{1,0:T(8,128)(2,1)} convolution(%p.2, %p.2), dim_labels=bf_io->bf, metadata={op_name="jit(train_steps)/jvp(UNet)/time_0/dot_general"}
  ROOT %add.2 = bf16[8,8]{1,0} add(%conv.1, %p.2), metadata={op_name="jit(train_steps)/jvp(UNet)/time_0/add"}
}

%fused_computation.3 (p.3: f32[8]) -> f32[8] {
  %p.3 = f32[8]{0} parameter(0)
  ROOT %copy.9 = f32[8]{0} copy(%p.3)
}

%called (p.4: f32[8]) -> f32[8] {
  %p.4 = f32[8]{0} parameter(0)
  ROOT %xor.1 = f32[8]{0} negate(%p.4), metadata={op_name="jit(train_steps)/Dropout_0/jit(_threefry_fold_in)/_Conv.__call__/xor"}
}

ENTRY %main.1 (x: f32[8], k: f32[8]) -> f32[8] {
  %x = f32[8]{0} parameter(0)
  %conv_general_dilated.1 = (f32[8]{0}, u8[0]{0}) custom-call(%x, %x), custom_call_target="__cudnn$convForward", metadata={op_name="jit(train_steps)/jvp(UNet)/conv_in/conv_general_dilated"}
  %convolution.2 = f32[8]{0} convolution(%x, %x), dim_labels=b01f_01io->b01f, metadata={op_name="jit(train_steps)/norm1/conv_general_dilated"}
  %fusion = f32[16]{0} fusion(%x, %x), kind=kLoop, calls=%fused_computation, metadata={op_name="jit(train_steps)/jvp(UNet)/concatenate"}
  %fusion.1 = f32[8]{0} fusion(%x), kind=kLoop, calls=%fused_computation.1, metadata={op_name="jit(train_steps)/jvp(UNet)/jit(silu)/logistic"}
  %fusion.2 = bf16[8,8]{1,0:T(8,128)(2,1)} fusion(%x), kind=kOutput, calls=%fused_computation.2, metadata={op_name="jit(train_steps)/jvp(UNet)/time_0/add"}
  %copy_fusion = f32[8]{0} fusion(%x), kind=kLoop, calls=%fused_computation.3
  %reduce.1 = f32[] reduce(%x, %x), dimensions={0}, to_apply=%region_0.1, metadata={op_name="jit(train_steps)/jvp(UNet)/reduce_sum"}
  %exp.1 = f32[8]{0} exponential(%x), metadata={op_name="jit(train_steps)/jvp(UNet)/down_1_attention_0/vmap()/exp"}
  %select.1 = f32[8]{0} select(%x, %x, %x), metadata={op_name="jit(train_steps)/jvp(UNet)/down_0_block_0/Dropout_0/select_n"}
  %custom-call.5 = f32[8]{0} custom-call(%x), custom_call_target="__cublas$lt$matmul", metadata={op_name="jit(train_steps)/optimizer/dot_general"}
  %normal.1 = f32[8]{0} multiply(%x, %x), metadata={op_name="jit(train_steps)/jit(_normal)/mul"}
  %ema.1 = f32[8]{0} add(%x, %x), metadata={op_name="jit(train_steps)/ema/add"}
  %all-reduce-start.1 = f32[8]{0} all-reduce-start(%x), to_apply=%region_0.1, metadata={op_name="jit(train_steps)/transpose(jvp(UNet))/conv_in/conv_general_dilated"}
  %call = f32[8]{0} call(%x), to_apply=%called
  %while.1 = f32[8]{0} while(%x), condition=%called, body=%called, metadata={op_name="jit(train_steps)/while"}
  ROOT %mul.5 = f32[8]{0} multiply(%x, %x)
}
"""  # noqa: E501
EXPECTED = {
    "conv_general_dilated.1": kinds.CONVOLUTION,  # a library's kernel
    "convolution.2": kinds.CONVOLUTION,  # whatever it is written in
    "fusion": kinds.MOVES,
    "fusion.1": kinds.NORM,
    "fusion.2": kinds.MATRIX,  # a TPU multiplies matrices by a convolution
    "copy_fusion": kinds.MOVES,
    "reduce.1": kinds.ELEMENTWISE,  # its sum is shared with a norm's
    "exp.1": kinds.MATRIX,
    "select.1": kinds.RANDOM,
    "custom-call.5": kinds.OPTIMIZER,
    "normal.1": kinds.RANDOM,
    "ema.1": kinds.OPTIMIZER,
    "all-reduce-start.1": kinds.COLLECTIVES,
    "call": kinds.RANDOM,
    "mul.5": kinds.ELEMENTWISE,
    "fusion.99": kinds.UNKNOWN,
}


def test_an_operation_has_the_kind_of_its_heaviest_part():
    program = parsed(PROGRAM)
    assert program.module == "jit_train_steps"
    assert {name: program.kind(name) for name in EXPECTED} == EXPECTED


def runs(*given, module="jit_train_steps", number=3):
    """(name, start, end) in ms."""
    return [Run(start * MS, end * MS, name, module, number) for name, start, end in given]


def test_the_table_of_known_runs():
    """In 100 ms of two steps; one of another program with the same names, one copy of the host."""
    ran = runs(
        ("conv_general_dilated.1", 0, 20),
        ("while.1", 20, 60),
        ("mul.5", 30, 40),
        ("fusion.1", 60, 70),
        ("exp.1", 65, 75),
        ("fusion.99", 75, 77),
    )
    ran += runs(("convolution.2", 80, 84), module="jit_step", number=4)
    ran += runs(("MemcpyH2D", 90, 91), module="", number=None)
    other = parsed(PROGRAM.replace("mul.5", "div.5"))  # of fewer of these names
    found = table(ran, 100 * MS, [other, parsed(PROGRAM)], steps=2)
    rest = 100 - 20 - 10 - 15 - 2 - 4 - 1
    assert found.ms == pytest.approx(50)
    assert {name: ms for name, ms in found.kinds.items() if ms} == pytest.approx(
        {
            kinds.CONVOLUTION: 10,
            kinds.ELEMENTWISE: 5,
            kinds.NORM: 7.5 / 2,
            kinds.MATRIX: 7.5 / 2,
            kinds.UNKNOWN: 1,
            kinds.OTHER: 2,
            kinds.MOVES: 0.5,
            kinds.IDLE: rest / 2,
        }
    )
    first, second = found.operations[:2]
    assert first == (
        kinds.CONVOLUTION, "conv_general_dilated.1",
        "jit(train_steps)/jvp(UNet)/conv_in/conv_general_dilated", pytest.approx(10),
    )  # fmt: skip
    assert second.name == "mul.5"
    text = found.text(most=1)
    assert re.search(r"convolution +10\.000 ms +20\.0 %", text)
    assert re.search(r"of no known kind +1\.000 ms +2\.0 %", text)
    assert kinds.COLLECTIVES not in text  # nothing of it
    assert len(text.splitlines()) == 8 + 2


GPU = """
planes { name: "/device:GPU:0"
  stat_metadata { key: 1 value { id: 1 name: "hlo_op" } }
  stat_metadata { key: 2 value { id: 2 name: "hlo_module" } }
  stat_metadata { key: 3 value { id: 3 name: "program_id" } }
  event_metadata { key: 1 value { id: 1 name: "loop_add_fusion_1" } }
  event_metadata { key: 2 value { id: 2 name: "MemcpyH2D" } }
  lines { id: 1 name: "Stream #13(Kernel)" timestamp_ns: 1000
    events { metadata_id: 1 offset_ps: 5000000 duration_ps: 2000000
      stats { metadata_id: 1 str_value: "fusion.1" }
      stats { metadata_id: 2 str_value: "jit_train_steps" }
      stats { metadata_id: 3 int64_value: 7 } } }
  lines { id: 2 name: "Stream #14(MemcpyH2D)" timestamp_ns: 1000
    events { metadata_id: 2 offset_ps: 9000000 duration_ps: 1000000 } } }
planes { name: "/host:CPU"
  stat_metadata { key: 1 value { id: 1 name: "hlo_op" } }
  event_metadata { key: 1 value { id: 1 name: "profiled steps" } }
  event_metadata { key: 2 value { id: 2 name: "cuLaunchKernel" } }
  lines { id: 1 name: "python" timestamp_ns: 1000
    events { metadata_id: 1 offset_ps: 0 duration_ps: 20000000 }
    events { metadata_id: 2 offset_ps: 0 duration_ps: 20000000
      stats { metadata_id: 1 str_value: "fusion.1" } } } }
"""
TPU = """
planes { name: "/device:TPU:0"
  event_metadata { key: 1 value { id: 1 name: "%fusion.1 = f32[8]{0} fusion(%x), kind=kLoop" } }
  event_metadata { key: 2 value { id: 2 name: "jit_train_steps(77)" } }
  event_metadata { key: 3 value { id: 3 name: "jit_step(78)" } }
  lines { id: 1 name: "XLA Modules" timestamp_ns: 1000
    events { metadata_id: 2 offset_ps: 0 duration_ps: 8000000 }
    events { metadata_id: 3 offset_ps: 8000000 duration_ps: 8000000 } }
  lines { id: 2 name: "XLA Ops" timestamp_ns: 1000
    events { metadata_id: 1 offset_ps: 5000000 duration_ps: 2000000 }
    events { metadata_id: 1 offset_ps: 9000000 duration_ps: 1000000 } } }
planes { name: "/host:CPU"
  event_metadata { key: 1 value { id: 1 name: "profiled steps" } }
  lines { id: 1 name: "python" timestamp_ns: 1000
    events { metadata_id: 1 offset_ps: 0 duration_ps: 20000000 } } }
"""
CPU = """
planes { name: "/host:CPU"
  stat_metadata { key: 1 value { id: 1 name: "hlo_op" } }
  stat_metadata { key: 2 value { id: 2 name: "hlo_module" } }
  stat_metadata { key: 3 value { id: 3 name: "program_id" } }
  stat_metadata { key: 4 value { id: 4 name: "_p" } }
  stat_metadata { key: 5 value { id: 5 name: "_c" } }
  event_metadata { key: 1 value { id: 1 name: "profiled steps" } }
  event_metadata { key: 2 value { id: 2 name: "fusion.1" } }
  event_metadata { key: 3 value { id: 3 name: "end: fusion.1" } }
  lines { id: 1 name: "python" timestamp_ns: 1000
    events { metadata_id: 1 offset_ps: 0 duration_ps: 20000000 } }
  lines { id: 2 name: "tf_XLAPjRtCpuClient/1" timestamp_ns: 1000
    events { metadata_id: 2 offset_ps: 5000000 duration_ps: 500000
      stats { metadata_id: 1 str_value: "fusion.1" }
      stats { metadata_id: 2 str_value: "jit_train_steps" }
      stats { metadata_id: 3 int64_value: 7 }
      stats { metadata_id: 4 int64_value: 11 } } }
  lines { id: 3 name: "tf_XLAEigen/2" timestamp_ns: 1000
    events { metadata_id: 3 offset_ps: 7000000 duration_ps: 1000
      stats { metadata_id: 5 int64_value: 11 } } } }
"""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            GPU,
            [
                Run(6000, 8000, "fusion.1", "jit_train_steps", 7),
                Run(10_000, 11_000, "MemcpyH2D", "", None),
            ],
        ),
        (
            TPU,
            [
                Run(6000, 8000, "fusion.1", "jit_train_steps", "jit_train_steps(77)"),
                Run(10_000, 11_000, "fusion.1", "jit_step", "jit_step(78)"),
            ],
        ),
        (CPU, [Run(6000, 8000, "fusion.1", "jit_train_steps", 7)]),
    ],
    ids=["gpu", "tpu", "cpu"],
)
def test_traces_of_each_backend_are_read(text, expected):
    serialized = ProfileData.text_proto_to_serialized_xspace(text)
    assert read(ProfileData.from_serialized_xspace(serialized)) == (expected, 20_000)


QUIET = {"log.eval_every": 0, "log.sample_every": 0, "checkpoint.best": ""}


def profiler(folder, text):
    return Profiler(span(text), folder / "profile")


def tables(folder):
    """{folder of a trace: its table as JSON}, of a run."""
    found = (folder / "profile").glob("*/plugins/profile/*/table.json")
    return {path.parents[3].name: json.loads(path.read_text()) for path in found}


def test_a_step_of_a_unet_is_told_apart(tmp_path, capsys):
    """The smallest one with an attention, on two devices."""
    config = ddpm_digits.get_config("smoke")
    with config.unlocked():
        config.network.update({"multipliers": (1,), "attention": (4,), "dropout": 0.1})
    recipe = toys.recipe_of(build.build(config, toys.SPEC), toys.config())
    mesh = sharding.make_mesh(jax.devices()[:2])
    target = sharding.abstract_state(recipe, mesh, "replicated")
    state = sharding.new_state(recipe, target, 0)
    jitted = sharding.compile_steps(recipe, mesh, target, {})
    images = np.zeros((1, 1, 4, *toys.SPEC.shape), np.uint8)
    recording = profiler(tmp_path, "1:2")
    for step in range(3):
        feed = sharding.put(mesh, {"x": images}, axis=2)
        state, _ = recording.run(jitted, lambda _: ((0,), 1), step, state, {}, {}, feed)
    found = tables(tmp_path)
    assert list(found) == ["steps-1-3"]
    table = found["steps-1-3"]
    assert table["steps"] == [1, 3]
    of = table["kinds"]
    assert sum(of.values()) == pytest.approx(table["ms_per_step"])
    assert sum(row["ms"] for row in table["operations"]) <= table["ms_per_step"]
    assert min(of.values()) >= 0
    for kind in (
        kinds.CONVOLUTION, kinds.MATRIX, kinds.NORM, kinds.RANDOM, kinds.OPTIMIZER,
        kinds.COLLECTIVES,
    ):  # fmt: skip
        assert of[kind] > 0, kind
    assert of[kinds.UNKNOWN] == of[kinds.OTHER] == 0
    scopes = dict.fromkeys(kinds.KINDS, "")
    for row in table["operations"]:
        scopes[row["kind"]] += row["scope"]
    assert "/optimizer/" in scopes[kinds.OPTIMIZER]
    assert "/ema/" in scopes[kinds.OPTIMIZER]
    assert "norm1" in scopes[kinds.NORM]
    (place,) = (tmp_path / "profile" / "steps-1-3").glob("plugins/profile/*")
    assert (place / "perfetto_trace.json.gz").is_file()
    said = capsys.readouterr().out
    assert (place / "table.txt").read_text() in said
    assert f"trace and table are in {place}" in said


def test_profiled_steps_change_no_bit(whole_runs, tmp_path):
    """Of two programs, since a penalty runs every fourth step."""
    state = toys.train(tmp_path, "two", profiler=profiler(tmp_path, "3:2"))
    workdir, expected = whole_runs["two"]
    assert toys.same(state, expected)
    assert toys.rows(tmp_path) == toys.rows(workdir)
    assert list(tables(tmp_path)) == ["steps-3-5"]


def test_dispatches_are_traced_whole(tmp_path):
    changes = QUIET | {"log.every": 3, "checkpoint.every": 3, "train.steps_per_dispatch": 3}
    state = toys.train(tmp_path / "a", "one", changes, profiler=profiler(tmp_path / "a", "4:1"))
    assert toys.same(state, toys.train(tmp_path / "b", "one", changes))
    (table,) = tables(tmp_path / "a").values()
    assert table["steps"] == [3, 6]


def test_a_resumed_run_that_is_beyond_the_span_is_refused(tmp_path):
    changes = QUIET | {"train.steps": 2}
    toys.train(tmp_path, "one", changes)
    with pytest.raises(SettingError, match="goes on from step 2: take a START of 2 or more"):
        toys.train(tmp_path, "one", QUIET, profiler=profiler(tmp_path, "1:2"))
    toys.train(tmp_path, "one", QUIET, profiler=profiler(tmp_path, "2:1"))  # its first dispatch
    assert list(tables(tmp_path)) == ["steps-2-3"]


@pytest.mark.parametrize("text", ["5", "4:0", "3:2", "9:1"])
def test_a_wrong_span_is_refused_before_anything_is_written(tmp_path, text):
    config = ddpm_digits.get_config("smoke")  # of 4 steps
    with pytest.raises(SettingError, match=f"--profile={text}"):
        command.run(config, tmp_path / "run", profile=text)
    assert not (tmp_path / "run").exists()


@pytest.fixture
def counted():
    """A dispatch of (number of steps done, ..., feed), and its plan: two steps each."""

    def move(active, x, feed):
        x = x + active[0] * feed.sum()
        return x, x * 2

    jitted = jax.jit(move, static_argnums=0, donate_argnums=1)
    return jitted, lambda step: ((1,), 2), jnp.zeros(()), jnp.ones((2, 3))


def test_a_run_that_stops_within_the_span_has_a_table(counted, tmp_path, capsys):
    jitted, plan, x, feed = counted
    recording = profiler(tmp_path, "3:9")
    for step in (0, 2, 4):
        x, _ = recording.run(jitted, plan, step, x, feed)
    assert not (tmp_path / "profile" / "steps-2-12").exists()
    recording.close()
    assert float(x) == 18
    assert tables(tmp_path)["steps-2-12"]["steps"] == [2, 6]
    assert "steps 2 to 6" in capsys.readouterr().out
    recording.close()  # which has nothing to do any more
    assert not capsys.readouterr().out


def test_a_run_that_never_comes_to_the_span_leaves_nothing(counted, tmp_path):
    jitted, plan, x, feed = counted
    recording = profiler(tmp_path, "3:9")
    recording.run(jitted, plan, 0, x, feed)  # after which the trace begins
    recording.close()
    assert not tables(tmp_path)


def test_a_compilation_on_disk_under_other_names_is_not_taken(counted, tmp_path):
    """Its key leaves names out, unless told otherwise; other programs are looked for as before."""
    name = "jax_compilation_cache_include_metadata_in_key"
    told = []

    class Jitted:
        def lower(self, *arguments):
            return self

        def compile(self):
            told.append(getattr(jax.config, name))
            return lambda x, feed: (x, ())

    profiler(tmp_path, "3:9").run(Jitted(), *counted[1:2], 0, *counted[2:])
    assert told == [True]
    assert getattr(jax.config, name) is False
