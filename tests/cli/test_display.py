"""The live view: what a terminal shows while a run goes on, and that nothing of it is elsewhere."""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pyte
import pytest
import torch
from rich.console import Console, RenderableType

from dagflow.cli.display import Display
from dagflow.cli.view import BLOCKS, curve
from tests.conftest import SHORT_OPTIONS

HALF_BLOCK = "▄"
HIDE, SHOW = b"\x1b[?25l", b"\x1b[?25h"


class Terminal(io.StringIO):
    """A file that says it is a terminal, and a screen that shows what is written there."""

    def __init__(self, columns: int = 100, lines: int = 40) -> None:
        super().__init__()
        self.screen = pyte.HistoryScreen(columns, lines)
        self._stream = pyte.Stream(self.screen)
        self.console = Console(
            file=self,
            force_terminal=True,
            color_system="truecolor",
            width=columns,
            height=lines,
            soft_wrap=True,
            highlight=False,
        )

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        self._stream.feed(text.replace("\n", "\r\n"))
        return super().write(text)

    def everything(self) -> list[str]:
        """Also what has scrolled away."""
        columns = range(self.screen.columns)
        above = ["".join(row[k].data for k in columns) for row in self.screen.history.top]
        return [row.rstrip() for row in (*above, *self.screen.display) if row.strip()]

    def rows(self) -> list[str]:
        return [row.rstrip() for row in self.screen.display if row.strip()]


