"""Text as ids of a tokenizer that the tests train: the same in pieces as at once, made once, kept beside the runs."""

import json
import shutil

import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from jaxopt_large import cli
from jaxopt_large.config import load
from jaxopt_large.data import Cache, DataError, found_documents, tokenizing
from jaxopt_large.data.text import folder_text
from jaxopt_large.data.tokenizing import Tokenizer, write_ids
from jaxopt_large.train import RunError, train
from jaxopt_large.train.tokenize_text import tokenize_text

from ..train.runs import CONFIGS

_WORDS = ["the", "rate", "of", "a", "step", "is", "what", "it", "was", "before", "then\n", "ends\n"]
_TINY = [
    "model.vocabulary=300",
    "model.layers=2",
    "model.width=32",
    "model.heads=2",
    "model.dtype=float32",
    "data.context=32",
    "data.validation_windows=8",
    "placement.mesh={data: 2}",
    "optimizer.groups.*.learning_rate=1e-2",
    "train={steps: 6, batch: 16, accumulate: 2, accumulation: deferred, eval_every: 6, checkpoint_every: 3}",
]  # fmt: skip


def _text(seed, count):
    chance = np.random.default_rng(seed)
    return " ".join(chance.choice(_WORDS, count)) + "\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("text")
    for n in range(24):
        (made / f"{n:02}.txt").write_text(_text(n, 40 + 20 * n) + "grün ☃\n" * (n % 3))
    (made / "empty.txt").write_text("")
    return made


@pytest.fixture(scope="module")
def bpe(folder, tmp_path_factory):
    """Bytes in pairs, as GPT-2 has them; 280 ids, of which 0 ends a text."""
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=280,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train([str(f) for f in folder.iterdir()], trainer)
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    made.save(str(path))
    return path


def _at_once(bpe, documents, sources):
    """The ids of documents by the library alone."""
    made, found = tokenizers.Tokenizer.from_file(str(bpe)), []
    for source in sources:
        found += [*made.encode((documents.root / source.name).read_text()).ids, 0]
    return found


def test_ids_of_text_are_the_librarys(folder, bpe, tmp_path):
    found = folder_text(
        folder, context=16, seed=0, validation_windows=4, tokenizer=str(bpe), cache=Cache(tmp_path), vocabulary=300
    )  # fmt: skip
    documents = found_documents(folder, 0, Cache(None))
    expected = _at_once(bpe, documents, documents.train)
    seen = np.concatenate([found.example(n)["tokens"][:-1] for n in range(found.size)])
    assert seen.tolist() == expected[: len(seen)]
    assert len(expected) - len(seen) <= 16
    assert found.unit == "token"
    assert found.facts["train_tokens"] == len(expected)
    assert found.facts["validation_tokens"] == len(_at_once(bpe, documents, documents.validation))


@pytest.mark.parametrize("piece", [64, 1000, 2**20])
def test_pieces_become_what_the_whole_becomes(piece, folder, bpe, tmp_path, monkeypatch):
    monkeypatch.setattr(tokenizing, "_PIECE", piece)
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text(
        "".join(f"{_text(n, n)}\n" for n in range(60)) + "  ☃\n\n x" * 40
    )
    (tmp_path / "text" / "b.txt").write_text("no newline at its end")
    documents = found_documents(tmp_path / "text", 0, Cache(None))
    count = write_ids(tmp_path / "ids", documents.root, documents.all, Tokenizer(bpe, None))
    made = np.fromfile(tmp_path / "ids", np.uint16)
    assert made.tolist() == _at_once(bpe, documents, documents.all)
    assert count == len(made)


def test_a_tokenizer_that_cannot_take_pieces_is_refused(bpe, tmp_path, monkeypatch):
    """Spaces become part of what follows, also at the beginning of a piece, where there is none."""
    made = tokenizers.Tokenizer.from_file(str(bpe))
    made.normalizer = normalizers.Prepend("x")
    made.save(str(tmp_path / "other.json"))
    monkeypatch.setattr(tokenizing, "_PIECE", 64)
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text(_text(0, 1000))
    documents = found_documents(tmp_path / "text", 0, Cache(None))
    with pytest.raises(
        DataError, match=r"a.txt' cannot be tokenized in pieces, got no newline .* at byte \d+"
    ):
        write_ids(tmp_path / "ids", documents.root, documents.all, Tokenizer(tmp_path / "other.json", None))


