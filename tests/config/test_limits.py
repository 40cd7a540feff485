"""Configurations that would hang, run out of stack or mean nothing: refused at once, each with its line."""

import codecs
import os
import re

import pytest
import yaml

from jaxopt_large.config import ConfigError, load, to_yaml

from .test_load import _GOOD, _line

_END = len(_GOOD.splitlines()) + 1  # the line that `_GOOD + ...` begins


def _laughs(levels, each):
    lines = [f"a0: &a0 [{', '.join(['x'] * each)}]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * each)}]" for i in range(1, levels)]
    return "\n".join(lines) + "\n"


def _refused(tmp_path, content, overrides=()):
    file = tmp_path / "run.yaml"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError) as caught:
        load(file, overrides)
    text = str(caught.value)
    assert all(len(line) < 300 for line in text.splitlines())
    return text.replace(str(file), "run.yaml")


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        # --- aliases and depth
        (_laughs(9, 9), f"run.yaml:{_END + 4}: more than 10,000 values, what aliases stand for included"),
        ("x: &a [*a]\n", f"run.yaml:{_END}: *a stands inside of what it refers to"),
        ("x: &a\n  b: {c: *a}\n", f"run.yaml:{_END + 1}: *a stands inside of what it refers to"),
        ("x: *nothing\n", f"run.yaml:{_END}: not YAML: found undefined alias 'nothing'"),
        ("x: " + "[" * 5000, f"run.yaml:{_END}: groups in groups, more than 32 deep"),
        ("x: " + "[" * 5000 + "]" * 5000, f"run.yaml:{_END}: groups in groups, more than 32 deep"),
        ("x: " + "{a: " * 3000, f"run.yaml:{_END}: groups in groups, more than 32 deep"),
        ("x:\n  " + "- " * 3000 + "1\n", f"run.yaml:{_END + 1}: groups in groups, more than 32 deep"),
        ("x:\n" + "".join(" " * (i + 1) + "a:\n" for i in range(500)), f"run.yaml:{_END + 31}: groups in groups, more"),
        ("".join(f"k{i}: 1\n" for i in range(20_000)), "more than 10,000 values"),
        ("x: '" + "a" * 2**20 + "'\n", "run.yaml:1: no configuration: the file has more than 1,048,576 bytes"),
        # --- characters
        (b"x: caf\xe9\n", f"run.yaml:{_END}: not UTF-8 (got byte 0xe9); save it as UTF-8"),
        ("x: a\0b\n", f"run.yaml:{_END}: not YAML: the character U+0000 cannot stand in it"),
        ("x: \x07\n", f"run.yaml:{_END}: not YAML: the character U+0007 cannot stand in it"),
        ("x:\n\ty: 1\n", f"run.yaml:{_END + 1}: not YAML: found character '\\t' that cannot start any token"),
        # --- documents, keys and tags
        ("---\nname: b\n", f"run.yaml:{_END}: not YAML: a second document begins"),
        ("seed: 1\nseed: 2\n", f"run.yaml:{_END + 1}: seed: the key is there twice"),
        ("<<: {seed: 1}\n", f"run.yaml:{_END}: <<: merge keys are not read"),
        ("5: x\n", f"run.yaml:{_END}: 5: a key must be a string (got '5'); put it in quotes"),
        ("~: x\n", f"run.yaml:{_END}: ~: a key must be a string (got '~'); put it in quotes"),
        ("? [a]\n: x\n", f"run.yaml:{_END}: the file: a key must be a string"),
        ("? {a: b}\n: x\n", f"run.yaml:{_END}: the file: a key must be a string"),
        ("seed: !!python/name:os.system\n", f"run.yaml:{_END}: seed: tags are not read (got '!!python/name:os.system')"),
        ("seed: !mine 3\n", f"run.yaml:{_END}: seed: tags are not read (got '!mine')"),
        ("seed: !!set {a}\n", f"run.yaml:{_END}: seed: tags are not read (got '!!set')"),
        ("seed: =\n", f"run.yaml:{_END}: seed: tags are not read (got '!!value')"),
        ("seed: !!int abc\n", f"run.yaml:{_END}: seed: cannot be read as !!int (got 'abc')"),
        ("seed: !!bool abc\n", f"run.yaml:{_END}: seed: cannot be read as !!bool (got 'abc')"),
        ("seed: 2020-13-45\n", f"run.yaml:{_END}: seed: must be an integer (got '2020-13-45')"),
        # --- the seed
        ("seed: 1e20\n", f"run.yaml:{_END}: seed: must be an integer (got 1e+20)"),
        (f"seed: {10**20}\n", f"run.yaml:{_END}: seed: must be less than or equal to 4294967295 (got {10**20})"),
        (f"seed: {2**32}\n", f"run.yaml:{_END}: seed: must be less than or equal to 4294967295 (got {2**32})"),
        ("seed: -1\n", f"run.yaml:{_END}: seed: must be greater than or equal to 0 (got -1)"),
        ("seed: 1.0\n", f"run.yaml:{_END}: seed: must be an integer (got 1.0)"),
        ("seed: .nan\n", f"run.yaml:{_END}: seed: must be an integer (got nan)"),
        ("seed: " + "1" * 5000 + "\n", f"run.yaml:{_END}: seed: cannot be read as !!int (got '111"),
        ("seed: 0x" + "f" * 5000 + "\n", f"run.yaml:{_END}: seed: too large a number (got '0xfff"),
        ("seed: [" + "3, " * 5000 + "]\n", f"run.yaml:{_END}: seed: must be an integer (got [3, 3, 3,"),
    ],
    ids=lambda value: repr(value)[:30],
)  # fmt: skip
@pytest.mark.timeout(20)  # it was a hang
def test_texts_that_are_no_configuration(tmp_path, more, expected):
    content = _GOOD.encode() + more if isinstance(more, bytes) else _GOOD + more
    assert expected in _refused(tmp_path, content)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "run.yaml:1: not a mapping of keys to values"),
        (b"# nothing\n", "run.yaml:1: not a mapping of keys to values"),
        (b"- a\n- b\n", "run.yaml:1: not a mapping of keys to values"),
        (codecs.BOM_UTF16_LE + _GOOD.encode("utf-16-le"), "run.yaml:1: not UTF-8: the file is UTF-16; save"),
        (_GOOD.encode("utf-16-be"), "run.yaml:1: not YAML: the character U+0000 cannot stand in it"),
        (_GOOD.encode("utf-32"), "run.yaml:1: not UTF-8: the file is UTF-32; save it as UTF-8"),
        (bytes(range(256)), "run.yaml:"),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_files_that_are_no_configuration(tmp_path, content, expected):
    assert expected in _refused(tmp_path, content)


