"""A reward in its own virtual environment: a server that lives as long as this process."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import secrets
import signal
import subprocess
import threading
import time
import weakref
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import tomlkit
from torch import Tensor

from dagflow import PluginError, Prompt, UserError
from dagflow.remote.client import TOKEN_VARIABLE, Patience, RemoteReward

logger = logging.getLogger("dagflow.remote")

ANNOUNCED = re.compile(r"dagflow serves .* at (http://\S+)$")
TAIL = 15  # lines of the log in an error message
BACKLOG = 2000  # lines kept until there is a file to write them to
STOP_SECONDS = 5.0
USER_ERROR = 2  # the exit code of every dagflow command
OF_THE_TRAINER = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "PYTHONSAFEPATH")


class Log:
    """What a reward's servers print: in memory, and in a file once there is one."""

    def __init__(self) -> None:
        self._lines: deque[str] = deque(maxlen=BACKLOG)
        self._file: IO[str] | None = None
        self._lock = threading.Lock()

    def add(self, line: str) -> None:
        with self._lock:
            self._lines.append(line)
            if self._file is not None:
                self._file.write(line + "\n")

    def open(self, path: Path) -> None:
        """Write to that file from now on, starting with the lines so far."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._lock:
            self._file = path.open("a", encoding="utf-8", buffering=1)
            self._file.writelines(line + "\n" for line in self._lines)

    def tail(self) -> str:
        with self._lock:
            lines = list(self._lines)[-TAIL:]
        return "\n".join(["The end of its log:", *lines]) if lines else "It left no log."


class Announcement:
    """The URL that a server prints once its reward is loaded; empty if it exits before."""

    def __init__(self) -> None:
        self.url = ""
        self.settled = threading.Event()

    def listen(self, stream: IO[bytes], log: Log) -> None:
        """Log everything that a server prints, until it exits."""
        for line in stream:
            text = line.decode("utf-8", "replace").rstrip()
            log.add(text)
            if not self.url and (found := ANNOUNCED.search(text)):
                self.url = found[1]
                self.settled.set()
        self.settled.set()


class Server:
    """One server process, and the thread that reads what it prints."""

    def __init__(self, command: Sequence[str], token: str, log: Log) -> None:
        inherited = {k: v for k, v in os.environ.items() if k not in OF_THE_TRAINER}
        self._process = subprocess.Popen(
            command,
            env={**inherited, TOKEN_VARIABLE: token, "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.PIPE,  # never written to; it closes when we exit, however that happens
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is for the trainer, which still needs the server
        )
        assert self._process.stdout is not None
        self._heard = Announcement()
        self._reader = threading.Thread(
            target=self._heard.listen, args=(self._process.stdout, log), daemon=True
        )
        self._reader.start()
        self._stop = weakref.finalize(self, stop, self._process)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs; -N after signal N."""
        return self._process.poll()

    @property
    def url(self) -> str:
        """Empty until the reward is loaded."""
        return self._heard.url

    def wait(self, seconds: float) -> None:
        """Wait until the server is ready or has exited, at most that long."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and self.exit_code is None:
            if self._heard.settled.wait(0.1):
                break
        if self._heard.settled.is_set() and not self.url:  # its output ends just before it exits
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_SECONDS)

    def last_words(self) -> None:
        """Wait until everything that an exited process printed is in the log."""
        self._process.wait()
        self._reader.join(STOP_SECONDS)

    def close(self) -> None:
        self._stop()


def stop(process: subprocess.Popen[bytes]) -> None:
    """Stop a server and its children: by closing its input, or else by force."""
    assert process.stdin is not None
    process.stdin.close()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


class IsolatedReward:
    """`NAME@VENV`, served by a process that this one starts, restarts and never leaves behind.

    Raises UserError if there is no such environment, or it has no dagflow or no such reward, and
    PluginError if the reward fails to load.
    """

    concurrency = RemoteReward.concurrency
    own_timeout = True

    def __init__(
        self,
        target: str,
        options: Mapping[str, Any],
        start_timeout: float,
        read_timeout: float,
        restarts: int,
    ) -> None:
        self._name, at, folder = target.partition("@")
        if not (self._name and at and folder):
            raise UserError(f"isolated: '{target}' is not of the form NAME@PATH_OF_A_VENV.")
        self._python = python_of(Path(folder).expanduser())
        self._settings = settings(options)
        self._start_timeout, self._restarts = start_timeout, restarts
        self._token, self._log, self._lock = secrets.token_urlsafe(32), Log(), threading.Lock()
        self._server = self._start()
        patience = Patience(5.0, read_timeout, retries=2 * restarts + 2, backoff=0.5)
        self._remote = RemoteReward(
            self._server.url, self._token, patience, moved=self._living_server
        )

    def __call__(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        """See `RemoteReward`; raises PluginError also if the server dies too often."""
        return self._remote(images, prompts)

    @property
    def pid(self) -> int:
        """The server's process id."""
        return self._server.pid

    def open_log(self, folder: Path) -> None:
        """Keep the server's log in a run's directory: logs/NAME@VENV.log."""
        environment = self._python.parents[1].name
        self._log.open(folder / "logs" / f"{self._name}@{environment}.log")

    def close(self) -> None:
        """Stop the server; this also happens when the process exits."""
        self._server.close()

    def _living_server(self) -> str:
        """The server's URL, or that of a new server if it has died. Called from several threads."""
        with self._lock:
            if self._server.exit_code is None:
                return self._server.url
            self._server.last_words()
            death = f"the server of {self._what()} died ({ending(self._server.exit_code)})"
            if not self._restarts:
                raise PluginError(f"{death}, once too often. {self._log.tail()}")
            self._restarts -= 1
            logger.warning("%s; starting it again", death)
            self._log.add(f"{death}; starting it again")
            try:
                self._server = self._start()
            except UserError as error:
                raise PluginError(str(error)) from error
            return self._server.url

    def _start(self) -> Server:
        """Start a server and wait until it has loaded its reward."""
        command = [str(self._python), "-P", "-m", "dagflow", "serve", self._name, "--port", "0",
                   "--exit-with-parent", *self._settings]  # fmt: skip
        try:
            server = Server(command, self._token, self._log)
        except OSError as error:
            raise UserError(f"isolated: {self._python} cannot be run: {error.strerror}.") from error
        try:
            server.wait(self._start_timeout)
            if not server.url:
                raise self._failure(server)
        except BaseException:
            server.close()
            raise
        return server

    def _failure(self, server: Server) -> Exception:
        """Why a server did not start, from its exit code: 2 means wrong input, as everywhere."""
        if server.exit_code is None:
            return PluginError(
                f"{self._what()} was not ready within {self._start_timeout:g} s. {self._log.tail()}"
            )
        server.last_words()
        log = self._log.tail()
        if "No module named dagflow" in log:
            return UserError(
                f"the environment of {self._what()} has no dagflow. Install it with: "
                f"{self._python} -m pip install dagflow-align"
            )
        if "Unknown option: -P" in log:
            return UserError(f"the Python of {self._what()} is too old: it must be 3.11 or newer.")
        if server.exit_code == USER_ERROR:
            return UserError(f"{self._what()} does not start. {log}")
        return PluginError(f"{self._what()} does not start ({ending(server.exit_code)}). {log}")

    def _what(self) -> str:
        return f"'{self._name}' in {self._python.parents[1]}"


def python_of(environment: Path) -> Path:
    """The interpreter of a virtual environment. Raises UserError if there is none."""
    python = environment / "bin" / "python"
    if python.is_symlink() and not python.exists():
        raise UserError(
            f"isolated: the Python that '{environment}' was made with is gone ({python} leads to "
            f"{python.readlink()}): make the environment again."
        )
    if not python.exists():
        raise UserError(f"isolated: '{environment}' is not a virtual environment: no {python}.")
    return python.absolute()  # not resolved: the link itself makes it an environment


def settings(options: Mapping[str, Any]) -> list[str]:
    """Options as `-s key=value` arguments, in TOML."""
    return [word for key, value in options.items() for word in ("-s", f"{key}={_toml(value)}")]


def _toml(value: Any) -> str:
    """A value as TOML on one line."""
    if isinstance(value, Mapping):
        pairs = (f"{tomlkit.item(key).as_string()} = {_toml(x)}" for key, x in value.items())
        return f"{{{', '.join(pairs)}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml, value))}]"
    text: str = tomlkit.item(value).as_string()
    return text


def ending(code: int) -> str:
    """How a process ended, in words. code: as `Popen.returncode`."""
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
