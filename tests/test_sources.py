"""From a name to files: folders, the Hub's cache without network, a make-believe Hub, errors."""

import json
import socket
import time
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants, errors
from safetensors.torch import save_file

from interp import sources, weights
from interp.config import HookedGPT2Config
from interp.sources import SourceError

COMMIT = "0123456789abcdef0123456789abcdef01234567"
CFG = HookedGPT2Config(n_layers=1, d_model=4, n_heads=2, n_ctx=8, d_vocab=300)


def tokenizer_json() -> str:
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers

    letters = ["<|endoftext|>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    backend = tokenizers.Tokenizer(models.BPE({c: i for i, c in enumerate(letters)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<|endoftext|>"])
    return backend.to_str()


def write_model(folder: Path, *, shards: bool = False, suffix: str = "safetensors") -> None:
    """A checkpoint in Hugging Face's layout, with a tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    parameters = weights.allocate(CFG)
    weights.initialise(parameters, CFG)
    state = {
        f"h.0.{name}" if value.dim() > 1 and not name.startswith("w") else name: value
        for name, value in parameters.items()
    }
    state = {
        f"{key}.weight" if key in ("wte", "wpe") else key: (value[0] if "h.0" in key else value)
        for key, value in state.items()
    }
    state = {key: value.clone() for key, value in state.items()}
    (folder / "config.json").write_text(json.dumps(CFG.to_hf()))
    (folder / "tokenizer.json").write_text(tokenizer_json())
    if suffix == "bin":
        torch.save(state, folder / "pytorch_model.bin")
    elif not shards:
        save_file(state, folder / "model.safetensors")
    else:
        names = [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
        parts = [dict(list(state.items())[half::2]) for half in (0, 1)]
        for name, part in zip(names, parts, strict=True):
            save_file(part, folder / name)
        index = {key: name for name, part in zip(names, parts, strict=True) for key in part}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """An empty cache of the Hub, and no network at all."""
    folder = tmp_path / "hub"
    folder.mkdir()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)

    def forbidden(*_: object, **__: object) -> None:
        raise OSError("Network is unreachable")

    monkeypatch.setattr(socket.socket, "connect", forbidden)
    monkeypatch.setattr(socket, "getaddrinfo", forbidden)
    monkeypatch.chdir(tmp_path)
    return folder


def cached(cache: Path, repo_id: str, revision: str = "main", commit: str = COMMIT) -> Path:
    """The folder of a snapshot in the cache, as the Hub's client lays it out."""
    repo = cache / f"models--{repo_id.replace('/', '--')}"
    (repo / "refs").mkdir(parents=True, exist_ok=True)
    (repo / "refs" / revision).write_text(commit)
    snapshot = repo / "snapshots" / commit
    snapshot.mkdir(parents=True, exist_ok=True)
    return snapshot


@pytest.fixture
def asked(monkeypatch) -> list[str]:
    """What was asked of the network."""
    asked: list[str] = []

    def refuse(*given: Any, **_: Any) -> None:
        asked.append(str(given))
        raise AssertionError(f"the network was asked for {given}")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", refuse)
    return asked


# ---------------------------------------------------------------- folders


@pytest.mark.parametrize("form", [str, Path, lambda folder: f"{folder}/"])
def test_a_folder(cache, asked, tmp_path, form):
    folder = tmp_path / "mine"
    write_model(folder)
    files = sources.resolve(form(folder))
    assert files.origin == "folder"
    assert files.config == folder / "config.json"
    assert files.weights == (folder / "model.safetensors",)
    assert files.tokenizer == (folder / "tokenizer.json",)
    assert not asked


def test_a_relative_folder_goes_before_the_hub(cache, asked, tmp_path):
    write_model(tmp_path / "gpt2")
    write_model(cached(cache, "gpt2"))
    assert sources.resolve("gpt2").origin == "folder"
    assert sources.resolve("./gpt2").origin == "folder"


