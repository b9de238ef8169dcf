"""What compiled programs move, on small texts in HLO's notation and on a compiled program."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec

from vsr_jax import hlo
from vsr_jax.sharding import batch_sharding, make_mesh, replicated

KB = 2**10


def program(*lines, others="", header="num_partitions=4"):
  """A text whose entry has these instructions."""
  body = "\n".join(f"  {line}" for line in lines)
  return (
    f"HloModule m, {header}\n\n{others}\n\nENTRY %main (p: f32[256]) -> f32[256] {{\n{body}\n}}\n"
  )


def collectives(*lines, **options):
  return hlo.analyse(program(*lines, **options)).collectives


@pytest.mark.parametrize(
  ("shape", "size", "padded"),
  [
    ("f32[8,3]{1,0}", 96, 96),
    ("f32[8,3]{1,0:T(8,128)}", 96, 8 * 128 * 4),
    ("f32[8,3]{0,1:T(8,128)}", 96, 8 * 128 * 4),  # 3 rows of 8 numbers: both sides are padded
    ("bf16[720,1280,3]{2,1,0:T(8,128)(2,1)}", 720 * 1280 * 3 * 2, 720 * 1280 * 128 * 2),
    ("bf16[720,1280,3]{1,0,2:T(8,128)(2,1)}", 720 * 1280 * 3 * 2, 720 * 1280 * 3 * 2),
    ("(s32[], pred[5], u4[3])", 4 + 5 + 2, 4 + 5 + 2),
    ("token[]", 0, 0),
  ],
)
def test_arrays_take_bytes_and_tiles_more(shape, size, padded):
  assert hlo.array_bytes(shape) == size
  assert hlo.array_bytes(shape, padded=True) == padded


def test_what_lies_in_vector_memory_is_no_traffic():
  text = program(
    "%p = f32[256]{0:T(256)} parameter(0)",
    "%a = f32[256]{0:T(256)S(1)} negate(%p)",
    "ROOT %b = f32[256]{0:T(256)S(1)} negate(%a)",
  )
  assert hlo.analyse(text).traffic == KB  # p is read


@pytest.mark.parametrize(("space", "traffic"), [("", 2 * KB), ("S(1)", KB)])
def test_a_slice_that_starts_reads_the_slice_and_not_the_array(space, traffic):
  part = f"f32[256]{{0:T(256){space}}}"
  text = program(
    "%p = f32[1024]{0:T(256)} parameter(0)",
    f"%a = ((f32[1024]{{0:T(256)}}), {part}, s32[]{{:S(2)}}) slice-start(%p), slice={{[0:256]}}",
    f"ROOT %b = {part} slice-done(%a)",
  )
  assert hlo.analyse(text).traffic == traffic


@pytest.mark.parametrize(
  ("kind", "groups", "size", "sent"),
  [
    ("all-reduce", "{{0,1,2,3}}", KB, 1.5 * KB),
    ("all-reduce", "{{0,1},{2,3}}", KB, KB),
    ("all-reduce", "[2,2]<=[4]", KB, KB),
    ("all-reduce", "{}", KB, 1.5 * KB),
    ("all-reduce", "mesh['a'=2,'b'=2] {'a'}", KB, KB),
    ("all-reduce", "mesh['a'=4,'b'=1] {'a','b'}", KB, 1.5 * KB),
    ("all-gather", "{{0,1,2,3}}", KB, 0.75 * KB),
    ("all-to-all", "{{0,1,2,3}}", KB, 0.75 * KB),
    ("reduce-scatter", "{{0,1,2,3}}", KB, 3 * KB),
  ],
)
def test_collectives_are_told_with_what_each_device_sends(kind, groups, size, sent):
  lines = (
    "%p = f32[256]{0} parameter(0)",
    f"ROOT %r = f32[256]{{0}} {kind}(%p), channel_id=1, replica_groups={groups}, to_apply=%add",
  )
  assert collectives(*lines) == {kind: hlo.Collective(1, size, sent)}


@pytest.mark.parametrize(
  "line",
  [
    "%r = f32[256]{0} all-reduce(%p), replica_groups={{0},{1},{2},{3}}, to_apply=%add",
    "%r = f32[256]{0} all-reduce(%p), replica_groups=mesh['a'=4,'b'=1] {'b'}, to_apply=%add",
    "%r = f32[256]{0} collective-permute(%p), source_target_pairs={{0,0},{1,1}}",
  ],
)
def test_a_device_alone_exchanges_nothing(line):
  assert collectives("%p = f32[256]{0} parameter(0)", f"ROOT {line}") == {}


def test_collectives_that_start_and_end_count_once():
  groups = "replica_groups={{0,1,2,3}}"
  found = collectives(
    "%p = f32[64]{0} parameter(0)",
    f"%s = (f32[64]{{0}}, f32[256]{{0}}) all-gather-start(%p), {groups}, dimensions={{0}}",
    "%g = f32[256]{0} all-gather-done(%s)",
    f"%t = f32[256]{{0}} all-reduce-start(%g), {groups}, to_apply=%add",
    "%d = f32[256]{0} all-reduce-done(%t)",
    "%u = (f32[256]{0}, f32[256]{0}, u32[], u32[]) collective-permute-start(%d),"
    " source_target_pairs={{0,1},{1,0}}",
    "ROOT %e = f32[256]{0} collective-permute-done(%u)",
  )
  assert {kind: (x.count, x.bytes) for kind, x in found.items()} == {
    "all-gather": (1, KB), "all-reduce": (1, KB), "collective-permute": (1, KB),
  }  # fmt: skip


LOOP = """%body (s: (s32[], f32[256])) -> (s32[], f32[256]) {
  %s = (s32[], f32[256]{0}) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %x = f32[256]{0} get-tuple-element(%s), index=1
  %y = f32[256]{0} all-reduce(%x), replica_groups={{0,1,2,3}}, to_apply=%add
  ROOT %t = (s32[], f32[256]{0}) tuple(%i, %y)
}

