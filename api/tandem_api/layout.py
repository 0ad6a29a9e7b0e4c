"""Where things lie in S3: one prefix a run, `<prefix>/<namespace>/<name>/<uid>/`. A stage is done when its
`result.json` exists, and only then: it is written last."""

from __future__ import annotations

from dataclasses import dataclass

from tandem_api.v1alpha1.status import StageName, StepKindName


@dataclass(frozen=True)
class RunLayout:
    """The keys of one run, relative to the bucket, without a leading slash."""

    prefix: str
    namespace: str
    name: str
    uid: str

    @property
    def root(self) -> str:
        """The run's prefix, ending in a slash."""
        head = f"{self.prefix.strip('/')}/" if self.prefix.strip("/") else ""
        return f"{head}{self.namespace}/{self.name}/{self.uid}/"

    @property
    def run_json(self) -> str:
        """The accepted spec."""
        return f"{self.root}run.json"

    @property
    def result(self) -> str:
        """The result bundle's prefix."""
        return f"{self.root}result/"

    def stage(self, index: int, kind: StepKindName, stage: StageName) -> StageLayout:
        """The keys of one stage."""
        return StageLayout(f"{self.root}steps/{index}-{kind}/{stage}/")


@dataclass(frozen=True)
class StageLayout:
    """The keys of one stage; all attempts of the stage share them."""

    root: str

    @property
    def request(self) -> str:
        return f"{self.root}request.json"

    @property
    def result(self) -> str:
        return f"{self.root}result.json"

    @property
    def ledger(self) -> str:
        """Prefix of the ledger's objects."""
        return f"{self.root}ledger/"

    @property
    def calls(self) -> str:
        """Prefix of the journal of calls of models outside of the program."""
        return f"{self.root}calls/"

    @property
    def trials(self) -> str:
        """The table of a search's trials, rewritten as it grows."""
        return f"{self.root}trials.jsonl"

    @property
    def traces(self) -> str:
        return f"{self.root}traces/"

    @property
    def adapter(self) -> str:
        return f"{self.root}adapter/"

    def epoch_adapter(self, epoch: int) -> str:
        """The adapter of an epoch before the last one, where a step chooses among them."""
        return f"{self.root}adapters/{epoch}/"

    @property
    def checkpoints(self) -> str:
        return f"{self.root}checkpoints/"

    def prompt_set(self, sha256: str) -> str:
        """The key of a prompt set, content-addressed."""
        return f"{self.root}prompts/{sha256}.json"
