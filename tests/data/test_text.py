"""Folders of text: what is read again and what is not, which changes are seen, and what a cache may be of."""

import hashlib
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from jaxopt_large.config import ConfigError
from jaxopt_large.data import Cache, DataError, _cache, load_data
from jaxopt_large.data.text import folder_text
from jaxopt_large.train import RunError, train

from ..train.runs import command, small

_SMALL = [
    "model={kind: transformer, vocabulary: 260, layers: 1, width: 16, heads: 2}",
    "data={kind: text, context: 16, validation_windows: 8}",
    "optimizer.groups={'*': {rule: adamw, learning_rate: 1e-3}}",
    "train={steps: 4, batch: 8, eval_every: 4, checkpoint_every: 2}",
    "placement.mesh={data: 2}",
]


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "text"
    (made / "deep").mkdir(parents=True)
    chance = np.random.default_rng(0)
    for n in range(30):
        size = int(chance.integers(0, 300))
        name = f"deep/{n}.txt" if n % 3 else f"{n}.txt"
        (made / name).write_bytes(chance.integers(32, 127, size).astype(np.uint8).tobytes())
    (made / "none.bin").write_bytes(b"not text")
    return made


def _open(folder, **more):
    return folder_text(folder, **{"context": 16, "seed": 0, "validation_windows": 8, **more})


def _whole(folder, part="train"):
    """As it would be in one piece, by an independent reading of the rule for files."""
    pieces = []
    for file in sorted(folder.rglob("*.txt")):
        number = hashlib.sha256(f"0:{file.relative_to(folder).as_posix()}".encode()).digest()[:8]
        validates = int.from_bytes(number, "big") < 0.1 * 2**64
        if validates == (part == "validation"):
            pieces.append(file.read_bytes())
    return pieces


def test_examples_are_stretches_of_all_files_with_newlines_between(folder):
    found, whole = _open(folder), b"\n".join(_whole(folder))
    assert found.size == (len(whole) - 1) // 16
    for n in range(found.size):
        assert found.example(n)["tokens"].tolist() == list(whole[n * 16 : n * 16 + 17])
    assert found.facts["files"] == 30
    assert found.facts["train_bytes"] == len(whole)
    assert found.facts["validation_bytes"] == len(b"\n".join(_whole(folder, "validation")))


def test_packed_bytes_are_whole_files(folder):
    found = _open(folder, pack=True, end_of_text=256, vocabulary=257, context=400)
    targets = np.concatenate(
        [x["tokens"][1:][x["mask"]] for x in (found.example(n) for n in range(found.size))]
    )
    assert targets.tolist() == [x for piece in _whole(folder) for x in (*piece, 256)]
    first = found.example(0)["tokens"]
    assert first[0] == 256
    assert found.validation["mask"].any(axis=1).all()


def test_a_file_is_hashed_once(folder, tmp_path, monkeypatch):
    cache = Cache(tmp_path / "cache")
    before = _open(folder, cache=cache).facts["sha256"]
    read, hashing = [], _cache._hashed

    def counted(path, before):
        read.append(path.name)
        return hashing(path, before)

    monkeypatch.setattr(_cache, "_hashed", counted)
    assert _open(folder, cache=cache).facts["sha256"] == before
    assert read == []
    (folder / "0.txt").write_bytes(b"other words")
    changed = _open(folder, cache=cache)
    assert read == ["0.txt"]
    assert changed.facts["sha256"] != before
    assert changed.files["0.txt"] == (11, hashlib.sha256(b"other words").hexdigest())


def test_seeds_share_a_cache_and_nothing_else(folder, tmp_path):
    """The files are the same; which of them validate is not."""
    for seed in range(4):
        how = {"pack": True, "end_of_text": 256, "seed": seed}
        shared, alone = _open(folder, cache=Cache(tmp_path / "cache"), **how), _open(folder, **how)
        assert shared.size == alone.size
        for n in range(alone.size):
            np.testing.assert_array_equal(shared.example(n)["tokens"], alone.example(n)["tokens"])


