"""How the result is used elsewhere: the Python that loads the program, the command that serves the adapter. Pure."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from tandem_api.adapters import served_adapter
from tandem_api.v1alpha1.spec import Spec
from tandem_api.v1alpha1.task import InlineProgram
from tandem_trainer.lora.servable import rank_ceiling
from tandem_trainer.report.facts import Facts

_FORMATS = {
    "chat": "dspy.ChatAdapter(use_json_adapter_fallback=False)",
    "json": "dspy.JSONAdapter(use_native_function_calling=False)",
}


@dataclass(frozen=True)
class Handover:
    """What a reader pastes, run in the bundle's folder."""

    python: str
    serve: str
    model: str
    """What to put in the place of the model in `serve`, where that is no name that vLLM knows; or empty."""
    is_plain: bool
    """The program was scored in Tandem's plain format, which plain DSPy does not write."""


def handover(facts: Facts) -> Handover:
    """The snippets of this run's best program."""
    spec = facts.request.spec
    base, options, model = _base(spec)
    serve = ["vllm", "serve", base, *options, *spec.serving.extra_args]
    served, tuned = base, served_adapter(facts.request.name)
    own: dict[str, str] = {}
    if facts.owners:
        own = {owner: f"{tuned}-{number}" for number, owner in enumerate(facts.owners)}
        modules = [f"{name}=./adapter/{number}" for number, name in enumerate(own.values())]
        serve += ["--enable-lora", f"--max-lora-rank={_rank(facts)}", f"--max-loras={len(own)}"]
        serve += ["--lora-modules", *modules]
    elif facts.best.adapter is not None:
        served = tuned
        serve += ["--enable-lora", f"--max-lora-rank={_rank(facts)}", "--lora-modules", f"{served}=./adapter"]
    elif model:
        served = facts.request.name
        serve.append(f"--served-model-name={served}")
    return Handover(
        python=_python(spec, served, own),
        serve=_folded([shlex.quote(word) for word in serve]),
        model=model,
        is_plain=spec.program.adapter_name == "plain",
    )


def _base(spec: Spec) -> tuple[str, list[str], str]:
    """The model as vLLM is told it, options that belong to it, and what is to be said of it."""
    scheme, _, rest = spec.model.uri.partition("://")
    if scheme != "hf":
        return "./model", [], f"./model is the folder of {spec.model.uri}, in the form of transformers"
    name, _, revision = rest.partition("@")
    return name, [f"--revision={revision}"] if revision else [], ""


def _rank(facts: Facts) -> int:
    """The --max-lora-rank that the best adapter needs: vLLM's default is 16."""
    spec, adapter = facts.request.spec, facts.best.adapter
    trained = [s for s in facts.status.steps if s.adapter and adapter and s.adapter.sha256 == adapter.sha256]
    if not trained:
        return rank_ceiling(spec.weight_optimizer.highest_rank)
    chosen = [stage.facts["rank"] for stage in trained[0].stages if "rank" in stage.facts]
    return rank_ceiling(int(chosen[0]) if chosen else spec.weights_of(trained[0].index).highest_rank)


def _folded(words: list[str]) -> str:
    """One option a line, so that the command fits a narrow screen."""
    lines = [" ".join(words[:3])]
    for word in words[3:]:
        if word.startswith("-") or lines[-1].startswith("--lora-modules "):
            lines.append(word)
        else:
            lines[-1] += f" {word}"
    return " \\\n  ".join(lines)


def _python(spec: Spec, served: str, own: dict[str, str]) -> str:
    """`own`: the served name for each predictor with an adapter of its own."""
    sampling = spec.model.sampling
    options = [f"temperature={sampling.temperature}", f"max_tokens={sampling.max_tokens}"]
    if sampling.top_p != "1":
        options.insert(1, f"top_p={sampling.top_p}")
    lines = ["import dspy", *_construction(spec), 'program.load("program.json")', "", "dspy.configure("]
    lines += [
        "    lm=dspy.LM(",
        f"        {_quoted('hosted_vllm/' + served)},",
        '        api_base="http://localhost:8000/v1",',
        '        api_key="none",',
        f"        {', '.join(options)},",
        "    ),",
    ]
    adapter = _FORMATS.get(spec.program.adapter_name)
    if adapter is not None:
        lines.append(f"    adapter={adapter},")
    lines.append(")")
    if own:
        lines += ["adapters = {", *(f"    {_quoted(owner)}: {_quoted(name)}," for owner, name in own.items()), "}"]
        lines += ["for name, predictor in program.named_predictors():", "    if name in adapters:"]
        lines += ['        predictor.lm = dspy.settings.lm.copy(model="hosted_vllm/" + adapters[name])']
    arguments = ", ".join(f"{name}=..." for name in spec.data.inputs if name.isidentifier())
    return "\n".join([*lines, f"print(program({arguments}))"]) + "\n"


def _quoted(text: str) -> str:
    """As Python source, in double quotes where that needs no escapes."""
    return f'"{text}"' if text.isprintable() and not set(text) & {'"', "\\"} else repr(text)


def _construction(spec: Spec) -> list[str]:
    program = spec.program
    if program.inline is not None:
        return _inline(program.inline)
    assert program.entrypoint is not None
    module, _, name = program.entrypoint.partition(":")
    arguments = f"**{program.arguments!r}" if program.arguments else ""
    return [f"from {module} import {name}", "", f"program = {name}({arguments})"]


def _inline(inline: InlineProgram) -> list[str]:
    module = "ChainOfThought" if inline.module == "chain-of-thought" else "Predict"
    # The instruction is in program.json, too; the signature gives the fields.
    return ["", f"program = dspy.{module}({_quoted(inline.signature)})"]
