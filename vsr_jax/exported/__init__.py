"""Programs and weights in one file that runs without the system that wrote it.

`programs` lowers functions and reads them again, `files` is the format, `streams` runs them over
clips, `command` is what both export commands share. docs/export.md describes them for users.
"""