def test_names_that_are_not_utf8_and_what_is_hidden(folder, tmp_path):
    before = _open(folder).facts["files"]
    (folder / ".git").mkdir()
    (folder / ".git" / "log.txt").write_text("x" * 500)
    (folder / "deep" / ".hidden.txt").write_text("x" * 500)
    with open(os.fsencode(folder) + b"/caf\xe9.txt", "wb") as stream:
        stream.write(b"x" * 500)
    assert _open(folder, cache=Cache(tmp_path / "cache")).facts["files"] == before + 1
    assert _open(folder, cache=Cache(tmp_path / "cache")).facts["files"] == before + 1


def test_runs_inside_the_data_are_no_data(folder, tmp_path, quiet_console):
    runs = folder / "runs"
    how = [f"data.path={folder}"]
    train(small(*how, "train.steps=2", settings=_SMALL), runs=runs, console=quiet_console)
    ended = train(small(*how, settings=_SMALL), runs=runs, resume=True, console=quiet_console)
    assert ended["data"]["files"] == 30


def test_moved_folders_are_the_same_data(folder, tmp_path):
    before = _open(folder).facts["sha256"]
    assert _open(folder.rename(tmp_path / "elsewhere")).facts["sha256"] == before


@pytest.mark.parametrize("damage", ["torn", "of others", "no object", "no table", "no entries"])
def test_a_cache_of_other_files_is_refused(folder, tmp_path, damage):
    cache = Cache(tmp_path / "cache")
    _open(folder, cache=cache)
    (file,) = (tmp_path / "cache").iterdir()
    content = json.loads(file.read_text())
    if damage == "of others":
        content["of"][1] = "/elsewhere"
    if damage == "no table":
        content["kept"] = []
    if damage == "no entries":
        content["kept"]["0.txt"] = 3
    text = json.dumps([] if damage == "no object" else content)
    file.write_text(text[:-9] if damage == "torn" else text)
    with pytest.raises(DataError, match=rf"the cache '{file}' is damaged or of other files .*Remove it"):
        _open(folder, cache=cache)
    file.unlink()
    _open(folder, cache=cache)


def test_a_cache_of_other_examples_is_refused(folder, tmp_path):
    how = {"pack": True, "end_of_text": 256, "cache": Cache(tmp_path / "cache")}
    _open(folder, **how)
    one, two = sorted((tmp_path / "cache").glob("packed-*.npz"))
    content = one.read_bytes()
    one.write_bytes(two.read_bytes())
    with pytest.raises(DataError, match=r"packed-\w+.npz' is damaged or of other files"):
        _open(folder, **how)
    one.write_bytes(content[:100])
    with pytest.raises(DataError, match=r"packed-\w+.npz' is damaged or of other files"):
        _open(folder, **how)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda f: f.write_bytes(f.read_bytes() + b"more"), r"'{}' has changed since the run found it, got \d+ bytes"),
        (lambda f: os.truncate(f, 3), r"'{}' has changed since the run found it, got 3 bytes at byte \d+; it had"),
        (lambda f: f.unlink(), r"'{}' has changed since the run found it, got No such file or directory"),
        (lambda f: os.utime(f, (1, 1)), r"'{}' has changed since the run found it"),
    ],
    ids=["grows", "shrinks", "goes", "is touched"],
)  # fmt: skip
def test_a_file_that_changes_while_it_is_read(folder, change, expected):
    found = _open(folder)
    _read_all(found)
    file = max(folder.rglob("*.txt"), key=lambda f: f.stat().st_size)
    change(file)
    with pytest.raises(DataError, match=expected.format(file)):
        _read_all(found)


def _read_all(found):
    for n in range(found.size):
        found.example(n)


