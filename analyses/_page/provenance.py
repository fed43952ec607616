"""Where the numbers of a result come from."""

import hashlib
import platform
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from interp import HookedGPT2


@dataclass(frozen=True)
class Provenance:
    """What one needs to know to get the same numbers again.

    Attributes:
        model: the model's name.
        dtype, device: what it was computed in, and where.
        call: the command or the function call.
        versions: of Python and the packages that matter.
        weights_sha256: see `weights_sha256`; None where nobody asked for it.
    """

    model: str
    dtype: str
    device: str
    call: str
    versions: Mapping[str, str]
    weights_sha256: str | None = None

    @classmethod
    def of(cls, model: "HookedGPT2", call: str) -> "Provenance":
        """The provenance of a result of `model`, without the hash of its weights."""
        return cls(
            model=str(model.cfg.model_name),
            dtype=str(model.dtype).removeprefix("torch."),
            device=str(model.device),
            call=call,
            versions={"python": platform.python_version()}
            | {name: package_version(name) for name in ("hooked-gpt2", "torch", "plotly")},
        )

    def with_weights(self, model: "HookedGPT2", call: str | None = None) -> "Provenance":
        """The same with the hash of the weights of `model` (it reads all of them once), and with
        another call where one is given."""
        return replace(self, weights_sha256=weights_sha256(model), call=call or self.call)

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "model": self.model,
            "weights_sha256": self.weights_sha256,
            "dtype": self.dtype,
            "device": self.device,
            "call": self.call,
            "versions": dict(self.versions),
        }


def weights_sha256(model: "HookedGPT2") -> str:
    """A hash of the weights as they are used: names, shapes, dtypes and bytes of all parameters.

    Equal for equal weights wherever they came from; different after an edit, or in another dtype.
    It is not the hash of the checkpoint's file.
    """
    import torch

    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        values = parameter.detach().cpu().contiguous()
        digest.update(f"{name} {values.dtype} {tuple(values.shape)}\n".encode())
        digest.update(values.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def package_version(package: str) -> str:
    """The version of an installed package, in words."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed (run from its source tree)"
