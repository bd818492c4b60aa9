"""Lesion boxes and vessel masks from COCO JSON, matched to videos and frames."""
