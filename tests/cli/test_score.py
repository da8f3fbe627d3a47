from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import SHORT_OPTIONS, put_plugin

GREEDY = """
import dagflow


class Greedy:
    def __call__(self, images, prompts):
        import torch

        raise torch.OutOfMemoryError("no room")


@dagflow.hookimpl
def dagflow_register_rewards():
    return {"greedy": Greedy}
"""


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Pictures of two sizes and modes, one with a text beside it, and a file that is none."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    Image.new("RGB", (40, 40), "red").save(folder / "a.png")
    Image.effect_noise((40, 40), 80).save(folder / "b.png")
    Image.new("RGBA", (64, 32), "blue").save(folder / "c.webp", lossless=True)
    (folder / "a.txt").write_text("a red square\n")
    (folder / "notes.md").write_text("not a picture")
    return folder


def test_scores_come_as_a_table_as_csv_and_as_json(dagflow, pictures: Path) -> None:
    rewards = ("--reward", "jpeg-incompressibility", "--reward", "jpeg-compressibility")
    asked = ("score", "pictures", *rewards, "-s", "jpeg-compressibility.quality=50")
    done = dagflow(*asked)
    assert done.returncode == 0, done.stderr
    assert "mean of 3" in done.stdout
    heading = done.stdout.splitlines()[0].split()
    assert heading == ["picture", "prompt", "jpeg-incompressibility", "jpeg-compressibility"]
    assert "2 pictures have neither --prompt nor a .txt beside them" in done.stderr
    records = json.loads(dagflow(*asked, "--format", "json").stdout)
    assert [Path(record["picture"]).name for record in records] == ["a.png", "b.png", "c.webp"]
    assert [record["prompt"] for record in records] == ["a red square", "", ""]
    rows = list(csv.DictReader(io.StringIO(dagflow(*asked, "--format", "csv").stdout)))
    for row, record in zip(rows, records, strict=True):
        for label, value in record["scores"].items():
            assert float(row[label]) == value
    noisy, plain = records[1]["scores"], records[0]["scores"]
    assert noisy["jpeg-incompressibility"] > plain["jpeg-incompressibility"] > 0
    assert 0 > noisy["jpeg-compressibility"] > -noisy["jpeg-incompressibility"]  # quality 50


