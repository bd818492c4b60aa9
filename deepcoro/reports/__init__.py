"""The language of angiographic reports: segments, grades, and findings <-> text."""
