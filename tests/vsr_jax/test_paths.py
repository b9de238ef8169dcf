from __future__ import annotations

import json
import multiprocessing.util
import os
import pathlib
import shutil
import tempfile
import warnings

import numpy as np
import pytest
from orbax.checkpoint._src.serialization import tensorstore_utils
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from tests.data_prep.helpers import write_clip_set
from tests.support.bucket import make_bucket
from vsr_jax import checkpoint, files, json_files, paths, torch_files, video_cli
from vsr_jax.checkpoint import export_params, find_checkpoint, read_meta, restore_params
from vsr_jax.data_prep.clip import SHARP
from vsr_jax.data_prep.opening import open_clips
from vsr_jax.errors import UserError
from vsr_jax.train import summaries
from vsr_jax.train.checkpoints import make_folder
from vsr_jax.train.goodput import Goodput
from vsr_jax.train.summaries import Recorder
from vsr_jax.video import outputs

REMEDY = r"; check its name, your rights there \(gcloud auth .*\) and the network, and run again$"


@pytest.fixture
def bucket(monkeypatch):
  return make_bucket(monkeypatch)


def names(folder):
  return list(paths.sizes(paths.place(folder)))


def test_a_path_of_a_file_system_stays_pathlib_s():
  assert paths.place("a/b") == pathlib.Path("a/b")
  assert paths.absolute("a").is_absolute()


def test_what_is_no_bucket_that_can_be_used_is_told(monkeypatch):
  with pytest.raises(UserError, match="^s3://b/run: .* only gs://BUCKET/FOLDER can be used"):
    paths.place("s3://b/run")
  with pytest.raises(UserError, match="^gs://: names no bucket"):
    paths.place("gs://")
  monkeypatch.setattr(paths, "PACKAGE", "a_package_that_nobody_has")
  with pytest.raises(UserError, match=r"^gs://b/run: .*; pip install -e \"\.\[gcs\]\"$"):
    paths.place("gs://b/run")


def test_a_file_is_written_and_read_in_a_bucket(bucket):
  path = paths.place("gs://bucket/run/") / "a.json"
  files.write_whole(path, '{"a": 1}')
  assert bucket.written == ["/bucket/run/a.json"]  # under its name at once
  assert json_files.read(path, json_files.anything) == {"a": 1}
  assert paths.size(path) == 8
  assert paths.is_folder("gs://bucket/run")
  assert not paths.is_folder("gs://bucket/run/a.json")
  assert not paths.is_folder("gs://bucket/ru")
  with pytest.raises(FileNotFoundError):
    json_files.read(path.parent / "b.json", json_files.anything)


def test_a_bucket_that_cannot_be_written_is_told_in_one_line(bucket):
  with pytest.raises(UserError, match=f"^gs://none/run/.*there is no such bucket.*{REMEDY}"):
    make_folder("gs://none/run")
  bucket.failure = OSError("Forbidden: url\ndenied")
  for write in (make_folder, lambda path: export_params(path, {"net": {"w": np.zeros(2)}}, {})):
    with pytest.raises(UserError, match=rf"^gs://bucket/run.* \(Forbidden: url\){REMEDY}"):
      write("gs://bucket/run")
  bucket.failure = TimeoutError()
  with pytest.raises(UserError, match=r"^gs://bucket/run.* \(it does not answer\)"):
    make_folder("gs://bucket/run")
  assert not bucket.store


def test_the_check_of_a_folder_leaves_nothing_there(bucket):
  make_folder("gs://bucket/run")
  assert len(bucket.written) == 1
  assert not bucket.store


def test_a_growing_file_is_put_whole_now_and_then(bucket, monkeypatch):
  path = paths.place("gs://bucket/log")
  path.write_bytes(b"before\n")
  file = paths.GrowingFile(path)
  for line in (b"1\n", b"2\n"):
    file.write(line)
    file.flush()
  assert path.read_bytes() == b"before\n"
  file.put()
  assert path.read_bytes() == b"before\n1\n2\n"
  monkeypatch.setattr(paths, "PUT_EVERY", 0.0)
  file.write(b"3\n")
  file.flush()
  assert path.read_bytes() == b"before\n1\n2\n3\n"
  file.write(b"4\n")
  file.close()
  assert path.read_bytes().endswith(b"3\n4\n")


