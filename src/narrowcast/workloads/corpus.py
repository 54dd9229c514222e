"""Text corpora: which files, which of them validate, and what was passed over.

The default corpus is the Python standard library's own source: real text that is on every machine that runs this.
Files are split into training and validation by a hash of their relative path, so that no document is on both sides
and a file keeps its side when others are added. A line ``<|endoftext|>`` ends a document, as in TinyStories.
"""

import hashlib
import json
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from narrowcast.errors import InputError

SEPARATOR = "<|endoftext|>"  # between the documents of one file
DEFAULT_BYTES = 8_000_000  # enough for a model of a million parameters; tokenised in two seconds
LARGEST = 256_000_000  # bytes of text taken from a folder: more does not fit a laptop's memory as Python strings
_VALIDATION_SHARE = 16  # one file in 16 validates
# Tests, vendored packages, and tables that are data rather than source (a third of the modules are code pages).
_NOT_SOURCE = {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test", "lib2to3", "pydoc_data"}
_NOT_SOURCE |= {"encodings"}


@dataclass(frozen=True)
class Corpus:
    """Documents in a fixed order, already split.

    Attributes:
        name: where they came from.
        train, validation: the texts.
        files: files read; ``skipped``: files passed over, as ``(path, reason)``.
        split: one sentence on how the split was made.
        digest: sha256 of all texts in order: names the corpus in caches and checkpoints.
    """

    name: str
    train: tuple[str, ...]
    validation: tuple[str, ...]
    files: int
    skipped: tuple[tuple[str, str], ...]
    split: str
    digest: str

    @property
    def bytes(self) -> int:
        """Size of all texts in UTF-8."""
        return _size(self.train) + _size(self.validation)

    @property
    def validation_bytes(self) -> int:
        """Size of the validation texts in UTF-8."""
        return _size(self.validation)

    @property
    def summary(self) -> str:
        """One line: what was taken, what was passed over, how it was split."""
        passed = ""
        if self.skipped:
            path, reason = self.skipped[0]
            passed = f"; {len(self.skipped)} files skipped, first {path}: {reason}"
        return f"{self.name}: {self.files} files, {self.bytes / 1e6:.2f} MB; {self.split}{passed}"


def load_corpus(data: Path | None) -> Corpus:
    """Return the corpus in ``data`` (a text file, a ``.jsonl`` of texts, or a folder of them), or the default one.

    Unreadable, binary and empty files inside a folder are passed over and listed; hidden ones are not looked at.
    Raises InputError if nothing is left.
    """
    if data is None:
        root = Path(sysconfig.get_paths()["stdlib"])
        return _corpus("Python standard library", root, _standard_library(root), DEFAULT_BYTES)
    if not data.exists():
        raise InputError(f"--data {data}: no such file or folder; give a text file or a folder of text files")
    if not data.is_dir():
        return _corpus(str(data), data.parent, [data], LARGEST)
    visible = (p for p in data.rglob("*") if not any(part.startswith(".") for part in p.relative_to(data).parts))
    paths = sorted(p for p in visible if not p.is_dir())
    if not paths:
        raise InputError(f"--data {data}: the folder is empty; expected text files")
    return _corpus(str(data), data, paths, LARGEST)


def _standard_library(root: Path) -> list[Path]:
    """Return the modules of the standard library, in the order of a hash: a fair sample under the size limit."""
    found = [p for p in root.rglob("*.py") if not _NOT_SOURCE & set(p.relative_to(root).parts[:-1])]
    return sorted(found, key=lambda p: _hash(p.relative_to(root).as_posix()))


def _corpus(name: str, root: Path, paths: list[Path], limit: int) -> Corpus:
    """Read ``paths`` until ``limit`` bytes and split them."""
    texts: dict[str, str] = {}
    skipped: list[tuple[str, str]] = []
    total, cut = 0, ""
    for path in paths:
        relative = path.relative_to(root).as_posix()
        try:
            text = _read(path)
        except _Skip as why:
            skipped.append((relative, str(why)))
            continue
        total += len(text)
        if total > limit and texts:
            cut = f" (the first {limit / 1e6:.0f} MB of {len(paths)} files)"
            break
        texts[relative] = text
    if not texts:
        first = f"; first {skipped[0][0]}: {skipped[0][1]}" if skipped else ""
        raise InputError(f"--data {name}: none of {len(paths)} files is readable UTF-8 text{first}")
    train, validation, how = _split(texts)
    digest = hashlib.sha256("\0".join([*train, "", *validation]).encode()).hexdigest()
    return Corpus(name, train, validation, len(texts), tuple(skipped), how + cut, digest)


class _Skip(Exception):  # noqa: N818 - not an error: the reason why a file is passed over
    """A file that is no text."""


def _read(path: Path) -> str:
    """Return the text of a file; raises _Skip with the reason where it has none."""
    try:
        if not path.is_file():  # a broken link, a pipe (reading one would wait for ever), a socket
            raise _Skip("broken link" if path.is_symlink() else "not a regular file")
        text = path.read_bytes().decode("utf-8")
    except OSError as error:
        raise _Skip(error.strerror or "unreadable") from None
    except UnicodeDecodeError:
        raise _Skip("binary: not UTF-8 text") from None
    if "\0" in text:
        raise _Skip("binary: holds NUL bytes")
    if path.suffix == ".jsonl":
        text = f"\n{SEPARATOR}\n".join(_texts(text))
    if not text.strip():
        raise _Skip("empty" if path.suffix != ".jsonl" else 'empty: no line has a "text" field')
    return text


def _texts(lines: str) -> Iterator[str]:
    """Yield the "text" field of every JSON line that has one."""
    for number, line in enumerate(lines.splitlines(), 1):
        try:
            record = json.loads(line) if line.strip() else None
        except ValueError:
            raise _Skip(f"line {number} is not JSON") from None
        if isinstance(record, dict) and isinstance(record.get("text"), str):
            yield record["text"]


def _split(texts: dict[str, str]) -> tuple[tuple[str, ...], tuple[str, ...], str]:
    """Return training documents, validation documents, and how they were told apart."""
    if len(texts) > 1:
        order = sorted(texts, key=_hash)
        held = [path for path in order if _hash(path) % _VALIDATION_SHARE == 0]
        if not 0 < len(held) < len(order):
            held = order[:1]
        kept = [path for path in order if path not in set(held)]
        how = f"split by file: {len(held)} of {len(order)} validate, chosen by a hash of their path"
        return _documents(texts[p] for p in kept), _documents(texts[p] for p in held), how
    documents = _documents(texts.values())
    if len(documents) >= _VALIDATION_SHARE:
        held_back = len(documents) // _VALIDATION_SHARE
        how = f"one file of {len(documents)} documents: the last {held_back} validate"
        return documents[:-held_back], documents[-held_back:], how
    text = f"\n{SEPARATOR}\n".join(documents)
    cut = len(text) - len(text) // _VALIDATION_SHARE
    return (text[:cut],), (text[cut:],), f"one file: its last 1/{_VALIDATION_SHARE} validates"


def _documents(texts: Iterable[str]) -> tuple[str, ...]:
    """Return the documents of ``texts``, parted at the end mark; a text without one is a document as it stands."""
    found: list[str] = []
    for text in texts:
        parts = [part.strip() for part in text.split(SEPARATOR)] if SEPARATOR in text else [text]
        found.extend(part for part in parts if part)
    return tuple(found)


def _size(texts: tuple[str, ...]) -> int:
    return sum(len(text.encode()) for text in texts)


def _hash(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
