"""The fault operators: model-local functions in the domain `onnxfi`, made of standard nodes alone.

`InjectFault` returns a tensor with some of its words changed to `(word & keep) ^ flip`. It gathers the
faulty elements, runs the body (bit_arithmetic.py) on those, and scatters them back, in place where the runtime can
prove that it may.

Three forms, one operator per number format, body and place of the batch axis:

- *armed*: the faults are inputs. The body sits inside an `If` that is false while there is no fault, since a runtime's
  planning time grows with the square of the nodes outside (400 sites in float32 load in 5 s instead of 249 s).
- *baked*: elements and masks are constants of the node, the same in all samples.
- *sampled*: baked, each fault in one sample of the batch; a sample beyond the batch fails loudly.

Each may have a gate: the iteration of the loop around it, with the first and last faulty one. Each form also exists for
numbers (`InjectScale`, `FixedScale`): the number becomes `number * scale + shift`, for faults without a mask.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxfi.errors import FaultError, ModelError
from onnxfi.faults.words import Word
from onnxfi.graph.dataflow.activation_targets import Activation
from onnxfi.graph.dataflow.batch_layout import SampleAxis
from onnxfi.graph.passes.bit_arithmetic import apply_mask, body_for, convert_transport, takes_words, transport_format
from onnxfi.graph.passes.node_builder import NUMBER, NodeBuilder, opset_of

if TYPE_CHECKING:
    import onnx

DOMAIN = "onnxfi"


@dataclass(frozen=True)
class Operator:
    """One fault operator: its number format, opset, body and form.

    `whole` counts elements over the whole tensor (no batch axis); `gated` compares the iteration.

    >>> from onnxfi.faults.words import WORDS
    >>> Operator(WORDS["float32"], 17).name
    'InjectFault_float32'
    """

    word: Word
    opset: int
    form: str = "armed"
    whole: bool = False
    gated: bool = False
    valued: bool = False
    body: str = "auto"

    @property
    def name(self) -> str:
        """The name of the function, made of its action and its format."""
        verbs = ("InjectScale", "FixedScale") if self.valued else ("InjectFault", "FixedFault")
        verb = verbs[self.form != "armed"]
        verb += "Sample" if self.form == "sampled" else ""
        tail = ("_whole" if self.whole else "") + ("_step" if self.gated else "")
        return f"{verb}_{self.word.name}{tail}" + ("_portable" if self.body == "portable" else "")

    @property
    def kind(self) -> str:
        """The body, native or portable."""
        return body_for(self.word, self.opset, self.body)

    @property
    def takes_planes(self) -> bool:
        """True if masks are given as planes of one bit: bool [bits,S,F], true if the bit is 0."""
        return self.kind == "portable" and not self.valued and not self._takes_words

    @property
    def _takes_words(self) -> bool:
        return self.form == "armed" and self.kind == "portable" and takes_words(self.word, self.opset)

    @property
    def columns(self) -> tuple[str, str]:
        """The columns of an armed model for the change, as fed or as prepared for all sites."""
        bits = self.word.bits
        if self.takes_planes:
            return f"keep.planes{bits}", f"flip.planes{bits}"
        cut = self.kind == "portable" and self.word.is_float and not self.valued
        return (self.change[0], f"flip.word{bits}") if cut else self.change

    @property
    def inputs(self) -> tuple[str, ...]:
        """The names of the inputs."""
        where = {"armed": ("armed", "site", "element"), "baked": ("element",), "sampled": ("at",)}[self.form]
        return ("x", *where, *self.change, *(("first", "last", "step") if self.gated else ()))

    @property
    def change(self) -> tuple[str, str]:
        """The inputs that describe the change of a word, or of a number."""
        return ("scale", "shift") if self.valued else ("keep", "flip")

    def function(self) -> onnx.FunctionProto:
        """Return the function, in the domain `onnxfi`."""
        from onnx import helper

        g = NodeBuilder(self.opset)
        x = convert_transport(g, self.word, "x")
        {"armed": self._armed, "baked": self._baked, "sampled": self._sampled}[self.form](g, x)
        if g.nodes[-1].output[0] != "y":
            convert_transport(g, self.word, g.nodes[-1].output[0], back=True, name="y")
        opset = helper.make_opsetid("", self.opset)
        attributes = ["number"] if self.form == "armed" else []
        return helper.make_function(
            DOMAIN, self.name, [*self.inputs], ["y"], g.nodes, [opset], attributes,
            doc_string=_DOCS[self.form] + ("number * scale + shift" if self.valued else "(word & keep) ^ flip"),
        )  # fmt: skip

    @property
    def _end(self) -> str:
        return "y" if transport_format(self.word) == self.word.name else ""

    def _flat(self, g: NodeBuilder, x: str) -> str:
        return g.add("Flatten", x, axis=0 if self.whole else 1)

    def _samples(self, g: NodeBuilder, shape: str) -> str:
        """Return the number of samples, [1]; the scatter must come after this reads the shape."""
        return g.constant([1]) if self.whole else g.add("Gather", shape, g.constant([0]))

    def _scatter(self, g: NodeBuilder, flat: str, at: str, faulty: str, shape: str) -> None:
        g.restore(g.add("ScatterElements", flat, at, faulty, axis=1), shape, name=self._end)

    def _armed(self, g: NodeBuilder, x: str) -> None:
        """Gather and change the faulty elements of a site; always scatter, mostly an empty set."""
        from onnx import helper

        number = g.add("Constant", name="number")
        g.nodes[-1].attribute.append(_reference("value", "number"))
        shape = g.add("Shape", x)
        flat = self._flat(g, x)
        then = NodeBuilder(self.opset, "armed_")
        if self.gated:  # few iterations have faults, so the columns are compared before the If
            rows = g.add("NonZero", g.add("And", g.add("Equal", "site", number), self._open(g)))
            armed = g.add("Greater", g.add("Size", rows), g.constant(0))
        else:
            armed = g.add("Gather", "armed", number)
            rows = then.add("NonZero", then.add("Equal", "site", number))
        at, faulty = self._select(then, flat, shape, rows)
        if self._widens:
            faulty = then.cast(faulty, "float32")
        idle = NodeBuilder(self.opset, "idle_")
        nowhere = idle.constant(np.zeros((0, 0)), name="idle_at")
        nothing = idle.constant(
            np.zeros((0, 0)), "float32" if self._widens else transport_format(self.word), name="idle_value"
        )
        pair = [g.prefix + "at", g.prefix + "faulty"]
        g.nodes.append(
            helper.make_node(
                "If", [armed], pair,
                then_branch=self._branch(then, "armed", at, faulty),
                else_branch=self._branch(idle, "idle", nowhere, nothing),
            )
        )  # fmt: skip
        faulty = g.cast(pair[1], self.word.name) if self._widens else pair[1]
        self._scatter(g, flat, pair[0], faulty, shape)

    @property
    def _widens(self) -> bool:
        """True if the value leaves the If as float32: the If has bfloat16 outputs only from opset 16 on."""
        return self.word.name == "bfloat16" and self.opset < 16

    def _branch(self, g: NodeBuilder, name: str, at: str, value: str) -> onnx.GraphProto:
        from onnx import helper

        word = "float32" if self._widens else transport_format(self.word)
        outputs = [helper.make_tensor_value_info(n, NUMBER[w], [None, None]) for n, w in ((at, "int64"), (value, word))]
        return helper.make_graph(g.nodes, name, [], outputs)

    def _open(self, g: NodeBuilder) -> str:
        """Return which columns have faults in this iteration, bool [F]."""
        step = g.reshape("step", g.constant([1]))
        early, late = g.add("Greater", "first", step), g.add("Less", "last", step)
        return g.add("Not", g.add("Or", early, late))

    def _select(self, g: NodeBuilder, flat: str, shape: str, rows: str) -> tuple[str, str]:
        """Return the elements of this site, and its faulty numbers: indices [N,K] and numbers [N,K]."""
        mine = g.reshape(rows, g.constant([-1]))
        axis = 2 if self.takes_planes else 1
        element = g.add("Gather", "element", mine, axis=1)
        pair = [g.add("Gather", n, mine, axis=axis) for n in self.change]
        if self.whole:
            zero, one = g.constant([0]), g.constant([1])
            element = g.add("Slice", element, zero, one, zero)
            pair = [g.add("Slice", n, zero, one, g.constant([axis - 1])) for n in pair]
        at = g.add("Expand", element, g.add("Concat", self._samples(g, shape), g.constant([1]), axis=0))
        value = g.add("GatherElements", flat, at, axis=1)
        return at, self._change(g, value, pair, short=True)

    def _baked(self, g: NodeBuilder, x: str) -> None:
        """Change constant elements [K] of all samples by masks [1,K] (planes: [bits,1,K])."""
        shape = g.add("Shape", x)
        flat = self._flat(g, x)
        size = g.add("Concat", self._samples(g, shape), g.add("Shape", "element"), axis=0)
        at = g.add("Expand", "element", size)
        value = g.add("Gather", flat, "element", axis=1)
        self._scatter(g, flat, at, self._gate(g, value), shape)

    def _sampled(self, g: NodeBuilder, x: str) -> None:
        """Change constant pairs of sample and element, `at` [K,2], by masks [1,K]."""
        shape = g.add("Shape", x)
        flat = self._flat(g, x)
        value = g.reshape(g.add("GatherND", flat, "at"), g.constant([1, -1]))
        faulty = g.reshape(self._gate(g, value), g.constant([-1]))
        g.restore(g.add("ScatterND", flat, "at", faulty), shape, name=self._end)

    def _gate(self, g: NodeBuilder, value: str) -> str:
        """Return the faulty numbers, with a gate only in the chosen iterations."""
        from onnx import helper

        if not self.gated:
            return self._change(g, value)
        then, other = NodeBuilder(self.opset, "now_"), NodeBuilder(self.opset, "later_")
        word = "float32" if self._widens else transport_format(self.word)
        faulty, same = self._change(then, value), other.add("Identity", value)
        if self._widens:
            faulty, same = then.cast(faulty, word), other.cast(same, word)
        graphs = [
            helper.make_graph(nodes.nodes, name, [], [helper.make_tensor_value_info(out, NUMBER[word], [None, None])])
            for nodes, name, out in ((then, "now", faulty), (other, "later", same))
        ]
        now = g.add("If", g.reshape(self._open(g), g.constant([1])), then_branch=graphs[0], else_branch=graphs[1])
        return g.cast(now, self.word.name) if self._widens else now

    def _change(self, g: NodeBuilder, value: str, given: Sequence[str] = (), *, short: bool = False) -> str:
        first, second = given or self.change
        if not self.valued:
            return apply_mask(g, self.word, self.kind, value, first, second, short=short)
        word = self.word
        exact = value if word.name == "float64" else g.cast(value, "float64")
        number = g.add("Add", g.add("Mul", exact, first), second)
        if not word.is_float:
            low = -(1 << (word.bits - 1)) if word.signed else 0
            high = (1 << (word.bits - int(word.signed))) - 1
            number = g.add("Where", g.add("IsNaN", number), g.constant(0, "float64"), g.add("Round", number))
            number = g.add("Max", g.add("Min", number, g.constant(high, "float64")), g.constant(low, "float64"))
        return number if word.name == "float64" else g.cast(number, transport_format(word))


class FunctionLibrary:
    """The fault operators of one model: each becomes a function, unless the model has an equal one."""

    def __init__(self, proto: onnx.ModelProto) -> None:
        self.proto, self.opset = proto, opset_of(proto)
        self._known = {f.name: f for f in proto.functions if f.domain == DOMAIN}
        self._made: dict[str, onnx.FunctionProto] = {}

    def name_of(self, operator: Operator) -> str:
        """Return the name of an operator's function."""
        name, number = operator.name, 1
        if name in self._made:
            return name
        made = operator.function()
        while made.name in self._known:
            if self._known[made.name].SerializeToString(deterministic=True) == made.SerializeToString(
                deterministic=True
            ):
                return made.name
            number += 1
            made.name = f"{name}_{number}"
        self._made[name] = made
        return made.name

    def write(self) -> None:
        """Add the new functions to the model, and import their domain."""
        self.proto.functions.extend(self._made.values())
        if not any(o.domain == DOMAIN for o in self.proto.opset_import):
            entry = self.proto.opset_import.add()
            entry.domain, entry.version = DOMAIN, 1


