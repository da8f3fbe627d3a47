"""Rewards of published checkpoints, on maintained model code."""
