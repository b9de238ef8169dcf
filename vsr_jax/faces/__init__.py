"""Faces in frames: found with five landmarks, followed, cut out upright and put back."""
