"""From a family, a profile and a command line to the list of jobs: which notebooks run, with what, after what."""
from __future__ import annotations

import itertools
import json
import re
from dataclasses import asdict, dataclass, replace

from lib.glossary import PARAMETERS, ParameterError, check, unknown
from lib.workbook import gpus, sources
from lib.files import digest
from lib.settings import report_folder
from lib.workbook.parameters import Notebook, check_family, read_profile, resolve_values

ALL = "all"  # in place of a family: every notebook


@dataclass(frozen=True)
class Job:
    """One execution of one notebook.

    id: the notebook's name, and for a combination of a sweep ".name=value" after it (`10_retrieval_train.seed=1`).
    parameters: every parameter of the notebook with its final value. combination: the swept ones among the chosen values.
    upstream: ids of the jobs that must have succeeded before. key: digest of all that the result depends on.
    gpu: GPUs that it occupies where there are any.
    """

    id: str
    notebook: str
    title: str
    family: str | None
    parameters: dict
    combination: dict
    upstream: list[str]
    threads: int
    key: str
    gpu: int = 0

    def as_dict(self) -> dict:
        """The job as JSON-able values, for plan.json."""
        return asdict(self)


def make_jobs(notebooks: dict[str, Notebook], *, family: str | None = None, profile: str | None = None,
              dataset: str | None = None, data_root: str | None = None, settings: dict[str, object] | None = None) -> list[Job]:
    """Resolve and check everything; jobs come in an order in which each stands after what it needs. `family` "all" is every one.

    Precedence, low to high: notebook defaults, the profile's `all`, its sweep, its section for the notebook, `dataset`,
    `data_root` and `settings`.

    Raises:
        ParameterError: naming the parameter (or family, profile, notebook), what is wrong with it and the fix.
    """
    family = None if family == ALL else family or None
    if family:
        check_family(family, notebooks)
    folder = next(iter(notebooks.values())).path.parent / "profiles"
    deltas = read_profile(profile, folder, notebooks) if profile else {}
    given = {k: v for k, v in {"dataset": dataset, "data_root": data_root}.items() if v is not None} | (settings or {})
    notebooks = {name: _without_what_is_given(notebook, deltas.get("all", {}) | deltas.get(name, {}) | given)
                 for name, notebook in notebooks.items()}
    chosen = select(notebooks, family, deltas.get("notebooks"))
    anywhere = {name for n in chosen for name in notebooks[n].defaults}
    for name in given:
        if name not in anywhere:
            known = anywhere if name not in PARAMETERS else []
            raise unknown(name, anywhere, "command line") if known else ParameterError(
                f"command line: no chosen notebook ({', '.join(chosen)}) has a parameter {name!r}")
    check(given, "command line")
    sweep = _sweep({k: v for k, v in deltas.get("sweep", {}).items() if k not in given})
    fans = fan_out(notebooks, chosen, sweep, fixed={name: set(deltas.get(name, {})) for name in chosen})

    jobs: list[Job] = []
    prints: dict[str, str] = {}
    digests = {name: sources.source_digest(notebooks[name]) for name in chosen}
    for name in chosen:
        notebook = notebooks[name]
        for combination in fans[name]:
            layers = deltas.get("all", {}) | combination | deltas.get(name, {}) | given
            overrides = {k: v for k, v in layers.items() if k in notebook.defaults}
            parameters = notebook.defaults | resolve_values(overrides)
            check(parameters, notebook.path.name)
            upstream = [job.id for job in jobs if job.notebook in notebook.after and _belongs(job.combination, combination)]
            roots = [parameters.get("data_root"), *(str(report_folder(name) / "results") for name in parameters.get("reports") or [])]
            for root in roots:
                if root is not None and root not in prints:
                    prints[root] = sources.data_fingerprint(root)
            threads = parameters.get("threads") or notebook.threads
            key = digest(json.dumps(parameters, sort_keys=True), str(threads), digests[name], *(prints.get(root, "") for root in roots), *upstream)
            jobs.append(Job(_identify(name, combination), name, notebook.title, notebook.family, parameters, combination,
                            upstream, threads, key, gpus.needed(parameters)))
    return jobs


