"""Taxonomies as graphs: against networkx on random ones, from manifests, and AudioSet's real ontology."""
import json
import os
from pathlib import Path

import networkx as nx
import numpy as np
import pandas as pd
import pytest

from lib.data import scenes
from lib.data.manifest import Manifest
from lib.data.taxonomy import Taxonomy, class_table, read_ontology
from lib.settings import ROOT

METADATA = Path(os.environ.get("WORKBOOK_SHARED", ROOT / "../shared/data")) / "metadata"
real = pytest.mark.skipif(not METADATA.is_dir(), reason="the real AudioSet ontology and class table are not here")


def manifest(classes, **info):
    table = pd.DataFrame({"clip_id": classes, "path": classes, "start": 0.0, "duration": 1.0, "split": "train",
                          "captions": [["x"]] * len(classes), "labels": [[c] for c in classes]})
    return Manifest(table, "toy", Path("."), {"classes": classes, **info})


@pytest.mark.parametrize("seed", range(4))
def test_depth_ancestors_edges_and_closure_against_networkx(seed):
    rng = np.random.default_rng(seed)
    place = [int(i) for i in rng.permutation(20)]
    parents = [()] * 20
    for i in range(3, 20):
        parents[place[i]] = tuple(place[p] for p in rng.choice(i, size=rng.integers(4), replace=False))
    taxonomy = Taxonomy(tuple(map(str, range(20))), tuple(parents), tuple(range(0, 20, 2)))
    graph = nx.DiGraph([(parent, child) for child, above in enumerate(parents) for parent in above or (20,)])
    depth = nx.shortest_path_length(graph, 20)
    assert taxonomy.depth.tolist() == [depth[i] for i in range(20)]
    above = [nx.ancestors(graph, i) - {20} for i in range(20)]
    assert [set(np.flatnonzero(row)) for row in taxonomy.ancestors] == [above[i] | {i} for i in range(20)]
    assert {tuple(pair) for pair in taxonomy.edges.tolist()} == {(p, i) for i in range(20) for p in parents[i]}
    assert {tuple(pair) for pair in taxonomy.closure.tolist()} == {(p, i) for i in range(20) for p in above[i]}
    assert len(taxonomy.closure) == sum(map(len, above)) and taxonomy.edges.shape[1] == taxonomy.closure.shape[1] == 2
    rooted = taxonomy.with_root()
    assert rooted.depth.tolist() == [*taxonomy.depth.tolist(), 0], "depths stay, the virtual root has 0"
    assert rooted.ancestors[:, 20].all() and (rooted.ancestors[:20, :20] == taxonomy.ancestors).all()
    assert rooted.classes == taxonomy.classes and {tuple(pair) for pair in rooted.edges.tolist()} == set(graph.edges)


def test_small_and_empty_ones():
    alone = Taxonomy(("a", "b"), ((), ()), (1,))
    assert alone.edges.shape == alone.closure.shape == (0, 2) and alone.depth.tolist() == [1, 1]
    assert len(Taxonomy((), (), ())) == 0 and Taxonomy((), (), ()).ancestors.shape == (0, 0)
    assert alone.phrase(1) == "b" and Taxonomy(("a",), ((),), (0,), ("an a",)).with_root("all").phrases == ("an a", "all")


@pytest.mark.parametrize("arguments, words", [
    ((("a", "b", "a"), ((),) * 3, ()), "'a' is there twice"), ((("a", "b"), ((),), ()), "1 lists of parents"),
    ((("a", "b"), ((), (2,)), ()), "parents of node 'b'"), ((("a", "b"), ((), (0, 0)), ()), "parents of node 'b'"),
    ((("a", "b"), ((), ()), (2,)), "class 0 is node 2"), ((("a", "b"), ((), ()), (1, -1)), "class 1 is node -1"),
    ((("a", "b"), ((), ()), (1, 1)), "class 1 is node 1"), ((("a", "b"), ((), ()), (), ("only one",)), "1 phrases"),
    ((("a",), ((0,),), ()), "own ancestor: 'a'"),
    ((("a", "b", "c", "d"), ((), (2, 0), (1,), (2,)), ()), "own ancestor: '[bc]' > '[bc]'"),
    ((("a", "b"), ((1,), ()), (1,), (), True), "class 0 is node 1"),
    ((("a", "b"), ((), ()), (), (), True), "only one without parents")])
def test_refusals(arguments, words):
    with pytest.raises(ValueError, match=words):
        Taxonomy(*arguments)