def test_a_run_on_changed_files_ends_saved_and_goes_on(folder, tmp_path, quiet_console, monkeypatch):
    """The steps before are not lost: with the file as it was, the run ends where it would have ended."""
    how = [f"data.path={folder}", "train.steps=40", "train.checkpoint_every=40"]
    whole = train(small(*how, settings=_SMALL), runs=tmp_path / "whole", console=quiet_console)
    file = max(folder.rglob("*.txt"), key=lambda f: f.stat().st_size)
    content, times = file.read_bytes(), file.stat()
    from jaxopt_large.train import loop

    report = loop._Run._report

    def cut(self, progress, at, metrics):
        report(self, progress, at, metrics)
        if at == 3 and file.stat().st_size > 3:
            os.truncate(file, 3)

    monkeypatch.setattr(loop._Run, "_report", cut)
    with pytest.raises(DataError, match=rf"'{file}' has changed since the run found it"):
        train(small(*how, settings=_SMALL), runs=tmp_path / "runs", console=quiet_console)
    monkeypatch.undo()
    (saved,) = (tmp_path / "runs" / "digits" / "checkpoints").iterdir()
    assert 3 <= int(saved.name[5:]) < 40
    with pytest.raises(
        RunError,
        match=rf"the data has changed(.|\n)*'{file.relative_to(folder)}' has 3 bytes, had {len(content)}",
    ):
        train(small(*how, settings=_SMALL), runs=tmp_path / "runs", resume=True, console=quiet_console)
    file.write_bytes(content)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    ended = train(small(*how, settings=_SMALL), runs=tmp_path / "runs", resume=True, console=quiet_console)
    assert ended["final_validation_loss"] == whole["final_validation_loss"]


def test_checkpoints_from_before_there_was_an_index(folder, tmp_path, quiet_console, monkeypatch):
    digest = hashlib.sha256()
    for file in sorted(folder.rglob("*.txt")):
        digest.update(file.relative_to(folder).as_posix().encode() + b"\0" + file.read_bytes())
    how = [f"data.path={folder}"]
    from jaxopt_large.train import loop

    made = loop.dataset_of

    def before(config, runs, tell):
        found = made(config, runs)
        found.facts["sha256"] = digest.hexdigest()
        del found.facts["hashed"]
        return found

    monkeypatch.setattr(loop, "dataset_of", before)
    train(small(*how, "train.steps=2", settings=_SMALL), runs=tmp_path, console=quiet_console)
    monkeypatch.undo()
    ended = train(small(*how, settings=_SMALL), runs=tmp_path, resume=True, console=quiet_console)
    assert ended["steps"] == 4


