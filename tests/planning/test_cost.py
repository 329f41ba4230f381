"""Costs of compiled programs against closed forms, and the arithmetic of a prediction."""

import jax
import jax.numpy as jnp
import optax
import pytest

from aigc_jax.planning import cost, flops, traffic
from aigc_jax.planning.cost import Cost, Memory, Peaks
from aigc_jax.planning.traffic import Collective
from aigc_jax.training import hlo, sharding

N, B, D = 8, 64, 256  # devices, examples, width
NOTHING = Memory(0, 0, 0, 0)


def costs(flops, moved, memory=NOTHING, collectives=()):
    return Cost(flops, moved, moved, memory, collectives)


@pytest.fixture(scope="module")
def mesh():
    return sharding.make_mesh()


def compiled_step(mesh, mode):
    """A step of gradient descent of one layer, data parallel, its parameters laid out by `mode`."""
    params = {"w": jax.ShapeDtypeStruct((D, D), jnp.float32)}
    target = sharding.laid_out(params, mesh, mode)
    x = jax.ShapeDtypeStruct((B, D), jnp.float32, sharding=sharding.split(mesh))

    def step(params, x):
        grads = jax.grad(lambda p: jnp.mean((x @ p["w"]) ** 2))(params)
        return optax.apply_updates(params, grads)

    shardings = jax.tree.map(lambda leaf: leaf.sharding, target)
    return jax.jit(step, out_shardings=shardings).lower(target, x).compile()


def by_kind(compiled):
    found = traffic.collectives(hlo.read(compiled.as_text()), N)
    assert all(one.group == N for one in found)
    return {one.kind: one.size for one in found}


def test_a_data_parallel_gradient_is_reduced_whole(mesh):
    assert by_kind(compiled_step(mesh, "replicated")) == {"all-reduce": 4 * D * D}


def test_fsdp_gathers_parameters_and_scatters_gradients(mesh):
    found = by_kind(compiled_step(mesh, "fsdp"))
    assert found["all-gather"] == 4 * D * D
    # A CPU reduces whole and takes its part, others scatter: the array is the same.
    assert found.get("reduce-scatter", found.get("all-reduce")) == 4 * D * D


def test_one_device_has_no_collectives():
    alone = sharding.make_mesh(jax.devices()[:1])
    text = compiled_step(alone, "replicated").as_text()
    assert traffic.collectives(hlo.read(text), 1) == ()


TEXT = """\
HloModule jit_f, entry_computation_layout={(f32[8,128]{1,0:T(8,128)})->f32[64,128]{1,0:T(8,128)}}

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[]{:T(128)} parameter(0)
  %b = f32[]{:T(128)} parameter(1)
  ROOT %sum = f32[]{:T(128)} add(%a, %b)
}

%body (p: (s32[], bf16[16,128])) -> (s32[], bf16[16,128]) {
  %p = (s32[]{:T(128)}, bf16[16,128]{1,0:T(8,128)(2,1)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  %x = bf16[16,128]{1,0:T(8,128)(2,1)} get-tuple-element(%p), index=1
  %all-reduce.1 = bf16[16,128]{1,0:T(8,128)(2,1)} all-reduce(%x), channel_id=1, \
replica_groups=[2,4]<=[8], use_global_device_ids=true, to_apply=%add
  ROOT %t = (s32[]{:T(128)}, bf16[16,128]{1,0:T(8,128)(2,1)}) tuple(%i, %all-reduce.1)
}

%condition (p.1: (s32[], bf16[16,128])) -> pred[] {
  %p.1 = (s32[]{:T(128)}, bf16[16,128]{1,0:T(8,128)(2,1)}) parameter(0)
  ROOT %less = pred[]{:T(256)} constant(true)
}

ENTRY %main (x.1: f32[8,128]) -> f32[64,128] {
  %x.1 = f32[8,128]{1,0:T(8,128)} parameter(0)
  %s = s32[]{:T(128)} constant(0)
  %y = bf16[16,128]{1,0:T(8,128)(2,1)} constant({...})
  %start = (s32[]{:T(128)}, bf16[16,128]{1,0:T(8,128)(2,1)}) tuple(%s, %y)
  %while.1 = (s32[]{:T(128)}, bf16[16,128]{1,0:T(8,128)(2,1)}) while(%start), \
condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"10"}}
  %ag = (f32[8,128]{1,0:T(8,128)}, f32[64,128]{1,0:T(8,128)}) all-gather-start(%x.1), \
replica_groups={{0,1,2,3,4,5,6,7}}, dimensions={0}
  ROOT %done = f32[64,128]{1,0:T(8,128)} all-gather-done(%ag)
}
"""


