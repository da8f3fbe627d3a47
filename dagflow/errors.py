"""The two ways a run can end badly: the user's input is wrong, or the run failed."""

from __future__ import annotations

import difflib
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

OURS = {"dagflow", "torch", "concurrent"}  # modules whose lines say little about a plugin's mistake


class UserError(Exception):
    """The user's input is wrong. The command line prints the message and exits with 2."""


class RunError(Exception):
    """The run failed for a reason that is not the user's input. Exit code 1."""


class Interrupted(Exception):
    """The user, or the machine's scheduler, asked the run to stop. Exit code 130."""


class NotSaved(RunError):
    """A file of the run could not be written; the checkpoint before it stands."""


class NotFinite(RunError):
    """A loss or gradient is not finite, so the step was not taken."""


class ProcessLost(RunError):
    """Another process of the run has gone."""


class PluginError(RunError):
    """A plugin raised, or returned something that breaks its contract; the message names it."""


def raised(error: BaseException) -> str:
    """`raised ValueError: text (FILE, line 12)`, with the innermost line of the plugin."""
    place = ""
    for frame, line in traceback.walk_tb(error.__traceback__):
        if frame.f_globals.get("__name__", "").partition(".")[0] not in OURS:
            place = f" ({frame.f_code.co_filename}, line {line})"
    return f"raised {described(error)}{place}"


def described(error: BaseException) -> str:
    """`ValueError: text`, or only the type if there is no text."""
    try:
        text = str(error)
    except Exception:  # a plugin's class may raise even here
        text = ""
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


@contextmanager
def blaming(plugin: str, *others: type[BaseException]) -> Iterator[None]:
    """Turn whatever a plugin raises in here, exits too, into a PluginError, `PLUGIN raised ...`.

    A PluginError already says what happened; it only gets the plugin's name in front. Ctrl-C and
    `others` pass through.
    """
    passing: tuple[type[BaseException], ...] = (KeyboardInterrupt, *others)
    try:
        yield
    except passing:
        raise
    except PluginError as error:
        raise PluginError(f"{plugin}: {error}") from error
    except BaseException as error:
        raise PluginError(f"{plugin} {raised(error)}") from error


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`" Did you mean 'x'?"` for the closest of `known`, or an empty string if none is close."""
    names = list(known)
    begun = [name for name in names if word and name.startswith(word)]
    near = difflib.get_close_matches(word, names, n=1, cutoff=0.5) or begun
    return f" Did you mean '{near[0]}'?" if near else ""
