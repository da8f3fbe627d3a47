"""Confidence intervals of a mean."""

from __future__ import annotations

# 97.5 % quantiles of Student's t for 1, 2, ... degrees of freedom
STUDENT = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23, 2.20, 2.18, 2.16, 2.14)


def student(count: int) -> float:
    """Half-width, in standard errors, of the mean's 95 % interval for `count` values, 2 or more."""
    return STUDENT[count - 2] if count - 2 < len(STUDENT) else 1.96 + 2.5 / (count - 1)