_PROGRAM = """
import resource, sys, time
from pathlib import Path
from jaxopt_large.data import load_data
from jaxopt_large.config import load
import jaxopt_large as jl
config = jl.load("configs/gpt2_124m.yaml", [f"data.path={sys.argv[1]}"])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
found = load_data(config.data, 0, vocabulary=50257, cache=Path(sys.argv[2]))
last = found.example(found.size - 1)["tokens"]
print(found.size, int(last.sum()), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_a_sparse_file_of_20_gb_takes_no_memory_after_its_index(tmp_path):
    """The index is put there: what is tested is what a run does once it has one."""
    folder, cache = tmp_path / "large", tmp_path / "cache"
    folder.mkdir()
    with (folder / "a.txt").open("wb") as stream:
        stream.truncate(20 * 10**9)
        stream.seek(20 * 10**9 - 3)
        stream.write(b"end")
    found = (folder / "a.txt").stat()
    kept = {"a.txt": [found.st_size, found.st_mtime_ns, "0" * 64]}
    Cache(cache).keep(("index", str(folder.resolve())), kept)
    made = subprocess.run(
        [sys.executable, "-c", _PROGRAM, folder, cache],
        capture_output=True,
        text=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        check=True,
    )
    size, _, grown = map(int, made.stdout.split())
    assert size == (18 * 10**9 - 1) // 1024
    assert grown < 2**18  # KiB: 256 MiB, of which most are libraries


def test_what_is_refused(tmp_path, capfd):
    with pytest.raises(FileNotFoundError, match="folder does not exist"):
        _open(tmp_path / "none")
    with pytest.raises(
        DataError, match=r"too little training data in .*, got 0 bytes .*Add files that end in"
    ):
        _open(tmp_path)
    (tmp_path / "a.txt").write_bytes(b"few")
    with pytest.raises(DataError, match=r"more than data.context = 16 bytes"):
        _open(tmp_path)
    with pytest.raises(
        DataError, match=r"data.end_of_text is a token, got 'x', and there is no data.tokenizer"
    ):
        _open(tmp_path, end_of_text="x")
    words = [w for s in [*_SMALL, f"data.path={tmp_path}"] for w in ("--set", s)]
    code, _, err = command(capfd, tmp_path / "runs", *words)
    assert (code, len(err.splitlines())) == (2, 1)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ("data={kind: text, pack: true}", "documents need an end_of_text"),
        ("data={kind: tokens, pack: true}", "documents need an end_of_text"),
        ("data={kind: text, end_of_text: '<eos>'}", "there is no tokenizer"),
        ("data={kind: text, end_of_text: 300}", "model.vocabulary: 260 is too small; data.end_of_text is 300"),
        ("data={kind: mixture, parts: {}, weights: {}}", "data"),
        ("data={kind: mixture, parts: {a: {kind: stdlib}}, weights: {}}", "weights: there is none for a"),
        ("data={kind: mixture, parts: {a: {kind: stdlib}}, weights: {a: 1, b: 2}}", "there is no part b; parts are a"),
        ("data={kind: mixture, parts: {a: {kind: stdlib}}, weights: {a: 0}}", "weights"),
        ("data={kind: mixture, parts: {a: {kind: stdlib}}, weights: {a: 1e-310}}", "weights"),
        ("data={kind: mixture, parts: {a: {kind: stdlib}, b: {kind: stdlib, context: 5}}, weights: {a: 1, b: 1}}", "all need the same context"),
        ("data={kind: mixture, parts: {a: {kind: digits}}, weights: {a: 1}}", "data"),
        ("data={kind: mixture, parts: {a: {kind: text, end_of_text: 900}}, weights: {a: 1}}", "data.parts.a.end_of_text is 900"),
    ],
)  # fmt: skip
def test_settings_that_do_not_match(settings, expected):
    with pytest.raises(ConfigError, match=expected):
        small(settings, settings=_SMALL)


def test_parts_without_a_path_are_named():
    config = small("data={kind: mixture, parts: {a: {kind: text}}, weights: {a: 1}}", settings=_SMALL)
    with pytest.raises(RunError, match=r"data.parts.a.path is not set.*--set data.parts.a.path=FOLDER"):
        train(config)


def test_a_mixture_of_text_and_ids_trains(folder, tmp_path, quiet_console):
    np.random.default_rng(0).integers(0, 260, 3000).astype(np.uint16).tofile(tmp_path / "ids.bin")
    parts = f"{{words: {{kind: text, path: {folder}, context: 16, pack: true, end_of_text: 256}}, "
    parts += f"ids: {{kind: tokens, path: {tmp_path / 'ids.bin'}, context: 16}}}}"
    how = [f"data={{kind: mixture, parts: {parts}, weights: {{words: 3, ids: 1}}}}"]
    whole = train(small(*how, settings=_SMALL), runs=tmp_path / "whole", console=quiet_console)
    train(small(*how, "train.steps=2", settings=_SMALL), runs=tmp_path / "half", console=quiet_console)
    ended = train(small(*how, settings=_SMALL), runs=tmp_path / "half", resume=True, console=quiet_console)
    assert ended["final_validation_loss"] == whole["final_validation_loss"]
    assert set(whole["data"]["parts"]) == {"words", "ids"}
    assert load_data(small(*how, settings=_SMALL).data, 0).unit == "token"
