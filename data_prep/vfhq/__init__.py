"""VFHQ: the data set of talking faces that KEEP is trained on, see `vfhq_dataset_builder.py`."""
