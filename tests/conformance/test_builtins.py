"""What comes with dagflow passes the kit."""

from __future__ import annotations

from dagflow.conformance import ObjectiveContract, PromptSourceContract, RewardContract

SMALL = {"flow_channels": [16, 16]}


class TestJpegCompressibility(RewardContract):
    name = "jpeg-compressibility"


class TestJpegIncompressibility(RewardContract):
    name = "jpeg-incompressibility"
    options = {"quality": 80}  # noqa: RUF012


class TestAnimals(PromptSourceContract):
    name = "animals"


class TestTexts(PromptSourceContract):
    name = "texts"
    options = {"texts": ["a cat", "une école"]}  # noqa: RUF012


class TestFile(PromptSourceContract):
    name = "file"

    def build(self, *first: object) -> list[str]:
        from importlib.resources import files

        path = files("dagflow") / "models" / "tiny" / "tokenizer" / "merges.txt"
        type(self).options = {"path": str(path)}
        return super().build(*first)


class TestDetailedBalance(ObjectiveContract):
    name = "db"
    options = SMALL


class TestPublishedDetailedBalance(ObjectiveContract):
    name = "db"
    options = {**SMALL, "returns": 0.0}  # noqa: RUF012


class TestResidualDetailedBalance(ObjectiveContract):
    name = "residual-db"
    options = SMALL


class TestKL(ObjectiveContract):
    name = "kl"
    options = SMALL


class TestPublishedKL(ObjectiveContract):
    name = "kl"
    options = {**SMALL, "returns": 0.0}  # noqa: RUF012


class TestNormalisedKL(ObjectiveContract):
    name = "kl"
    options = {**SMALL, "returns": 0.0, "normalise": True, "coefficient": 1.0}  # noqa: RUF012


class TestTrajectoryBalance(ObjectiveContract):
    name = "tb"


class TestVarGrad(ObjectiveContract):
    name = "vargrad"


class TestSubTrajectoryBalance(ObjectiveContract):
    name = "subtb"
    options = SMALL


class TestRelativeTrajectoryBalance(ObjectiveContract):
    name = "rtb"
    options = {"loss": "shifted-cosh"}  # noqa: RUF012


class TestDDPO(ObjectiveContract):
    name = "ddpo"


class TestGRPO(ObjectiveContract):
    name = "grpo"
    options = {"kl_coefficient": 0.1}  # noqa: RUF012
