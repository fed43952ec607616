"""From what a user calls a model to the files of it on this disk.

A source is `"mini"` (the model that comes with the package), a local folder, or the id of a
repository on the Hugging Face Hub. What is in the Hub's local cache is used without asking the
network.
"""

import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from hooks.names import nearest

MINI = "mini"
# Ids by which the published GPT-2s are known -> the same repository's other id.
_SAME_REPOSITORY = {
    "gpt2": "openai-community/gpt2",
    "gpt2-medium": "openai-community/gpt2-medium",
    "gpt2-large": "openai-community/gpt2-large",
    "gpt2-xl": "openai-community/gpt2-xl",
    "distilgpt2": "distilbert/distilgpt2",
}
# What TransformerLens calls them, where that is no id of the Hub.
_OTHER_NAMES = {"gpt2-small": "gpt2"}
KNOWN = (MINI, *_SAME_REPOSITORY, *_SAME_REPOSITORY.values())
_OTHER_ID = _SAME_REPOSITORY | {there: here for here, there in _SAME_REPOSITORY.items()}

_CONFIG = "config.json"
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
# Either the first alone or the other two together say how text becomes tokens.
_TOKENIZER = (("tokenizer.json",), ("vocab.json", "merges.txt"))
# Which tokens are special; not every checkpoint has them.
_TOKENIZER_EXTRAS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


class SourceError(ValueError):
    """A model that cannot be found or fetched, or a folder that lacks files."""


@dataclass(frozen=True)
class Files:
    """The files of one checkpoint, all in one folder on this disk.

    Attributes:
        name: the source as the user gave it.
        origin: `"bundled"`, `"folder"` or `"hub"`.
        folder: where the files are.
        config: `config.json`.
        weights: one file, or all shards.
        tokenizer: `tokenizer.json`, or `vocab.json` and `merges.txt`; empty when the checkpoint
            has none.
    """

    name: str
    origin: str
    folder: Path
    config: Path
    weights: tuple[Path, ...]
    tokenizer: tuple[Path, ...]


def resolve(source: str | PathLike[str], revision: str | None = None) -> Files:
    """Find the files of a model, downloading what is missing only for a Hub id not yet cached.

    An existing local folder goes before a repository of the same name, as in `transformers`;
    `"mini"` is always the bundled model (`"./mini"` is the folder).

    Args:
        source: `"mini"`, a folder, or a Hub id such as `"gpt2"`.
        revision: branch, tag or commit on the Hub; `main` when left out.

    Raises:
        SourceError: in one line, what was looked for and why it is not there.
    """
    if not isinstance(source, str | PathLike):
        raise TypeError(
            "a model source is a name, a folder or a transformers model, "
            f"got {type(source).__name__}"
        )
    name = os.fspath(source)
    if not name.strip():
        raise SourceError(
            "the name of the model is empty; expected e.g. 'gpt2', 'mini' or a folder"
        )
    if name == MINI:
        _refuse_revision(name, revision, "the bundled model has only one")
        folder = Path(__file__).parent / MINI
        if not (folder / _CONFIG).is_file():
            raise SourceError(f"the bundled model is missing from this installation ({folder})")
        return _in_folder(folder, name, "bundled")
    path = Path(name).expanduser()
    if path.is_dir():
        _refuse_revision(name, revision, f"{path} is a local folder")
        return _in_folder(path, name, "folder")
    if path.exists():
        raise SourceError(f"{name} is a file; give the folder that holds {_CONFIG} and the weights")
    if _looks_like_path(source):
        raise SourceError(f"no such folder: {name}{_nearest_sibling(path)}")
    if not _HUB_ID.fullmatch(name):
        raise SourceError(
            f"{name!r} is neither an existing folder nor a Hugging Face id{_hint(name)}"
        )
    return _on_hub(_OTHER_NAMES.get(name, name), revision)


def is_cached(repo_id: str, revision: str | None = None) -> bool:
    """Whether config, weights and tokenizer are in the cache: `resolve` needs no network."""
    files = _in_cache(repo_id, revision)
    return files is not None and (
        bool(files.tokenizer) or _known_without_tokenizer(files, revision)
    )


