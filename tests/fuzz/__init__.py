"""A campaign of damaged files, killed runs and runs beside each other; see `__main__.py`."""
