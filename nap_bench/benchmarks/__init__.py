"""Every benchmark, one line each."""

from nap_bench.benchmarks.atari import Atari
from nap_bench.benchmarks.catch import CatchSequence
from nap_bench.benchmarks.class_incremental import ClassIncremental
from nap_bench.benchmarks.copying import Copying
from nap_bench.benchmarks.diffusion_policy import DiffusionPolicy
from nap_bench.benchmarks.hard_and_easy import HardAndEasy
from nap_bench.benchmarks.language import Language
from nap_bench.benchmarks.permuted_inputs import PermutedInputs
from nap_bench.benchmarks.random_labels import RandomLabels
from nap_bench.benchmarks.random_strings import RandomStrings
from nap_bench.benchmarks.random_walk import RandomWalk
from nap_bench.benchmarks.slowly_changing_regression import SlowlyChangingRegression
from nap_bench.benchmarks.stationary_images import StationaryImages
from nap_bench.benchmarks.true_labels import TrueLabels
from nap_bench.benchmarks.warm_start import WarmStart

BENCHMARKS = {
    benchmark.name: benchmark
    for benchmark in (
        Atari,
        CatchSequence,
        ClassIncremental,
        Copying,
        DiffusionPolicy,
        HardAndEasy,
        Language,
        PermutedInputs,
        RandomLabels,
        RandomStrings,
        RandomWalk,
        SlowlyChangingRegression,
        StationaryImages,
        TrueLabels,
        WarmStart,
    )
}
