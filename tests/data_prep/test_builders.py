"""The builders on downloads in the released layouts: TFDS's own checks, splits, streams, order."""

from __future__ import annotations

import itertools
import os
import pathlib
import shutil
import subprocess
import sys
import unittest
from fractions import Fraction
from typing import ClassVar

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import pytest
import tensorflow_datasets as tfds

from tests.data_prep import layouts
from vsr_jax.data_prep import built, flow_labels
from vsr_jax.data_prep.builders.gopro import gopro_dataset_builder as gopro
from vsr_jax.data_prep.builders.reds import reds_dataset_builder as reds
from vsr_jax.data_prep.builders.reds import release
from vsr_jax.data_prep.builders.vfhq import vfhq_dataset_builder as vfhq
from vsr_jax.data_prep.opening import open_clips
from vsr_jax.errors import UserError
from vsr_jax.images import decode_image
from vsr_jax.ops.resize import resize_bicubic

ROOT = pathlib.Path(__file__).resolve().parents[2]
FRAMES = 2  # a clip; the numbers of clips are those released
REDS_STREAMS = ("sharp", "sharp_bicubic", "blur_bicubic", "blur")


def tfds_checks(dataset_class, variant, splits, root):
  """TFDS's checks as a test case: of one variant, from downloads in `root`."""

  class Checks(tfds.testing.DatasetBuilderTestCase):  # imports TensorFlow, which takes seconds
    DATASET_CLASS = dataset_class
    BUILDER_CONFIG_NAMES_TO_TEST: ClassVar = [variant]
    SPLITS: ClassVar = splits
    EXAMPLE_DIR = str(root)
    # TensorFlow's helper of this name would be loaded as a test, and skipped.
    test_session = property(lambda self: self.cached_session)

    def _assertAsDataset(self, builder):
      """The files are read by `as_data_source`: as_dataset has no way to read array_record."""
      seen = set()
      for split, count in self.SPLITS.items():
        examples = list(builder.as_data_source(split))
        self.assertLen(examples, count)
        for example in examples:
          assert example.keys() == builder.info.features.keys()
          assert example["num_frames"] == FRAMES
          streams = builder.builder_config.streams
          key = tuple(frame for stream in streams for frame in example[stream])
          assert key not in seen  # no clip is in two splits
          seen.add(key)

  return Checks


def write_reds(root, variant):
  streams = tuple(s for s in REDS_STREAMS if s in reds.Builder.builder_configs[variant].streams)
  subsets = dict(list(release.CLIPS.items())[: 2 + variant.endswith("official")])
  layouts.write_reds(root, streams, {name: range(n) for name, n in subsets.items()}, FRAMES)


@pytest.mark.parametrize(
  ("builder", "variant", "splits", "write"),
  [
    (reds.Builder, "x4", {"train": 266, "test": 4}, write_reds),
    (reds.Builder, "x1_official", {"train": 240, "validation": 30, "test": 30}, write_reds),
    (
      vfhq.Builder,
      "512",
      {"train": 14},
      lambda root, _: layouts.write_vfhq_train(root, range(14), FRAMES),
    ),
    (
      vfhq.Builder,
      "test_mild",
      {"test": 50},
      lambda root, _: layouts.write_vfhq_test(root, range(50), FRAMES),
    ),
    (
      gopro.Builder,
      "x4",
      {"train": 22, "test": 11},
      lambda root, _: layouts.write_gopro(root, FRAMES),
    ),
  ],
)
def test_tfds_accepts(builder, variant, splits, write, tmp_path, monkeypatch):
  monkeypatch.setattr(release, "FRAMES", FRAMES)
  write(tmp_path, variant)
  checks = unittest.defaultTestLoader.loadTestsFromTestCase(
    tfds_checks(builder, variant, splits, tmp_path)
  )
  result = unittest.TestResult()
  checks.run(result)
  assert result.testsRun == 5
  assert not result.failures + result.errors + result.skipped


def build(builder_class, variant, root, out, partial=True, **config):
  builder = builder_class(config=variant, data_dir=out)
  builder.partial = partial
  builder.download_and_prepare(
    download_config=tfds.download.DownloadConfig(manual_dir=root, **config)
  )
  return builder


