"""Text corpora: which files, which of them validate, and what was passed over.

The default corpus is the Python standard library's own source: real text that is on every machine that runs this.
Files are split into training and validation by a hash of their relative path, so that no document is on both sides
and the split does not change when files are added.
"""

import hashlib
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from narrowcast.errors import InputError

DEFAULT_BYTES = 8_000_000  # enough for a model of a million parameters; tokenised in seconds
SEPARATOR = "<|endoftext|>"  # between the documents of one file
_VALIDATION_SHARE = 16  # one file in 16 validates
_SKIPPED_FOLDERS = {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test", "lib2to3"}
_TEXT_SUFFIXES = {".txt", ".md", ".py", ".rst", ".jsonl", ".json", ".csv", ".tsv", ".html", ".xml", ".c", ".h", ".cpp"}


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
        return sum(len(text.encode()) for text in (*self.train, *self.validation))


def load_corpus(data: Path | None) -> Corpus:
    """Return the corpus in ``data`` (a text file or a folder of them), or the default one.

    Unreadable, binary and empty files inside a folder are passed over and listed; InputError if nothing is left.
    """
    if data is None:
        root = Path(sysconfig.get_paths()["stdlib"])
        return _split("Python standard library", *_read(root, _standard_library(root), limit=DEFAULT_BYTES))
    if not data.exists():
        raise InputError(f"--data {data}: no such file or folder; give a text file or a folder of text files")
    root, paths = (data.parent, [data]) if data.is_file() else (data, sorted(p for p in data.rglob("*") if not p.is_dir()))
    if not paths:
        raise InputError(f"--data {data}: the folder is empty; expected text files")
    return _split(str(data), *_read(root, paths))


def _standard_library(root: Path) -> list[Path]:
    """Return the modules of the standard library, in the order of a hash: a fair sample under the size limit."""
    found = [p for p in root.rglob("*.py") if not _SKIPPED_FOLDERS & set(p.relative_to(root).parts[:-1])]
    return sorted(found, key=lambda p: _hash(p.relative_to(root).as_posix()))


def _read(
    root: Path, paths: list[Path], limit: int | None = None
) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Return ``(relative path, text)`` of readable files, and ``(path, reason)`` of the others."""
    texts: list[tuple[str, str]] = []
    skipped: list[tuple[str, str]] = []
    total = 0
    for path in paths:
        name = path.relative_to(root).as_posix()
        try:
            raw = path.read_bytes()
            text = raw.decode("utf-8")
        except OSError as error:
            skipped.append((name, error.strerror or "unreadable"))
            continue
        except UnicodeDecodeError:
            skipped.append((name, "not UTF-8 text"))
            continue
        if "\0" in text or not text.strip():
            skipped.append((name, "binary" if "\0" in text else "empty"))
            continue
        if limit is not None and total + len(raw) > limit:
            break
        texts.append((name, text))
        total += len(raw)
    return texts, skipped


def _split(name: str, texts: list[tuple[str, str]], skipped: list[tuple[str, str]]) -> Corpus:
    if not texts:
        first = f" (first: {skipped[0][0]}: {skipped[0][1]})" if skipped else ""
        raise InputError(f"--data {name}: none of {len(skipped)} files is readable UTF-8 text{first}")
    digest = hashlib.sha256("\0".join(text for _, text in texts).encode()).hexdigest()
    if len(texts) == 1 and SEPARATOR in texts[0][1]:
        documents = [part.strip() for part in texts[0][1].split(SEPARATOR) if part.strip()]
        held = documents[:: _VALIDATION_SHARE]
        train = tuple(d for i, d in enumerate(documents) if i % _VALIDATION_SHARE)
        how = f"one file of {len(documents)} documents: every {_VALIDATION_SHARE}th validates"
        return Corpus(name, train, tuple(held), 1, tuple(skipped), how, digest)
    if len(texts) == 1:
        text = texts[0][1]
        cut = len(text) - len(text) // _VALIDATION_SHARE
        how = f"one file: its last 1/{_VALIDATION_SHARE} validates"
        return Corpus(name, (text[:cut],), (text[cut:],), 1, tuple(skipped), how, digest)
    ordered = sorted(texts, key=lambda item: _hash(item[0]))
    held = [item for item in ordered if _hash(item[0]) % _VALIDATION_SHARE == 0] or ordered[:1]
    names = {item[0] for item in held}
    train = tuple(text for path, text in ordered if path not in names)
    how = f"by file: {len(held)} of {len(texts)} files validate, by a hash of their path"
    return Corpus(name, train, tuple(t for _, t in held), len(texts), tuple(skipped), how, digest)


def _hash(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