def test_too_little_memory_is_said(dagflow, pictures: Path, tmp_path: Path) -> None:
    put_plugin(tmp_path, "greedy", GREEDY)
    done = dagflow("score", "pictures", "--reward", "greedy", PYTHONPATH=str(tmp_path))
    assert done.returncode == 1
    assert "lower --batch-size" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_score_depends_on_the_picture_alone(dagflow, pictures: Path) -> None:
    def scores(*arguments: str) -> list[float]:
        done = dagflow("score", *arguments, "--reward", "jpeg-incompressibility",
                       "--prompt", "x", "--format", "json")  # fmt: skip
        return [next(iter(item["scores"].values())) for item in json.loads(done.stdout)]

    together = scores("pictures/*.png", "pictures/c.webp", "pictures/a.png")
    assert together == [scores(f"pictures/{name}")[0] for name in ("a.png", "b.png", "c.webp")]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none/*.png", "--reward", "jpeg-compressibility"], "'none/*.png' names no picture"),
        (["pictures/notes.md", "--reward", "jpeg-compressibility"], "cannot be read as a picture"),
        (["pictures/**.png", "--reward", "jpeg-compressibility"], "'pictures/**.png' is not a pat"),
        (["pictures", "--reward", "jpeg-compressibility=2"], "scores are raw here, so it takes"),
        (["pictures", "--reward", "jpeg-compressibility", "-s", "jpeg-compressibility=3"],
         "-s jpeg-compressibility=3: this names no option"),
        (["pictures", "--reward", "jpeg-compressibility", "-s", "jpeg-compressibility.name=3"],
         "-s jpeg-compressibility.name=3: this names no option"),
        (["pictures", "--reward", "jpeg-compressibility", "--reward", "jpeg-compressibility"],
         "--reward jpeg-compressibility is given twice"),
        (["pictures", "--reward", "remote:http://[::1]:9", "-s", "remote-1-9.backoff=-1"],
         "option 'backoff': -1 is not valid"),
        (["pictures", "--reward", "jpeg-compressibility", "--prompt", "a\udcff"],
         "not plain text in UTF-8"),
        (["", "--reward", "jpeg-compressibility"], "'' names no picture"),
        (["pictures", "--reward", "jpeg"], "Did you mean 'jpeg-"),
        (["pictures", "--reward", "jpeg-compressibility", "-s", "jpg.quality=3"],
         "-s jpg: no --reward has this name, only jpeg-compressibility."),
        (["pictures", "--reward", "jpeg-compressibility", "-s", "jpeg-compressibility.quality=x"],
         "option 'quality': 'x' is not valid"),
        (["pictures", "--reward", "aesthetic"], "could not be fetched from the model hub"),
    ],
)  # fmt: skip
def test_bad_input_gets_one_message(
    dagflow, pictures: Path, arguments: list[str], message: str
) -> None:
    done = dagflow("score", *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not done.stdout


def test_a_bad_file_does_not_cost_the_others(dagflow, pictures: Path) -> None:
    (pictures / "broken.png").write_bytes(b"\x89PNG")
    (pictures / "folder.png").mkdir()
    done = dagflow("score", "pictures", "--reward", "jpeg-compressibility", "--format", "csv")
    assert done.returncode == 1
    assert len(done.stdout.splitlines()) == 1 + 3
    assert "some files were skipped." in done.stderr
    assert "'pictures/broken.png' cannot be read as a picture" in done.stderr
    (pictures / "a.txt").write_bytes(b"\xff\xfe\xff")
    done = dagflow("score", "pictures", "--reward", "jpeg-compressibility")
    assert done.returncode == 2
    assert "'pictures/a.txt' cannot be read as text" in done.stderr


def test_deep_grey_pictures_keep_their_shades(pictures: Path) -> None:
    from dagflow.score import _read

    shades = np.array([[0, 256, 32768, 65535]], dtype=np.uint16)
    Image.fromarray(shades).save(pictures / "deep.png")
    Image.frombytes("I;16B", (4, 1), shades.byteswap().tobytes()).save(pictures / "deep.tif")
    for name in ("deep.png", "deep.tif"):
        read = _read(pictures / name)
        assert read.shape == (3, 1, 4)
        assert read[0, 0].tolist() == pytest.approx([0, 256 / 65535, 32768 / 65535, 1])
    Image.fromarray(np.ones((2, 2), dtype=np.float32)).save(pictures / "real.tiff")
    with pytest.raises(ValueError, match="which of its values is white"):
        _read(pictures / "real.tiff")


def test_a_photograph_is_seen_as_it_was_held(tmp_path: Path) -> None:
    from dagflow.score import _read

    pixels = np.zeros((2, 3, 3), dtype=np.uint8)
    pixels[0, 0] = 255
    turned = Image.fromarray(np.rot90(pixels, 2).copy())
    exif = Image.Exif()
    exif[0x0112] = 3  # orientation: upside down
    turned.save(tmp_path / "turned.png", exif=exif)
    assert (_read(tmp_path / "turned.png").permute(1, 2, 0) * 255).tolist() == pixels.tolist()
    Image.fromarray(pixels).save(tmp_path / "odd.png", exif=b"Exif\0\0garbage!!!!")
    assert (_read(tmp_path / "odd.png").permute(1, 2, 0) * 255).tolist() == pixels.tolist()


LOUD = """
    import enum, sqlite3
    import dagflow
    class Colour(enum.Enum):
        RED = 1
    print("imported")
    class Loud:
        "Says what it does."
        def __init__(self, weights: dict = {Colour.RED: 1.0}, most: float = float("inf")):
            print("made")
        def __call__(self, images, prompts):
            print("asked")
            return images.mean((1, 2, 3))
    class Bound:
        "Bound to the thread that made it."
        def __init__(self):
            self.kept = sqlite3.connect(":memory:")
        def __call__(self, images, prompts):
            self.kept.execute("select 1")
            return images.mean((1, 2, 3))
    @dagflow.hookimpl
    def dagflow_register_rewards(): return {"loud": Loud, "bound": Bound}
"""


def test_what_a_plugin_prints_or_takes_spoils_no_json(dagflow, tmp_path: Path) -> None:
    put_plugin(tmp_path, "loud", LOUD)
    Image.new("RGB", (32, 32), (255, 255, 255)).save(tmp_path / "white.png")
    words = ("score", "white.png", "--reward", "loud", "--prompt", "x", "--format", "json")
    done = dagflow(*words, PYTHONPATH=str(tmp_path))
    assert json.loads(done.stdout)[0]["scores"] == {"loud": 1.0}
    assert [word in done.stderr for word in ("imported", "made", "asked")] == [True] * 3
    listed = json.loads(dagflow("list-plugins", "--json", PYTHONPATH=str(tmp_path)).stdout)
    [options] = [item["options"] for item in listed["plugins"] if item["name"] == "loud"]
    assert options["most"] == "inf"
    assert "RED" in options["weights"]


def test_what_a_reward_prints_while_training_is_no_result(dagflow, tmp_path: Path) -> None:
    put_plugin(tmp_path, "loud", LOUD)
    few = ["-s", "epochs=1", "-s", "evaluate.images=0", "-s", "evaluate.watched=0"]
    words = ["train", *SHORT_OPTIONS, *few, "--reward", "loud", "--output", "run"]
    done = dagflow(*words, PYTHONPATH=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("pictures  run/samples\n")
    assert "asked" not in done.stdout
    assert "asked" in done.stderr


def test_the_kit_notices_a_reward_that_is_bound_to_a_thread(tmp_path: Path) -> None:
    put_plugin(tmp_path, "loud", LOUD)
    words = [sys.executable, "-m", "pytest", "-q", "--dagflow-reward", "bound"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "SQLite objects created in a thread" in done.stdout
