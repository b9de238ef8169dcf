"""Five landmarks of real faces, marked by eye.

The eye on the picture's left (the middle of what is seen between the lids), the other eye, the tip
of the nose, the left corner of the mouth, the right one; in pixels of the frame. They were marked
on enlarged crops before any detector had seen the frames, to about 2% of the eyes' distance.
"""

from __future__ import annotations

import pathlib

import numpy as np

from vsr_jax import video


def read_frame(path: pathlib.Path, index: int) -> np.ndarray:
  """One frame of a clip, uint8 [h w 3]."""
  with video.open_reader(str(path), index, index + 1) as reader:
    return next(reader).image


# Clip in ../shared/data, number of the frame, marks.
MARKS = [
  (
    "faces/liveportrait_d0.mp4",
    30,
    [(207.1, 246.9), (298.7, 245.9), (253.2, 298.1), (201.4, 352.9), (302.8, 351.3)],
  ),
  (
    "faces/liveportrait_d10.mp4",
    100,
    [(197.7, 227.8), (304.2, 226.4), (253.5, 282.7), (217.6, 364.3), (293.4, 360.6)],
  ),
  (
    "faces/liveportrait_d14.mp4",
    200,
    [(160.0, 270.5), (294.5, 280.0), (221.8, 334.6), (170.9, 379.3), (274.1, 386.0)],
  ),
  (
    "faces/liveportrait_d18.mp4",
    60,
    [(199.7, 226.9), (303.5, 229.6), (258.1, 288.9), (207.7, 349.1), (294.6, 350.0)],
  ),
  (
    "faces/liveportrait_d19.mp4",
    120,
    [(185.8, 225.6), (296.3, 226.5), (239.3, 296.0), (195.1, 337.9), (277.6, 345.9)],
  ),
  (
    "faces/liveportrait_d6.mp4",
    300,
    [(192.9, 224.7), (302.1, 226.5), (254.0, 282.7), (230.4, 366.9), (295.5, 345.1)],
  ),
  (
    "faces/liveportrait_s18.mp4",
    100,
    [(712.5, 222.0), (817.9, 214.3), (771.8, 282.3), (733.4, 338.8), (812.9, 332.2)],
  ),
  (
    "faces/musetalk_sun.mp4",
    50,
    [(242.6, 216.6), (298.3, 213.9), (273.6, 244.9), (254.4, 272.3), (298.3, 268.2)],
  ),
  (
    "faces/sadtalker_WDA_AlexandriaOcasioCortez_000.mp4",
    100,
    [(248.6, 243.1), (375.0, 244.8), (312.2, 317.7), (260.9, 373.4), (356.1, 378.7)],
  ),
  (
    "faces/sadtalker_WDA_KatieHill_000.mp4",
    100,
    [(216.4, 240.4), (329.2, 244.8), (274.4, 311.1), (207.7, 352.8), (318.3, 367.7)],
  ),
  (
    "faces/videoretalking_3.mp4",
    60,
    [(238.0, 240.9), (348.0, 233.3), (299.1, 281.5), (256.2, 347.8), (346.1, 342.2)],
  ),
  (
    "faces/videoretalking_4.mp4",
    60,
    [(349.0, 235.2), (441.0, 232.0), (397.8, 291.2), (369.0, 346.4), (427.0, 343.2)],
  ),
  (
    "faces_low_quality/dicface_Clip_6fU_dX14pk0_P1_C0_F3670-3774.mp4",
    50,
    [(193.6, 237.8), (319.0, 235.3), (273.0, 317.2), (206.4, 376.1), (296.0, 373.5)],
  ),
  (
    "faces_low_quality/keep_real_1.mp4",
    100,
    [(104.0, 256.5), (189.6, 213.9), (165.4, 288.5), (155.8, 342.1), (223.8, 311.8)],
  ),
  (
    "faces_low_quality/keep_real_2.mp4",
    100,
    [(205.5, 245.6), (275.8, 245.6), (256.0, 300.5), (204.7, 347.9), (264.8, 345.7)],
  ),
  (
    "faces_low_quality/pgtformer_inputdemovideo.mp4",
    60,
    [(192.9, 244.6), (280.7, 205.1), (253.1, 266.6), (244.7, 341.2), (313.6, 309.1)],
  ),
  (
    "faces_low_quality/svfr_lq1.mp4",
    40,
    [(53.1, 57.6), (75.7, 64.5), (62.2, 73.9), (45.8, 78.8), (67.4, 84.8)],
  ),
]