def allow_functions(proto: onnx.ModelProto) -> None:
    """Raise the IR version of a model to the first that has functions.

    From that version on, weights that are graph inputs can be fed and are not folded: they are removed from the inputs.
    """
    if proto.ir_version < 8:
        proto.ir_version = 8
        stored = {t.name for t in proto.graph.initializer}
        for k in reversed(range(len(proto.graph.input))):
            if proto.graph.input[k].name in stored:
                del proto.graph.input[k]


def call_operator(
    g: NodeBuilder, name: str, a: Activation, between: tuple[str, str], given: Sequence[str], **attributes: Any
) -> None:
    """Call an operator between a value and its result; the sample axis is moved to the front and back."""
    value, result = between
    attributes["domain"] = DOMAIN
    if a.place is not None and a.place.rows > 1:
        _call_by_sample(g, name, a, a.place, between, given, attributes)
        return
    if not a.axis:
        g.add(name, value, *given, name=result, **attributes)
        return
    rank = len(a.dims or ())
    there = [a.axis, *(k for k in range(rank) if k != a.axis)]
    back = [there.index(k) for k in range(rank)]
    faulty = g.add(name, g.add("Transpose", value, perm=there), *given, **attributes)
    g.add("Transpose", faulty, name=result, perm=back)


def _call_by_sample(
    g: NodeBuilder, name: str, a: Activation, held: SampleAxis, between: tuple[str, str], given: Sequence[str],
    attributes: Mapping[str, Any],
) -> None:  # fmt: skip
    """Call an operator on a tensor with several rows per sample, which get an axis of their own meanwhile."""
    value, result = between
    own = a.target.shape
    if not a.shape_known:
        raise ModelError(f"the shape of {a.target.id!r} is not known, so its samples cannot be separated; give --data")
    before = math.prod(own[: held.axis]) * held.outer
    behind = held.inner * math.prod(own[held.axis + 1 :])
    shape = g.add("Shape", value)
    apart = g.reshape(value, g.constant([before, -1, behind]))
    faulty = g.add(name, g.add("Transpose", apart, perm=[1, 0, 2]), *given, **attributes)
    g.restore(g.add("Transpose", faulty, perm=[1, 0, 2]), shape, name=result)


