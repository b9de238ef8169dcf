"""REDS: video to sharpen and enlarge, see `release.py` and `reds_dataset_builder.py`."""

from __future__ import annotations

HOMEPAGE = "https://seungjunnah.github.io/Datasets/reds.html"
INSTRUCTIONS = f"""\
From {HOMEPAGE} (section REDS, not "REDS 120fps", whose frames are others) put into the folder,
as zips or each extracted there:
  x4: train_sharp.zip train_sharp_bicubic.zip train_blur_bicubic.zip
      val_sharp.zip val_sharp_bicubic.zip val_blur_bicubic.zip
  x1: train_sharp.zip train_blur.zip val_sharp.zip val_blur.zip
  x4_official: those of x4, test_sharp_bicubic.zip test_blur_bicubic.zip
  x1_official: those of x1, test_blur.zip
Within them lie train/train_sharp/000/00000000.png, train/train_blur_bicubic/X4/000/00000000.png and
so on. A zip's own checksums are verified. SHA-256 that are public (the mirror snah/REDS of Hugging
Face; not checked here):
  train_sharp.zip 620294c1c3f23ed26c5ea228633770469c0b28e57d31eb41dc77deb401c6681b
  train_blur.zip  415c360c0d71d2d89af099b3c64e76bca7e1d8317750f8e056e02ebaab957bb8
"""