@pytest.fixture(scope="module")
def small_reds(tmp_path_factory):
  """The variant x4 of thirteen clips, two of them of REDS4: its downloads and its folder."""
  root, out = tmp_path_factory.mktemp("reds"), tmp_path_factory.mktemp("out")
  layouts.write_reds(root, REDS_STREAMS, {"train": range(12), "val": range(1)}, 3)
  build(reds.Builder, "x4", root, out)
  return root, out


def test_the_training_split_is_made_by_rule(small_reds):
  _, out = small_reds
  train = built.open_records("reds/x4", out, "train")
  numbers = [*range(1, 11), 240]
  assert [clip.name for clip in map(train.__getitem__, range(len(train)))] == [
    f"{n:03d}" for n in numbers
  ]
  assert [clip["name"] for clip in train.clips] == [f"{n:03d}" for n in numbers]
  test = built.open_records("reds", out, "test")
  assert [test[i].name for i in range(len(test))] == ["000", "011"]
  # Two shards: eight clips and three.
  assert sorted(p.name for p in (out / "reds/x4/1.0.0").glob("reds-train*")) == [
    f"reds-train.array_record-{i:05d}-of-00002" for i in range(2)
  ]
  assert not list((out / "reds/x4").glob("*unfinished*"))


def test_streams_are_the_files_as_released(small_reds):
  _, out = small_reds
  clip = built.open_records("reds/x4", out, "train")[10]  # validation clip 000
  assert (clip.length, clip.rate, len(clip.landmarks)) == (3, 24, 0)
  assert list(clip.streams) == ["sharp", "sharp_bicubic", "blur_bicubic"]
  for k, (stream, frames) in enumerate(clip.streams.items()):
    size = (8, 12) if stream == "sharp" else (2, 3)
    assert list(frames) == [layouts.png(5000 + 4 * i + k, *size) for i in range(3)]
    assert frames[1:] == [frames[1], frames[2]]
    assert clip.decode(stream, 0).shape == (*size, 3)


def test_clips_that_the_released_script_moved_are_put_back(small_reds, tmp_path):
  root, out = small_reds
  layouts.write_reds(tmp_path, REDS_STREAMS, {"train": range(21), "val": range(2)}, 1, zipped=False)
  build(reds.Builder, "x4", tmp_path, tmp_path / "before")
  for stream in REDS_STREAMS:
    train, val = (
      tmp_path / f"{subset}_{stream}" / layouts.reds_folder(subset, stream)
      for subset in ("train", "val")
    )
    for i in range(2):
      (val / f"{i:03d}").rename(train / f"{240 + i}")
    for name in ("000", "011", "015", "020"):
      (train / name).rename(val / name)
  for variant in ("x4", "x4_official"):
    build(reds.Builder, variant, tmp_path, tmp_path / "after")
  for split in ("train", "test"):
    before = built.open_records("reds", tmp_path / "before", split)
    after = built.open_records("reds/x4", tmp_path / "after", split)
    assert before.clips == after.clips
    assert [list(before[i].streams["sharp"]) for i in range(len(before))] == [
      list(after[i].streams["sharp"]) for i in range(len(after))
    ]
  official = built.open_records("reds/x4_official", tmp_path / "after", "validation")
  assert [official[i].name for i in range(2)] == ["000", "001"]


def test_the_official_test_has_no_truth(tmp_path):
  layouts.write_reds(tmp_path, REDS_STREAMS, {"train": range(2), "test": range(2)}, 2)
  build(reds.Builder, "x4_official", tmp_path, tmp_path / "out")
  clip = built.open_records("reds", tmp_path / "out", "test")[1]
  assert len(clip.streams["sharp"]) == 0
  assert len(clip.streams["sharp_bicubic"]) == len(clip.streams["blur_bicubic"]) == 2
  with pytest.raises(IndexError):
    clip.streams["sharp"][0]


