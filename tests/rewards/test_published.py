"""Rewards from published weights, held against what the genuine packages said of the same.

golden.json is written by `make parity`: the shapes of scaled-down checkpoints and the originals'
scores of the cases in tools/parity.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from dagflow import Prompt, Reward, UserError
from dagflow_rewards import aesthetic, clip_score, hpsv2, imagereward, pickscore
from dagflow_rewards.published.aesthetic import load_head
from dagflow_rewards.published.image_reward import load_tokenizer
from tests.conftest import SHORT_OPTIONS
from tools.parity.cases import pairs, random_state, vocabulary
from tools.parity.compare import scores

HEAD = Path(__file__).parents[3] / "shared" / "data" / "sac+logos+ava1-l14-linearMSE.pth"
GOLDEN = json.loads(Path(__file__).with_name("golden.json").read_text())
FULL = Path(__file__).with_name("golden-full.json")
REWARDS: dict[str, Callable[..., Reward]] = {
    "imagereward": imagereward,
    "hpsv2": hpsv2,
    "aesthetic": aesthetic,
}
ALL = {**REWARDS, "clip-score": clip_score, "pickscore": pickscore}
TENSORS = {"imagereward": 1e-3, "hpsv2": 1e-5, "aesthetic": 1e-3}  # resized without Pillow
PROMPTS = [Prompt("a cat"), Prompt("a dog"), Prompt("")]


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with small random checkpoints of every model, under the published names."""
    folder = tmp_path_factory.mktemp("weights")
    write_checkpoints(folder, GOLDEN)
    return str(folder)


def write_checkpoints(folder: Path, golden: dict[str, Any]) -> None:
    state = random_state(golden["imagereward"]["shapes"])
    torch.save(state, folder / "ImageReward.pt")
    (folder / "vocab.txt").write_text("\n".join(vocabulary()), encoding="utf-8")
    state = random_state(golden["hpsv2"]["shapes"])
    torch.save({"state_dict": state}, folder / "HPS_v2.1_compressed.pt")
    save_file(random_state(golden["aesthetic"]["shapes"]), folder / "model.safetensors")
    head = random_state(golden["aesthetic"]["head_shapes"])
    torch.save(head, folder / "sac+logos+ava1-l14-linearMSE.pth")


@pytest.mark.parametrize("name", REWARDS)
def test_scores_are_those_of_the_genuine_package(name: str, weights: str) -> None:
    theirs = torch.tensor(GOLDEN[name]["scores"])
    assert len(theirs) == len(pairs())
    assert theirs.std() > 0.01  # so that equality says something
    exact = torch.tensor(scores(REWARDS[name](weights=weights, exact=True)))
    assert (exact - theirs).abs().max() < 1e-5
    tensors = torch.tensor(scores(REWARDS[name](weights=weights)))
    assert (tensors - theirs).abs().max() < TENSORS[name]


@pytest.mark.slow
def test_scores_at_full_size_are_those_of_the_genuine_packages(tmp_path: Path) -> None:
    golden = json.loads(FULL.read_text())
    write_checkpoints(tmp_path, golden)
    for name, factory in REWARDS.items():
        theirs = torch.tensor(golden[name]["scores"])
        exact = torch.tensor(scores(factory(weights=str(tmp_path), exact=True)))
        assert (exact - theirs).abs().max() < 1e-5, name


@pytest.mark.parametrize("name", ALL)
def test_micro_batches_and_precision_hardly_move_a_score(name: str, weights: str) -> None:
    images = torch.rand(3, 3, 64, 48, generator=torch.Generator().manual_seed(0))
    whole = ALL[name](weights=weights)(images, PROMPTS)
    one_by_one = ALL[name](weights=weights, batch_size=1)(images, PROMPTS)
    assert torch.allclose(whole, one_by_one, atol=2e-4)
    rough = ALL[name](weights=weights, dtype="bfloat16")(images, PROMPTS)
    assert rough.dtype == torch.float32
    assert 0 < (rough - whole).abs().max() < 0.1 * max(1.0, float(whole.abs().max()))
    assert ALL[name](weights=weights)(images[:0], []).shape == (0,)


@pytest.mark.parametrize("name", ALL)
def test_gradients_reach_the_images_and_no_weight(name: str, weights: str) -> None:
    images = torch.rand(2, 3, 64, 64, requires_grad=True)
    reward = ALL[name](weights=weights)
    reward(images, PROMPTS[:2]).sum().backward()
    assert images.grad is not None
    assert images.grad.abs().sum() > 0
    assert isinstance(reward, torch.nn.Module)
    assert all(parameter.grad is None for parameter in reward.parameters())


def test_a_model_is_read_once_for_all_that_use_it(weights: str) -> None:
    one, two = aesthetic(weights=weights), clip_score(weights=weights)
    assert one.clip.model is two.clip.model
    assert hpsv2(weights=weights).model is hpsv2(weights=weights, batch_size=2).model