def test_from_paths():
    """An inner node may be a class; groups come after the classes; the words of prompts are those of class_prompts."""
    paths = {"dog_bark": ["animals", "dog"], "dog": ["animals"], "rain": []}
    toy = Taxonomy.of(manifest(["dog_bark", "dog", "rain"], taxonomy=paths, phrases={"rain": "falling rain"}))
    assert toy.nodes == ("dog_bark", "dog", "rain", "animals") and toy.parents == ((1,), (3,), (), ())
    assert toy.classes == (0, 1, 2)
    assert toy.phrases == ("dog bark", "dog", "falling rain", "animals") and toy.depth.tolist() == [3, 2, 1, 1]
    assert Taxonomy.of(manifest(["a"])) is None
    three = Taxonomy.of(manifest(scenes.classes(), taxonomy=scenes.taxonomy()))
    assert set(three.depth[list(three.classes)]) == {3} and len(three.classes) == 24
    with pytest.raises(ValueError, match="'b' has no path"):
        Taxonomy.of(manifest(["a", "b"], taxonomy={"a": ["x"]}))
    with pytest.raises(ValueError, match="'other' lies under 'x' and under 'y'"):
        Taxonomy.of(manifest(["a", "b"], taxonomy={"a": ["x", "other"], "b": ["y", "other"]}))
    with pytest.raises(ValueError, match="'a' lies under 'x' and under 'a'|own ancestor"):
        Taxonomy.of(manifest(["a"], taxonomy={"a": ["x", "a"]}))


def test_through_a_manifest_and_back():
    graph = Taxonomy(("a", "b", "c"), ((), (), (0, 1)), (2, 0), ("an a", "a b", "a c"))
    for taxonomy in (graph, graph.with_root()):
        info = json.loads(json.dumps(taxonomy.to_info()))
        assert Taxonomy.of(manifest(["c", "a"], ontology=info)) == taxonomy


def test_class_tables(tmp_path):
    table = tmp_path / "-table.csv"
    table.write_text('\ufeffindex,mid,display_name\n1,/m/b,"Bark, loud"\n0,/m/a,Animal\n', encoding="utf-8")
    assert class_table(table) == [("/m/a", "Animal"), ("/m/b", "Bark, loud")]
    names = tmp_path / "names.json"
    names.write_text(json.dumps({"Bark, loud": 1, "Animal": 0}))
    assert class_table(names) == [("", "Animal"), ("", "Bark, loud")]
    for rows, words in (("1,/m/a,a", "0 to 0"), ("", "indices"), ("0,/m/a,a\n1,/m/b,A", "'a' is there twice"),
                        ("0,/m/a,", "no name"), ("x,/m/a,a", "not a class table"), ("0,/m/a", "not a class table")):
        table.write_text(f"index,mid,display_name\n{rows}\n")
        with pytest.raises(ValueError, match=words) as error:
            class_table(table)
        assert "-table.csv" in str(error.value)
    for text in ("[1]", "{", '{"a": null}'):
        names.write_text(text)
        with pytest.raises(ValueError, match="names.json: not a class table"):
            class_table(names)
    with pytest.raises(FileNotFoundError, match="absent.csv"):
        class_table(tmp_path / "absent.csv")


def test_ontology_files(tmp_path):
    file = tmp_path / "ontology.json"
    entries = [{"id": "/m/a", "name": "Animal", "child_ids": ["/m/b"]}, {"id": "/m/t", "name": "Thing", "child_ids": ["/m/b"]},
               {"id": "/m/b", "name": "Bark", "child_ids": []}]
    file.write_text(json.dumps(entries))
    by_mid = read_ontology(file, [("/m/b", "Barking"), ("/m/a", "Animal")])
    assert by_mid.nodes == ("Animal", "Thing", "Barking") and by_mid.classes == (2, 0) and by_mid.parents == ((), (), (0, 1))
    assert read_ontology(file, [("", "bark")]).classes == (2,) and read_ontology(file).classes == (0, 1, 2)
    with pytest.raises(ValueError, match="ontology.json: class 'Meow' .no MID."):
        read_ontology(file, [("", "Meow")])
    for broken in ("{", '{"id": 1}', '[{"id": "/m/a", "name": "A", "child_ids": ["/m/x"]}]'):
        file.write_text(broken)
        with pytest.raises(ValueError, match="ontology.json: not AudioSet's"):
            read_ontology(file)
    with pytest.raises(FileNotFoundError, match="absent.json"):
        read_ontology(tmp_path / "absent.json")


@real
def test_audioset_ontology():
    """The facts of the published files."""
    ontology = read_ontology(METADATA / "audioset_ontology.json", class_table(METADATA / "audioset_class_labels_indices.csv"))
    classes = set(ontology.classes)
    assert (len(ontology), len(ontology.edges), len(ontology.classes)) == (632, 670, 527)
    assert (ontology.depth == 1).sum() == 7 and sum(len(above) > 1 for above in ontology.parents) == 38
    leaves = set(range(632)) - set(ontology.edges[:, 0].tolist())
    assert len(leaves & classes) == 401
    among = [(p, i) for p, i in ontology.closure.tolist() if p in classes and i in classes]
    assert len(among) == 835 and len({i for _, i in among}) == 527 - 126
    assert sum(p in classes and i in classes for p, i in ontology.edges.tolist()) == 378
    assert (len(ontology.with_root()), ontology.with_root().depth[-1]) == (633, 0)
    assert ontology.nodes[ontology.classes[0]] == "Speech" and ontology.phrase(ontology.classes[0]) == "Speech"
