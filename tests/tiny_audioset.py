"""A tiny AudioSet in the layouts of the original project and of Hugging Face, for the tests of whatever reads it.

Real names and MIDs of 25 classes and their part of the real ontology; made-up sounds, of which those of one class are alike.
"""
import base64
import csv
import hashlib
import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile

# name: (MID, parents); those of NO_CLASS are in the ontology but not in the class table, as in the real files
ONTOLOGY = {
    "Animal": ("/m/0jbk", []),
    "Domestic animals, pets": ("/m/068hy", ["Animal"]),
    "Dog": ("/m/0bt9lr", ["Domestic animals, pets"]),
    "Bark": ("/m/05tny_", ["Dog"]),
    "Cat": ("/m/01yrx", ["Domestic animals, pets"]),
    "Meow": ("/m/07qrkrw", ["Cat"]),
    "Wild animals": ("/m/01280g", ["Animal"]),
    "Bird": ("/m/015p6", ["Wild animals"]),
    "Bird vocalization, bird call, bird song": ("/m/020bb7", ["Bird"]),
    "Music": ("/m/04rlf", []),
    "Musical instrument": ("/m/04szw", ["Music"]),
    "Plucked string instrument": ("/m/0fx80y", ["Musical instrument"]),
    "Guitar": ("/m/0342h", ["Plucked string instrument"]),
    "Keyboard (musical)": ("/m/05148p4", ["Musical instrument"]),
    "Piano": ("/m/05r5c", ["Keyboard (musical)"]),
    "Human sounds": ("/m/0dgw9r", []),
    "Human voice": ("/m/09l8g", ["Human sounds"]),
    "Speech": ("/m/09x0r", ["Human voice"]),
    "Male speech, man speaking": ("/m/05zppz", ["Speech"]),
    "Sounds of things": ("/t/dd00041", []),
    "Vehicle": ("/m/07yv9", ["Sounds of things"]),
    "Motor vehicle (road)": ("/m/012f08", ["Vehicle"]),
    "Emergency vehicle": ("/m/03j1ly", ["Motor vehicle (road)"]),
    "Alarm": ("/m/07pp_mv", ["Sounds of things"]),
    "Siren": ("/m/03kmc9", ["Alarm"]),
    "Police car (siren)": ("/m/04qvtq", ["Emergency vehicle", "Siren"]),
    "Natural sounds": ("/m/059j3w", []),
    "Water": ("/m/0838f", ["Natural sounds"]),
    "Rain": ("/m/06mb1", ["Water"]),
}
NO_CLASS = ("Human sounds", "Human voice", "Sounds of things", "Natural sounds")
CLASSES = [name for name in ONTOLOGY if name not in NO_CLASS]
SOUNDING = ["Bark", "Meow", "Bird vocalization, bird call, bird song", "Guitar", "Piano", "Male speech, man speaking",
            "Police car (siren)", "Rain"]
FOLDERS = {"seed": {"train": "train_balanced", "eval": "eval"}, "hub": {"train": "data/bal_train", "eval": "data/eval"}}
BYTES = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def publish(folder, *, layout="seed", train=40, eval=16, duration=1.0, sample_rate=16_000, shards=2, row_group=5, seed=0):
    """Write train + eval clips of `duration` seconds in `shards` files each, with class table and ontology beside them.

    Returns: dicts (part, video_id, labels: display names, shard: relative to the folder, row, content: FLAC bytes), in order.
    """
    tables(folder)
    written = []
    for part, count in (("train", train), ("eval", eval)):
        clips = [_clip(part, k, duration, sample_rate, seed) for k in range(count)]
        for number, rows in enumerate(np.array_split(np.arange(count), shards)):
            own = [clips[k] for k in rows]
            name = f"{FOLDERS[layout][part]}/{number:02d}.parquet"
            audio = [{"bytes": clip["content"], "path": f"audio/{clip['video_id']}.flac"} for clip in own]
            shard(folder / name, row_group=row_group, video_id=[clip["video_id"] for clip in own],
                  audio=pa.array(audio, type=BYTES), labels=[[ONTOLOGY[label][0] for label in clip["labels"]] for clip in own],
                  human_labels=[clip["labels"] for clip in own])
            written += [clip | {"shard": name, "row": row} for row, clip in enumerate(own)]
    return written


def tables(folder):
    """Class table and ontology as they are published, of the classes above."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "class_labels_indices.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_NONNUMERIC)
        writer.writerow(["index", "mid", "display_name"])
        writer.writerows([index, ONTOLOGY[name][0], name] for index, name in enumerate(CLASSES))
    entries = [{"id": mid, "name": name, "description": "", "restrictions": ["abstract"] if name in NO_CLASS else [],
                "child_ids": [below for below, parents in ONTOLOGY.values() if name in parents]}
               for name, (mid, _) in ONTOLOGY.items()]
    (folder / "ontology.json").write_text(json.dumps(entries), encoding="utf-8")


def shard(file, *, row_group=5, **columns):
    """One parquet file; columns: lists of cells, or pyarrow arrays."""
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), file, row_group_size=row_group)
    return file


def encode(signal, sample_rate, format="FLAC", subtype=None):
    """(samples,) or (samples, channels) as the bytes of an audio file."""
    stream = io.BytesIO()
    soundfile.write(stream, signal, sample_rate, format=format, subtype=subtype)
    return stream.getvalue()


def sound(name, duration, sample_rate, rng):
    """A made-up sound of a class of SOUNDING, (samples,): those of relatives are alike."""
    t = np.arange(round(duration * sample_rate)) / sample_rate
    pitch = {"Bark": 300, "Meow": 600, "Bird vocalization, bird call, bird song": 2500, "Guitar": 200, "Piano": 400,
             "Male speech, man speaking": 120, "Police car (siren)": 1000, "Rain": 1}[name] * rng.uniform(0.95, 1.05)
    noise, phase = rng.standard_normal(len(t)), rng.uniform(0, 1)
    if name == "Rain":
        return 0.1 * noise
    if name == "Police car (siren)":
        return 0.3 * np.sin(2 * np.pi * (pitch * t + 60 * np.sin(2 * np.pi * 2 * (t + phase)))) + 0.01 * noise
    harmonics = {"Guitar": 8, "Piano": 3, "Male speech, man speaking": 20}.get(name, 2)
    tone = sum(np.sin(2 * np.pi * pitch * k * t) / k for k in range(1, harmonics + 1) if pitch * k < sample_rate / 2)
    beat = (t * {"Guitar": 2, "Piano": 3, "Male speech, man speaking": 5}.get(name, 4) + phase) % 1
    shape = np.exp(-5 * beat) if name in ("Guitar", "Piano") else np.sin(np.pi * beat) ** 2
    return 0.25 * tone * shape + 0.01 * noise


def _clip(part, number, duration, sample_rate, seed):
    digest = hashlib.sha256(f"{seed} {part} {number}".encode()).digest()
    rng = np.random.default_rng(list(digest))
    name = SOUNDING[number % len(SOUNDING)]
    labels = [name]
    for parent in ONTOLOGY[name][1]:  # people often mark what is above, too
        while parent and rng.random() < 0.6:
            labels += [parent] if parent in CLASSES else []
            parent = next(iter(ONTOLOGY[parent][1]), None)
    channels = sound(name, duration, sample_rate, rng)
    if number % 4 == 1:
        channels = np.stack([channels, 0.5 * channels], axis=1)
    return {"part": part, "video_id": base64.urlsafe_b64encode(digest)[:11].decode(), "content": encode(channels, sample_rate),
            "labels": sorted(set(labels), key=lambda label: ONTOLOGY[label][0])}