def test_ids_are_made_once_and_what_is_not_whole_is_refused(folder, bpe, tmp_path, monkeypatch):
    def opened():
        return folder_text(
            folder, context=16, seed=0, validation_windows=4, tokenizer=str(bpe), cache=Cache(tmp_path)
        )  # fmt: skip

    first = opened().facts["sha256"]
    with monkeypatch.context() as patch:
        patch.setattr(tokenizing, "write_ids", None)
        assert opened().facts["sha256"] == first
    (ids,) = tmp_path.glob("ids-train-*.bin")
    with ids.open("r+b") as stream:
        stream.truncate(ids.stat().st_size - 2)
    with pytest.raises(
        DataError, match=r"ids-train-\w+.bin' is damaged or of other files, got \d+ bytes at byte"
    ):
        opened()
    ids.unlink()
    assert opened().facts["sha256"] == first
    assert not list(tmp_path.glob(".*"))


def test_another_run_that_makes_the_same_ids_at_once(folder, bpe, tmp_path, monkeypatch):
    """Who is last keeps what the first made, and reads."""
    how = {"context": 16, "seed": 0, "validation_windows": 4, "tokenizer": str(bpe), "cache": Cache(tmp_path)}
    writing, opened = tokenizing.write_ids, []

    def slowly(path, *rest):
        if not opened:
            opened.append(None)
            with monkeypatch.context() as patch:
                patch.setattr(tokenizing, "write_ids", writing)
                opened[0] = folder_text(folder, **how)
        return writing(path, *rest)

    monkeypatch.setattr(tokenizing, "write_ids", slowly)
    found = folder_text(folder, **how)
    for n in range(found.size):
        np.testing.assert_array_equal(found.example(n)["tokens"], opened[0].example(n)["tokens"])


def test_seeds_have_ids_of_their_own(folder, bpe, tmp_path):
    for seed in range(3):
        how = {"context": 16, "seed": seed, "validation_windows": 4, "tokenizer": str(bpe)}
        shared = folder_text(folder, cache=Cache(tmp_path / "shared"), **how)
        alone = folder_text(folder, cache=Cache(tmp_path / f"{seed}"), **how)
        assert shared.facts == alone.facts
        np.testing.assert_array_equal(shared.example(5)["tokens"], alone.example(5)["tokens"])


