"""Video files and folders of frames <-> uint8 RGB frames, as a stream in constant memory.

The one door to codecs: PyAV behind it reads any common container, image files or a folder of them,
and writes H.264 (mp4, mkv, mov) or PNG frames. Frames keep their times, the output its source's
sound; what is written appears under its name only once it is complete.
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
from vsr_jax.video.writer import Writer as Writer
from vsr_jax.video.writer import open_writer as open_writer