def test_home_is_expanded(cache, asked, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_model(tmp_path / "mine")
    assert sources.resolve("~/mine").folder == tmp_path / "mine"


def test_a_folder_without_tokenizer(cache, tmp_path):
    write_model(tmp_path / "mine")
    (tmp_path / "mine" / "tokenizer.json").unlink()
    assert sources.resolve("./mine").tokenizer == ()
    loaded = weights.load("./mine")
    assert (loaded.tokenizer, loaded.cfg.d_model) == (None, 4)
    (tmp_path / "mine" / "vocab.json").touch()
    assert sources.resolve("./mine").tokenizer == ()
    (tmp_path / "mine" / "merges.txt").touch()
    assert [f.name for f in sources.resolve("./mine").tokenizer] == ["vocab.json", "merges.txt"]


def test_shards_in_a_folder(cache, tmp_path):
    write_model(tmp_path / "mine", shards=True)
    names = [file.name for file in sources.resolve("./mine").weights]
    assert names == [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]


def test_load(cache, tmp_path):
    write_model(tmp_path / "mine")
    loaded = weights.load(tmp_path / "mine", dtype="float64")
    assert loaded.cfg.model_name == str(tmp_path / "mine")
    assert loaded.parameters["wte"].dtype == torch.float64
    assert loaded.tokenizer is not None
    assert loaded.tokenizer.d_vocab == 300
    assert loaded.tokenizer.to_string(loaded.tokenizer.to_tokens("hé")) == ["<|endoftext|>hé"]


def test_load_a_model_object_with_the_tokenizer_it_came_with(cache, asked, tmp_path):
    from transformers import GPT2Config, GPT2LMHeadModel

    write_model(tmp_path / "mine")
    model = GPT2LMHeadModel.from_pretrained(tmp_path / "mine")
    assert weights.load(model).tokenizer is not None
    snapshot = cached(cache, "some/one")
    write_model(snapshot)
    model.config.name_or_path = "some/one"
    assert weights.load(model).tokenizer is not None
    model.config.name_or_path = "some/other"
    assert weights.load(model).tokenizer is None
    fresh = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=4, n_head=2, vocab_size=9, n_positions=4))
    assert weights.load(fresh).tokenizer is None
    with pytest.raises(SourceError, match="revision='v1' cannot be used with a model object"):
        weights.load(fresh, revision="v1")
    assert not asked


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("", "the name of the model is empty"),
        ("   ", "the name of the model is empty"),
        ("./nowhere", "no such folder: ./nowhere"),
        ("./mien", r"no such folder: ./mien Did you mean 'mine'\?"),
        ("/no/such/place", r"no such folder: /no/such/place \(nor is there a folder /no/such\)"),
        ("~/nowhere", "no such folder: ~/nowhere"),
        ("nowhere/", "no such folder: nowhere/"),
        ("a/b/c", "no such folder: a/b/c"),
        (Path("gpt2"), "no such folder: gpt2"),
        ("C:\\models\\gpt2", "no such folder: C:"),
        ("model.safetensors", "no such folder: model.safetensors"),
        ("gpt 2", r"'gpt 2' is neither an existing folder nor a Hugging Face id.* 'gpt2'\?"),
        ("-gpt2", "'-gpt2' is neither"),
        ("mine/config.json", "is a file; give the folder that holds config.json"),
        ("empty", "empty has no config.json; it holds nothing"),
        ("half", r"half has no weights: expected model.safetensors or .* found config.json"),
        ("distilgpt2", r"distilgpt2 has no config.json \(a local folder goes before a Hub id\)"),
    ],
)
def test_places_without_a_model(cache, asked, tmp_path, source, message):
    write_model(tmp_path / "mine")
    for name in ("empty", "half", "distilgpt2"):
        (tmp_path / name).mkdir()
    (tmp_path / "half" / "config.json").write_text("{}")
    with pytest.raises(SourceError, match=message) as caught:
        sources.resolve(source)
    assert "\n" not in str(caught.value)
    assert not asked


def test_a_damaged_config(cache, tmp_path):
    write_model(tmp_path / "mine")
    config = tmp_path / "mine" / "config.json"
    for content, message in (("{", "is not JSON"), ("[]", "must hold a JSON object"), ("\xff", "")):
        config.write_bytes(content.encode("latin-1"))
        with pytest.raises(SourceError, match=rf"{config} {message}"):
            weights.load(tmp_path / "mine")


