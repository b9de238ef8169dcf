"""The command that builds data sets: its summary, how it goes on, and one line for bad input."""

from __future__ import annotations

import errno
import os
import shutil
import sys

import numpy as np
import pytest

from tests.data_prep import layouts
from vsr_jax import cli
from vsr_jax.data_prep import batching, blur_pipeline, build, built, flow_store
from vsr_jax.data_prep.builders import clip_builder, vfhq
from vsr_jax.data_prep.builders.gopro import release as gopro
from vsr_jax.data_prep.builders.reds import release as reds
from vsr_jax.data_prep.opening import open_clips
from vsr_jax.errors import UserError

STREAMS = ("sharp", "sharp_bicubic", "blur_bicubic")


@pytest.fixture
def small(monkeypatch):
  """Makes the released numbers of clips and frames small."""
  monkeypatch.setattr(reds, "CLIPS", {"train": 21, "val": 1, "test": 1})
  monkeypatch.setattr(reds, "FRAMES", 2)


@pytest.fixture
def run(monkeypatch, tmp_path, capfd):
  """Runs the command on tmp_path/in, to tmp_path/out; gives what it printed."""

  def call(*arguments):
    capfd.readouterr()
    places = ["--manual-dir", tmp_path / "in", "--data-dir", tmp_path / "out"]
    monkeypatch.setattr(sys, "argv", ["build", *map(str, [*arguments, *places])])
    build.main()
    return capfd.readouterr().out

  return call


@pytest.fixture
def downloads(tmp_path, small):
  """REDS's three streams as folders."""
  layouts.write_reds(tmp_path / "in", STREAMS, {"train": range(21), "val": range(1)}, zipped=False)
  return tmp_path / "in"


def frame(downloads, stream, clip, name="00000001.png", subset="train"):
  folder = downloads / f"{subset}_{stream}" / layouts.reds_folder(subset, stream)
  return folder / clip / name


def test_a_build_and_a_rerun_over_it(run, downloads, tmp_path):
  text = run("reds")
  assert "train: 18 clips, 36 frames, 0.00 GB; 0 clips skipped" in text
  assert "test: 4 clips, 8 frames" in text
  times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
  text = run("reds")
  assert "out/reds/x4/1.0.0: already built; remove it to build it again" in text
  assert "train: 18 clips" in text
  assert times == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}


def test_the_trainer_reads_what_was_built(run, tmp_path, small, monkeypatch):
  monkeypatch.setattr(reds, "FRAMES", 4)
  subsets = {"train": range(21), "val": range(1)}
  layouts.write_reds(tmp_path / "in", STREAMS, subsets, frames=4, zipped=False, h=24, w=32)
  run("reds")
  folder = tmp_path / "out/reds/x4/1.0.0"
  with pytest.raises(UserError, match="no flow labels for windows of 3.*data_prep.flow_labels"):
    open_clips(folder, num_frames=3, need_flow=True)
  with pytest.raises(UserError, match="no usable clip of at least 5 frames"):
    open_clips(folder, num_frames=5)

  source = built.Records(folder, "train")
  source.flow_folder.mkdir(parents=True)
  for i, entry in enumerate(source.clips):
    labels = np.full((4, 2, 24, 32, 2), i, np.float32)
    flow_store.write_labels(source.flow_folder, entry["name"], labels, 3)
  clips = open_clips(folder, num_frames=3, need_flow=True).clips
  assert (len(clips), clips[0].scale) == (18, 4)
  dataset = blur_pipeline.make_dataset(clips, num_frames=3, crop=16, batch_size=2, seed=0)
  batch = dataset[0]
  assert batch["sharp"].shape == (2, 3, 64, 64, 3)
  assert batch["flow"].shape == (2, 3, 16, 16, 2)
  with batching.BatchReader(dataset, workers=2) as batches:
    for name, value in next(batches).items():
      np.testing.assert_array_equal(value, batch[name])


def test_the_configuration_is_the_one_asked_for(run, downloads, tmp_path):
  with pytest.raises(UserError, match="reds has no variant x2, only x4, x1, x4_official"):
    run("reds", "--config", "x2")
  with pytest.raises(UserError, match=r"neither test_sharp_bicubic\.zip nor a folder"):
    run("reds", "--config", "x4_official")
  assert not list((tmp_path / "out").rglob("*.array_record*"))


