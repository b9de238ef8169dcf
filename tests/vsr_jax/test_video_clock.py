from __future__ import annotations

import dataclasses
import types
from collections.abc import Iterable
from fractions import Fraction

import av
import pytest
from av.format import Flags
from av.stream import Disposition

from vsr_jax.video import clock

TICK = Fraction(1, 90_000)


@dataclasses.dataclass
class Packet:
  """As much of PyAV's packets as a clock looks at."""

  stream: types.SimpleNamespace
  pts: int | None
  dts: int | None
  duration: int
  time_base: Fraction = TICK
  is_keyframe: bool = True
  is_discard: bool = False


def stream(index: int, kind: str = "video") -> types.SimpleNamespace:
  return types.SimpleNamespace(index=index, type=kind, disposition=Disposition(0))


PICTURES, SOUND, TEXT = stream(0), stream(1, "audio"), stream(2, "subtitle")


def packets(track, seconds: Iterable, duration, reorder=0) -> list[Packet]:
  """Packets decoded at given seconds and shown `reorder` seconds later."""
  return [
    Packet(track, int((t + reorder) / TICK), int(t / TICK), int(duration / TICK)) for t in seconds
  ]


def recording(start, length=4, lag=Fraction(1, 10)) -> list[Packet]:
  """25 pictures and 20 packets of sound a second; the pictures come later in the file."""
  frame, part = Fraction(1, 25), Fraction(1, 20)
  pictures = packets(PICTURES, (start + i * frame for i in range(length * 25)), frame, 2 * frame)
  sound = packets(SOUND, (start + i * part for i in range(length * 20)), part)
  return sorted(pictures + sound, key=lambda p: p.dts * TICK + (lag if p in pictures else 0))


def join(*recordings: list[Packet], overlap: int = 0) -> list[tuple[int, Packet]]:
  """Recordings in one file, numbered; the last picture of each comes late, behind the next's."""
  out = []
  for number, one in enumerate(recordings):
    held = [out.pop()] if overlap and out else []
    assert all(p.stream is PICTURES for _, p in held)
    one = [(number, p) for p in one]
    out += one[:overlap] + held + one[overlap:]
  return out


def offsets(made: list[Packet], transport: bool = True) -> list[Fraction]:
  """What is added to each packet's time, in seconds."""
  given = [dataclasses.replace(p) for p in made]
  flags = Flags.ts_discont.value if transport else 0
  form = types.SimpleNamespace(flags=flags)
  container = types.SimpleNamespace(format=form, demux=lambda: iter(given))
  assert [id(p) for p in clock.bridged(container)] == [id(p) for p in given]
  added = [(p.dts - q.dts) * TICK for p, q in zip(given, made, strict=True)]
  assert added == [(p.pts - q.pts) * TICK for p, q in zip(given, made, strict=True)]
  return added


# A recording of 4 s is shown up to 4.08 s after its first time, when its last picture ends.
@pytest.mark.parametrize("starts", [(1, 1), (1, 100), (1, 0, 0, 50, 1), (95_443, 0), (50, 44)])
@pytest.mark.parametrize("overlap", [0, 2])
def test_a_jump_is_bridged_by_the_same_offset_in_every_stream(starts, overlap):
  made = join(*map(recording, starts), overlap=overlap)
  expected = [starts[0] + number * Fraction(408, 100) - starts[number] for number, _ in made]
  assert offsets([p for _, p in made]) == expected


def test_a_clip_without_a_jump_is_left_alone():
  assert set(offsets(recording(7))) == {0}
  sound = [p for p in recording(0, 60) if p.stream is PICTURES or not 20 < p.dts * TICK < 50]
  assert set(offsets(sound)) == {0}  # a pause of the sound alone
  text = packets(TEXT, (1, 40), 3)
  assert set(offsets(text[:1] + recording(0, 41) + text[1:])) == {0}
  slides = packets(PICTURES, (0, 60, 120), 60)
  assert set(offsets(slides)) == {0}  # their durations say that nothing is missing
  by_kind = sorted(recording(1), key=lambda p: p.stream.index)
  assert set(offsets(by_kind)) == {0}  # the sound begins late in the file, not in time


