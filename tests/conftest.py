"""What every test gets: annotations checked at run time, fixed seeds, no network, shared models."""

import errno
import os
import random
import socket
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import settings
from jaxtyping import config, install_import_hook

PACKAGES = ["hooks", "interp", "analyses"]
MINI_WEIGHTS = Path(__file__).parents[1] / "interp" / "mini" / "model.safetensors"

# The hook checks the annotations of modules that are imported after it.
if early := sorted(set(PACKAGES) & set(sys.modules)):
    raise RuntimeError(f"{early} were imported before their annotations could be checked")
install_import_hook(PACKAGES, "beartype.beartype")

# Many small tensors are faster on one thread, and the workers of pytest-xdist do not fight for the
# cores. The environment is for the command lines that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))

# A test fails or passes on its merits, not on the speed of the machine or the luck of the draw.
settings.register_profile("suite", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("suite")


@cache
def why_no_hub() -> str | None:
    """Why the Hugging Face Hub cannot be used, or None when it can. Asked at most once."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}:
        return "HF_HUB_OFFLINE is set"
    address = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    request = urllib.request.Request(address, method="HEAD")
    try:
        urllib.request.urlopen(request, timeout=2).close()
    except urllib.error.HTTPError as answer:
        return f"the Hub at {address} answers with status {answer.code}"
    except OSError as error:
        return f"the Hub at {address} does not answer: {error}"
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what this machine cannot run, and say why."""
    for item in items:
        if item.get_closest_marker("hub") and (reason := why_no_hub()):
            item.add_marker(pytest.mark.skip(reason=reason))
        if item.get_closest_marker("cuda") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="torch finds no CUDA device"))


@pytest.fixture(autouse=True)
def _seeds() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Annotations unchecked, as users have it: the errors are then our own."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)


def _is_local(host: object) -> bool:
    return host in (None, "", "localhost", "::1") or str(host).startswith("127.")


@pytest.fixture(autouse=True)
def _no_network(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the `hub` marker a test sees a machine with no network but its own loopback."""
    if request.node.get_closest_marker("hub"):
        return
    connect, connect_ex, getaddrinfo = (
        socket.socket.connect,
        socket.socket.connect_ex,
        socket.getaddrinfo,
    )

    def is_allowed(sock: socket.socket, address: Any) -> bool:
        if sock.family not in (socket.AF_INET, socket.AF_INET6):
            return True
        return isinstance(address, tuple) and _is_local(address[0])

    def local_connect(sock: socket.socket, address: Any) -> None:
        if not is_allowed(sock, address):
            raise OSError(errno.ENETUNREACH, f"no network in tests: {address!r}")
        connect(sock, address)

    def local_connect_ex(sock: socket.socket, address: Any) -> int:
        if not is_allowed(sock, address):
            return errno.ENETUNREACH
        return connect_ex(sock, address)

    def local_getaddrinfo(host: Any, *args: Any, **kwargs: Any) -> object:
        if not _is_local(host):
            raise socket.gaierror(socket.EAI_AGAIN, f"no network in tests: {host!r}")
        return getaddrinfo(host, *args, **kwargs)

    monkeypatch.setattr(socket.socket, "connect", local_connect)
    monkeypatch.setattr(socket.socket, "connect_ex", local_connect_ex)
    monkeypatch.setattr(socket, "getaddrinfo", local_getaddrinfo)


@pytest.fixture(scope="session")
def reference_model() -> Callable[..., torch.nn.Module]:
    """`reference_model(cfg, seed=0, dtype=torch.float32)`: a random `transformers` GPT-2.

    `cfg` is a `GPT2Config` or a dict of its arguments. Each model is built once per session and
    shared: tests must not change it. Unlike in a freshly initialised model, biases and layer-norm
    weights are random too (at 0 and 1 they would hide mistakes), and the matrices are larger, so
    that attention is far from uniform.
    """
    from transformers import GPT2Config, GPT2LMHeadModel

    models: dict[tuple[str, str, int, torch.dtype], torch.nn.Module] = {}

    def build(
        cfg: GPT2Config | dict[str, Any],
        *,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
    ) -> torch.nn.Module:
        if isinstance(cfg, dict):
            cfg = GPT2Config(**cfg)
        attention = cfg._attn_implementation or "default"
        key = (cfg.to_json_string(use_diff=False), attention, seed, dtype)
        if key not in models:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                model = GPT2LMHeadModel(cfg).eval().requires_grad_(False)
                for name, parameter in model.named_parameters():
                    if name.endswith("bias"):
                        parameter.normal_(std=0.1)
                    elif ".ln_" in name:
                        parameter.normal_(mean=1.0, std=0.1)
                    elif "wte" not in name and "wpe" not in name and "lm_head" not in name:
                        parameter.mul_(5)
            models[key] = torch.nn.Module.to(model, dtype=dtype)
        return models[key]

    return build


@pytest.fixture(scope="session")
def mini():
    """The bundled model, loaded once per session. Tests must not change it."""
    if not MINI_WEIGHTS.exists():
        pytest.skip(f"the bundled model is not there: {MINI_WEIGHTS}")
    from interp import HookedGPT2

    return HookedGPT2.from_pretrained("mini")


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """A headless Chromium (`notebooks.browser.Browser`), started when a test first asks for it."""
    from notebooks.browser import Browser, BrowserMissing

    try:
        running = Browser()
    except BrowserMissing as error:
        pytest.skip(str(error))
    with running:
        yield running
