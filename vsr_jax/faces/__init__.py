"""Faces in frames: detection with five landmarks, by MTCNN or RetinaFace."""
