"""The zip archive that ``torch.save`` writes, described without its numbers and read in parts.

It holds a pickle that describes the tensors, and one uncompressed record for the numbers of each
storage. Only the pickle is loaded, by ``torch.load`` with ``weights_only=True``, from a copy of the
archive in which all storages are empty; the numbers are read from their place in the file when they
are asked for, and checked by the archive's sums where a whole storage is read. Nothing here can be
told to load a file that needs more than that.
"""

from __future__ import annotations

import io
import math
import pickle
import re
import struct
import zipfile
import zlib
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from checkpoints_index.byte_files import ByteFile, read_tensor, too_short
from checkpoints_index.errors import CheckpointError
from checkpoints_index.pickle_bounds import check_pickle

# Describes some 35,000 tensors.
_MAX_DESCRIPTION = 4 * 2**20
# Lists some 90,000 storages.
_MAX_DIRECTORY = 8 * 2**20
_LOCAL_HEADER = struct.Struct("<4s22xHH")  # signature, lengths of name and extra field
_FIELD = struct.Struct("<HH")  # of the extra field: kind and length
_PADDING = 68  # at most, of what torch writes
_END, _END_LENGTH = b"PK\x05\x06", 22


@dataclass(frozen=True)
class _Record:
    """One record of an archive, as its directory describes it."""

    name: bytes
    header: int
    size: int
    crc: int


@dataclass(frozen=True)
class TensorPlace:
    """Where in an archive the numbers of a tensor are.

    Attributes
    ----------
    key : str
        The record of its storage.
    storage : int
        Bytes that the storage must have.
    dtype : torch.dtype
        Of the numbers.
    shape, strides : tuple of int
        In numbers.
    first : int
        Which number of the storage is the tensor's first.
    """

    key: str
    storage: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    first: int

    def rows(self, start: int, stop: int) -> TensorPlace:
        """Return the place of a run of its rows."""
        first = self.first + (start * self.strides[0] if start < stop else 0)
        return replace(self, shape=(stop - start, *self.shape[1:]), first=first)


