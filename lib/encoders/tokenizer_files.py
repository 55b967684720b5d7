"""Sounds to token files and back through a trained tokenizer: one file at a time, in the memory of a window.

Convention: a checkpoint folder holds config.json (model and front end), model.safetensors and, where it is known, bits.json: how often each
bit is 1 in each row of patches, for arithmetic coding. A sound is cut into windows of the front end's length, encoded one by one, each with
its own peak; a causal model with a fixed reference can also stream: then a chunk of the token file is one column of patches, and nothing
depends on how long the sound is. Everything is done clip by clip and, in a stream, STREAM_COLUMNS columns at a time: the same bits and
levels come out whenever it is done again on the same kind of device.
"""
from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import torch
from torch import Tensor

from lib import distributed
from lib.audio.inversion import invert
from lib.audio.mel import MelConfig, MelFrontEnd, stream
from lib.encoders.bsq_vit import AudioBSQModel
from lib.encoders.vocoder import Vocoder
from lib.encoders.weights import model_digest
from lib.files import read_json, user_path, write_json
from lib.media import arithmetic, audio
from lib.media.token_files import TokenFileError, TokenHeader, TokenReader, TokenWriter, places
from lib.progress import track
from lib.quantize.bsq import unpack

SUFFIX = ".tok"
STREAM_COLUMNS = 8      # columns of patches that a stream computes together
BLOCK_SECONDS = 30      # of sound that a stream reads at a time
FADE_FRAMES = 4         # frames beyond a window in which two pieces of a streamed sound are blended


def write_model(folder: Path, model: AudioBSQModel, mel: MelConfig, probabilities: np.ndarray | None = None) -> Path:
    """Write a checkpoint folder that `read_model` and `Codec.from_pretrained` read. Returns it."""
    model.save_pretrained(folder)
    write_json(folder / "config.json", model.to_dict() | {"front_end": mel.to_dict()})
    if probabilities is not None:
        write_json(folder / "bits.json", {"probabilities": probabilities.tolist()})
    return folder


def read_model(folder: str | Path) -> tuple[AudioBSQModel, MelConfig]:
    """A model in evaluation mode on the CPU, and its front end's settings.

    Raises: FileNotFoundError, ValueError: naming the folder and what is wrong with it.
    """
    folder = user_path(folder)
    entry = read_json(folder / "config.json")
    if entry is not None and "front_end" not in entry:
        raise ValueError(f"{folder}/config.json describes no tokenizer with its front end; give a checkpoint of notebook 50")
    return AudioBSQModel.from_pretrained(folder), MelConfig(**(entry or {}).get("front_end", {}))


def bits_of(model: AudioBSQModel, info: dict) -> Tensor:
    """Bits (B, N, L) bool of what `model.encode` returned last as `info`."""
    found = info["quantized"]
    return found.codes > 0 if model.quantizer_name == "bsq" else unpack(found.indices, model.embed_dim)


class BitCounts:
    """How often each bit is 1 in each row of patches, counted over batches of all processes.  Args: model: whose tokens they are."""

    def __init__(self, model: AudioBSQModel):
        self.grids = tuple((grid.columns, grid.rows) for grid in model.config.grids())
        self.ones = np.zeros((sum(rows for _, rows in self.grids), model.embed_dim))
        self.count = np.zeros(len(self.ones))

    def update(self, bits: Tensor, counted: Tensor) -> None:
        """Args: bits: Tensor (B, N, L) bool.  counted: Tensor (B, N) bool."""
        row = places(self.grids)
        counted = counted.cpu().numpy()
        np.add.at(self.ones, row, (bits.cpu().numpy() * counted[..., None]).sum(axis=0))
        np.add.at(self.count, row, counted.sum(axis=0))

    def probabilities(self) -> np.ndarray:
        """uint16 (rows, L) as `TokenHeader` takes them; half a count is added to both outcomes. All processes must call it."""
        parts = distributed.gather_list([(self.ones, self.count)])
        ones, count = sum(part[0] for part in parts), sum(part[1] for part in parts)
        return arithmetic.quantise((ones + 0.5) / (count[:, None] + 1))