def hub_answers(repo_id: str, timeout_s: float = 3.0) -> bool:
    """Whether the Hub says, within `timeout_s` seconds in all, that it has `repo_id`."""
    import queue
    import threading

    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url

    if constants.HF_HUB_OFFLINE:
        return False
    answers: queue.SimpleQueue[bool] = queue.SimpleQueue()

    def ask() -> None:
        try:
            get_hf_file_metadata(hf_hub_url(repo_id, _CONFIG), timeout=timeout_s)
        except Exception:
            answers.put(False)
        else:
            answers.put(True)

    # The timeout of a request does not cover the look-up of the name, which can hang for longer.
    threading.Thread(target=ask, daemon=True).start()
    try:
        return answers.get(timeout=timeout_s)
    except queue.Empty:
        return False


# ------------------------------------------------------------------ in a folder


def weight_files(folder: Path) -> tuple[Path, ...]:
    """The file of weights in `folder`, or all its shards; safetensors before pickles.

    Raises:
        SourceError: no such folder, none of the files, or an index with a shard missing.
    """
    if not folder.is_dir():
        raise SourceError(f"no such folder: {folder}")
    for file in _WEIGHTS:
        if (folder / file).is_file():
            return (folder / file,)
        index = folder / f"{file}.index.json"
        if index.is_file():
            shards = tuple(folder / shard for shard in _shards(index))
            missing = [shard.name for shard in shards if not shard.is_file()]
            if missing:
                raise SourceError(f"{folder} lacks {', '.join(missing)}, named in {index.name}")
            return shards
    there = sorted(entry.name for entry in folder.iterdir())
    raise SourceError(
        f"{folder} has no weights: expected {' or '.join(_WEIGHTS)} (or shards with an index), "
        f"found {', '.join(there) or 'nothing'}"
    )


def tokenizer_files(folder: Path) -> tuple[Path, ...]:
    """The files in `folder` that define a tokenizer, or an empty tuple."""
    for files in _TOKENIZER:
        if all((folder / file).is_file() for file in files):
            return tuple(folder / file for file in files)
    return ()


