"""Reading a manifest, with the line of everything that is wrong in it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tandem_api.errors import ConfigurationError
from tandem_api.v1alpha1 import OptimizationRun
from tandem_api.v1alpha1.run import ManifestError, Problem, parse_run
from tandem_operator.platforms.kubernetes.manifest import cluster_problems
from tandem_operator.platforms.local.manifest import missing_files, resolve
from tandem_operator.platforms.local.workdir import load_yaml


@dataclass(frozen=True)
class ManifestFile:
    """A manifest as it was read: plain values, and where each of them stands."""

    path: Path
    document: Any
    lines: dict[str, int]
    """Line numbers (from 1) by field path, as in `spec.strategy[1].kind`."""
    duplicates: tuple[Problem, ...]
    """Keys that are given twice, of which YAML would silently take the last."""

    def explain(self, problems: Iterable[Problem]) -> ConfigurationError:
        """One error with all problems, one a line: `FILE:LINE: FIELD: what is wrong`."""
        ordered = sorted({str(p): p for p in problems}.values(), key=lambda p: self._line(p.path) or 0)
        return ConfigurationError("\n".join([f"{self.path} is not valid:", *map(self._explain, ordered)]))

    def _explain(self, problem: Problem) -> str:
        line = self._line(problem.path)
        return f"  {self.path.name}{f':{line}' if line else ''}: {problem}"

    def _line(self, path: str) -> int | None:
        """The line of a field, or of the innermost thing around it that is there."""
        while path and path not in self.lines:
            path = re.sub(r"(\.[^.\[]*|\[\d+\]|^[^.\[]*)$", "", path)
        return self.lines.get(path)


def read_manifest(path: Path) -> ManifestFile:
    """Read a YAML file. Raises ConfigurationError that says what cannot be read, and where."""
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise ConfigurationError(f"{path} does not exist; -f names the manifest's file") from error
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from error
    try:
        root = yaml.compose(data, Loader=yaml.SafeLoader)
        document = load_yaml(data)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f":{mark.line + 1}:{mark.column + 1}" if mark is not None else ""
        raise ConfigurationError(f"{path}{where}: not valid YAML: {error.problem or error.context}") from error
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigurationError(f"{path}: not valid YAML: {error}") from error
    lines: dict[str, int] = {}
    duplicates: list[Problem] = []
    if root is not None:
        _walk(root, "", lines, duplicates, set())
    return ManifestFile(path, document, lines, tuple(duplicates))


def parse(file: ManifestFile, *, with_files: bool = True) -> OptimizationRun:
    """The run with absolute addresses. Raises ConfigurationError with every problem of the manifest and, unless told
    otherwise, every file that it names and that is not there."""
    problems = list(file.duplicates)
    run = None
    try:
        run = resolve(parse_run(file.document), file.path.parent)
        problems += missing_files(run) if with_files else []
    except ManifestError as error:
        problems += error.problems
    if problems or run is None:
        raise file.explain(problems)
    return run


def parse_for_cluster(file: ManifestFile) -> OptimizationRun:
    """The run as it is written, for a cluster, where a `file:` address means no file of this machine. Raises
    ConfigurationError with every problem of the manifest, and with what cannot work on a cluster."""
    return parse_as_written(file, cluster_problems)


def parse_as_written(
    file: ManifestFile, problems_of: Callable[[OptimizationRun], list[Problem]] = lambda run: []
) -> OptimizationRun:
    """The run as it is written. Raises ConfigurationError with every problem of the manifest, and with those that
    `problems_of` finds."""
    problems = list(file.duplicates)
    run = None
    try:
        run = parse_run(file.document)
        problems += problems_of(run)
    except ManifestError as error:
        problems += error.problems
    if problems or run is None:
        raise file.explain(problems)
    return run


def _walk(node: yaml.Node, path: str, lines: dict[str, int], duplicates: list[Problem], seen: set[int]) -> None:
    """Note the line of everything in `node`. What an alias repeats is visited once: it may even contain itself."""
    lines.setdefault(path, node.start_mark.line + 1)
    if id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            name = f"{path}.{key.value}".lstrip(".")
            line = key.start_mark.line + 1
            if name in lines:
                duplicates.append(Problem(name, f"given twice, in lines {lines[name]} and {line}; keep one"))
            lines.setdefault(name, line)
            _walk(value, name, lines, duplicates, seen)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            _walk(value, f"{path}[{index}]", lines, duplicates, seen)