def test_gopros_reductions_are_matlabs_of_the_blur_asked_for(tmp_path):
  layouts.write_gopro(tmp_path, 2)
  for variant, k in (("x4", 1), ("x4_gamma", 2)):
    build(gopro.Builder, variant, tmp_path, tmp_path / "out", partial=False)
    train = built.open_records(f"gopro/{variant}", tmp_path / "out", "train")
    clip = train[3]
    assert clip.name == "GOPR0375_11_00"
    assert clip.rate == pytest.approx(240 / 11)
    for stream, seed in (("sharp_bicubic", 0), ("blur_bicubic", k)):
      frame = decode_image(layouts.png(32 * 3 + 4 + seed, 8, 12), "x")
      small = clip.decode(stream, 1)
      np.testing.assert_array_equal(small, resize_bicubic(frame, Fraction(1, 4)))
    assert clip.streams["sharp"][1] == layouts.png(32 * 3 + 4, 8, 12)
  build(gopro.Builder, "x1_gamma", tmp_path, tmp_path / "out", partial=False)
  clip = built.open_records("gopro/x1_gamma", tmp_path / "out", "test")[0]
  assert clip.streams["blur"][0] == layouts.png(4002, 8, 12)


def test_vfhqs_landmarks_go_with_their_frames(tmp_path):
  layouts.write_vfhq_train(tmp_path, range(4), 3)
  build(vfhq.Builder, "512", tmp_path, tmp_path / "out", partial=False)
  source = built.open_records("vfhq/512", tmp_path / "out", "train")
  assert [source[i].name for i in range(4)] == [layouts.vfhq_name(i) for i in range(4)]
  for i in range(4):
    assert source[i].rate == 25
    np.testing.assert_array_equal(source[i].landmarks, [layouts.points(i, k) for k in range(3)])
    assert list(source[i].streams["sharp"]) == [
      layouts.png(100 * i + k, 512, 512) for k in range(3)
    ]


def test_vfhqs_test_pairs_truth_and_low_quality(tmp_path):
  layouts.write_vfhq_test(tmp_path, range(2), 2)
  build(vfhq.Builder, "test_mild", tmp_path, tmp_path / "out")
  clip = built.open_records("vfhq", tmp_path / "out", "test")[1]
  assert clip.rate == 0
  assert [clip.decode(s, 1).shape[0] for s in ("sharp", "low_quality")] == [
    512,
    128,
  ]
  assert clip.streams["low_quality"][1] == layouts.png(101, 128, 128)


def test_clips_outside_vfhqs_list_are_left_out_and_named(tmp_path, caplog):
  layouts.write_vfhq_train(tmp_path, range(3), 2)
  text = (tmp_path / "global_meta_info.txt").read_text().splitlines()
  (tmp_path / "global_meta_info.txt").write_text("\n".join(text[:2]))
  build(vfhq.Builder, "512", tmp_path, tmp_path / "out", partial=False)
  assert len(built.open_records("vfhq", tmp_path / "out", "train")) == 2
  last = text[2].rpartition("/")[0].rpartition("/")[2]
  assert f"1 clips are not in {tmp_path / 'global_meta_info.txt'} and are left out: {last}" in (
    caplog.text
  )


def test_beam_makes_the_same_files(small_reds, tmp_path):
  root, out = small_reds
  from apache_beam.options.pipeline_options import PipelineOptions

  options = PipelineOptions(["--runner=DirectRunner"])
  build(reds.Builder, "x4", root, tmp_path, beam_options=options)
  names = sorted(path.name for path in (out / "reds/x4/1.0.0").iterdir())
  assert names == sorted(path.name for path in (tmp_path / "reds/x4/1.0.0").iterdir())
  for name in names:
    if "array_record" in name or name == built.INDEX:
      made = (tmp_path / "reds/x4/1.0.0" / name).read_bytes()
      assert made == (out / "reds/x4/1.0.0" / name).read_bytes(), name


