"""The cache of base decompositions: never wrong, never fatal, never too large."""

from __future__ import annotations

import errno
import itertools
import json
import math
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from spectra.analysis import base_cache, cache_entries
from spectra.analysis.base_cache import BaseCache
from spectra.linalg import Decomposition, decompose
from spectra.store.files import TEMPORARY_PREFIX
from tests.helpers import gaussian, matrix_with_spectrum
from tests.killing import ROOT, kill_at_random_moments

W_0 = gaussian(24, 40).bfloat16()
KILLS = 5
RACERS = 3


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test may touch the user's cache, or be spared a warning that another one caused."""
    monkeypatch.setenv("SPECTRA_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("SPECTRA_CACHE_GIB", raising=False)
    monkeypatch.setattr(base_cache, "_told", set())


@pytest.fixture
def cache() -> BaseCache:
    return BaseCache(max_bytes=2**30)


class Solver:
    """Decomposes a matrix, and counts how often it was asked to."""

    def __init__(self, w: Tensor) -> None:
        self.w = w
        self.calls = 0

    def decompose(self) -> Decomposition:
        self.calls += 1
        return decompose(self.w)

    def values(self) -> Tensor:
        self.calls += 1
        return torch.linalg.svdvals(self.w.double())


def refuse() -> Any:
    raise AssertionError("computed, though it is in the cache")


def only_file(cache: BaseCache, kind: str) -> Path:
    (path,) = (entry.path for entry in cache.entries() if entry.kind == kind)
    return path


def assert_same(found: Decomposition, expected: Decomposition) -> None:
    for name in ("u", "s", "vh"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name
        assert getattr(found, name).is_contiguous()
    assert (found.solver, found.residual) == (expected.solver, expected.residual)


# Found again.

BASES = {
    "bfloat16": W_0,
    "float16": gaussian(24, 40).half(),
    "float32": gaussian(24, 40).float(),
    "float64": gaussian(24, 40),
    "float8": gaussian(24, 40).to(torch.float8_e4m3fn),
    "tall": gaussian(40, 24),
    "transposed view": gaussian(40, 24).T,
    "row": gaussian(1, 9),
    "one by one": gaussian(1, 1),
    "zero": torch.zeros(6, 8),
    "rank deficient": gaussian(30, 5) @ gaussian(5, 40, 1),
    "ill conditioned": matrix_with_spectrum(torch.logspace(0, -9, 20), 20, 30),
    "hardly conditioned": matrix_with_spectrum(torch.logspace(0, -4.5, 20), 20, 30),
    "tiny entries": 1e-150 * gaussian(10, 12),
    "huge entries": 1e150 * gaussian(10, 12),
    "with gradients": gaussian(10, 12).requires_grad_(),
}


@pytest.mark.parametrize("name", BASES)
def test_a_base_is_decomposed_once(name: str, cache: BaseCache) -> None:
    w_0 = BASES[name]
    first = cache.decomposition(w_0, lambda: decompose(w_0))
    assert_same(BaseCache().decomposition(w_0.detach().clone(), refuse), first)
    assert torch.equal(BaseCache().values(w_0, refuse), first.s)


@pytest.mark.parametrize("name", BASES)
def test_values_are_computed_once(name: str, cache: BaseCache) -> None:
    w_0 = BASES[name].detach()
    s = torch.linalg.svdvals(w_0.double())
    assert torch.equal(cache.values(w_0, lambda: s), s)
    assert torch.equal(BaseCache().values(w_0, refuse), s)


def test_values_do_not_stand_for_vectors(cache: BaseCache) -> None:
    solver = Solver(W_0)
    cache.values(W_0, solver.values)
    cache.decomposition(W_0, solver.decompose)
    assert solver.calls == 2


def test_the_key_is_the_stored_content(cache: BaseCache, monkeypatch: pytest.MonkeyPatch) -> None:
    w = gaussian(4, 6).bfloat16()
    changed = w.clone()
    changed[3, 5] += 0.01
    others = [changed, w.float(), w.double(), w.reshape(6, 4), w.view(torch.float16), w[:, :5]]
    keys = {cache.key(t) for t in (w, *others)}
    assert len(keys) == 1 + len(others)
    # However it lies in memory.
    assert cache.key(w) == cache.key(w.T.contiguous().T) == cache.key(torch.cat([w, w])[4:])
    before = cache.key(w)
    monkeypatch.setattr(base_cache, "SOLVER_VERSION", "another")
    assert cache.key(w) != before


def test_kept_vectors_are_mapped_and_private(cache: BaseCache) -> None:
    expected = cache.decomposition(W_0, lambda: decompose(W_0))
    path = only_file(cache, "svd")
    size = cache.size()
    found = cache.decomposition(W_0, refuse)
    maps = Path("/proc/self/maps")
    if maps.exists():
        assert str(path) in maps.read_text()
    # Deleted while it is in use, and changed by its user.
    copy = path.read_bytes()
    assert cache.clear() == (1, size)
    assert_same(found, expected)
    path.write_bytes(copy)
    found = cache.decomposition(W_0, refuse)
    found.u.zero_()
    assert path.read_bytes() == copy
    assert_same(cache.decomposition(W_0, refuse), expected)


def test_what_compute_raises_is_passed_on(cache: BaseCache) -> None:
    w = torch.full((3, 4), math.nan)
    for _ in range(2):  # and the lock is free again
        with pytest.raises(ValueError, match="must be finite"):
            cache.decomposition(w, lambda: decompose(w))
    for odd in (torch.zeros(3), torch.zeros(0, 4)):
        with pytest.raises(ValueError, match="must be a non-empty matrix"):
            cache.decomposition(odd, lambda odd=odd: decompose(odd))  # type: ignore[misc]
    assert cache.entries() == []


# Noise.


def test_noise_is_kept_by_precision_and_by_what_was_asked(cache: BaseCache) -> None:
    given = (0.1 + 0.2, 1e-300)
    assert cache.noise(W_0, "bfloat16", lambda: (0.5, None), vectors=False) == (0.5, None)
    assert cache.noise(W_0, "bfloat16", refuse, vectors=False) == (0.5, None)
    assert cache.noise(W_0, "bfloat16", lambda: given) == given
    for vectors in (True, False):
        assert BaseCache().noise(W_0, "bfloat16", refuse, vectors) == given
    assert cache.noise(W_0, "float16", lambda: (0.0, 0.0)) == (0.0, 0.0)
    assert {e.kind for e in cache.entries()} == {"noise-bfloat16", "noise-float16"}


def test_noise_may_ask_for_the_decomposition(cache: BaseCache) -> None:
    def compute() -> tuple[float, float]:
        return cache.decomposition(W_0, lambda: decompose(W_0)).s[0].item(), 0.0

    assert cache.noise(W_0, "nf4", compute) == BaseCache().noise(W_0, "nf4", refuse)


def test_noise_that_is_no_number_is_not_kept(cache: BaseCache) -> None:
    assert math.isnan(cache.noise(W_0, "int8", lambda: (math.nan, 0.0))[0])
    assert cache.noise(W_0, "int8", lambda: (0.0, math.inf)) == (0.0, math.inf)
    assert cache.entries() == []


@pytest.mark.parametrize("precision", ["../../x", "", "a/b", "bfloat16\n"])
def test_a_precision_leads_nowhere_else(precision: str, cache: BaseCache) -> None:
    with pytest.raises(ValueError, match="precision must be a name"):
        cache.noise(W_0, precision, refuse)


HOSTILE = {
    "empty": b"",
    "truncated": None,
    "no JSON": b"\x00\xff{",
    "a list": b"[]",
    "nothing in it": b"{}",
    "deep": b"[" * 2000,
    "large": b'{"sigma_noise": ' + b"9" * 10_000 + b"}",
    "strings": {"sigma_noise": "0.5"},
    "infinite": {"sigma_noise": math.inf},
    "NaN": {"d_noise": math.nan},
    "true": {"sigma_noise": True},
    "another number": {"sigma_noise": 0.25},
    "another key": {"key": "0" * 64},
    "another precision": {"precision": "float16"},
    "more": {"__class__": "os.system"},
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_damaged_noise_entry_is_made_again(
    name: str, cache: BaseCache, caplog: pytest.LogCaptureFixture
) -> None:
    cache.noise(W_0, "bfloat16", lambda: (0.5, 0.125))
    path = only_file(cache, "noise-bfloat16")
    written = path.read_bytes()
    damage = HOSTILE[name]
    if isinstance(damage, dict):
        path.write_text(json.dumps(json.loads(written) | damage))
    else:
        path.write_bytes(written[:-20] if damage is None else damage)
    assert cache.noise(W_0, "bfloat16", lambda: (0.5, 0.125)) == (0.5, 0.125)
    assert path.read_bytes() == written
    assert len(caplog.records) == 1 and "is damaged" in caplog.text


def test_it_says_beforehand_what_it_holds(cache: BaseCache) -> None:
    def held() -> list[bool]:
        both = (True, False)
        noise = [cache.holds_noise(W_0, "bfloat16", vectors) for vectors in both]
        return [cache.holds(W_0, vectors) for vectors in both] + noise

    assert held() == [False] * 4
    cache.values(W_0, Solver(W_0).values)
    cache.noise(W_0, "bfloat16", lambda: (0.5, None), vectors=False)
    assert held() == [False, True, False, True]
    cache.decomposition(W_0, lambda: decompose(W_0))
    cache.noise(W_0, "bfloat16", lambda: (0.5, 0.5))
    assert held() == [True] * 4
    only_file(cache, "values").unlink()
    assert held() == [True] * 4
    only_file(cache, "noise-bfloat16").write_text("[")
    assert held() == [True, True, False, False]
    assert not BaseCache(max_bytes=0).holds(W_0) and not cache.holds_noise(W_0, "../x")


# Damaged.


def damaged(path: Path, name: str) -> None:
    """Replace an entry of `W_0` by something that it must not be taken for."""
    written = path.read_bytes()
    header = 8 + int.from_bytes(written[:8], "little")
    with safe_open(path, "pt") as file:
        about = file.metadata()
    tensors = {k: v.clone() for k, v in load_file(path).items()}
    path.unlink()  # nothing is changed in place while a process may have mapped it
    kind, _, where = name.partition(" ")
    if kind == "truncated":
        places = {"in header": header // 2, "after header": header, "at the end": len(written) - 1}
        path.write_bytes(written[: places.get(where) or int(float(where) * len(written))])
    elif kind == "flipped":
        place = {"length": 0, "header": 12, "about": written.index(b"solver") + 10}.get(where)
        if place is None:
            place = header + int(float(where) * (len(written) - header - 1))
        changed = bytearray(written)
        changed[place] ^= 1
        path.write_bytes(changed)
    elif kind == "zeros":
        path.write_bytes(written[:header] + bytes(len(written) - header))
    elif kind == "longer":
        path.write_bytes(written + b"\0")
    elif kind == "text":
        path.write_text("import os; os.system('false')")
    elif kind == "pickle":
        torch.save(tensors, path)
    else:
        foreign(path, where, tensors, about)


def foreign(path: Path, name: str, tensors: dict[str, Tensor], about: dict[str, str]) -> None:
    """Write a sound safetensors file that is no entry, or the entry of another base."""
    key = path.name[:64]
    other = decompose(W_0.double() + 1e-6 * gaussian(24, 40, 5))
    if name == "model":
        save_file({"model.weight": W_0}, path)
        return
    if name == "without a checksum":
        save_file(tensors, path)
        return
    if name == "of another base":
        tensors = {n: getattr(other, n).contiguous() for n in tensors}
    elif name == "of another type":
        tensors = {n: t.float() for n, t in tensors.items()}
    elif name == "of another shape":
        tensors = {n: t[..., :-1].contiguous() for n, t in tensors.items()}
    elif name == "with NaN":
        tensors["s"][-1] = math.nan
    elif name == "with infinity":
        tensors["s"][0] = math.inf
    elif name == "with negative values":
        tensors["s"][-1] *= -1
    elif name == "in another order":
        tensors = {
            n: t.flip(1 if n == "u" else 0).contiguous() for n, t in tensors.items()
        }  # the same matrix
    elif name == "that claims to be bad":
        tensors = {n: t + 0.01 for n, t in tensors.items()}
        about["residual"] = "1e300"
    elif name == "with no residual":
        about["residual"] = "good"
    else:
        raise AssertionError(name)
    # With checksums of its own: someone wrote it with this program's means.
    about = {name: about[name] for name in ("solver", "residual")}
    sums = {f"crc_{n}": cache_entries.checksum(key, about, n, t) for n, t in tensors.items()}
    save_file(tensors, path, metadata=about | sums)


DAMAGES = (
    *(f"truncated {p}" for p in ("0", "0.001", "in header", "after header", "0.9", "at the end")),
    *(f"flipped {p}" for p in ("length", "header", "about", "0", "0.2", "0.5", "0.51", "0.9", "1")),
    *("zeros", "longer", "text", "pickle"),
    "foreign model",
    "foreign without a checksum",
    "foreign of another base",
    "foreign of another type",
    "foreign of another shape",
    "foreign with NaN",
    "foreign with infinity",
    "foreign with negative values",
    "foreign in another order",
)


@pytest.mark.parametrize(
    "name", [*DAMAGES, "foreign that claims to be bad", "foreign with no residual"]
)
def test_a_damaged_entry_is_made_again(
    name: str, cache: BaseCache, caplog: pytest.LogCaptureFixture
) -> None:
    solver = Solver(W_0)
    expected = cache.decomposition(W_0, solver.decompose)
    path = only_file(cache, "svd")
    damaged(path, name)
    assert_same(cache.decomposition(W_0, solver.decompose), expected)
    assert solver.calls == 2
    assert len(caplog.records) == 1 and f"{path} is damaged" in caplog.text
    # And kept again.
    assert_same(cache.decomposition(W_0, refuse), expected)


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_values_are_made_again(name: str, cache: BaseCache) -> None:
    solver = Solver(W_0)
    expected = cache.values(W_0, solver.values)
    path = only_file(cache, "values")
    damaged(path, name)
    assert torch.equal(cache.values(W_0, solver.values), expected)
    assert solver.calls == 2
    assert torch.equal(cache.values(W_0, refuse), expected)


def test_values_come_from_a_decomposition_whose_values_are_sound(cache: BaseCache) -> None:
    expected = cache.decomposition(W_0, lambda: decompose(W_0)).s.clone()
    path = only_file(cache, "svd")
    damaged(path, "zeros")
    solver = Solver(W_0)
    found = cache.values(W_0, solver.values)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    assert solver.calls == 1 and not path.exists()


def test_an_entry_under_another_name_is_not_taken(cache: BaseCache) -> None:
    other = gaussian(24, 40, 3)
    cache.decomposition(W_0, lambda: decompose(W_0))
    cache.values(W_0[:, 1:], Solver(W_0[:, 1:]).values)
    for entry in cache.entries():
        entry.path.rename(str(entry.path).replace(entry.key, cache.key(other)))
    solver = Solver(other)
    assert_same(cache.decomposition(other, solver.decompose), decompose(other))
    assert solver.calls == 1


@pytest.mark.parametrize("what", ["folder", "pipe"])
@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes are POSIX's")
def test_what_is_no_file_is_not_read(what: str, cache: BaseCache) -> None:
    expected = cache.decomposition(W_0, lambda: decompose(W_0))
    path = only_file(cache, "svd")
    path.unlink()
    if what == "folder":
        path.mkdir()
    else:
        os.mkfifo(path)
    assert_same(cache.decomposition(W_0, lambda: decompose(W_0)), expected)


def test_a_bad_decomposition_is_not_kept(cache: BaseCache) -> None:
    good = decompose(W_0)
    for bad in (
        replace(good, u=good.u + 0.01),
        replace(good, vh=good.vh + 0.01),
        replace(good, s=good.s * 1.001),
        replace(good, s=good.s.float()),
        replace(good, residual=math.nan, u=good.u + 1e-9),
        replace(good, residual=1e9, u=good.u + 0.01),
    ):
        assert cache.decomposition(W_0, lambda bad=bad: bad).residual is bad.residual  # type: ignore[misc]
    cache.values(W_0, lambda: 1.01 * good.s)
    assert cache.entries() == []


# The folder cannot be used.


def full(*_: object, **__: object) -> Any:
    raise OSError(errno.ENOSPC, "No space left on device")


def full_for_safetensors(*_: object, **__: object) -> None:
    raise SafetensorError("I/O error: No space left on device (os error 28)")


def ask_for_everything(cache: BaseCache, seed: int = 0) -> None:
    w = gaussian(6, 8, seed)
    assert_same(cache.decomposition(w, lambda: decompose(w)), decompose(w))
    assert cache.noise(w, "nf4", lambda: (0.5, None), vectors=False) == (0.5, None)
    assert torch.equal(cache.values(w, lambda: decompose(w).s), decompose(w).s)


@pytest.mark.parametrize("place", ["below a file", "nowhere"])
def test_a_folder_that_cannot_be_written_costs_one_warning(
    place: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "file"
    file.write_text("a file")
    for seed in range(2):
        cache = BaseCache(file / "cache" if place == "below a file" else Path(os.devnull) / "a")
        ask_for_everything(cache, seed)
    assert len(caplog.records) == 1 and "SPECTRA_CACHE" in caplog.text
    assert (cache.entries(), cache.size(), cache.clear()) == ([], 0, (0, 0))


@pytest.mark.parametrize(
    ("name", "failing"),
    [("whole_file", full), ("save_file", full_for_safetensors), ("_take", full)],
)
def test_a_full_disk_costs_one_warning(
    name: str,
    failing: Callable[..., Any],
    cache: BaseCache,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    owner = cache_entries if name == "save_file" else base_cache
    monkeypatch.setattr(owner, name, failing)
    for seed in range(2):
        ask_for_everything(cache, seed)
    assert len(caplog.records) == 1 and "No space left" in caplog.text
    # Nothing half is left, and a JSON entry that fitted is kept.
    kinds = {entry.kind for entry in cache.entries()}
    assert kinds == {"whole_file": set(), "save_file": {"noise-nf4"}}.get(
        name, {"noise-nf4", "svd"}
    )
    assert not list(cache.folder.glob(f"{TEMPORARY_PREFIX}*"))


@pytest.mark.skipif(sys.platform == "win32", reason="limits are POSIX's")
def test_a_disk_that_fills_up_while_writing(
    cache: BaseCache, caplog: pytest.LogCaptureFixture
) -> None:
    import resource

    w = torch.eye(64)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Python ignores the signal: writing fails in its midst, as on a full disk.
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        found = cache.decomposition(w, lambda: decompose(w))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert torch.equal(found.s, torch.ones(64, dtype=torch.float64))
    assert len(caplog.records) == 1 and "cannot be written" in caplog.text
    assert [p.suffix for p in cache.folder.iterdir()] == [".lock"]


def test_what_safetensors_refuses_is_not_kept(cache: BaseCache) -> None:
    one = torch.ones(1, 1, dtype=torch.float64)
    shared = Decomposition(one, one[0], one.T, "svd", 0.0)
    assert_same(cache.decomposition(one, lambda: shared), shared)
    assert cache.entries() == []


def test_a_cache_that_is_off_writes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPECTRA_CACHE_GIB", "0")
    cache = BaseCache()
    solver = Solver(W_0)
    for _ in range(2):
        cache.decomposition(W_0, solver.decompose)
        cache.values(W_0, solver.values)
        cache.noise(W_0, "bfloat16", lambda: (0.5, 0.5))
    assert solver.calls == 4
    assert not cache.folder.exists()


# Where, and how much.


def test_the_environment_names_the_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert BaseCache().folder == tmp_path / "cache"
    assert BaseCache(tmp_path).folder == tmp_path
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SPECTRA_CACHE", "~/mine")
    assert BaseCache().folder == tmp_path / "mine"
    monkeypatch.setenv("SPECTRA_CACHE", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert BaseCache().folder == tmp_path / "xdg" / "spectra"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert BaseCache().folder == tmp_path / ".cache" / "spectra"


def test_the_environment_bounds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert BaseCache().max_bytes == 32 * 2**30
    monkeypatch.setenv("SPECTRA_CACHE_GIB", "0.5")
    assert BaseCache().max_bytes == 2**29
    assert BaseCache(max_bytes=7).max_bytes == 7
    for wrong in ("much", "-1", "nan", "inf"):
        monkeypatch.setenv("SPECTRA_CACHE_GIB", wrong)
        with pytest.raises(ValueError, match=f"SPECTRA_CACHE_GIB must be .* got '{wrong}'"):
            BaseCache()
    with pytest.raises(ValueError, match="max_bytes must be at least 0, got -1"):
        BaseCache(max_bytes=-1)


def bases(count: int) -> list[Tensor]:
    return [gaussian(32, 32, seed) for seed in range(count)]  # 17 kB each


def put(cache: BaseCache, w: Tensor, age: float = 0.0) -> None:
    cache.decomposition(w, lambda: decompose(w))
    (path,) = (e.path for e in cache.entries() if e.key == cache.key(w))
    os.utime(path, (time.time() - age,) * 2)


def test_what_was_not_used_for_longest_goes_first() -> None:
    cache = BaseCache(max_bytes=60_000)
    first, second, third, fourth, fifth = bases(5)
    put(cache, first, age=300)
    put(cache, second, age=200)
    put(cache, third, age=100)
    cache.decomposition(first, refuse)  # used again
    put(cache, fourth, age=50)
    assert cache.size() <= cache.max_bytes
    kept = {entry.key for entry in cache.entries()}
    assert kept == {cache.key(w) for w in (first, third, fourth)}
    put(cache, fifth)
    kept = {entry.key for entry in cache.entries()}
    assert kept == {cache.key(w) for w in (first, fourth, fifth)}


def test_the_entry_just_written_stays_even_if_clocks_disagree() -> None:
    cache = BaseCache(max_bytes=30_000)
    first, second = bases(2)
    put(cache, first, age=-1000)  # from the future
    put(cache, second)
    assert [entry.key for entry in cache.entries()] == [cache.key(second)]


def test_an_entry_larger_than_the_bound_is_not_kept(caplog: pytest.LogCaptureFixture) -> None:
    cache = BaseCache(max_bytes=30_000)
    small, *_ = bases(1)
    put(cache, small)
    for seed in range(2):
        large = gaussian(64, 64, seed)
        cache.decomposition(large, lambda large=large: decompose(large))  # type: ignore[misc]
    assert [entry.key for entry in cache.entries()] == [cache.key(small)]
    assert len(caplog.records) == 1 and "SPECTRA_CACHE_GIB" in caplog.text


def test_files_that_are_not_ours_do_not_count(cache: BaseCache) -> None:
    ask_for_everything(cache)
    mine = cache.folder / "thesis.safetensors"
    mine.write_bytes(bytes(2**20))
    small = BaseCache(max_bytes=3000)
    ask_for_everything(small, seed=1)
    assert small.size() <= 3000
    small.clear()
    assert mine.exists() and cache.entries() == []


def test_a_read_without_the_right_to_touch_is_a_read(
    cache: BaseCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.decomposition(W_0, lambda: decompose(W_0))
    monkeypatch.setattr(os, "utime", full)
    cache.decomposition(W_0, refuse)


def test_an_entry_that_vanishes_before_it_is_opened_is_made_again(
    cache: BaseCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    solver = Solver(W_0)
    expected = cache.decomposition(W_0, solver.decompose)
    path = only_file(cache, "svd")

    def evicted(*arguments: Any, **options: Any) -> Any:
        path.unlink(missing_ok=True)
        return safe_open(*arguments, **options)

    monkeypatch.setattr(cache_entries, "safe_open", evicted)
    assert_same(cache.decomposition(W_0, solver.decompose), expected)
    assert solver.calls == 2


def test_entries_say_what_is_there(cache: BaseCache) -> None:
    before = time.time() - 1
    cache.decomposition(W_0, lambda: decompose(W_0))
    cache.noise(W_0, "bfloat16", lambda: (0.5, 0.5))
    found = {entry.kind: entry for entry in cache.entries()}
    assert set(found) == {"svd", "noise-bfloat16"}
    for entry in found.values():
        assert (entry.key, entry.shape) == (cache.key(W_0), (24, 40))
        assert entry.size == entry.path.stat().st_size and entry.used >= before
    assert cache.size() == sum(entry.size for entry in found.values())


def test_clearing_leaves_writers_alone(cache: BaseCache) -> None:
    ask_for_everything(cache)
    held, free = gaussian(5, 5), gaussian(6, 8)
    leftovers = [cache.folder / f"{TEMPORARY_PREFIX}{name}" for name in ("old", "young")]
    for path in leftovers:
        path.write_text("half")
    os.utime(leftovers[0], (time.time() - 4000,) * 2)
    size = cache.size()

    def meanwhile() -> Decomposition:
        assert cache.clear() == (2, size)
        return decompose(held)

    cache.decomposition(held, meanwhile)
    left = {p.name.partition(".")[0] or p.name for p in cache.folder.iterdir()}
    assert left == {cache.key(held), leftovers[1].name}
    ask_for_everything(cache)
    cache.decomposition(free, refuse)


def test_it_can_be_sent_to_another_process(cache: BaseCache) -> None:
    copy = pickle.loads(pickle.dumps(cache))
    assert (copy.folder, copy.max_bytes) == (cache.folder, cache.max_bytes)
    ask_for_everything(copy)


# Several processes.


def write_forever(folder: Path) -> None:
    """Fill a cache that holds a few entries, with entries of all kinds."""
    cache = BaseCache(folder, max_bytes=1_500_000)
    for seed in itertools.count():
        w = gaussian(96, 128, seed)
        cache.decomposition(w, lambda w=w: decompose(w))  # type: ignore[misc]
        cache.noise(w, "bfloat16", lambda seed=seed: (float(seed), None))  # type: ignore[misc]


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="SIGKILL and fork are POSIX's")
def test_killed_writers_leave_whole_entries_and_no_lock(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folders = [tmp_path / f"cache-{i}" for i in range(KILLS)]
    kill_at_random_moments(write_forever, folders)
    reached = 0
    for folder in folders:
        cache = BaseCache(folder)
        for seed in itertools.count():
            w = gaussian(96, 128, seed)
            names = {e.kind for e in cache.entries() if e.key == cache.key(w)}
            if "svd" in names:
                found = cache.decomposition(w, refuse)
                assert torch.equal(found.s, decompose(w).s)
            if "noise-bfloat16" in names:
                assert cache.noise(w, "bfloat16", refuse, vectors=False) == (seed, None)
            if not names and not list(folder.glob(f"{cache.key(w)}*.lock")):
                break  # never begun
            cache.decomposition(w, lambda w=w: decompose(w))  # type: ignore[misc]
            reached = max(reached, seed)
    assert reached > 0 and not caplog.records


def race(folder: Path) -> None:
    """One process is killed while it computes a base that others wait for."""

    def compute_slowly(seconds: float) -> Decomposition:
        with (folder / "calls").open("a") as file:
            file.write("call\n")
        time.sleep(seconds)
        return decompose(W_0)

    def ask(seconds: float) -> int:
        child = os.fork()
        if child == 0:
            status = 1
            try:
                cache = BaseCache(folder / "cache")
                found = cache.decomposition(W_0, lambda: compute_slowly(seconds))
                status = 0 if torch.equal(found.s, decompose(W_0).s) else 2
            finally:
                os._exit(status)
        return child

    first = ask(seconds=60)
    while not (folder / "calls").exists():
        time.sleep(0.001)
    others = [ask(seconds=0.3) for _ in range(RACERS)]
    time.sleep(0.2)
    assert (folder / "calls").read_text() == "call\n", "they did not wait"
    os.kill(first, signal.SIGKILL)
    os.waitpid(first, 0)
    assert [os.waitpid(child, 0)[1] for child in others] == [0] * RACERS


@pytest.mark.skipif(not hasattr(os, "fork"), reason="fork is POSIX's")
def test_one_process_computes_and_the_others_wait(tmp_path: Path) -> None:
    code = f"from {__name__} import race, Path; import sys; race(Path(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    # The one that was killed, and one of the others.
    assert (tmp_path / "calls").read_text() == "call\n" * 2
    assert len(BaseCache(tmp_path / "cache").entries()) == 1