def test_collectives_are_read_with_their_groups_and_rounds():
    found = traffic.collectives(hlo.read(TEXT), 8)
    assert found == (
        Collective("all-gather", 8, 1, 4 * 64 * 128),
        Collective("all-reduce", 4, 10, 10 * 2 * 16 * 128),
    )


@pytest.mark.parametrize(
    ("groups", "size"),
    [
        ("[2,4]<=[8]", 4),
        ("{{0,1},{2,3},{4,5},{6,7}}", 2),
        ("mesh['data'=8] {'data'}", 8),
        ("mesh['data'=2,'model'=4] {'model'}", 4),
        ("{}", 8),
    ],
)
def test_groups_in_every_notation(groups, size):
    text = TEXT.replace("replica_groups=[2,4]<=[8]", f"replica_groups={groups}")
    found = {one.kind: one for one in traffic.collectives(hlo.read(text), 8)}
    assert found["all-reduce"].group == size


def test_rounds_beyond_the_first_move_bytes_again():
    program = hlo.read(TEXT)
    # An all-reduce reads and writes 16 x 128 bfloat16, nine times more; the condition 1 byte.
    assert traffic.loop_bytes(program) == 9 * 2 * 2 * 16 * 128
    assert traffic.unknown_loops(program) == 0
    assert traffic.unknown_loops(hlo.read(TEXT.replace("known_trip_count", "other"))) == 1


# As the compiler for TPUs writes a loop of ten products: no length beside it, and all but the
# arguments and the result on the chip, S(1).
ON_CHIP = """\
%fused (a: f32[512,1024], b: f32[1024,1024]) -> f32[512,1024] {
  %a = f32[512,1024]{1,0:T(8,128)S(1)} parameter(0)
  %b = f32[1024,1024]{1,0:T(8,128)S(1)} parameter(1)
  ROOT %product = f32[512,1024]{1,0:T(8,128)S(1)} convolution(%a, %b), dim_labels=bf_io->bf
}

%body (p: (s32[], f32[512,1024], f32[1024,1024])) -> (s32[], f32[512,1024], f32[1024,1024]) {
  %p = (s32[], f32[512,1024]{1,0:S(1)}, f32[1024,1024]{1,0:S(1)}) parameter(0)
  %one = s32[]{:T(128)S(6)} constant(1)
  %i = s32[]{:T(128)S(6)} get-tuple-element(%p), index=0
  %next = s32[]{:T(128)S(6)} add(%i, %one)
  %x = f32[512,1024]{1,0:T(8,128)S(1)} get-tuple-element(%p), index=1
  %w = f32[1024,1024]{1,0:T(8,128)S(1)} get-tuple-element(%p), index=2
  %y = f32[512,1024]{1,0:T(8,128)S(1)} fusion(%x, %w), kind=kOutput, calls=%fused
  ROOT %t = (s32[], f32[512,1024]{1,0:S(1)}, f32[1024,1024]{1,0:S(1)}) tuple(%next, %y, %w)
}

%condition (q: (s32[], f32[512,1024], f32[1024,1024])) -> pred[] {
  %ten = s32[]{:T(128)S(6)} constant(10)
  %q = (s32[], f32[512,1024]{1,0:S(1)}, f32[1024,1024]{1,0:S(1)}) parameter(0)
  %j = s32[]{:T(128)S(6)} get-tuple-element(%q), index=0
  ROOT %less = pred[]{:T(512)S(6)} compare(%j, %ten), direction=LT
}

ENTRY %main (x.1: f32[512,1024], w.1: f32[1024,1024]) -> f32[512,1024] {
  %zero = s32[]{:T(128)S(6)} constant(0)
  %begin = s32[]{:T(128)S(6)} copy(%zero)
  %x.1 = f32[512,1024]{1,0:T(8,128)} parameter(0)
  %w.1 = f32[1024,1024]{1,0:T(8,128)} parameter(1)
  %w.2 = (f32[1024,1024]{1,0:S(1)}, f32[1024,1024]{1,0:T(8,128)}, u32[]{:S(2)}) copy-start(%w.1)
  %w.3 = f32[1024,1024]{1,0:T(8,128)S(1)} copy-done(%w.2)
  %x.2 = ((f32[512,1024]{1,0}), f32[256,1024]{1,0:S(1)}, s32[]{:S(2)}) slice-start(%x.1)
  %x.3 = f32[256,1024]{1,0:T(8,128)S(1)} slice-done(%x.2)
  %x.4 = ((f32[512,1024]{1,0}), f32[256,1024]{1,0:S(1)}, s32[]{:S(2)}) slice-start(%x.1)
  %x.5 = f32[256,1024]{1,0:T(8,128)S(1)} slice-done(%x.4)
  %x.6 = f32[512,1024]{1,0:T(8,128)S(1)} custom-call(%x.3, %x.5), custom_call_target="Concat"
  %all = (s32[], f32[512,1024]{1,0:S(1)}, f32[1024,1024]{1,0:S(1)}) tuple(%begin, %x.6, %w.3)
  %loop = (s32[], f32[512,1024]{1,0:S(1)}, f32[1024,1024]{1,0:S(1)}) while(%all), \
condition=%condition, body=%body
  %z = f32[512,1024]{1,0:T(8,128)S(1)} get-tuple-element(%loop), index=1
  %out = (f32[512,1024]{1,0}, f32[512,1024]{1,0:S(1)}, u32[]{:S(2)}) copy-start(%z)
  ROOT %done = f32[512,1024]{1,0:T(8,128)} copy-done(%out)
}
"""


