from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from dagflow.compare import Contest, interval, result

WORLD = [
    *("world", "-s", "epochs=3", "-s", "rollout.samples_per_epoch=64"),
    *("-s", "update.batch_size=640"),
    *("-s", "update.flow_warmup=2", "-s", "evaluate.images=200"),
]  # fmt: skip


def test_intervals_are_students() -> None:
    assert interval([4.0]) == {"mean": 4.0, "half_width": 0.0}
    found = interval([1.0, 2.0, 3.0])
    assert found["mean"] == 2
    assert found["half_width"] == pytest.approx(4.30 / 3**0.5)


def test_a_result_holds_reports_and_summaries_of_what_all_report(tmp_path: Path) -> None:
    contests = []
    for seed, reward in enumerate([1.0, 3.0]):
        folder = tmp_path / f"tb-{seed}"
        folder.mkdir()
        report = {"version": 1, "seed": seed, "reward": {"trained": reward}, "note": "text"}
        (folder / "report.json").write_text(json.dumps(report))
        contests.append(Contest("tb", seed, folder, (), ()))
    found = result(contests)
    assert found["version"] == 1
    assert found["objectives"]["tb"]["summary"].keys() == {"reward.trained"}
    assert found["objectives"]["tb"]["summary"]["reward.trained"]["mean"] == 2
    assert len(found["objectives"]["tb"]["reports"]) == 2


def test_a_comparison_from_the_command_line_and_again(dagflow, tmp_path: Path) -> None:
    words = [
        *("compare", *WORLD, "--objective", "tb", "--objective", "ddpo", "--seeds", "2"),
        *("--tune", "ddpo:update.learning_rate=1e-4", "--output", "found", "--jobs", "2"),
    ]
    done = dagflow(*words)
    assert done.returncode == 0, done.stderr
    assert "tb" in done.stdout
    assert "+-" in done.stdout
    found = json.loads((tmp_path / "found" / "compare.json").read_text())
    assert found["objectives"].keys() == {"tb", "ddpo"}
    summary = found["objectives"]["tb"]["summary"]
    assert summary["reward_calls"] == {"mean": 192.0, "half_width": 0.0}
    assert "distances.trained.total_variation" in summary
    assert Image.open(tmp_path / "found" / "compare.png").size[0] > 500
    assert "learning_rate = 0.0001" in (tmp_path / "found/runs/ddpo-0/config.toml").read_text()
    before = (tmp_path / "found/runs/tb-0/metrics.jsonl").stat().st_mtime_ns
    again = dagflow(*words)
    assert again.returncode == 0
    elsewhere = dagflow(*words, "--output", str(tmp_path / "found"))  # the same by another name
    assert elsewhere.returncode == 0, elsewhere.stderr
    (tmp_path / "mine.toml").write_text('extends = "world"\nepochs = 2\n')
    for other in ([*words, "-s", "objective.beta=2.0"], ["compare", "mine.toml", *words[2:]]):
        refused = dagflow(*other)
        assert refused.returncode == 2
        assert "other settings" in refused.stderr
    assert (tmp_path / "found/runs/tb-0/metrics.jsonl").stat().st_mtime_ns == before


def test_a_failing_run_is_named_and_the_others_stand(dagflow, tmp_path: Path) -> None:
    done = dagflow(
        *("compare", *WORLD, "--objective", "tb", "--objective", "ddpo", "--seeds", "1"),
        *("--tune", "ddpo:update.learning_rate=1e30", "--output", "found"),
    )
    assert done.returncode == 1
    assert "ddpo, seed 0" in done.stderr
    assert "the loss is not finite" in done.stderr
    found = json.loads((tmp_path / "found" / "compare.json").read_text())
    assert found["objectives"].keys() == {"tb"}


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--objective", "tbb"], "tb"),
        (["--objective", "tb", "--tune", "kl:update.learning_rate=1"], "OBJECTIVE:KEY.PATH=VALUE"),
        (["--objective", "tb", "--tune", "nonsense"], "OBJECTIVE:KEY.PATH=VALUE"),
        (["--objective", "tb", "-s", "nonsense=1"], "no setting 'nonsense'"),
        (["--objective", "tb", "-s", "seed=1"], "'seed'"),
        (["--objective", "tb", "-s", "evaluate.images=0"], "evaluate.images"),
    ],
)
def test_bad_input_is_told_before_anything_runs(dagflow, tmp_path, words, reason) -> None:
    done = dagflow("compare", "world", *words)
    assert done.returncode == 2
    assert reason in done.stderr
    assert not (tmp_path / "comparison").exists()
