"""Signals that end a run: after the current step while it trains, else at once. Replaces other handlers meanwhile."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
NOTICE = b"\nInterrupted: ending after this step. Press Ctrl-C again to end at once.\n"


class Interrupted(BaseException):
    """A signal ends the run. Not an Exception: code that continues after an error must not continue after this."""

    def __init__(self, number: signal.Signals) -> None:
        super().__init__(number)  # pickle passes the same argument in another process
        self.number = number

    def __str__(self) -> str:
        return f"Interrupted by {self.number.name}"

    @property
    def exit_code(self) -> int:
        """The exit code that a shell reports for a command ended by the signal."""
        return 128 + self.number


class Watch:
    """Records the first signal, and handles it at once or later. The process has one instance, `watch`."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self.is_deferred = False

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Handles the signals inside this context; afterwards the earlier handlers are restored.

        Signals that the process was started to ignore stay ignored. Only the main thread can handle signals.
        """
        before = {}
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if (handler := signal.getsignal(number)) not in (signal.SIG_IGN, None):
                    before[number] = handler
                    signal.signal(number, self._handle)
        try:
            yield
        finally:
            self.received = None
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Inside this context, a signal is only recorded: the training loop reads `received` between two steps.

        Raises Interrupted at the end if there was a signal.
        """
        self.is_deferred = True
        try:
            yield
        finally:
            self.is_deferred = False
        if self.received is not None:
            raise Interrupted(self.received)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            if self.is_deferred:
                os.write(2, NOTICE)  # print is not safe here: the signal may have interrupted it
        self.received = self.received or signal.Signals(number)
        if not self.is_deferred:
            raise Interrupted(self.received)


watch = Watch()


def forward_signal(number: signal.Signals) -> None:
    """Calls the handler from before the run, such as submitit's, which requeues the job and exits."""
    handler = signal.getsignal(number)
    if callable(handler) and handler is not signal.default_int_handler:
        handler(number, None)