def test_ids_with_gaps_need_room_up_to_the_last(folder, tmp_path):
    made = tokenizers.Tokenizer(models.WordLevel({"the": 0, "step": 70000, "[UNK]": 1}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.save(str(tmp_path / "gaps.json"))
    assert Tokenizer(tmp_path / "gaps.json", None).dtype == np.uint32
    how = {"context": 16, "seed": 0, "validation_windows": 4, "cache": Cache(tmp_path)}
    with pytest.raises(DataError, match=r"has 70001 ids; at most model.vocabulary = 300"):
        folder_text(folder, tokenizer=str(tmp_path / "gaps.json"), vocabulary=300, **how)
    found = folder_text(folder, tokenizer=str(tmp_path / "gaps.json"), vocabulary=70001, **how)
    assert max(found.example(n)["tokens"].max() for n in range(found.size)) == 70000


@pytest.mark.parametrize(
    ("tokenizer", "more", "error", "expected"),
    [
        ("none", {}, FileNotFoundError, "there is no tokenizer, got"),
        ("text", {}, DataError, "is no tokenizer of the library tokenizers, got"),
        ("bpe", {"vocabulary": 279}, DataError, r"has 280 ids; at most model.vocabulary = 279. Raise that to 280"),
        ("bpe", {"end_of_text": "<eos>"}, DataError, r"data.end_of_text is no token of .*, got '<eos>'"),
        ("bpe", {"end_of_text": 300}, DataError, r"data.end_of_text is no id of .*, got 300; 0 to 279"),
    ],
)  # fmt: skip
def test_what_is_refused(tokenizer, more, error, expected, folder, bpe, tmp_path):
    (tmp_path / "text").write_text("{}")
    path = {"bpe": bpe}.get(tokenizer, tmp_path / tokenizer)
    with pytest.raises(error, match=expected):
        folder_text(
            folder, context=16, seed=0, validation_windows=4, tokenizer=str(path), cache=Cache(tmp_path / "c"), **more
        )  # fmt: skip


def test_text_that_is_none_is_told_with_its_place(bpe, tmp_path):
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_bytes(b"words\n" * 50 + b"\xff\n")
    with pytest.raises(DataError, match=r"a.txt' is not UTF-8, got the byte 0xff at byte 300"):
        folder_text(
            tmp_path / "text", context=16, seed=0, validation_windows=4, tokenizer=str(bpe), cache=Cache(tmp_path)
        )  # fmt: skip
    assert not list(tmp_path.glob("ids*"))
    assert not list(tmp_path.glob(".ids*"))


def test_a_run_of_gpt2s_shape_on_a_tokenizer(folder, bpe, tmp_path, quiet_console):
    """As the README says: two settings more than the configuration has."""
    settings = [*_TINY, f"data.path={folder}", f"data.tokenizer={bpe}"]
    whole = train(load(CONFIGS / "gpt2_124m.yaml", settings), runs=tmp_path / "a", console=quiet_console)
    half = load(CONFIGS / "gpt2_124m.yaml", [*settings, "train.steps=3"])
    train(half, runs=tmp_path / "b", console=quiet_console)
    config = load(CONFIGS / "gpt2_124m.yaml", settings)
    resumed = train(config, runs=tmp_path / "b", resume=True, console=quiet_console)
    assert resumed["final_validation_loss"] == whole["final_validation_loss"] < 5.0


def test_the_command_writes_what_a_run_takes(folder, bpe, tmp_path, capsys, quiet_console, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    with pytest.raises(SystemExit) as caught:
        cli.main(["tokenize", str(folder), "--tokenizer", str(bpe), "--out", str(tmp_path / "ids")])
    shown = capsys.readouterr().out
    assert caught.value.code == 0
    facts = json.loads((tmp_path / "ids" / "tokens.json").read_text())
    assert facts["files"] == 25
    lines = shown[shown.index("data:") :]
    (tmp_path / "more.yaml").write_text(lines)
    import yaml

    found = yaml.safe_load(lines)
    settings = [
        f"data={json.dumps(found['data'] | {'context': 32, 'pack': True})}",
        *(x for x in _TINY if not x.startswith("data")),
    ]
    summary = train(load(CONFIGS / "gpt2_124m.yaml", settings), runs=tmp_path / "runs", console=quiet_console)
    assert summary["data"]["train_tokens"] == facts["ids"]["train"]
    with pytest.raises(SystemExit) as caught:
        cli.main(["tokenize", str(folder), "--tokenizer", str(bpe), "--out", str(tmp_path / "ids")])
    assert caught.value.code == 2
    assert "ids are there already" in capsys.readouterr().err
    with pytest.raises(RunError, match="ids are there already"):
        tokenize_text(folder, tokenizer=bpe, out=tmp_path / "ids", console=quiet_console)
    again = tokenize_text(folder, tokenizer=bpe, out=tmp_path / "ids", overwrite=True, console=quiet_console)
    assert again == facts
    with pytest.raises(RunError, match="what is written would be read the next time"):
        tokenize_text(folder, tokenizer=bpe, out=folder / "ids", console=quiet_console)


def test_a_full_disk_leaves_nothing(folder, bpe, tmp_path, quiet_console):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"could not be written, got (ENOTDIR|EEXIST)"):
        tokenize_text(folder, tokenizer=bpe, out=tmp_path / "file", console=quiet_console)


def test_a_run_finds_its_tokenizer_gone(folder, bpe, tmp_path, quiet_console):
    own = shutil.copy(bpe, tmp_path / "own.json")
    settings = [*_TINY, f"data.path={folder}", f"data.tokenizer={own}"]
    config = load(CONFIGS / "gpt2_124m.yaml", [*settings, "train.steps=3"])
    train(config, runs=tmp_path / "runs", console=quiet_console)
    made = tokenizers.Tokenizer.from_file(str(bpe))
    made.normalizer = normalizers.Lowercase()
    made.save(str(own))
    with pytest.raises(RunError, match="the data has changed since the checkpoint"):
        train(
            load(CONFIGS / "gpt2_124m.yaml", settings),
            runs=tmp_path / "runs",
            resume=True,
            console=quiet_console,
        )
