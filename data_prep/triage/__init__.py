"""Classes of cines that DICOM does not tell: learned from labelled cines, filled in where they are missing."""
