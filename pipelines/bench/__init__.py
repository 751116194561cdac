"""Benchmarks against reference implementations of the same work, interleaved in one process; see docs/performance.md."""
