"""Runs a notebook from top to bottom in a kernel of its own: this interpreter, and no network."""

import os
import sys
import tempfile
from pathlib import Path

from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbformat import NotebookNode

ROOT = Path(__file__).parents[1]
CELL_TIMEOUT_S = 300

# A kernel runs this first. zmq, by which it is spoken to, does not go through Python's sockets.
NO_NETWORK = """
import errno as _errno, socket as _socket

def _guarded(wanted):
    def connect(self, address):
        if self.family in (_socket.AF_INET, _socket.AF_INET6):
            raise OSError(_errno.ENETUNREACH, f"notebooks run without a network: {address!r}")
        return wanted(self, address)
    return connect

def _unknown(host, *_, **__):
    raise _socket.gaierror(_socket.EAI_AGAIN, f"notebooks run without a network: {host!r}")

_socket.socket.connect = _guarded(_socket.socket.connect)
_socket.socket.connect_ex = _guarded(_socket.socket.connect_ex)
_socket.getaddrinfo = _unknown
"""


class _ThisInterpreter(KernelSpecManager):
    """Whatever kernels are installed for Jupyter here, this one is used."""

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        return KernelSpec(
            argv=[sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
            display_name="Python 3 (ipykernel)",
            language="python",
        )


def run(notebook: NotebookNode, folder: Path) -> None:
    """Run all cells in place, as by "restart and run all".

    The kernel is this interpreter with this checkout's packages, one torch thread, no network, no
    start-up files of its user, and plotly figures as data (`application/vnd.plotly.v1+json`).

    Args:
        notebook: its outputs are replaced.
        folder: where it runs; files that it writes land there.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell raised; it tells which, and the traceback.
        nbclient.exceptions.CellTimeoutError: a cell took more than `CELL_TIMEOUT_S`.
    """
    with tempfile.TemporaryDirectory(prefix="hooked-kernel-") as home:
        startup = Path(home) / "profile_default" / "startup"
        startup.mkdir(parents=True)
        (startup / "no_network.py").write_text(NO_NETWORK, encoding="utf-8")
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        manager = AsyncKernelManager(kernel_spec_manager=_ThisInterpreter())
        if os.name == "posix":  # no port is opened
            manager.transport, manager.ip = "ipc", str(Path(home) / "kernel")
        client = NotebookClient(
            notebook,
            km=manager,
            timeout=CELL_TIMEOUT_S,
            resources={"metadata": {"path": str(folder)}},
            record_timing=False,
            # Stored widgets are no use without a kernel.
            store_widget_state=False,
        )
        client.execute(
            cleanup_kc=True,  # ends the kernel, which is ours
            env=os.environ
            | {
                "HF_HUB_OFFLINE": "1",
                "IPYTHONDIR": home,
                "JUPYTER_COLUMNS": "115",
                "OMP_NUM_THREADS": "1",
                "PLOTLY_RENDERER": "plotly_mimetype",
                "PYTHONHASHSEED": "0",
                "PYTHONPATH": os.pathsep.join(paths),
                # tqdm's, where ipywidgets is not installed: bars are not shown anyway.
                "PYTHONWARNINGS": "ignore:IProgress not found",
                "TOKENIZERS_PARALLELISM": "false",
            },
        )