%condition (c: (s32[], f32[256])) -> pred[] {
  %c = (s32[], f32[256]{0}) parameter(0)
  ROOT %k = pred[]{:S(1)} constant(true)
}"""


def test_a_loops_body_counts_as_often_as_it_runs():
  text = program(
    "%p = (s32[], f32[256]{0}) parameter(0)",
    "ROOT %w = (s32[], f32[256]{0}) while(%p), condition=%condition, body=%body,"
    ' backend_config={"known_trip_count":{"n":"7"}}',
    others=LOOP,
  )
  found = hlo.analyse(text)
  assert found.collectives == {"all-reduce": hlo.Collective(7, 7 * KB, 7 * 1.5 * KB)}
  assert found.traffic == 7 * 2 * KB


COUNTED = """%body (b: (s32[], f32[256])) -> (s32[], f32[256]) {
  %b = (s32[], f32[256]{0}) parameter(0)
  %i = s32[] get-tuple-element(%b), index=0
  %one = s32[] constant(STEP)
  %next = s32[] add(%i, %one)
  %x = f32[256]{0} get-tuple-element(%b), index=1
  %y = f32[256]{0} negate(%x)
  ROOT %t = (s32[], f32[256]{0}) tuple(%next, %y)
}

%condition (c: (s32[], f32[256])) -> pred[] {
  %c = (s32[], f32[256]{0}) parameter(0)
  %j = s32[] get-tuple-element(%c), index=0
  %end = s32[] constant(7)
  ROOT %k = pred[]{:S(1)} compare(%j, %end), direction=DIRECTION
}"""


@pytest.mark.parametrize(
  ("first", "step", "direction", "turns"),
  [
    ("constant(0)", 1, "LT", 7),
    ("constant(1)", 2, "LT", 3),
    ("constant(0)", 1, "NE", 1),  # not understood
    ("negate(%p)", 1, "LT", 1),
  ],
)
def test_turns_that_xla_does_not_state_are_found_from_the_counter(first, step, direction, turns):
  text = program(
    "%p = f32[256]{0} parameter(0)",
    f"%first = s32[]{{:S(1)}} {first}",
    "%copied = s32[]{:S(1)} copy(%first)",
    "%s = (s32[], f32[256]{0}) tuple(%copied, %p)",
    "ROOT %w = (s32[], f32[256]{0}) while(%s), condition=%condition, body=%body",
    others=COUNTED.replace("STEP", str(step)).replace("DIRECTION", direction),
  )
  assert hlo.analyse(text).traffic // (2 * KB) == turns  # the rest is of the counter


BRANCHES = """%small (a: f32[256]) -> f32[256] {
  ROOT %a = f32[256]{0} parameter(0)
}

