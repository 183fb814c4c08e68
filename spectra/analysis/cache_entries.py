"""The files of the base cache: what they hold, and why it is believed."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from spectra.linalg import Decomposition

# What a safetensors header of ours, or a JSON entry, takes at most; both take under 600 bytes.
HEADER = 2048
# What reading something that is no entry of ours raises.
DAMAGE = (SafetensorError, ValueError, KeyError, RecursionError)

# Accepted error of what is read, by a probe with one random vector, in units of the residual that
# was measured when it was made. That was a mean over four such probes; the square of the ratio of
# the two has an F(1, 4) distribution at worst and passes 100² with a probability of 6e-8.
_RESIDUALS = 100.0
# A residual can be 0 by luck (1×1, or a diagonal matrix). Foreign vectors are wrong by 1.
_SMALLEST_TOLERANCE = 1e-10
# The solvers' vectors are orthonormal to 1e-5 or better; what is worse is not worth keeping.
_LARGEST_TOLERANCE = 1e-3
# Of Σσ² and ‖W_0‖²_F, relatively: solvers keep 1e-12, another matrix's values none.
_NORM_TOLERANCE = 1e-9
_ROWS = 64


def write_tensors(
    path: Path, key: str, tensors: Mapping[str, Tensor], solver: str = "", residual: float = 0.0
) -> None:
    """Write tensors, each with its checksum, and what is said about them."""
    about = {"solver": solver, "residual": repr(residual)}
    sums = {f"crc_{name}": checksum(key, about, name, t) for name, t in tensors.items()}
    save_file(dict(tensors), path, metadata=about | sums)


def _read_tensors(
    path: Path, key: str, shapes: Mapping[str, Sequence[int]]
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors of these names and shapes, as they were written, and what is said about them."""
    with safe_open(path, framework="pt") as file:
        about = file.metadata() or {}
        sums = {name: about.pop(f"crc_{name}", "") for name in ("u", "s", "vh")}
        tensors = {}
        for name, shape in shapes.items():
            header = file.get_slice(name)
            if header.get_dtype() != "F64" or header.get_shape() != list(shape):
                raise ValueError(f"its {name} is not float64 of shape {tuple(shape)}")
            tensors[name] = file.get_tensor(name)
    for name, tensor in tensors.items():
        if sums[name] != checksum(key, about, name, tensor):
            raise ValueError(f"its {name} is not what was written")
    if "s" in tensors and not is_descending(tensors["s"]):
        raise ValueError("its values are not singular values")
    return tensors, about


def checksum(key: str, about: Mapping[str, str], name: str, tensor: Tensor) -> str:
    """Return the checksum of one tensor, seeded with all that it belongs to."""
    # 0.04 s for the 268 MB of a 4096×4096 base, where sha256 takes 0.14 s; it need only see
    # damage, as whether it is the right base is seen by the probes.
    described = json.dumps([key, name, sorted(about.items())])
    return f"{zlib.crc32(raw_bytes(tensor), zlib.crc32(described.encode())):08x}"


def raw_bytes(tensor: Tensor) -> memoryview:
    """Return the bytes of a contiguous tensor without copying them."""
    return tensor.flatten().view(torch.uint8).numpy().data


def read_decomposition(path: Path, key: str, w_0: Tensor) -> Decomposition:
    """Read a decomposition; raises one of `DAMAGE` where it cannot be believed."""
    m, n = w_0.shape
    k = min(m, n)
    tensors, about = _read_tensors(path, key, {"u": (m, k), "s": (k,), "vh": (k, n)})
    found = Decomposition(**tensors, solver=about["solver"], residual=float(about["residual"]))
    if not fits(found, w_0):
        raise ValueError("it is of another matrix")
    return found


def read_values(path: Path, key: str, w_0: Tensor) -> Tensor:
    """Read the singular values alone, of a decomposition or by themselves, likewise."""
    s = _read_tensors(path, key, {"s": (min(w_0.shape),)})[0]["s"]
    if not has_norm_of(s, w_0):
        raise ValueError("it is of another matrix")
    return s


def is_descending(s: Tensor) -> bool:
    """Whether these can be singular values: finite, not negative, largest first."""
    ordered = torch.isfinite(s).all() and (s >= 0).all() and (s.diff() <= 0).all()
    return s.dtype == torch.float64 and bool(ordered)


def fits(found: Decomposition, w_0: Tensor) -> bool:
    """Whether U diag(S) Vᵀ is W_0 and U and V are orthonormal, by one probe of each.

    Tells another matrix's decomposition, and any damage that is above the solver's own error.
    """
    generator = torch.Generator().manual_seed(0)
    x, z = (
        torch.randn(size, generator=generator, dtype=torch.float64)
        for size in (w_0.shape[1], len(found.s))
    )
    image = torch.cat([rows @ x for rows in _in_pieces(w_0)])
    norm = math.sqrt(_square_norm(w_0))
    back = image - found.u @ (found.s * (found.vh @ x))
    errors = (
        back / norm if norm > 0 else back,
        found.u.T @ (found.u @ z) - z,
        found.vh @ (found.vh.T @ z) - z,
    )
    expected = _RESIDUALS * found.residual
    tolerance = min(max(expected, _SMALLEST_TOLERANCE), _LARGEST_TOLERANCE)
    # NaN is not below anything.
    return all(torch.linalg.vector_norm(error).item() <= tolerance for error in errors)


def has_norm_of(s: Tensor, w_0: Tensor) -> bool:
    """Whether Σσ² = ‖W_0‖²_F."""
    square = _square_norm(w_0)
    return abs(s.square().sum().item() - square) <= _NORM_TOLERANCE * square


def _square_norm(w_0: Tensor) -> float:
    return sum(rows.square().sum().item() for rows in _in_pieces(w_0))


def _in_pieces(w_0: Tensor) -> Iterator[Tensor]:
    """W_0 in float64, some rows at a time: a whole copy costs more than what is done with it."""
    for rows in w_0.detach().cpu().split(_ROWS):
        yield rows.double()


def noise_entry(
    key: str, precision: str, sigma_noise: float, d_noise: float | None
) -> dict[str, Any]:
    """Return the content of a file of noise."""
    content = {"key": key, "precision": precision, "sigma_noise": sigma_noise, "d_noise": d_noise}
    return content | {"crc": f"{zlib.crc32(json.dumps(content).encode()):08x}"}


def read_noise(path: Path, key: str, precision: str) -> tuple[float, float | None]:
    """Read a file of noise; raises one of `DAMAGE` where it cannot be believed."""
    with path.open("rb") as file:
        content: Any = json.loads(file.read(HEADER))
    if not isinstance(content, dict):
        raise ValueError("it is no JSON object")
    noise: tuple[Any, Any] = content.get("sigma_noise"), content.get("d_noise")
    if not is_noise(noise) or content != noise_entry(key, precision, *noise):
        raise ValueError("it is not what was written")
    return noise


def is_noise(noise: tuple[Any, Any]) -> bool:
    """Whether these are two numbers, the second of which may be missing."""
    sigma, d = noise
    numbers = [sigma] if d is None else [sigma, d]
    return all(isinstance(number, float) and math.isfinite(number) for number in numbers)
