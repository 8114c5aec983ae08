"""Policy optimisation of a masked-diffusion language model."""
