"""The one place where pretrained weights come from: a local folder or file, a Hugging Face id or a ModelScope id."""
from __future__ import annotations

from pathlib import Path


def resolve(source: str | Path) -> Path:
    """Local path of pretrained weights.

    Args:
        source: an existing folder or file (`~` is expanded); "<name>" or "<owner>/<name>" on the Hugging Face hub;
            "modelscope:<owner>/<name>" on ModelScope. Only the two hub forms use the network, and both use their cache first.
    Raises:
        FileNotFoundError: naming the source and how to get it, when it is not local and the hub does not deliver it.
    """
    path = Path(source).expanduser()
    if path.exists():
        return path
    text = str(source)
    if path.is_absolute() or text.startswith((".", "~")) or path.suffix in (".pt", ".pth", ".ckpt", ".safetensors"):
        raise FileNotFoundError(f"weights {text!r} do not exist; give an existing file, a folder in the published layout or a hub id")
    try:
        if text.startswith("modelscope:"):
            from modelscope import snapshot_download      # imported late: it takes seconds
            return Path(snapshot_download(text.removeprefix("modelscope:")))
        from huggingface_hub import snapshot_download
        return Path(snapshot_download(text, ignore_patterns=["*.h5", "*.msgpack", "*.onnx", "*.ot"]))
    except Exception as error:     # every hub client has errors of its own; the cause stays attached
        raise FileNotFoundError(f"weights {text!r} are neither a local path nor to be had from the hub ({type(error).__name__}: {error}); "
                                "without a network, download the folder elsewhere and give its path") from error
