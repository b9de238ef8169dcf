from __future__ import annotations

import itertools
import warnings
from fractions import Fraction

import av
import numpy as np
import pytest
from av.stream import Disposition

from tests.vsr_jax.test_video_output import VIDEOS, read, restore
from vsr_jax import video
from vsr_jax.video.clock import bridged
from vsr_jax.video.sound import SampleClock, SoundTrack

MILLISECOND = Fraction(1, 1000)


def make(
  path, sounds=(("aac", 440),), subtitles=(), seconds=2, per_packet=1920, layout="mono", **options
) -> None:
  """Writes grey pictures, 25 a second, sound tracks of one tone each, and subtitles (from, to)."""
  with av.open(str(path), "w") as file:
    pictures = file.add_stream("libx264", rate=25, options={"bf": "0"})
    pictures.width, pictures.height, pictures.pix_fmt = 64, 48, "yuv420p"
    tracks = [file.add_stream(name, rate=48_000, options=options) for name, _ in sounds]
    for track in tracks:
      track.codec_context.layout = layout
    titles = file.add_mux_stream("subrip") if subtitles else None
    if titles:
      titles.time_base = MILLISECOND
    describe(file, tracks, titles)
    file.start_encoding()
    texts = [f"from {start}".encode() for start, _ in subtitles]  # before PyAV 18 packets borrow
    for (start, stop), text in zip(subtitles, texts, strict=True):
      packet = av.Packet(text)
      packet.time_base, packet.stream = MILLISECOND, titles
      packet.pts = packet.dts = start
      packet.duration = stop - start
      file.mux(packet)
    for i in range(25 * seconds):
      image = np.full((48, 64, 3), 20 + 4 * i % 200, np.uint8)
      file.mux(pictures.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
      for track, (_, pitch) in zip(tracks, sounds, strict=True):
        for start in range(1920 * i, 1920 * (i + 1), per_packet):
          times = np.arange(start, start + per_packet) / 48_000
          wave = (8000 * np.sin(2 * np.pi * pitch * times)).astype(np.int16)
          sound = av.AudioFrame.from_ndarray(wave[None], format="s16", layout="mono")
          sound.sample_rate, sound.pts, sound.time_base = 48_000, start, Fraction(1, 48_000)
          file.mux(track.encode(sound))
    for track in (pictures, *tracks):
      file.mux(track.encode(None))


def add_chapters(file, *chapters) -> None:
  """From and to in milliseconds, and the metadata."""
  names = ("start", "end", "metadata")
  file.set_chapters(
    [
      {"id": i, "time_base": MILLISECOND} | dict(zip(names, chapter, strict=True))
      for i, chapter in enumerate(chapters, 1)
    ]
  )


def read_chapters(path) -> list[tuple[str | None, float, float]]:
  with av.open(str(path)) as file:
    return [
      (c["metadata"].get("title"), *(float(c[k] * c["time_base"]) for k in ("start", "end")))
      for c in file.chapters()
    ]


def describe(file, tracks, titles) -> None:
  file.metadata.update({"title": "A film"} | ({"DIRECTOR": "me"} if titles else {}))
  add_chapters(file, (0, 800, {"title": "one"}), (800, 2000, {"title": "two"}))
  for track, language in zip(tracks, ("deu", "fra"), strict=False):
    track.metadata.update({"language": language, "title": f"sound in {language}"})
  if len(tracks) > 1:
    tracks[0].disposition, tracks[1].disposition = 0, Disposition.default.value
  if titles:
    titles.metadata["language"] = "spa"


def packets(path, **streams) -> list[av.Packet]:
  with av.open(str(path)) as file:
    return [packet for packet in file.demux(**streams) if packet.size]


def samples(path, track: int = 0) -> int:
  with av.open(str(path)) as file:
    return sum(frame.samples for frame in file.decode(audio=track))


def pitch(path, track: int = 0) -> float:
  """The loudest frequency, in Hz."""
  with av.open(str(path)) as file:
    frames = [frame.to_ndarray()[0] for frame in file.decode(audio=track)]
    rate = file.streams.audio[track].codec_context.sample_rate
  wave = np.concatenate(frames)
  return np.argmax(np.abs(np.fft.rfft(wave))) * rate / len(wave)


def seconds(path) -> float:
  with av.open(str(path)) as file:
    return file.duration / 1e6


def test_sound_is_timed_by_its_samples():
  clock, frame = SampleClock(), Fraction(40, 48_000)
  ticks = [n * frame // MILLISECOND * MILLISECOND for n in range(1000)]
  placed = [clock.place(time, frame, MILLISECOND) for time in ticks]
  assert placed == [n * frame for n in range(1000)]
  assert clock.place(None, frame, MILLISECOND) == 1000 * frame
  assert clock.place(Fraction(2), frame, MILLISECOND) == 2  # a pause
  assert clock.fault is None
  assert clock.place(Fraction(1), frame, MILLISECOND) == 2 + frame  # out of order
  assert "jump back" in clock.fault
  assert clock.place(2 + 2 * frame, frame, MILLISECOND) == 2 + 2 * frame
  assert clock.place(None, frame, MILLISECOND) == 2 + 3 * frame
  assert clock.fault is None


def test_sound_goes_on_where_times_do_not():
  frame = Fraction(1, 50)
  for block in (50, 4):  # all packets with one time, or that of their block of four
    clock = SampleClock()
    for n in range(50):
      assert clock.place(n // block * block * frame, frame, MILLISECOND) == n * frame
      assert clock.fault is None
  clock = SampleClock()
  for n in range(100):  # begun anew at 1 s
    assert clock.place(n % 50 * frame, frame, MILLISECOND) == n * frame
    assert (clock.fault is None) == (n != 50)


def test_packets_that_were_stored_twice_do_not_stretch_the_sound():
  frame, clock = Fraction(1, 50), SampleClock()
  placed = [clock.place(n // 2 * frame, frame, MILLISECOND) for n in range(200)]
  kept = [time for time in placed if time is not None]
  assert kept == [n * frame for n in range(101)]


@pytest.mark.parametrize(("codec", "options"), [("pcm_s16le", {}), ("flac", {"frame_size": "40"})])
def test_no_packet_is_lost_to_a_coarse_clock(tmp_path, codec, options):
  # 1200 packets a second by a clock of 1000 ticks, as TrueHD has them.
  make(tmp_path / "a.mkv", [(codec, 440)], per_packet=40, **options)
  before = packets(tmp_path / "a.mkv", audio=0)
  assert len(before) == 2400
  restore(tmp_path / "a.mkv", tmp_path / "b.mkv")
  assert [bytes(p) for p in packets(tmp_path / "b.mkv", audio=0)] == [bytes(p) for p in before]
  restore(tmp_path / "a.mkv", tmp_path / "b.mov")  # one copied, the other coded as AAC
  assert samples(tmp_path / "b.mov") == pytest.approx(96_000, abs=1024)
  assert seconds(tmp_path / "b.mov") == pytest.approx(2, abs=0.001)


def test_a_part_begins_where_a_decoder_can(tmp_path):
  make(tmp_path / "a.mkv", [("pcm_s16le", 440)], per_packet=40)
  with (
    av.open(str(tmp_path / "a.mkv")) as file,
    av.open(str(tmp_path / "b.mkv"), "w") as target,
  ):
    track = SoundTrack(video.probe(str(tmp_path / "a.mkv")), file.streams.audio[0], target, True)
    for n, packet in enumerate(file.demux(audio=0)):
      for item in track.items(packet):
        packet.is_keyframe = n % 128 == 0  # as TrueHD's are
        track.write(item, Fraction(1))
  # 1 s begins packet 1200; the last one to begin at is 1152.
  assert len(packets(tmp_path / "b.mkv")) == 2400 - 1152


@pytest.mark.parametrize("codec", ["alac", "flac"])
@pytest.mark.parametrize("name", ["b.mp4", "b.mkv"])
def test_the_last_samples_come_along(tmp_path, codec, name):
  make(tmp_path / "a.mkv", [(codec, 440)])
  restore(tmp_path / "a.mkv", tmp_path / name)
  assert samples(tmp_path / name) == 96_000
  if name == "b.mp4":
    with av.open(str(tmp_path / name)) as file:
      track = file.streams.audio[0]
      assert track.duration * track.time_base == 2


def test_sound_that_changes_its_channels_is_coded_to_the_end(tmp_path):
  for layout in ("mono", "stereo"):
    make(tmp_path / f"{layout}.ts", [("ac3", 440)], layout=layout)
  parts = [(tmp_path / f"{layout}.ts").read_bytes() for layout in ("mono", "stereo", "mono")]
  (tmp_path / "a.ts").write_bytes(b"".join(parts))
  with (
    av.open(str(tmp_path / "a.ts")) as file,
    av.open(str(tmp_path / "b.mp4"), "w") as target,
    warnings.catch_warnings(),
  ):
    warnings.simplefilter("error")
    track = SoundTrack(video.probe(str(tmp_path / "a.ts")), file.streams.audio[0], target, False)
    for packet in bridged(file):
      if packet.stream.type == "audio":
        for item in track.items(packet):
          track.write(item, Fraction(0))
    track.finish()
  assert samples(tmp_path / "b.mp4") == pytest.approx(3 * 96_000, abs=4096)


def test_two_recordings_in_one_file(tmp_path):
  make(tmp_path / "a.ts")
  (tmp_path / "b.ts").write_bytes(3 * (tmp_path / "a.ts").read_bytes())
  restore(tmp_path / "b.ts", tmp_path / "c.mp4")
  assert len(packets(tmp_path / "c.mp4", audio=0)) == 3 * len(packets(tmp_path / "a.ts", audio=0))
  times = [frame.time for frame in read(tmp_path / "c.mp4")]
  assert len(times) == 150
  sound = packets(tmp_path / "c.mp4", audio=0)
  steps = [b.pts - a.pts for a, b in itertools.pairwise(sound)]
  assert max(steps) < 0.1 * 48_000
  assert float(sound[-1].pts * sound[-1].time_base) == pytest.approx(float(times[-1]), abs=0.1)


@pytest.mark.parametrize("name", ["b.mp4", "b.mkv"])
def test_two_matroska_recordings_in_one_file(tmp_path, name):
  make(tmp_path / "a.mkv")
  (tmp_path / "c.mkv").write_bytes(2 * (tmp_path / "a.mkv").read_bytes())
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    restore(tmp_path / "c.mkv", tmp_path / name)
  assert len(packets(tmp_path / name, audio=0)) == 2 * len(packets(tmp_path / "a.mkv", audio=0))
  pictures, sound = (packets(tmp_path / name, **{kind: 0}) for kind in ("video", "audio"))
  assert len(pictures) == 100
  ends = [float(max(p.pts * p.time_base for p in track)) for track in (pictures, sound)]
  assert ends == pytest.approx((4, 4), abs=0.06)


def test_sound_of_a_decoder_that_lags_is_coded_to_the_end(tmp_path):
  make(tmp_path / "a.asf", [("wmav2", 440)], b="64000")
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    restore(tmp_path / "a.asf", tmp_path / "b.mkv")
  assert samples(tmp_path / "b.mkv") == pytest.approx(samples(tmp_path / "a.asf"), abs=1024)
  assert pitch(tmp_path / "b.mkv") == pytest.approx(440, abs=2)


def test_a_part_begins_with_as_much_opus_as_players_leave_out(tmp_path):
  make(tmp_path / "a.mkv", [("libopus", 440)], frame_duration="2.5", per_packet=120)
  with (
    av.open(str(tmp_path / "a.mkv")) as file,
    av.open(str(tmp_path / "b.mkv"), "w") as target,
  ):
    stream = file.streams.audio[0]
    skipped = int.from_bytes(stream.codec_context.extradata[10:12], "little")
    track = SoundTrack(video.probe(str(tmp_path / "a.mkv")), stream, target, True)
    for packet in file.demux(stream):
      for item in track.items(packet):
        track.write(item, Fraction(1))
        last = item[0]
  count = len(packets(tmp_path / "b.mkv"))
  first = last - (count - 1) * Fraction(120, 48_000)
  assert Fraction(99, 100) < first + Fraction(skipped, 48_000) <= 1


@pytest.mark.parametrize("name", ["b.mkv", "b.mp4"])
def test_all_tracks_come_along(tmp_path, name):
  make(tmp_path / "a.mkv", [("aac", 440), ("aac", 880)], [(200, 700), (1000, 1500)])
  with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    restore(tmp_path / "a.mkv", tmp_path / name)
  with av.open(str(tmp_path / name)) as file:
    assert file.metadata["title"] == "A film"
    first, second = file.streams.audio
    assert [first.language, second.language] == ["fra", "deu"]
    if name == "b.mkv":  # FFmpeg reads that of an mp4 since 8.1
      assert [s.metadata["title"] for s in (first, second)] == ["sound in fra", "sound in deu"]
    assert first.disposition & Disposition.default
    assert not second.disposition & Disposition.default
    chapters = [(c["metadata"]["title"], c["start"] * c["time_base"]) for c in file.chapters()]
    assert [title for title, _ in chapters] == ["one", "two"]
    assert float(chapters[1][1]) == pytest.approx(0.8, abs=0.03)
    directors = [v for k, v in file.metadata.items() if k == "DIRECTOR"]
  assert (pitch(tmp_path / name, 0), pitch(tmp_path / name, 1)) == pytest.approx((880, 440), abs=2)
  if name == "b.mkv":
    assert directors == ["me"]
    assert [bytes(p) for p in packets(tmp_path / name, subtitles=0)] == [b"from 200", b"from 1000"]
    assert not told
  else:
    (warning,) = told
    wanted = "a.mkv: not taken along into the .mp4: subtitle (srt, spa), tags (DIRECTOR)"
    assert str(warning.message).endswith(wanted)


@pytest.mark.parametrize("name", VIDEOS)
def test_tags_of_tracks_are_kept_or_told(tmp_path, name):
  # By what FFmpeg calls them in a .mov, which has no place for the last two.
  languages = {"deu": "ger", "jpn": "jpn", "zho": "chi", "swe": "sve", "mri": None, "xyz": None}
  with av.open(str(tmp_path / "in.mkv"), "w") as file:
    pictures = file.add_stream("mpeg4", rate=25)
    pictures.width, pictures.height, pictures.pix_fmt = 64, 48, "yuv420p"
    tracks = [file.add_stream("aac", rate=48_000, layout="mono") for _ in languages]
    for track, language in zip(tracks, languages, strict=True):
      track.metadata.update({"language": language, "title": "T", "NOTE": "n"})
    for _ in range(3):
      file.mux(pictures.encode(av.VideoFrame(64, 48, "yuv420p")))
      for track in tracks:
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1920), np.float32), "fltp", "mono")
        sound.sample_rate = 48_000
        file.mux(track.encode(sound))
    for stream in file.streams:
      file.mux(stream.encode(None))
  with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    restore(tmp_path / "in.mkv", tmp_path / name)
    lost = {"a.mov": "NOTE, language mri, language xyz", "a.mp4": "NOTE"}.get(name)
    ends = [f" into the {name[1:]}: tags of audio tracks ({lost})"] if lost else []
    assert [str(w.message).partition("along")[2] for w in told] == ends
    restore(tmp_path / name, tmp_path / "back.mkv")
  for file_name in (name, "back.mkv"):
    with av.open(str(tmp_path / file_name)) as file:
      found = [stream.language for stream in file.streams.audio]
    expected = list(languages.values() if name == "a.mov" else languages)
    if file_name == "back.mkv":
      expected[3] = "swe"
    assert found == expected


def test_a_part_of_a_clip_has_its_chapters_and_subtitles(tmp_path):
  make(tmp_path / "a.mkv", subtitles=[(200, 500), (700, 900), (1200, 1900), (1700, 2000)])
  restore(tmp_path / "a.mkv", tmp_path / "b.mkv", 15, 35)  # 0.6 s to 1.4 s
  with av.open(str(tmp_path / "b.mkv")) as file:
    start = file.streams.video[0].start_time
  names, starts, ends = zip(*read_chapters(tmp_path / "b.mkv"), strict=True)
  assert names == ("one", "two")
  assert starts == pytest.approx((0, 0.2), abs=0.03)
  assert ends == pytest.approx((0.2, 0.8), abs=0.03)
  shown = [
    (bytes(p), p.pts - start, p.pts + p.duration - start)
    for p in packets(tmp_path / "b.mkv", subtitles=0)
  ]
  assert [text for text, _, _ in shown] == [b"from 700", b"from 1200"]
  assert [t for _, *times in shown for t in times] == pytest.approx([100, 300, 600, 800], abs=25)


@pytest.mark.parametrize("name", VIDEOS)
def test_chapters_without_a_title_are_kept_and_none_comes_twice(tmp_path, name):
  for source in ("in.mkv", "in.mp4"):
    with av.open(str(tmp_path / source), "w") as file:
      pictures = file.add_stream("mpeg4", rate=25)
      pictures.width, pictures.height, pictures.pix_fmt = 64, 48, "yuv420p"
      titles = ({"title": "Eins"}, {}, {"title": "Drei"})
      add_chapters(file, *zip((0, 500, 1200), (500, 1200, 9000), titles, strict=True))
      for _ in range(50):
        file.mux(pictures.encode(av.VideoFrame(64, 48, "yuv420p")))
      file.mux(pictures.encode(None))
  restore(tmp_path / "in.mkv", tmp_path / name)
  untitled = None if name == "a.mkv" else "Chapter 2"
  expected = [("Eins", 0, 0.5), (untitled, 0.5, 1.2), ("Drei", 1.2, 2)]
  assert read_chapters(tmp_path / name) == expected
  restore(tmp_path / "in.mp4", tmp_path / name)
  # FFmpeg does not read the second one, and the last one twice.
  assert read_chapters(tmp_path / name) == [("Eins", 0, 1.2), ("Drei", 1.2, 2)]