def tokenizer_folder(source: str) -> Path | None:
    """The folder with the tokenizer of a folder or cached Hub id; None, and no network, without."""
    if source and Path(source).is_dir():
        folder = Path(source)
    elif _HUB_ID.fullmatch(source) and (cached := _in_cache(source, None)):
        folder = cached.folder
    else:
        return None
    return folder if tokenizer_files(folder) else None


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        SourceError: the file is not JSON, or holds something else.
    """
    try:
        content = json.loads(file.read_text("utf-8"))
    except ValueError as error:
        raise SourceError(f"{file} is not JSON (cut short or damaged?): {error}") from error
    if not isinstance(content, dict):
        raise SourceError(f"{file} must hold a JSON object, holds a {type(content).__name__}")
    return content


def _in_folder(folder: Path, name: str, origin: str) -> Files:
    config = folder / _CONFIG
    if not config.is_file():
        there = sorted(entry.name for entry in folder.iterdir())
        taken = " (a local folder goes before a Hub id)" if name in _OTHER_ID else ""
        raise SourceError(
            f"{folder} has no {_CONFIG}{taken}; it holds {', '.join(there) or 'nothing'}"
        )
    return Files(name, origin, folder, config, weight_files(folder), tokenizer_files(folder))


def _shards(index: Path) -> list[str]:
    weight_map = read_json(index).get("weight_map")
    shards = list(weight_map.values()) if isinstance(weight_map, dict) else []
    # An index is data from elsewhere: it must not lead out of its folder.
    bad = [shard for shard in shards if not isinstance(shard, str) or Path(shard).name != shard]
    if bad or not shards:
        raise SourceError(f"{index} must name files beside it, names {bad or 'none'}")
    return sorted(set(shards))


def _refuse_revision(name: str, revision: str | None, why: str) -> None:
    if revision is not None:
        raise SourceError(f"revision={revision!r} cannot be used with {name!r}: {why}")


def _looks_like_path(source: str | PathLike[str]) -> bool:
    if not isinstance(source, str):
        return True
    return (
        source.startswith((".", "/", "~"))
        or source.endswith(("/", ".safetensors", ".bin", ".pt", ".json"))
        or source.count("/") > 1
        or "\\" in source
    )


def _nearest_sibling(path: Path) -> str:
    parent = path.parent
    if not parent.is_dir():
        return f" (nor is there a folder {parent})"
    return nearest(path.name, [entry.name for entry in parent.iterdir() if entry.is_dir()])


# ------------------------------------------------------------------ on the Hub


def _hint(name: str) -> str:
    return nearest(name.lower(), KNOWN) if name not in KNOWN else ""


def _lookup(repo_id: str, revision: str | None) -> Callable[[str], Path | None]:
    """A function from a file's name to its path in the Hub's cache, or None."""
    from huggingface_hub import try_to_load_from_cache

    def find(file: str) -> Path | None:
        found = try_to_load_from_cache(repo_id, file, revision=revision)
        return Path(found) if isinstance(found, str) else None

    return find


def _in_cache(repo_id: str, revision: str | None) -> Files | None:
    """The cached files under either id of the repository, if config and all weights are there."""
    for alias in filter(None, (repo_id, _OTHER_ID.get(repo_id))):
        find = _lookup(alias, revision)
        config = find(_CONFIG)
        if config is None:
            continue
        try:
            return _in_folder(config.parent, repo_id, "hub")
        except SourceError:
            continue
    return None


def _known_without_tokenizer(files: Files, revision: str | None) -> bool:
    """Whether the cache has noted that the repository has no tokenizer files."""
    # .../models--gpt2/snapshots/<commit>: what a commit lacks is noted beside the snapshots.
    noted = files.folder.parents[1] / ".no_exist" / files.folder.name
    return all(any((noted / file).is_file() for file in group) for group in _TOKENIZER)


def _on_hub(repo_id: str, revision: str | None) -> Files:
    cached = _in_cache(repo_id, revision)
    if cached and (cached.tokenizer or _known_without_tokenizer(cached, revision)):
        return cached
    try:
        return _download(repo_id, revision)
    except SourceError:
        if cached is None:
            raise
        # Weights without tokenizer files still run on tokens; giving text says what is missing.
        return cached


def _download(repo_id: str, revision: str | None) -> Files:
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
    )

    try:
        # Asked once, without the downloader's half minute of retries when there is no network.
        get_hf_file_metadata(hf_hub_url(repo_id, _CONFIG, revision=revision))
    except HfHubHTTPError as error:
        # A Hub that is busy, or only lacks this file, is the downloader's business.
        if error.response.status_code < 500 and not isinstance(error, EntryNotFoundError):
            raise SourceError(_why_not(repo_id, revision, error)) from error
    except Exception as error:
        raise SourceError(_why_not(repo_id, revision, error)) from error
    commit = revision

    def fetch(file: str) -> Path | None:
        """The local path of a file, fetched if need be, or None when the repository lacks it."""
        try:
            return Path(hf_hub_download(repo_id, file, revision=commit))
        except LocalEntryNotFoundError:
            raise
        except EntryNotFoundError:
            return None

    try:
        config = fetch(_CONFIG)
        if config is None:
            raise SourceError(f"{repo_id} on the Hugging Face Hub has no {_CONFIG}{_hint(repo_id)}")
        # Should the branch move between two requests, config and weights still belong together.
        commit = config.parent.name
        if not any(_fetch_weights(fetch, file) for file in _WEIGHTS):
            raise SourceError(
                f"{repo_id} on the Hugging Face Hub has none of {', '.join(_WEIGHTS)}"
            )
        if not any(all(fetch(file) for file in group) for group in _TOKENIZER):
            return _in_folder(config.parent, repo_id, "hub")
        for file in _TOKENIZER_EXTRAS:
            fetch(file)
    except SourceError:
        raise
    except Exception as error:
        raise SourceError(_why_not(repo_id, revision, error)) from error
    return _in_folder(config.parent, repo_id, "hub")


def _fetch_weights(fetch: Callable[[str], Path | None], file: str) -> bool:
    if fetch(file):
        return True
    index = fetch(f"{file}.index.json")
    if index is None:
        return False
    for shard in _shards(index):
        if fetch(shard) is None:
            raise SourceError(f"{index.name} names {shard}, which the repository lacks")
    return True


def _why_not(repo_id: str, revision: str | None, error: Exception) -> str:
    """One line on why a repository could not be fetched."""
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        return (
            f"{repo_id} on the Hugging Face Hub is gated: ask for access at "
            f"https://huggingface.co/{repo_id} and log in with `hf auth login`"
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            f"no folder {repo_id!r} here and no such model on the Hugging Face Hub "
            f"(or it is private and you are not logged in).{_hint(repo_id)}"
        ).removesuffix(".")
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{repo_id} on the Hugging Face Hub has no revision {revision!r}"
    cause = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    reason = (str(cause) or type(cause).__name__).strip().splitlines()[0]
    at = "" if revision is None else f" at revision {revision!r}"
    return (
        f"{repo_id}{at} is neither a folder here nor in the local Hugging Face cache, and the Hub "
        f"cannot be reached ({reason}).{_hint(repo_id)} The bundled model {MINI!r} needs no network"
    )
