"""How long a user waits before anything happens: `python benchmarks/startup.py [--rounds 5]`.

The least seconds of several calls of the installed command, the time of `import dagflow` above that
of an empty interpreter, and the time from `dagflow train` to its first step on `tiny`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

COMMAND = Path(sys.executable).with_name("dagflow")
FIRST_STEP = """
import sys, time
sys.argv = ["dagflow", "train", "tiny", "-s", "evaluate.grid=0", "--output", sys.argv[1]]
import dagflow.cli
from dagflow.cli.display import Display
def advance(self, units):
    raise SystemExit(0)
Display.advance = advance
dagflow.cli.main()
"""


def least(command: list[str], rounds: int) -> float:
    found = []
    for _ in range(rounds):
        began = time.perf_counter()
        subprocess.run(command, capture_output=True, check=True)
        found.append(time.perf_counter() - began)
    return min(found)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    table = Table("", "seconds", "at most")
    empty = least([sys.executable, "-c", "pass"], rounds)
    table.add_row("an empty interpreter", f"{empty:.2f}", "")
    alone = least([sys.executable, "-c", "import dagflow"], rounds) - empty
    table.add_row("import dagflow", f"{alone:.2f}", "0.1")
    table.add_row("dagflow --help", f"{least([str(COMMAND), '--help'], rounds):.2f}", "0.3")
    table.add_row("list-plugins", f"{least([str(COMMAND), 'list-plugins'], rounds):.2f}", "0.5")
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        subprocess.run(
            [sys.executable, "-c", FIRST_STEP, f"{folder}/run"], capture_output=True, check=True
        )
        first = time.perf_counter() - began
    table.add_row("train tiny, to its first step", f"{first:.1f}", "10")
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
