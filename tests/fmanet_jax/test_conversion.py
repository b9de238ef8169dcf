"""The table for released weights: complete in both directions, colours, architecture."""

from __future__ import annotations

import json

import numpy as np
import pytest

from fmanet_jax import conversion
from fmanet_jax.architecture import Architecture
from tests.fmanet_jax import golden
from tests.parity.weights import array
from vsr_jax.conversion import to_state_dict
from vsr_jax.errors import UserError

ENTRY = "feature_extractor.0.weight"


def networks(name="tiny"):
  """The state dicts of Net^D and Net^R, to be changed."""
  return [dict(state) for state in conversion.split_networks(golden.state_dict(name)).values()]


@pytest.mark.parametrize("name", ["full", "tiny_t5", "tiny_biasfree"])
def test_every_tensor_comes_back(name):
  case = golden.load(name)
  for net, state in conversion.split_networks(golden.state_dict(name)).items():
    shapes = {key: x.shape for key, x in state.items()}
    back = to_state_dict(case.params[net], conversion.rules(case.arch)[net], shapes)
    assert back.keys() == state.keys()
    for key, x in state.items():
      np.testing.assert_array_equal(back[key], x, err_msg=key)
  assert all(x.dtype == np.float32 for state in networks(name) for x in state.values())


@pytest.mark.parametrize("name", ["full", "tiny", "tiny_t5", "tiny_biasfree"])
def test_architecture_is_read_off_the_shapes(name):
  case = golden.load(name)
  released = json.loads(str(case.data["config"]))
  assert case.arch == Architecture(
    dim=released["dim"],
    frames=released["num_seq"],
    scale=released["scale"],
    kernel_down=released["ds_kernel_size"],
    kernel_up=released["us_kernel_size"],
    flows=released["num_flow"],
    frma_blocks=released["num_FRMA"],
    rdb_blocks=released["num_RDB"],
    growth=released["growth_rate"],
    dense_layers=released["num_dense_layer"],
    attention_blocks=released["num_transformer_block"],
    heads=released["num_heads"],
    ffn_expansion=released["ffn_expansion_factor"],
    norm_bias=released["LayerNorm_type"] == "WithBias",
    use_bias=released["bias"],
  )


def other_scale(scale: int, kernel_up: int, kernel_down: int):
  """The tiny model as the released code would have it, cut to another scale."""
  net_d, net_r = networks()
  dim = net_d[ENTRY].shape[0]
  shapes = {"r_conv.2.weight": (kernel_up**2 * scale**2, dim, 1, 3, 3)}
  dropped = ["upsample.conv2.weight"]
  if scale == 1:
    dropped.append("upsample.conv1.weight")
  else:
    shapes["upsample.conv1.weight"] = (dim * scale**2, dim, 3, 3)
  shapes["d_conv.0.weight"] = (dim, kernel_down**2, 3, 3, 3)
  net_r |= {key: array(key, shape, 0) for key, shape in shapes.items()}
  last = (kernel_down**2, dim, 1, 3, 3)
  net_d["d_conv.2.weight"] = array("d_conv.2.weight", last, 0)
  return net_d, {key: x for key, x in net_r.items() if key not in dropped}


@pytest.mark.parametrize(("scale", "kernel_up", "kernel_down"), [(1, 5, 9), (2, 3, 8), (3, 7, 7)])
def test_other_scales(scale, kernel_up, kernel_down):
  arch, params = conversion.convert_released(*other_scale(scale, kernel_up, kernel_down))
  assert (arch.scale, arch.kernel_up, arch.kernel_down) == (scale, kernel_up, kernel_down)
  assert len(params["net_r"]["upsampler"]) == (1 if scale == 1 else 2)


@pytest.mark.parametrize("expansion", [1.0, 2.0, 2.66, 3.7])
def test_any_width_of_the_feed_forward_network(expansion):
  net_d, net_r = networks()
  hidden = int(18 * expansion)
  net_d["FRMA_blocks.0.multi_attn_block.0.ffn1.project_out.weight"] = np.ones((18, hidden, 1, 1))
  arch = conversion.infer_architecture(net_d, net_r)
  assert int(arch.dim * arch.ffn_expansion) == hidden