@pytest.fixture(autouse=True)
def no_continuous_integration(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CI", "NO_COLOR", "COLUMNS", "LINES"):
        monkeypatch.delenv(name, raising=False)


def epochs(display: Display, count: int) -> None:
    for epoch in range(1, count + 1):
        display.phase("rollout", 4, epoch)
        display.advance(3)
        display.show({"reward_mean": 0.25 * epoch, "reward_std": 0.1})
        display.show({"loss": 2 / epoch})
        display.show({"loss": 4 / epoch})
        display.show({"held_out.reward_mean": -1.0 - epoch, "held_out.diversity": 0.5})
        display.pictures(torch.full((8, 3, 32, 32), epoch / 10), epoch)
        display.epoch_done(epoch, count)
        display._live.refresh()


def refreshed(display: Display, terminal: Terminal) -> list[str]:
    """The rows of the terminal now, and not in the middle of what the display's own thread does."""
    with display._live._lock:
        display._live.refresh()
        return terminal.rows()


def test_a_curve_rises_from_the_lowest_to_the_highest_block() -> None:
    assert curve(range(8), 40) == BLOCKS
    assert curve([0, 0, 0, 0, 7, 7, 7, 7], 2) == "▁█"
    assert len(curve(range(1000), 40)) == 40
    assert curve([3.0, 3.0], 40) == "▁▁"
    assert curve([-2.0, -1.0], 40) == "▁█"


@pytest.mark.parametrize("columns", [60, 100, 160])
def test_curves_alarms_and_pictures_fit_the_terminal(columns: int) -> None:
    terminal = Terminal(columns)
    with Display(terminal.console) as display:
        display.pictures(torch.zeros(8, 3, 32, 32), 0)
        epochs(display, 3)
        display.say("Alarm: edge_density [x] has moved")
        rows = refreshed(display, terminal)
    assert [row.split("  ")[0] for row in rows[:3]] == [f"epoch {k}/3" for k in (1, 2, 3)]
    assert rows[3] == "Alarm: edge_density [x] has moved"
    assert "epoch 3  rollout" in rows[4]
    assert "3/4" in rows[4]
    assert [row.split() for row in rows[5:9]] == [
        ["reward", "▁▅█", "0.75", "+0.5"],
        ["held-out", "█▅▁", "-4", "-2"],
        ["diversity", "▁▁▁", "0.5", "+0"],
        ["loss", "█▃▁", "1", "-2"],
    ]
    assert rows[9] == rows[3]
    pictures = rows[10:]
    assert [row.split()[0] for row in pictures if row[0] != " "] == ["base", "epoch"]
    assert all(len(row) <= columns for row in pictures)
    assert min(row.count(HALF_BLOCK) for row in pictures) >= 4 * 8
    red = [cell.fg for cell in terminal.screen.buffer[3].values()][:5]
    assert set(red) == {"red"}
    # in the end the view is gone, and what was said stays
    assert len(terminal.rows()) == 4
    assert not terminal.screen.cursor.hidden


def test_what_stands_still_is_not_written_again() -> None:
    terminal = Terminal()
    with Display(terminal.console) as display:
        display.pictures(torch.rand(8, 3, 32, 32), 0)
        epochs(display, 2)
        before, written = refreshed(display, terminal), len(terminal.getvalue())
        display.advance(1)
        rows = refreshed(display, terminal)
        assert len(terminal.getvalue()) - written < 1000
        assert [a == b for a, b in zip(rows, before, strict=True)].count(False) == 1
        terminal.console.print("said")
        assert refreshed(display, terminal) == [*rows[:2], "said", *rows[2:]]


def test_a_terminal_that_becomes_smaller_is_filled_anew() -> None:
    terminal = Terminal(100, 40)
    with Display(terminal.console) as display:
        display.pictures(torch.rand(8, 3, 32, 32), 0)
        epochs(display, 1)
        terminal.console.size = (60, 14)  # type: ignore[assignment]
        rows = [row for row in refreshed(display, terminal) if row.startswith(("reward", "base"))]
        assert [row.split()[0] for row in rows] == ["reward"]  # no room for pictures


def test_pictures_are_an_offer_of_the_terminal_that_may_be_refused() -> None:
    def shown(pictures: bool | None, system: str = "truecolor", no_color: bool = False) -> bool:
        terminal = Terminal()
        terminal.console._color_system = {"truecolor": 3, "256": 2}[system]  # type: ignore
        terminal.console.no_color = no_color
        with Display(terminal.console, pictures=pictures) as display:
            epochs(display, 1)
            return HALF_BLOCK in "".join(refreshed(display, terminal))

    assert shown(None)
    assert not shown(False)
    assert not shown(None, "256")
    assert shown(True, "256")
    assert not shown(True, no_color=True)


@pytest.mark.parametrize("variable", ["CI", "TERM"])
def test_continuous_integration_and_dumb_terminals_see_lines_alone(
    variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "dumb")
    terminal = Terminal()
    with Display(terminal.console, pictures=True) as display:
        epochs(display, 2)
    assert not set(terminal.getvalue()) & {*BLOCKS, HALF_BLOCK}
    assert "epoch 2/2  reward 0.5000 (sd 0.1000)  loss 2\n" in terminal.getvalue()
    assert "\x1b[" not in terminal.getvalue()


def test_the_time_left_counts_the_epochs_that_remain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a run resumed after 6 of 10 epochs; after the last one, that of the stage under way."""
    now = 0.0
    monkeypatch.setattr("dagflow.cli.display.time", SimpleNamespace(monotonic=lambda: now))
    display = Display(Terminal().console)
    now = 10.0
    display.epoch_done(7, 10)
    assert display._time_left() == "0:30 left"
    for epoch in (8, 9, 10):
        now += 10
        display.epoch_done(epoch, 10)
    display.phase("update", 4, 10)
    display.advance(4)
    display.phase("evaluate", 100, 10)
    assert display._bars.tasks[0].fields["left"] == ""


def on_a_terminal(
    folder: Path, *words: str, then: Callable[[subprocess.Popen[bytes], bytes], None] | None = None
) -> tuple[int, bytes]:
    """The installed command on a pseudo-terminal of 100 x 40: exit code and what it wrote."""
    primary, secondary = pty.openpty()
    fcntl.ioctl(secondary, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
    process = subprocess.Popen(
        [str(Path(sys.executable).with_name("dagflow")), "train", "--output", "run", *words],
        cwd=folder,
        env={
            **{key: value for key, value in os.environ.items() if key != "CI"},
            **{"OMP_NUM_THREADS": "1", "TERM": "xterm-256color", "COLORTERM": "truecolor"},
        },
        stderr=secondary,
        stdout=subprocess.DEVNULL,
    )
    os.close(secondary)
    written = b""
    with contextlib.suppress(OSError):  # how Linux says that the other end is closed
        while part := os.read(primary, 65536):
            written += part
            if then:
                then(process, written)
    os.close(primary)
    return process.wait(timeout=60), written


def test_a_run_on_a_terminal_shows_curves_and_pictures(tmp_path: Path) -> None:
    code, written = on_a_terminal(tmp_path, *SHORT_OPTIONS)
    text = written.decode()
    assert code == 0, text
    assert "diversity" in text
    for word in ("rollout", "score", "update", "left", "epoch 2/2"):
        assert word in text, word
    for word in ("reward    ", "loss      ", "base      ", "epoch 1   ", "█", HALF_BLOCK):
        assert word in text, word
    assert written.rfind(SHOW) > written.rfind(HIDE)


def test_ctrl_c_leaves_the_terminal_as_it_was(tmp_path: Path) -> None:
    sent: list[float] = []

    def interrupt(process: subprocess.Popen[bytes], written: bytes) -> None:
        if HALF_BLOCK.encode() in written and not sent:
            sent.append(time.monotonic())
            process.send_signal(signal.SIGINT)

    code, written = on_a_terminal(tmp_path, *SHORT_OPTIONS, "-s", "epochs=500", then=interrupt)
    assert code == 130
    assert written.rfind(SHOW) > written.rfind(HIDE)
    screen = pyte.Screen(100, 40)
    pyte.ByteStream(screen).feed(written)
    rows = [row.rstrip() for row in screen.display if row.strip()]
    assert rows[-1] == "Interrupted and saved. Resume with: dagflow train --resume run"
    assert "Stopping after this step (Ctrl-C again to stop at once) ..." in rows
    assert HALF_BLOCK not in "".join(rows)


def test_a_pipe_gets_a_line_for_each_epoch_and_no_more(dagflow: Callable[..., object]) -> None:
    done = dagflow("train", "--pictures", *SHORT_OPTIONS, COLORTERM="truecolor")
    lines = done.stderr.splitlines()  # type: ignore[attr-defined]
    assert [line.split("  ")[0] for line in lines] == ["epoch 1/2", "epoch 2/2"]
    assert "\x1b" not in done.stderr  # type: ignore[attr-defined]


def test_whoever_speaks_at_whatever_moment_spoils_nothing() -> None:
    """Signal handlers print from within a refresh, and other threads between two."""
    terminal = Terminal()
    with Display(terminal.console) as display:
        shown = display._live._get_renderable
        assert shown is not None

        def interrupted() -> RenderableType:
            terminal.console.print("from within")
            return shown()

        display._live._get_renderable = interrupted
        epochs(display, 2)
        display.pictures(torch.rand(8, 3, 32, 32), 2)
        talker = threading.Thread(target=lambda: [display.say(f"said {k}") for k in range(50)])
        talker.start()
        for _ in range(20):
            display.advance(1)
            display._live.refresh()
        talker.join()
        rows = refreshed(display, terminal)
        assert sum("rollout" in row for row in rows) == 1
        assert sum(row.startswith("epoch 2   ") for row in rows) == 1
        display._live._get_renderable = shown
    said = [line for line in terminal.everything() if line.startswith("said")]
    assert said == [f"said {k}" for k in range(50)]
    assert not any(HALF_BLOCK in line for line in terminal.everything())
