"""A BM25 index over a corpus (the bm25s library), built once on a machine and then mapped into memory by every worker.

The index lies in the cache under a name that contains the digest of the corpus' bytes. It is written beside and
renamed, under a lock: two workers that need it at once build it once, and a kill half-way leaves nothing that looks
like an index.
"""

from __future__ import annotations

import hashlib
import re
from array import array
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import bm25s  # type: ignore[import-untyped]
import numpy as np
from bm25s.stopwords import STOPWORDS_EN  # type: ignore[import-untyped]

from tandem_api.errors import DataError
from tandem_trainer.cache import cache_folder, written_once
from tandem_trainer.retrieval.passages import Passage, PassageStore, PassageWriter, read_passages
from tandem_trainer.retrieval.sources import local_file

FORMAT: Final = 1  # in the name of every index; raise it when what is written, or how words are found, changes

_WORD: Final = re.compile(r"\w+")
_STOPWORDS: Final = frozenset(STOPWORDS_EN)


class BM25:
    """Passages by how well their words fit a query's (Lucene's BM25, k1 = 1.5, b = 0.75).

    Titles count as text. Words are compared in lower case, without English stop words and without stemming. May be
    used by many threads at once, and is never copied with a program: all copies share it.
    """

    def __init__(self, folder: Path) -> None:
        self._index = bm25s.BM25.load(folder, mmap=True, show_progress=False)
        self._passages = PassageStore(folder)

    @classmethod
    def open(cls, corpus: str, *, base: Path | None = None, field: str = "program.arguments.corpus") -> BM25:
        """The index of the corpus at the URI `corpus`; builds it if that was not done before.

        The corpus is JSON Lines: `text` (a text or a list of sentences) and `title`. `base` is where a relative
        `file:` address starts, `field` names the corpus in errors. Raises what `local_file` raises, and DataError for a
        file that is no corpus.
        """
        path = local_file(corpus, base=base, field=field)
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        title = re.sub(r"[^\w.-]", "-", path.stem)
        final = cache_folder().absolute() / "bm25" / f"{title}-v{FORMAT}-{sha256[:16]}"
        return cls(written_once(final, lambda folder: _build(path, folder, f"{field} ({corpus})")))

    def __len__(self) -> int:
        """How many passages there are."""
        return len(self._passages)

    def __deepcopy__(self, memo: Any) -> BM25:
        return self

    def search(self, query: str, k: int) -> tuple[Passage, ...]:
        """The best `k` passages, best first; of equal ones the earlier in the corpus.

        Fewer where fewer share a word with the query. Raises ValueError for k < 1.
        """
        if k < 1:
            raise ValueError(f"k: found {k}; at least 1 passage can be asked for")
        words = self._index.get_tokens_ids(_words(query))
        if not words:
            return ()
        scores = self._index.get_scores_from_ids(words)
        # bm25s' own selection leaves the order of equal scores open, and is slow where most passages score 0.
        found = np.flatnonzero(scores)
        if len(found) > k:
            found = found[scores[found] >= np.partition(scores[found], -k)[-k]]
        best = found[np.argsort(-scores[found], kind="stable")][:k]
        return tuple(self._passages[position] for position in best.tolist())


def _build(corpus: Path, folder: Path, where: str) -> None:
    """Write the index of `corpus`, with its passages, into the empty `folder`."""
    vocabulary: dict[str, int] = {}
    documents: list[array[int]] = []
    with PassageWriter(folder) as passages:
        for passage in read_passages(corpus, where):
            passages.add(passage)
            documents.append(_numbers(_words(f"{passage.title} {passage.text}"), vocabulary))
    if not vocabulary:
        raise DataError(f"{where}: no passage holds a word that could be searched")
    index = bm25s.BM25(method="lucene", k1=1.5, b=0.75)
    index.index((documents, vocabulary), create_empty_token=False, show_progress=False)
    index.save(folder, show_progress=False)


def _numbers(words: Iterable[str], vocabulary: dict[str, int]) -> array[int]:
    """The words' numbers in the vocabulary, which takes up new ones. Four bytes a word: a corpus has many."""
    return array("i", (vocabulary.setdefault(word, len(vocabulary)) for word in words))


def _words(text: str) -> list[str]:
    return [word for word in _WORD.findall(text.lower()) if word not in _STOPWORDS]
