"""How the classes of a data set lie under each other: a directed acyclic graph, general above specific.

Nodes are indices; a class may have several parents (AudioSet) and an inner node may be a class itself. There is no root: what
needs one (`with_root`) adds a virtual one above the top nodes. Depth counts the fewest edges from the virtual root, whether it is
added or not: 0 for itself, 1 for top nodes.
"""
from __future__ import annotations

import csv
import json
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import numpy as np

from lib.data.manifest import Manifest
from lib.files import user_path


@dataclass(frozen=True)
class Taxonomy:
    """A graph of classes, checked on construction.

    Args:
        nodes: names, unique.
        parents: of each node the indices of its direct parents; () for a top node.
        classes: node of each class of the data set, in the order of the manifest's classes.
        phrases: what each node is called in a prompt; (): its name.
        rooted: the last node is a virtual root, which is no class and lies above all others.
    Raises:
        ValueError: naming the node that has an unknown parent, is there twice or is its own ancestor, and the class that is no
            node.
    """

    nodes: tuple[str, ...]
    parents: tuple[tuple[int, ...], ...]
    classes: tuple[int, ...]
    phrases: tuple[str, ...] = ()
    rooted: bool = False

    def __post_init__(self):
        count = len(self.nodes)
        twice = [name for name, times in Counter(self.nodes).items() if times > 1]
        if twice:
            raise ValueError(f"taxonomy: node {twice[0]!r} is there twice")
        if len(self.parents) != count or self.phrases and len(self.phrases) != count:
            raise ValueError(f"taxonomy: {count} nodes with {len(self.parents)} lists of parents and {len(self.phrases)} phrases")
        for name, above in zip(self.nodes, self.parents):
            if any(not 0 <= p < count for p in above) or len(set(above)) < len(above):
                raise ValueError(f"taxonomy: the parents of node {name!r} must be different nodes below {count}, got {above}")
        for number, node in enumerate(self.classes):
            if not 0 <= node < count - self.rooted or self.classes.index(node) < number:
                raise ValueError(f"taxonomy: class {number} is node {node}; expected one of its own below {count - self.rooted}")
        if self.rooted and [i for i, above in enumerate(self.parents) if not above] != [count - 1]:
            raise ValueError("taxonomy: the last node of a rooted taxonomy is the only one without parents")
        self._order  # finds circles

    def __len__(self) -> int:
        return len(self.nodes)

    @cached_property
    def _order(self) -> list[int]:
        """Nodes, parents before their children."""
        try:
            return list(TopologicalSorter(dict(enumerate(self.parents))).static_order())
        except CycleError as error:
            circle = " > ".join(repr(self.nodes[i]) for i in error.args[1])
            raise ValueError(f"taxonomy: a node is its own ancestor: {circle}") from error

    @cached_property
    def depth(self) -> np.ndarray:
        """(n,) int: fewest edges to the virtual root: 0 for itself, 1 for top nodes."""
        depth = np.zeros(len(self.nodes), dtype=np.int64)
        for node in self._order:
            depth[node] = 1 + min((depth[p] for p in self.parents[node]), default=-1 if self.rooted else 0)
        return depth

    @cached_property
    def ancestors(self) -> np.ndarray:
        """(n, n) bool: [i, j] says that j is i itself or lies above i."""
        reach = np.eye(len(self.nodes), dtype=bool)
        for node in self._order:
            for parent in self.parents[node]:
                reach[node] |= reach[parent]
        return reach

    @cached_property
    def edges(self) -> np.ndarray:
        """(E, 2) int: direct (parent, child) pairs."""
        return np.array([(p, i) for i, above in enumerate(self.parents) for p in above], dtype=np.int64).reshape(-1, 2)

    @cached_property
    def closure(self) -> np.ndarray:
        """(P, 2) int: all (ancestor, descendant) pairs, a node with itself not among them."""
        child, parent = np.nonzero(self.ancestors & ~np.eye(len(self.nodes), dtype=bool))
        return np.stack([parent, child], axis=1)

    def phrase(self, node: int) -> str:
        """What a node is called in a prompt."""
        return self.phrases[node] if self.phrases else self.nodes[node]

    def with_root(self, name: str = "sound") -> "Taxonomy":
        """The same with a virtual root (depth 0) above the top nodes, as the last node; depths, classes and indices stay."""
        root = len(self.nodes)
        parents = tuple(above or (root,) for above in self.parents) + ((),)
        return Taxonomy((*self.nodes, name), parents, self.classes, (*self.phrases, name) if self.phrases else (), rooted=True)

    @classmethod
    def of(cls, manifest: Manifest) -> "Taxonomy | None":
        """The taxonomy of a manifest: info["ontology"] (nodes, parents, classes), or info["taxonomy"] {class: [coarsest, ...,
        finest]}.

        None where the data set has none.

        Raises:
            ValueError: a class without a path, or a group that lies under two others.
        """
        stored = manifest.info.get("ontology")
        if stored:
            return cls(tuple(stored["nodes"]), tuple(map(tuple, stored["parents"])), tuple(stored["classes"]),
                       tuple(stored.get("phrases", ())), stored.get("rooted", False))
        paths = manifest.info.get("taxonomy")
        if not paths:
            return None
        phrases, classes = manifest.info.get("phrases", {}), manifest.classes
        above: dict[str, str | None] = {}
        for name in classes:
            if name not in paths:
                raise ValueError(f"manifest {manifest.name}: class {name!r} has no path in info['taxonomy'], [] for a top class")
            for parent, node in zip([None, *paths[name]], [*paths[name], name]):
                if above.setdefault(node, parent) != parent:
                    raise ValueError(f"manifest {manifest.name}: {node!r} lies under {above[node]!r} and under {parent!r} in "
                                     "info['taxonomy']; give the two different names, or store a graph as info['ontology']")
        nodes = [*classes, *(name for name in above if name not in classes)]
        index = {name: i for i, name in enumerate(nodes)}
        parents = tuple(() if above[name] is None else (index[above[name]],) for name in nodes)
        said = tuple(phrases.get(name, name.replace("_", " ")) for name in nodes)
        return cls(tuple(nodes), parents, tuple(range(len(classes))), said)

    def to_info(self) -> dict:
        """What `of` reads from a manifest's info["ontology"]."""
        return {"nodes": list(self.nodes), "parents": [list(p) for p in self.parents], "classes": list(self.classes),
                "phrases": list(self.phrases), "rooted": self.rooted}


