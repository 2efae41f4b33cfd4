"""Benchmarks: dbguard beside its peers, in one run, on the same file. Not part of `make test`."""
