"""GoPro (GOPRO_Large): the data set of blurry and sharp pairs, see `gopro_dataset_builder.py`."""

from __future__ import annotations

HOMEPAGE = "https://seungjunnah.github.io/Datasets/gopro.html"
INSTRUCTIONS = f"""\
From {HOMEPAGE} (not GOPRO_Large_all) put GOPRO_Large.zip into the folder, or what it holds into a
folder GOPRO_Large there. Within it lie train/GOPR0372_07_00/sharp/000047.png, the same of blur and
blur_gamma, and those of test. The zip's own checksums are verified. Its SHA-256 that is public (the
mirror snah/GOPRO_Large of Hugging Face; not checked here):
  24532c036712515cf33803704421311c91f6a080e76049d7e5e7fd22389f128e
"""
