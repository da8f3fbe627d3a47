"""Rewards from published checkpoints, on maintained model code."""
