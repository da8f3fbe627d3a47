from __future__ import annotations

import json
import threading
import time

import pytest

from dagflow.profiling import profiled, span, traced
from tests.conftest import SHORT_OPTIONS


def test_time_belongs_to_the_innermost_span_of_this_thread(tmp_path) -> None:
    with profiled(tmp_path / "profile") as profile:
        with span("outer"):
            time.sleep(0.02)
            for _ in range(2):
                with span("inner"):
                    time.sleep(0.1)

        def elsewhere() -> None:
            with span("elsewhere"):
                time.sleep(0.02)

        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
    written = json.loads((tmp_path / "profile" / "profile.json").read_text())
    assert next(iter(written)) == "inner"
    assert "elsewhere" not in written
    assert (profile.spans["inner"].calls, profile.spans["outer"].calls) == (2, 1)
    assert profile.spans["inner"].seconds >= 0.2
    assert 0.02 <= profile.spans["outer"].seconds < profile.spans["inner"].seconds
    assert profile.spans["inner"].megabytes >= 0


def test_the_first_of_a_kind_is_traced_and_not_counted(tmp_path) -> None:
    with profiled(tmp_path / "profile") as profile:
        for _ in range(2):
            with traced("work"), span("sleep"):
                time.sleep(0.1)
    assert profile.spans["sleep"].calls == 1
    assert 0.1 <= profile.spans["sleep"].seconds < 0.19
    assert "traceEvents" in json.loads((tmp_path / "profile" / "work.json").read_text())


def test_without_a_profile_spans_do_nothing() -> None:
    with pytest.raises(ValueError, match="mine"), span("x"), traced("x"):
        raise ValueError("mine")


def test_a_run_shows_its_profile(dagflow, tmp_path) -> None:
    run = dagflow("train", *SHORT_OPTIONS, "--profile", "--output", "run")
    assert run.returncode == 0, run.stderr
    assert "profiler_start" not in run.stderr + run.stdout  # as torch's profiler has it
    names = {"encode", "rollout", "decode", "waiting", "flow", "forward", "backward", "optimizer"}
    written = json.loads((tmp_path / "run" / "profile" / "profile.json").read_text())
    assert names <= written.keys()
    for name in names:
        assert f" {name} " in run.stdout
        assert written[name]["calls"] > 0
    for name in ("rollout", "update"):
        assert (tmp_path / "run" / "profile" / f"{name}.json").is_file()
