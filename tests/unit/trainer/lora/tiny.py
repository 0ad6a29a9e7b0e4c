"""A Llama of 30 000 random weights with a tokenizer of its own, and traces to train it on; made in a second."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tandem_api.records import PredictorCall, TraceRow

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
INSTRUCTION = "Is the review positive or negative?"


def write_tiny_model(folder: Path) -> Path:
    """A model directory as `models.materialize` gives it; the same bytes on every call."""
    tokenizer = tiny_tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def tiny_tokenizer() -> Any:
    """Byte-level, so that every text has tokens, with a few merges such as " positive"."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([f"{INSTRUCTION}\n\nReview: good\nSentiment: positive negative"] * 9, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    fast.chat_template = CHAT_TEMPLATE
    return fast


def trace(number: int, *, predictor: str = "classify", instruction: str = "Look closely.") -> TraceRow:
    """A plain-format trace of example `number`, made with another instruction than the program's own."""
    review = f"Review: text {number} {'x' * (number % 5)}\nSentiment:"
    answer = ("positive", "negative")[number % 2]
    call = PredictorCall(
        predictor=predictor,
        inputs={"review": f"text {number}"},
        messages=({"role": "user", "content": f"{instruction}\n\n{review}"},),
        completion=f" {answer}",
        outputs={"sentiment": answer},
    )
    vanilla = ({"role": "user", "content": f"{INSTRUCTION}\n\n{review}"},)
    return TraceRow(example=f"train-{number}", sample=0, score=1.0, calls=(call,), vanilla=(vanilla,))