class Archive:
    """The zip archive that ``torch.save`` writes.

    Parameters
    ----------
    file : ByteFile
        The file, or the part of one that is such an archive.

    Raises
    ------
    CheckpointError
        If it is broken, or compressed.
    """

    def __init__(self, file: ByteFile) -> None:
        self._file = file
        self._records: dict[str, _Record] = {}
        self._description: bytes | bytearray = b""
        try:
            # torch leaves no comment at the end, so the archive ends with this record.
            end = max(0, file.size - _END_LENGTH)
            if not file.read(end, file.size - end).startswith(_END):
                raise too_short(file.path)
            with zipfile.ZipFile(_Stream(file)) as archive:
                self._read_directory(archive)
            check_pickle(self._description)
        except (zipfile.BadZipFile, ValueError, NotImplementedError, struct.error) as error:
            raise self._broken(str(error)) from error
        self._places: dict[int, str] = {}

    def load(self) -> Any:
        """Load what the file describes, with tensors that have no numbers; once."""
        empty = io.BytesIO()
        with zipfile.ZipFile(empty, "w") as copy:
            copy.writestr("archive/data.pkl", self._description)
            copy.writestr("archive/version", "3")
            for key in self._records:
                copy.writestr(f"archive/data/{key}", b"")
            # Where torch will say that a storage's numbers begin.
            self._places = {
                i.header_offset + 30 + len(i.filename): i.filename.removeprefix("archive/data/")
                for i in copy.infolist()
            }
        self._description = b""
        if not tells_places():
            raise CheckpointError(
                f"{self._file.path}: to read PyTorch files in parts takes torch 2.7 or newer, this "
                f"is {torch.__version__}. Upgrade torch, or save the weights as safetensors."
            )
        return load_plain(empty, self._file.path, "meta")

    def find(self, tensor: Tensor) -> TensorPlace | None:
        """Return where the numbers of a loaded tensor are; ``None`` if in no plain form."""
        if tensor.layout != torch.strided or tensor.is_quantized:
            return None
        # torch notes where in the file a storage without numbers has them.
        place = getattr(tensor.untyped_storage(), "_checkpoint_offset", None)
        key = self._places.get(cast(int, place))
        if key is None:
            return None
        return TensorPlace(
            key,
            tensor.untyped_storage().nbytes(),
            tensor.dtype,
            tuple(map(int, tensor.shape)),
            tuple(map(int, tensor.stride())),
            int(tensor.storage_offset()),
        )

    def holds(self, place: TensorPlace) -> bool:
        """Whether the archive has the storage as it must be."""
        return self._records[place.key].size == place.storage

    def read(self, place: TensorPlace) -> Tensor:
        """Read the numbers of a tensor, or of a run of its rows."""
        record, dtype = self._records[place.key], place.dtype
        if not self.holds(place):
            raise self._broken(
                f"record {place.key!r:.200} has {record.size} bytes, not {place.storage}"
            )
        if not math.prod(place.shape):
            return torch.empty(place.shape, dtype=dtype)
        # The run of the storage from the tensor's first number to its last.
        reach = sum((n - 1) * s for n, s in zip(place.shape, place.strides, strict=True))
        size = (1 + reach) * dtype.itemsize
        first = place.first * dtype.itemsize
        if first + size > record.size:
            raise self._broken(f"a tensor reaches beyond record {place.key!r:.200}")
        try:
            run = read_tensor(self._file, self._begin(record) + first, dtype, (1 + reach,))
            if size == record.size:
                self._check_sum(record, run.view(torch.uint8).numpy())
            if self._swapped:
                run = run.view(torch.uint8).reshape(-1, dtype.itemsize).flip(1).reshape(-1)
                run = run.view(dtype)
            return run.as_strided(place.shape, place.strides, 0)
        except (RuntimeError, OverflowError) as error:
            raise self._broken(str(error)) from error

    def _read_directory(self, archive: zipfile.ZipFile) -> None:
        entries = {}
        for entry in archive.infolist():
            # The folder in the archive is called after the file.
            name = entry.filename.partition("/")[2]
            if name in entries:
                raise ValueError(f"record {name!r:.200} stands twice")
            entries[name] = entry
        if "data.pkl" not in entries:
            raise ValueError("it has no record data.pkl")
        # zipfile takes what stands before an archive for a program that unpacks it.
        if min(entry.header_offset for entry in entries.values()) != 0:
            raise ValueError("it does not begin with a record")
        for name, entry in entries.items():
            if name.startswith("data/"):
                if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
                    raise ValueError(f"record {name!r:.200} is compressed or encrypted")
                if entry.file_size > self._file.size:
                    raise ValueError(f"record {name!r:.200} is larger than the file")
                self._records[name.removeprefix("data/")] = _record(entry)
        self._description = self._small_record(entries["data.pkl"], _MAX_DESCRIPTION)
        order = entries.get("byteorder")
        order_name = self._small_record(order, 16) if order else b"little"
        if order_name not in (b"little", b"big"):
            raise ValueError(f"its byte order is {order_name!r}")
        self._swapped = order_name == b"big"

    def _small_record(self, entry: zipfile.ZipInfo, most: int) -> bytes | bytearray:
        if entry.file_size > most or entry.compress_type != zipfile.ZIP_STORED:
            raise ValueError(f"{entry.filename!r:.200} is compressed or has more than {most} bytes")
        record = _record(entry)
        content = self._file.read(self._begin(record), record.size)
        self._check_sum(record, content)
        return content

    def _check_sum(self, record: _Record, content: Any) -> None:
        # Writers may leave the sums out, and then write zeros.
        if record.crc and zlib.crc32(content) != record.crc:
            raise self._broken(f"the bytes of record {record.name!r:.200} do not fit its checksum")

    def _begin(self, record: _Record) -> int:
        """Return where the bytes of a record begin: after its own header, which must be right."""
        length = _LOCAL_HEADER.size + len(record.name)
        header = self._file.read(
            record.header, min(length + _PADDING, max(0, self._file.size - record.header))
        )
        if len(header) < length:
            raise self._broken(f"record {record.name!r:.200} is not there")
        signature, name, extra = _LOCAL_HEADER.unpack_from(header)
        if signature != b"PK\x03\x04" or header[_LOCAL_HEADER.size : length] != record.name:
            raise self._broken(f"record {record.name!r:.200} is not where it should be")
        begin = record.header + length + extra
        fields = header[length : length + extra]
        if len(fields) < extra:
            fields = self._file.read(record.header + length, extra)
        # Padding to whole 64 bytes, of fields that each tell their length.
        at = 0
        while at + _FIELD.size <= extra:
            at += _FIELD.size + _FIELD.unpack_from(fields, at)[1]
        if name != len(record.name) or at != extra:
            raise self._broken(f"the header of record {record.name!r:.200} is damaged")
        if begin + record.size > self._file.size:
            raise self._broken(f"record {record.name!r:.200} reaches beyond its end")
        return begin

    def _broken(self, reason: str) -> CheckpointError:
        return CheckpointError(
            f"{self._file.path} is not a whole PyTorch file ({reason:.500}). It may be truncated; "
            "copy or write it again."
        )


