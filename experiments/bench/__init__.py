"""Benchmarks: each compares two things in the same run and ends with one line of JSON."""
