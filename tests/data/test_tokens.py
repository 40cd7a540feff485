"""Token ids from files: what examples they give, what is refused, and a run on them."""

import functools

import numpy as np
import pytest

from jaxopt_large.config import ConfigError
from jaxopt_large.data import Batches, DataError
from jaxopt_large.data.tokens import tokens
from jaxopt_large.train import train

from ..train.runs import command, small

_SMALL = [
    "model={kind: transformer, vocabulary: 300, layers: 1, width: 16, heads: 2}",
    "data={kind: tokens, context: 16, validation_windows: 4}",
    "optimizer.groups={'*': {rule: adamw, learning_rate: 1e-3}}",
    "train={steps: 4, batch: 8, eval_every: 4, checkpoint_every: 2}",
    "placement.mesh={data: 2}",
]
_config = functools.partial(small, settings=_SMALL)


def _ids(size, seed=0, dtype=np.uint16, most=300):
    return np.random.default_rng(seed).integers(0, most, size).astype(dtype)


def _open(path, **more):
    options = {"context": 16, "seed": 0, "validation_windows": 4, "dtype": "uint16", "validation": None}
    return tokens(path, **options | more)


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "ids"
    made.mkdir()
    _ids(1000).tofile(made / "a.bin")
    np.save(made / "b.npy", _ids(501, 1, np.int32))
    _ids(10, 2).tofile(made / "c.bin")  # too short for one example
    return made