@cache
def tells_places() -> bool:
    """Whether this version of torch notes where in a file the numbers of a storage are."""
    file = io.BytesIO()
    torch.save(torch.zeros(1), file)
    file.seek(0)
    loaded = torch.load(file, map_location="meta", weights_only=True)
    return getattr(loaded.untyped_storage(), "_checkpoint_offset", None) is not None


def _record(entry: zipfile.ZipInfo) -> _Record:
    name = entry.orig_filename.encode("utf-8" if entry.flag_bits & 0x800 else "cp437")
    return _Record(name, entry.header_offset, entry.file_size, entry.CRC)


class _Stream(io.RawIOBase):
    """A file as `zipfile` wants it: its end and its directory are read, not the numbers."""

    def __init__(self, file: ByteFile) -> None:
        self._file = file
        self._at = 0

    def readable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """Yes."""
        return True

    def tell(self) -> int:
        """Return the position."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to a position."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._file.size}[whence]
        if start + offset < 0:
            raise ValueError("a position before the file's beginning")
        self._at = start + offset
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        """Read up to `size` bytes; all to the end where it is negative."""
        left = max(0, self._file.size - self._at)
        length = left if size is None or size < 0 else min(size, left)
        if length > _MAX_DIRECTORY:
            raise ValueError(f"its directory has more than {_MAX_DIRECTORY} bytes")
        content = bytes(self._file.read(self._at, length))
        self._at += length
        return content


def load_plain(stream: io.BytesIO, path: Path, device: str) -> Any:
    """Load what ``torch.save`` wrote, if it is tensors and plain values only.

    Raises
    ------
    CheckpointError
        If it needs more, or is broken; the message names `path`.
    """
    stream.seek(0)
    try:
        return torch.load(stream, map_location=device, weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} cannot be loaded as tensors and plain values, and nothing else is ever loaded "
            f"({_first_lines(error)}). Save the model's state_dict() alone, best as safetensors."
        ) from error
    # A broken pickle can fail in every function that it may call.
    except Exception as error:
        raise CheckpointError(
            f"{path} is not a whole PyTorch file ({type(error).__name__}: {error!s:.300}). It may "
            "be truncated; copy or write it again."
        ) from error


def _first_lines(error: Exception) -> str:
    """Return what torch says is wrong, without its advice to load the file all the same."""
    text = str(error)
    reason = re.search(r"WeightsUnpickler error:\s*(.*)", text)
    return re.split(r"\.? Please |\n", reason.group(1) if reason else text)[0][:300]
