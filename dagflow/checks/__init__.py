"""Checks of a machine, its plugins and weights, a model, and the mathematics of a run."""
