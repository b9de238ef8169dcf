"""Opens video files with PyAV: which containers are allowed, picture streams, truncation."""

from __future__ import annotations

import os
import stat

import av
from av.stream import Disposition

from vsr_jax.errors import UserError
from vsr_jax.images import MAX_PIXELS

# Containers that FFmpeg may open, by the names of its demuxers. All of them hold their pictures
# themselves. Left out on purpose are those that open other files or addresses, which an untrusted
# file could name: hls, dash, imf, concat, webm_dash_manifest, image2 (patterns of names),
# vobsub, mlv, sdp, rtp, rtsp, sap, lavfi, alsa and other devices, svg_pipe; and
# tty, which draws text.
_CONTAINERS = (
  *("mov", "matroska", "avi", "mpegts", "mpeg", "flv", "live_flv", "kux", "asf", "ogg", "mxf"),
  *("nut", "rm", "dv", "gxf", "wtv", "nuv", "nsv", "ivf", "yuv4mpegpipe", "swf", "dhav", "ty"),
  *("gif", "apng", "flic", "smk", "bink", "roq", "film_cpk", "ea", "vmd", "4xm", "amv", "pva"),
)
_BARE_STREAMS = (
  *("h261", "h263", "h264", "hevc", "vvc", "evc", "av1", "obu", "m4v", "mpegvideo", "vc1"),
  *("vc1test", "mjpeg", "mjpeg_2000", "smjpeg", "mpjpeg", "dirac", "dnxhd", "cavsvideo", "avs2"),
  *("avs3", "ingenient"),
)
_PICTURES = (
  *("png_pipe", "jpeg_pipe", "jpegls_pipe", "webp_pipe", "bmp_pipe", "tiff_pipe", "gif_pipe"),
  *("j2k_pipe", "jpegxl_pipe", "jpegxl_anim", "dpx_pipe", "exr_pipe", "hdr_pipe", "qoi_pipe"),
  *("pam_pipe", "pbm_pipe", "pgm_pipe", "ppm_pipe", "pcx_pipe", "psd_pipe", "ico"),
)
# Sound files are opened too, so that the error for them says what they are.
_SOUND = ("wav", "w64", "mp3", "flac", "aac", "ac3", "eac3", "aiff", "caf", "amr")
_OPTIONS = {
  "format_whitelist": ",".join((*_CONTAINERS, *_BARE_STREAMS, *_PICTURES, *_SOUND)),
  "protocol_whitelist": "file",
}


def open_container(
  path: str, name: str | None = None, max_pixels: int = MAX_PIXELS
) -> av.container.InputContainer:
  """Opens a local file for demuxing, but nothing that it refers to, and no pipe.

  Args:
    path: a regular file.
    name: what errors call it, `path` if None.
    max_pixels: the most pixels in a frame; to probe the streams some frames are decoded.

  Returns:
    The open file, its streams probed.

  Raises:
    UserError: the file is of another kind: a playlist, a device, a folder.
    av.error.FFmpegError, ValueError: the file cannot be read.
  """
  if not stat.S_ISREG(os.stat(path).st_mode):  # else reading may wait for ever, without signals
    raise UserError(f"{name or path}: is not a regular file; copy its content into one first")
  url = "file:" + path  # so that a colon in the name is not read as a protocol
  options = {"container_options": _OPTIONS, "options": {"max_pixels": str(max_pixels)}}
  try:
    try:
      return av.open(url, **options)
    except UnicodeDecodeError:  # a tag that is not UTF-8; PyAV >= 19 reads it as it is
      return av.open(url, **options, metadata_errors="replace")
  except av.error.ArgumentError as e:  # what FFmpeg says of a container that is not listed
    raise UserError(
      f"{name or path}: is of a kind that is not read (playlists and other lists of files never "
      "are); give the video file itself (mp4, mkv, mov, avi, webm, ...)"
    ) from e


def picture_streams(container: av.container.InputContainer) -> list[av.VideoStream]:
  """The streams of moving pictures, without covers; the default one, to be taken, comes first."""
  streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
  known = [s for s in streams if s.codec_context is not None]
  return sorted(known or streams, key=lambda s: not s.disposition & Disposition.default)


def is_cut(container: av.container.InputContainer, path: str) -> bool:
  """Whether a file ends before the size of the whole that its beginning states.

  Args:
    container: the open file.
    path: the file's path.

  Returns:
    Whether bytes are missing. AVI and Matroska state their size, and a transport stream consists of
    packets of one size; False for all other containers and where no size is stated.
  """
  size = os.path.getsize(path)
  name = container.format.name
  if name == "mpegts":  # sizes of plain packets, with time code, with parity
    return all(size % length for length in (188, 192, 204))
  with open(path, "rb") as f:
    head = f.read(4096)
  if name == "avi":
    return head[:4] == b"RIFF" and size < 8 + int.from_bytes(head[4:8], "little")
  return name == "matroska,webm" and size < _matroska_size(head)


def _matroska_size(head: bytes) -> int:
  """The size in bytes that the head of a Matroska file's Segment states; 0 if it states none."""
  at = 0
  while at + 16 <= len(head) and head[at]:
    element, at = _number(head, at)
    size, end = _number(head, at)
    mask = (1 << 7 * (end - at)) - 1  # without the marker; all ones: not stated
    at = end + (size & mask)
    if element == 0x18538067:
      return 0 if size & mask == mask else at
  return 0


def _number(data: bytes, at: int) -> tuple[int, int]:
  """Reads an EBML number of 1 to 8 bytes: its value with the marker bit (the first 1), its end."""
  end = at + 9 - (data[at] or 1).bit_length()
  return int.from_bytes(data[at:end], "big"), end
