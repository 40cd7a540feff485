"""Text as the ids of a tokenizer of the `tokenizers` library, made once, a piece at a time."""

import hashlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .._errors import message
from ._cache import Cache
from ._dataset import DataError
from ._files import Reader, Source, expanded, unreadable
from ._streams import FileIds, Part, Stream
from .text import Documents, known_by

_PIECE = 2**20  # bytes that are tokenized at a time: what comes out takes a hundred times as much
_AROUND = 400  # characters on both sides of a cut, which must not change what they become
_TRIED = 100  # newlines before the end of a piece
_TOKENIZED = 2e6  # bytes a second, about
_MOST = 16  # pieces without a place for a cut
_USUAL = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|eos|>", "<|im_end|>", "[SEP]")

_Piece = tuple[str, bool, int]


class Tokenized(NamedTuple):
    """The ids of documents, in files of the cache."""

    train: list[Stream]
    validation: list[Stream]
    end_of_text: int | None
    sha256: str  # of the text, the tokenizer, and what follows a document
    key: str  # the same, and of which text trains


class Tokenizer:
    """A tokenizer, and the id that ends a document.

    Args:
      path: the library's own file, `tokenizer.json`.
      end_of_text: the token or the id; None: the one of a usual name that it has, if it has one.

    Raises:
      FileNotFoundError: there is no such file.
      DataError: it is no tokenizer, or has no such token; or the library is not installed.
    """

    def __init__(self, path: str | Path, end_of_text: int | str | None):
        try:
            import tokenizers
        except ImportError:
            wrong = "data.tokenizer needs the library tokenizers, which is not installed"
            raise DataError(message("data", wrong, do="pip install tokenizers")) from None
        file = expanded(path)
        if not file.is_file():
            wrong = f"there is no tokenizer, got {str(path)!r}"
            raise FileNotFoundError(message("data", wrong, do="Give a tokenizer.json as data.tokenizer"))
        try:
            content = file.read_bytes()
        except OSError as error:
            raise unreadable(file, error) from None
        try:
            self._made: Any = tokenizers.Tokenizer.from_buffer(content)
        except Exception as error:  # the library raises nothing else
            reason = " ".join(str(error).split())[:200]
            wrong = f"{str(path)!r} is no tokenizer of the library tokenizers, got {reason}"
            raise DataError(message("data", wrong, do="Give a tokenizer.json as data.tokenizer")) from None
        self._made.no_truncation()
        self._made.no_padding()
        self.size = 1 + max(self._made.get_vocab(with_added_tokens=True).values(), default=-1)
        self.end_of_text = self._end(end_of_text, path)
        self.sha256 = hashlib.sha256(content).hexdigest()

    @property
    def dtype(self) -> np.dtype:
        """The smallest that holds every id."""
        return np.dtype(np.uint16 if self.size <= 2**16 else np.uint32)

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text; nothing is added before or after it."""
        return [found.ids for found in self._made.encode_batch_fast(texts, add_special_tokens=False)]

    def _end(self, given: int | str | None, path: str | Path) -> int | None:
        if given is None:
            return next((i for name in _USUAL if (i := self._made.token_to_id(name)) is not None), None)
        if isinstance(given, str):
            found = self._made.token_to_id(given)
            if found is None:
                wrong = f"data.end_of_text is no token of {str(path)!r}, got {given!r}"
                raise DataError(message("data", wrong, do="Give one that it has, or an id"))
            return found
        if self._made.id_to_token(given) is None:
            wrong = f"data.end_of_text is no id of {str(path)!r}, got {given}"
            raise DataError(message("data", wrong, allowed=f"0 to {self.size - 1}"))
        return given


def tokenized(
    documents: Documents, path: str, end_of_text: int | str | None, cache: Cache, vocabulary: int | None
) -> Tokenized:
    """The ids of documents; they are made where the cache does not have them.

    Raises:
      FileNotFoundError: there is no such tokenizer.
      DataError: it has more ids than the vocabulary; a file is not UTF-8, or changes; the cache is of
        something else, or cannot be written.
    """
    tokenizer = Tokenizer(path, end_of_text)
    if vocabulary is not None and tokenizer.size > vocabulary:
        wrong = f"the tokenizer {path!r} has {tokenizer.size} ids"
        allowed = f"at most model.vocabulary = {vocabulary}"
        raise DataError(message("data", wrong, allowed=allowed, do=f"Raise that to {tokenizer.size}"))
    told = f"{tokenizer.sha256} {tokenizer.end_of_text}"
    parts = {"train": documents.train, "validation": documents.validation}
    keys = {name: _sha256(f"{known_by(some)} {told}") for name, some in parts.items()}
    made = {
        name: _kept(documents.root, some, tokenizer, (f"ids-{name}", keys[name]), cache)
        for name, some in parts.items()
    }
    train, validation = made["train"], made["validation"]
    if not documents.validation:  # a single file, or an unlucky few
        cut = train.length - train.length // 10
        train, validation = Part(train, 0, cut), Part(train, cut, train.length)
    sha256 = _sha256(f"{documents.sha256} {told}")
    return Tokenized([train], [validation], tokenizer.end_of_text, sha256, " ".join(keys.values()))


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _kept(
    root: Path, sources: Sequence[Source], tokenizer: Tokenizer, of: tuple[str, str], cache: Cache
) -> Stream:
    """The ids of some documents, in one file of the cache."""
    path = cache.place(of, ".bin")
    if path is None:
        raise DataError(message("data", "ids of a tokenizer need a folder to be kept in, got none"))
    size = tokenizer.dtype.itemsize
    if not path.is_file():
        cache.tell(f"tokenizing {str(root)!r}", sum(s.size for s in sources), rate=_TOKENIZED)

        def write(aside: Path) -> None:  # how many there are is written before the file has its name
            cache.keep(of, {"ids": write_ids(aside, root, sources, tokenizer)})

        cache.write(path, write, keeps=True)
    expected, found = cache.table(of).get("ids"), path.stat()
    if expected is None or expected * size != found.st_size:
        wrong = f"the cache {str(path)!r} is damaged or of other files, got {found.st_size} bytes"
        do = f"Remove it and {path.with_suffix('.json').name}, and they are made again"
        raise DataError(message("data", wrong, at=f"byte {found.st_size}", do=do))
    kept = Source(path.name, found.st_size, found.st_mtime_ns, of[1])
    return FileIds(Reader(), path, kept, tokenizer.dtype)


def write_ids(
    path: Path,
    root: Path,
    sources: Sequence[Source],
    tokenizer: Tokenizer,
    progress: Callable[[int], None] = lambda read: None,
) -> int:
    """Writes the ids of documents one after the other, each followed by the end of text if there is one.

    Args:
      path: the file.
      root: the documents' folder.
      sources: the documents.
      tokenizer: makes the ids.
      progress: is told how many bytes of text were read, now and then.

    Returns:
      How many ids were written.

    Raises:
      DataError: a document is not UTF-8, or has changed.
    """
    reader, written, read = Reader(), 0, 0
    closing = [] if tokenizer.end_of_text is None else [tokenizer.end_of_text]
    with path.open("wb") as stream:
        for group in _grouped(_pieces(reader, root, sources, tokenizer)):
            made = tokenizer.ids([text for text, _, _ in group])
            closed = [ids + (closing if last else []) for ids, (_, last, _) in zip(made, group, strict=True)]
            ids = np.fromiter(itertools.chain.from_iterable(closed), tokenizer.dtype)
            stream.write(ids.tobytes())
            written += len(ids)
            read += sum(size for _, _, size in group)
            progress(read)
    return written


def _grouped(pieces: Iterator[_Piece]) -> Iterator[list[_Piece]]:
    """Pieces in groups that are worth the threads of the library."""
    group, size = [], 0
    for piece in pieces:
        group.append(piece)
        size += piece[2]
        if size >= _PIECE:
            yield group
            group, size = [], 0
    if group:
        yield group


def _pieces(reader: Reader, root: Path, sources: Sequence[Source], tokenizer: Tokenizer) -> Iterator[_Piece]:
    """Documents, long ones in pieces; is it the last of its document; and its bytes."""
    for source in sources:
        path, start, left = root / source.name, 0, b""
        while start < source.size:
            count = min(_PIECE, source.size - start)
            left += reader.read(path, source, start, count)
            start += count
            cut = _cut(left, tokenizer) if start < source.size else 0
            if cut:
                yield _text(left[:cut], path, start - len(left)), False, cut
                left = left[cut:]
            elif len(left) > _MOST * _PIECE:
                wrong = f"{str(path)!r} cannot be tokenized in pieces, got no newline at which it can be cut"
                do = "Divide it into shorter files, or take byte-level BPE"
                raise DataError(message("data", wrong, at=f"byte {start - len(left)}", do=do))
        yield _text(left, path, start - len(left)), True, len(left)


def _cut(content: bytes, tokenizer: Tokenizer) -> int:
    """Where a long text can be cut: after a newline, so that both sides become what they are together.

    0: nowhere.
    """
    at = len(content)
    for _ in range(_TRIED):
        at = content.rfind(b"\n", 0, at)
        if at <= 0:
            break
        before = content[max(0, at + 1 - _AROUND) : at + 1].decode(errors="ignore")
        after = content[at + 1 : at + 1 + _AROUND].decode(errors="ignore")
        one, two, both = tokenizer.ids([before, after, before + after])
        # between words: what is around a longer gap may still look across it
        if before.strip() and after[:1].strip() and one + two == both:
            return at + 1
    return 0


def _text(content: bytes, path: Path, start: int) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        wrong = f"{str(path)!r} is not UTF-8, got the byte 0x{content[error.start]:02x}"
        raise DataError(message("data", wrong, at=f"byte {start + error.start}", do="Convert it")) from None