def _integers(annotated, at=()):
    """Paths to all integers of a complete configuration."""
    for key, value in annotated.items():
        if isinstance(value, dict):
            yield from _integers(value, (*at, key))
        elif type(value) is int:
            yield (*at, key)


@pytest.mark.parametrize("value", ["1e20", "100000000000000000000", "-1", "2.5", ".inf", "true", "'3'", "~"])
def test_every_integer_is_checked_at_its_line(tmp_path, value):
    schedule = "{schedule: warmup_stable_decay, peak: 1.0, warmup: 2, decay: 4}"
    text = to_yaml(_read(tmp_path, _GOOD.replace("3e-4", schedule)))
    paths = list(_integers(yaml.safe_load(text)))
    assert len(paths) >= 16
    lines = text.splitlines()
    for path in paths:
        (number,) = [i for i, line in enumerate(lines) if re.match(rf" *{re.escape(path[-1])}: \d+$", line)]
        broken = [*lines[:number], lines[number].partition(":")[0] + f": {value}", *lines[number + 1 :]]
        expected = f"run.yaml:{number + 1}: {'.'.join(path)}: must be "
        assert expected in _refused(tmp_path, "\n".join(broken)), path
        override = f"{'.'.join(path)}={value}"
        assert f"--set {override}: {'.'.join(path)}: must be " in _refused(tmp_path, text, [override])


def _read(tmp_path, text):
    file = tmp_path / "run.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load(file)