@dataclass
class Codec:
    """A trained tokenizer that reads and writes files.

    Attributes: model; mel: its front end's settings.  digest: of its checkpoint, which token files name.  probabilities: of its bits, or
        None.  vocoder: that makes the sounds, or None: Griffin-Lim.  device: where it computes.
    """

    model: AudioBSQModel
    mel: MelConfig
    digest: str
    probabilities: np.ndarray | None = None
    vocoder: Vocoder | None = None
    maker: str = "griffin-lim"

    @classmethod
    def from_pretrained(cls, folder: str | Path, device: str = "cpu", vocoder: str | Path | None = None) -> Codec:
        """Args: folder: a checkpoint.  device: cpu, cuda or cuda:N.  vocoder: folder of one for the same mel levels.
        Raises: FileNotFoundError, ValueError: naming the folder and what is wrong with it."""
        folder = user_path(folder)
        model, mel = read_model(folder)
        known = (read_json(folder / "bits.json") or {}).get("probabilities")
        made = cls(model.to(device), mel, model_digest(folder), None if known is None else np.array(known, dtype=np.uint16))
        if vocoder is not None:
            made.vocoder, made.maker = Vocoder.from_pretrained(vocoder).to(device), model_digest(user_path(vocoder))
            for name, ours in mel.to_dict().items():
                theirs = made.vocoder.config.mel.to_dict()[name]
                if ours != theirs and name not in ("frames", "reference"):
                    raise ValueError(f"the vocoder {vocoder} was trained with {name} = {theirs}, this tokenizer with {ours}; train one on "
                                     "the tokenizer's own mel levels")
        return made

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    def header(self, coding: str = "packed", streamed: bool = False) -> TokenHeader:
        """The head of the token files that this model writes.

        Raises: ValueError: arithmetic coding without statistics; a stream of a model or front end that looks ahead.
        """
        config = self.model.config
        if coding == "arithmetic" and self.probabilities is None:
            raise ValueError("arithmetic coding needs to know how often each bit is 1, and this checkpoint was trained without validation, "
                             "which counts them; use packed coding")
        if streamed:
            if self.model.quantizer_name != "bsq":
                raise ValueError(f"a model with quantizer {self.model.quantizer_name!r} cannot be streamed: its codes are no bits")
            self.model.stream(STREAM_COLUMNS)      # raises for a model that looks ahead
            stream(self.mel)                        # and for such a front end
        grids = ((1, config.grids()[0].rows),) if streamed else tuple((grid.columns, grid.rows) for grid in config.grids())
        return TokenHeader(model=self.digest, bits=self.model.embed_dim, grids=grids, frames=config.step if streamed else self.mel.frames,
                           sample_rate=self.mel.sample_rate, hop=self.mel.hop, coding=coding,
                           reference=None if self.mel.reference == "peak" else self.mel.reference,
                           probabilities=self.probabilities if coding == "arithmetic" else None)

    @torch.inference_mode()
    def encode(self, source: Path, target: Path, coding: str = "packed", streamed: bool = False) -> TokenReader:
        """Encode a sound into a token file. Returns: what reads it.

        Raises: lib.media.audio.AudioError, ValueError, OSError: naming the file; nothing is written then.
        """
        header = self.header(coding, streamed)
        with TokenWriter(target, header) as writer:
            writer.samples = (self._encode_stream if streamed else self._encode_windows)(source, writer)
        return TokenReader(target)

    def _encode_windows(self, source: Path, writer: TokenWriter) -> int:
        front_end, total = MelFrontEnd(self.mel), 0
        for wave in _pieces(source, self.mel.sample_rate, self.mel.samples):
            mels = front_end(wave[None].to(self.device))
            _, _, info = self.model.encode(mels.levels, valid=mels.valid)
            writer.append(bits_of(self.model, info)[0].cpu().numpy(),
                          mels.peak.cpu().numpy() if writer.header.reference is None else None)
            total += len(wave)
        return total

    def _encode_stream(self, source: Path, writer: TokenWriter) -> int:
        levels, tokens, total = stream(self.mel), self.model.stream(STREAM_COLUMNS), 0

        def write(frames: Tensor, last: bool = False) -> None:
            codes = self.model.encode_chunk(tokens, frames[None].to(self.device), last)
            if codes.shape[1]:
                writer.append((codes[0] > 0).cpu().numpy())
        for wave in _pieces(source, self.mel.sample_rate, BLOCK_SECONDS * self.mel.sample_rate):
            write(levels.push(wave))
            total += len(wave)
        write(levels.finish(), last=True)
        return total

    @torch.inference_mode()
    def levels(self, reader: TokenReader) -> Iterator[tuple[Tensor, Tensor]]:
        """What the model draws of a token file, piece by piece.

        Yields: levels (frames, F) dB, of a window, or of as much of a stream as is ready; and peak, a scalar in dB, what 0 dB stands for.
        """
        if streamed(reader.header, self):
            tokens, peak = self.model.stream(STREAM_COLUMNS), torch.tensor(reader.header.reference)
            for bits, _ in reader:
                yield self.model.decode_chunk(tokens, self._codes(bits))[0], peak
            yield self.model.decode_chunk(tokens, self._codes(np.zeros((0, reader.header.bits), dtype=bool)), last=True)[0], peak
            return
        for bits, peaks in reader:
            for number, window in enumerate(bits.reshape(-1, reader.header.chunk_tokens, reader.header.bits)):
                peak = torch.tensor(reader.header.reference if reader.header.reference is not None else float(peaks[number]))
                yield self.model.decode(self._codes(window))[0], peak

    def _codes(self, bits: np.ndarray) -> Tensor:
        return self.model.quantizer.bits_to_codes(torch.from_numpy(bits)[None].to(self.device))

    @torch.inference_mode()
    def decode(self, source: Path, target: Path) -> float:
        """Turn a token file into a WAV file (16 bits, one channel). Returns: its length in seconds.

        Raises: lib.media.token_files.TokenFileError: naming the file; nothing is written then.
        """
        reader = TokenReader(source, self.digest)
        pieces = self._blended(reader) if streamed(reader.header, self) else (self._sound(*piece) for piece in self.levels(reader))
        left = reader.samples
        with _atomic(target) as temporary, soundfile.SoundFile(temporary, "w", self.mel.sample_rate, 1, "PCM_16", format="WAV") as file:
            file.comment = self.made_by
            for piece in pieces:
                file.write(piece[:left].cpu().numpy())
                left -= min(left, len(piece))
        return reader.seconds

    @property
    def made_by(self) -> str:
        """What a decoded file says of its origin, so that it is known again."""
        return f"audio BSQ-ViT {self.digest}, {self.maker}"

    def _sound(self, levels: Tensor, peak: Tensor) -> Tensor:
        levels, peak = levels[None], peak[None].to(levels.device)
        return (self.vocoder.sound(levels, peak) if self.vocoder is not None else invert(levels, peak, self.mel))[0]

    def _blended(self, reader: TokenReader) -> Iterator[Tensor]:
        """Sound of a stream in pieces of a window that overlap. Phases of two pieces do not fit, so one fades into the other, at
        equal power."""
        hop, overlap = self.mel.hop, math.ceil(self.mel.n_fft / self.mel.hop) + FADE_FRAMES
        size, fade = max(self.mel.frames, 2 * overlap), (overlap - 1) * hop + self.mel.n_fft
        angle, tail, waiting = torch.linspace(0, math.pi / 2, fade, device=self.device), None, None

        def piece(frames: Tensor, peak: Tensor) -> tuple[Tensor, Tensor]:
            sound = self._sound(frames, peak)
            if tail is not None:
                sound[:fade] = tail * angle.cos() + sound[:fade] * angle.sin()
            return sound[:-fade], sound[-fade:]
        for levels, peak in self.levels(reader):
            waiting = levels if waiting is None else torch.cat([waiting, levels])
            while len(waiting) >= size:
                ready, tail = piece(waiting[:size], peak)
                waiting = waiting[size - overlap:].clone()
                yield ready
        if tail is None:                                    # shorter than a window
            yield self._sound(waiting, peak)
        else:
            if len(waiting) > overlap:
                ready, tail = piece(waiting, peak)
                yield ready
            yield tail


