from __future__ import annotations

from pathlib import Path

import pytest

HEAD = Path("christophschuhmann", "improved-aesthetic-predictor")
HEAD /= "sac+logos+ava1-l14-linearMSE.pth"


def test_files_are_listed_with_their_readers(dagflow) -> None:
    done = dagflow("weights", "list", COLUMNS="200")
    assert done.returncode == 0, done.stderr
    [line] = [line for line in done.stdout.splitlines() if "clip-vit-large-patch14" in line]
    assert line.split()[1:] == ["1.71", "GB", "MIT", "aesthetic,", "clip-score", "no"]
    assert "zhwang/HPDv2/benchmark/anime.json" in done.stdout


def test_a_file_that_is_not_the_published_one_is_refused(dagflow, tmp_path: Path) -> None:
    path = tmp_path / "own" / HEAD
    path.parent.mkdir(parents=True)
    path.write_bytes(b"tampered with")
    done = dagflow("weights", "verify", "aesthetic", DAGFLOW_WEIGHTS="own")
    assert done.returncode == 1
    assert f"own/{HEAD} is not the published {HEAD.name}: its sha256 is" in done.stdout
    assert "Failed: files that differ from what was published: 1." in done.stderr
    done = dagflow("weights", "pull", str(HEAD), DAGFLOW_WEIGHTS="own")
    assert done.returncode == 2
    assert "is not the published" in done.stderr


def test_the_published_file_is_right(dagflow, tmp_path: Path) -> None:
    published = Path(__file__).parents[3] / "shared" / "data" / HEAD.name
    if not published.exists():
        pytest.skip("needs the published aesthetic head")
    path = tmp_path / "own" / HEAD
    path.parent.mkdir(parents=True)
    path.symlink_to(published)
    done = dagflow("weights", "verify", DAGFLOW_WEIGHTS="own")
    assert done.returncode == 0, done.stderr
    assert f"right     own/{HEAD}" in done.stdout
    assert "not here  openai/clip-vit-large-patch14/model.safetensors" in done.stdout
    done = dagflow("weights", "pull", str(HEAD), DAGFLOW_WEIGHTS="own")
    assert done.returncode == 0, done.stderr


def test_without_a_network_one_message_says_what_is_missing(dagflow, tmp_path: Path) -> None:
    for name, where in ((str(HEAD), "https://"), ("pickscore", "the model hub (revision")):
        done = dagflow("weights", "pull", name, HF_HOME=str(tmp_path / "home"))
        assert done.returncode == 2
        assert "is not on this machine, and could not be fetched from " + where in done.stderr
        assert "`dagflow weights pull " in done.stderr
        assert "set DAGFLOW_WEIGHTS to a folder that holds" in done.stderr
    done = dagflow("train", "--reward", "hpsv2", "--output", "run", HF_HOME=str(tmp_path / "home"))
    assert done.returncode == 2
    assert "xswu/HPSv2/HPS_v2.1_compressed.pt (1.97 GB) is not on this machine" in done.stderr
    assert not (tmp_path / "run").exists()


def test_an_unknown_name_is_named(dagflow) -> None:
    done = dagflow("weights", "pull", "asthetic")
    assert done.returncode == 2
    assert "Did you mean 'aesthetic'?" in done.stderr
    assert dagflow("weights", "pull").returncode == 2
