"""Small files written so that a reader never sees half of one, and paths read as people write them."""
from __future__ import annotations

import fcntl
import hashlib
import json
import os
import unicodedata
from contextlib import contextmanager
from pathlib import Path

# weights that come with the workbook: "starter:retrieval" is the folder lib/starters/retrieval
STARTER, STARTERS = "starter:", Path(__file__).resolve().parent / "starters"
# what a backslash and the letter after it become in a Python text or in double quotes of YAML
_ESCAPES = {"\a": "a", "\b": "b", "\t": "t", "\n": "n", "\v": "v", "\f": "f", "\r": "r", "\x1b": "e", "\x85": "N",
            "\u2028": "L", "\u2029": "P"} | {chr(code): str(code) for code in range(7)}


def user_path(text: str | Path) -> Path:
    """The path that a person means, read alike in a notebook, a profile and a command line; it need not exist or be absolute.

    `starter:NAME` is a folder of the weights that come with the workbook (lib/starters), `~` the home folder. Backslashes, single or
    doubled, separate folders where the path does not exist as it is written and does with `/` in their place.

    Raises:
        ValueError: an empty text; a home folder that nobody has; a control character (a line break, a tab ...), which stands
            where a backslash was not doubled: the message shows the right spelling.
    """
    text = os.fspath(text)
    if not text:
        raise ValueError("'' is no path; give one, or None")
    if text.startswith(STARTER):
        return STARTERS / text.removeprefix(STARTER)
    spellings = [os.path.expanduser(spelling) for spelling in (text, text.replace("\\", "/"))]
    found = next(filter(os.path.exists, spellings), None)
    controls = {c for c in text if unicodedata.category(c) in ("Cc", "Zl", "Zp")}
    if controls and (found is None or min(controls) < " "):   # a name in a wrong encoding may hold those above, and exist
        meant = "".join("\\" + _ESCAPES.get(c, f"x{ord(c):02x}") if c in controls else c for c in text)
        quote = '"' if '"' not in meant else "'"
        ways = [f"{quote}{way}{quote}" for way in (meant.replace("\\", "/"), meant.replace("\\", "\\\\"), meant)]
        raise ValueError(f"{text!r} holds a control character, as a single backslash in a quoted text makes one; "
                         f"write {ways[0]}, {ways[1]} or, in Python, r{ways[2]}")
    path = found or spellings[text.startswith("~")]
    if found is None and path.startswith("~"):
        raise ValueError(f"{text!r} starts with a home folder that is not there; write the whole path, or ./{text} for such a name")
    return Path(path)


def write_text(path: Path, text: str) -> Path:
    """Write `text` to `path` through a temporary file and `os.replace`; makes the folder. Returns the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    return path


def write_json(path: Path, document: object) -> Path:
    """Write strict JSON (NaN and infinity are a ValueError), atomically. Returns the path."""
    return write_text(path, json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> dict | None:
    """The JSON object in `path`, or None when there is no such file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def digest(*parts: str | bytes) -> str:
    """The first 16 hexadecimal digits of the sha256 of the parts (their lengths count, so moving a border changes it)."""
    state = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        state.update(f"{len(data)}:".encode() + data)
    return state.hexdigest()[:16]


def sha256(path: Path) -> str:
    """The sha256 of a file in hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def stamp(path: str | Path) -> list[int] | None:
    """Size and time of change (ns) of a file, which differ once it is another; None: it is not there or cannot be looked at."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns]


@contextmanager
def alone(path: Path, what: str):
    """Hold the lock file `path`, waiting (with a line that names `what` and the holder) while another process has it.

    The lock is the kernel's: it vanishes with its holder, however that dies, so it is never stale.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            print(f"waiting: {what} is in the hands of process {file.read().strip() or 'unknown'}", flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield
