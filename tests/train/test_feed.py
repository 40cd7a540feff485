"""Batches ahead of the step: their positions, and the time for which the devices have nothing to do."""

import io
import itertools
import threading

import jax.numpy as jnp
import pytest
from rich.console import Console

from jaxopt_large.data import DataError, load_data
from jaxopt_large.train import feed, train
from jaxopt_large.train.progress import Progress

from .runs import lines, small


class _Batches:
    """The numbers from 0 on; each may be read when `ready` says so."""

    def __init__(self, ready):
        self.next, self._ready = 0, ready

    def __next__(self):
        assert self._ready.wait(60)
        self.next += 1
        return self.next - 1

    def position(self):
        return {"next": self.next}

    def go_to(self, position):
        self.next = position["next"]


def _feed():
    ready = threading.Event()
    ready.set()
    return feed.Feed(_Batches(ready), lambda batch: f"placed {batch}"), ready


def test_what_is_sent_is_not_yet_taken():
    made, _ = _feed()
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
    made.close()


def test_only_idle_time_counts_as_waited(monkeypatch):
    """A batch that is late counts from when the step before is over."""
    made, ready = _feed()
    made.take()
    made.take(jnp.ones(()))
    assert made.waited == 0.0 or made._next is None  # it may have been there in time
    clock, blocked = iter([100.0, 107.0]), []
    ready.clear()
    made.waited = 0.0
    monkeypatch.setattr(feed.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(feed.jax, "block_until_ready", lambda x: (blocked.append(x), ready.set()))
    assert made.take("a result") == "placed 2"
    assert blocked == ["a result"]
    assert made.waited == 7.0
    made.close()


def test_the_progress_line_says_that_it_waits_for_data(monkeypatch):
    shown, config = io.StringIO(), small()
    console = Console(file=shown, width=200)
    clock = itertools.count(0.0, 20.0)
    monkeypatch.setattr(feed.time, "monotonic", lambda: next(clock))
    values = {"loss": 1.0, "learning_rate": 0.1, "gradient_norm": 1.0, "skipped_steps": 0}
    with Progress(console, config, load_data(config.data, 0), 0) as progress:
        for step in range(1, 30):
            progress.step(step, values, waited=max(0.0, 10.0 * (step - 5)))
    told = [line for line in shown.getvalue().splitlines() if line.startswith("step ")]
    assert "waits" not in told[4]
    assert "waits for data 46%" in told[-1]


def test_a_run_writes_down_how_long_it_waited(tmp_path, quiet_console, monkeypatch):
    took = feed.Feed.take

    def late(self, working=None):
        self.waited += 2.0
        return took(self, working)

    monkeypatch.setattr(feed.Feed, "take", late)
    train(small("train.log_every=3"), runs=tmp_path, console=quiet_console)
    waited = [line["data_wait_seconds"] for line in lines(tmp_path / "digits") if "loss" in line]
    assert len(waited) == 2
    assert sum(waited) >= 12.0


def test_metrics_and_steps_before_data_that_fails_are_kept(tmp_path, quiet_console, monkeypatch):
    took = feed.Feed.take

    def failing(self, working=None):
        if self.position()["examples"] >= 4 * 32:
            raise DataError("data: gone.")
        return took(self, working)

    monkeypatch.setattr(feed.Feed, "take", failing)
    with pytest.raises(DataError):
        train(small("train.checkpoint_every=6"), runs=tmp_path, console=quiet_console)
    run = tmp_path / "digits"
    assert [line["step"] for line in lines(run) if "loss" in line] == [1, 2, 3, 4]
    assert [f.name for f in (run / "checkpoints").iterdir()] == ["step_00000004"]
