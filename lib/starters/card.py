"""Model cards of the starters: README.md of each family's folder, written from its config.json, origin.json and scores.json."""
from __future__ import annotations

from collections import Counter
from pathlib import Path

from safetensors import safe_open

from lib.files import STARTER, STARTERS, read_json
from lib.starters import FAMILIES
from lib.workbook import findings, results

TYPES = {"F32": "float32", "F16": "float16", "F8_E4M3": "float8 (E4M3)", "I64": "int64"}
# family: (what it is, what it hears, how to open it, what it cannot do)
WORDS = {
    "retrieval": (
        "A dual encoder of sounds and English captions: a small PaSST and a small RoBERTa, both from random weights, meet in a space of "
        "256 dimensions (notebook 10). Type a sentence, hear the clips that it finds: notebook 12.",
        "from lib.families.retrieval import load\nmodel, config = load(\"starter:retrieval\")",
        ["Its vocabulary is that of the workbook's caption grammar: words outside it fall into pieces that it has never read.",
         "It knows 24 classes of synthesised sounds; what it says about recordings is in the table on ESC-10.",
         "One training, one seed: how much another seed differs is not known from it."]),
    "hyperbolic": (
        "One linear map from the embeddings of starter:retrieval, which stays frozen, into the Poincaré ball, trained to tag scenes by text "
        "prompts, with entailment cones (arm `cones` of notebook 20). Notebook 22 draws its space.",
        "from lib.families.hyperbolic import load\nspace, config = load(\"starter:hyperbolic\")    # config.backbone: the frozen model",
        ["It needs starter:retrieval, as it is shipped: another frozen model is refused by its digest.",
         "Whether curvature helps is notebook 21's question, with controls and three seeds; one map says nothing about it.",
         "The frozen model has never read the names of the groups of the taxonomy."]),
    "spatial": (
        "Sounds in first-order ambisonics and captions that say what comes first and from where (tSALM): two small HTS-AT branches, a "
        "temporal encoder, a small RoBERTa, all from random weights (notebooks 30 and 31: 20 epochs on clips of one event, then "
        "triplets). Notebook 32 asks it for order and place.",
        "from lib.families.spatial import load\nmodel, config = load(\"starter:spatial\")",
        ["Trained on two synthesised events in the open, 2.5 s a clip: no rooms, no more than two events.",
         "The model of one event, from which its training started, is not shipped: those parts of notebook 32 (zero-shot direction, "
         "moving a sound) need notebook 31.",
         "Trained with the arm `no_adversary`: the encoders do not feel the modality classifier, and a probe tells sound from caption. "
         "With the adversary the same run stayed on a plateau (order 0.93, places 0.49 of the test triplets): README, what was tried.",
         "Three quarters of it are stored in 8 bits; what that changes stands above."]),
    "audiovisual": (
        "Three stages of T3-AV on small videos with sound: masked autoencoding (`mae`), alignment of sound and picture (`contrastive`) "
        "and, in this folder, classification; all from random weights (notebooks 40 to 43). Notebook 44 opens them.",
        "from lib.families.audiovisual import load\nmodel, config, picture = load(\"starter:audiovisual\")    # or starter:audiovisual/mae, "
        "starter:audiovisual/contrastive",
        ["Pictures are drawn shapes of 64 x 64 pixels, one shape and colour a class: what it sees in them says nothing about real videos.",
         "What pretraining gains is measured by notebooks 43 and 44 with several seeds, not by these weights."]),
    "tokenizer": (
        "An audio BSQ-ViT of 18 bits a token, from random weights (notebook 50), and in `vocoder` a small network that makes its mel "
        "levels audible. Notebook 51 shows and plays what the bits keep.",
        "from lib.families.tokenizer import load\nmodel, config, front_end = load(\"starter:tokenizer\")    # vocoder: "
        "starter:tokenizer/vocoder",
        ["Trained on synthesised soundscapes: recordings are drawn less well, and speech is not what it is for.",
         "Much of a sound is lost to the ear: STOI stands far below what its own undistorted levels reach (ceiling).",
         "The vocoder has no discriminator: expect a buzz. Loudness is kept, phases are invented.",
         "Packed files say which weights made them and are read by these weights only."])}


def card(family: str) -> str:
    """The model card of a family as Markdown, from what lies in its folder. FileNotFoundError: it is not collected or not scored."""
    scores = read_json(STARTERS / family / "scores.json")
    if scores is None:
        raise FileNotFoundError(f"{STARTERS / family / 'scores.json'}: score the starters first, python -m lib.starters score")
    what, code, limits = WORDS[family]
    lines = [f"# Starter weights: {family}", "", what, "", "```python", code, "```", "",
             f"Notebooks and command lines take `{STARTER}{family}` wherever they take the folder of a checkpoint.", "",
             "| weights | parameters | bytes | stored as |", "|---|---|---|---|"]
    for name in FAMILIES[family]:
        count, size, kinds = _weights(STARTERS / name)
        lines.append(f"| {STARTER}{name} | {count:,} | {size:,} | {kinds} |")
    lines += ["", "Computed in float32, whatever they are stored as.", ""]
    for title, part in (("Training", _training(family)), ("On held-out scenes", _held_out(scores["held_out"])),
                        ("On recordings", _recordings(scores["esc10"])), ("Limits", [f"- {limit}" for limit in limits])):
        lines += [f"## {title}", "", *part, ""]
    return "\n".join([*lines, "Licence: MIT, as the workbook (`LICENSE`).", ""])