def test_bad_clips_are_skipped_named_and_counted(run, downloads):
  for stream in STREAMS:
    frame(downloads, stream, "007").unlink()  # half extracted, alike in all streams
  frame(downloads, "sharp", "009").unlink()
  damaged = frame(downloads, "blur_bicubic", "012")
  damaged.write_bytes(layouts.damage(damaged.read_bytes()))
  frame(downloads, "sharp_bicubic", "013").write_bytes(layouts.png(0, 3, 3))
  text = run("reds")
  assert "train: 14 clips, 28 frames, 0.00 GB; 4 clips skipped" in text
  lines = [line for line in text.splitlines() if line.startswith("skipped")]
  parts = {
    "skipped 007: ": "train_sharp/007 has 1 frames instead of 2",
    "skipped 009: ": "has 1 frames, ",
    "skipped 012: ": "00000001.png is damaged",
    "skipped 013: ": "00000001.png has 3x3 pixels, the frames before it 3x2",
  }
  for line, (start, part) in zip(lines, parts.items(), strict=True):
    assert line.startswith(start)
    assert part in line


def test_no_clip_can_be_used(run, downloads):
  for name in ("000", "011", "015", "020"):
    frame(downloads, "sharp", name).unlink()
  with pytest.raises(UserError, match=r"test: none of its 4 clips can be used: .*has 1 frames, "):
    run("reds")


def test_a_missing_archive(run, downloads):
  shutil.rmtree(downloads / "val_sharp")
  with pytest.raises(
    UserError,
    match=r"in: neither val_sharp\.zip nor a folder val_sharp; get it from https://seungjunnah",
  ):
    run("reds")


def test_a_half_extracted_archive(run, downloads):
  for clip in ("004", "019"):
    shutil.rmtree(frame(downloads, "sharp", clip).parent)
  message = r"train_sharp: 2 of 21 clips are missing \(004 019\); extract the archive again"
  with pytest.raises(UserError, match=message):
    run("reds")
  text = run("reds", "--partial")
  assert "train: 16 clips" in text
  assert "skipped 004: " in text


def test_a_half_downloaded_zip(run, tmp_path, small):
  layouts.write_reds(tmp_path / "in", STREAMS, {"train": range(21), "val": range(1)})
  path = tmp_path / "in" / "train_blur_bicubic.zip"
  path.write_bytes(path.read_bytes()[:-1000])
  with pytest.raises(UserError, match=r"train_blur_bicubic\.zip: not a whole zip"):
    run("reds")


def test_missing_folders_of_gopro_and_vfhq(run, tmp_path, monkeypatch):
  with pytest.raises(UserError, match=r"in: no such folder of downloads; .*vfhq --instructions"):
    run("vfhq")
  (tmp_path / "in").mkdir()
  (tmp_path / "in" / "other.txt").touch()
  with pytest.raises(UserError, match=r"neither a folder VFHQ-512-new nor zips .*; get VFHQ-512"):
    run("vfhq")
  (tmp_path / "in/VFHQ-512-new").mkdir()
  with pytest.raises(UserError, match=r"VFHQ-512-new: holds no folders Clip\+\.\.\. with frames"):
    run("vfhq")
  with pytest.raises(UserError, match=r"neither VFHQ-Test\.zip nor a folder VFHQ-Test; get it"):
    run("vfhq", "--config", "test_mild")
  with pytest.raises(UserError, match=r"neither GOPRO_Large\.zip nor a folder GOPRO_Large; get it"):
    run("gopro")
  layouts.write_gopro(tmp_path / "in", zipped=False)
  shutil.rmtree(tmp_path / "in/GOPRO_Large/train" / layouts.GOPRO_TRAIN[3] / "blur_gamma")
  with pytest.raises(UserError, match="GOPRO_Large: 21 of 22 train clips have frames of blur;"):
    run("gopro", "--config", "x1_gamma")
  monkeypatch.setitem(gopro.CLIPS, "train", 21)
  text = run("gopro", "--config", "x1_gamma")
  assert f"skipped {layouts.GOPRO_TRAIN[3]}: " in text
  assert "sharp has 2 frames, blur 0" in text


