"""Edits in files: safetensors for what they hold, JSON in its header for what they say.

    save_edits("edits.safetensors", edits)
    edits = load_edits("edits.safetensors")

What several edits share is stored once: a tensor, or the run (`ActivationCache`) that values are
taken from, of which only the points that the edits use are kept. Loaded, it is shared again.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hooks.cache import ActivationCache
from hooks.edits import Ablate, Add, Edit, Intervention, Patch, Scale
from hooks.names import UnknownHookName
from hooks.when import NewTokens, PromptTokens, Steps, When

_KINDS: Mapping[str, type[Edit]] = {kind.__name__: kind for kind in (Patch, Ablate, Scale, Add)}
_WHENS: Mapping[str, type[When]] = {
    kind.__name__: kind for kind in (PromptTokens, NewTokens, Steps)
}
_HEADER = "hooked_gpt2_edits"


def save_edits(path: str | PathLike[str], edits: Sequence[Intervention]) -> None:
    """Write interventions to a safetensors file that `load_edits` reads back the same.

    Args:
        edits: edits, or lists of edits applied together.

    Raises:
        FileNotFoundError: the folder does not exist.
        UnknownHookName: the source of an edit has not kept its point.
        TypeError: something that is no edit, or of a class of one's own.
    """
    packed = Packed()
    about = {"edits": packed.add(edits), "caches": packed.caches()}
    write(path, _HEADER, packed.tensors, about)


def load_edits(
    path: str | PathLike[str], device: str | torch.device = "cpu"
) -> list[Edit | tuple[Edit, ...]]:
    """Read the interventions that `save_edits` wrote; edits applied together as a tuple.

    Sources are loaded onto `device`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no file that `save_edits` wrote.
    """
    with reading(path, _HEADER, "edits", device) as (about, tensors):
        return unpack(about["edits"], about["caches"], tensors)


# ------------------------------------------------------------------ to plain data and tensors


@dataclass
class Packed:
    """Edits on their way into a file.

    Attributes:
        tensors: what goes into the file, by key; may hold more, under keys of the caller's.
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    # By identity, next to what keeps the identity from becoming another's.
    _keys: dict[int, tuple[Tensor, str]] = field(default_factory=dict)
    _contents: dict[tuple, str] = field(default_factory=dict)
    _sources: dict[int, tuple[ActivationCache, int, set[str]]] = field(default_factory=dict)

    def add(self, edits: Sequence[Intervention]) -> list[Any]:
        """Interventions as plain data, that refers to tensors and caches by key."""
        return [
            self._edit(one) if isinstance(one, Edit) else [self._edit(edit) for edit in one]
            for one in edits
        ]

    def caches(self) -> list[dict[str, Any]]:
        """The runs that edits take values from, at the points used, as plain data. Call last."""
        found = []
        for cache, _, names in self._sources.values():
            about = {
                "tensors": {
                    name: [self._tensor(cache.tensors[name]), list(cache.axes[name])]
                    for name in cache.tensors
                    if name in names
                },
                "str_tokens": cache.str_tokens and [list(row) for row in cache.str_tokens],
                "prepend_bos": cache.prepend_bos,
                "n_layers": cache.n_layers,
                "partial": cache.partial,
            }
            for name in ("tokens", "attention_mask"):
                value = getattr(cache, name)
                about[name] = None if value is None else self._tensor(value)
            found.append(about)
        return found

    def _edit(self, edit: Edit) -> dict[str, Any]:
        if type(edit) not in _KINDS.values():
            raise TypeError(f"only Patch, Ablate, Scale and Add can be saved, not {edit!r}.")
        about: dict[str, Any] = {"edit": type(edit).__name__}
        for one in fields(edit):
            value = getattr(edit, one.name)
            if value is not None:
                about[one.name] = self._value(edit, value)
        return about

    def _value(self, edit: Edit, value: Any) -> Any:
        if isinstance(value, Tensor):
            return {"tensor": self._tensor(value)}
        if isinstance(value, ActivationCache):
            return {"cache": self._source(edit, value)}
        if isinstance(value, tuple):
            return {"tuple": list(value)}
        if isinstance(value, When):
            return {"when": type(value).__name__, **asdict(value)}
        return value

    def _source(self, edit: Edit, cache: ActivationCache) -> int:
        _, number, names = self._sources.setdefault(id(cache), (cache, len(self._sources), set()))
        try:
            names.add(cache.full_name(edit.point))
        except UnknownHookName as error:
            raise UnknownHookName(f"{edit!r}: its source has not kept the point: {error}") from None
        return number

    def _tensor(self, value: Tensor) -> str:
        if id(value) not in self._keys:
            # Contiguous memory of its own: the format knows no views.
            held = value.detach().to("cpu", copy=True).contiguous()
            # bfloat16 is no type of numpy, bytes are.
            content = hashlib.sha256(held.reshape(-1).view(torch.uint8).numpy().data).digest()
            same = (held.dtype, tuple(held.shape), content)
            if same not in self._contents:
                self._contents[same] = f"edits.{len(self._contents)}"
                self.tensors[self._contents[same]] = held
            self._keys[id(value)] = (value, self._contents[same])
        return self._keys[id(value)][1]


