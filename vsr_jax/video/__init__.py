"""Reads and writes clips as streams of uint8 RGB frames, in constant memory.

All use of codecs is in here. Read are videos in any common container, by PyAV, image files, and
folders of them; written are H.264 (mp4, mkv, mov), a folder of PNGs, or one PNG or JPEG. Frames
keep their times and a video its source's sound; an output gets its name only once it is complete.
"""

from __future__ import annotations

from vsr_jax.frames import Frame as Frame
from vsr_jax.images import read_image as read_image
from vsr_jax.threads import prefetch as prefetch
from vsr_jax.video.decode import VideoInfo as VideoInfo
from vsr_jax.video.outputs import check_output as check_output
from vsr_jax.video.outputs import holds_one_frame as holds_one_frame
from vsr_jax.video.reader import Reader as Reader
from vsr_jax.video.reader import open_reader as open_reader
from vsr_jax.video.reader import probe as probe
from vsr_jax.video.reader import read_frames as read_frames
from vsr_jax.video.writer import Writer as Writer
from vsr_jax.video.writer import open_writer as open_writer
