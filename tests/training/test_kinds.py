"""What a step's time goes to: operations of a program, traces of each backend, the table."""

import re

import pytest
from jax.profiler import ProfileData

from aigc_jax.training import hlo, kinds
from aigc_jax.training.kinds import Run, read, shares, table

MS = 1e6  # ns


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
    program = hlo.read(PROGRAM)
    assert program.module == "jit_train_steps"
    assert {name: kinds.kind_of(program, name) for name in EXPECTED} == EXPECTED


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
    other = hlo.read(PROGRAM.replace("mul.5", "div.5"))  # of fewer of these names
    found = table(ran, 100 * MS, [other, hlo.read(PROGRAM)], steps=2)
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
