"""Aliases: stored tensors in the same bytes of external data are one target under several names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from onnxfi.faults.space import Consumer, Target
from onnxfi.graph.model.byte_source import quoted
from onnxfi.graph.model.stored_tensors import WordLocation

_Row = tuple[Target, WordLocation]


def merge_aliases(rows: Sequence[_Row]) -> list[_Row]:
    """Return the targets, those in exactly the same bytes merged into the first, with the ids and users of all.

    Targets that share some of their bytes, or all in another number format, have these in `span`.
    """
    groups: dict[object, list[Target]] = {}
    for target, place in rows:
        groups.setdefault(_bytes_of(target, place), []).append(target)
    out: list[_Row] = []
    for target, place in rows:
        group = groups[_bytes_of(target, place)]
        if group[0] is target:
            out.append((_as_one(group), place))
    return _with_spans(out)


def target_notes(targets: Sequence[Target]) -> list[str]:
    """Return notes on the population: aliases that count once, tensors that overlap, tensors that are unused."""
    out = []
    aliased = [t for t in targets if t.aliases]
    if aliased:
        one = aliased[0]
        out.append(
            f"external data holds {len(aliased):,} weights under several names, as {quoted(one.id)}, which is also "
            f"{quoted(one.aliases[0])}: their bits count once"
        )
    crossed = [t for t in targets if t.span]
    if crossed:
        one, other = sorted(crossed, key=lambda t: t.span)[:2]  # the first is never alone
        out.append(
            f"{len(crossed):,} tensors share some of their bytes of external data with another, as {quoted(other.id)} "
            f"with {quoted(one.id)}; faults are drawn where no two of those are selected"
        )
    unused = [t for t in targets if t.unused and t.size and not t.structural]
    if unused:
        many = f"{len(unused):,} tensors are" if len(unused) > 1 else "1 tensor is"
        out.append(
            f"{many} unused ({sum(t.size for t in unused):,} words): no output of the model depends on "
            f"{', '.join(quoted(t.id) for t in unused[:3])}{', …' if unused[3:] else ''}; left out unless named, as by "
            f"--include '={unused[0].id}'"
        )
    return out


def _bytes_of(target: Target, place: WordLocation) -> object:
    """Return a key of a target's bytes, the same for aliases, which only external data has."""
    if not place.file or not target.size:
        return target.id
    return place.file, place.runs, target.word.name, target.size


def _as_one(group: Sequence[Target]) -> Target:
    """Merge aliases into one target, whose node and layer are those of the first alias that is used."""
    if len(group) == 1:
        return group[0]
    used = next((t for t in group if t.op), group[0])
    users = [user for t in group if t.op for user in (t.consumers or (Consumer(t.op, t.node, t.layer),))]
    roles = tuple(dict.fromkeys(role for t in group for role in (t.roles or (t.role,)) if role))
    schemes = [one for t in group if t.scheme for one in (replace(t.scheme, others=()), *t.scheme.others)]
    return replace(
        group[0],
        op=used.op,
        node=used.node,
        layer=used.layer,
        consumers=tuple(dict.fromkeys(users)) if len(users) > 1 else (),
        role=next(iter(roles), ""),
        roles=roles if len(roles) > 1 else (),
        scheme=replace(schemes[0], others=tuple(dict.fromkeys(schemes[1:]))) if schemes else None,
        aliases=tuple(t.id for t in group[1:]),
        structural=all(t.structural for t in group),
        unused=all(t.unused for t in group),
    )


def _with_spans(rows: Sequence[_Row]) -> list[_Row]:
    """Return the targets, those that share some of their bytes with another with their `span` of bytes."""
    spans = sorted(
        (place.file, *place.runs[0][:2], number)
        for number, (target, place) in enumerate(rows)
        if place.file and target.size
    )
    shared: dict[int, tuple[int, int, int]] = {}
    last = (0, 0, 0, 0)
    for span in spans:
        if last[0] == span[0] and span[1] < last[2]:
            shared |= {one[3]: one[:3] for one in (last, span)}
        last = max(last, span, key=lambda one: (one[0], one[2]))
    return [
        (replace(target, span=shared[number]) if number in shared else target, place)
        for number, (target, place) in enumerate(rows)
    ]
