"""Ids in ArrayRecord files: a record is a document."""

import numpy as np
import pytest

from jaxopt_large.data import Cache, DataError
from jaxopt_large.data.tokens import tokens

from ..train.runs import small

_END = 299


def _documents(count, seed=0):
    chance = np.random.default_rng(seed)
    return [chance.integers(0, 299, chance.integers(1, 60)).astype(np.uint16) for _ in range(count)]


def _write(path, documents):
    from array_record.python.array_record_module import ArrayRecordWriter

    writer = ArrayRecordWriter(str(path), "group_size:1")
    for document in documents:
        writer.write(document.tobytes())
    writer.close()


def _open(path, **more):
    options = {"context": 16, "seed": 0, "validation_windows": 4, "dtype": "uint16", "validation": None}
    return tokens(path, **options | more)


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "records"
    made.mkdir()
    _write(made / "c4.array_record-00000-of-00002", _documents(50))
    _write(made / "c4.array_record-00001-of-00002", _documents(30, 1))
    _write(tmp_path / "validation.array_record", _documents(10, 2))
    return made


def test_records_are_documents(folder, tmp_path):
    cache = Cache(tmp_path / "cache")
    how = {"end_of_text": _END, "cache": cache, "validation": str(tmp_path / "validation.array_record")}
    found = _open(folder, **how)
    whole = [
        np.concatenate([x for d in ds for x in (d, [_END])]) for ds in (_documents(50), _documents(30, 1))
    ]
    expected = [x[n : n + 17] for x in whole for n in range(0, (len(x) - 1) // 16 * 16, 16)]
    assert found.size == len(expected)
    for n, x in enumerate(expected):
        np.testing.assert_array_equal(found.example(n)["tokens"], x)
    packed = _open(folder, pack=True, **how)
    targets = np.concatenate([x["tokens"][1:][x["mask"]] for x in map(packed.example, range(packed.size))])
    np.testing.assert_array_equal(targets, np.concatenate(whole))
    assert len(list((tmp_path / "cache").glob("records-*"))) == 3
    assert _open(folder, **how).facts == found.facts


def test_what_is_refused(folder, tmp_path):
    wrong = _open(folder, vocabulary=298)
    with pytest.raises(
        DataError, match=r"got 298 in .*c4.array_record-0000.-of-00002', record \d+, at byte \d+"
    ):
        [wrong.example(n) for n in range(wrong.size)]
    _write(tmp_path / "d.array_record", [np.zeros(3, np.uint16)])
    with pytest.raises(DataError, match=r"record 0 of .* ends within an id, got 6 bytes of 4 each"):
        _open(tmp_path / "d.array_record", dtype="uint32")
    file = folder / "c4.array_record-00000-of-00002"
    found = _open(folder)
    content = file.read_bytes()
    file.write_bytes(content[:-100])
    with pytest.raises(DataError, match=r"has changed since the run found it"):
        found.example(0)
    with pytest.raises(
        DataError, match=r"c4.array_record-00000-of-00002' is no ArrayRecord file, or a truncated one"
    ):
        _open(folder)


def test_a_run_on_records(folder, tmp_path, quiet_console):
    from jaxopt_large.train import train

    settings = [
        "model={kind: transformer, vocabulary: 300, layers: 1, width: 16, heads: 2}",
        f"data={{kind: tokens, path: {folder}, context: 16, validation_windows: 4, end_of_text: 299, pack: true}}",
        "optimizer.groups={'*': {rule: adamw, learning_rate: 1e-3}}",
        "train={steps: 4, batch: 8, eval_every: 4, checkpoint_every: 2}",
        "placement.mesh={data: 2}",
    ]
    whole = train(small(settings=settings), runs=tmp_path / "whole", console=quiet_console)
    train(small("train.steps=2", settings=settings), runs=tmp_path / "half", console=quiet_console)
    ended = train(small(settings=settings), runs=tmp_path / "half", resume=True, console=quiet_console)
    assert ended["final_validation_loss"] == whole["final_validation_loss"]
