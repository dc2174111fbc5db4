"""Piece by piece: what a fault can change runs in pieces, and where a piece gives golden the next ones are left out.

Late start and early stop: nothing runs in front of the fault, and nothing behind the last value that differs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from onnxfi.graph.downstream import Cut, Home, Wiring
from onnxfi.graph.parts import Feed, Part, extract
from onnxfi.runtime.engines import Session
from onnxfi.runtime.golden import GoldenValues
from onnxfi.runtime.ports import Array, same_bytes

#: Given a value in flight, the value that goes on.
Patch = Callable[[Array], Array]


class Pieces:
    """Pieces of a cut, opened. `fed` are tensors and values that are fed; with `late` nothing runs before the first.

    Opening raises EngineError where the runtime does not take a piece, KeyError where a value between two is no tensor.
    """

    def __init__(
        self,
        prepare: Callable[[Part], Session],
        wiring: Wiring,
        whole: Cut,
        pieces: Sequence[Cut],
        fed: Mapping[str, Feed],
        ports: Callable[[Sequence[str]], dict[str, Feed]],
        golden: GoldenValues,
        *,
        lifted: Home | None = None,
        late: bool = True,
    ) -> None:
        self.wiring, self.pieces, self.fed, self.ports, self.golden = wiring, pieces, fed, ports, golden
        self.lifted, self.late, self.outputs = lifted, late, whole.outputs
        self.reads = [
            tuple(name for name in sorted(fed) if _holds(wiring, piece, lifted or Home(name))) for piece in pieces
        ]
        self._sessions = [prepare(self.part(number)) for number in range(len(pieces))]
        self._alike: dict[int, bool] = {}

    def holds(self, number: int, home: Home) -> bool:
        """Whether a piece uses the tensor at a home."""
        return _holds(self.wiring, self.pieces[number], home)

    def part(self, number: int, faulty: Mapping[Home, Array] | None = None) -> Part:
        """The model of a piece, with other tensors in the place of its own."""
        piece = self.pieces[number]
        feeds = self.ports(piece.crossings) | {name: self.fed[name] for name in self.reads[number]}
        lifted = self.lifted if self.lifted is not None and self.lifted.node in piece.nodes else None
        return extract(self.wiring, piece.nodes, feeds, piece.outputs, lifted, faulty)

    def disarmed(self, k: int, fed: Mapping[str, Array]) -> dict[str, Array]:
        """The outputs of batch k without a fault, every piece run, and held against golden values."""
        live, made = dict(fed), {name for piece in self.pieces for name in piece.outputs}
        wanted = [n for p, reads in zip(self.pieces, self.reads, strict=True) for n in (*p.crossings, *reads)]
        self.golden.values(
            k, [name for name in dict.fromkeys(wanted) if name not in made and name not in fed]
        )  # at once
        for number, session in enumerate(self._sessions):
            live |= session.run(self._feeds(number, k, live))
        between = [name for piece in self.pieces[:-1] for name in piece.outputs]
        known = self.golden.values(k, between)
        self._alike[k] = all(same_bytes(live[name], known[name]) for name in between)
        return {name: live[name] for name in self.outputs}

    def meet(self, k: int, fed: Mapping[str, Array]) -> None:
        """Run batch k disarmed, unless that was done or says nothing."""
        if k not in self._alike and len(self.pieces) > 1:
            self.disarmed(k, fed)

    def run(
        self,
        k: int,
        fed: Mapping[str, Array],
        patches: Mapping[str, Patch] | None = None,
        faulty: Mapping[int, Session] | None = None,
    ) -> dict[str, Array] | None:
        """The outputs of batch k, which was met before; None where none of them differs.

        `fed` are the struck tensors, `patches` change values in flight, `faulty` sessions stand for those of pieces.
        Where pieces without a fault do not give golden values to the bit, as other fusions may do, all of them run.
        """
        patches, faulty, live = patches or {}, faulty or {}, dict(fed)
        every, changed, begun = not self._alike.get(k, True), set(fed), False

        def patch(names: Sequence[str]) -> None:
            for name in names:
                if name in patches:
                    live[name] = patches[name](self._value(k, name, live))
                    self._compare(k, [name], live, changed)

        patch(list(self.fed))
        for number, (piece, session) in enumerate(zip(self.pieces, self._sessions, strict=True)):
            struck = number in faulty or not changed.isdisjoint((*piece.crossings, *self.reads[number]))
            begun = begun or struck
            if every or struck or not (begun or self.late):
                live |= faulty.get(number, session).run(self._feeds(number, k, live))
                if piece is not self.pieces[-1]:
                    self._compare(k, piece.outputs, live, changed)
            patch(piece.outputs)
            begun = begun or not patches.keys().isdisjoint(piece.outputs)
        if not (every or struck or not changed.isdisjoint(self.outputs)):
            return None
        return {name: self._value(k, name, live) for name in self.outputs}

    def _feeds(self, number: int, k: int, live: Mapping[str, Array]) -> dict[str, Array]:
        names = (*self.pieces[number].crossings, *self.reads[number])
        known = self.golden.values(k, [name for name in names if name not in live])
        return {name: live[name] if name in live else known[name] for name in names}

    def _value(self, k: int, name: str, live: Mapping[str, Array]) -> Array:
        return live[name] if name in live else self.golden.values(k, [name])[name]

    def _compare(self, k: int, names: Sequence[str], live: Mapping[str, Array], changed: set[str]) -> None:
        for name, array in self.golden.values(k, names).items():
            (changed.discard if same_bytes(live[name], array) else changed.add)(name)


def _holds(wiring: Wiring, piece: Cut, home: Home) -> bool:
    if home.node >= 0:
        return home.node in piece.nodes
    return any(home.fed in wiring.reads[k] for k in piece.nodes)
