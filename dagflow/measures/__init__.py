"""Measurements of images and models besides rewards: looks, diversity, drift."""
