"""Beam search."""

from interp.generation import Generation
from interp.plan import Plan


def beam_search(plan: Plan) -> Generation:
    raise NotImplementedError
