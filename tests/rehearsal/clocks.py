"""Streams, events and what each has seen of the others: who may read what."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

Clock = dict[int, int]  # by stream, how much of its work


class BrokenRuleError(RuntimeError):
    """What CUDA would refuse, or would do wrong in silence."""


def merge(clock: Clock, other: Clock) -> None:
    """See what the other has seen."""
    for stream, seen in other.items():
        clock[stream] = max(seen, clock.get(stream, 0))


class Streams:
    """All streams of the one device; ``current`` is where work is launched; ``capturing`` says so of a graph."""

    def __init__(self) -> None:
        self.all: list[Stream] = []
        self.launched: Clock = {}
        self.seen: Clock = {}  # by the host
        self.current = self.default = Stream(self)
        self.capturing = False

    @contextmanager
    def on(self, stream: "Stream") -> Iterator[None]:
        """``torch.cuda.stream``."""
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    def wait_for_all(self) -> None:
        """``torch.cuda.synchronize``."""
        self.forbid_in_capture("waits for the device")
        merge(self.seen, self.launched)

    def forbid_in_capture(self, what: str) -> None:
        """Nothing may wait while a graph is recorded."""
        if self.capturing:
            raise BrokenRuleError(f"a capture that {what}")


class Stream:
    """A queue of work, which is done at once; ``clock`` is what it has waited for."""

    def __init__(self, streams: Streams) -> None:
        self.streams, self.clock = streams, {}
        self.cuda_stream = 0x1000 + len(streams.all)
        streams.all.append(self)
        streams.launched[self.cuda_stream] = 0

    def launch(self) -> None:
        """One more piece of work."""
        self.streams.launched[self.cuda_stream] += 1
        self.clock[self.cuda_stream] = self.streams.launched[self.cuda_stream]

    def wait_stream(self, other: "Stream") -> None:
        """What comes now comes after what the other has so far."""
        merge(self.clock, other.clock)

    def wait_event(self, event: "Event") -> None:
        """Likewise up to an event."""
        merge(self.clock, event.clock)

    def record_event(self) -> "Event":
        """An event here and now."""
        event = Event(self.streams)
        event.record(self)
        return event

    def is_capturing(self) -> bool:
        """Whether a graph is recorded."""
        return self.streams.capturing

    def synchronize(self) -> None:
        """The host waits."""
        self.streams.forbid_in_capture("waits for a stream")
        merge(self.streams.seen, self.clock)


class Event:
    """A mark on a stream; ``elapsed_time`` sees that what lies between two of them is what is timed."""

    def __init__(self, streams: Streams, enable_timing: bool = False) -> None:
        self.streams, self.timing = streams, enable_timing
        self.stream: Stream | None = None
        self.clock: Clock = {}
        self.waited = False

    def record(self, stream: Stream | None = None) -> None:
        """Here and now."""
        self.stream, self.waited = stream or self.streams.current, False
        self.clock, self.launched = dict(self.stream.clock), dict(self.streams.launched)
        self.seconds = time.perf_counter()

    def synchronize(self) -> None:
        """The host waits for it."""
        self.streams.forbid_in_capture("waits for an event")
        self.waited = True
        merge(self.streams.seen, self.clock)

    def query(self) -> bool:
        """Whether it has passed."""
        return True

    def elapsed_time(self, end: "Event") -> float:
        """Milliseconds."""
        if self.stream is None or end.stream is None:
            raise BrokenRuleError("an event is read before it is recorded")
        if not (self.timing and end.timing):
            raise BrokenRuleError("an event that keeps no time is read")
        if not end.waited:
            raise BrokenRuleError("an event is read before the host has waited for it")
        work = {stream for stream, count in end.launched.items() if count > self.launched.get(stream, 0)}
        if not work:
            raise BrokenRuleError("nothing was launched between two events")
        if unseen := {stream for stream in work if end.clock.get(stream, 0) < end.launched[stream]}:
            raise BrokenRuleError(f"work on another stream than the one that is timed: {sorted(map(hex, unseen))}")
        return max(1e3 * (end.seconds - self.seconds), 1e-3)