%large (b: f32[256]) -> f32[256] {
  %b = f32[256]{0} parameter(0)
  ROOT %n = f32[256]{0} negate(%b)
}"""


def test_of_branches_the_one_that_moves_most_counts():
  text = program(
    "%i = s32[]{:S(1)} constant(0)",
    "%p = f32[256]{0} parameter(0)",
    "ROOT %c = f32[256]{0} conditional(%i, %p, %p), branch_computations={%small, %large}",
    others=BRANCHES,
  )
  assert hlo.analyse(text).traffic == 2 * KB


FUSION = """%fused (x: f32[1024,256], y: s32[]) -> f32[1,256] {
  %x = f32[1024,256]{1,0} parameter(0)
  %y = s32[] parameter(1)
  %z = s32[] constant(0)
  ROOT %d = f32[1,256]{1,0} dynamic-slice(%x, %y, %z), dynamic_slice_sizes={1,256}
}"""


def test_a_fusion_reads_the_slice_and_not_the_array():
  text = program(
    "%p = f32[1024,256]{1,0} parameter(0)",
    "%i = s32[]{:S(1)} parameter(1)",
    "ROOT %f = f32[1,256]{1,0} fusion(%p, %i), kind=kLoop, calls=%fused",
    others=FUSION,
  )
  assert hlo.analyse(text).traffic == 2 * KB


def test_scratch_memory_of_libraries_is_no_traffic():
  text = program(
    "%p = f32[16,16]{1,0} parameter(0)",
    "%c = (f32[16,16]{1,0}, s8[33554432]{0}) custom-call(%p, %p),"
    ' custom_call_target="__cublas$lt$matmul"',
    "ROOT %g = f32[16,16]{1,0} get-tuple-element(%c), index=0",
  )
  assert hlo.analyse(text).traffic == 3 * KB


def test_a_text_without_a_program_is_refused():
  with pytest.raises(ValueError, match="no ENTRY"):
    hlo.analyse("HloModule nothing\n")


def test_a_compiled_gradient_is_all_reduced_and_a_stray_gather_is_found():
  mesh = make_mesh()
  w = jax.ShapeDtypeStruct((64, 64), jnp.float32, sharding=replicated(mesh))
  x = jax.ShapeDtypeStruct((8, 64), jnp.float32, sharding=batch_sharding(mesh))

  def gradient(w, x):
    return jax.grad(lambda w: jnp.square(x @ w).sum())(w)

  def gathered(w, x):
    everywhere = jax.lax.with_sharding_constraint(x, jax.NamedSharding(mesh, PartitionSpec()))
    return jax.grad(lambda w: jnp.square(everywhere @ w).sum())(w)

  def moved(function):
    jitted = jax.jit(function, out_shardings=replicated(mesh))
    return hlo.analyse(jitted.lower(w, x).compile().as_text()).collectives

  size = 64 * 64 * 4
  assert moved(gradient) == {"all-reduce": hlo.Collective(1, size, 1.75 * size)}
  assert "all-gather" in moved(gathered)