def test_bad_vfhq(run, tmp_path):
  root = tmp_path / "in"
  layouts.write_vfhq_train(root, range(4), 2)
  text = root / "meta_info" / f"{layouts.vfhq_name(1)}.txt"
  text.write_text(text.read_text().replace(" 41.000", "", 1))
  (root / "meta_info" / f"{layouts.vfhq_name(2)}.txt").unlink()
  printed = run("vfhq")
  assert "train: 2 clips, 4 frames" in printed
  assert f"{layouts.vfhq_name(1)}.txt:2: 10 words instead of" in printed
  assert f"{layouts.vfhq_name(2)}.txt is missing" in printed
  shutil.rmtree(tmp_path / "out")

  shutil.rmtree(root / "meta_info")
  with pytest.raises(UserError, match=r"meta_info: missing, the folder of the landmarks by clip"):
    run("vfhq")
  with (root / "global_meta_info.txt").open("a") as f:
    f.write("Clip+gone+P0+C0+F1-3/2\n")
  with pytest.raises(UserError, match=r"1 of 5 clips are missing \(Clip\+gone\+P0"):
    run("vfhq")
  with (root / "global_meta_info.txt").open("a") as f:
    f.write("Clip+odd 7\n")
  with pytest.raises(UserError, match=r"global_meta_info\.txt:6: 'Clip\+odd 7' is not CLIP/FRAMES"):
    run("vfhq")


def test_duplicate_clips(run, tmp_path):
  root = tmp_path / "in"
  layouts.write_vfhq_train(root, range(4), 1)
  name = layouts.vfhq_name(1)  # which is in the zip
  (root / "VFHQ-512-new" / name).mkdir()
  (root / "VFHQ-512-new" / name / "00000000.png").write_bytes(layouts.png(0, 512, 512))
  with pytest.raises(UserError, match=r"VFHQ-512-new/Clip.*: a clip .* is in .*group1\.zip/"):
    run("vfhq")


def test_vfhq_frames_of_another_size_and_length(run, tmp_path):
  root = tmp_path / "in"
  layouts.write_vfhq_train(root, range(4), 2)
  folder = root / "VFHQ-512-new" / layouts.vfhq_name(0)
  for path in folder.iterdir():
    path.write_bytes(layouts.png(0, 510, 512))
  lines = (root / "global_meta_info.txt").read_text().replace(f"{layouts.vfhq_name(2)}/2", "{}/5")
  (root / "global_meta_info.txt").write_text(lines.format(layouts.vfhq_name(2)))
  printed = run("vfhq")
  assert "512x510 instead of 512x512 pixels" in printed
  assert "has 2 frames instead of 5" in printed


def made(tmp_path):
  folder = tmp_path / "out/reds/x4/1.0.0.unfinished"
  paths = sorted(folder.glob("*.array_record*"))
  return {path.name: path.stat().st_mtime_ns for path in paths if path.suffix != ".json"}


def interrupt_after(monkeypatch, shards, error):
  """The command fails while it makes the shard after so many."""
  whole, count = clip_builder.make_shard, iter(range(100))

  def make(shard):
    if next(count) == shards:
      raise error
    whole(shard)

  monkeypatch.setattr(clip_builder, "make_shard", make)