@pytest.mark.skipif(not HEAD.exists(), reason="needs the published aesthetic head")
def test_the_real_aesthetic_head_gives_its_reference_outputs() -> None:
    head = load_head(HEAD)
    ones, first = torch.full((768,), 768**-0.5), torch.eye(768)[0]
    with torch.no_grad():
        outputs = head(torch.stack([ones, torch.zeros(768), first]))
    assert outputs.tolist() == pytest.approx([4.88328, 5.23665, 4.54505], abs=1e-5)


def test_another_vocabulary_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "vocab.txt"
    path.write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n")
    with pytest.raises(UserError, match="holds 5 words; BERT's vocabulary has 30522"):
        load_tokenizer(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="is not BERT's vocabulary"):
        load_tokenizer(path)


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ("truncated", "not a checkpoint that can be read safely"),
        ("empty", "not a checkpoint that can be read safely"),
        ("text", "not a checkpoint that can be read safely"),
        ("bomb", "nothing in it was run"),
        ("pickle", "nothing in it was run"),
        ("list", "does not hold a mapping of names to tensors"),
        ("other", "no tensor 'blip.visual_encoder.patch_embed.proj.weight' with 4 dimensions"),
        ("rank", "no tensor 'blip.visual_encoder.patch_embed.proj.weight' with 4 dimensions"),
        ("numbered", "does not hold a mapping of names to tensors"),
        ("missing", "does not fit Network: Missing key"),
        ("shape", "does not fit Network"),
    ],
)
def test_a_bad_checkpoint_is_refused_and_runs_nothing(
    damage: str, reason: str, weights: str, tmp_path: Path
) -> None:
    good, bad = Path(weights, "ImageReward.pt"), tmp_path / "ImageReward.pt"
    (tmp_path / "vocab.txt").write_bytes(Path(weights, "vocab.txt").read_bytes())
    state, went_off = torch.load(good), tmp_path / "went off"
    contents = {
        "truncated": lambda: bad.write_bytes(good.read_bytes()[:-5000]),
        "empty": lambda: bad.write_bytes(b""),
        "text": lambda: bad.write_text("<html>not found</html>"),
        "bomb": lambda: torch.save({"state_dict": Bomb(went_off)}, bad),
        "pickle": lambda: bad.write_bytes(pickle.dumps(Bomb(went_off))),
        "list": lambda: torch.save([1, 2], bad),
        "other": lambda: torch.save({"weight": torch.zeros(1)}, bad),
        "rank": lambda: torch.save(dict.fromkeys(state, torch.zeros(1)), bad),
        "numbered": lambda: torch.save({1: torch.zeros(1)}, bad),
        "missing": lambda: torch.save(
            {key: value for key, value in state.items() if key != "mlp.layers.7.bias"}, bad
        ),
        "shape": lambda: torch.save(state | {"mlp.layers.7.bias": torch.zeros(2)}, bad),
    }
    contents[damage]()
    with pytest.raises(UserError, match=reason):
        imagereward(weights=str(tmp_path))
    assert not went_off.exists()


def test_a_folder_without_the_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"neither yuvalkirstain/PickScore_v1/model\.safetensors"):
        pickscore(weights=str(tmp_path))


def test_a_folder_may_hold_files_by_their_repository(weights: str, tmp_path: Path) -> None:
    images = torch.rand(2, 3, 64, 64)
    inside = tmp_path / "yuvalkirstain" / "PickScore_v1"
    inside.mkdir(parents=True)
    (inside / "model.safetensors").symlink_to(Path(weights, "model.safetensors"))
    (tmp_path / "model.safetensors").write_text("another")
    assert torch.equal(
        pickscore(weights=str(tmp_path))(images, PROMPTS[:2]),
        pickscore(weights=weights)(images, PROMPTS[:2]),
    )


def test_a_clip_of_another_size_is_refused(weights: str, tmp_path: Path) -> None:
    shapes = GOLDEN["aesthetic"]["shapes"]
    wide = {"vision_model.embeddings.patch_embedding.weight": [1280, 3, 32, 32]}
    wide |= {"visual_projection.weight": [128, 1280]}
    save_file(random_state(shapes | wide), tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="is not the expected CLIP: it is 1280 wide"):
        clip_score(weights=str(tmp_path))


def test_the_scale_of_pickscore_is_not_rounded(weights: str) -> None:
    rough, exact = (pickscore(weights=weights, dtype=dtype) for dtype in ("bfloat16", "float32"))
    assert rough.scale == exact.scale


@pytest.mark.parametrize("size", [(224, 100), (100, 224), (1, 500)])
def test_hpsv2_takes_images_of_any_shape(size: tuple[int, int], weights: str) -> None:
    reward = hpsv2(weights=weights)
    assert torch.isfinite(reward(torch.rand(1, 3, *size), PROMPTS[:1])).all()


@pytest.mark.parametrize("name", ALL)
def test_each_trains_the_embedded_model_from_the_command_line(
    name: str, weights: str, dagflow: Any, tmp_path: Path
) -> None:
    done = dagflow("train", "--reward", name, "-s", f"rewards.{name}.weights={weights}",
                   "--output", "run", *SHORT_OPTIONS, "-s", "evaluate.grid=0")  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").open()]
    means = [line["reward_mean"] for line in lines if "reward_mean" in line]
    assert len(means) == 2
    assert means[0] != means[1]
