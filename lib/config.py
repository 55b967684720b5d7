"""Typed configuration of a run: what every family's configuration shares, and the checks.

A family adds its fields in a frozen, keyword-only subclass. Every field is a parameter of `lib.glossary`, which holds type, range
and meaning; an unknown name, a wrong type or a value out of range is refused by name.
"""
from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, fields

from lib import glossary

# where a run is computed, with how many processes and decoders, what it is logged to and when it gives up do not change what it computes;
# what lies in data_root and in the checkpoints is in the manifest's fingerprint and in `inputs`
PLACE = ("device", "devices", "compile", "workers", "data_root", "checkpoint", "initial_checkpoint", "stage1_checkpoint",
         "pretrained_checkpoint", "csv_path", "video_dir", "output_dir", "checkpoint_interval", "teachers", "loggers", "bad_media_budget")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Data, optimisation and place of a run; meaning and range of each field: `lib.glossary.PARAMETERS`."""

    dataset: str = "soundscapes"
    data_root: str | None = None
    num_samples: int | None = None
    seed: int = 13
    device: str = "auto"
    devices: int = 1
    compile: str = "auto"
    precision: str = "auto"
    threads: int = 2
    workers: int = 0

    epochs: int = 20
    batch_size: int = 64
    accumulation: int = 1
    learning_rate: float = 2e-5
    start_learning_rate: float = 1e-7
    floor_learning_rate: float = 1e-7
    warmup_epochs: float = 1.0
    decay_epochs: float | None = 15.0
    weight_decay: float = 0.0
    gradient_clip: float | None = None
    betas: tuple[float, ...] = (0.9, 0.999)
    ema_decay: float | None = None
    checkpoint_steps: int | None = None
    fit_splits: tuple[str, ...] = ("train",)
    selection: str = "best"
    patience: int | None = None
    bad_media_budget: float = 0.005
    loggers: tuple[str, ...] = ()

    def __post_init__(self):
        for field in fields(self):
            if isinstance(getattr(self, field.name), list):      # JSON has no tuples
                object.__setattr__(self, field.name, tuple(getattr(self, field.name)))
        glossary.check({f.name: getattr(self, f.name) for f in fields(self)}, type(self).__name__)
        for field in fields(self):                               # one spelling of a path, whoever wrote it and from where
            object.__setattr__(self, field.name, glossary.PARAMETERS[field.name].resolve(getattr(self, field.name)))
        if len(self.betas) != 2:
            raise glossary.ParameterError(f"{type(self).__name__}: betas are two numbers, such as (0.9, 0.999), got {self.betas}")
        if self.selection == "best" and "val" in self.fit_splits:
            raise glossary.ParameterError(f"{type(self).__name__}: selection 'best' needs a validation split that is not trained on; "
                                          "with 'val' in fit_splits use selection 'last'")
        if self.patience is not None and self.selection != "best":
            raise glossary.ParameterError(f"{type(self).__name__}: patience waits for a better validation score: use selection 'best', or None")
        if self.devices > 1 and self.device.startswith("cuda:"):
            raise glossary.ParameterError(f"{type(self).__name__}: device {self.device!r} is one device; with devices={self.devices} "
                                          "use device 'cuda' (CUDA_VISIBLE_DEVICES chooses which)")

    @classmethod
    def from_parameters(cls, values: dict[str, object]) -> "RunConfig":
        """Build from a notebook's `globals()`: every field of that name is taken, other names are left alone."""
        return cls(**{f.name: values[f.name] for f in fields(cls) if f.name in values})

    @classmethod
    def from_dict(cls, values: dict[str, object]) -> "RunConfig":
        """Build from a JSON document; a name that is no field is an error with the nearest field."""
        known = {f.name for f in fields(cls)}
        for name in values:
            if name not in known:
                raise glossary.unknown(name, known, cls.__name__)
        return cls(**values)

    def to_dict(self) -> dict[str, object]:
        """JSON-able form; tuples become lists."""
        return json.loads(json.dumps(asdict(self), default=str))

    def inputs(self) -> tuple[str, ...]:
        """Digests of files that the parameters name and the result depends on (a parameter says where they lie, not what they hold)."""
        return ()

    def digest(self) -> str:
        """12 hexadecimal digits that change with everything that changes the result (not with the place)."""
        kept = {k: v for k, v in self.to_dict().items() if k not in PLACE}
        return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:12]
