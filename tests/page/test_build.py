"""Pages as text: whole, escaped, and of runs of every age."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
from dataclasses import replace
from pathlib import Path

import pytest

from dagflow import UserError
from dagflow.cli.report import write_page
from dagflow.page.build import build, write
from dagflow.page.charts import curves
from dagflow.page.read import read
from dagflow.page.verdict import alarms, diversity, percent, sentences
from tests.page.variants import rewrite, with_known_numbers


def copy(run: Path, folder: Path) -> Path:
    return Path(shutil.copytree(run, folder))


def titles(run: Path) -> set[str]:
    return {chart.title for _, charts in curves(read([run])) for chart in charts}


def test_a_page_of_a_real_run_has_its_curves_and_pictures(run: Path) -> None:
    page = build([run])
    assert {"Reward", "Loss", "Reward jpeg-incompressibility", "Clipped share"} <= titles(run)
    expected = {"Win rate", "Diversity", "Vendi score", "KL from the base model", "Brightness"}
    assert expected <= titles(run)
    assert page.count('class="now"') == 2
    assert page.count('class="rank"') == 6
    prompts = json.loads((run / "samples" / "prompts.json").read_text())
    for prompt in prompts:
        assert f'alt="{prompt}, epoch 3"' in page
    assert "tiny aligned with" in page
    assert "The mean reward of 12 held-out images" in page
    assert "Rewards of the held-out images" in page
    assert "<code>objective.beta</code>" in page
    assert "Python 3." in page


def test_the_best_image_of_a_real_run_has_its_own_prompt_and_reward(run: Path) -> None:
    report = json.loads((run / "report.json").read_text())
    rewards = report["per_image"]["trained"]
    best = rewards.index(max(rewards))
    shown = f"{rewards[best]:.4g}".replace("-", "−")
    found = re.findall(r'alt="(Best of the trained model: [^"]*)"', build([run]))
    assert found[0] == f"Best of the trained model: {report['prompts'][best]}, reward {shown}"
    assert len(found) == 4


def test_a_page_of_an_older_run_shows_what_there_is(older: Path) -> None:
    page = build([older])
    assert {"Reward", "Loss", "Reward jpeg-incompressibility", "Clipped share"} <= titles(older)
    assert not {"Win rate", "Diversity"} & titles(older)
    assert page.count('class="now"') == 2
    assert "picture 1 of the grid" in page  # nobody has kept its prompt
    assert "The mean reward of 12 held-out images" in page
    assert "a 95 % interval from" in page
    assert "beat the base model" not in page
    assert "has no sessions.jsonl" in page


def test_a_page_of_a_whole_run_says_what_came_of_it(rich: Path) -> None:
    [data] = read([rich])
    words = " ".join(sentences(data))
    assert "rose from −1.41 (base) to −1.29 (trained): a change of +0.12" in words
    assert "with a 95 % interval from +0.09 to +0.15. Chance in the noise" in words
    assert "90 % of the trained model's images beat" in words
    assert "Diversity within a prompt fell, from 0.21 to 0.17 (−19 %)" in words
    assert "JPEG size moved by −1.2 deviations" in words
    assert "Edge density" not in words  # it has an alarm of its own
    assert "Edge density had moved by −1.83 deviations by epoch 2" in build([rich])


def test_the_verdict_calls_chance_chance(rich: Path, tmp_path: Path) -> None:
    folder = copy(rich, tmp_path / "run")
    report = json.loads((folder / "report.json").read_text())
    report["reward"] |= {"interval": [-0.01, 0.2]}
    (folder / "report.json").write_text(json.dumps(report))
    assert "chance alone could explain that" in " ".join(sentences(read([folder])[0]))


def test_the_verdict_names_an_earlier_checkpoint(rich: Path, tmp_path: Path) -> None:
    folder = copy(rich, tmp_path / "run")
    report = json.loads((folder / "report.json").read_text())
    assert "evaluated last" not in " ".join(sentences(read([folder])[0]))
    calls = report["reward_calls"]
    report |= {"checkpoint": "epoch-0001", "reward_calls": 1, "diversity": {"base": None}}
    (folder / "report.json").write_text(json.dumps(report))
    [found] = read([folder])
    assert "of checkpoint epoch-0001, which was evaluated last" in " ".join(sentences(found))
    assert found.reward_calls == calls
    assert diversity(found) == (None, None)  # not that of other images after other epochs


def test_a_report_of_more_images_than_are_listed_has_a_page(rich: Path, tmp_path: Path) -> None:
    folder = copy(rich, tmp_path / "run")
    report = json.loads((folder / "report.json").read_text())
    for listed in ("prompts", "per_image", "ranked"):
        del report[listed]
    report |= {"images": 20000}
    (folder / "report.json").write_text(json.dumps(report))
    page = build([folder])
    assert "on 20000 images," in page
    assert "The curves show the fewer images" in page


def test_one_image_has_no_interval(rich: Path, tmp_path: Path) -> None:
    folder = copy(rich, tmp_path / "run")
    report = json.loads((folder / "report.json").read_text())
    report |= {"images": 1}
    report["reward"] |= {"interval": None, "standard_error_of_change": 0.0}
    (folder / "report.json").write_text(json.dumps(report))
    text = " ".join(sentences(read([folder])[0]))
    assert "That is too few images to tell the change from chance." in text
    assert "interval" not in text
    assert build([folder])


def test_no_share_is_less_than_nothing() -> None:
    assert percent(-0.004, signed=True) == "0 %"
    assert percent(-0.123, signed=True) == "−12 %"
    assert percent(0.123, signed=True) == "+12 %"


def test_what_comes_from_outside_is_escaped(rich: Path) -> None:
    page = build([rich])
    assert "<b>" not in page.replace("<b>Alarm.</b>", "")
    assert "window.hacked" in page
    assert "<script>window.hacked" not in page
    assert "onload='x'" not in page


def test_a_folder_whose_name_is_no_utf8_has_a_page(dagflow, run: Path, tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    try:
        copy(run, folder)
    except OSError:
        pytest.skip("this file system takes no such name")
    shown = dagflow("report", folder)
    assert shown.returncode == 0, shown.stderr
    assert "caf\\udce9" in (folder / "report.html").read_text(encoding="utf-8")


def test_nothing_is_loaded_from_elsewhere(rich: Path) -> None:
    page = build([rich])
    places = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert {place[:1] for place in places if not place.startswith("data:")} == {"#"}
    assert "url(" not in page
    assert "connect-src" not in page
    assert not re.search(r"https?://", page)


def test_alarms_stand_at_their_epoch(rich: Path) -> None:
    charts = {chart.title: chart for _, some in curves(read([rich])) for chart in some}
    [alarm] = charts["Edge density"].alarms
    assert alarm.is_own
    assert alarm.place == pytest.approx(100 * 2 / 3, abs=0.01)  # epoch 2 of 3
    assert not charts["Brightness"].alarms[0].is_own


def test_alarms_of_diversity_and_of_the_end_are_told(rich: Path, tmp_path: Path) -> None:
    folder = copy(rich, tmp_path / "run")
    report = json.loads((folder / "report.json").read_text())
    found = {"statistic": "diversity", "shift": -0.31, "limit": 0.3, "gain": 1.25}
    seen = {"statistic": "edge_density", "shift": -3.0, "limit": 1.0, "gain": 1.25}
    (folder / "report.json").write_text(json.dumps(report | {"alarms": [found, seen]}))
    diversity, edges = alarms(read([folder])[0])
    assert diversity == (
        "Diversity had fallen by 31 % at the end, while the held-out reward rose by 1.25 "
        "deviations."
    )
    assert "by epoch 2" in edges  # it was seen before


def test_training_images_stand_where_their_model_was(rich: Path) -> None:
    [data] = read([rich])
    [reward, *_] = [c for _, some in curves([data]) for c in some if c.title == "Reward"]
    assert reward.head == ("when", "Reward, held out", "Reward in training")
    assert [row[0] for row in reward.rows] == [
        "base model", "after 1 epoch", "after 2 epochs", "after 3 epochs",
    ]  # fmt: skip
    first = next(e for e in data.epochs if "reward_mean" in e)
    assert reward.rows[0][2] == f"{first['reward_mean']:.4g}".replace("-", "−")
    assert reward.rows[-1][2] == "–"


def test_a_run_under_way_has_a_page(older: Path, tmp_path: Path) -> None:
    folder = copy(older, tmp_path / "run")
    (folder / "report.json").unlink()
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    last = max(k for k, line in enumerate(lines) if '"reward_mean"' in line)
    (folder / "metrics.jsonl").write_text("".join(lines[:last]) + lines[last][:30])
    owner = {"pid": os.getpid(), "host": socket.gethostname()}
    (folder / ".owner.json").write_text(json.dumps(owner))
    [data] = read([folder])
    assert data.state == "running"
    assert data.epochs_done == 2
    words = " ".join(sentences(data))
    assert "The run is running: 2 of 3 epochs are done." in words
    assert "There is no comparison with the base model yet." in words
    assert "written at the end" in build([folder])
    (folder / ".owner.json").write_text(json.dumps({**owner, "pid": 2**22 + 1}))  # no such process
    assert read([folder])[0].state == "not finished"


def test_what_is_held_out_is_told_while_the_run_goes_on(rich: Path, tmp_path: Path) -> None:
    folder = copy(rich, tmp_path / "run")
    (folder / "report.json").unlink()
    [data] = read([folder])
    last = data.epochs[-1]["held_out.reward_change"]
    words = " ".join(sentences(data))
    assert f"a change of {last:+.3g}, with a 95 % interval" in words
    assert "Diversity within a prompt fell, from 0.21 to 0.186" in words
    few = replace(data, config={**data.config, "evaluate": {"watched": 2, "grid": 0}})
    assert (data.look_errors, few.look_errors) == (3.18, 12.71)  # of four and two images


def test_a_run_that_has_only_begun_has_a_page(run: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    shutil.copy(run / "config.toml", tmp_path / "run")
    page = build([tmp_path / "run"])
    assert "There are no numbers yet." in page
    assert "This run has no pictures" in page


def test_null_and_not_a_number_are_no_numbers(rich: Path, tmp_path: Path) -> None:
    folder = copy(rich, tmp_path / "run")
    report = json.loads((folder / "report.json").read_text())
    for key in ("diversity", "vendi", "statistics", "drift", "from_base", "ranked", "rewards"):
        report[key] = None
    report["per_image"] = {"base": None, "trained": [None]}
    report["reward"]["win_rate"] = float("nan")
    (folder / "report.json").write_text(json.dumps(report))
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 3, "update": 99, "loss": NaN}\n{"epoch": 3, "update": 100, "loss"')
    page = build([folder])
    assert "nan" not in re.findall(r'd="([^"]*)"', page)
    assert "Rewards of the held-out images" not in page
    assert "beat the base model's" not in page


def test_at_most_so_many_epochs_of_pictures_with_the_first_and_the_last(
    run: Path, tmp_path: Path
) -> None:
    folder = copy(run, tmp_path / "run")
    for epoch in range(4, 80):
        shutil.copy(folder / "samples/epoch-0003.png", folder / f"samples/epoch-{epoch:04d}.png")
    page = build([folder])
    assert "This page shows 24 of 80 epochs" in page
    [epochs] = re.findall(r'data-epochs="([^"]*)"', page)
    chosen = json.loads(epochs)
    assert (len(chosen), chosen[0], chosen[-1]) == (24, 0, 79)


def test_rewards_with_names_alike_have_charts_of_their_own(rich: Path, tmp_path: Path) -> None:
    folder = copy(rich, tmp_path / "run")
    config = (folder / "config.toml").read_text()
    more = '[evaluate.rewards."jpeg.incompressibility"]\n'
    (folder / "config.toml").write_text(config + more)
    rewrite(folder / "metrics.jsonl", lambda record: record | {
        key.replace("jpeg-inc", "jpeg.inc"): value for key, value in record.items()
    })  # fmt: skip
    page = build([folder])
    found = re.findall(r'id="([^"]*)"', page)
    assert "chart-reward-jpeg-incompressibility-2" in found
    assert len(found) == len(set(found))


def test_several_runs_share_their_charts(run: Path, rich: Path, tmp_path: Path) -> None:
    other = with_known_numbers(run, tmp_path / "other" / "rich", seed=1)
    runs = read([rich, other])
    assert runs[0].name != runs[1].name
    [win_rate] = [c for _, some in curves(runs) for c in some if c.title == "Win rate"]
    assert [line.colour for line in win_rate.plot.lines] == [0, 1]
    assert [entry.name for entry in win_rate.legend] == [data.name for data in runs]
    page = build([rich, other])
    assert "2 runs compared" in page
    assert "cannot be compared" not in page


def test_what_is_no_run_is_said(run: Path, tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    copy(run, tmp_path / "runs" / "one")
    with pytest.raises(UserError, match="is not a folder"):
        build([tmp_path / "none"])
    with pytest.raises(UserError, match=r"no config\.toml\. Did you mean '.*one'\?"):
        build([tmp_path / "runs"])
    with pytest.raises(UserError, match="given twice"):
        build([run, run / ".." / run.name])
    with pytest.raises(UserError, match="is a folder"):
        write([run], tmp_path)
    with pytest.raises(UserError, match="too many"):
        build([run] * 8)
    (tmp_path / "runs/one/config.toml").write_text("epochs = ")
    with pytest.raises(UserError, match="cannot be read"):
        build([tmp_path / "runs" / "one"])


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("report.json", '{"ranked": {"base": [0.5]}}'),
        ("timings.jsonl", '{"epoch": 1, "rollout_seconds": 1e999, "update_seconds": 1e300}'),
        ("sessions.jsonl", '{"versions": true}'),
    ],
)
def test_files_that_are_not_a_runs_are_laid_to_nobody_elses_charge(
    run: Path, tmp_path: Path, name: str, line: str
) -> None:
    folder = copy(run, tmp_path / "run")
    (folder / name).write_text(line)
    with pytest.raises(UserError, match=r"no page can be made of .*run: \w+: .* not as dagflow"):
        write([folder], tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_the_command_says_where_the_page_is(dagflow, run: Path, tmp_path: Path) -> None:
    folder = copy(run, tmp_path / "run")
    assert dagflow("report", "run").stdout == "page      run/report.html\n"
    assert (folder / "report.html").read_text().startswith("<!doctype html>")
    copy(run, tmp_path / "other")
    assert dagflow("report", "run", "other").stdout == "page      report.html\n"
    done = dagflow("report", "run", "--output", "a/b.html")
    assert done.stdout == "page      a/b.html\n"
    failed = dagflow("report", "nothing", "--output", "c.html")
    assert failed.returncode == 2
    assert "'nothing' is not a folder" in failed.stderr
    assert not (tmp_path / "c.html").exists()
    assert dagflow("report", "run", "--serve", "--output", "c.html").returncode == 2


def test_a_run_that_ended_well_is_not_spoilt_by_its_page(
    run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = copy(run, tmp_path / "run")
    (folder / "report.html").mkdir()
    write_page(folder)
    said = capfd.readouterr()
    assert said.out == ""
    assert "The page of this run could not be made: UserError:" in said.err
