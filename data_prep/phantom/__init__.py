"""Phantom coronary angiograms with known truth: anatomy, disease, X-ray physics and DICOM files from one seed."""