def test_examples_are_stretches_of_files_and_all_of_them(folder):
    found = _open(folder)
    trained = {"a": _ids(1000)[:900], "b": _ids(501, 1)[:451]}
    assert found.size == 899 // 16 + 450 // 16
    seen = [found.example(n)["tokens"] for n in range(found.size)]
    assert all(x.dtype == np.int32 and x.shape == (17,) for x in seen)
    whole = np.concatenate([x[:-1] for x in seen])
    parts = [ids[: (len(ids) - 1) // 16 * 16] for ids in trained.values()]
    np.testing.assert_array_equal(whole, np.concatenate(parts))
    np.testing.assert_array_equal(seen[55], _ids(1000)[880:897])
    np.testing.assert_array_equal(seen[56], _ids(501, 1)[:17])
    assert found.validation["tokens"].shape == (4, 17)
    assert found.facts["train_tokens"] == 900 + 451 + 9


def test_a_file_of_its_own_validates(folder, tmp_path):
    _ids(200, 5).tofile(tmp_path / "val.bin")
    found = _open(folder / "a.bin", validation=str(tmp_path / "val.bin"))
    assert found.size == 999 // 16
    np.testing.assert_array_equal(found.validation["tokens"][0], _ids(200, 5)[:17])


def test_what_validates_is_not_trained_on(folder):
    np.save(folder / "val.npy", _ids(200, 7))
    (folder / "._a.bin").write_bytes(b"123")
    found = _open(folder, validation=str(folder / "val.npy"))
    assert found.facts["train_tokens"] == 1000 + 501 + 10
    assert found.facts["validation_tokens"] == 200
    assert found.facts["sha256"] != _open(folder).facts["sha256"]


def test_ids_that_do_not_fit_in_32_bits(tmp_path):
    np.save(tmp_path / "a.npy", np.full(1000, 2**32 + 7))
    with pytest.raises(DataError, match=r"got 4294967303 in .* at byte \d+; 0 to 2147483647"):
        _open(tmp_path).example(0)


def test_an_epoch_has_every_example_once(folder):
    found = _open(folder)
    batches = Batches(found, 3, seed=1)
    seen = np.concatenate([next(batches)["tokens"] for _ in range(found.size // 3)])
    rows = {x.tobytes() for x in seen}
    assert len(rows) == found.size // 3 * 3
    assert rows <= {found.example(n)["tokens"].tobytes() for n in range(found.size)}


def test_files_larger_than_memory_open_at_once(tmp_path):
    """40 GB of nothing: what is read is samples, and the windows that validate."""
    file = tmp_path / "large.bin"
    with file.open("wb") as stream:
        stream.truncate(40 * 10**9)
    found = _open(file)
    assert found.size == (18 * 10**9 - 1) // 16
    assert found.example(found.size - 1)["tokens"].sum() == 0
    assert len(found.facts["sha256"]) == 64


def test_other_data_is_known_by_its_samples(folder):
    before = _open(folder).facts["sha256"]
    assert _open(folder).facts["sha256"] == before
    other = _ids(1000)
    other[500] ^= 1
    other.tofile(folder / "a.bin")
    assert _open(folder).facts["sha256"] != before


@pytest.mark.parametrize(
    ("name", "content", "error", "expected"),
    [
        (
            "a.bin",
            b"\0" * 1001,
            DataError,
            r"a.bin' ends within an id, got 1001 bytes of 2 each at byte 1000",
        ),
        ("a.npy", b"\x93NUMPY and no more", DataError, r"a.npy' is no array, or a truncated one"),
        ("a.txt", b"words", DataError, r"no token ids are in .*; .npy, .bin and .array_record files"),
        ("a.bin", b"", DataError, r"too little training data"),
        ("a.bin", b"\0" * 40, DataError, r"too little (training|validation) data"),
        (None, b"", FileNotFoundError, r"there is no file or folder"),
    ],
)
def test_what_is_refused(name, content, error, expected, tmp_path):
    if name is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(error, match=expected):
        _open(tmp_path / "none" if name is None else tmp_path)


def test_arrays_that_are_no_ids(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((4, 4), np.float32))
    with pytest.raises(DataError, match=r"holds no ids, got float32\[4, 4\]; integers in one dimension"):
        _open(tmp_path)
    np.save(tmp_path / "a.npy", np.zeros(1000, np.int32))
    with (tmp_path / "a.npy").open("r+b") as stream:
        stream.truncate(500)
    with pytest.raises(DataError, match=r"a.npy' is no array, or a truncated one"):
        _open(tmp_path)


@pytest.mark.parametrize(("suffix", "header"), [(".bin", 0), (".npy", 128)])
def test_an_id_beyond_the_vocabulary_is_told_with_its_place(suffix, header, tmp_path):
    ids = _ids(1000)
    ids[333] = 300
    if suffix == ".npy":
        np.save(tmp_path / "a.npy", ids)
    else:
        ids.tofile(tmp_path / "a.bin")
    found = _open(tmp_path, vocabulary=300)
    found.example(0)
    with pytest.raises(DataError, match=rf"got 300 in .*a{suffix}' at byte {header + 666}; 0 to 299"):
        found.example(333 // 16)


def test_a_run_resumes_on_the_same_examples(folder, tmp_path, quiet_console):
    data = f"data.path={folder}"
    whole = train(_config(data), runs=tmp_path / "whole", console=quiet_console)
    train(_config(data, "train.steps=2"), runs=tmp_path / "half", console=quiet_console)
    resumed = train(_config(data), runs=tmp_path / "half", resume=True, console=quiet_console)
    assert resumed["final_validation_loss"] == whole["final_validation_loss"]
    assert whole["data"]["files"] == 3
    assert whole["final_validation_loss"] < 6.5


def test_a_run_with_wrong_ids_ends_with_one_line(tmp_path, capfd):
    file = tmp_path / "a.bin"
    _ids(2000, most=400).tofile(file)
    words = [w for s in [*_SMALL, f"data.path={file}"] for w in ("--set", s)]
    code, _, err = command(capfd, tmp_path / "runs", *words)
    assert code in (1, 2)
    assert "an id is not in the vocabulary, got 3" in err
    assert len(err.splitlines()) == 1


def test_settings(tmp_path):
    with pytest.raises(ConfigError, match=r"data.tokens.dtype|data.dtype"):
        _config("data.dtype=float32")