def streamed(header: TokenHeader, codec: Codec) -> bool:
    """Whether a token file is a stream: its chunks are single columns, where the model's own windows hold more."""
    return header.frames == codec.model.config.step != codec.mel.frames


def encode_files(codec: Codec, names: Iterable[str | Path], out: str | Path, coding: str = "packed", stream_them: bool = False) -> int:
    """Encode sounds and folders of sounds into `out`; name.wav becomes name.wav.tok. What is there already is not repeated.

    Returns: 0, or 1 where a file failed: it is reported, and the others go on.
    Raises: ValueError: what no file could be encoded with (see `Codec.header`).
    """
    expected = codec.header(coding, stream_them)

    def there(source: Path, target: Path) -> bool:
        try:
            header = TokenReader(target, codec.digest).header
        except TokenFileError:
            return False
        return (header.coding, header.frames) == (expected.coding, expected.frames)

    def make(source: Path, target: Path) -> str:
        reader = codec.encode(source, target, coding, stream_them)
        return f"{reader.seconds:.1f} s, {reader.size} bytes, {reader.bits_per_second:.0f} bits/s"
    return _each(names, out, audio.SUFFIXES, lambda name: name + SUFFIX, there, make)


def decode_files(codec: Codec, names: Iterable[str | Path], out: str | Path) -> int:
    """Decode token files and folders of them into `out`; name.wav.tok becomes name.wav, name.mp3.tok name.mp3.wav. Returns as
    `encode_files`."""
    def there(source: Path, target: Path) -> bool:
        try:
            with soundfile.SoundFile(target) as file:
                return file.comment == codec.made_by
        except soundfile.SoundFileError:
            return False

    def name(text: str) -> str:
        text = text.removesuffix(SUFFIX)
        return text if text.endswith(".wav") else text + ".wav"
    return _each(names, out, {SUFFIX}, name, there, lambda source, target: f"{codec.decode(source, target):.1f} s")


