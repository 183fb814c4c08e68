"""Layer and module of every matrix of a model: unique, and the same module name in every layer."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from checkpoints_index.matrices import is_number, locate

# Lists of layers in a list of stages. Their layers are counted through the stages.
_STAGES = {
    ("layers", "blocks"),
    ("stages", "blocks"),
    ("stages", "layers"),
    ("albert_layer_groups", "albert_layers"),
}

_Context = tuple[str, ...]


def label_paths(paths: Iterable[str]) -> dict[str, tuple[int, str]]:
    """Return layer and module of each path that has a layer number.

    The layer is the path's first number; in networks of stages (Swin, Hiera, Segformer) layers
    are counted through all stages, and what stands between two stages belongs to the last layer
    before it. The module is the last part of the path. Where one layer has several of a name, all
    of that name in the model are prefixed with the fewest leading parts of the enclosing path that
    tell them apart (none, for one of them at most), without layer numbers and without what all of
    them share.

    Parameters
    ----------
    paths : iterable of str
        Cleaned paths of all matrices of a checkpoint.

    Examples
    --------
    >>> label_paths(["encoder.layers.0.attn.q", "decoder.layers.0.attn.q", "decoder.layers.0.fc"])
    ... # doctest: +NORMALIZE_WHITESPACE
    {'encoder.layers.0.attn.q': (0, 'encoder.q'),
     'decoder.layers.0.attn.q': (0, 'decoder.q'),
     'decoder.layers.0.fc': (0, 'fc')}
    """
    located = {path: place for path in paths if (place := locate(path)) is not None}
    layers = _layers(located)
    by_module: dict[str, list[str]] = defaultdict(list)
    for path, (_, module) in located.items():
        by_module[module].append(path)
    labels = {}
    for module, members in by_module.items():
        if len({layers[path] for path in members}) == len(members):
            labels.update(dict.fromkeys(members, module))
            continue
        contexts = {path: _context(path, module) for path in members}
        prefixes = _prefixes(set(contexts.values()))
        for path, context in contexts.items():
            labels[path] = ".".join((*prefixes[context], module))
    found = {path: (layers[path], labels[path]) for path in located}
    times = Counter(found.values())
    # Two kinds of lists in one place, as no architecture has them: nothing shorter is safe.
    return {path: (p if times[p] == 1 else (p[0], path)) for path, p in found.items()}


def _layers(paths: Iterable[str]) -> dict[str, int]:
    """Return the layer of each path, counted through stages."""
    lengths: dict[str, dict[int, int]] = defaultdict(dict)
    places: dict[str, tuple[str, int, int | None]] = {}
    for path in paths:
        parts = path.split(".")
        first, second = _numbers(parts)
        stack, stage = ".".join(parts[:first]), int(parts[first])
        block = None if second is None else int(parts[second])
        places[path] = (stack, stage, block)
        if block is not None:
            lengths[stack][stage] = max(lengths[stack].get(stage, 0), block + 1)
    before = {
        stack: {stage: sum(n for s, n in stages.items() if s < stage) for stage in stages}
        for stack, stages in lengths.items()
    }
    found = {}
    for path, (stack, stage, block) in places.items():
        if block is not None:
            found[path] = before[stack][stage] + block
        elif stack in lengths:
            found[path] = max(0, sum(n for s, n in lengths[stack].items() if s <= stage) - 1)
        else:
            found[path] = stage
    return found


def _numbers(parts: Sequence[str]) -> tuple[int, int | None]:
    """Return where the layer's number is; with stages the stage's and the layer's within it."""
    first = next(i for i, part in enumerate(parts) if is_number(part))
    if first + 1 < len(parts) and is_number(parts[first + 1]):
        return first, first + 1
    nested = first > 0 and (parts[first - 1], *parts[first + 1 : first + 2]) in _STAGES
    if nested and first + 2 < len(parts) and is_number(parts[first + 2]):
        return first, first + 2
    return first, None


def _context(path: str, module: str) -> _Context:
    """Return what encloses a module: no layer numbers, other numbers with what they count."""
    parts = path.split(".")
    numbers = _numbers(parts)
    context: list[str] = []
    for i, part in enumerate(parts[: len(parts) - len(module.split("."))]):
        if i in numbers:
            continue
        if is_number(part) and context:
            context[-1] += f".{part}"
        else:
            context.append(part)
    return tuple(context)


def _prefixes(contexts: set[_Context]) -> dict[_Context, _Context]:
    """Return for each context the parts that tell it apart from the others."""
    for shorten in (_without_lists, _as_it_is):
        short = {context: shorten(context) for context in contexts}
        shared = set.intersection(*(set(s) for s in short.values()))
        reduced = {c: tuple(p for p in s if p not in shared) for c, s in short.items()}
        if len(set(reduced.values())) == len(contexts):
            break
    else:
        reduced = {context: context for context in contexts}
    known: dict[_Context, int] = defaultdict(int)
    for parts in reduced.values():
        for length in range(len(parts) + 1):
            known[parts[:length]] += 1
    return {
        context: next((p for n in range(len(parts)) if known[p := parts[:n]] == 1), parts)
        for context, parts in reduced.items()
    }


def _as_it_is(context: _Context) -> _Context:
    return context


def _without_lists(context: _Context) -> _Context:
    """Drop the numbers of lists, but for experts: T5's ``layer.0`` always is its attention."""
    return tuple(p if "expert" in p.lower() else p.split(".")[0] for p in context)