def test_an_interrupted_build_goes_on(run, downloads, tmp_path, monkeypatch):
  with monkeypatch.context() as patch:
    interrupt_after(patch, 2, KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
      run("reds")
  before = made(tmp_path)
  assert list(before) == [
    "reds-train.array_record-00000-of-00003",
    "reds-train.array_record-00001-of-00003",
  ]
  assert not (tmp_path / "out/reds/x4/1.0.0").exists()
  with monkeypatch.context() as patch:
    interrupt_after(patch, 1, KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
      run("reds")
  after = made(tmp_path)
  assert len(after) == 3
  assert before.items() <= after.items()  # finished shards are not made again
  text = run("reds")
  assert "train: 18 clips" in text
  folder = tmp_path / "out/reds/x4/1.0.0"
  assert {name: (folder / name).stat().st_mtime_ns for name in before}.items() <= after.items()
  assert not (tmp_path / "out/reds/x4/1.0.0.unfinished").exists()


def test_what_a_killed_run_left_is_removed(run, downloads, tmp_path):
  place = tmp_path / "out/reds/x4"
  (place / "incomplete.ABC123_1.0.0").mkdir(parents=True)
  (place / "1.0.0.unfinished").mkdir()
  (place / "1.0.0.unfinished/reds-train.array_record-00000-of-00003.part").write_bytes(b"half")
  (place / "1.0.0.unfinished/reds-train.array_record-00001-of-00003").write_bytes(b"no note")
  assert "train: 18 clips" in run("reds")
  assert [path.name for path in place.iterdir()] == ["1.0.0"]
  names = {path.name for path in (place / "1.0.0").iterdir() if "array_record" not in path.name}
  assert names == {built.INDEX, built.INFO, "features.json"}


def test_a_mended_clip_gets_into_an_unfinished_build(run, downloads, tmp_path, monkeypatch):
  path = frame(downloads, "sharp", "001")
  whole = path.read_bytes()
  path.write_bytes(whole[:-5])
  with monkeypatch.context() as patch:
    interrupt_after(patch, 2, KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
      run("reds")
  path.write_bytes(whole)
  text = run("reds")
  assert "train: 18 clips, 36 frames, 0.00 GB; 0 clips skipped" in text


def test_other_downloads_in_an_unfinished_build(run, downloads, tmp_path, monkeypatch):
  with monkeypatch.context() as patch:
    interrupt_after(patch, 1, KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
      run("reds", "--partial")
  frame(downloads, "sharp", "001", "00000002.png").write_bytes(layouts.png(7, 8, 12))
  for stream in STREAMS[1:]:
    frame(downloads, stream, "001", "00000002.png").write_bytes(layouts.png(7, 2, 3))
  run("reds", "--partial")
  clip = built.open_records("reds", tmp_path / "out", "train")[0]
  assert (clip.name, clip.length) == ("001", 3)


def test_a_full_disk_ends_in_one_line_and_loses_nothing(
  run, downloads, tmp_path, monkeypatch, capfd
):
  with monkeypatch.context() as patch:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "shard")
    interrupt_after(patch, 2, full)
    places = ["--manual-dir", downloads, "--data-dir", tmp_path / "out"]
    patch.setattr(sys, "argv", ["build", "reds", *map(str, places)])
    patch.setattr(cli.signal, "signal", lambda *_: None)  # the tests' process keeps its own
    with pytest.raises(SystemExit) as end:
      cli.run(build.main)
  assert end.value.code == 2
  assert capfd.readouterr().err.splitlines()[-1].startswith("error: no space left on the disk")
  assert len(made(tmp_path)) == 2
  assert "train: 18 clips" in run("reds")


def test_an_unknown_runner_of_beam_is_told_at_once(run, downloads):
  with pytest.raises(UserError, match="--beam-options: Unexpected pipeline runner: NoSuch; name"):
    run("reds", "--beam", "--beam-options=--runner=NoSuch")


def test_a_full_disk_under_beam_is_told_alike(tmp_path, monkeypatch):
  def full(shard):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "shard")

  monkeypatch.setattr(clip_builder, "make_shard", full)
  shard = clip_builder.Shard(str(tmp_path / "x"), (), ())
  config = clip_builder.tfds.download.DownloadConfig(beam_runner="DirectRunner")
  with pytest.raises(OSError, match="No space left") as error:
    clip_builder.make_shards([shard], 1, config)
  assert error.value.errno == errno.ENOSPC


def test_two_runs_at_once(run, downloads, tmp_path, monkeypatch):
  whole = clip_builder.make_shard

  def make(shard):
    monkeypatch.setattr(clip_builder, "make_shard", whole)
    with pytest.raises(UserError, match="another run is writing there"):
      build.main()
    whole(shard)

  monkeypatch.setattr(clip_builder, "make_shard", make)
  assert "train: 18 clips" in run("reds")


@pytest.mark.slow  # starts worker processes that import TensorFlow
def test_beam_with_worker_processes(run, downloads, tmp_path):
  frame(downloads, "sharp", "009").unlink()
  text = run("reds", "--beam")
  assert "train: 17 clips" in text
  assert "skipped 009: " in text


def test_the_instructions_name_every_archive(run):
  for name, words in {
    "reds": [f"{subset}_{stream}.zip" for subset in ("train", "val") for stream in STREAMS],
    "vfhq": ["VFHQ-512-new", "meta_info/CLIP.txt", "VFHQ-Test.zip", vfhq.MILD],
    "gopro": ["GOPRO_Large.zip"],
  }.items():
    text = run(name, "--instructions")
    assert [word for word in words if word not in text] == []


def test_a_missing_extra_is_named(run, downloads, monkeypatch):
  monkeypatch.setitem(sys.modules, "tensorflow", None)
  with pytest.raises(UserError, match=r'tensorflow is not installed; pip install -e "\.\[build\]"'):
    run("reds")


def test_bad_arguments(monkeypatch):
  for arguments, message in (
    (["reds"], "--manual-dir and --data-dir are needed"),
    (["reds", "--manual-dir", "a", "--data-dir", "b", "--beam-options", "x"], "needs --beam"),
    (["imagenet"], "invalid choice"),
    (["reds", "--manual-dir", "a", "--data-dir", "gs://b"], "^gs://b: .* gcloud storage cp -r DIR"),
    (["reds", "--manual-dir", "gs://b", "--data-dir", "a"], "^gs://b: .* folders of a file system"),
  ):
    monkeypatch.setattr(sys, "argv", ["build", *arguments])
    with pytest.raises(UserError, match=message):
      build.main()