def _weights(folder: Path) -> tuple[int, int, str]:
    """Numbers in a folder's weights, bytes of the file, and how they are stored."""
    file, kinds = folder / "model.safetensors", Counter()
    with safe_open(file, "pt") as stored:
        for name in stored.keys():
            entry, count = stored.get_slice(name), 1
            for size in entry.get_shape():
                count *= size
            kinds[TYPES[entry.get_dtype()]] += count
    total = sum(kinds.values())
    shares = ", ".join(f"{count / total:.0%} {kind}" for kind, count in kinds.most_common() if count / total >= 0.005)
    return total, file.stat().st_size, shares


def _training(family: str) -> list[str]:
    lines = ["    make report PROFILE=starter                                # notebooks/profiles/starter.yaml",
             "    python -m lib.starters collect --report reports/starter    # these folders", "",
             "On the workbook's synthesised soundscapes alone: no recording, no outside data, no outside weights.", ""]
    for name in FAMILIES[family]:
        folder = STARTERS / name
        origin, training = read_json(folder / "origin.json"), (read_json(folder / "training.json") or {}).get("config", {})
        told = origin["protocol"]
        facts = [f"notebook {origin['notebook']}, {origin['seconds'] / 60:.0f} min in all on a shared CPU with 2 cores",
                 *([_length(training)] if training else []),
                 f"trained on {', '.join(told['fit_splits'])}" + (f", kept: {told['selection']} epoch on validation" if training else ""),
                 f"seed {told['seeds'][0]}", f"commit {origin['commit'][:12]}"]
        lines.append(f"- {STARTER}{name}: " + "; ".join(facts) + ".")
    front_end = _front_end(STARTERS / family)
    return [*lines, "", "Front end: " + ", ".join(f"{key} {value}" for key, value in front_end.items()) + "."]


def _length(training: dict) -> str:
    """How long was trained, on how much."""
    clips = training["num_samples"] or "all"
    return f"{clips} clips over the splits, {training['epochs']} epochs, batches of {training['batch_size']}"


def _front_end(folder: Path) -> dict:
    """What config.json says of the front end (of a projection: of the frozen model's)."""
    config = read_json(folder / "config.json")
    found = config.get("front_end") or config["audio"]["front_end"]
    return {key: value for key, value in found.items() if not key.endswith(("masks", "mask")) and value is not None}


def _held_out(part: dict) -> list[str]:
    told = part["protocol"]
    return [f"Notebook {part['notebook']} with these very files (`make report PROFILE=starter_scores`): split {told['split']}, scenes of which no "
            "sound is in training or validation; what the columns mean stands in the notebook. *As trained*: the same in float32, before rounding.", "",
            *_table(part["metrics"], part["as_trained"])]


def _recordings(part: dict) -> list[str]:
    told, rows = part["protocol"], part["metrics"]
    splits = ", ".join(f"{count} {name}" for name, count in told["splits"].items())
    lines = [f"{told['title']} (K. J. Piczak): {splits} clips; fold {told['test_fold']} is test and was scored once. A linear probe reads "
             f"{told['embedding']}; nothing of the model is trained. Baseline: the same probe on mean and deviation of the log-mel spectrogram. "
             "Control: the same network with random weights. Intervals resample source recordings.", "", *_table(rows), ""]
    names = {"linear probe - log-mel": "statistics of the log-mel spectrogram", "linear probe - untrained": "the same network untrained"}
    for row in rows:
        if row["name"] in names:
            verdict = findings.verdict(row, 0.0, "not to be told apart from", "{} than")
            lines.append(f"- The probe of the starter is {verdict} that of {names[row['name']]} ({results.number(row['value'])}, interval "
                         f"{results.between(row['interval'])}).")
        if row["name"].startswith("zero-shot"):
            verdict = findings.verdict(row, row["chance"], "at chance", "{} than chance")
            lines.append(f"- Asked by prompts, without any training on recordings, it is {verdict}.")
    return lines


def _table(rows: list[dict], as_trained: dict[str, float] | None = None) -> list[str]:
    told = {"as trained": as_trained} if as_trained else {}
    columns = [name for name in results.REFERENCES if any(row[name] is not None for row in rows)]
    head = ["", "value", "95 % interval", *told, *columns, "n"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for row in rows:
        cells = [row["name"] + ("" if row["higher_is_better"] else " (lower is better)"), results.number(row["value"]), results.between(row["interval"]),
                 *(results.number(column[row["name"]]) for column in told.values()),
                 *(results.number(row[name]) for name in columns), str(row["n"])]
        lines.append("| " + " | ".join(cells) + " |")
    return lines