def test_revisions_are_the_hubs(cache, tmp_path):
    write_model(tmp_path / "mine")
    with pytest.raises(SourceError, match=r"revision='v1' cannot be used with './mine'"):
        sources.resolve("./mine", "v1")
    with pytest.raises(SourceError, match=r"revision='v1' cannot be used with 'mini'"):
        sources.resolve("mini", "v1")


def test_the_bundled_model(cache, asked, tmp_path, monkeypatch):
    package = tmp_path / "package"
    monkeypatch.setattr(sources, "__file__", str(package / "sources.py"))
    with pytest.raises(SourceError, match="bundled model is missing from this installation"):
        sources.resolve("mini")
    write_model(package / "mini")
    write_model(tmp_path / "mini")
    assert sources.resolve("mini").folder == package / "mini"
    assert sources.resolve("mini").origin == "bundled"
    assert sources.resolve("./mini").origin == "folder"
    assert not asked


# ---------------------------------------------------------------- the cache


@pytest.mark.parametrize("shards", [False, True])
@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_a_cached_id_needs_no_network(cache, asked, shards, suffix):
    snapshot = cached(cache, "some-one/a.model_1")
    write_model(snapshot, shards=shards, suffix=suffix)
    files = sources.resolve("some-one/a.model_1")
    assert (files.origin, files.folder, files.name) == ("hub", snapshot, "some-one/a.model_1")
    assert sources.is_cached("some-one/a.model_1")
    assert weights.load("some-one/a.model_1").tokenizer is not None
    assert not asked


def test_files_of_the_cache_may_be_links(cache, asked):
    snapshot, blobs = cached(cache, "gpt2"), cache / "blobs"
    write_model(blobs)
    for blob in blobs.iterdir():
        (snapshot / blob.name).symlink_to(blob)
    assert sources.resolve("gpt2").weights == (snapshot / "model.safetensors",)


def test_revisions_in_the_cache(cache, asked):
    other = "f" * 40
    main, tagged = cached(cache, "gpt2"), cached(cache, "gpt2", "v2", other)
    write_model(main)
    write_model(tagged)
    assert sources.resolve("gpt2").folder == main
    assert sources.resolve("gpt2", "v2").folder == tagged
    assert sources.resolve("gpt2", other).folder == tagged
    assert sources.is_cached("gpt2", "v2")
    assert not sources.is_cached("gpt2", "v3")


@pytest.mark.parametrize(
    ("here", "there"),
    [("gpt2", "openai-community/gpt2"), ("distilbert/distilgpt2", "distilgpt2")],
)
def test_both_ids_of_one_repository(cache, asked, here, there):
    snapshot = cached(cache, there)
    write_model(snapshot)
    assert sources.resolve(here).folder == snapshot
    assert sources.is_cached(here)
    assert not sources.is_cached("gpt2-xl")


def test_incomplete_caches_are_not_taken_for_models(cache):
    snapshot = cached(cache, "gpt2")
    assert not sources.is_cached("gpt2")
    write_model(snapshot, shards=True)
    assert sources.is_cached("gpt2")
    (snapshot / "model-00002-of-00002.safetensors").unlink()
    assert not sources.is_cached("gpt2")
    with pytest.raises(SourceError, match="the Hub cannot be reached"):
        sources.resolve("gpt2")


def test_cached_weights_without_tokenizer_still_run(cache, monkeypatch):
    snapshot = cached(cache, "gpt2")
    write_model(snapshot)
    (snapshot / "tokenizer.json").unlink()
    assert not sources.is_cached("gpt2")
    assert sources.resolve("gpt2").tokenizer == ()
    # Where the cache knows that there is none, nobody is asked.
    noted = snapshot.parents[1] / ".no_exist" / COMMIT
    noted.mkdir(parents=True)
    for name in ("tokenizer.json", "vocab.json"):
        (noted / name).touch()
    assert sources.is_cached("gpt2")
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", None)
    assert sources.resolve("gpt2").tokenizer == ()


# ---------------------------------------------------------------- a make-believe Hub


