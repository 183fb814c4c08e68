"""Make the bundled model: a tiny Llama really pre-trained on generated prose.

``python -m spectra.training.pretrain --out DIR`` writes the folder that ships as
``spectra/training/bundled``. Nothing is downloaded. An interrupted run starts again.
"""

import argparse
import math
import time
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from spectra.training.problems import word_problems
from spectra.training.prompts import PROMPT
from spectra.training.prose import pretraining_text

VOCABULARY = 640
SEQUENCE = 128  # tokens in one packed row
BATCH = 8  # rows a step: 0.61 nats after 410,000 tokens, 1.23 with 16 rows (both at 4e-3)
STEPS = 1800
LEARNING_RATE = 3e-3
WARM_UP = 0.05  # share of the steps
HELD_OUT_SEED = 1_000_003  # added to the seed, so that no training run of ours draws it
HELD_OUT_PIECES = 800
PAD, BOS, EOS = "<pad>", "<s>", "</s>"


def build_tokenizer(seed: int) -> PreTrainedTokenizerFast:
    """Train the byte-level BPE tokenizer on generated text.

    It sees prose and, so that the fine-tuning data is short too, some word problems in the
    prompt's format. Digits never merge with each other.

    Parameters
    ----------
    seed : int
        Seed of the generated text.

    Returns
    -------
    PreTrainedTokenizerFast
        With padding, beginning and end tokens; like Llama's it puts the beginning token first.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            # A digit keeps the space before it: one token instead of two.
            pre_tokenizers.Split(Regex(r" ?\d"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    prompts = (
        PROMPT.format(question=problem["question"]) + problem["answer"]
        for problem in word_problems(seed, 4000)
    )
    tokenizer.train_from_iterator(
        [*pretraining_text(seed, 8000), *prompts],
        trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            special_tokens=[PAD, BOS, EOS],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A",
        pair=f"{BOS} $A $B",
        special_tokens=[(BOS, tokenizer.token_to_id(BOS))],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        model_max_length=512,
        clean_up_tokenization_spaces=False,
    )


def build_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """Build the untrained model: 12 layers, width 96, grouped queries.

    Parameters
    ----------
    tokenizer : PreTrainedTokenizerFast
        Gives the vocabulary size and the special tokens.
    seed : int
        Seed of the initialisation.

    Returns
    -------
    LlamaForCausalLM
        In float32; ``q_proj`` is 96×96 and ``v_proj`` 48×96.
    """
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=12,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        initializer_range=0.05,  # the default 0.02 is meant for widths in the thousands
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


def pack(
    texts: Iterable[str], tokenizer: PreTrainedTokenizerFast, length: int = SEQUENCE
) -> Iterator[Tensor]:
    """Join texts end to end and cut them into rows of equal length.

    Parameters
    ----------
    texts : iterable of str
        Each becomes beginning token, text, end token.
    tokenizer : PreTrainedTokenizerFast
        As `build_tokenizer` makes it.
    length : int
        Tokens in one row.

    Yields
    ------
    Tensor of shape (length,), int64
        The last, unfinished row is dropped.
    """
    row: list[int] = []
    for text in texts:
        row += [*tokenizer.encode(text), tokenizer.eos_token_id]
        while len(row) >= length:
            yield torch.tensor(row[:length])
            row = row[length:]


@torch.no_grad()
def mean_loss(model: LlamaForCausalLM, rows: Tensor) -> float:
    """Mean next-token cross-entropy of the model, in nats per token.

    Parameters
    ----------
    model : LlamaForCausalLM
        Is put into evaluation mode.
    rows : Tensor of shape (n, length), int64
        Packed tokens, as from `pack`.

    Returns
    -------
    float
        About log(vocabulary) for a model that knows nothing.
    """
    model.eval()
    # Equal rows, so that the mean over the batches weighted by their rows is the mean.
    losses = [
        model(input_ids=batch, labels=batch).loss.item() * len(batch) for batch in rows.split(BATCH)
    ]
    return sum(losses) / len(rows)


def pretrain(model: LlamaForCausalLM, rows: Iterator[Tensor], steps: int) -> None:
    """Train the model in place: AdamW, linear warm-up, cosine to zero.

    Parameters
    ----------
    model : LlamaForCausalLM
        In float32.
    rows : iterator of Tensor of shape (length,), int64
        Packed tokens, `BATCH` × ``steps`` rows of them; each is seen once.
    steps : int
        Optimizer steps.
    """
    matrices = [p for p in model.parameters() if p.ndim > 1]
    scales = [p for p in model.parameters() if p.ndim == 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": scales, "weight_decay": 0.0}],
        lr=LEARNING_RATE,
        betas=(0.9, 0.95),
    )
    warm_up = max(1, round(WARM_UP * steps))

    def schedule(step: int) -> float:
        if step < warm_up:
            return (step + 1) / warm_up
        return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))

    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule)
    model.train()
    start = time.monotonic()
    for step in range(1, steps + 1):
        batch = torch.stack(list(islice(rows, BATCH)))
        loss = model(input_ids=batch, labels=batch).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        if step % 20 == 0 or step in (1, steps):
            left = (time.monotonic() - start) / step * (steps - step)
            print(f"step {step}/{steps}  loss {loss.item():.3f}  {left:.0f} s left", flush=True)


def _endless_prose(seed: int) -> Iterator[str]:
    """Chain seeds, so that no piece count has to be guessed."""
    while True:
        yield from pretraining_text(seed, 100_000)
        seed += 1


README = """\
# The bundled model

