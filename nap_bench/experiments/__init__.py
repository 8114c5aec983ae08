"""Every exhibit, one line each."""

from nap_bench.experiments import arms, arms_map, fig1_dead_units

EXPERIMENTS = {
    "fig1_dead_units": fig1_dead_units,
    "arms": arms,
    "arms_map": arms_map,
}