def test_a_pause_is_a_jump_in_a_transport_stream_only():
  pictures = packets(PICTURES, (0, 1, 40, 41), 1)
  assert offsets(pictures) == [0, 0, -38, -38]
  assert offsets(pictures, transport=False) == [0, 0, 0, 0]


def test_recordings_in_any_container_are_bridged_where_a_packet_can_begin_one():
  made = join(recording(0), recording(0))
  late = [p for n, p in made if n == 1 and p.stream is PICTURES][1:]
  for packet in late:
    packet.is_keyframe = False
  given = [p for _, p in made]
  assert offsets(given, transport=False) == [n * Fraction(408, 100) for n, _ in made]
  alone = packets(PICTURES, (0, 4, 1, 2, 3, 8), 1)
  for packet in alone[1:]:
    packet.is_keyframe = False  # pictures in the order of decoding, whose decoding times are wrong
  assert set(offsets(alone, transport=False)) == {0}
  alone[2].is_keyframe = alone[2].is_discard = True  # before the cut of an edit list
  assert set(offsets(alone, transport=False)) == {0}


@pytest.mark.parametrize("by", [-4, 94])
def test_a_single_damaged_time_is_no_new_recording(by):
  made = recording(1, 20)
  wrong = next(i for i, p in enumerate(made) if i > 400 and p.stream is SOUND)
  made[wrong].dts += by * 90_000
  made[wrong].pts += by * 90_000
  added = offsets(made, transport=False)
  added.pop(wrong)
  assert set(added) == {0}


def test_a_picture_that_stands_for_long_may_come_late_in_the_file():
  sound = [p for p in recording(1, 60) if p.stream is SOUND]
  assert set(offsets(sound + packets(PICTURES, (1,), 60))) == {0}


def test_pictures_without_a_decoding_time_may_be_out_of_order():
  made = packets(PICTURES, (0, 3, 1, 2), 1)
  expected = [p.pts for p in made]
  for packet in made[1:]:
    packet.dts = None
  form = types.SimpleNamespace(flags=Flags.ts_discont.value)
  container = types.SimpleNamespace(format=form, demux=lambda: iter(made))
  assert [p.pts for p in clock.bridged(container)] == expected


def test_a_single_damaged_time_moves_nothing_else():
  made = recording(5)
  wrong = next(i for i, p in enumerate(made) if i > 60 and p.stream is PICTURES)
  made[wrong].dts += 9_000_000
  made[wrong].pts += 9_000_000
  added = offsets(made)
  added.pop(wrong)
  assert set(added) == {0}


def test_text_follows_the_recording_that_it_is_in():
  text = packets(TEXT, (3,), 1)
  made = join(recording(0) + [dataclasses.replace(text[0])], recording(0) + text)
  added = offsets([p for _, p in made])
  assert [t for t, (_, p) in zip(added, made, strict=True) if p.stream is TEXT] == [
    0,
    Fraction(408, 100),
  ]


def test_a_stream_that_has_ended_is_not_waited_for():
  first, second = recording(0), [p for p in recording(0, 60) if p.stream is PICTURES]
  given, taken = iter(first + second), []
  container = types.SimpleNamespace(
    format=types.SimpleNamespace(flags=Flags.ts_discont.value),
    demux=lambda: (taken.append(p) or p for p in given),
  )
  out = clock.bridged(container)
  for _ in range(len(first) + 1):
    next(out)
  assert len(taken) <= len(first) + 55  # two seconds, not the rest of the file


def test_what_was_read_before_an_error_comes_out():
  def broken():
    yield from [p for _, p in join(recording(0), recording(0)[:1])]
    raise av.error.InvalidDataError(1, "damaged")

  form = types.SimpleNamespace(flags=Flags.ts_discont.value)
  out = clock.bridged(types.SimpleNamespace(format=form, demux=broken))
  for _ in range(len(recording(0)) + 1):
    last = next(out)
  assert last.dts > recording(0)[-1].dts
  with pytest.raises(av.error.InvalidDataError):
    next(out)