def _without_what_is_given(notebook: Notebook, values: dict) -> Notebook:
    """The notebook without those it comes `after` whose product a parameter names (a model trained elsewhere)."""
    needless = {before for parameter, before in notebook.given.items() if values.get(parameter) is not None}
    return replace(notebook, after=tuple(before for before in notebook.after if before not in needless))


def select(notebooks: dict[str, Notebook], family: str | None, restriction: list[str] | None) -> list[str]:
    """Names of the notebooks to run, each after those it needs.

    `restriction` (of a profile) or `family` (plus the notebooks of no family) names them, and what they come `after` is
    added. A notebook of no family gathers what is there: it pulls in no notebook of a family. ParameterError on a circle.
    """
    wanted = [n for n in notebooks.values() if (family is None or n.family in (family, None)) and (restriction is None or n.name in restriction)]
    if not wanted:
        raise ParameterError(f"the profile's notebooks ({', '.join(restriction or [])}) hold none of family {family!r}; "
                             "choose another profile or family")
    order: list[str] = []

    def add(name: str, path: tuple[str, ...]) -> None:
        if name in path:
            raise ParameterError(f"notebooks come after each other in a circle: {' -> '.join((*path, name))}; correct their metadata")
        for before in notebooks[name].after:
            if family is None and restriction is None or notebooks[name].family or not notebooks[before].family:
                add(before, (*path, name))
        if name not in order:
            order.append(name)

    for notebook in sorted(wanted, key=lambda n: (n.family is None and any(notebooks[a].family for a in n.after), n.name)):
        add(notebook.name, ())
    return order


def fan_out(notebooks: dict[str, Notebook], chosen: list[str], sweep: dict[str, list],
            fixed: dict[str, set[str]] | None = None) -> dict[str, list[dict]]:
    """The combinations that each chosen notebook runs in; [{}] is one plain job.

    A swept parameter multiplies the notebooks of a family that have it (unless it is `fixed` for one: notebook -> parameters),
    and the notebooks of a family downstream of them. Notebooks of no family stay single: they prepare what all combinations
    share, or gather what they gave.
    """
    swept: dict[str, set[str]] = {}
    for name in chosen:
        notebook = notebooks[name]
        own = {p for p in sweep if p in notebook.defaults} - (fixed or {}).get(name, set()) if notebook.family else set()
        inherited = {p for before in notebook.after if before in swept for p in swept[before]} if notebook.family else set()
        swept[name] = own | inherited
    for parameter in sweep:
        if not any(parameter in names for names in swept.values()):
            raise ParameterError(f"profile, section sweep: no chosen notebook of a family has the parameter {parameter!r}")
    return {name: [dict(zip(names, values)) for values in itertools.product(*(sweep[p] for p in names))]
            for name in chosen for names in [[p for p in sweep if p in swept[name]]]}


def _belongs(upstream: dict, combination: dict) -> bool:
    """Whether a job of combination `upstream` feeds one of `combination`: they agree, or the latter gathers all ({})."""
    return not combination or all(combination.get(name) == value for name, value in upstream.items())


def _sweep(sweep: dict[str, list]) -> dict[str, list]:
    """The values as jobs get them (1 and 1.0 of a float are one value); ParameterError when one is listed twice."""
    resolved = {name: [resolve_values({name: value})[name] for value in values] for name, values in sweep.items()}
    for name, values in resolved.items():
        twice = [value for position, value in enumerate(values) if value in values[:position]]
        if twice:
            raise ParameterError(f"profile, section sweep: {name} lists {twice[0]!r} twice; each value is one job")
    return resolved


def _identify(name: str, combination: dict) -> str:
    """`name` with the combination as a part of a file name; a digest keeps apart what would look alike or is too long."""
    exact = "+".join(f"{key}={'null' if value == 'None' else value}" for key, value in combination.items())  # a text, not None
    suffix = "+".join(f"{key}={re.sub(r'[^A-Za-z0-9_.-]', '-', str(value))}" for key, value in combination.items())
    if suffix != exact or len(suffix) > 100:
        suffix = f"{suffix[:90]}-{digest(json.dumps(combination))[:8]}"
    return f"{name}.{suffix}" if combination else name
