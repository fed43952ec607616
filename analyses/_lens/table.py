"""The numbers of a logit lens as tables and plain data."""

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

    from analyses.logit_lens import LogitLens

WHERE = ("batch", "layer", "point", "hook", "same_as", "position", "token_id", "token")


def rows(lens: "LogitLens") -> Iterator[dict[str, Any]]:
    """See `LogitLens.rows`."""
    names = ("top_tokens", "top_log_probs", "entropy", "kl_final_lens")
    of_targets = ("target_log_probs", "target_ranks")
    numbers = {name: getattr(lens, name).tolist() for name in (*names, *of_targets)}
    for index, point in enumerate(lens.points):
        same = lens.same_as.get(point)
        for batch, positions in enumerate(lens.position.tolist()):
            for slot, position in enumerate(positions):
                if position < 0:
                    continue
                here = {name: values[index][batch][slot] for name, values in numbers.items()}
                id = lens.tokens[batch][position]
                yield {
                    "batch": batch,
                    "layer": point.layer,
                    "point": point.point,
                    "hook": point.hook,
                    "same_as": same.hook if same else "",
                    "position": position,
                    "token_id": id,
                    "token": lens.strings[id],
                    "entropy": here["entropy"],
                    "kl_final_lens": here["kl_final_lens"],
                    "top": [
                        {"id": t, "token": lens.strings[t], "prob": math.exp(p), "log_prob": p}
                        for t, p in zip(here["top_tokens"], here["top_log_probs"], strict=True)
                    ],
                    "targets": [
                        {"id": t, "token": lens.strings[t], "log_prob": p, "rank": r}
                        for t, p, r in zip(
                            lens.targets,
                            here["target_log_probs"],
                            here["target_ranks"],
                            strict=True,
                        )
                    ],
                }


def frame(lens: "LogitLens") -> "pd.DataFrame":
    """See `LogitLens.to_frame`."""
    import pandas as pd

    def records() -> Iterator[tuple[Any, ...]]:
        for row in rows(lens):
            where = tuple(row[column] for column in WHERE)
            for quantity in ("entropy", "kl_final_lens"):
                yield *where, quantity, None, None, None, row[quantity]
            for k, top in enumerate(row["top"]):
                for quantity in ("prob", "log_prob"):
                    yield *where, quantity, k, top["id"], top["token"], top[quantity]
            for target in row["targets"]:
                for quantity in ("log_prob", "rank"):
                    what = (f"target_{quantity}", None, target["id"], target["token"])
                    yield *where, *what, target[quantity]

    columns = [*WHERE, "quantity", "k", "predicted_id", "predicted", "value"]
    frame = pd.DataFrame.from_records(list(records()), columns=columns)
    return frame.astype({"k": "Int64", "predicted_id": "Int64", "value": "float64"})