@pytest.mark.parametrize("key", ["clip: 1.0", "learning_rate: 3e-4", "b1: 0.9"])
@pytest.mark.parametrize("value", [".nan", ".inf", "-.inf", "1e400", "1" + "0" * 400, "1e39"])
def test_numbers_that_are_not_finite(tmp_path, key, value):
    name = key.partition(":")[0]
    text = _refused(tmp_path, _GOOD.replace(key, f"{name}: {value}"))
    assert text.startswith(f"run.yaml:{_line(key)}: optimizer.")
    assert (
        "must be a finite number" in text or "too large a number" in text or "equal to 3.4e+38 (got" in text
    )


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("x=" + "[" * 5000, "--set x=[[["),
        ("x=&a [*a]", "--set x=&a [*a]: *a stands inside of what it refers to"),
        ("x={? [a] : b}", "--set x={? [a] : b}: x: a key must be a string"),
        ("x={<<: {a: b}}", "--set x={<<: {a: b}}: x.<<: merge keys are not read"),
        ("seed=!mine 3", "--set seed=!mine 3: seed: tags are not read (got '!mine')"),
        ("seed=" + "1" * 5000, "seed: cannot be read as !!int"),
        ("seed=a\0", "not YAML: the character U+0000 cannot stand in it"),
        ("seed=\udc80", "not YAML: the character U+DC80 cannot stand in it"),
        ("train={steps: 1, steps: 2}", "--set train={steps: 1, steps: 2}: train.steps: the key is there twice"),
        ("seed=1\n---\n2", "not YAML: a second document begins"),
        ("train..steps=1", "--set train..steps=1: not of the form a.b=value"),
        ("=1", "--set =1: not of the form a.b=value"),
    ],
    ids=lambda value: repr(value)[:30],
)  # fmt: skip
def test_overrides_that_are_none(tmp_path, override, expected):
    text = _refused(tmp_path, _GOOD, [override])
    assert expected in text
    assert "groups in groups" in text or "[[[" not in text


def test_many_problems_are_listed_to_fifty(tmp_path):
    lines = _refused(tmp_path, _GOOD + "".join(f"k{i}: 1\n" for i in range(300))).splitlines()
    assert len(lines) == 51
    assert lines[-1] == "and 250 more"


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("name: test", "name: " + "a" * 300, "name: String should have at most 100 characters"),
        (
            "{kind: stdlib, context: 16}",
            '{kind: text, path: "a\\0b"}',
            "data.path: String should match pattern",
        ),
        (
            "{data: 4}",
            "{data: 4}\n  params: {'*': [data, null, data]}",
            "params '*': an axis can divide one dimension",
        ),
        ("{data: 4}", "[4]", "placement.mesh: must be a group of settings (got [4])"),
        ("{kind: stdlib, context: 16}", "5", "data: "),
        (
            "      b1: 0.9",
            "      mu_dtype: abc",
            "optimizer.groups.*.mu_dtype: mu_dtype is not a floating dtype, got 'abc'",
        ),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_values_that_no_file_or_group_can_have(tmp_path, old, new, expected):
    assert expected in _refused(tmp_path, _GOOD.replace(old, new))


def test_what_is_no_file(tmp_path):
    with pytest.raises(ConfigError, match=r"is a folder; give a YAML file"):
        load(tmp_path)
    for path in ("none.yaml", "none/none.yaml", "a\0b"):
        with pytest.raises(FileNotFoundError, match="there is no file"):
            load(str(tmp_path / path))
    with pytest.raises(ConfigError, match="cannot be read: File name too long"):
        load(str(tmp_path / ("a" * 300)))
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError, match="a device or a pipe"):
        load(tmp_path / "pipe")


def test_small_aliases_a_mark_of_utf8_and_a_date_are_fine(tmp_path):
    text = _GOOD.replace("batch: 8", "batch: &n 8\n  eval_every: *n").replace(
        "name: test", "name: 2020-01-01"
    )
    config = _read(tmp_path, codecs.BOM_UTF8 + text.encode())
    assert (config.name, config.train.batch, config.train.eval_every) == ("2020-01-01", 8, 8)
    shared = _GOOD.replace('    "*":', '    "*bias": &adamw').replace(
        "placement:", '    "*": *adamw\nplacement:'
    )
    assert _read(tmp_path, shared).optimizer.groups["*"].b1 == 0.9