def test_what_could_not_be_put_is_not_tried_again_at_the_end(bucket):
  file = paths.GrowingFile(paths.place("gs://bucket/log"))
  file.write(b"1\n")
  bucket.failure = OSError("gone")
  with pytest.raises(UserError, match="^gs://bucket/log: the bucket cannot be used"):
    file.put()
  file.close()
  assert len(bucket.written) == 1


def test_requests_of_orbax_that_do_not_get_through_fail_within_minutes():
  checkpoint.context()
  told = tensorstore_utils.get_ts_context().spec.to_json()
  assert told["gcs_request_retries"] == {"max_retries": 8}
  assert os.environ["TENSORSTORE_CURL_LOW_SPEED_TIME_SECONDS"]


def test_a_log_in_a_bucket_is_there_before_a_checkpoint_counts_on_it(bucket):
  folder = paths.place("gs://bucket/run")
  recorder = Recorder(str(folder), 0, log_every=1, running_sums=None)
  for step in (1, 2, 3):
    recorder.add(step, {"loss": step / 4}, dict)
  recorder.put()  # and killed here
  resumed = Recorder(str(folder), 2, log_every=1, running_sums=None)
  resumed.add(3, {"loss": 1.0}, dict)
  resumed.close()
  rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
  assert [(row["step"], row["loss"]) for row in rows] == [(1, 0.25), (2, 0.5), (3, 1.0)]


def test_a_long_event_file_is_followed_by_others_that_can_be_read(bucket, monkeypatch, tmp_path):
  monkeypatch.setattr(summaries, "_LONGEST", 200)
  folder = paths.place("gs://bucket/run")
  recorder = Recorder(str(folder), 0, log_every=1, running_sums=None)
  for step in range(1, 9):
    recorder.add(step, {"loss": 1.0}, dict)
  recorder.close()
  paths.copy_from(folder, tmp_path)
  found, parts = [], sorted(tmp_path.glob("events*"))
  assert len(parts) > 2
  for path in parts:
    found += [event.step for event in EventFileLoader(str(path)).Load() if event.summary.value]
  assert found == list(range(1, 9))


def test_goodput_is_kept_in_a_bucket(bucket):
  for sessions in (1, 2):
    with Goodput("gs://bucket/run") as goodput:
      goodput.begin(0)
    path = paths.place("gs://bucket/run/goodput.json")
    assert json.loads(path.read_text())["sessions"] == sessions


def test_a_bucket_that_vanishes_does_not_hide_why_a_run_ends(bucket):
  def run():
    with Goodput("gs://bucket/run") as goodput:
      goodput.begin(0)
      bucket.failure = OSError("gone")
      raise UserError("the data ended")

  with warnings.catch_warnings():
    warnings.simplefilter("error")
    with pytest.raises(UserError, match="the data ended"):
      run()


def test_an_export_is_written_to_a_bucket_and_read_from_it(bucket):
  path = "gs://bucket/weights"
  for scale in (2, 1):  # The second export replaces the first.
    params = {"net": {"w": scale * np.arange(6, dtype=np.float32)}}
    export_params(path, params, {"config": {"width": 8}})
  like = {"net": {"w": np.zeros(6, np.float32)}}
  np.testing.assert_array_equal(restore_params(path, like)["net"]["w"], params["net"]["w"])
  assert read_meta(path)["config"] == {"width": 8}
  assert find_checkpoint(path) == paths.place(path)
  assert "/meta/" in bucket.written[-1]  # what is read first
  with pytest.raises(UserError, match="^gs://bucket/other: no such folder"):
    restore_params("gs://bucket/other")


def test_damage_in_a_bucket_is_told_of_the_bucket_s_folder(bucket):
  path = "gs://bucket/weights"
  export_params(path, {"net": {"w": np.arange(6, dtype=np.float32)}}, {})
  (paths.place(path) / "params" / "_METADATA").write_bytes(b"{")
  with pytest.raises(UserError, match="^gs://bucket/weights: damaged, its params cannot be read"):
    restore_params(path)