def test_tfds_reads_the_same_without_tensorflow(small_reds):
  _, out = small_reds
  code = f"""
import sys
import tensorflow_datasets as tfds
from vsr_jax.data_prep import built
builder = tfds.builder_from_directory({str(out / "reds/x4/1.0.0")!r})
for split in ("train", "test"):
  theirs = builder.as_data_source(split)
  ours = built.open_records("reds/x4", {str(out)!r}, split)
  assert len(theirs) == len(ours)
  for i in reversed(range(len(ours))):
    clip = ours[i]
    assert theirs[i]["name"].decode() == clip.name
    assert theirs[i]["fps"] == clip.rate
    assert theirs[i]["num_frames"] == clip.length
    assert theirs[i]["landmarks"].shape[0] == len(clip.landmarks)
    for stream, frames in clip.streams.items():
      assert theirs[i][stream].tolist() == list(frames)
assert "tensorflow" not in sys.modules
"""
  subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_flow_labels_go_with_a_built_split(small_reds, tmp_path, monkeypatch, capsys):
  shutil.copytree(small_reds[1], tmp_path, dirs_exist_ok=True)
  folder = built.find_folder("reds/x4", tmp_path)
  monkeypatch.setattr(flow_labels.raft_conversion, "load", lambda _: (None, {}))
  numbers = itertools.count()

  def estimate(centres, neighbours):
    assert centres.shape == neighbours.shape == (4, 2, 3, 3)
    return np.full((4, 2, 3, 2), next(numbers), np.float32)

  monkeypatch.setattr(flow_labels, "make_estimate", lambda *_, **__: estimate)
  command = ["flow_labels", str(folder), "--weights", "some.pth", "--batch", "4"]
  for split, count in (("train", 11), ("test", 2)):
    monkeypatch.setattr(sys, "argv", [*command, "--split", split])
    for done in (0, count):
      flow_labels.main()
      assert f"{done} of {count} clips have labels" in capsys.readouterr().out
    source = built.Records(folder, split)
    labels = source.labels
    assert list(labels) == [clip["name"] for clip in source.clips]
    assert labels[source[1].name].read(1, 3)[:, 0, 0, 0].tolist()[1] == 0
  # A clip of three frames has four labels, one batch; clips come in order.
  assert built.Records(folder, "train").labels["010"].read(1, 3)[2].tolist() == [[[9, 9]] * 3] * 2
  with pytest.raises(UserError, match="has no split validation, only test, train"):
    flow_labels.find_unlabelled(folder, "validation", 3)
  with pytest.raises(UserError, match="no usable clip of at least 5 frames"):
    flow_labels.find_unlabelled(folder, "train", 5)


def test_released_flow_labels_go_with_a_built_split(small_reds, tmp_path, run_main):
  shutil.copytree(small_reds[1], tmp_path, dirs_exist_ok=True)
  folder, theirs = built.find_folder("reds/x4", tmp_path), tmp_path / "train_flow_bicubic"
  rng = np.random.default_rng(0)
  source = built.Records(folder, "train")
  flows = {}
  for clip in source.clips:
    (theirs / clip["name"]).mkdir(parents=True)
    for neighbour in (0, 2):  # of the only window of three frames
      flow = rng.uniform(-9, 9, (2, 3, 2)).astype(np.float32)
      np.save(theirs / clip["name"] / f"00000001_{neighbour:08d}.npy", flow)
      flows[clip["name"], neighbour] = flow
  missing = theirs / "240" / "00000001_00000002.npy"
  missing.rename(tmp_path / "kept.npy")
  said = run_main(flow_labels.main, folder, "--released", theirs, code=2)
  assert "240: lacks labels of clip 240" in said.err
  (tmp_path / "kept.npy").rename(missing)
  said = run_main(flow_labels.main, folder, "--released", theirs)
  assert "10 of 11 clips have labels" in said.out  # a rerun goes on
  for clip in open_clips(folder, num_frames=3, need_flow=True).clips:
    label = clip.flow.read(1, 3)
    for slot in (0, 2):
      np.testing.assert_allclose(label[slot], flows[clip.name, slot], atol=2**-8)
    assert not label[1].any()


def test_reading_needs_neither_tfds_nor_jax(small_reds):
  code = f"""
import sys
from vsr_jax.data_prep.opening import open_clips
clip = open_clips({str(small_reds[1] / "reds/x4/1.0.0")!r}).clips[0]
assert clip.decode("sharp", 0).shape == (8, 12, 3)
assert not {{"tensorflow", "tensorflow_datasets", "apache_beam", "jax"}} & set(sys.modules)
"""
  subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