def value_info_types(sites: Sequence[Activation]) -> dict[tuple[str, str], onnx.TypeProto]:
    """Return the types to declare in value_info, from which the runtime can prove that it may scatter in place.

    Types inside bodies are left out, as inferred ones need not hold in every iteration, and those that only the file
    declares, as the runtime would trust them.
    """
    from onnx import helper

    return {
        (a.path, a.name): helper.make_tensor_type_proto(NUMBER[a.target.dtype], list(a.dims))
        for a in sites
        if a.dims is not None and a.shape_inferred and not a.path
    }


_DOCS = {
    "armed": "the columns of this site change x: armed [sites], which sites have columns; site [F]; element, "
    "keep and flip [S,F], S being 1 (every sample) or the samples; masks as planes of one bit where there are three "
    "axes; the word at each element becomes ",
    "baked": "the word at these elements of every sample of x becomes ",
    "sampled": "the word at these (sample, element) pairs of x becomes ",
}


def _reference(name: str, number: str) -> onnx.AttributeProto:
    import onnx

    return onnx.AttributeProto(name=name, ref_attr_name=number, type=onnx.AttributeProto.TENSOR)


def check_values(word: Word) -> None:
    """Refuse value faults on formats whose numbers float64 does not hold; FaultError says so."""
    if (not word.is_float and word.bits == 64) or word.parts > 1 or word.name == "bool":
        raise FaultError(
            f"a value fault on {word.name} cannot be written into a graph; use a mask, as flip or set-word"
        )
    if word.is_float and word.bits == 8:
        raise FaultError(f"a value fault on {word.name} cannot be written into a graph; use a mask, as set or flip")
