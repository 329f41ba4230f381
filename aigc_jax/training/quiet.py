"""Orbax's own noise about a failure is hushed while checkpoints are open; after one, for good.

Its threads print pages about a file that they could not read or write; the one line is ours. Every
such error is also raised where we wait for it, so what is dropped here is only the same traceback
again, and the complaint of a reader or writer whose result nobody waits for any more.
"""

import logging
import sys
import threading
import warnings
from typing import Any

# When one leaf cannot be written, Orbax closes its loop over the tasks of the others; those not yet
# begun would complain whenever they are collected, at times as the last line of all.
NEVER = r"coroutine 'async_serialize\w*(\.<locals>\.\w+)?' was never awaited"
LOGGERS = ("absl", "asyncio")
WORDS = ("was destroyed but it is pending", "Reached preemption sync point")
_lock, _open = threading.Lock(), []


class Orbax:
    """Hushes from its making until `end`; several may overlap, and the last one to end restores."""

    def __init__(self) -> None:
        with _lock:
            if not _open:
                _install()
            _open.append(self)

    def end(self) -> None:
        """Takes the filters away, unless others still need them; harmless a second time."""
        with _lock:
            if self in _open:
                _open.remove(self)
                if not _open:
                    _remove()


def _wanted(record: logging.LogRecord) -> bool:
    text = record.pathname + record.getMessage()
    noise = record.exc_info or any(word in text for word in WORDS)
    return not (noise and ("orbax" in text or "tensorstore" in text))


def _hook(unraisable: Any) -> None:
    traceback = unraisable.exc_traceback
    where = traceback.tb_frame.f_code.co_filename if traceback else ""
    if "orbax" not in where and "Event loop is closed" not in str(unraisable.exc_value):
        _before["hook"](unraisable)


_before: dict[str, Any] = {}


def _install() -> None:
    for name in LOGGERS:
        logging.getLogger(name).addFilter(_wanted)
    warnings.filterwarnings("ignore", NEVER, RuntimeWarning)
    _before["warning"] = warnings.filters[0]
    _before["hook"] = sys.unraisablehook
    sys.unraisablehook = _hook


def _remove() -> None:
    for name in LOGGERS:
        logging.getLogger(name).removeFilter(_wanted)
    if _before["warning"] in warnings.filters:
        warnings.filters.remove(_before["warning"])
    if sys.unraisablehook is _hook:  # else somebody else has set theirs on top of it
        sys.unraisablehook = _before["hook"]
