"""Every benchmark, one line each."""

from nap_bench.benchmarks.class_incremental import ClassIncremental
from nap_bench.benchmarks.permuted_inputs import PermutedInputs
from nap_bench.benchmarks.random_labels import RandomLabels
from nap_bench.benchmarks.random_walk import RandomWalk
from nap_bench.benchmarks.true_labels import TrueLabels

BENCHMARKS = {
    benchmark.name: benchmark for benchmark in (ClassIncremental, PermutedInputs, RandomLabels, RandomWalk, TrueLabels)
}