def test_a_loop_of_a_tpu_has_its_length_and_what_stays_on_the_chip_is_no_traffic():
    program = hlo.read(ON_CHIP)
    (loop,) = (line for line in program.lines.values() if line.kind == "while")
    assert traffic.rounds(program, loop) == 10
    # The argument x in two halves, the argument w and the result, each once.
    moved = traffic.memory_bytes(program)
    assert moved == pytest.approx(4 * (512 * 1024 + 1024 * 1024 + 512 * 1024), abs=64)
    everything = 4 * (512 * 1024 + 1024 * 1024 + 512 * 1024)
    assert traffic.loop_bytes(program) == pytest.approx(9 * everything, abs=200)
    unknown = hlo.read(ON_CHIP.replace("direction=LT", "direction=NE"))
    assert traffic.unknown_loops(unknown) == 1
    assert traffic.times(unknown)["body"] == 1


@pytest.mark.parametrize(
    ("shape", "size"),
    [("f32[8,4]{1,0}", 128), ("(s32[], bf16[3]{0:T(8,128)S(1)}, pred[5])", 15), ("s4[9]{0}", 5)],
)
def test_sizes_of_types(shape, size):
    assert hlo.size_of(shape) == size


def looped(length):
    def run(x, w):
        return jax.lax.scan(lambda c, _: (jnp.tanh(c @ w), None), x, None, length=length)[0]

    return run


ARGUMENTS = (jax.ShapeDtypeStruct((B, D), jnp.float32), jax.ShapeDtypeStruct((D, D), jnp.float32))


def test_loops_count_by_their_length():
    """Ten rounds are ten times one, in FLOPs to the last and in bytes nearly."""
    one, ten = (
        cost.of_compiled(
            jax.jit(looped(n)).lower(*ARGUMENTS).compile(), flops.count(looped(n), *ARGUMENTS), 1
        )
        for n in (2, 20)
    )
    assert one.flops == 2 * 2 * B * D * D
    assert ten.flops == 10 * one.flops
    assert ten.bytes / one.bytes == pytest.approx(10, rel=0.2)
    assert one.unknown_loops == ten.unknown_loops == 0


