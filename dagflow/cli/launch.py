"""Start and supervise the processes of a run, through torch's elastic launcher."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dagflow.cli.console import complain
from dagflow.errors import RunError, UserError

if TYPE_CHECKING:
    from dagflow.config import Config

INTERRUPTED, FAILED, WRONG_INPUT = 130, 1, 2
OWN_CODES = (INTERRUPTED, FAILED, WRONG_INPUT)  # of a process that has printed why it ended
PATIENCE = "300"  # seconds for processes to finish a step and save
SIGNALS = "SIGTERM,SIGINT,SIGUSR1"  # passed on to the processes


@dataclass(frozen=True)
class Machines:
    """What to start where."""

    processes: int  # on this machine
    nodes: int = 1
    node: int = 0  # this machine's place among them
    address: str = "localhost"  # of machine 0
    port: int = 29500

    def __post_init__(self) -> None:
        """Raises UserError for an impossible combination."""
        if self.node >= self.nodes:
            raise UserError(
                f"--node-rank {self.node} of --nnodes {self.nodes}: ranks count from 0 to "
                f"{self.nodes - 1}."
            )
        if self.nodes > 1 and self.address == "localhost":
            raise UserError("several machines need --master-addr, the address of machine 0.")


def is_launched() -> bool:
    """Whether a launcher has started this process as one of a group."""
    return "LOCAL_RANK" in os.environ


def as_launched(resolved: Config) -> Config:
    """The configuration with what accelerate's configuration asks for.

    Raises UserError if that is something that dagflow does not support.
    """
    if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
        raise UserError(
            "accelerate's configuration asks for DeepSpeed, which dagflow does not support. For a "
            "model too large for one device, ask for FSDP there, or set machine.shard."
        )
    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        machine = resolved.machine.model_copy(update={"shard": True})
        return resolved.model_copy(update={"machine": machine})
    return resolved


def launch(machines: Machines, more: Sequence[str], hint: Callable[[], str]) -> int:
    """Run this same command in several processes, and return the exit code of the group.

    `more`: words to insert after the first. What `hint` returns is printed if a process ended
    without saying why.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.disable(logging.CRITICAL)  # torch's log repeats what the processes say
    several = machines.nodes > 1
    threads = max(1, (os.cpu_count() or 1) // machines.processes)
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    config = LaunchConfig(
        min_nodes=machines.nodes,
        max_nodes=machines.nodes,
        nproc_per_node=machines.processes,
        run_id="dagflow",
        rdzv_backend="static" if several else "c10d",
        rdzv_endpoint=f"{machines.address}:{machines.port if several else 0}",
        rdzv_configs={"rank": machines.node, "timeout": 900} if several else {"timeout": 900},
        max_restarts=0,
        signals_to_handle=SIGNALS,
        shutdown_timeout=int(os.environ.get("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", PATIENCE)),
    )
    command = ["-m", "dagflow", *sys.argv[1:2], *more, *sys.argv[2:]]
    try:
        elastic_launch(config, entrypoint=sys.executable)(*command)
    except SignalException:
        return INTERRUPTED
    except RuntimeError as error:  # such as a port that is taken
        reason = str(error).strip().splitlines()[0]
        raise RunError(f"the processes cannot be started: {reason}") from error
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        code: int = failure.exitcode
        if code in OWN_CODES:  # it has said why
            return code
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with {code}"
        complain("Failed", f"process {rank} {how}; the others stopped.\n{hint()}")
        return FAILED
    return 0