class Hub:
    """The Hub's client, answering from folders and filling the cache as the true one does."""

    def __init__(self, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.cache = cache
        self.repositories: dict[str, Path] = {}
        self.asked: list[tuple[str, str | None]] = []
        self.error: Exception | None = None
        monkeypatch.setattr(huggingface_hub, "hf_hub_download", self.download)
        monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", self.metadata)

    def metadata(self, url: str, **options: Any) -> None:
        repo_id, _, rest = url.removeprefix(f"{constants.ENDPOINT}/").partition("/resolve/")
        self.find(repo_id, rest.partition("/")[2], rest.partition("/")[0])

    def find(self, repo_id: str, file: str, revision: str | None) -> Path:
        if self.error is not None:
            raise self.error
        if repo_id not in self.repositories:
            raise http_error(errors.RepositoryNotFoundError, 401)
        if revision not in (None, "main", COMMIT):
            raise http_error(errors.RevisionNotFoundError, 404)
        path = self.repositories[repo_id] / file
        if not path.is_file():
            raise http_error(errors.RemoteEntryNotFoundError, 404)
        return path

    def download(self, repo_id: str, file: str, *, revision: str | None = None) -> str:
        self.asked.append((file, revision))
        source = self.find(repo_id, file, revision)
        target = cached(self.cache, repo_id) / file
        target.write_bytes(source.read_bytes())
        return str(target)


def http_error(kind: type[errors.HfHubHTTPError], status: int) -> errors.HfHubHTTPError:
    return kind(f"{status} error\nwith details", response=Mock(status_code=status, headers={}))


@pytest.fixture
def hub(cache, monkeypatch) -> Hub:
    return Hub(cache, monkeypatch)


@pytest.mark.parametrize("shards", [False, True])
@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_a_download_fetches_what_is_needed(hub, tmp_path, shards, suffix):
    remote = tmp_path / "remote"
    write_model(remote, shards=shards, suffix=suffix)
    needed = {file.name for file in remote.iterdir()}
    for more in ("tf_model.h5", "README.md", "onnx.bin", "generation_config.json"):
        (remote / more).touch()
    if suffix == "safetensors":
        (remote / "pytorch_model.bin").touch()
    hub.repositories["some/one"] = remote
    assert not sources.is_cached("some/one")
    files = sources.resolve("some/one")
    assert {file.name for file in files.folder.iterdir()} == needed
    assert files.tokenizer
    # All but the first file come from the commit that the first came from.
    assert hub.asked[0] == ("config.json", None)
    assert {revision for _, revision in hub.asked[1:]} == {COMMIT}
    asked = list(hub.asked)
    assert sources.resolve("some/one") == files
    assert hub.asked == asked
    assert weights.load("some/one").cfg.model_name == "some/one"


def test_a_tokenizer_in_two_files(hub, tmp_path):
    remote = tmp_path / "remote"
    write_model(remote)
    (remote / "tokenizer.json").unlink()
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        (remote / name).write_text("{}")
    hub.repositories["some/one"] = remote
    files = sources.resolve("some/one")
    assert [file.name for file in files.tokenizer] == ["vocab.json", "merges.txt"]
    assert (files.folder / "tokenizer_config.json").is_file()


def test_a_repository_without_tokenizer(hub, tmp_path):
    write_model(tmp_path / "remote")
    (tmp_path / "remote" / "tokenizer.json").unlink()
    hub.repositories["some/one"] = tmp_path / "remote"
    assert sources.resolve("some/one").tokenizer == ()


def test_only_what_the_cache_lacks_is_missing(hub, tmp_path):
    write_model(tmp_path / "remote")
    hub.repositories["gpt2"] = tmp_path / "remote"
    snapshot = cached(hub.cache, "gpt2")
    write_model(snapshot)
    (snapshot / "tokenizer.json").unlink()
    assert sources.resolve("gpt2").tokenizer


def fails(source: str, revision: str | None = None) -> str:
    with pytest.raises(SourceError) as caught:
        sources.resolve(source, revision)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_unknown_ids(hub):
    message = fails("gpt2-smal")
    assert message.startswith(
        "no folder 'gpt2-smal' here and no such model on the Hugging Face Hub"
    )
    assert "Did you mean 'gpt2-xl'?" in fails("gtp2-xl")
    assert "Did you mean 'mini'?" in fails("Mini1")
    assert "Did you mean" not in fails("some/thing-else-entirely")


def test_repositories_without_a_model(hub, tmp_path):
    remote = tmp_path / "remote"
    remote.mkdir()
    hub.repositories["some/one"] = remote
    assert fails("some/one") == "some/one on the Hugging Face Hub has no config.json"
    (remote / "config.json").write_text("{}")
    message = fails("some/one")
    assert "has none of model.safetensors, pytorch_model.bin" in message
    index = {"weight_map": {"a": "model-00001-of-00001.safetensors"}}
    (remote / "model.safetensors.index.json").write_text(json.dumps(index))
    message = fails("some/one")
    assert "names model-00001-of-00001.safetensors, which the repository lacks" in message


def test_unknown_revision(hub, tmp_path):
    write_model(tmp_path / "remote")
    hub.repositories["gpt2"] = tmp_path / "remote"
    assert fails("gpt2", "v9") == "gpt2 on the Hugging Face Hub has no revision 'v9'"


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (http_error(errors.GatedRepoError, 403), "is gated: ask for access at https://huggingface"),
        (errors.OfflineModeIsEnabled("offline mode is enabled"), "(offline mode is enabled)"),
        (ConnectionError("[Errno -2] Name not known"), "reached ([Errno -2] Name not known)"),
        (TimeoutError("timed out"), "cannot be reached (timed out)"),
        (TimeoutError(), "cannot be reached (TimeoutError)"),
        (http_error(errors.HfHubHTTPError, 503), "cannot be reached (503 error)"),
        (http_error(errors.HfHubHTTPError, 429), "cannot be reached (429 error)"),
    ],
)
def test_a_hub_in_trouble(hub, error, message):
    hub.error = error
    assert message in fails("some/one")


