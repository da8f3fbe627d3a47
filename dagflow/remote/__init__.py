"""The built-in rewards that run elsewhere: on a server, or in their own virtual environment."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, NonNegativeInt, PositiveInt

from dagflow import Reward, RewardFactory, hookimpl

Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


def remote(
    url: str,
    *,
    token_file: str = "",
    connect_timeout: Seconds = 5.0,
    read_timeout: Seconds = 120.0,
    retries: NonNegativeInt = 6,
    backoff: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0,
    in_flight: PositiveInt = 4,
    batch: NonNegativeInt = 0,
) -> Reward:
    """A reward that `dagflow serve` offers at a URL; `remote:URL` for short.

    Timeouts and `backoff` are seconds; the wait before retry k = 0, 1, ... is backoff * 2^k, at
    most 30. `batch` is the number of images per request, 0 for as many as the server accepts; up to
    `in_flight` requests travel at once. The token is the content of `token_file`, or DAGFLOW_TOKEN.

    Raises UserError if no server answers, or if it refuses the token or speaks another protocol.
    """
    from dagflow.remote.client import Patience, RemoteReward, read_token

    patience = Patience(connect_timeout, read_timeout, retries, backoff)
    return RemoteReward(url, read_token(token_file), patience, in_flight, batch)


def isolated(
    target: str,
    *,
    start_timeout: Seconds = 600.0,
    read_timeout: Seconds = 600.0,
    restarts: NonNegativeInt = 2,
    **options: Any,
) -> Reward:
    """A reward in another virtual environment; `isolated:NAME@VENV` for short.

    Starts `VENV/bin/python -m dagflow serve NAME`, and again after a crash, at most `restarts`
    times. All other options are the reward's own. Timeouts are seconds.

    Raises UserError if there is no such environment, or it has no dagflow or no such reward.
    """
    from dagflow.remote.environment import IsolatedReward

    return IsolatedReward(target, options, start_timeout, read_timeout, restarts)


@hookimpl
def dagflow_register_rewards() -> Mapping[str, RewardFactory]:
    return {"remote": remote, "isolated": isolated}