def unpack(edits: list[Any], caches: list[Any], tensors: Mapping[str, Tensor]) -> list[Any]:
    """The interventions that `Packed` made plain data of."""
    runs = [
        ActivationCache(
            tensors={name: tensors[key] for name, (key, _) in about["tensors"].items()},
            axes={name: tuple(axes) for name, (_, axes) in about["tensors"].items()},
            tokens=_optional(tensors, about["tokens"]),
            attention_mask=_optional(tensors, about["attention_mask"]),
            str_tokens=about["str_tokens"],
            prepend_bos=about["prepend_bos"],
            n_layers=about["n_layers"],
            partial=about.get("partial", False),
        )
        for about in caches
    ]

    def value(given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        if "when" in given:
            return _WHENS[given["when"]](**{n: v for n, v in given.items() if n != "when"})
        if "tensor" in given:
            return tensors[given["tensor"]]
        return runs[given["cache"]] if "cache" in given else tuple(given["tuple"])

    def edit(about: dict[str, Any]) -> Edit:
        return _KINDS[about["edit"]](**{n: value(v) for n, v in about.items() if n != "edit"})

    return [edit(one) if isinstance(one, dict) else tuple(map(edit, one)) for one in edits]


def _optional(tensors: Mapping[str, Tensor], key: str | None) -> Tensor | None:
    return None if key is None else tensors[key]


# ------------------------------------------------------------------ files


def write(
    path: str | PathLike[str], header: str, tensors: Mapping[str, Tensor], about: Mapping[str, Any]
) -> None:
    """Write tensors, and `about` as JSON in the header under the name `header`.

    Raises:
        FileNotFoundError: the folder does not exist.
    """
    from safetensors.torch import save_file

    if not Path(path).absolute().parent.is_dir():
        raise FileNotFoundError(f"there is no folder {str(Path(path).parent)!r} to save in.")
    save_file(dict(tensors), path, metadata={header: json.dumps(about)})


@contextmanager
def reading(
    path: str | PathLike[str], header: str, what: str, device: str | torch.device = "cpu"
) -> Iterator[tuple[dict[str, Any], dict[str, Tensor]]]:
    """What `write` wrote: `about` and the tensors, on `device`. What the block finds wrong with
    them is raised as ValueError.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no such file.
    """
    from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no file {str(path)!r} to load {what} from.")
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            metadata = file.metadata() or {}
            if header not in metadata:
                raise ValueError(f"it holds {', '.join(metadata) or 'nothing but tensors'}")
            tensors = {n: file.get_tensor(n) for n in file.keys()}  # noqa: SIM118 (no mapping)
        yield json.loads(metadata[header]), tensors
    except (SafetensorError, KeyError, ValueError, TypeError, IndexError) as error:
        raise ValueError(f"{str(path)!r} holds no saved {what}: {error}") from error
