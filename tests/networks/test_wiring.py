import pytest

from ulna.networks.wiring import TOPOLOGIES, encoder, unet, unetpp


def test_unetpp_has_the_nodes_of_figure_1():
    wiring = unetpp(5)
    assert len(wiring.nodes) == 15
    assert wiring.heads == ("x0_1", "x0_2", "x0_3", "x0_4")
    node = wiring.node("x1_2")  # zhou2018, Eq. 1: x[1,2] = H([x[1,0], x[1,1], U(x[2,1])])
    assert (node.source, node.skips) == ("x2_1", ("x1_0", "x1_1"))


@pytest.mark.parametrize(("head", "count"), [("x0_1", 3), ("x0_2", 6), ("x0_3", 10), ("x0_4", 15)])
def test_pruned_unetpp_keeps_the_nodes_with_i_plus_j_up_to_d(head, count):
    kept = {node.name for node in unetpp(5).keep(head).nodes}
    depth = int(head[-1])
    assert kept == {f"x{i}_{j}" for i in range(5) for j in range(5 - i) if i + j <= depth}
    assert len(kept) == count


def test_unet_is_the_outermost_diagonal_of_unetpp():
    grid = {node.name: node for node in unetpp(4).nodes}
    for node in unet(4).nodes:
        if node.path == "decoder":
            assert node.source == grid[node.name].source
            assert node.skips == grid[node.name].skips[:1]
    assert unet(4).heads == ("x2_1", "x1_2", "x0_3")


@pytest.mark.parametrize("levels", [1, 2, 5])
@pytest.mark.parametrize("name", TOPOLOGIES)
def test_every_node_reads_earlier_nodes_and_fuses_its_own_level(name, levels):
    wiring = TOPOLOGIES[name](levels)
    assert wiring.levels == levels
    seen = {}
    for node in wiring.nodes:
        assert node.source is None or node.source in seen
        assert all(seen[skip] == node.level for skip in node.skips)
        seen[node.name] = node.level
    assert set(wiring.heads) <= set(seen)


def test_pyramid_is_the_last_node_of_every_level():
    assert encoder(3).pyramid == ("x0_0", "x1_0", "x2_0")
    assert unet(3).pyramid == ("x0_2", "x1_1", "x2_0")
