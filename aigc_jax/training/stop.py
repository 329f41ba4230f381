"""How training is asked to stop: it saves, says so, and ends; asked again, it ends at once."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.experimental import multihost_utils

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
AT_ONCE = 130  # exit code; 128 + SIGINT, as a shell gives


@contextlib.contextmanager
def asked() -> Iterator[Callable[[int], bool]]:
    """Yields turn -> whether to stop there: after a signal, with several processes to any of them.

    Turns are counted from 0, one after the other, the same on all processes, which agree on one.

    With several processes SIGTERM is the runtime's, and a second one of it changes nothing.
    A signal that whoever started the process had ignored stays ignored, as SIGHUP under nohup.
    """
    received: list[int] = []
    several = jax.process_count() > 1

    def on_signal(number: int, frame: Any) -> None:
        if received and "ipykernel" in sys.modules:  # a notebook lives on
            raise KeyboardInterrupt
        if received:
            os._exit(AT_ONCE)
        received.append(number)
        # Not print: a signal may come while something is being printed. After SIGHUP the terminal
        # takes no more: an error here would be raised wherever training is, before it has saved.
        with contextlib.suppress(OSError):
            os.write(1, b"\nstopping: saves first; a second signal (Ctrl-C) ends it at once\n")
        if several and number != signal.SIGTERM:
            os.kill(os.getpid(), signal.SIGTERM)  # for which the runtime watches

    if threading.current_thread() is not threading.main_thread():  # which alone hears of signals
        yield lambda _: False
        return
    # With several processes the runtime agrees with all of them on a step after SIGTERM.
    ours = [number for number in SIGNALS if not (several and number == signal.SIGTERM)]
    before = {number: signal.getsignal(number) for number in ours}
    before = {number: old for number, old in before.items() if old is not signal.SIG_IGN}
    for number in before:
        signal.signal(number, on_signal)
    try:
        yield multihost_utils.reached_preemption_sync_point if several else lambda _: bool(received)
    finally:
        for number, old in before.items():
            signal.signal(number, old)
