"""The one place where pretrained weights come from: a local folder or file, a Hugging Face id or a ModelScope id."""
from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerFast

from lib.files import digest, sha256, user_path


def resolve(source: str | Path) -> Path:
    """Local path of pretrained weights.

    Args:
        source: an existing folder or file (`~` and `starter:NAME` as `lib.files.user_path` reads them), where a hub's cache keeps a model, its one snapshot; "<name>" or
            "<owner>/<name>" on the Hugging Face hub; "modelscope:<owner>/<name>" on ModelScope. Only the two hub forms use the
            network, and what is in the hub's cache is not downloaded again.
    Raises:
        FileNotFoundError: naming the source and how to get it, when it is not local and the hub does not deliver it.
        ValueError: a cache folder with several snapshots, naming them.
    """
    text = str(source)
    on_modelscope = text.startswith("modelscope:")
    path = Path(text) if on_modelscope else user_path(source)
    if path.exists():
        return _snapshot(path)
    if not on_modelscope and (path.is_absolute() or text.startswith((".", "~")) or len(path.parts) > 2
                              or path.suffix in (".pt", ".pth", ".ckpt", ".safetensors")):
        raise FileNotFoundError(f"weights {text!r} do not exist; give an existing file, a folder in the published layout or a hub id")
    try:
        if on_modelscope:
            return Path(_from_modelscope(text.removeprefix("modelscope:")))
        from huggingface_hub import snapshot_download
        return Path(snapshot_download(text, ignore_patterns=["*.h5", "*.msgpack", "*.onnx", "*.ot"]))
    except Exception as error:     # every hub client has errors of its own; the cause stays attached
        raise FileNotFoundError(f"weights {text!r} are neither a local path (looked for {path.absolute()}) nor to be had from the hub ({type(error).__name__}: {error}); "
                                "without a network, download the folder elsewhere and give its path") from error


def read_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer in a folder in the published layout. FileNotFoundError: naming the folder, when it holds none."""
    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json")):       # transformers would make an empty one
        raise FileNotFoundError(f"{folder} holds no tokenizer: tokenizer.json, or vocab.json and merges.txt, are expected there; "
                                "copy or download it again")
    return AutoTokenizer.from_pretrained(folder)


def weights_digest(folder: str | Path) -> str:
    """First 16 hexadecimal digits of the sha256 of a checkpoint's weights (of several files: of their digests).

    FileNotFoundError: naming the folder, where it holds none of the published names.
    """
    folder = user_path(folder)
    files = sorted(folder.glob("model*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))
    if not files:
        raise FileNotFoundError(f"{folder} holds no weights: model.safetensors or pytorch_model.bin is expected there")
    digests = [_sha256(file, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return (digests[0] if len(digests) == 1 else digest(*digests))[:16]


@lru_cache(maxsize=32)
def _sha256(file: Path, size: int, modified: int) -> str:
    """The sha256 of a file of weights, read once a process while it stays as it is: every training on a frozen model asks for it."""
    return sha256(file)


def model_digest(folder: str | Path) -> str:
    """16 hexadecimal digits over all that decides a model's embeddings: weights, sizes, front end and tokenizer."""
    folder = user_path(folder)
    said = [folder / name for name in ("config.json", "preprocessor_config.json", "processor_config.json", "tokenizer.json", "vocab.json", "merges.txt")]
    return digest(weights_digest(folder), *(part for file in said if file.is_file() for part in (file.name, file.read_bytes())))


def _snapshot(path: Path) -> Path:
    """The only snapshot where `path` is a model in a hub's cache (<owner>--<name>/snapshots/<revision>), otherwise `path` itself."""
    found = sorted(p for p in (path / "snapshots").glob("*") if p.is_dir())
    if not found or (path / "config.json").exists():
        return path
    if len(found) > 1:
        raise ValueError(f"{path} holds {len(found)} snapshots; give one of them: {', '.join(map(str, found))}")
    return found[0]


def _from_modelscope(name: str) -> str:
    """Folder of a ModelScope model: what its cache holds, in any of its layouts, otherwise downloaded."""
    from modelscope import snapshot_download      # imported late: it takes seconds
    try:
        # without this the client asks its server first even for what it has, and fails where there is no network
        cached = Path(snapshot_download(name, local_files_only=True))
    except Exception:              # not in the cache; the client's errors differ between its versions
        return snapshot_download(name)
    # weights come last: without them an earlier download was cut off, and goes on here
    return str(cached) if any(cached.glob("*.safetensors")) or any(cached.glob("*.bin")) else snapshot_download(name)
