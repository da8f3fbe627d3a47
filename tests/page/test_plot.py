from __future__ import annotations

import pytest

from dagflow.page.plot import Line, evenly, plot, shown, steps


def test_ticks_are_round_and_enclose_the_values() -> None:
    frame = plot([Line("a", ((0, 0.13), (7, 0.88)))], epochs=7)
    assert [tick.text for tick in frame.y_ticks] == ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]
    assert [tick.place for tick in frame.y_ticks] == [100, 80, 60, 40, 20, 0]
    assert [tick.text for tick in frame.x_ticks] == ["0", "2", "4", "6"]
    assert frame.x_ticks[1].place == pytest.approx(100 * 2 / 7, abs=0.001)


def test_epochs_are_whole() -> None:
    frame = plot([Line("a", ((0.5, 1.0),))], epochs=1)
    assert [tick.text for tick in frame.x_ticks] == ["0", "1"]


def test_paths_go_through_the_points() -> None:
    [line] = plot([Line("a", ((0, 0), (5, 10), (10, 5)))]).lines
    assert line.path == "M0.0 400.0L500.0 0.0L1000.0 200.0"
    [dot] = plot([Line("a", ((3, 4),))]).lines
    assert dot.path == "M500.0 200.0h0"


def test_bands_go_up_and_come_back() -> None:
    line = Line("a", ((0, 5), (10, 5)), band=((0, 0, 10), (10, 2.5, 7.5)))
    [drawn] = plot([line]).lines
    assert drawn.band == "M0.0 0.0L1000.0 100.0L1000.0 300.0L0.0 400.0Z"


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        ([3e7, 5e7], ["3e7", "5e7"]),
        ([-29000, -28100], ["−29000", "−28000"]),
        ([2e-6, 9e-6], ["2e−6", "8e−6"]),
        ([4.0, 4.0], ["3.6", "4.4"]),
        ([0.0, 0.0], ["−1.0", "1.0"]),
    ],
)
def test_ticks_of_large_small_and_equal_values(values: list[float], texts: list[str]) -> None:
    found = [tick.text for tick in plot([Line("a", tuple(enumerate(values)))]).y_ticks]
    assert set(texts) <= set(found)
    assert len(set(found)) == len(found)


def test_numbers_for_people() -> None:
    assert shown(-1.41715) == "−1.417"
    assert shown(0.1192, signed=True) == "+0.119"
    assert shown(3.2e-7) == "3.2 × 10^−7"
    assert shown(None) == shown(float("nan")) == "–"


def test_outlines_of_histograms() -> None:
    assert steps([0, 1, 2], [3, 4]) == ((0, 0), (0, 3), (1, 3), (1, 4), (2, 4), (2, 0))


def test_evenly_keeps_the_ends() -> None:
    assert evenly(range(5), 9) == [0, 1, 2, 3, 4]
    chosen = evenly(range(100), 7)
    assert (len(set(chosen)), chosen[0], chosen[-1]) == (7, 0, 99)
