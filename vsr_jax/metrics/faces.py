"""Metrics of a restored face: is it the same person, are its parts in place, and steadily so.

Pure functions of embeddings and landmarks, whichever networks give these. Landmarks of the truth
and of the output are found in crops of one place, so that they share their coordinates.
"""

from __future__ import annotations

import numpy as np

from vsr_jax.metrics.sums import Metric

# KEEP's paper names these without formulas; docs/metrics.md tells what is whose.
IDS = Metric("ids", "IDS", 4, True, "ids")
SIGMA_IDS = Metric("sigma_ids", "σ_IDS ×100", 2, False, "ids", spread=True, shown_times=100)
AKD = Metric("akd", "AKD", 3, False, "akd")
SIGMA_AKD = Metric("sigma_akd", "σ_AKD", 3, False, "akd", spread=True)
TLME = Metric("tlme", "TLME", 3, False, "tlme")


def identity_similarity(truth: np.ndarray, output: np.ndarray) -> np.ndarray:
  """IDS: the cosine of the angle between identity embeddings.

  Args:
    truth: [n d], embeddings of n faces; of any length but zero.
    output: likewise, of the same faces restored.

  Returns:
    float64 [n] from -1 to 1; 1 for one direction.
  """
  a, b = (np.asarray(x, np.float64) for x in (truth, output))
  norms = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
  return (a * b).sum(-1) / norms


def keypoint_distance(truth: np.ndarray, output: np.ndarray) -> np.ndarray:
  """AKD: the mean distance of corresponding landmarks (Chen et al., 2024, VFRxBenchmark).

  Args:
    truth: [n k 2], k landmarks of n faces, in pixels.
    output: likewise, of the same faces restored.

  Returns:
    float64 [n], in pixels.
  """
  return _lengths(np.subtract(output, truth, dtype=np.float64)).mean(-1)


def landmark_motion_error(truth: np.ndarray, output: np.ndarray) -> np.ndarray:
  """TLME: how far the landmarks' motion from frame to frame is from the truth's.

  PGTFormer (Xu et al., 2024) names the metric and gives no formula; this one is ours. Where a crop
  moves with the face, its motion cancels out.

  Args:
    truth: [t k 2], k landmarks in t consecutive frames, in pixels.
    output: likewise, restored.

  Returns:
    float64 [t-1], in pixels a frame.
  """
  errors = np.subtract(output, truth, dtype=np.float64)
  return _lengths(np.diff(errors, axis=0)).mean(-1)


def _lengths(vectors: np.ndarray) -> np.ndarray:
  return np.sqrt(np.square(vectors).sum(-1))
