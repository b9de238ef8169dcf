"""GoPro (GOPRO_Large): the data set of blurry and sharp pairs, see `gopro_dataset_builder.py`."""
