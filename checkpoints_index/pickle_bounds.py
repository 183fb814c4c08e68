"""Pickles that would keep `torch.load` busy for ever, told from others before it sees them.

``weights_only=True`` lets a pickle build plain values, and that can take any time: two references
to the tuple before, sixty times over, make a key that can never be hashed. So the operations that
torch knows are followed here on the sizes of what they build alone. Whatever is not understood is
left to torch, which refuses it at the same place.
"""

from __future__ import annotations

import pickle

# An operation takes torch up to a microsecond. Some 45 describe a tensor.
_MOST_OPERATIONS = 2_000_000
# In nested tuples, counted as often as they are referred to. A model's have a dozen.
_MOST_IN_TUPLE = 1_000

_LENGTH_BYTES = {
    pickle.BINUNICODE[0]: 4,
    pickle.SHORT_BINSTRING[0]: 1,
    pickle.LONG1[0]: 1,
}
_FIXED = {
    pickle.BININT[0]: 4,
    pickle.BININT1[0]: 1,
    pickle.BININT2[0]: 2,
    pickle.BINFLOAT[0]: 8,
    **dict.fromkeys(map(ord, (*"N])}", "\x88", "\x89", "\x8f")), 0),
}
_INDEX_BYTES = {
    pickle.BINGET[0]: 1,
    pickle.LONG_BINGET[0]: 4,
    pickle.BINPUT[0]: 1,
    pickle.LONG_BINPUT[0]: 4,
}
_PUTS = {pickle.BINPUT[0], pickle.LONG_BINPUT[0]}
_TUPLES = {pickle.TUPLE1[0]: 1, pickle.TUPLE2[0]: 2, pickle.TUPLE3[0]: 3}
_TO_MARK = {pickle.TUPLE[0], pickle.APPENDS[0], pickle.SETITEMS[0]}
_POPPED = {
    pickle.APPEND[0]: 1,
    pickle.SETITEM[0]: 2,
    pickle.BUILD[0]: 1,
}
_CALLS = {pickle.REDUCE[0], pickle.NEWOBJ[0]}
_FUNCTION = 0
"""Stands for what a pickle names; other values are their number of parts."""


def check_pickle(content: bytes | bytearray, at: int = 0) -> int:
    """Follow a pickle from `at`; return where it ends, or the end where it is not understood.

    Raises
    ------
    ValueError
        If loading it could take for ever.
    """
    stack: list[int] = []
    marks: list[list[int]] = []
    memo: dict[int, int] = {}
    try:
        for _ in range(_MOST_OPERATIONS):
            code = content[at]
            at += 1
            if (size := _INDEX_BYTES.get(code)) is not None:
                index = int.from_bytes(content[at : at + size], "little")
                at += size
                if code in _PUTS:
                    memo[index] = stack[-1]
                else:
                    stack.append(memo[index])
            elif (size := _FIXED.get(code)) is not None:
                at += size
                stack.append(1)
            elif (size := _LENGTH_BYTES.get(code)) is not None:
                at += size + int.from_bytes(content[at : at + size], "little")
                stack.append(1)
            elif (count := _TUPLES.get(code)) is not None:
                stack[-count:] = [_tuple(stack[-count:])]
            elif code in _TO_MARK:
                items, stack = stack, marks.pop()
                if code == pickle.TUPLE[0]:
                    stack.append(_tuple(items))
            elif code == pickle.MARK[0]:
                marks.append(stack)
                stack = []
            elif (count := _POPPED.get(code)) is not None:
                del stack[-count:]
            elif code in _CALLS:
                stack.pop()
                # What is called otherwise, torch refuses, and writes down in full.
                if stack.pop() != _FUNCTION:
                    raise ValueError("it calls what is no function")
                stack.append(1)
            elif code == pickle.GLOBAL[0]:
                for _line in ("module", "name"):
                    end = content.find(b"\n", at)
                    if end < 0:
                        return len(content)
                    at = end + 1
                stack.append(_FUNCTION)
            elif code == pickle.BINPERSID[0]:
                stack[-1] = 1
            elif code == pickle.PROTO[0]:
                at += 1
            elif code == pickle.STOP[0]:
                return at
            else:
                return len(content)
    except (IndexError, KeyError):
        return len(content)
    raise ValueError(f"its description has more than {_MOST_OPERATIONS} operations")


def _tuple(parts: list[int]) -> int:
    size = 1 + sum(parts)
    if size > _MOST_IN_TUPLE:
        raise ValueError(f"it has tuples with more than {_MOST_IN_TUPLE} parts")
    return size
