"""Templates put together from parts, for training texts of the tasks; none of them is held out.

Twenty templates can be learnt by heart; what holds for thousands of combinations must be learnt as
a rule.
"""

import random
from collections.abc import Callable


def _parts(text: str) -> tuple[str, ...]:
    return tuple(part.strip(" \n") for part in text.split("|"))


_IOI_STARTS = _parts(
    """Later | In summer | At noon, | That night | One morning | On Monday | Again | At last | Soon
    | As | If | Although | So | In the end | Often | Today | There, | After a while"""
)
_IOI_PLACES = _parts(
    """came to | ran to | stood in | sat near | looked at | played in | slept in | rested at | found
    | saw | cleaned | hid behind | waited in | worked in | lived in | hurried to | had lunch at
    | were tired of | got to | returned to | fell asleep in | drove to"""
)
_IOI_LINKS = _parts(
    """, and |. Then |. Later |, so |, but |. There |, while |. Soon |, when |. |, before
    |, because |. After that, |. In the evening |, until"""
)
_IOI_GIVES = _parts(
    """gave the {OBJECT} to | gave a {OBJECT} to | passed the {OBJECT} to | sold a {OBJECT} to
    | brought a {OBJECT} to | sent the {OBJECT} to | lent the {OBJECT} to | threw a {OBJECT} to
    | carried a {OBJECT} to | offered the {OBJECT} to | made a {OBJECT} for | found a {OBJECT} for
    | kept the {OBJECT} for | took the {OBJECT} from | hoped to give a {OBJECT} to
    | wrote about the {OBJECT} to"""
)
_AGREEMENT_STARTS = _parts(
    """The | But the | Now the | Perhaps the | I know that the | It seems that the | So the
    | She thought that the | Then the | Do you see that the | He was told that the | Today the
    | The big | The young | You say that the | They hope that the | He said that the | Once the
    | He knew that the | He heard that the | I told him that the | We see that the"""
)
_AGREEMENT_LINKS = _parts(
    """on | at | from | in | around | inside | outside | against | among | along | past | for
    | about | of | opposite | below | at the side of | on top of | far from | before | at the end of
    | that belonged to | not far from | on the other side of | without | like | between | after
    | towards | within | over | up | down | to the right of"""
)


def ioi(rng: random.Random) -> str:
    """An IOI template, in one of the two orders of names."""
    first, second = rng.choice((("IO", "S1"), ("S1", "IO")))
    start, place = rng.choice(_IOI_STARTS), rng.choice(_IOI_PLACES)
    link, give = rng.choice(_IOI_LINKS), rng.choice(_IOI_GIVES)
    return f"{start} {{{first}}} and {{{second}}} {place} the {{PLACE}}{link} {{S2}} {give}"


def agreement(rng: random.Random) -> str:
    """An agreement template."""
    start, link = rng.choice(_AGREEMENT_STARTS), rng.choice(_AGREEMENT_LINKS)
    return f"{start} {{SUBJECT}} {link} the {{ATTRACTOR}}"


MORE_TEMPLATES: dict[str, Callable[[random.Random], str]] = {"ioi": ioi, "agreement": agreement}
