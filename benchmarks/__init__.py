"""What `make bench`, `make startup` and `make demo` measure with; docs/benchmarks.md says how to run it."""