def test_an_export_to_a_bucket_replaces_no_other_folder(bucket):
  paths.place("gs://bucket/notes/mine.txt").write_text("mine")
  with pytest.raises(UserError, match="notes: exists and is no exported checkpoint"):
    export_params("gs://bucket/notes", {"net": {"w": np.zeros(2)}}, {})
  assert names("gs://bucket/notes") == ["mine.txt"]


def test_a_checkpoint_that_is_being_written_is_not_one_yet(bucket):
  run = paths.place("gs://bucket/run")
  for step in (2, 3):
    (run / "checkpoints" / str(step) / "meta" / "meta.json").write_text("{}")
  assert not checkpoint.has_checkpoint(str(run))
  with pytest.raises(UserError, match="^gs://bucket/run: holds no checkpoint"):
    find_checkpoint(run)
  (run / "checkpoints" / "2" / "commit_success.txt").write_text("")
  assert find_checkpoint(str(run)) == run / "checkpoints" / "2"


def test_an_object_of_a_stranger_s_name_is_not_copied(bucket, tmp_path):
  bucket.store["/bucket/set/../../x"] = bucket.open("gs://bucket/y", "wb")
  with pytest.raises(UserError, match="holds an object named '../../x'"):
    paths.copy_from(paths.place("gs://bucket/set"), tmp_path / "near")
  assert not list(tmp_path.iterdir())


def test_a_set_in_a_bucket_is_opened_by_a_copy_that_ends_with_the_process(
  bucket, tmp_path, monkeypatch
):
  monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
  (tmp_path / "temporary").mkdir()
  write_clip_set(tmp_path / "set", {"alley": 4})
  paths.copy_to(tmp_path / "set", paths.place("gs://bucket/set"), last="")
  for _ in range(2):
    (clip,) = open_clips("gs://bucket/set", num_frames=3).clips
    (near,) = (tmp_path / "temporary").iterdir()  # the same one
    assert clip.decode(SHARP, 0).ndim == 3
  with pytest.raises(UserError, match="^gs://bucket/set: no usable clip of at least 5 frames"):
    open_clips("gs://bucket/set", num_frames=5)
  with pytest.raises(UserError, match="^gs://bucket/nothing: there is nothing of that name"):
    open_clips("gs://bucket/nothing")
  assert near.stat().st_mode & 0o777 == 0o700  # it may be what only this user may see
  multiprocessing.util._run_finalizers()
  assert not near.exists()


def test_a_copy_that_the_disk_cannot_hold_is_refused(bucket, tmp_path, monkeypatch):
  paths.place("gs://bucket/set/a").write_bytes(b"12345")
  free = shutil.disk_usage(tmp_path)._replace(free=4)
  monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
  with pytest.raises(UserError, match="^gs://bucket/set: its copy needs .* TMPDIR"):
    paths.copy_from(paths.place("gs://bucket/set"), tmp_path / "near")


def test_a_file_of_weights_is_read_from_a_bucket(bucket):
  paths.place("gs://bucket/a.pth").write_bytes(b"12345")
  with torch_files.open_regular("gs://bucket/a.pth") as file:
    assert os.fstat(file.fileno()).st_size == 5
    assert file.read() == b"12345"
  with pytest.raises(UserError, match="^gs://bucket/b.pth cannot be read: No such file"):
    torch_files.load("gs://bucket/b.pth")


def test_pictures_and_videos_are_of_no_bucket():
  for check in (files.check_place, files.check_folder):
    with pytest.raises(UserError, match="^gs:/bucket/a: this is written to folders of a file"):
      check(pathlib.Path("gs://bucket/a"))
  for use in (outputs.check_output, lambda path: video_cli.readable(path).__enter__()):
    with pytest.raises(UserError, match="^gs://bucket/a.mp4: pictures and videos are read"):
      use("gs://bucket/a.mp4")
  with pytest.raises(UserError, match="^gs://bucket/out: pictures and videos"):
    paths.local("gs://bucket/out")
  assert paths.local("out") == pathlib.Path("out")
