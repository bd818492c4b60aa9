"""One file per experiment, and the benchmarks."""
