"""A page that is served follows the run, and the reader stays where they were."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from dagflow.page.serve import create_app


@pytest.fixture
def under_way(rich: Path, tmp_path: Path) -> Path:
    """A copy of which the last epoch is yet to come."""
    folder = Path(shutil.copytree(rich, tmp_path / "run"))
    (folder / "report.json").unlink()
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text("".join(lines[:-2]))
    (folder / "samples" / "epoch-0003.png").unlink()
    return folder


def finish(rich: Path, folder: Path) -> None:
    for name in ("samples/epoch-0003.png", "metrics.jsonl", "report.json"):
        shutil.copy(rich / name, folder / name)


def test_the_page_is_built_anew_when_files_change(rich: Path, under_way: Path) -> None:
    client = TestClient(create_app([under_way]))
    before = client.get("/version").text
    assert f'data-version="{before}"' in client.get("/").text
    assert client.get("/version").text == before
    finish(rich, under_way)
    after = client.get("/version").text
    assert after != before
    page = client.get("/").text
    assert f'data-version="{after}"' in page
    assert "connect-src 'self'" in page
    assert "90 % of the trained model" in page
    (under_way / "config.toml").unlink()
    gone = client.get("/")
    assert gone.status_code == 404
    assert "not a run directory" in gone.text


@pytest.fixture
def server(under_way: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    command = [str(Path(sys.executable).with_name("dagflow")), "report", str(under_way)]
    process = subprocess.Popen(
        [*command, "--serve", "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith("dagflow shows "), line
    yield process, line.split(" at ")[1].split(" ")[0]
    if process.poll() is None:
        process.kill()
    process.communicate()


def test_an_open_page_follows_the_run_and_keeps_its_place(
    browser: Any, server: tuple[subprocess.Popen[str], str], rich: Path, under_way: Path
) -> None:
    process, url = server
    page = browser.new_page()
    complaints: list[str] = []
    asked: list[str] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda said: said.type == "error" and complaints.append(said.text))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(url)
    assert page.locator("input[type=range]").get_attribute("max") == "2"
    page.locator("input[type=range]").focus()
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    page.locator("#chart-loss summary").click()
    page.evaluate("scrollTo({top: 900, behavior: 'instant'})")
    finish(rich, under_way)
    page.wait_for_selector('input[type=range][max="3"]', timeout=15_000)
    page.wait_for_timeout(200)
    assert page.evaluate("scrollY") == 900
    assert page.locator(".slider output").text_content() == "1"
    assert page.locator("#chart-loss details").get_attribute("open") is not None
    assert page.locator("#chart-reward details").get_attribute("open") is None
    assert "90 % of the trained model" in page.locator(".verdict").text_content()
    assert {place for place in asked if not place.startswith("data:")} == {
        f"{url}/",
        f"{url}/version",
    }
    page.close()
    assert not complaints
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 0
    assert errors == ""


def test_what_is_no_run_is_not_served(dagflow, tmp_path: Path) -> None:
    done = dagflow("report", "none", "--serve", "--port", "0")
    assert done.returncode == 2
    assert "'none' is not a folder" in done.stderr