def test_colour_order_is_folded_into_the_kernels():
  case, state = golden.load("tiny_biasfree"), networks("tiny_biasfree")
  net_d, net_r = case.params["net_d"], case.params["net_r"]
  theirs = state[0][ENTRY]  # [out in 1 h w]
  np.testing.assert_array_equal(net_d["encoder"]["stem"]["kernel"][:, :, 0, 5], theirs[5, 2, 0])
  theirs = state[1][ENTRY]  # colours, then features
  stem = net_r["encoder"]["stem"]["kernel"]
  np.testing.assert_array_equal(stem[:, :, 2, 5], theirs[5, 0, 0])
  np.testing.assert_array_equal(stem[:, :, 3:, 5], theirs[5, 3:, 0].transpose(1, 2, 0))
  theirs = state[1]["f_conv3.0.weight"]  # flow and masks, then two frames
  n = theirs.shape[1]
  flow_head = net_r["flow_head"]["conv1"]["kernel"]
  order = [*range(n - 6), n - 4, n - 5, n - 6, n - 1, n - 2, n - 3]
  np.testing.assert_array_equal(flow_head, theirs[:, order, 0].transpose(2, 3, 1, 0))
  for net, name, ours in (
    (0, "a_conv.2", net_d["anchor_head"]["conv2"]),
    (1, "a_conv.2", net_r["anchor_head"]["conv2"]),
    (1, "res_conv2", net_r["residual_exit"]),
  ):
    theirs = state[net][f"{name}.weight"].reshape(3, -1, 3, 3)
    np.testing.assert_array_equal(ours["kernel"], theirs[::-1].transpose(2, 3, 1, 0))
    np.testing.assert_array_equal(ours["bias"], state[net][f"{name}.bias"][::-1])


def test_invented_blocks_are_refused_before_a_model_of_them_is_made(monkeypatch):
  monkeypatch.delattr(conversion, "param_shapes")
  for block, field in {
    "FRMA_blocks.{}.x": "frma_blocks",
    "feature_extractor.2.RDBs.{}.x": "rdb_blocks",
    "feature_extractor.2.RDBs.0.layer.{}.x": "dense_layers",
    "FRMA_blocks.0.multi_attn_block.{}.x": "attention_blocks",
  }.items():
    states = networks()
    states[0] |= {block.format(i): np.ones(1, np.float32) for i in range(3000)}
    message = rf"x.pt does not hold an FMA-Net's weights: model.{field} = 3000: must be at most"
    with pytest.raises(UserError, match=message):
      conversion.convert_released(*states, "x.pt")


def test_input_triplets_may_be_counted_from_the_end():
  x = np.arange(8)[None]
  flipped = conversion.flip_inputs(lambda x: x, 0, -3)(x)
  np.testing.assert_array_equal(flipped, [[2, 1, 0, 3, 4, 7, 6, 5]])


@pytest.mark.parametrize(
  ("net", "key", "value", "message"),
  [
    (0, ENTRY, None, f"x.pt does not hold an FMA-Net's weights: missing {ENTRY}"),
    (0, "d_conv.0.weight", np.ones(3), "weights: misshapen tensors"),
    (1, "r_conv.2.weight", np.ones((36 * 16, 18, 1, 3, 3)), "model.kernel_up = 6: must be odd"),
    (1, "upsample.conv3.weight", None, r"\(net_r\) .* missing upsampler/smooth/kernel"),
    (1, "res_conv2.bias", np.ones(3), "unexpected res_conv2.bias"),
    (0, "f_conv.2.weight", np.ones((4, 9, 1, 3, 3)), "f_conv.2.weight of shape .* does not fit"),
  ],
)
def test_deviation_is_an_error(net, key, value, message):
  states = networks()
  states[net].pop(key, None)
  if value is not None:
    states[net][key] = value.astype(np.float32)
  with pytest.raises(UserError, match=message) as error:
    conversion.convert_released(*states, "x.pt")
  assert "\n" not in str(error.value)


def test_swapped_networks_are_refused():
  with pytest.raises(UserError, match="missing"):
    conversion.convert_released(*networks()[::-1])


def test_blocks_are_counted_by_their_numbers():
  net_d, net_r = networks()
  del net_d["FRMA_blocks.1.conv_Fw.weight"]
  with pytest.raises(UserError, match="missing frma_1/fuse/kernel"):
    conversion.convert_released(net_d, net_r)
  net_d = {key: x for key, x in networks()[0].items() if not key.startswith("FRMA_blocks.")}
  with pytest.raises(UserError, match="missing FRMA_blocks.0"):
    conversion.convert_released(net_d, net_r)


def test_upsampling_kernels_are_reordered():
  """The released head's outputs are (sub-pixel, tap), ours (tap, sub-pixel)."""
  theirs = np.arange(4 * 9 * 2, dtype=np.float32).reshape(36, 2, 1, 1, 1)
  table = conversion.rules(Architecture(dim=18, scale=2, kernel_down=4, kernel_up=3))["net_r"]
  rule = next(rule for rule in table if rule.pattern == r"r_conv\.2\.weight")
  ours = rule.transform(theirs)[0, 0]
  for subpixel, tap in np.ndindex(4, 9):
    np.testing.assert_array_equal(
      ours[:, tap * 4 + subpixel], theirs[subpixel * 9 + tap, :, 0, 0, 0]
    )
