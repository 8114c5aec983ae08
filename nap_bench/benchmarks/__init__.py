"""Every benchmark, one line each."""

from nap_bench.benchmarks.random_labels import RandomLabels

BENCHMARKS = {benchmark.name: benchmark for benchmark in (RandomLabels,)}
