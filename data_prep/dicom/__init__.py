"""The DICOM door: a folder of coronary angiography files becomes a prepared dataset that names nobody."""
