"""The table converter: what fits comes over unchanged, what does not is one error."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vsr_jax import conversion
from vsr_jax.conversion import Rule, convert, to_state_dict
from vsr_jax.errors import UserError

RULES = [
  Rule(r"layer(\d)\.conv\.weight", r"layer_\1/conv/kernel", conversion.conv2d),
  Rule(r"layer(\d)\.conv\.bias", r"layer_\1/conv/bias"),
  Rule(r"head\.weight", "head/kernel", lambda x: x.T[::-1]),
  Rule(r"scale", "scale"),
  Rule(r".*\.num_batches_tracked", None),
]


def source() -> dict[str, np.ndarray]:
  kernel = np.arange(2 * 3 * 5 * 7, dtype=np.float32).reshape(2, 3, 5, 7)
  return {
    "layer0.conv.weight": kernel,
    "layer0.conv.bias": np.arange(2, dtype=np.float32),
    "layer1.conv.weight": kernel + 1000,
    "layer1.conv.bias": np.arange(2, dtype=np.float32) + 1000,
    "layer1.num_batches_tracked": np.array(4),
    "head.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "scale": np.array(2.5, np.float32),
  }


def template() -> dict:
  conv = {"kernel": (5, 7, 3, 2), "bias": (2,)}
  shapes = {"layer_0": {"conv": conv}, "layer_1": {"conv": conv}, "head": {"kernel": (3, 2)}}
  is_shape = lambda x: isinstance(x, tuple)  # noqa: E731
  tree = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s, jnp.float32), shapes, is_leaf=is_shape)
  return tree | {"scale": jax.ShapeDtypeStruct((), jnp.float32)}


def test_converts_every_tensor():
  state = source()
  params = convert(state, RULES, template())
  assert jax.tree.structure(params) == jax.tree.structure(template())
  for i in (0, 1):
    conv = params[f"layer_{i}"]["conv"]
    assert conv["kernel"][4, 6, 2, 1] == state[f"layer{i}.conv.weight"][1, 2, 4, 6]
    np.testing.assert_array_equal(conv["bias"], state[f"layer{i}.conv.bias"])
  np.testing.assert_array_equal(params["head"]["kernel"], state["head.weight"].T[::-1])
  assert params["scale"].shape == ()
  assert params["scale"] == 2.5


def test_reads_the_table_backwards():
  state = source()
  shapes = {key: value.shape for key, value in state.items()}
  back = to_state_dict(convert(state, RULES, template()), RULES, shapes)
  assert back.keys() == state.keys() - {"layer1.num_batches_tracked"}
  for key, value in back.items():
    np.testing.assert_array_equal(value, state[key])


def test_backwards_reports_what_does_not_fit():
  params = convert(source(), RULES, template())
  shapes = {"layer0.conv.bias": (3,), "layer7.conv.bias": (2,), "other": (1,)}
  with pytest.raises(UserError) as error:
    to_state_dict(params, RULES, shapes)
  for part in ("layer_0/conv/bias", "layer_7/conv/bias", "unexpected other"):
    assert part in str(error.value)


@pytest.mark.parametrize("dtype", [np.float64, np.float16, jnp.bfloat16])
def test_leaves_get_the_templates_dtype(dtype):
  state = source() | {"scale": np.array(1.5, dtype)}
  assert convert(state, RULES, template())["scale"].dtype == np.float32


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"extra.weight": np.ones(1)}, "unexpected extra.weight"),
    ({"layer2.conv.bias": np.ones(2)}, "unexpected layer2.conv.bias (there is no layer_2"),
    ({"layer0.conv.bias": np.ones(3)}, "layer0.conv.bias of shape (3,) does not fit"),
    ({"layer0.conv.weight": np.ones((2, 3))}, "layer0.conv.weight of shape (2, 3) does not"),
    ({"scale": np.array(1)}, "scale holds int64"),
    ({"scale": None}, "missing scale"),
  ],
)
def test_deviation_is_an_error(change, message):
  state = {key: value for key, value in (source() | change).items() if value is not None}
  with pytest.raises(UserError, match="some.pth") as error:
    convert(state, RULES, template(), "some.pth")
  assert message in str(error.value)
  assert "\n" not in str(error.value)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
def test_what_is_not_finite_is_named(value):
  state = source()
  state["scale"] = np.array(value, np.float64)
  state["layer1.conv.bias"] = np.array([0, value])
  with pytest.raises(UserError) as error:
    convert(state, RULES, template(), "some.pth")
  named = "some.pth holds NaN or infinite numbers in layer1.conv.bias, scale; fetch it again"
  assert str(error.value).startswith(named)


def test_what_is_dropped_may_be_anything():
  state = source() | {"layer0.num_batches_tracked": np.array(np.nan)}
  assert convert(state, RULES, template())["scale"] == 2.5


def test_ambiguous_table_is_an_error():
  with pytest.raises(UserError, match=r"scale matches several rules.*missing scale"):
    convert(source(), [*RULES, Rule(r"sc.*", "scale")], template())


def test_two_tensors_for_one_leaf_are_an_error():
  state = source() | {"factor": np.array(1.0)}
  with pytest.raises(UserError, match="factor and scale both fill scale"):
    convert(state, [*RULES, Rule("factor", "scale")], template())


def test_one_error_lists_the_first_problems_and_counts_the_rest():
  state = {f"stranger{i}": np.ones(1) for i in range(30)}
  with pytest.raises(UserError) as error:
    convert(state, RULES, template())
  assert "stranger9" in str(error.value)
  assert "stranger10" not in str(error.value)
  assert "and 26 more" in str(error.value)  # 30 strangers and 6 empty leaves, 10 named


@settings(max_examples=20, deadline=None)
@given(
  case=st.sampled_from(
    [
      (conversion.conv2d, "oihw", "hwio"),
      (conversion.conv3d, "oithw", "thwio"),
      (conversion.depthwise, "o1hw", "hwo"),
      (conversion.frame_conv, "oi1hw", "hwio"),
    ]
  ),
  sizes=st.tuples(*[st.integers(1, 4)] * 5),
)
def test_transforms_name_the_axes_they_move(case, sizes):
  transform, theirs, ours = case
  size = dict(zip("oithw", sizes, strict=True)) | {"1": 1}
  x = np.random.default_rng(0).normal(size=[size[a] for a in theirs])
  kept = theirs.replace("1", "")
  expected = np.einsum(f"{kept}->{ours}", x.reshape([size[a] for a in kept]))
  np.testing.assert_array_equal(transform(x), expected)