def class_table(path: str | Path) -> list[tuple[str, str]]:
    """AudioSet's classes from its table.

    Args:
        path: CSV with the columns index, mid, display_name, or JSON {display_name: index} (then without MIDs).
    Returns:
        (mid or "", display name) in the order of the indices.
    Raises:
        FileNotFoundError, ValueError: naming the file, what is wrong with it and how it should be.
    """
    path = user_path(path).absolute()
    if not path.is_file():
        raise FileNotFoundError(f"class table {path} is not there; give AudioSet's class_labels_indices.csv or {{name: index}}")
    try:
        if path.suffix.lower() == ".json":
            rows = [(int(index), "", name.strip()) for name, index in json.loads(path.read_text(encoding="utf-8-sig")).items()]
        else:
            with open(path, newline="", encoding="utf-8-sig") as file:
                rows = [(int(row["index"]), row["mid"].strip(), row["display_name"].strip()) for row in csv.DictReader(file)]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: not a class table ({error!r}); it needs the columns index, mid, display_name, or to be a JSON "
                         "file {name: index}") from error
    rows.sort()
    if not rows or [index for index, *_ in rows] != list(range(len(rows))):
        raise ValueError(f"{path}: the indices must be 0 to {max(len(rows) - 1, 0)}, each once")
    names = [name.casefold() for *_, name in rows]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice or "" in names:
        raise ValueError(f"{path}: " + (f"the name {twice[0]!r} is there twice" if twice else "a class has no name"))
    return [(mid, name) for _, mid, name in rows]


def read_ontology(path: str | Path, classes: list[tuple[str, str]] | None = None) -> Taxonomy:
    """AudioSet's ontology.json as a taxonomy.

    Args:
        path: the published list of {"id", "name", "child_ids", ...}.
        classes: of `class_table`, matched by MID, or by name where the table has none; None: every node is a class.
    Raises:
        FileNotFoundError, ValueError: naming the file and the class or node that is missing.
    """
    path = user_path(path).absolute()
    if not path.is_file():
        raise FileNotFoundError(f"ontology {path} is not there; give AudioSet's ontology.json")
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        number = {entry["id"]: i for i, entry in enumerate(entries)}
        names = [entry["name"] for entry in entries]
        parents: list[list[int]] = [[] for _ in entries]
        for i, entry in enumerate(entries):
            for child in entry["child_ids"]:
                parents[number[child]].append(i)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not AudioSet's ontology ({error!r}), a list of nodes with id, name and child_ids") from error
    by_name = {name.casefold(): i for i, name in enumerate(names)}
    chosen = []
    for mid, name in classes if classes is not None else [(entry["id"], "") for entry in entries]:
        node = number.get(mid, by_name.get(name.casefold()))
        if node is None:
            raise ValueError(f"{path}: class {name!r} ({mid or 'no MID'}) is not in the ontology; use the table of its release")
        if name:
            names[node] = name
        chosen.append(node)
    return Taxonomy(tuple(names), tuple(map(tuple, parents)), tuple(chosen))