def _each(names: Iterable[str | Path], out: str | Path, suffixes: Iterable[str], rename: Callable[[str], str],
          there: Callable[[Path, Path], bool], make: Callable[[Path, Path], str]) -> int:
    """Make a file of each file; returns the exit status."""
    jobs, failures, taken = [], 0, {}
    for source, inside in _listed(names, suffixes):
        target = user_path(out) / rename(inside)
        if taken.setdefault(target, source) != source:
            failures += _failed(f"{source}: {target} is the name of what {taken[target]} becomes; use another folder for one of them")
        else:
            jobs.append((source, target))
    if not jobs and not failures:
        failures += _failed(f"nothing to do: no file with the ending {' or '.join(sorted(suffixes))} was given")
    for source, target in track(jobs, len(jobs), "files"):
        try:
            if not source.exists():
                raise FileNotFoundError(f"{source}: there is no such file or folder")
            if target.is_file() and target.stat().st_mtime_ns >= source.stat().st_mtime_ns and there(source, target):
                print(f"{target}: is there already", flush=True)
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            print(f"{target}: {make(source, target)}", flush=True)
        except (ValueError, OSError, soundfile.SoundFileError) as error:      # one bad file does not stop the others
            failures += _failed(str(error) if str(source) in str(error) else f"{source}: {error}")
    return 1 if failures else 0


def _failed(message: str) -> int:
    print(f"failed: {message}", file=sys.stderr, flush=True)
    return 1


def _listed(names: Iterable[str | Path], suffixes: Iterable[str]) -> Iterator[tuple[Path, str]]:
    """Files that are meant, and their names within the folder that was given."""
    for name in names:
        path = user_path(name)
        if not path.is_dir():
            yield path, path.name
            continue
        for folder, folders, files in os.walk(path):
            folders[:] = sorted(f for f in folders if not f.startswith("."))
            for file in sorted(files):
                if not file.startswith(".") and os.path.splitext(file)[1].lower() in suffixes:
                    yield Path(folder, file), Path(folder, file).relative_to(path).as_posix()


def _pieces(source: Path, sample_rate: int, samples: int) -> Iterator[Tensor]:
    """A sound in pieces of `samples` samples (the last one may be shorter), with progress.  AudioError: no sound, or no finite numbers."""
    def read() -> Iterator[Tensor]:
        for number in range(1 << 62):
            wave = audio.read(source, sample_rate=sample_rate, start=number * samples / sample_rate, duration=samples / sample_rate)[0]
            if not torch.isfinite(wave).all():
                raise audio.AudioError(f"{source}: holds values that are no finite numbers; repair or remove it")
            if not len(wave) and not number:
                raise audio.AudioError(f"{source}: holds no sound; remove it")
            if len(wave):
                yield wave
            if len(wave) < samples:
                return
    yield from track(read(), max(1, math.ceil(audio.probe(source).duration * sample_rate / samples)), source.name)


@contextmanager
def _atomic(target: Path) -> Iterator[str]:
    """A temporary name beside `target` that becomes it, once it was filled without an error."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        yield str(temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
