"""Retrieval for programs: passages of a corpus by BM25, as a tool that a program calls between two predictors.

from tandem_trainer.retrieval import BM25

retriever = BM25.open("s3://bucket/corpus.jsonl")
passages = [str(passage) for passage in retriever.search("rivers of Halland", 3)]
"""

from tandem_trainer.retrieval.bm25 import BM25
from tandem_trainer.retrieval.passages import Passage
from tandem_trainer.retrieval.sources import local_file

__all__ = ["BM25", "Passage", "local_file"]
