"""Plot what survives against what is gained, from the results of `alignment.py --output`.

    pip install matplotlib
    python benchmarks/alignment_curve.py results.json ... curve.png

Each run is a line, each checkpoint a point: the change of the file size on the x axis, accuracy and
the two distances on the y axes. The green area is the goal: 10 % gained, at most 10 points of
accuracy and 30 % of the distance lost.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path

import matplotlib.pyplot as plt

PANELS = {
    "accuracy_trained": ("accuracy of the animals, %", 90),
    "feature_distance_kept_percent": ("distance kept, features, %", 70),
    "distance_kept_percent": ("distance kept, pixels, %", 70),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("results", nargs="+", type=Path)
    parser.add_argument("picture", type=Path)
    arguments = parser.parse_args()
    runs: dict[str, list[dict[str, float]]] = defaultdict(list)
    for file in arguments.results:
        for name, figures in sorted(json.loads(file.read_text()).items()):
            runs[name.partition("/")[0]].append(figures)

    figure, axes = plt.subplots(1, len(PANELS), figsize=(13, 4.2), layout="constrained")
    for axis, (key, (title, limit)) in zip(axes, PANELS.items(), strict=True):
        for name, points in runs.items():
            gains = [abs(point["change_percent"]) for point in points]
            values = [point[key] for point in points]
            style = "-" if "-kl-" in name else "--"
            axis.plot(gains, values, style, marker="o", markersize=3, linewidth=1, label=name)
        axis.fill_between([10, axis.get_xlim()[1]], limit, 120, color="green", alpha=0.08)
        axis.set(xlabel="change of the file size, %", title=title, ylim=(30, 120))
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=7, loc="lower left")
    figure.savefig(arguments.picture, dpi=110)


if __name__ == "__main__":
    main()
