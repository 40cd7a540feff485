"""Batches ahead of the step: their positions, and the time for which the devices have nothing to do."""

import io
import itertools

from rich.console import Console

from jaxopt_large.data import load_data
from jaxopt_large.train import feed, train
from jaxopt_large.train.progress import Progress

from .runs import lines, small


class _Batches:
    """The numbers from 0 on, each after a second on a clock that only they move."""

    def __init__(self, clock):
        self.next, self._clock = 0, clock

    def __next__(self):
        self._clock[0] += 1.0
        self.next += 1
        return self.next - 1

    def position(self):
        return {"next": self.next}

    def go_to(self, position):
        self.next = position["next"]


class _Result:
    def __init__(self, ready):
        self._ready = ready

    def is_ready(self):
        return self._ready


def _feed(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(feed.time, "monotonic", lambda: clock[0])
    return feed.Feed(_Batches(clock), lambda batch: f"placed {batch}")


def test_what_is_sent_is_not_yet_taken(monkeypatch):
    made = _feed(monkeypatch)
    assert made.take() == "placed 0"
    assert made.position() == {"next": 1}
    made.send()
    made.send()  # it is there already
    assert made.position() == {"next": 1}
    assert made.take() == "placed 1"
    assert made.position() == {"next": 2}
    made.send()
    made.go_to({"next": 1})
    assert made.take() == "placed 1"


def test_only_idle_time_counts_as_waited(monkeypatch):
    made = _feed(monkeypatch)
    made.take()
    assert made.waited == 0.0  # nothing runs before the first step
    made.send(_Result(False))
    assert made.waited == 0.0
    made.take()
    made.send(_Result(True))
    assert made.waited == 1.0


def test_the_progress_line_says_that_it_waits_for_data(monkeypatch):
    shown, config = io.StringIO(), small()
    console = Console(file=shown, width=200)
    clock = itertools.count(0.0, 20.0)
    monkeypatch.setattr(feed.time, "monotonic", lambda: next(clock))
    values = {"loss": 1.0, "learning_rate": 0.1, "gradient_norm": 1.0, "skipped_steps": 0}
    with Progress(console, config, load_data(config.data, 0), 0) as progress:
        for step in range(1, 30):
            progress.step(step, values, waited=0.0 if step < 6 else 10.0)
    told = [line for line in shown.getvalue().splitlines() if line.startswith("step ")]
    assert "waits" not in told[4]
    assert "waits for data 46%" in told[-1]


def test_a_run_writes_down_how_long_it_waited(tmp_path, quiet_console, monkeypatch):
    took = feed.Feed.send

    def late(self, working=None):
        took(self, working)
        if working is not None:
            self.waited += 2.0

    monkeypatch.setattr(feed.Feed, "send", late)
    train(small(), runs=tmp_path, console=quiet_console)
    waited = [line["data_wait_seconds"] for line in lines(tmp_path / "digits") if "loss" in line]
    assert sum(waited) >= 10.0  # of six steps, all but the last send a batch