def test_flops_of_gradients_remat_branches_and_nested_functions():
    x, w = ARGUMENTS
    product = 2 * B * D * D

    def loss(w, x):
        return jnp.sum(jax.jit(jnp.matmul)(x, w))

    assert flops.count(loss, w, x) == product
    twice = jax.grad(lambda w, x: jnp.sum(jnp.sin(x @ w)))
    assert flops.count(twice, w, x) == 2 * product
    again = jax.grad(jax.checkpoint(lambda w, x: jnp.sum(jnp.sin(x @ w))))
    assert flops.count(again, w, x) == 3 * product
    branch = lambda i, x, w: jax.lax.cond(i > 0, lambda: x @ w, lambda: x)  # noqa: E731
    assert flops.count(branch, jax.ShapeDtypeStruct((), jnp.int32), x, w) == product


def test_flops_of_convolutions_and_of_their_gradients():
    x = jax.ShapeDtypeStruct((4, 8, 8, 16), jnp.float32)
    kernel = jax.ShapeDtypeStruct((3, 3, 16, 32), jnp.float32)

    def conv(x, kernel, stride=1):
        numbers = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            x, kernel, (stride, stride), "SAME", dimension_numbers=numbers
        )

    for stride in (1, 2):
        product = 2 * 4 * (8 // stride) ** 2 * 9 * 16 * 32
        assert flops.count(lambda x, k, s=stride: conv(x, k, s), x, kernel) == product
        grads = jax.grad(lambda x, k, s=stride: jnp.sum(conv(x, k, s) ** 2), (0, 1))
        assert flops.count(grads, x, kernel) == 3 * product


def test_a_prediction_is_the_longer_of_two_plus_links():
    peaks = Peaks(flops=100.0, bandwidth=10.0, links=4.0)
    reduced = Collective("all-reduce", 4, 1, 16)
    found = cost.predicted(costs(500.0, 20.0, collectives=(reduced,)), peaks)
    # Around a ring of 4 an all-reduce sends 2 x 3/4 of the array: 24 bytes at 4 bytes/s.
    assert found == (5.0, 2.0, 6.0)
    assert (found.seconds, found.bound) == (11.0, "links")
    assert cost.predicted(costs(500.0, 90.0), peaks)[:] == (5.0, 9.0, 0.0)
    assert cost.predicted(costs(500.0, 90.0), peaks).bound == "memory"
    assert cost.predicted(costs(950.0, 90.0), peaks).bound == "arithmetic"
    on_chip = costs(500.0, 90.0)._replace(memory_bytes=70.0)
    assert cost.predicted(on_chip, peaks).memory == 9.0
    assert cost.predicted(on_chip.on_memory(), peaks).memory == 7.0
    assert cost.predicted(costs(500.0, 60.0)._replace(memory_bytes=70.0).on_memory(), peaks)[1] == 6
    alone = Peaks(100.0, 10.0, 0.0)  # one chip has no links
    assert cost.predicted(costs(500.0, 90.0), alone).seconds == 9.0


@pytest.mark.parametrize(
    ("kind", "size"),
    [("all-reduce", 1.5), ("all-gather", 0.75), ("reduce-scatter", 0.75), ("all-to-all", 0.75)],
)
def test_bytes_around_a_ring(kind, size):
    assert cost.ring_bytes(Collective(kind, 4, 1, 1)) == size


def test_programs_add_up_and_hold_what_the_largest_holds():
    small = costs(1.0, 2.0, Memory(1, 0, 0, 0), (Collective("all-reduce", 8, 1, 16),))
    large = costs(10.0, 20.0, Memory(0, 0, 5, 0), (Collective("all-reduce", 8, 2, 4),))
    found = cost.added([(small, 1), (large, 3)])
    assert (found.flops, found.bytes, found.memory.total) == (31.0, 62.0, 5)
    assert found.collectives == (Collective("all-reduce", 8, 7, 28),)


@pytest.mark.parametrize("limit", [0, 8, 9, 100, 128, 250, 3001])
@pytest.mark.parametrize("start", [8, 128])
def test_the_largest_batch_is_found_by_bisection(limit, start):
    asked = []

    def holds(size):
        asked.append(size)
        return size <= limit

    found = cost.largest(holds, start, 8)
    best = limit // 8 * 8
    assert found <= best
    assert found % 8 == 0
    assert best - found <= max(best // 16, 7)
    assert len(asked) == len(set(asked)) <= 14


def test_without_a_limit_the_search_ends():
    assert cost.largest(lambda size: True, 8, 8, most=1000) == 512
