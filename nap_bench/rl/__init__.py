"""Reinforcement learning: environments, replay, Rainbow, and loop 2."""
