"""VFHQ: the data set of talking faces that KEEP is trained on, see `vfhq_dataset_builder.py`."""

from __future__ import annotations

HOMEPAGE = "https://liangbinxie.github.io/projects/vfhq"
KEEP_HOMEPAGE = "https://github.com/jnjaby/KEEP"
MILD = "BlindLR_128x128_easy_Blur5-10_Noise0-10_CRF18-25"
INSTRUCTIONS = f"""\
Put into the folder:
512:
  VFHQ-512 of {HOMEPAGE} (section Downloads; 1.2 TB), as the folder VFHQ-512-new (or VFHQ-512):
    its zips as they are, or their clips, VFHQ-512-new/Clip+.../00000000.png
  meta_info/CLIP.txt, the landmarks, and global_meta_info.txt, if you have it, from the lists that
    KEEP was trained with ({KEEP_HOMEPAGE}); lacking those, make meta_info by
    python -m vsr_jax.data_prep.landmarks FOLDER_OR_ZIPS --out .
test_mild:
  VFHQ-Test of {HOMEPAGE} (2.37 GB): VFHQ-Test.zip, or
    VFHQ-Test/GT/Interval1_512x512_LANCZOS4/Clip+.../00000000.png
  the test data that {KEEP_HOMEPAGE} links: {MILD}.zip or
    VFHQ-Test/Blind-LR/{MILD}/Clip+.../00000000.png
  VFHQ-Test/meta_info/CLIP.txt and, if you have it, VFHQ-Test/GT/global_meta_info.txt
There are no public checksums; a zip's own are verified.
"""
