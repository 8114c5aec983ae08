"""Every exhibit, one line each."""

from nap_bench.experiments import (
    ablation_norm,
    ablation_projection,
    ablation_scale_offset,
    arms,
    arms_map,
    fig1_dead_units,
    fig2_norm_growth,
    fig3_twins,
    fig5_continual,
    fig8_statistics,
    fig11_random_walk,
    fig12_random_walk_centring,
    interactions,
    theory_elr_flow,
)

EXPERIMENTS = {
    "fig1_dead_units": fig1_dead_units,
    "fig2_norm_growth": fig2_norm_growth,
    "fig3_twins": fig3_twins,
    "fig11_random_walk": fig11_random_walk,
    "fig12_random_walk_centring": fig12_random_walk_centring,
    "theory_elr_flow": theory_elr_flow,
    "arms": arms,
    "arms_map": arms_map,
    "fig5_continual": fig5_continual,
    "fig8_statistics": fig8_statistics,
    "interactions": interactions,
    "ablation_norm": ablation_norm,
    "ablation_projection": ablation_projection,
    "ablation_scale_offset": ablation_scale_offset,
}
