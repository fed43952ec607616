"""Write a trained checkpoint as a Hugging Face folder, weights in float16."""

import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer

from training.corpus import END_OF_TEXT
from training.loop import mini_config, new_model
from training.tokenizer import copy_tokenizer


def export(work: Path, target: Path) -> None:
    """Write config, weights, the tokenizer's files and the loss curve to `target`.

    Args:
        work: folder with `checkpoint.pt`, `curve.csv` and `tokenizer/`.
        target: folder to write to; files of these names in it are replaced.

    Raises:
        OverflowError: a weight is too large for float16.
    """
    tokenizer = Tokenizer.from_file(str(work / "tokenizer" / "tokenizer.json"))
    config = mini_config(tokenizer.get_vocab()[END_OF_TEXT], tokenizer.get_vocab_size())
    model = new_model(config, seed=0)
    checkpoint = torch.load(work / "checkpoint.pt", map_location="cpu", weights_only=True)
    model.load_state_dict(checkpoint["model"])
    # The unembedding is the embedding; a tied tensor is stored once.
    state = {
        name: value.half().contiguous()
        for name, value in model.state_dict().items()
        if name != "lm_head.weight"
    }
    for name, value in state.items():
        if not value.isfinite().all():
            raise OverflowError(f"{name} holds values that float16 cannot")
    target.mkdir(parents=True, exist_ok=True)
    weights = target / "model.safetensors"
    save_file(state, weights, metadata={"format": "pt"})
    weights.chmod(0o644)
    config.architectures = ["GPT2LMHeadModel"]
    # Half the size in the package; transformers loads it in what the config says, and training in
    # float16 would end in NaN.
    config.dtype = "float32"
    config.save_pretrained(target)
    copy_tokenizer(work / "tokenizer", target)
    shutil.copyfile(work / "curve.csv", target / "curve.csv")
