"""The fault list of one version of a network on another one, which has the same tensors and some of its own.

Faults are mapped by the names of weights and activations. Behind a protected graph output the node outputs
`NAME.unrestricted` (or another suffix of `graph/protection/`): faults in it are mapped there, before the protection.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from onnxfi.campaign.plan.fault_targets import FaultTargets
from onnxfi.campaign.plan.plan import Plan, no_faults_line
from onnxfi.campaign.spec.designs import BerSweep, SingleFaults
from onnxfi.errors import SpecError
from onnxfi.faults.faultlist import Header, LineReader, trial_lines
from onnxfi.faults.registry import parse_fault
from onnxfi.faults.space import FaultSpace, Target
from onnxfi.faults.trials import Faults, Sampler, concatenate_faults, draw_faults
from onnxfi.graph.write.output_file import atomic_files

#: Suffix that protections give a tensor whose own name the protected tensor has taken.
SUFFIXES = (".unrestricted", ".unfinite", ".unvoted")


@dataclass(frozen=True)
class MappedList:
    """A list that was mapped: its file, and the sites that the other version has of its own.

    Attributes
    ----------
    path
        The list of the second version.
    sites
        Sites that both versions have.
    own
        Targets of the second version that the first does not have.
    own_sites
        Their sites.
    """

    path: Path
    sites: int
    own: tuple[Target, ...]
    own_sites: int


def map_list(made: Plan, onto: FaultTargets, file: str, out: Path) -> MappedList:
    """Write the trials of a plan as the list of another version.

    Parameters
    ----------
    made : Plan
        A sweep over bit error rates, or single faults, on the first version.
    onto : FaultTargets
        The targets of the second version.
    file : str
        The model file of the second version.
    out : Path
        The list to write.

    Returns
    -------
    MappedList
        The list. In a sweep the second version also gets faults at the same rate in sites of its own.

    Raises
    ------
    SpecError
        For another design, and where the second version lacks a tensor or holds other numbers in it.
    """
    design = made.campaign.design
    if not isinstance(design, BerSweep | SingleFaults):
        raise SpecError(
            "paired comparison takes a sweep over bit error rates, or single faults; give --ber or --trials"
        )
    event = parse_fault(made.header.fault)
    there = {t.id: t for t in onto.targets}
    spaces = list({id(s.space): s.space for s in made.strata}.values())
    counterparts = _counterparts([t for space in spaces for t in space.targets], there)
    every = onto.space(design.draw.selector, design.draw.scope, event)
    known = {t.id for t in counterparts.values()} | {t.id for t in made.fault_targets.targets}
    own = tuple(t for t in every.targets if t.id not in known) if not design.draw.selector.elements else ()
    space = FaultSpace.over(own, event, bits=design.draw.selector.bits) if own else None
    own_sites = 0 if space is None else space.size
    header = replace(
        made.header, model=onto.model.digest, file=file, activations=onto.activation_space,
        population=made.header.population + own_sites,
    )  # fmt: skip
    with atomic_files([out]) as (stream,):
        stream.write((header.line() + "\n").encode())
        for trial, stratum, faults in _faults(made):
            parts = [_moved(faults, counterparts, onto, made.campaign.model, file)]
            if space is not None and isinstance(design, BerSweep):
                how = Sampler("ber", rate=made.strata[stratum].ber or 0.0, seed=design.seed)
                parts.append(onto.placed(onto.onto(draw_faults(space, how, event, trial, part=1))))
            both = concatenate_faults([part for part in parts if len(part)] or parts[:1])
            lines = (
                trial_lines(trial, both, Sampler("sites"), ()) if len(both) else [no_faults_line(trial, design.seed)]
            )
            stream.write(("\n".join(lines) + "\n").encode())
    return MappedList(out, made.header.population, own, own_sites)


def write_trials(
    trials: Iterable[tuple[int, Faults]], header: Header, onto: FaultTargets, models: tuple[str, str], out: Path
) -> None:
    """Write the faults of some trials of one version as a list of another one, without strata.

    Parameters
    ----------
    trials : iterable of (int, Faults)
        Numbers, ascending, and faults on the first version.
    header : Header
        The header of their list.
    onto : FaultTargets
        The targets of the second version.
    models : tuple of str
        The files of both versions.
    out : Path
        The list to write.
    """
    made = replace(
        header, model=onto.model.digest, file=models[1], strata=(), added=0,
        activations=None if header.activations is None else onto.activation_space,
    )  # fmt: skip
    there = {t.id: t for t in onto.targets}
    with atomic_files([out]) as (stream,):
        stream.write((made.line() + "\n").encode())
        for trial, faults in trials:
            used = [faults.targets[k] for k in np.unique(faults.sites.target).tolist()]
            found = _moved(faults, _counterparts(used, there), onto, *models)
            stream.write(("\n".join(trial_lines(trial, found, Sampler("sites"), ())) + "\n").encode())


def _faults(made: Plan) -> Iterator[tuple[int, int, Faults]]:
    """Yield the number, stratum and faults of each trial of a plan."""
    targets = made.fault_targets
    reader = LineReader(made.header, targets.targets, "the plan", lambda: targets.listed(made.header))
    for planned in made.trials():
        [(trial, faults)] = reader.trials(enumerate(planned.lines.splitlines(), 1))
        yield trial, planned.stratum, faults


def _counterparts(targets: list[Target], there: Mapping[str, Target]) -> dict[str, Target]:
    """Return the target of the second version for each of the first, by its id."""
    found: dict[str, Target] = {}
    for t in targets:
        names = [t.id + suffix for suffix in SUFFIXES if t.is_activation] + [t.id]
        other = next((there[name] for name in names if name in there), None)
        if other is None:
            raise SpecError(
                f"{t.id!r} is missing in the second model, so faults in it cannot be mapped; give versions with the "
                f"same tensors, or leave it out with --exclude"
            )
        if (other.word, other.shape) != (t.word, t.shape):
            raise SpecError(
                f"{t.id!r} is {t.dtype} {list(t.shape)} in the first model and {other.dtype} {list(other.shape)} in "
                f"the second; paired comparison needs the same words, compare without --paired takes other formats"
            )
        found[t.id] = other
    return found


def _moved(faults: Faults, counterparts: Mapping[str, Target], onto: FaultTargets, first: str, second: str) -> Faults:
    """Return faults over the targets of the second version, which holds the same words there."""
    used = set(np.unique(faults.sites.target).tolist())
    ordinals = np.array(
        [onto.by_id[counterparts[t.id].id] if k in used else 0 for k, t in enumerate(faults.targets)], np.int64
    )
    before = faults.before
    moved = replace(faults, targets=onto.targets, sites=faults.sites.retarget(ordinals), before=None, after=None)
    placed = onto.placed(moved)
    if before is not None and placed.before is not None and not np.array_equal(before, placed.before):
        row = int(np.flatnonzero(before != placed.before)[0])
        name = onto.targets[int(placed.sites.target[row])].id
        raise SpecError(
            f"{name!r} holds other numbers in {second!r} than in {first!r}; paired comparison needs versions of the "
            f"same weights"
        )
    return placed