A Llama of {parameters:,} parameters (12 layers, width 96, 4 heads, 2 key/value heads, byte-level
BPE vocabulary of {vocabulary}), really pre-trained, for `spectra demo` and the tests. It knows the
simple prose of `spectra.training.prose.pretraining_text` and nothing else, and has never seen
the word problems that the demo fine-tunes on (only its tokenizer has). Stored in bfloat16.

Made by

    python -m spectra.training.pretrain --out DIR --steps {steps} --seed {seed}

in {seconds:.0f} s of wall time (the machine may have had other work too) on {threads} CPU threads
with torch {torch}: {steps} steps of {batch} × {length} tokens, AdamW, peak learning rate {rate:g},
float32. The text is the same everywhere; arithmetic rounds differently on other machines
and versions, so there the weights will not be equal bit for bit.

| held-out prose | nats per token |
| --- | --- |
| log(vocabulary) | {uniform:.3f} |
| before training | {before:.3f} |
| after, float32 | {after:.3f} |
| after, rounded to bfloat16 (what is stored) | {rounded:.3f} |

Licence: Apache-2.0, like the rest of Spectra. All training text was generated; no third-party
data went in.
"""


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m spectra.training.pretrain",
        description="Pre-train the bundled model on generated prose.",
        epilog="example: python -m spectra.training.pretrain --out /tmp/bundled --steps 50",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--steps", type=int, default=STEPS, help="optimizer steps (%(default)s)")
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of text and weights (%(default)s)"
    )
    arguments = parser.parse_args()
    steps, seed = arguments.steps, arguments.seed
    if steps < 1:
        parser.error(f"--steps must be at least 1, got {steps}.")
    torch.set_num_threads(2)

    start = time.monotonic()
    tokenizer = build_tokenizer(seed)
    model = build_model(tokenizer, seed)
    held_out = torch.stack(
        list(pack(pretraining_text(seed + HELD_OUT_SEED, HELD_OUT_PIECES), tokenizer))
    )
    before = mean_loss(model, held_out)
    print(f"{model.num_parameters():,} parameters; held-out loss before: {before:.4f}")
    pretrain(model, pack(_endless_prose(seed), tokenizer), steps)
    after = mean_loss(model, held_out)
    model.bfloat16()
    # Rounded weights, float32 arithmetic: the loss of what is stored, not of the machine.
    rounded = mean_loss(model.float(), held_out)
    seconds = time.monotonic() - start
    print(f"held-out loss after: {after:.4f}; rounded to bfloat16: {rounded:.4f}; {seconds:.0f} s")

    arguments.out.mkdir(parents=True, exist_ok=True)
    model.bfloat16().save_pretrained(arguments.out)
    # safetensors writes files that only their owner may read; these ship in a package.
    (arguments.out / "model.safetensors").chmod(0o644)
    tokenizer.save_pretrained(arguments.out)
    (arguments.out / "README.md").write_text(
        README.format(
            parameters=model.num_parameters(),
            vocabulary=len(tokenizer),
            steps=steps,
            seed=seed,
            seconds=seconds,
            threads=torch.get_num_threads(),
            torch=torch.__version__,
            batch=BATCH,
            length=SEQUENCE,
            rate=LEARNING_RATE,
            uniform=math.log(len(tokenizer)),
            before=before,
            after=after,
            rounded=rounded,
        ),
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