def test_no_network(cache):
    started = time.monotonic()
    message = fails("gpt2")
    assert message.startswith(
        "gpt2 is neither a folder here nor in the local Hugging Face cache, and the Hub cannot be "
        "reached ("
    )
    assert message.endswith("). The bundled model 'mini' needs no network")
    # The client's own retries would take half a minute.
    assert time.monotonic() - started < 10
    assert "gpt2 at revision 'v2' is neither" in fails("gpt2", "v2")
    assert "Did you mean 'gpt2-large'?" in fails("gpt2-lage")


# ---------------------------------------------------------------- does the Hub answer?


def test_hub_answers(hub, tmp_path):
    write_model(tmp_path / "remote")
    hub.repositories["gpt2"] = tmp_path / "remote"
    assert sources.hub_answers("gpt2", 5.0)
    assert not sources.hub_answers("gpt3", 5.0)
    hub.error = TimeoutError("timed out")
    assert not sources.hub_answers("gpt2", 5.0)


def test_hub_answers_nothing_without_network(cache):
    assert not sources.hub_answers("gpt2", 5.0)


def test_hub_answers_in_time(cache, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", lambda *_, **__: time.sleep(2))
    started = time.monotonic()
    assert not sources.hub_answers("gpt2", 0.1)
    assert time.monotonic() - started < 1.5


def test_offline_mode_is_not_asked(cache, asked, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert not sources.hub_answers("gpt2", 5.0)
    assert not asked


@pytest.mark.hub
def test_the_true_hub(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert sources.hub_answers("distilgpt2", 10.0)
    assert not sources.is_cached("distilgpt2")
    files = sources.resolve("distilgpt2")
    assert [file.name for file in files.weights] == ["model.safetensors"]
    assert sources.is_cached("distilgpt2")
    assert sources.is_cached("distilbert/distilgpt2")
    assert weights.load("distilgpt2").cfg.n_layers == 6
    with pytest.raises(SourceError, match="no such model on the Hugging Face Hub"):
        sources.resolve("distilgpt2-that-nobody-made")
    with pytest.raises(SourceError, match="has no revision 'nowhere'"):
        sources.resolve("distilgpt2", "nowhere")
