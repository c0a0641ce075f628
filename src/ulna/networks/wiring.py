"""Topologies as plain data: which nodes there are, and what each one reads."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple


class Node(NamedTuple):
    """One map of the network. It resamples its source to its level, fuses its skips, and convolves."""

    name: str  # "x0_1", after X^{0,1} in UNet++ (zhou2018), Fig. 1
    level: int  # 0 is full resolution
    path: str  # "encoder", "decoder", "nested"; in omega-Net "skip", "merge", "aux" and "main"
    source: str | None  # a finer source is pooled, a coarser one upsampled, one of the same level passed on
    skips: tuple[str, ...] = ()  # fused by the skip slot; a finer one is pooled first, a coarser one upsampled
    convolve: bool = True  # False: the node only fuses


class Wiring(NamedTuple):
    """Nodes in an order in which they can be computed, and the nodes that can be read by a dense head, best last."""

    nodes: tuple[Node, ...]
    heads: tuple[str, ...]

    @property
    def levels(self) -> int:
        """Number of resolutions."""
        return 1 + max(node.level for node in self.nodes)

    @property
    def pyramid(self) -> tuple[str, ...]:
        """The last node of every level, finest first."""
        last = {node.level: node.name for node in self.nodes}
        return tuple(last[level] for level in sorted(last))

    def node(self, name: str) -> Node:
        """The node of that name."""
        return next(node for node in self.nodes if node.name == name)

    def keep(self, *names: str) -> Wiring:
        """The nodes that `names` depend on, and the heads among them."""
        node = {n.name: n for n in self.nodes}
        kept: set[str] = set()
        todo = list(names)
        while todo:
            name = todo.pop()
            kept.add(name)
            todo += [s for s in (node[name].source, *node[name].skips) if s and s not in kept]
        return Wiring(tuple(n for n in self.nodes if n.name in kept), tuple(h for h in self.heads if h in kept))


def encoder(levels: int) -> Wiring:
    """A contracting path alone: x[0,0] reads the image, x[i,0] the pooled x[i-1,0]. It has no dense head."""
    return Wiring(tuple(Node(f"x{i}_0", i, "encoder", f"x{i - 1}_0" if i else None) for i in range(levels)), heads=())


def unet(levels: int) -> Wiring:
    """U-Net, named as the outermost diagonal of UNet++: x[i,j], j = levels-1-i, reads U(x[i+1,j-1]) and skips x[i,0]."""
    decoder = [
        Node(f"x{i}_{levels - 1 - i}", i, "decoder", f"x{i + 1}_{levels - 2 - i}", (f"x{i}_0",))
        for i in reversed(range(levels - 1))
    ]
    return Wiring((*encoder(levels).nodes, *decoder), heads=tuple(node.name for node in decoder) or ("x0_0",))


def unetpp(levels: int) -> Wiring:
    """Nested skip pathways (zhou2018, Eq. 1): x[i,j] = H([x[i,0..j-1], U(x[i+1,j-1])])."""
    nested = [
        Node(f"x{i}_{j}", i, "nested", f"x{i + 1}_{j - 1}", tuple(f"x{i}_{k}" for k in range(j)))
        for j in range(1, levels)
        for i in range(levels - j)
    ]
    heads = tuple(f"x0_{j}" for j in range(1, levels))
    return Wiring((*encoder(levels).nodes, *nested), heads or ("x0_0",))


def omega(levels: int) -> Wiring:
    """Two expansive paths (wang2020, Sec. 3.1): aux reads m[i] = [U(aux[i+1]), k[i]], main reads U(main[i+1]) and m[i].

    k[i] is the skip connection of level i, with a convolution of its own. Both paths start at the deepest encoder node.
    Reading: maps are matched by resolution (the printed indices are off by one), and the convolutions of the paths, which
    Eq. 2 to 5 leave out, are those of the U-Net that Sec. 4.1.2 builds on (docs/papers/omega_net.md, section 5).
    """
    bottom = levels - 1
    nodes = list(encoder(levels).nodes)
    for i in reversed(range(bottom)):
        below = f"aux{i + 1}" if i + 1 < bottom else f"x{bottom}_0"
        nodes += [
            Node(f"k{i}", i, "skip", f"x{i}_0"),
            Node(f"m{i}", i, "merge", below, (f"k{i}",), convolve=False),  # Eq. 9
            Node(f"aux{i}", i, "aux", f"m{i}"),
        ]
    for i in reversed(range(bottom)):
        nodes.append(Node(f"main{i}", i, "main", f"main{i + 1}" if i + 1 < bottom else f"x{bottom}_0", (f"m{i}",)))
    return Wiring(tuple(nodes), heads=("aux0", "main0") if bottom else ("x0_0",))


def unet3p(levels: int) -> Wiring:
    """Full-scale skips (huang2020, Eq. 1): a decoder node reads the encoder down to its level and all deeper decoder nodes.

    The deepest encoder node is the deepest decoder node, too; each decoder node has a head (Sec. 2.2). Nodes are named as
    in U-Net.
    """
    bottom = levels - 1
    decoder = {level: f"x{level}_{bottom - level}" for level in range(levels)}
    nodes = [
        Node(
            decoder[i],
            i,
            "decoder",
            decoder[i + 1],
            (*(f"x{k}_0" for k in range(i + 1)), *(decoder[k] for k in range(i + 2, levels))),
        )
        for i in reversed(range(bottom))
    ]
    return Wiring((*encoder(levels).nodes, *nodes), heads=tuple(decoder[i] for i in reversed(range(levels))))


TOPOLOGIES: dict[str, Callable[[int], Wiring]] = {
    "encoder": encoder,
    "unet": unet,
    "unetpp": unetpp,
    "omega": omega,
    "unet3p": unet3p,
}
