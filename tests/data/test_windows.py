"""How streams are cut: packing loses and repeats nothing, joined rows are what they would be in one array."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxopt_large.data import DataError
from jaxopt_large.data._streams import Joined, Part, scanned
from jaxopt_large.data._windows import Packed, Windows, packed_starts, spread

_END = 99


def _joined(rows, **how):
    return Joined(
        [len(row) for row in rows],
        lambda row, start, stop: rows[row][start:stop],
        lambda row, at: f"row {row} at {at}",
        **how,
    )


def _documents(lengths):
    return [np.arange(n) % 90 for n in lengths]


@given(
    st.lists(st.integers(0, 9), max_size=6),
    st.booleans(),
    st.booleans(),
    st.integers(0, 70),
    st.integers(0, 70),
)
@settings(max_examples=200, deadline=None)
def test_joined_rows_are_one_array(lengths, joins, closes, a, b):
    rows, joiner = _documents(lengths), 7 if joins else None
    closing = joins and closes and bool(rows)
    made = _joined(rows, joiner=joiner, closing=closing)
    pieces = [x for row in rows for x in (row, *([[7]] if joins else []))]
    if joins and rows and not closing:
        pieces = pieces[:-1]
    whole = np.concatenate(pieces) if pieces else np.zeros(0, int)
    assert made.length == len(whole)
    start, stop = sorted((min(a, len(whole)), min(b, len(whole))))
    np.testing.assert_array_equal(made.read(start, stop), whole[start:stop])
    part = Part(made, start, stop)
    assert part.length == stop - start
    np.testing.assert_array_equal(part.read(0, part.length), whole[start:stop])


@given(st.lists(st.integers(0, 30), min_size=1, max_size=12), st.integers(1, 12), st.booleans())
@settings(max_examples=300, deadline=None)
def test_packing_loses_and_repeats_no_token(lengths, context, open_end):
    """Targets of all examples, one after the other, are the stream; and whole documents are cut only if long."""
    whole = np.concatenate([np.append(row, _END) for row in _documents(lengths)])
    whole = whole[:-1] if open_end and len(whole) > 1 else whole
    stream = _joined([whole])
    ends = scanned(stream, _END)
    np.testing.assert_array_equal(ends, 1 + np.flatnonzero(whole == _END))
    starts = packed_starts(len(whole), ends, context)
    packed = Packed([stream], [starts], context, _END, vocabulary=100)
    seen = [packed.example(n) for n in range(packed.count)]
    assert all(x["tokens"].shape == (context + 1,) and x["mask"].shape == (context,) for x in seen)
    targets = np.concatenate([x["tokens"][1:][x["mask"]] for x in seen])
    np.testing.assert_array_equal(targets, whole)
    assert packed.targets == len(whole)
    before = np.append(_END, whole)
    for x, start in zip(seen, starts, strict=True):
        count = int(x["mask"].sum())
        assert not x["mask"][count:].any()
        np.testing.assert_array_equal(x["tokens"][: count + 1], before[start : start + count + 1])
        assert (x["tokens"][count + 1 :] == _END).all()
    # a document is cut only where it is longer than an example
    inside = [s for s in starts if s not in {0, *ends}]
    for s in inside:
        begin = max([0, *(e for e in ends if e <= s)])
        end = min([e for e in ends if e > s], default=len(whole))
        assert end - begin > context
    # and no two examples that follow each other would fit into one, but for those of cut documents
    stops = [*starts[1:], len(whole)]
    for s, stop in zip(starts, stops, strict=True):
        later = [e for e in [*ends, len(whole)] if stop < e <= s + context]
        assert not later


def test_packing_in_several_streams():
    rows = [np.asarray([1, 2, _END, 3, _END]), np.zeros(0, int), np.asarray([4, 5, 6, 7, 8, _END])]
    streams = [_joined([row]) for row in rows]
    starts = [packed_starts(s.length, s.ends(_END), 4) for s in streams]
    packed = Packed(streams, starts, 4, _END, None)
    assert packed.count == 4
    seen = [packed.example(n) for n in range(4)]
    assert [x["tokens"].tolist() for x in seen] == [
        [_END, 1, 2, _END, _END],
        [_END, 3, _END, _END, _END],
        [_END, 4, 5, 6, 7],
        [7, 8, _END, _END, _END],
    ]
    assert [x["mask"].sum() for x in seen] == [3, 2, 4, 2]
    assert spread(packed, 2)["tokens"].shape == (2, 5)


def test_ends_of_rows_are_known_and_found():
    rows = _documents([3, 0, 4])
    closed = _joined(rows, joiner=_END, closing=True)
    assert closed.ends(_END).tolist() == scanned(closed, _END).tolist() == [4, 5, 10]
    opened = _joined(rows, joiner=_END)
    assert opened.ends(_END).tolist() == scanned(opened, _END).tolist() == [4, 5]
    assert _joined(rows).ends(2).tolist() == [3, 6]
    part = Part(closed, 2, 9)
    assert part.ends(_END).tolist() == [2, 3]


def test_windows_and_where_a_wrong_id_stands():
    windows = Windows([_joined([np.arange(10), np.arange(10)]), _joined([np.arange(3)])], 4, vocabulary=8)
    assert windows.count == 4
    assert windows.example(0)["tokens"].tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(DataError, match=r"got 8 in row 0 at 8; 0 to 7, by model.vocabulary"):
        windows.example(2)
