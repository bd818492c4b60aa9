"""Classes of cines from a table: what DICOM does not say, and a group knows already."""
