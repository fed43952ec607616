"""Where in a model the logit lens looks."""

from typing import NamedTuple

# In order of the forward pass.
POINTS = ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post")
RESIDUAL = ("resid_pre", "resid_mid", "resid_post")


class LensPoint(NamedTuple):
    """Where in the model the lens looks.

    Attributes:
        layer: block, from 0.
        point: one of `POINTS`.
    """

    layer: int
    point: str

    def __str__(self) -> str:
        return f"{self.layer}.{self.point}"

    @property
    def hook(self) -> str:
        """The full name of the hook point."""
        return f"blocks.{self.layer}.hook_{self.point}"
