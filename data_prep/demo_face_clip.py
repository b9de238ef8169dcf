"""Command: makes the packaged clip of a face, in whole frames with sound, from one portrait.

  python -m vsr_jax.data_prep.demo_face_clip STILL.jpg OUT

Writes OUT/truth.mp4, the animated portrait (`animate.py`) before a background that continues its
own out of focus, and OUT/input.mp4, the same blurred, noisy, reduced, compressed
(`face_degrade.py`) and enlarged again, with a quiet chord as sound. What is random in it follows
from the file's name.
"""

from __future__ import annotations

if __name__ == "__main__":
  from vsr_jax import cli

  cli.begin()  # before the imports that take seconds

import pathlib
import zlib
from fractions import Fraction

import av
import cv2
import numpy as np

from vsr_jax import cli, files, video
from vsr_jax.data_prep import animate, face_degrade, head_motion
from vsr_jax.faces import detector
from vsr_jax.ops.resize import resize_bicubic

HEIGHT, WIDTH = 176, 288
FACE = 128  # side of the aligned face in the frame, in pixels: as the demonstration weights restore
FRAMES, RATE = 60, 25
AMPLITUDE = 1.4
FEATHER = 0.14  # of the portrait's side, in which it goes over into the background
# The middle of what training draws; drawn for this clip alone.
DEGRADATION = face_degrade.Degradation(
  isotropic=1, sigma_x=(5.5, 6.5), sigma_y=(5.5, 6.5), noise=(4, 6), crf=(34, 37)
).at_size(FACE)
TRUTH_QUALITY, INPUT_QUALITY = 14, 18  # H.264's constant rate factors
CHORD = (220.0, 277.2, 329.6)  # Hz
LOUDNESS = 0.05
SOUND_RATE = 48_000


def main() -> None:
  """Runs the command; see the module's docstring and `--help`."""
  parser = cli.Parser("vsr_jax.data_prep.demo_face_clip", __doc__)
  parser.add_argument("still", type=pathlib.Path, metavar="STILL", help="an aligned portrait")
  parser.add_argument("out", type=pathlib.Path, metavar="OUT", help="the folder to write in")
  args = parser.parse_args()
  files.check_folder(args.out)
  still = animate.read_still(args.still)
  landmarks = animate.find_landmarks(still, detector.make_detector())
  rng = np.random.default_rng(zlib.crc32(args.still.name.encode()))
  truth = draw_clip(still, landmarks, rng)
  low = face_degrade.degrade(truth, rng, DEGRADATION)
  files.make_folder(args.out)
  files.remove_left(args.out)
  write(args.out / "truth.mp4", truth, TRUTH_QUALITY)
  enlarged = np.stack([resize_bicubic(frame, DEGRADATION.scale) for frame in low])
  silent = args.out / "silent.mp4"
  try:
    write(silent, enlarged, INPUT_QUALITY)
    add_sound(silent, args.out / "input.mp4", chord(FRAMES / RATE))
  finally:
    files.remove(str(silent))
  for name in ("truth.mp4", "input.mp4"):
    print(f"{args.out / name}: {FRAMES} frames, {(args.out / name).stat().st_size / 1e3:.0f} kB")


def draw_clip(still: np.ndarray, landmarks: np.ndarray, rng: np.random.Generator) -> np.ndarray:
  """Animates a portrait in a wider frame.

  Args:
    still: uint8 RGB [n n 3], aligned.
    landmarks: [5 2], as parts of its side.
    rng: draws the motion.

  Returns:
    uint8 RGB [t h w 3].
  """
  motion = head_motion.draw(rng, landmarks, FRAMES, rate=RATE, amplitude=AMPLITUDE)
  side = len(still)
  picture = with_surroundings(still)
  # Cut by the frame's lower edge, as shoulders are.
  place = ((WIDTH - FACE) // 2, HEIGHT - FACE, FACE)
  frames = animate.render_part(picture, (side, side, side), motion, (HEIGHT, WIDTH), place)
  return np.stack(list(frames))


def with_surroundings(still: np.ndarray) -> np.ndarray:
  """Continues a portrait by its own width on all sides, out of focus: [n n 3] -> [3n 3n 3]."""
  n = len(still)
  wide = cv2.copyMakeBorder(still, n, n, n, n, cv2.BORDER_REPLICATE).astype(np.float32)
  blurred = cv2.GaussianBlur(wide, (0, 0), n / 16, borderType=cv2.BORDER_REPLICATE)
  away = np.abs((np.arange(3 * n) + 0.5) / n - 1.5)  # 0.5 at the portrait's edges
  inside = np.clip((0.5 - away) / FEATHER, 0, 1)
  inside = inside * inside * (3 - 2 * inside)
  below = np.where(np.arange(3 * n) > 1.5 * n, 1, inside)  # shoulders stay sharp
  weight = np.outer(below, inside)[..., None].astype(np.float32)
  return np.rint(blurred + weight * (wide - blurred)).astype(np.uint8)


def write(path: pathlib.Path, frames: np.ndarray, quality: int) -> None:
  """Writes uint8 RGB [t h w 3] as a video without sound."""
  height, width = frames.shape[1:3]
  with video.open_writer(str(path), height, width, Fraction(RATE), quality=quality) as writer:
    for frame in frames:
      writer.write(frame)


def chord(seconds: float) -> np.ndarray:
  """A quiet chord that swells and fades: float32 [n] in [-1, 1], at `SOUND_RATE`."""
  time = np.arange(round(seconds * SOUND_RATE)) / SOUND_RATE
  tones = np.mean([np.sin(2 * np.pi * pitch * time) for pitch in CHORD], axis=0)
  return (LOUDNESS * np.sin(np.pi * time / seconds) * tones).astype(np.float32)


def add_sound(silent: pathlib.Path, path: pathlib.Path, samples: np.ndarray) -> None:
  """Copies a video and adds a mono track of samples, float32 [n] in [-1, 1], as AAC."""
  part = files.part_name(path)
  try:
    options = {"movflags": "+faststart"}
    with (
      av.open(str(silent)) as source,
      av.open(part, "w", format="mp4", container_options=options) as target,
    ):
      pictures = source.streams.video[0]
      copy = target.add_stream_from_template(pictures)
      track = target.add_stream("aac", rate=SOUND_RATE, layout="mono", bit_rate=48_000)
      frame = av.AudioFrame.from_ndarray(samples[None], format="fltp", layout="mono")
      frame.sample_rate, frame.pts, frame.time_base = SOUND_RATE, 0, Fraction(1, SOUND_RATE)
      for packet in source.demux(pictures):
        if packet.dts is not None:  # the last one is empty
          packet.stream = copy
          target.mux(packet)
      for packet in [*track.encode(frame), *track.encode(None)]:
        target.mux(packet)
    pathlib.Path(part).replace(path)
  except BaseException:
    files.remove(part)
    raise


if __name__ == "__main__":
  cli.run(main)
