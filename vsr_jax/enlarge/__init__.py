"""Enlarging clips: what every enlarger offers, and Real-ESRGAN's small one."""
