"""Memory for parameters, and readers that bring a checkpoint's tensors into it.

Two things make loading fast: parameters lie in huge pages, where the system has them, which cuts
the cost of touching new memory to a quarter; and a tensor stored in the wanted dtype is read from
its file to where it stays, with no copy in between (and no pages of the file counted as ours).
"""

import json
import math
import mmap
import zipfile
from collections.abc import Iterable, Mapping
from contextlib import ExitStack, suppress
from io import FileIO
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

Shape = tuple[int, ...]

# What safetensors calls the dtypes that weights may be stored in.
STORED = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F64": torch.float64,
}
# Parameters start where vector instructions like memory to be aligned.
_ALIGNMENT = 64
# Below this, pages of the usual size do.
_HUGE = 8 * 2**20


class WeightsError(ValueError):
    """Weights that do not fit the config, or a file of weights that cannot be read."""


def empty(
    shapes: Mapping[str, Shape], device: torch.device, dtype: torch.dtype
) -> dict[str, Tensor]:
    """Uninitialised tensors by name, on the CPU in huge pages where the system has them."""
    sizes = {name: math.prod(shape) * dtype.itemsize for name, shape in shapes.items()}
    total = sum(size + _ALIGNMENT for size in sizes.values())
    if device.type != "cpu" or total < _HUGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return {name: torch.empty(s, device=device, dtype=dtype) for name, s in shapes.items()}
    # Private: anonymous memory that processes could share gets huge pages only by another setting.
    memory = mmap.mmap(-1, total, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    # A kernel built without them refuses; pages of the usual size hold the same numbers.
    with suppress(OSError):
        memory.madvise(mmap.MADV_HUGEPAGE)
    tensors, offset = {}, 0
    for name, shape in shapes.items():
        # Each tensor keeps `memory` alive.
        flat = torch.frombuffer(memory, dtype=dtype, count=math.prod(shape), offset=offset)
        tensors[name] = flat.view(shape)
        offset += -(-sizes[name] // _ALIGNMENT) * _ALIGNMENT
    return tensors


@runtime_checkable
class Reader(Protocol):
    """A checkpoint: the shapes of its tensors, and a way to get at them one at a time."""

    where: str
    shapes: Mapping[str, Shape]

    def tensor(self, key: str) -> Tensor:
        """The tensor itself."""
        ...

    def copy_into(self, key: str, target: Tensor) -> None:
        """Put the tensor into `target`, which has its shape, converting to its dtype and device."""
        ...


class StateDictReader:
    """A reader of tensors in memory."""

    def __init__(self, tensors: Mapping[str, Tensor], where: str) -> None:
        self._tensors = tensors
        self.where = where
        self.shapes: Mapping[str, Shape] = {
            key: tuple(tensor.shape) for key, tensor in tensors.items()
        }

    def tensor(self, key: str) -> Tensor:
        """The tensor itself, not a copy."""
        return self._tensors[key]

    def copy_into(self, key: str, target: Tensor) -> None:
        """Copy the tensor into `target`, converting to its dtype and device."""
        target.copy_(self._tensors[key])


class _Stored(NamedTuple):
    file: FileIO
    path: Path
    dtype: str
    shape: Shape
    start: int
    size: int


class SafetensorsReader:
    """A reader of one safetensors file or all shards of one checkpoint. Close it after use."""

    def __init__(self, paths: Iterable[Path], where: str) -> None:
        self.where = where
        self._stored: dict[str, _Stored] = {}
        self._files = ExitStack()
        try:
            for path in paths:
                self._open(path)
        except BaseException:
            self.close()
            raise
        self.shapes: Mapping[str, Shape] = {
            key: stored.shape for key, stored in self._stored.items()
        }

    def __enter__(self) -> "SafetensorsReader":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the files."""
        self._files.close()

    def tensor(self, key: str) -> Tensor:
        """Read the tensor into memory of its own."""
        stored = self._stored[key]
        if stored.dtype not in STORED:
            raise WeightsError(
                f"{stored.path}: {key!r} is stored as {stored.dtype}; expected one of "
                f"{', '.join(STORED)} (quantised weights cannot be used)"
            )
        tensor = torch.empty(stored.shape, dtype=STORED[stored.dtype])
        self._read(key, tensor)
        return tensor

    def copy_into(self, key: str, target: Tensor) -> None:
        """Read the tensor into `target`: directly if it is stored just so, else through a copy."""
        direct = target.device.type == "cpu" and target.is_contiguous()
        if direct and STORED.get(self._stored[key].dtype) == target.dtype:
            self._read(key, target)
        else:
            target.copy_(self.tensor(key))

    def _read(self, key: str, target: Tensor) -> None:
        stored = self._stored[key]
        # numpy has no bfloat16, but bytes are bytes.
        memory = target.detach().view(-1).view(torch.uint8).numpy().data
        stored.file.seek(stored.start)
        done = 0
        # One read gives at most 2 GiB.
        while done < stored.size:
            count = stored.file.readinto(memory[done:])
            if not count:
                raise WeightsError(f"{stored.path} ends within {key!r}: it was cut short")
            done += count

    def _open(self, path: Path) -> None:
        from safetensors import SafetensorError, safe_open

        try:
            # Has the whole header checked against the length of the file; reads no weights.
            with safe_open(path, framework="pt"):
                pass
            file = self._files.enter_context(path.open("rb", buffering=0))
        except (SafetensorError, OSError) as error:
            raise WeightsError(
                f"{path} cannot be read as safetensors (cut short or damaged?): {error}"
            ) from error
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        for key, about in header.items():
            if key in self._stored:
                raise WeightsError(f"{path}: {key!r} is also in {self._stored[key].path.name}")
            start, end = about["data_offsets"]
            self._stored[key] = _Stored(
                file, path, about["dtype"], tuple(about["shape"]), 8 + length + start, end - start
            )


def unpickle(path: Path) -> dict[Any, Any]:
    """The state dict in a `.bin` file, opened without running code from it.

    Raises:
        WeightsError: the file is damaged, holds more than weights, or holds no dict.
    """
    import pickle

    try:
        # Files written before torch 1.6 are no zip archives and cannot be mapped.
        mapped = zipfile.is_zipfile(path)
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path} is damaged, or holds more than weights and is not opened, as that could run "
            f"any code: {str(error).splitlines()[0]}"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise WeightsError(f"{path} cannot be read (cut short or damaged?): {error}") from error
    if not isinstance(state, dict):
        raise WeightsError(f"{path} must hold a state dict, holds a {type(state).__name__}")
    return state
