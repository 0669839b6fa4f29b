"""Signals that end a run: while it trains, after the step; elsewhere at once. Nobody else handles them meanwhile."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
AGAIN = b"\nInterrupted: ending after this step. Ctrl-C again ends at once.\n"


class Interrupted(BaseException):
    """A signal ends the run. It is no Exception: what goes on after an error must not go on after this."""

    def __init__(self, number: signal.Signals) -> None:
        super().__init__(number)  # what pickle makes it of again, in another process
        self.number = number

    def __str__(self) -> str:
        return f"Interrupted by {self.number.name}"

    @property
    def exit_code(self) -> int:
        """What a shell says of a command that the signal has ended."""
        return 128 + self.number


class Watch:
    """The signal that came, and whether it is to wait: the process has one such object, `watch`."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self.is_deferred = False

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Takes the signals over; whoever had them before has them again afterwards. Signals that the process was
        started to ignore stay ignored, and a thread that is not the main one is not told of any."""
        before = {}
        if threading.current_thread() is threading.main_thread():
            for number in ENDING:
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
        """A signal is kept for the training loop, which looks at `received` between two steps; one that came too late
        for it raises Interrupted at the end."""
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
                os.write(2, AGAIN)  # print is not safe here: it may have been interrupted itself
        self.received = self.received or signal.Signals(number)
        if not self.is_deferred:
            raise Interrupted(self.received)


watch = Watch()


def forward_signal(number: signal.Signals) -> None:
    """Calls the handler that the signal had before the run, such as submitit's, which requeues the job and exits."""
    handler = signal.getsignal(number)
    if callable(handler) and handler is not signal.default_int_handler:
        handler(number, None)
